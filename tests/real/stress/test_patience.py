"""Programs that wait in the kernel, in every way that there is, while tracers come, probe and go."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import ubpx
from tests.real.conftest import stopped_or_traced, threads_of
from ubpx.core.values import Disturbance
from ubpx.hookspecs import hookimpl
from ubpx_ptracepp.abi import I386, X86_64
from ubpx_ptracepp.waiting import disturbance

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

BOTH: Final = pytest.mark.parametrize("flags", [(), ("-m32",)], ids=["x86_64", "i386"])
TIMED: Final = (
    "epoll_wait", "epoll_pwait2", "poll", "ppoll", "select", "pselect", "nanosleep", "clock_nanosleep",
    "clock_nanosleep_until", "futex", "condition", "sigtimedwait", "semtimedop", "recv", "send", "accept",
    "io_getevents", "mq_receive",
)  # fmt: skip
BEGIN_ANEW: Final = {"epoll_wait", "epoll_pwait2", "sigtimedwait", "semtimedop", "io_getevents"}
BY_SOCKET: Final = {"recv", "send", "accept"}
"""They begin anew too, which one cannot see from outside: it is the socket that has the time-out."""
MAY_BE_SOCKETS: Final = {"read", "write"}
UNTIMED: Final = ("read", "write", "msgrcv", "semop", "sigwaitinfo", "waitpid", "epoll_for_ever")
PLACE: Final = "libc.so.6:vsnprintf"
"""Called by the program's leader when it answers, and by nobody else."""


class Waits(NamedTuple):
    """What one thread tells of its waits."""

    turns: int
    disturbed: int
    """In so many of them it slept more than once."""
    late_us: int


def tell(program: Program) -> dict[str, Waits]:
    """Since this was asked last."""
    told = {}
    for _ in range(program.tell("p").number("kinds")):
        name, _, numbers = program.line().partition("=")
        told[name] = Waits(*map(int, numbers.split()))
    return told


