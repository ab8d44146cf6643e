"""The ``ubpx bench`` command, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ubpx
from ubpx.cli.app import app
from ubpx.cli.bench import run as bench
from ubpx.cli.bench.report import as_text

UBPX = Path(sys.executable).with_name("ubpx")
SHORT = ("--rounds", "1", "--calls", "200")
RATIOS = ("registers", "two_clients", "busy_host", "armed_elsewhere", "hit_in_echoes")


def test_it_measures_without_a_compiler(tmp_path: Path) -> None:
    """Invariant: with nothing in PATH all figures are there, and the JSON's are those of one short run."""
    command = [str(UBPX), "bench", *SHORT, "--pin", "--json"]
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "PATH": str(tmp_path)}
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    (line,) = outcome.stdout.splitlines()
    said = json.loads(line)
    assert (said["rounds"], said["calls"], said["pinned"]) == (1, 200, True)
    assert said["strategy"] in set(ubpx.Strategy)
    assert said["elsewhere"] > 1000
    assert all(said[name] > 0 for name in (*RATIOS, "hit_us", "echo_us", "call_ns", "arm_us", "release_us"))


def test_the_text_has_each_figure_in_a_line() -> None:
    result = bench.BenchResult(
        strategy="BOOST",
        rounds=5,
        calls=5_000,
        pinned=False,
        hit_us=12.34,
        echo_us=10.0,
        call_ns=40.0,
        registers=1.15,
        two_clients=1.04,
        busy_host=3.21,
        armed_elsewhere=1.01,
        elsewhere=1_585,
        client_in_calls=7.6,
        arm_us=20.5,
        release_us=3.2,
    )
    lines = as_text(result).splitlines()
    assert lines[0] == "libc:toascii (BOOST), any processor; medians of 5 rounds of 5,000 hits"
    shown = [
        "12.3 us",
        "1.23 x",
        "308 x",
        "1.15 x",
        "1.04 x",
        "7.6 Python calls",
        "3.21 x",
        "1.01 x",
        "20.5 us",
        "3.2 us",
    ]
    assert [line.rstrip().endswith(value) for line, value in zip(lines[1:], shown, strict=True)] == [True] * len(shown)
    assert len({len(line) for line in lines[1:]}) == 1


def program_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Let the command start this instead of its program."""
    script = tmp_path / "program.py"
    script.write_text(text)
    monkeypatch.setattr(bench, "PROGRAM", script)


def test_a_c_library_without_the_functions_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Invariant: one line that names what is missing, and status 1."""
    real = bench.PROGRAM.read_text()
    program_that(monkeypatch, tmp_path, real.replace("libc.toascii", "libc.toascii_of_nobody"))
    outcome = CliRunner().invoke(app, ["bench", *SHORT])
    assert outcome.exit_code == 1
    assert outcome.output.startswith("ubpx: ")
    assert "libc:toascii_of_nobody" in outcome.output
    assert outcome.output.count("\n") == 1


def test_a_program_that_ends_is_said_to_have_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program_that(monkeypatch, tmp_path, "print('ready')\nraise SystemExit(7)")
    outcome = CliRunner().invoke(app, ["bench", *SHORT])
    assert outcome.exit_code == 1
    assert outcome.output.startswith("ubpx: ")
    assert outcome.output.count("\n") == 1


def test_a_missed_hit_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Invariant: a figure is given only if hits equal calls; a program that makes one call less is found."""
    real = bench.PROGRAM.read_text()
    program_that(monkeypatch, tmp_path, real.replace("ctypes.c_size_t(calls)", "ctypes.c_size_t(calls - 1)"))
    outcome = CliRunner().invoke(app, ["bench", *SHORT])
    assert outcome.exit_code == 1
    assert "counted 238 hits of 240 calls" in outcome.output


def test_affinity_is_given_back() -> None:
    """Invariant: --pin is for the time of the measurement, and holds for what is started meanwhile."""
    before = os.sched_getaffinity(0)
    with bench.pinned():
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--calls", "1"], ["--calls", "many"]])
def test_silly_options_are_refused_in_one_line(words: list[str]) -> None:
    outcome = CliRunner().invoke(app, ["bench", *words])
    assert outcome.exit_code == 2
    assert outcome.output.startswith("ubpx: ")
