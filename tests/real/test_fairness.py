"""Threads that arrive at one probepoint all the time are served alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

THREADS: Final = 32
CALLS: Final = 300
WARM: Final = 100
"""Hits of one thread, after which all of them have begun for sure."""


@contextmanager
def one_processor() -> Iterator[None]:
    """For all that is started meanwhile, and the tracer: whom the kernel lets run where is not ours to judge."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def test_no_thread_is_served_more_often_than_another(target_program: StartProgram) -> None:
    """Invariant: while all of 32 threads arrive at one trap, most over least hits for each thread is at most 1.5."""
    counts: Counter[int] = Counter()
    shots: list[Counter[int]] = []
    due = [WARM, CALLS]

    def count(hit: ubpx.Hit) -> None:
        counts[hit.tid] += 1
        if due and counts[hit.tid] == due[0]:
            due.pop(0)
            shots.append(counts.copy())

    with one_processor():
        program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
        with ubpx.attach(program.pid) as target:
            target.client("counter").probe("probed_lea", count)
            assert program.tell("g").number("calls", timeout=50) == THREADS * CALLS
    served = [shots[1][tid] - shots[0][tid] for tid in counts]
    assert len(served) == THREADS
    assert max(served) <= 1.5 * min(served), sorted(served)
    assert program.tell("q").wait() == 0


def test_two_tracers_of_one_host_do_not_mix_up_their_stops(target_program: StartProgram) -> None:
    """Invariant: each session's tracer thread takes its own stops alone, whenever the interpreter switches."""
    programs = [target_program("hot_calls", "probed_lea", 4, 2_000) for _ in range(3)]
    targets = [ubpx.attach(program.pid) for program in programs]
    leases = [target.client("counter").probe("probed_lea", lambda _: None) for target in targets]
    for program in programs:
        program.tell("g")
    for program, lease in zip(programs, leases, strict=True):
        assert program.number("calls", timeout=50) == lease.hits == 8_000
    for target in targets:
        target.detach()
    for program in programs:
        assert program.tell("q").wait() == 0
