"""All threads of a program are stopped, whatever else they do: many are asked, and looked at, by one call."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import pytest

import ubpx
from tests.real.conftest import ROOT, changed_text, stopped_or_traced, threads_of
from ubpx.core.values import ProcessId, ThreadId
from ubpx.hookspecs import hookimpl
from ubpx_ptracepp import arrivals
from ubpx_ptracepp.crowd.looking import MANY, RUNS, UNKNOWN, Crowd
from ubpx_ptracepp.requests import INTERRUPTED, PTRACE_DETACH, PTRACE_SEIZE, Answers, request
from ubpx_ptracepp.tasks import PtraceThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

CROWD = ROOT / "plugins" / "ptracepp" / "ubpx_ptracepp" / "crowd"
THREADS = 3 * MANY
CALLS = 400
HOLDS = 40


@pytest.fixture(params=["compiled", "by calls"], autouse=True)
def crowds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a crowd is looked at in sessions that begin from now on."""
    if request.param == "by calls":
        monkeypatch.setattr(arrivals, "Crowd", lambda answers: Crowd(answers, compiled=False))
    return str(request.param)


def test_the_crowds_bytes_are_of_its_source() -> None:
    """Invariant: what is shipped was compiled from the source beside it (tools/images.py --write)."""
    from ubpx_ptracepp.crowd.code import SOURCE

    source = (CROWD.parent / "system_call.h").read_bytes() + (CROWD / "crowd.c").read_bytes()
    assert hashlib.sha256(source).hexdigest() == SOURCE


def test_what_was_found_is_not_lost_with_who_wanted_it(target_program: StartProgram, crowds: str) -> None:
    """Invariant: an exception amid the stops of many, a handler's alarm say, leaves those known that were consumed."""
    program = target_program("hot_calls", "probed_lea", THREADS, 1)
    threads = [PtraceThread(ThreadId(tid), ProcessId(program.pid)) for tid in threads_of(program.pid)]
    crowd = Crowd(Answers(), compiled=crowds == "compiled")
    for thread in threads:
        assert request(PTRACE_SEIZE, thread.tid)
    try:
        assert crowd.ask(threads) == []
        running, found = set(threads), list[PtraceThread]()
        while running:
            crowd.look([each for each in threads if each in running])
            before = -1
            while len(found) > before:
                assert crowd.left
                before = len(found)
                for thread, status, _, queued in crowd.take():
                    if status != RUNS:
                        assert ((status & 0xFFFF_FFFF) >> 8, queued) in {(INTERRUPTED, 0), (INTERRUPTED, UNKNOWN)}
                        running.discard(thread)
                        found.append(thread)
                        break  # as an exception would
    finally:
        for thread in threads:
            request(PTRACE_DETACH, thread.tid)
    assert sorted(each.tid for each in found) == sorted(each.tid for each in threads)
    program.tell("g").number("calls")
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", [None, "BOOST", "STEP"])
def test_hot_threads_are_held_again_and_again(target_program: StartProgram, strategy: str | None) -> None:
    """Invariant: whatever each of many is in the middle of, all stand while they are held, and no hit is lost."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    over = threading.Event()
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("probed_lea", lambda _: None, strategy=strategy)
        holder = target.client("holder")
        standing = []

        def hold() -> None:
            for _ in range(HOLDS):
                with holder.hold():
                    before = lease.hits
                    standing.append(program.is_stopped() and lease.hits == before)
            over.set()

        worker = threading.Thread(target=hold)
        program.tell("g")
        worker.start()
        assert program.number("calls", timeout=100) == THREADS * CALLS
        worker.join(60)
        assert over.is_set()
        assert standing == [True] * HOLDS
        assert lease.hits == THREADS * CALLS
    assert (changed_text(program.pid), stopped_or_traced(program.pid)) == ([], {})
    assert program.tell("q").wait() == 0


def test_a_step_over_a_call_that_waits_is_over_before_the_thread_is_left(target_program: StartProgram) -> None:
    """Invariant: the trap that the kernel queues at the call's end is taken, for one of many, too."""
    program = target_program("crowd", MANY + 4, flags=("-DFUNCTIONS=100",))
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        for tid in [each for each in target.threads() if each != program.pid][:3]:
            client.hold(tid)
            client.step(tid)
    assert stopped_or_traced(program.pid) == {}
    assert program.tell("q\n").wait() == 0


