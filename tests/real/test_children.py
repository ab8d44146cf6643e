"""Children of every sort, exec and threads that come and go, while a probe is hot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

EVERY = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.contract("life-19", "life-20")
def test_children_are_harmless(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: every forked, vforked, spawned and cloned child ends as it should; only the parent's calls count."""
    program = target_program("children", 8, 6)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_child", lambda _: None, strategy=strategy)
        assert program.tell("g").number("children", timeout=50) == 8 * 6 * 6
        assert program.number("calls") == lease.hits
        assert target.wait(timeout=0) is None
    assert program.tell("q").wait() == 0


def test_children_survive_the_detach(target_program: StartProgram) -> None:
    """Invariant: a detach while children of every sort are being made harms none of them."""
    program = target_program("children", 8, 6).tell("g")
    for _ in range(8):
        with ubpx.attach(program.pid) as target:
            target.client("one").probe("probed_child", lambda _: None)
    program.number("children", timeout=50)
    program.number("calls")
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("who", ["leader", "other"])
@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.contract("life-15", "life-16", "life-17")
def test_exec_of_the_target(
    target_program: StartProgram, eventually: Callable[..., bool], who: str, strategy: ubpx.Strategy
) -> None:
    """Invariant: over an exec a spec's lease arms again and counts on; an address's lease is LOST with its hits."""
    program = target_program("self_exec", who, 40)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        by_spec = client.probe("probed_twice", lambda _: None, strategy=strategy)
        assert by_spec.address is not None
        by_address = client.probe(by_spec.address, lambda _: None)
        beside = client.probe("unprobed_beside", lambda _: None)
        assert program.tell("g").number("calls") == 40
        assert (by_spec.hits, by_address.hits) == (40, 40)
        program.tell("g").expect("again")
        assert eventually(lambda: by_spec.state == ubpx.LeaseState.ARMED)
        assert (by_address.state, by_address.hits) == (ubpx.LeaseState.LOST, 40)
        assert beside.state == ubpx.LeaseState.ARMED
        assert program.tell("g").number("calls") == 40
        assert (by_spec.hits, by_address.hits) == (80, 40)
        program.tell("q")
        assert target.wait(timeout=10) == 5
        by_address.release()
    assert program.wait() == 5


def test_detach_after_exec(target_program: StartProgram) -> None:
    """Invariant: the new program is left untouched too."""
    program = target_program("self_exec", "other", 10)
    with ubpx.attach(program.pid) as target:
        target.client("one").probe("probed_twice", lambda _: None)
        program.tell("g").number("calls")
        program.tell("g").expect("again")
        assert program.tell("g").number("calls") == 10
    program.assert_untouched(program.maps())
    assert program.tell("q").wait() == 5


@pytest.mark.parametrize("strategy", EVERY)
def test_leader_exits_and_threads_come_and_go(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: a program whose leader has exited is traced to its true end; short-lived threads all count."""
    program = target_program("exits", 120)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_brief", lambda _: None, strategy=strategy)
        assert program.tell("g").number("calls") == lease.hits == 120 * 25
        program.tell("q")
        assert target.wait(timeout=10) == 7
    assert program.wait() == 7


def test_leader_exits_while_traced(target_program: StartProgram) -> None:
    """Invariant: spawned under ubpx, a program whose leader leaves early ends with its own status."""
    target, program = target_program.spawned(ubpx.spawn, "exits", 40)
    with target:
        lease = target.client("one").probe("probed_brief", lambda _: None)
        target.resume()
        program.expect("ready")
        assert program.tell("g").number("calls") == lease.hits == 1_000
        program.tell("q")
        assert target.wait(timeout=10) == 7


def test_leave_a_program_without_leader(target_program: StartProgram) -> None:
    """Invariant: a program whose leader has exited can be left and visited again."""
    program = target_program("exits", 40)
    for _ in range(3):
        with ubpx.attach(program.pid) as target:
            target.client("one").probe("probed_brief", lambda _: None)
    assert program.tell("g").number("calls") == 1_000
    assert program.tell("q").wait() == 7


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("strategy", EVERY)
def test_exec_of_a_program_without_leader(
    target_program: StartProgram, eventually: Callable[..., bool], strategy: ubpx.Strategy, early: bool
) -> None:
    """Invariant: a thread that execs after the leader has exited is the new leader, attached to before or after."""
    program = target_program("self_exec", "headless", 40)
    if not early:
        program.tell("g").number("calls")
        program.tell("g").expect("headless")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_twice", lambda _: None, strategy=strategy)
        if early:
            program.tell("g").number("calls")
            program.tell("g").expect("headless")
        program.tell("g").expect("again")
        assert eventually(lambda: lease.state == ubpx.LeaseState.ARMED)
        assert program.tell("g").number("calls") == 40
        assert lease.hits == (80 if early else 40)
        assert target.threads() == (program.pid,)
        program.tell("q")
        assert target.wait(timeout=10) == 5
    assert program.wait() == 5


def test_exit_while_others_are_in_handlers(target_program: StartProgram) -> None:
    """Invariant: a thread that ends the whole process finds others served by handlers, and its status is told."""
    for _ in range(10):
        program = target_program("echo", 3)
        with ubpx.attach(program.pid) as target:
            lease = target.client("slow").probe("busy", lambda _: time.sleep(0.01))
            program.tell("x 7\n")
            assert target.wait(timeout=20) == 7
            assert lease.errors == 0
        assert program.wait() == 7


def test_a_program_of_a_thousand_threads(target_program: StartProgram) -> None:
    """Invariant: 1,000 threads are attached to, hit, held and left like one: exact counts, nobody stopped after it."""
    threads = 1_000
    program = target_program("hot_calls", "probed_lea", threads, 2)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("probed_lea", lambda _: None)
        with client.hold():
            assert len(target.threads()) >= threads
        assert program.tell("g").number("calls", timeout=55) == lease.hits == threads * 2
    program.assert_untouched(program.maps())
    assert program.tell("q").wait() == 0
