"""A program of a hundred threads under load does not notice that tracers come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.alone


def visit(program: Program, turn: int) -> int:
    """Attach, let two clients see some hits, and leave; the number of hits."""
    with ubpx.attach(program.pid) as target:
        one, two = target.client("one"), target.client("two", priority=turn % 3)
        leases = [
            one.probe("hot", lambda _: None, strategy=(None, ubpx.Strategy.STEP)[turn % 2]),
            two.probe("hot", lambda _: None),
            two.probe("warm", lambda _: None),
        ]
        assert program.tell("p").number("progress") >= 0
        assert len(target.threads()) == 100
        if turn % 4 == 0:
            for lease in leases:
                lease.release()
    hits = [lease.hits for lease in leases]
    assert all(lease.state == ubpx.LeaseState.RELEASED for lease in leases)
    return sum(hits)


def come_and_go(target_program: StartProgram, times: int, *how: str) -> None:
    """Attach and detach so often; after each the program is as it was."""
    program = target_program("hundred", *how)
    maps = program.maps()
    hits, before = 0, program.tell("p").number("progress")
    for turn in range(times):
        hits += visit(program, turn)
        program.assert_untouched(maps)
    assert hits > times
    assert program.tell("p").number("progress") > before
    program.tell("q").expect("done")
    assert program.wait() == 0, "a thread saw an error that it would not have seen alone"


@pytest.mark.contract("life-13", "life-14")
def test_fifty_visits_leave_no_trace(target_program: StartProgram) -> None:
    """Invariant: after each of fifty visits under load text, mappings and threads are as before, and it lives."""
    come_and_go(target_program, 50)


def test_progress_goes_on(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: every sort of thread, in whatever system call, goes on during a visit and after it."""
    program = target_program("hundred")

    def goes_on() -> bool:
        before = program.tell("p").number("progress")
        return eventually(lambda: program.tell("p").number("progress") > before + 5)

    for turn in range(3):
        visit(program, turn)
        assert goes_on()
    with ubpx.attach(program.pid) as target:
        target.client("one").probe("hot", lambda _: None)
        assert goes_on()
    assert goes_on()
    program.tell("q").expect("done")
    assert program.wait() == 0


def test_it_ends_well_while_traced(target_program: StartProgram) -> None:
    """Invariant: the hundred threads end while probes are armed, and the status is told to all who ask."""
    program = target_program("hundred")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("hot", lambda _: None)
        program.tell("q").expect("done")
        assert target.wait(timeout=20) == 0
        assert lease.hits > 0
    assert program.wait() == 0


def test_twenty_visits_of_a_hundred_hot_threads(target_program: StartProgram) -> None:
    """Invariant: the same where all of a hundred threads run into the traps all the time."""
    come_and_go(target_program, 20, "hot")


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(20))
def test_fifty_visits_again_and_again(target_program: StartProgram, turn: int) -> None:
    """Invariant: leaving no trace is no luck: twenty times the same."""
    assert turn >= 0
    come_and_go(target_program, 50)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(5))
def test_two_hundred_visits_of_a_hundred_hot_threads(target_program: StartProgram, turn: int) -> None:
    """Invariant: two hundred visits, forty to each program, leave no trace in a hundred hot threads."""
    assert turn >= 0
    come_and_go(target_program, 40, "hot")