def test_what_has_come_first_is_told(target_program: StartProgram) -> None:
    """Invariant: a signal that one of many has stopped for when it is asked to stop is asked about, and goes on."""
    program = target_program("patience", 20, 60)
    seen: list[int] = []

    class Hooks:
        @hookimpl
        def ubpx_signal(self, tid: int) -> None:
            seen.append(tid)

    with ubpx.attach(program.pid) as target:
        client = target.client("one", hooks=Hooks())
        assert len(target.threads()) > MANY
        for _ in range(10):
            sent = program.tell("i").number("sent")
            with client.hold():
                assert program.is_stopped()
        assert sent > MANY
    assert seen
    assert stopped_or_traced(program.pid) == {}
    assert program.tell("q").wait() == 0


def hold_for_ever(client: ubpx.Client) -> NoReturn:
    """Again and again, until that fails."""
    while True:
        client.hold().release()


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_while_its_threads_are_asked(target_program: StartProgram, seed: int) -> None:
    """Invariant: it is seen to its end, once, whatever its threads have been asked."""
    program = target_program("hot_calls", "probed_lea", THREADS, 1_000_000)
    chance = random.Random(seed)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        client.probe("probed_lea", lambda _: None)
        program.tell("g")
        killer = threading.Timer(chance.uniform(0.05, 0.2), os.kill, (program.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(ubpx.TargetGone):
            hold_for_ever(client)
        killer.join()
        assert target.wait(timeout=20) == -signal.SIGKILL


def test_threads_that_are_born_meanwhile_stand_too(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: a hold of many takes those in that appear while the others are asked."""
    program = target_program("mayflies", 2 * MANY, 60)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        for _ in range(10):
            with client.hold():
                assert eventually(program.is_stopped)
                before = threads_of(program.pid)
                time.sleep(0.005)
                assert threads_of(program.pid) == before
    assert stopped_or_traced(program.pid) == {}
    assert program.tell("q").wait() == 0


def assert_all_stopped(pid: int, target: ubpx.Target) -> None:
    """By what the kernel says of each."""
    states = stopped_or_traced(pid)
    assert set(states) == set(target.threads())
    assert all(state.startswith("state t") for state in states.values()), states


def test_many_threads_stop_between_their_hits(target_program: StartProgram) -> None:
    """Invariant: of 64 threads that arrive all the time none is missed by a stop of all, and no hit is lost."""
    program = target_program("hot_calls", "probed_lea", 64, 200)
    with ubpx.attach(program.pid) as target:
        client = target.client("holder")
        lease = client.probe("probed_lea", lambda _: None)
        program.tell("g")
        for _ in range(10):
            with client.hold():
                assert_all_stopped(program.pid, target)
                before = lease.hits
                time.sleep(0.005)
                assert lease.hits == before
        assert program.number("calls", timeout=50) == lease.hits == 64 * 200
    assert program.tell("q").wait() == 0


def test_threads_that_sleep_are_found_by_tid(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: to stop many threads takes one look at each that has, and does not wait for one that has not."""
    program = target_program("hot_calls", "probed_lea", THREADS, 1)
    with ubpx.attach(program.pid) as target:
        client = target.client("holder")
        assert eventually(lambda: len(target.threads()) == THREADS + 1)
        stops = target.stops
        for turn in range(1, 4):
            with client.hold():
                assert_all_stopped(program.pid, target)
            assert target.stops == stops + turn * (THREADS + 1)
        program.tell("g").number("calls")
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    ("symbol", "strategy"),
    [("probed_push", "EMULATE"), ("probed_push", "STEP"), ("probed_lea", "BOOST"), ("probed_lea", "JUMP")],
)
def test_a_handler_that_has_all_stopped_sees_its_own_registers(
    target_program: StartProgram, symbol: str, strategy: str
) -> None:
    """Invariant: of a thread whose handler runs the registers are those at its arrival, whoever is looked at meanwhile,
    and those that it writes are written once.
    """
    program = target_program("hot_calls", symbol, THREADS, 20)
    found: list[tuple[object, object]] = []
    later: list[int] = []
    with ubpx.attach(program.pid) as target:
        coordinator, space = target._session._loop.coordinator, target._process.space

        def stop_all(hit: ubpx.Hit) -> None:
            if lease.hits % 16 == 0:
                before = hit.snapshot().regs
                with coordinator.keeper.quiet(space):
                    found.append((before, hit.snapshot().regs))
                hit.regs.rbp = before["rbp"]

        lease = target.client("first", priority=1).probe(symbol, stop_all, strategy=strategy)
        beside = target.client("second").probe(symbol, lambda hit: later.append(hit.regs.rip), strategy=strategy)
        assert program.tell("g").number("calls", timeout=100) == THREADS * 20
        assert lease.hits == beside.hits == len(later) == THREADS * 20
        assert set(later) == {lease.address}
    assert len(found) > THREADS / 2
    assert [after for before, after in found if after != before] == []
    assert program.tell("q").wait() == 0
