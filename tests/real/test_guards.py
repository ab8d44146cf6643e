"""What a killed tracer leaves behind harms nobody, and the next one takes it out."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.conftest import ROOT, changed_text, eventually, maps_of, status_of, stopped_or_traced
from ubpx.testing import kills
from ubpx.testing.kill_plants import PLANTS
from ubpx_ptracepp.tracer import PtraceTracer

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

GUARD = ROOT / "plugins" / "ptracepp" / "ubpx_ptracepp" / "guard"
SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)
FINDING = {
    "no-guard": ["--kills", "2"],
    "no-rows": ["--kills", "6", "--at", "Arrivals._take_trap: reap"],
    "no-frame": ["--kills", "6", "--at", "Injector._run: PTRACE_SYSCALL"],
    "half-healed": ["--kills", "4"],
}
"""By fault: the kills that find it."""
STRATEGIES = [None, ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]


def trace_and_die(program: Program, symbol: str, strategy: ubpx.Strategy | None = None, *, hits: int = 0) -> None:
    """In a process of its own: attach, probe, have the program begin if hits are wanted, be killed after so many."""
    tracer = os.fork()
    if tracer == 0:
        try:
            lease = ubpx.attach(program.pid).client("one").probe(symbol, lambda _: None, strategy=strategy)
            if hits:
                program.tell("g")
            if eventually(lambda: lease.hits >= hits, 20):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL


def watch_and_die(pid: int, address: int) -> None:
    """In a process of its own: attach, watch for writes, be killed after some: the debug registers stay as they are."""
    tracer = os.fork()
    if tracer == 0:
        try:
            lease = ubpx.attach(pid).client("one").watch(address, size=8, access="WRITE", handler=lambda _: None)
            if eventually(lambda: lease.hits >= 10, 20):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL


def heal(pid: int) -> dict[str, object]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ubpx")), "heal", "-p", str(pid), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def check_untouched(program: Program, maps: set[str]) -> None:
    assert changed_text(program.pid) == []
    assert maps_of(program.pid) == maps
    assert stopped_or_traced(program.pid) == {}
    assert not int(status_of(program.pid)["SigCgt"], 16) & SIGTRAP_BIT


def test_the_guards_bytes_are_of_its_source() -> None:
    """Invariant: what is shipped was compiled from the source beside it (tools/images.py --write)."""
    from ubpx_ptracepp.guard.code import SOURCE

    assert (
        hashlib.sha256((GUARD.parent / "system_call.h").read_bytes() + (GUARD / "guard.c").read_bytes()).hexdigest()
        == SOURCE
    )


@pytest.mark.parametrize("hits", [0, 200], ids=["idle", "hot"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("symbol", ["probed_lea", "probed_push"])
def test_a_program_survives_its_killed_tracer(
    target_program: StartProgram, symbol: str, strategy: ubpx.Strategy | None, hits: int
) -> None:
    """Invariant: it makes all of its calls, and every result is right; healed, it is as before."""
    if (symbol, strategy) == ("probed_push", ubpx.Strategy.JUMP):
        symbol = "probed_load"  # no jump is as short as a push
    program = target_program("hot_calls", symbol, 3, 20_000)
    maps = maps_of(program.pid)
    trace_and_die(program, symbol, strategy, hits=hits)
    if not hits:
        program.tell("g")
    assert program.number("calls") == 60_000
    report = heal(program.pid)
    assert report["healed"] is not None
    assert report["differing"] == {}
    check_untouched(program, maps)
    assert heal(program.pid)["healed"] is None
    assert program.tell("q").wait() == 0


def test_the_next_tracer_heals_and_goes_on(target_program: StartProgram) -> None:
    """Invariant: attaching takes out what is left; what is counted then is exact."""
    program = target_program("hot_calls", "probed_push", 3, 500)
    maps = maps_of(program.pid)
    for _ in range(3):
        trace_and_die(program, "probed_push")
    with ubpx.attach(program.pid) as target:
        assert target.healed is not None
        assert target.healed.traps == 1
        lease = target.client("one").probe("probed_push", lambda _: None)
        assert program.tell("g").number("calls") == lease.hits == 1_500
    check_untouched(program, maps)
    assert program.tell("q").wait() == 0


def test_children_of_a_program_with_traps_of_the_dead(target_program: StartProgram) -> None:
    """Invariant: children made after their program's tracer was killed take inherited traps out themselves."""
    program = target_program("children", 4, 3)
    trace_and_die(program, "probed_child")
    assert program.tell("g").number("children", timeout=50) == 4 * 3 * 6
    assert program.number("calls") > 0
    heal(program.pid)
    assert program.tell("q").wait() == 0


