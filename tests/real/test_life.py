"""The life of a target: attached or spawned, waited for, left, in one session or several."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

import ubpx
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram


@pytest.mark.contract("life-2", "life-3")
def test_spawned_program_stands_at_its_entry_point(target_program: StartProgram) -> None:
    """Invariant: spawn returns with the libraries mapped and not one instruction of main run; wait starts it."""
    target, program = target_program.spawned(ubpx.spawn, "hot_calls", "probed_lea", 3, 200)
    with target:
        assert "libc.so" in Path(f"/proc/{program.pid}/maps").read_text()
        lease = target.client("one").probe("probed_lea", lambda _: None)
        main = target.client("two").probe("main", lambda hit: args.append(hit.args[0]))
        args: list[int] = []
        assert lease.state == ubpx.LeaseState.ARMED
        assert (lease.hits, main.hits) == (0, 0)
        assert target.wait(timeout=0.2) is None
        program.expect("ready")
        assert (main.hits, args) == (1, [4])
        assert program.tell("g").number("calls") == lease.hits == 600
        program.tell("q")
        assert target.wait(timeout=10) == 0
        assert target.wait(timeout=10) == 0


@pytest.mark.contract("life-3")
def test_resume_starts_a_spawned_program(target_program: StartProgram) -> None:
    """Invariant: the first resume starts the program; a second one does no harm."""
    target, program = target_program.spawned(ubpx.spawn, "echo")
    with target:
        target.resume()
        program.expect("ready")
        assert program.answer(4) == 5
        target.resume()
        program.tell("x 9\n")
        assert target.wait(timeout=10) == 9


def test_spawn_runs_constructors_under_probes(target_program: StartProgram) -> None:
    """Invariant: a probe set before the start sees the program's very first call."""
    target, program = target_program.spawned(ubpx.spawn, "echo")
    with target:
        seen: list[int] = []
        target.client("one").probe("answer", lambda hit: seen.append(hit.args[0]))
        target.resume()
        program.expect("ready")
        assert program.answer(40) == 41
        assert seen == [40]
        program.tell("q\n")
        assert target.wait(timeout=10) == 0


@pytest.mark.parametrize(("order", "status"), [("q\n", 0), ("x 7\n", 7)])
@pytest.mark.contract("life-7", "life-8")
def test_wait_tells_how_it_ended(target_program: StartProgram, order: str, status: int) -> None:
    """Invariant: wait is None while the program runs, then its exit status, again and again."""
    program = target_program("echo", 2)
    with ubpx.attach(program.pid) as target:
        assert target.wait(timeout=0) is None
        assert target.wait(timeout=0.1) is None
        program.tell(order)
        assert [target.wait(timeout=10), target.wait(), target.wait(timeout=0)] == [status] * 3
    assert program.wait() == status


def test_wait_from_several_threads(target_program: StartProgram) -> None:
    """Invariant: everybody who waits is told."""
    target, program = target_program.spawned(ubpx.spawn, "echo")
    with target:
        target.resume()
        program.expect("ready")
        told: list[int | None] = []
        waiters = [threading.Thread(target=lambda: told.append(target.wait(timeout=10))) for _ in range(4)]
        for waiter in waiters:
            waiter.start()
        program.tell("x 3\n")
        for waiter in waiters:
            waiter.join(15)
        assert told == [3, 3, 3, 3]


@pytest.mark.contract("life-12")
def test_kill_on_exit_kills_and_reaps(target_program: StartProgram) -> None:
    """Invariant: with kill_on_exit nothing of the program is left, no zombie either."""
    target, program = target_program.spawned(ubpx.spawn, "echo", 3, kill_on_exit=True)
    with target:
        target.resume()
        program.expect("ready")
        lease = target.client("one").probe("busy", lambda _: None)
        assert program.answer(1) == 2
    assert not program.exists
    assert lease.state in {ubpx.LeaseState.RELEASED, ubpx.LeaseState.LOST}


def test_kill_on_exit_before_the_start(target_program: StartProgram) -> None:
    """Invariant: a program that was never started is killed and reaped too."""
    target, program = target_program.spawned(ubpx.spawn, "echo", kill_on_exit=True)
    with target:
        pass
    assert not program.exists