def visits(target_program: StartProgram, times: int, *flags: str) -> None:
    """Attach, arm, disarm and detach so often: a thread that saw EINTR would end the program with exit status 3."""
    program = target_program("patience", 150, 40 + times // 4, flags=flags)
    for turn in range(times):
        with ubpx.attach(program.pid) as target:
            client = target.client("one")
            lease = client.probe(PLACE, lambda _: None)
            client.probe("main", lambda _: None)
            if turn % 2:
                lease.release()
            if turn % 10 == 0:
                assert set(tell(program)) == {*TIMED, *UNTIMED}
    tell(program)
    assert wait_for_turns(program) == set(TIMED), "all of them time out in the end"
    assert program.tell("q").wait() == 0


def wait_for_turns(program: Program, patience_s: float = 20) -> set[str]:
    """Until each of the waits that have a time-out has ended once, or the patience."""
    ended: set[str] = set()
    until = time.monotonic() + patience_s
    while ended != set(TIMED) and time.monotonic() < until:
        time.sleep(0.1)
        ended |= {name for name, waits in tell(program).items() if waits.turns}
    return ended


@BOTH
def test_no_wait_is_interrupted_by_visits(target_program: StartProgram, flags: tuple[str, ...]) -> None:
    """Invariant: no EINTR, no early end and no lost event in any call because tracers come, probe and go."""
    visits(target_program, 16, *flags)


@BOTH
@pytest.mark.torture
def test_no_wait_is_interrupted_by_two_hundred_visits(target_program: StartProgram, flags: tuple[str, ...]) -> None:
    """Invariant: as above."""
    visits(target_program, 200, *flags)


def test_time_outs_are_exact_while_probes_come_and_go(target_program: StartProgram) -> None:
    """Invariant: arming, disarming and hits disturb no thread's sleep: none wakes before its time is over."""
    program = target_program("patience", 100, 60)
    with ubpx.attach(program.pid) as target:
        steady = target.client("steady").probe(PLACE, lambda _: None)
        tell(program)
        client = target.client("busy")
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            client.probe("main", lambda _: None).release()
            client.probe("libc.so.6:puts", lambda _: None).release()
        told = tell(program)
        assert {name for name in TIMED if told[name].turns == 0} == set()
        # Who waited when the tracer came may have been borrowed to map the slots, but nobody since.
        assert {name: waits for name, waits in told.items() if waits.disturbed > (waits.turns > 0)} == {}
        told = tell(program)
        time.sleep(0.3)
        told = tell(program)
        assert {name: waits for name, waits in told.items() if waits.disturbed} == {}
        assert steady.hits > 0
    assert program.tell("q").wait() == 0


@BOTH
def test_signals_that_are_ignored_interrupt_nothing(target_program: StartProgram, flags: tuple[str, ...]) -> None:
    """Invariant: a signal that the program ignores, by its own wish or by default, ends no call with EINTR.

    The kernel wakes a thread for it only because it is traced.
    """
    program = target_program("patience", 150, 60, flags=flags)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(PLACE, lambda _: None)
        for _ in range(5):
            assert program.tell("i").number("sent") == 2 * len({*TIMED, *UNTIMED})
        assert wait_for_turns(program) == set(TIMED)
        assert lease.hits > 0
    assert program.tell("q").wait() == 0


TRACE_ONE: Final = """
import ctypes, signal, sys
SEIZE = 0x4206
assert ctypes.CDLL(None, use_errno=True).ptrace(SEIZE, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
print("traced", flush=True)
sys.stdin.read()
"""


def test_an_attach_that_fails_interrupts_nothing(target_program: StartProgram) -> None:
    """Invariant: the threads that had been seized already when a later one was refused are left, and do not notice."""
    program = target_program("patience", 150, 60)
    last = threads_of(program.pid)[-1]  # they are seized in this order
    with subprocess.Popen(
        [sys.executable, "-c", TRACE_ONE, str(last)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "traced\n"
        with ubpx.Session() as session:
            for _ in range(10):
                with pytest.raises(ubpx.UbpxError):
                    session.attach(program.pid)
                assert set(stopped_or_traced(program.pid)) == {last}, "those are left that had been seized"
    assert wait_for_turns(program) == set(TIMED)
    assert program.tell("q").wait() == 0


@BOTH
def test_stops_that_come_and_come_keep_nobody_waiting(target_program: StartProgram, flags: tuple[str, ...]) -> None:
    """Invariant: time-outs come while a tracer stops the threads more often than they last."""
    program = target_program("patience", 400, 60, flags=flags)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        tell(program)
        ended: set[str] = set()
        until = time.monotonic() + 20
        while not ended >= set(TIMED) - BY_SOCKET and time.monotonic() < until:
            for _ in range(4):
                client.hold().release()
                time.sleep(0.04)
            ended |= {name for name, waits in tell(program).items() if waits.turns}
        assert set(TIMED) - BY_SOCKET - ended == set()
        client.probe(PLACE, lambda _: None)
    assert wait_for_turns(program) == set(TIMED)
    assert program.tell("q").wait() == 0


def test_calls_that_are_caught_are_not_interrupted_by_stops(target_program: StartProgram) -> None:
    """Invariant: where calls are reported, our stops end none with EINTR either, and each is reported once."""
    told: list[tuple[int, int | None]] = []

    class Hooks:
        @hookimpl
        def ubpx_syscall_entered(self, tid: int, number: int) -> None:
            told.append((tid, None))

        @hookimpl
        def ubpx_syscall_exited(self, tid: int, number: int, result: int) -> None:
            told.append((tid, result))

    program = target_program("patience", 300, 60)
    with ubpx.attach(program.pid) as target:
        client = target.client("one", hooks=Hooks())
        client.catch_syscalls(["epoll_wait"])
        assert wait_for_turns(program) == set(TIMED)
        told.clear()
        for _ in range(25):
            client.hold().release()
            time.sleep(0.02)
        assert wait_for_turns(program) == set(TIMED)
        tid = by_name(program.pid)["epoll_wait"]
        results = [result for which, result in told if which == tid]
        assert results
        assert set(results) == {None, 0}, "entries, and time-outs"
        assert all((a is None) != (b is None) for a, b in pairwise(results)), results
    assert program.tell("q").wait() == 0


def by_name(pid: int) -> dict[str, int]:
    """The tids of its threads."""
    return {Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip(): tid for tid in threads_of(pid)}


@pytest.mark.parametrize("abi", [X86_64, I386], ids=lambda abi: str(abi.name))
def test_what_a_thread_would_notice_is_known_without_stopping_it(target_program: StartProgram, abi: object) -> None:
    """Invariant: who would begin anew is told from who would not, by the call alone."""
    program = target_program("patience", 5_000, 60, flags=("-m32",) if abi is I386 else ())
    tids = by_name(program.pid)
    expected = dict.fromkeys((*TIMED, *UNTIMED), Disturbance.NONE)
    expected |= dict.fromkeys(BEGIN_ANEW, Disturbance.TIME_OUT) | dict.fromkeys(BY_SOCKET, Disturbance.PERHAPS)
    expected |= dict.fromkeys(MAY_BE_SOCKETS, Disturbance.PERHAPS)
    found = {name: disturbance(tids[name[:15]], abi) for name in expected}  # type: ignore[arg-type]
    assert found == expected
    os.kill(program.pid, signal.SIGKILL)


LIMIT_MS: Final = 1_000


def lateness(target_program: StartProgram, moments: tuple[float, ...]) -> dict[str, float]:
    """By how many ms each wait ends late if a tracer leaves at these moments of it, in parts of its time-out."""
    program = target_program("patience", LIMIT_MS, 60)
    began = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, began + moment * LIMIT_MS / 1000 - time.monotonic()))
        with ubpx.attach(program.pid) as target:
            target.client("one").probe(PLACE, lambda _: None)
    time.sleep(max(0.0, began + (1.3 + max(moments, default=0)) * LIMIT_MS / 1000 - time.monotonic()))
    told = tell(program)
    program.tell("q").wait()
    return {name: told[name].late_us / 1000 for name in TIMED}


@pytest.mark.torture
def test_what_a_quiesce_costs_each_time_out(target_program: StartProgram) -> None:
    """Invariant: waits end late by as much as the table of the documentation says, and no others."""
    sys.stdout.write(f"\nms late of {LIMIT_MS}; tracers left at: never, 1/2, 1/3 and 2/3 of it\n")
    runs = [[lateness(target_program, moments) for _ in range(5)] for moments in ((), (1 / 2,), (1 / 3, 2 / 3))]
    for name in TIMED:
        never, once, twice = (statistics.median(run[name] for run in of) for of in runs)
        sys.stdout.write(f"{name:24}{never:8.1f}{once:8.1f}{twice:8.1f}\n")
        anew = name in BEGIN_ANEW | BY_SOCKET
        assert never < LIMIT_MS / 10, name
        assert (once > LIMIT_MS / 4, twice > LIMIT_MS / 2) == (anew, anew), name
