"""All threads of a program are stopped, each found by its tid, whatever else they do at that time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import ubpx
from tests.real.conftest import stopped_or_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

THREADS: Final = 64
CALLS: Final = 200


def assert_all_stopped(pid: int, target: ubpx.Target) -> None:
    """By what the kernel says of each."""
    states = stopped_or_traced(pid)
    assert set(states) == set(target.threads())
    assert all(state.startswith("state t") for state in states.values()), states


def test_many_threads_stop_between_their_hits(target_program: StartProgram) -> None:
    """Invariant: of 64 threads that arrive all the time none is missed by a stop of all, and no hit is lost."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
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
        assert program.number("calls", timeout=50) == lease.hits == THREADS * CALLS
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
