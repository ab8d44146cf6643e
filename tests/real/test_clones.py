"""Children made with the rarer flags of clone(2), while probes are hot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

SORTS = ["vm", "parent", "files", "pidns", "nested", "untraced"]
LIMITS = {
    "traceme": "until its exec a vfork child is ours, since it may meet a trap; and the kernel gives a task one tracer",
}


def clones_are_harmless(target_program: StartProgram, sort: str, rounds: int, strategy: ubpx.Strategy | None) -> None:
    """Every child's status is checked by its parent; the counts are the calls of the traced process's threads."""
    if sort == "pidns" and os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    program = target_program("clones", sort, rounds, ready=False)
    worker = program.number("worker")
    program.expect("ready")
    with ubpx.attach(worker) as target:
        client = target.client("one")
        hot = client.probe("probed_clone", lambda _: None, strategy=strategy)
        pushing = client.probe("probed_pushing", lambda _: None)
        calls = program.tell("g").number("calls", timeout=50)
        assert program.expect("statuses") == "well"
        assert target.wait(timeout=10) == 0
        assert (hot.hits, pushing.hits) == (calls, calls)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", [*SORTS, *LIMITS])
def test_unusual_children_alone(target_program: StartProgram, sort: str) -> None:
    """Invariant: the program is right where nobody traces it."""
    program = target_program("clones", sort, 40, ready=False)
    program.expect("worker")
    program.expect("ready")
    assert program.tell("g").number("calls") > 0
    assert program.expect("statuses") == "well"
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    "strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
)
@pytest.mark.parametrize("sort", SORTS)
def test_unusual_children(target_program: StartProgram, sort: str, strategy: ubpx.Strategy) -> None:
    """Invariant: no child dies of a trap or loses its true parent, and none is counted.

    One made with CLONE_UNTRACED is not stopped at its birth and meets the traps: its copy of the guard takes them out.
    """
    clones_are_harmless(target_program, sort, 40, strategy)


@pytest.mark.parametrize(
    "sort", [pytest.param(sort, marks=pytest.mark.xfail(reason=why)) for sort, why in LIMITS.items()]
)
def test_children_that_cannot_be_helped(target_program: StartProgram, sort: str) -> None:
    """Invariant: a vfork child may have its parent trace it."""
    clones_are_harmless(target_program, sort, 1, None)
