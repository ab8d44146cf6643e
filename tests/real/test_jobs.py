"""Job control: who has a traced job is told of its stops as if nobody traced it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

EVERY = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
SORTS = {"shell": (8, -signal.SIGTERM), "session": (2, -signal.SIGTERM), "orphan": (1, -signal.SIGHUP)}
"""What happens in eight rounds: how many stops, and how the job ends."""


@pytest.mark.parametrize("sort", SORTS)
def test_job_control_alone(target_program: StartProgram, sort: str) -> None:
    """Invariant: the program is right where nobody traces it."""
    program = target_program("jobs", sort, 8, ready=False)
    program.expect("job")
    program.expect("ready")
    assert (program.tell("g").number("stops"), program.number("status")) == SORTS[sort]
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("sort", SORTS)
def test_job_control(target_program: StartProgram, sort: str, strategy: ubpx.Strategy) -> None:
    """Invariant: the shell sees the same stops and continues, and no thread of a stopped job runs, newborn ones too."""
    program = target_program("jobs", sort, 8, ready=False)
    job = program.number("job")
    program.expect("ready")
    stops, status = SORTS[sort]
    with ubpx.attach(job) as target:
        lease = target.client("one").probe("probed_job", lambda _: None, strategy=strategy)
        assert program.tell("g").number("stops", timeout=55) == stops
        assert program.number("status") == status
        assert target.wait(timeout=10) == status
        assert lease.hits > 0
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", ["shell", "session"])
def test_job_control_while_tracers_come_and_go(target_program: StartProgram, sort: str) -> None:
    """Invariant: an attach and a detach at any moment of a stop or a continue are seen by nobody."""
    program = target_program("jobs", sort, 8, ready=False)
    job = program.number("job")
    program.expect("ready")
    program.tell("g")
    for _ in range(10):
        try:
            with ubpx.attach(job) as target:
                target.client("one").probe("probed_job", lambda _: None)
        except (ubpx.TargetGone, ubpx.NoSuchProcess):
            break
    assert (program.number("stops", timeout=55), program.number("status")) == SORTS[sort]
    assert program.tell("q").wait() == 0
