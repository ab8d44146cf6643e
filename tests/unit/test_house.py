"""What the packaging promises: wheels, entry points, modules that stand alone, and who imports whom."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import ubpx

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "ubpx": ROOT,
    "ubpx_ptracepp": ROOT / "plugins" / "ptracepp",
    "ubpx_froggy": ROOT / "plugins" / "froggy",
    "ubpx_hitcount": ROOT / "examples" / "hitcount",
    "ubpx_argwatch": ROOT / "examples" / "argwatch",
    "ubpx_bare_ubp": ROOT / "examples" / "bare_ubp",
}


def test_tests_run_against_the_installed_wheel() -> None:
    """Invariant: a file that is missing from a wheel is missed by the tests."""
    assert "site-packages" in Path(ubpx.__file__).parts


def test_every_plugin_is_found_by_its_entry_point() -> None:
    found = {entry.name: entry for entry in entry_points(group="ubpx")}
    assert {"symbols", "ptracepp", "froggy", "hitcount", "argwatch"} <= found.keys()
    for entry in found.values():
        assert callable(entry.load()), entry


def modules() -> list[str]:
    """The names of all modules that the wheels bring."""
    names = []
    for package, directory in PACKAGES.items():
        for path in sorted((directory / package).rglob("*.py")):
            parts = path.relative_to(directory).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


# Each module is imported in a fork of its own of an interpreter that has loaded what is slow, and none of ours.
IMPORT_ALONE = """
import importlib, os, sys
import asyncio, attrs, capstone, click, elftools.elf.elffile, msgspec, pluggy, rich.console, unicorn
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_module_imports_alone_without_a_warning() -> None:
    """Invariant: no module needs another one to have been imported before it."""

    def problems(*names: str) -> str:
        command = [sys.executable, "-W", "error", "-c", IMPORT_ALONE, *names]
        outcome = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=200, check=False)
        return outcome.stdout + outcome.stderr

    assert problems("ubpx.nosuch").startswith("ubpx.nosuch: ModuleNotFoundError")
    assert problems(*modules()) == ""


OTHER_CLOCKS = re.compile(r"\btime\.time\b|^from time import .*\btime\b|CLOCK_REALTIME|datetime", re.MULTILINE)


def test_no_wait_is_measured_by_a_clock_that_jumps() -> None:
    """Invariant: the time of day is read by what stamps a hit, and by nothing else."""
    packages = [directory / package for package, directory in PACKAGES.items()]
    files = [file for package in packages for file in package.rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if OTHER_CLOCKS.search(file.read_text())}
    froggy = "plugins/froggy/ubpx_froggy"
    assert found == {"ubpx/cli/trace/run.py", f"{froggy}/broker/handlers.py", f"{froggy}/client/handling.py"}
    assert len(files) > 200


# A line that breaks the contract, by the file that it is planted in.
VIOLATIONS = {
    "ubpx/core/values.py": "from ubpx.core import coordinator",
    "ubpx/core/ubp/plans.py": "from ubpx.core import events",
    "ubpx/core/slots.py": "import capstone",
    "ubpx/hookspecs.py": "from ubpx.core.ubp import plans",
    "ubpx/testing/twins.py": "import unicorn",
    "ubpx/testing/stage.py": "from ubpx.testing import twins",
    "ubpx/cli/text.py": "import ubpx",
    "ubpx/target.py": "import ubpx_hitcount",
    "examples/hitcount/ubpx_hitcount/__init__.py": "from ubpx.core import coordinator",
    "examples/argwatch/ubpx_argwatch/__init__.py": "import ptrace",
    "plugins/froggy/ubpx_froggy/broker/quotas.py": "from ubpx_froggy import client",
    "plugins/froggy/ubpx_froggy/aio/turns.py": "from ubpx_froggy import broker",
}


def test_a_planted_import_breaks_every_contract(tmp_path: Path) -> None:
    """Invariant: each import contract is one that can fail, also under TYPE_CHECKING."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package, directory in PACKAGES.items():
        shutil.copytree(directory / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in VIOLATIONS.items():
        planted = tmp_path / re.sub("^(examples|plugins)/[^/]*/", "", file)
        planted.write_text(f"{planted.read_text()}\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {line}\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    verdicts = re.findall(r"(KEPT|BROKEN)", outcome.stdout)
    wanted = (tmp_path / "pyproject.toml").read_text().count("[[tool.importlinter.contracts]]")
    assert outcome.returncode == 1
    assert verdicts == ["BROKEN"] * wanted, outcome.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_wheel_says_that_it_is_typed(package: str) -> None:
    assert (PACKAGES[package] / package / "py.typed").exists()
