"""A debugger written for python-ptrace runs on ptrace++ with its imports changed, and misses nothing there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

MINIDEBUG = Path(__file__).parents[4] / "examples" / "minidebug" / "minidebug.py"
PATIENCE_S = 50
THREADS, CALLS = 4, 50
CHANGED = {
    "from ptrace.debugger import NewProcessEvent, ProcessExit, ProcessSignal, PtraceDebugger\n": (
        "from ubpx_ptracepp import NewProcessEvent, ProcessExit, ProcessSignal, createChild\n"
    ),
    "from ptrace.debugger.child import createChild\n": "from ubpx_ptracepp import Ptrace as PtraceDebugger\n",
}


@pytest.fixture
def minidebug(tmp_path: Path) -> list[str]:
    """The command that runs it with its imports changed, and nothing else."""
    source = MINIDEBUG.read_text()
    for line, instead in CHANGED.items():
        assert source.count(line) == 1
        source = source.replace(line, instead)
    changed = tmp_path / "minidebug.py"
    changed.write_text(source)
    return [sys.executable, "-W", "error", str(changed)]


def stops_in(output: str) -> list[tuple[str, int, int, int]]:
    """(place, argument, tid, bytes stepped) of each hit; each must have been stepped over."""
    lines = output.splitlines()
    found = []
    for line, after in pairwise(lines):
        hit = re.fullmatch(r"thread (\d+) at (\w+) \((\w+)\): rdi=(\w+) rsp=\w+", line)
        if hit is not None:
            stepped = re.fullmatch(rf"thread {hit[1]} stepped to (\w+), Signal SIGTRAP", after)
            assert stepped is not None, after
            found.append((hit[2], int(hit[4], 16), int(hit[1]), int(stepped[1], 16) - int(hit[3], 16)))
    return found


def program_path(target_program: StartProgram, name: str, *arguments: object) -> tuple[str, ...]:
    """The command of a target, built by starting and ending it once."""
    program = target_program(name, *arguments, ready=False)
    assert program.popen is not None
    command = tuple(map(str, program.popen.args))  # type: ignore[arg-type]
    program.popen.kill()
    return command


def debug(command: list[str], *arguments: str, told: str) -> list[str]:
    """What the debugger says of a program that it starts, which finds ``told`` on its standard input."""
    outcome = subprocess.run(
        [*command, *arguments], input=told, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert outcome.stderr == ""
    own = re.sub(r"(ready|again|calls=\d+)\n", "", outcome.stdout)  # what the program says, perhaps amid a line
    return own.splitlines()[1:]


def test_a_started_program_of_one_thread(minidebug: list[str], target_program: StartProgram) -> None:
    """Invariant: it is seen from its first function to its exit status, as under python-ptrace."""
    lines = debug(
        minidebug, "1000", "main,probed_twice", *program_path(target_program, "self_exec", "again", 4), told="gg"
    )
    (main, *calls) = stops_in("\n".join(lines))
    assert main[:2] == ("main", 3)
    assert [(name, argument, length) for name, argument, _, length in calls] == [
        ("probed_twice", argument, 4) for argument in range(4)
    ]
    assert re.fullmatch(r"Process \d+ exited with code 5", lines[-1])


def test_a_started_program_of_four_threads(minidebug: list[str], target_program: StartProgram) -> None:
    """Invariant: while one thread is stepped over a breakpoint no other slips past: every call is seen, once."""
    command = program_path(target_program, "hot_calls", "probed_lea", THREADS, CALLS)
    lines = debug(minidebug, "100000", "probed_lea", *command, told="gg")
    stops = stops_in("\n".join(lines))
    assert Counter(argument for _, argument, _, _ in stops) == Counter(range(THREADS * CALLS))
    assert {length for *_, length in stops} == {stops[0][3]}
    started = [line.removeprefix("New process ") for line in lines if line.startswith("New")]
    assert sorted(started) == sorted({str(tid) for _, _, tid, _ in stops})
    ended = [line.split()[1] for line in lines if line.endswith("exited normally")]
    assert sorted(ended[:-1]) == sorted(started)


def test_a_running_program_of_four_threads(minidebug: list[str], target_program: StartProgram) -> None:
    """Invariant: one addProcess attaches to all threads; none of their calls is missed, and their exits are told."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    with subprocess.Popen(
        [*minidebug, "100000", "probed_lea", str(program.pid)], stdout=subprocess.PIPE, text=True
    ) as debugger:
        assert debugger.stdout is not None
        assert debugger.stdout.readline() == f"1 breakpoints in process {program.pid}\n"
        assert program.tell("g").number("calls", PATIENCE_S) == THREADS * CALLS
        assert program.tell("q").wait() == 0
        output = debugger.stdout.read()
    assert debugger.returncode == 0
    stops = stops_in(output)
    assert Counter(argument for _, argument, _, _ in stops) == Counter(range(THREADS * CALLS))
    assert len({tid for _, _, tid, _ in stops}) == THREADS
    assert output.splitlines()[-1] == f"Process {program.pid} exited normally"


def test_a_program_is_let_go_with_threads_at_the_breakpoint(minidebug: list[str], target_program: StartProgram) -> None:
    """Invariant: after enough hits the program goes on alone, with its own text and mappings."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    maps = program.maps()
    with subprocess.Popen(
        [*minidebug, "30", "probed_lea", str(program.pid)], stdout=subprocess.PIPE, text=True
    ) as debugger:
        assert debugger.stdout is not None
        assert debugger.stdout.readline() == f"1 breakpoints in process {program.pid}\n"
        program.tell("g")
        output = debugger.stdout.read()
    assert debugger.returncode == 0
    assert len(stops_in(output)) == 30
    assert program.number("calls") == THREADS * CALLS
    program.assert_untouched(maps)
    assert f"thread {program.pid} is let go" in output
    assert program.tell("q").wait() == 0