def test_forked_children_have_nothing_of_ours() -> None:
    """Invariant: a child that is cleaned and let go has the program's own action for SIGTRAP, and no area of ours."""
    with ubpx.spawn([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as target:
        popen: Any = target.popen
        target.client("one").probe("libc.so.6:fork", lambda _: None, strategy="BOOST")
        target.resume()
        child = int(popen.stdout.readline())
        foreign = [line for line in maps_of(child) if "r-xp" in line and line.split()[4] == "0" and "[v" not in line]
        assert foreign == []
        assert not int(status_of(child)["SigCgt"], 16) & SIGTRAP_BIT
        assert changed_text(child) == []
        popen.stdin.close()
        assert target.wait(timeout=10) == 0
        popen.stdout.close()


FORKS = """
import os, sys
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_a_programs_own_handler_lives_on_behind_the_guard(target_program: StartProgram) -> None:
    """Invariant: what a program does with SIGTRAP works after its tracer was killed, and after it is healed."""
    program = target_program("own_trap", 300)
    trace_and_die(program, "probed_beside")
    assert program.tell("g").number("traps") == 6 * 300
    assert program.number("calls") > 0
    assert heal(program.pid)["healed"] is not None
    assert program.tell("q").wait() == 0


def test_a_handler_that_has_interrupted_the_guard_finds_it_when_it_returns(target_program: StartProgram) -> None:
    """Invariant: whoever heals sees to it that no thread is in the guard's code, or returns to it, when that goes."""
    program = target_program("alarms", "write")
    counter = program.number("counter")
    program.tell("g")
    for _ in range(10):
        watch_and_die(program.pid, counter)
        assert heal(program.pid)["healed"] is not None
    assert program.tell("q").number("rounds") > 0
    assert program.wait() == 0


def test_a_trap_of_the_dead_is_met_while_it_is_healed(
    target_program: StartProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a thread that runs into it with the next tracer there executes the program's own instruction."""
    program = target_program("echo", 1)
    trace_and_die(program, "answer")
    remains = PtraceTracer.remains

    def met(tracer: PtraceTracer, pid: Any) -> Any:
        found = remains(tracer, pid)
        program.tell("5\n")
        assert eventually(lambda: status_of(pid)["State"].startswith("t"), 10)
        return found

    monkeypatch.setattr(PtraceTracer, "remains", met)
    with ubpx.attach(program.pid) as target:
        assert target.healed is not None
        assert program.number("answer") == 6
    assert program.answer(7) == 8


@pytest.mark.parametrize("end", ["detach", "death"])
def test_a_programs_own_traps_are_met_while_the_guard_goes(target_program: StartProgram, end: str) -> None:
    """Invariant: its handler has been called by the guard, and returns to the program, whenever the guard is undone."""
    program = target_program("alarms", "trap")
    assert program.number("counter")
    program.tell("g")
    for _ in range(10 if end == "death" else 200):
        if end == "death":
            trace_and_die(program, "probed_idle")
            assert heal(program.pid)["healed"] is not None
        else:
            with ubpx.attach(program.pid) as target:
                target.client("one").probe("probed_idle", lambda _: None)
    assert program.tell("q").number("rounds") > 0
    assert program.wait() == 0


@pytest.mark.parametrize("threads", [1, 4])
def test_tracers_killed_anywhere(threads: int) -> None:
    """Invariant: at random times and at points of the tracer, the program lives on and is healed; short form."""
    outcome = kills.kill_tracers(16, threads, seed=threads)
    assert outcome.complaints == []
    assert (outcome.total("kills"), outcome.ok) == (16, True)


def test_what_machine_code_does_for_the_tracer_is_at_points_too() -> None:
    """Invariant: a tracer can be killed between any two of the calls that it makes for a crowd at once."""
    outcome = kills.kill_tracers(2, 20, at="_by_calls")
    assert outcome.complaints == []
    assert outcome.ok
    assert all("_by_calls" in name for name in outcome.by_point)


def test_a_point_that_is_none_is_refused() -> None:
    """Invariant: bad input is said, in one line."""
    with pytest.raises(ubpx.UsageError, match="no point is named like 'nowhere'"):
        kills.kill_tracers(1, 1, at="nowhere")


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_the_tool_finds_planted_faults(plant: str) -> None:
    """Invariant: with what saves programs broken, the tool says so, by its exit status too."""
    options = ["--json", "--threads", "2", *FINDING[plant], "--plant", plant]
    done = subprocess.run(
        [sys.executable, "-m", "ubpx.testing.kills", *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["complaints"]
    assert report["healed"] < report["kills"]
