"""Where the tracer thread runs: tried, measured, kept or given up; a clock and processors of the test's own."""

from __future__ import annotations

import os
import time
from typing import Final

import pytest

from ubpx.core.values import Placement, Urgency
from ubpx_ptracepp import procfs
from ubpx_ptracepp.placement import Post

STOPS: Final = 512
"""What the tracer measures at a time."""


class Machine:
    """Four processors and a clock; ``cost`` is seconds a stop, by the processor that the tracer keeps to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed = {0, 1, 2, 3}
        self.now = 1000.0
        self.thread_runs_on: int | None = 2
        self.cost: dict[int | None, float] = {None: 20e-6, 2: 7e-6}
        self.moves: list[set[int]] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(procfs, "processor", lambda _tid: self.thread_runs_on)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(self.allowed))
        monkeypatch.setattr(os, "sched_setaffinity", self._set)
        self.post = Post()
        self.post.take(Urgency.USUAL, Placement.FOLLOW)

    def _set(self, _pid: int, processors: set[int]) -> None:
        self.allowed = set(processors)
        self.moves.append(set(processors))

    def serve(self, times: int = 1, *, cost: float | None = None) -> int | None:
        """So many measurements; the processor that the tracer keeps to then."""
        for _ in range(times):
            self.now += STOPS * (self.cost.get(self.post.now.processor, 20e-6) if cost is None else cost)
            self.post.note(STOPS, 4711)
        return self.post.now.processor


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(monkeypatch)
    machine.serve(cost=1.0)  # nothing was hot until now
    return machine


def test_what_helps_is_kept_and_follows_the_thread(machine: Machine) -> None:
    assert machine.serve(20) == 2
    assert machine.moves == [{2}]
    machine.thread_runs_on, machine.cost[3] = 3, 7e-6
    assert machine.serve(20) == 3


def test_what_does_not_help_is_given_up_and_tried_ever_more_seldom(machine: Machine) -> None:
    """Invariant: of a thousand measurements few are trials, and the tracer is left where it may run as it likes."""
    machine.cost[2] = 19.5e-6
    machine.serve(1000)
    assert machine.moves.count({2}) < 25
    assert machine.moves.count({2}) - machine.moves.count({0, 1, 2, 3}) in (0, 1)


def test_what_helps_no_longer_is_given_up(machine: Machine) -> None:
    assert machine.serve(5) == 2
    machine.cost[2] = 30e-6
    assert machine.serve() is None
    assert machine.allowed == {0, 1, 2, 3}


def test_a_tracer_with_little_to_do_runs_anywhere(machine: Machine) -> None:
    assert machine.serve(5) == 2
    assert machine.serve(cost=1e-3) is None
    assert machine.allowed == {0, 1, 2, 3}


def test_a_choice_that_somebody_else_has_made_since_stays(machine: Machine) -> None:
    assert machine.serve(5) == 2
    machine.allowed = {1, 2}
    machine.serve(cost=1e-3)
    assert machine.allowed == {1, 2}


@pytest.mark.parametrize("allowed", [{2}, {0, 1}])
def test_a_processor_that_is_not_allowed_or_the_only_one_is_not_chosen(machine: Machine, allowed: set[int]) -> None:
    machine.allowed = allowed
    assert machine.serve(50) is None
    assert machine.moves == []


def test_a_free_tracer_is_never_moved(machine: Machine) -> None:
    machine.post.take(Urgency.USUAL, Placement.FREE)
    assert machine.serve(50) is None
    assert machine.moves == []


def test_a_thread_that_is_gone_is_not_followed(machine: Machine) -> None:
    machine.thread_runs_on = None
    assert machine.serve(50) is None


def test_a_priority_that_is_not_permitted_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    machine.post.take(Urgency.RAISED, Placement.FREE)
    assert machine.post.now.urgency is Urgency.USUAL