@pytest.mark.contract("life-10")
def test_spawned_program_lives_on(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: leaving the with lets a spawned program run on, started or not; it is reaped when it ends."""
    for start_it in (True, False):
        target, program = target_program.spawned(ubpx.spawn, "echo", 2)
        with target:
            target.client("one").probe("busy", lambda _: None)
            if start_it:
                target.resume()
        program.expect("ready")
        assert program.answer(6) == 7
        program.tell("q\n")
        assert eventually(lambda program=program: not program.exists), "not reaped"


@pytest.mark.contract("life-11", "life-13", "life-14")
def test_left_target_is_as_before(target_program: StartProgram) -> None:
    """Invariant: after a detach the program is untouched, leases are RELEASED, and their hits stay readable."""
    program = target_program("echo", 3)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("answer", lambda _: None)
        stepped = target.client("two").probe("busy", lambda _: None, strategy=ubpx.Strategy.STEP)
        assert [program.answer(n) for n in range(20)] == list(range(1, 21))
        assert lease.hits == 20
    assert (lease.state, stepped.state) == (ubpx.LeaseState.RELEASED, ubpx.LeaseState.RELEASED)
    assert lease.hits == 20
    program.assert_untouched(maps)
    assert program.answer(1) == 2
    assert lease.hits == 20
    lease.release()


@pytest.mark.contract("life-9")
def test_left_target_answers_no_more(target_program: StartProgram) -> None:
    """Invariant: after a detach every call that needs the target is a UsageError, but detach and release."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("answer", lambda _: None)
    for call in (
        target.wait,
        lambda: target.client("two"),
        lambda: client.probe("answer", lambda _: None),
        target.resume,
        target.threads,
    ):
        with pytest.raises(ubpx.UsageError):
            call()
    target.detach()
    lease.release()
    client.close()


@pytest.mark.contract("life-11")
def test_body_exception_propagates(target_program: StartProgram) -> None:
    """Invariant: the body's exception comes out of the with as it is, and the program lives."""
    program = target_program("echo", 2)
    maps = program.maps()
    oops = ValueError("oops")

    def fail_inside() -> NoReturn:
        with ubpx.attach(program.pid) as target:
            target.client("one").probe("busy", lambda _: None)
            raise oops

    with pytest.raises(ValueError, match="oops") as caught:
        fail_inside()
    assert caught.value is oops
    program.assert_untouched(maps)
    assert program.answer(2) == 3


@pytest.mark.contract("life-5")
def test_several_processes_in_one_session(target_program: StartProgram) -> None:
    """Invariant: targets of one session share nothing but the tracer thread: clients, hits and ends are their own."""
    programs = [target_program("hot_calls", "probed_lea", 4, 500 * (n + 1)) for n in range(3)]
    maps = [program.maps() for program in programs]
    with ubpx.Session() as session:
        targets = [session.attach(program.pid) for program in programs]
        spawned, echo = target_program.spawned(session.spawn, "echo")
        leases = [target.client("same name").probe("probed_lea", lambda _: None) for target in targets]
        answers = spawned.client("same name").probe("answer", lambda _: None)
        spawned.resume()
        echo.expect("ready")
        for program in programs:
            program.tell("g")
        assert echo.answer(1) == 2
        made = [program.number("calls") for program in programs]
        assert [lease.hits for lease in leases] == made == [2000, 4000, 6000]
        assert answers.hits == 1
        targets[0].detach()
        programs[0].assert_untouched(maps[0])
        programs[1].tell("q")
        assert targets[1].wait(timeout=10) == 0
        assert targets[2].wait(timeout=0) is None
        echo.tell("q\n")
        assert spawned.wait(timeout=10) == 0
    programs[2].assert_untouched(maps[2])


def test_two_sessions_side_by_side(target_program: StartProgram) -> None:
    """Invariant: two sessions of one program, on two processes, do not take each other's stops."""
    first, second = (target_program("hot_calls", "probed_lea", 2, 2_000) for _ in range(2))
    with ubpx.attach(first.pid) as one, ubpx.attach(second.pid) as two:
        leases = [target.client("x").probe("probed_lea", lambda _: None) for target in (one, two)]
        first.tell("g")
        second.tell("g")
        assert [first.number("calls"), second.number("calls")] == [lease.hits for lease in leases] == [4000, 4000]


def test_attach_again_and_again(target_program: StartProgram) -> None:
    """Invariant: leaving is complete: the same program can be attached at once, many times."""
    program = target_program("echo", 4)
    maps = program.maps()
    for turn in range(30):
        with ubpx.attach(program.pid) as target:
            lease = target.client("one").probe("answer", lambda _: None)
            assert program.answer(turn) == turn + 1
            assert lease.hits == 1
    program.assert_untouched(maps)


def test_memory_shows_no_trap(target_program: StartProgram) -> None:
    """Invariant: reads through the target show the program's own bytes while a trap stands there."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        before = client.probe("busy", lambda _: None)
        lease = client.probe("answer", lambda _: None)
        own = bytes.fromhex("48 8d 47 01 c3")
        assert before.address is not None
        assert lease.address is not None
        assert target.memory.read(lease.address, 5) == own
        assert target.memory.read(before.address, 5) == own
        with Path(f"/proc/{program.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(lease.address)
            assert memory.read(1) == b"\xcc"
        with pytest.raises(ubpx.MemoryFault):
            target.memory.read(VirtAddr(0x10), 8)


def test_threads_are_listed(target_program: StartProgram) -> None:
    """Invariant: the target's threads are the kernel's, those that came after the attach included."""
    program = target_program("hot_calls", "probed_lea", 5, 100, "late")
    with ubpx.attach(program.pid) as target:
        assert len(target.threads()) == 1
        tids: set[int] = set()
        target.client("one").probe("probed_lea", lambda hit: tids.add(hit.tid))
        program.tell("g")
        assert program.number("calls") == 500
        assert len(tids) == 5
        assert program.pid not in tids
        program.tell("q")
        assert target.wait(timeout=10) == 0
