"""The tutorial works as it stands: its files are written, its commands run in order, their output compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "first-client.md"
BLOCK = re.compile(r"^```(\w+)( prepare)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"`(\w+\.\w+)`[^`]*$")


class Step(NamedTuple):
    """One thing that the reader does."""

    command: str
    """What the shell runs; "" where a file is written."""
    file: str
    text: str
    """The file's, or what the command must print; None of the latter: anything."""


def steps(document: str) -> list[Step]:
    """What the reader is told to do after the preparation, in order; a file's name is the last code before it."""
    found: list[Step] = []
    for block in BLOCK.finditer(document):
        language, prepares, text = block.groups()
        if language == "text":
            found[-1] = found[-1]._replace(text=text)
        elif language == "sh" and not prepares:
            found.append(Step(text, "", ""))
        elif language in ("python", "toml"):
            name = FILE_NAME.search(document, 0, block.start())
            assert name is not None, f"no file name stands before {text!r}"
            found.append(Step("", name[1], text))
    return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As `make demo` and activation leave it: a virtual environment of its own, with what is installed in this one."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = subprocess.run(
        [venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(packages, "installed.pth").write_text(sysconfig.get_path("purelib"))
    return {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(venv), "PIP_NO_INDEX": "1"}


def test_the_tutorial_works_as_it_stands(tmp_path: Path, environment: dict[str, str]) -> None:
    """Invariant: who follows the tutorial gets what it shows, and none of it touches the checkout."""
    place = tmp_path / "first-client"
    place.mkdir()
    told = steps(TUTORIAL.read_text())
    for step in told:
        if step.file:
            (place / step.file).write_text(step.text)
            continue
        outcome = subprocess.run(
            ["sh", "-eu", "-c", step.command],
            cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (outcome.returncode, outcome.stdout) == (0, step.text), f"{step.command}{outcome.stderr}"
    assert [step.file for step in told if step.file] == [
        "work.py", "count.py", "share.py", "echo.py", "visit.py", "ubpx_callcount.py", "pyproject.toml", "use.py",
    ]  # fmt: skip
    assert len([step for step in told if step.command and step.text]) == 4


def test_the_preparation_is_what_the_makefile_offers() -> None:
    """Invariant: what the test above takes as done is a target of the Makefile, which sets up .venv."""
    prepared = next(block[3] for block in BLOCK.finditer(TUTORIAL.read_text()) if block[2])
    target = re.search(r"^make (\w+)$", prepared, re.MULTILINE)
    assert target is not None
    rule = (ROOT / "Makefile").read_text().partition(f"\n{target[1]}:")[2].partition("\n\n")[0]
    assert "$(SETUP)" in rule
    assert ". .venv/bin/activate\n" in prepared
