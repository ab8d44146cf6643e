"""A small debugger stops, shows, steps and lets go, on the debugger that it was written for."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MINIDEBUG = [sys.executable, str(ROOT / "examples" / "minidebug" / "minidebug.py")]
TARGETS = ROOT / "tests" / "targets"
PATIENCE_S = 50

Build = Callable[[str], str]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a target."""

    def build_one(name: str) -> str:
        program = tmp_path_factory.mktemp(name) / name
        subprocess.run(["gcc", "-O2", "-pthread", "-o", program, TARGETS / f"{name}.c"], check=True)
        return str(program)

    return build_one


def debug(*arguments: str, told: str = "") -> list[str]:
    """What the debugger says of a program that it starts, which finds ``told`` on its standard input."""
    outcome = subprocess.run(
        [*MINIDEBUG, *arguments], input=told, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert outcome.stderr == ""
    return [line for line in outcome.stdout.splitlines() if re.match(r"thread|Process|New", line)]


def stops_in(lines: list[str]) -> list[tuple[str, int, int, int]]:
    """(place, argument, pc, bytes stepped) of each hit."""
    hits = [re.fullmatch(r"thread (\d+) at (\w+) \((\w+)\): rdi=(\w+) rsp=\w+", line) for line in lines]
    found = []
    for hit, line in zip(hits, lines[1:], strict=False):
        if hit is not None:
            stepped = re.fullmatch(rf"thread {hit[1]} stepped to (\w+), Signal SIGTRAP", line)
            assert stepped is not None, line
            found.append((hit[2], int(hit[4], 16), int(hit[3], 16), int(stepped[1], 16) - int(hit[3], 16)))
    return found


def test_every_hit_is_shown_and_the_exit_told(build: Build) -> None:
    """Invariant: a started program is seen from its first function to its exit status."""
    lines = debug("1000", "main,probed_twice", build("self_exec"), "again", "4", told="gg")
    (main, *calls) = stops_in(lines)
    assert main[:2] == ("main", 3)
    assert [(name, argument, length) for name, argument, _, length in calls] == [
        ("probed_twice", argument, 4) for argument in range(4)
    ]
    assert len({pc for _, _, pc, _ in calls}) == 1
    assert re.fullmatch(r"Process \d+ exited with code 5", lines[-1])


def test_after_enough_hits_the_program_goes_on_alone(build: Build) -> None:
    """Invariant: a program that is let go has its own text again: it would die of a trap, and gives a wrong result."""
    command = [build("self_exec"), "again", "6"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "again\n"
        running = [*MINIDEBUG, "3", "probed_twice", str(program.pid)]
        with subprocess.Popen(running, stdout=subprocess.PIPE, text=True) as debugger:
            assert debugger.stdout is not None
            assert debugger.stdout.readline() == f"1 breakpoints in process {program.pid}\n"
            program.stdin.write("g\n")
            lines = debugger.stdout.read().splitlines()
        assert debugger.returncode == 0
        assert [stop[:2] for stop in stops_in(lines)] == [("probed_twice", argument) for argument in range(3)]
        assert lines[-1] == f"thread {program.pid} is let go"
        assert program.stdout.readline() == "calls=6\n"
        assert "TracerPid:\t0" in Path(f"/proc/{program.pid}/status").read_text()
        assert program.wait(PATIENCE_S) == 5


def test_threads_are_followed(build: Build) -> None:
    """Invariant: new threads are told of, run, and their exits are told too."""
    lines = debug("1000", "main", build("hot_calls"), "probed_lea", "3", "200", told="gg")
    assert [stop[:2] for stop in stops_in(lines)] == [("main", 4)]
    threads = [line.removeprefix("New process ") for line in lines if line.startswith("New")]
    assert len(threads) == 3
    ended = [line.split()[1] for line in lines if line.endswith("exited normally")]
    assert sorted(ended[:-1]) == sorted(threads)
    assert ended[-1] == lines[0].split()[1]
