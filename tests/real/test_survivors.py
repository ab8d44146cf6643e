"""Children that share a traced program's memory, and outlive it there."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

EVERY = [ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_child_that_outlives_the_program(target_program: StartProgram, how: str, strategy: ubpx.Strategy) -> None:
    """Invariant: a child that lives on in the memory of a program that has ended meets no trap there."""
    program = target_program("survivor", "exit" if how == "exit" else "wait", ready=False)
    child = program.number("child")
    program.expect("ready")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_survivor", lambda _: None, strategy=strategy)
        program.tell("g")
        if how == "kill":
            program.expect("waits")
            os.kill(program.pid, signal.SIGKILL)
        assert target.wait(timeout=10) == (5 if how == "exit" else -signal.SIGKILL)
        assert lease.hits == 0
    assert os.path.exists(f"/proc/{child}")
    assert program.tell("c").expect("calls") == "well"


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("leave_first", [True, False], ids=["detached", "traced"])
def test_child_that_stays_in_the_memory_of_before_an_exec(
    target_program: StartProgram, eventually: Callable[..., bool], strategy: ubpx.Strategy, *, leave_first: bool
) -> None:
    """Invariant: a child that lives on in the memory that an exec has left ends as it would have alone."""
    program = target_program("survivor", "exec", ready=False)
    program.number("child")
    program.expect("ready")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_survivor", lambda _: None, strategy=strategy)
        program.tell("g").expect("again")
        assert eventually(lambda: lease.state == ubpx.LeaseState.ARMED)
        if not leave_first:
            assert program.tell("c").expect("calls") == "well"
            assert program.number("status") == 6
            assert target.wait(timeout=10) == 5
    if leave_first:
        assert program.tell("c").expect("calls") == "well"
        assert program.number("status") == 6
        assert program.wait() == 5
