"""A program that execs itself again and again, from its leader and from other threads, while it is probed."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

EVERY = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]


def storm(target_program: StartProgram, times: int, strategy: ubpx.Strategy) -> None:
    """A lease given by a spec counts the calls of all programs; the program's parent, this test, waits meanwhile."""
    program = target_program("exec_storm", times, 7)
    statuses: list[int] = []
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("probed_storm", lambda _: None, strategy=strategy)
        beside = client.probe("probed_gust", lambda _: None)
        waiter = threading.Thread(target=lambda: statuses.append(program.wait(80)))
        waiter.start()
        assert program.tell("g").number("calls", timeout=55) == times * 7 == lease.hits
        assert beside.hits > 0
        assert lease.state == ubpx.LeaseState.ARMED
        program.tell("q")
        assert target.wait(timeout=10) == 5
    waiter.join(20)
    assert statuses == [5]


@pytest.mark.parametrize("strategy", EVERY)
def test_exec_storm(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: over 40 execs no call is missed or counted twice, and the parent is told the true status alone."""
    storm(target_program, 40, strategy)


@pytest.mark.torture  # a SEIZE may wait for an exec that waits for our tracees: see docs/how-to/embed.md
def test_exec_storm_while_tracers_come_and_go(target_program: StartProgram) -> None:
    """Invariant: an attach or a detach at any moment of an exec harms nothing."""
    program = target_program("exec_storm", 150, 5)
    program.tell("g")
    for _ in range(25):
        with ubpx.attach(program.pid) as target, contextlib.suppress(ubpx.UbpxError):  # may be refused in mid-exec
            target.client("one").probe("probed_storm", lambda _: None)
    assert program.number("calls", timeout=55) == 750
    assert os.waitpid(program.pid, os.WNOHANG) == (0, 0)
    assert program.tell("q").wait() == 5


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("strategy", EVERY)
def test_exec_storm_of_two_hundred(target_program: StartProgram, strategy: ubpx.Strategy, turn: int) -> None:
    """Invariant: over 200 execs no call is missed or counted twice."""
    assert turn >= 0
    storm(target_program, 200, strategy)
