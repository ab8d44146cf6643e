"""Verdicts and holds: who keeps what stopped, and that it runs again when nobody does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

pytestmark = pytest.mark.over_both

EVERY = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]


def until_answered(target: ubpx.Target, eventually: Callable[..., bool]) -> None:
    """Wait until all handlers of earlier hits have answered, and what they said is done.

    The answer of a client elsewhere may be late, and its thread is held for that until it is there. Answers are taken
    in order; so, when a thread arrives again, its former answer has been taken and so have all before.
    """
    arrivals: list[int] = []
    with target.client("arrives") as client:
        client.probe("busy", lambda hit: arrivals.append(hit.tid))
        assert eventually(lambda: len(set(arrivals)) < len(arrivals))


def rests(count: Callable[[], object]) -> bool:
    """Whether nothing is counted in a time in which a running program arrives many times."""
    before = count()
    time.sleep(0.1)
    return count() == before


@pytest.mark.parametrize(
    ("symbol", "strategy"),
    [
        ("probed_lea", ubpx.Strategy.BOOST),
        ("probed_lea", ubpx.Strategy.STEP),
        ("probed_indirect", ubpx.Strategy.STEP),
        ("probed_lea", ubpx.Strategy.INLINE),
        ("probed_push", ubpx.Strategy.EMULATE),
    ],
)
@pytest.mark.contract("verdict-3", "hold-2")
def test_held_thread_waits_while_others_hit(
    target_program: StartProgram, eventually: Callable[..., bool], symbol: str, strategy: ubpx.Strategy
) -> None:
    """Invariant: HOLD parks one thread until another thread of ours releases it; the others go on hitting."""
    program = target_program("hot_calls", symbol, 4, 500)
    held: list[int] = []

    def hold_first(hit: ubpx.Hit) -> ubpx.Verdict | None:
        if held:
            return None
        held.append(hit.tid)
        return ubpx.Verdict.HOLD

    with ubpx.attach(program.pid) as target:
        lease = target.client("debugger").probe(symbol, hold_first, strategy=strategy)
        by_thread: dict[int, int] = {}
        target.client("counts").probe(symbol, lambda hit: by_thread.update({hit.tid: by_thread.get(hit.tid, 0) + 1}))
        program.tell("g")
        assert eventually(lambda: lease.hits == 3 * 500 + 1), f"{lease.hits} hits"
        assert eventually(lambda: [each.thread for each in target.holds()] == held)  # no late answer is waited for
        (hold,) = target.holds()
        assert hold.owner == "debugger"
        assert by_thread[held[0]] == 1
        assert target.wait(timeout=0.1) is None
        assert lease.hits == 3 * 500 + 1
        releaser = threading.Thread(target=hold.release)
        releaser.start()
        assert program.number("calls") == lease.hits == 2_000
        releaser.join(10)
        assert list(target.holds()) == []
        hold.release()
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.contract("hold-5", "hold-6")
def test_release_may_write_registers(
    target_program: StartProgram, eventually: Callable[..., bool], strategy: ubpx.Strategy
) -> None:
    """Invariant: who answers later writes registers with the release, as a handler would have at once."""
    program = target_program("echo", 1)
    with ubpx.attach(program.pid) as target:
        target.client("remote").probe("answer", lambda _: ubpx.Verdict.HOLD, strategy=strategy)
        for value in (10, 20, 30):
            program.tell(f"{value}\n")
            assert eventually(lambda: list(target.holds()))
            until_answered(target, eventually)
            (hold,) = target.holds()
            hold.release(registers={"rdi": value * 100})
            assert program.number("answer") == value * 100 + 1
    assert program.answer(1) == 2


@pytest.mark.contract("verdict-1", "verdict-5")
def test_least_permissive_verdict_wins(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: one client's HOLD holds, whatever the others say before or after it."""
    program = target_program("echo", 1)
    with ubpx.attach(program.pid) as target:
        target.client("first", priority=2).probe("answer", lambda _: ubpx.Verdict.RESUME)
        target.client("holds", priority=1).probe("answer", lambda _: ubpx.Verdict.HOLD)
        target.client("last").probe("answer", lambda _: None)
        program.tell("1\n")
        assert eventually(lambda: list(target.holds()))
        until_answered(target, eventually)
        (hold,) = target.holds()
        assert hold.owner == "holds"
        hold.release()
        assert program.number("answer") == 2


@pytest.mark.contract("hold-4")
def test_thread_runs_when_nobody_holds_it(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: of two holds of one thread the first release changes nothing, the second lets it run."""
    program = target_program("echo", 1)
    with ubpx.attach(program.pid) as target:
        seen = 0

        def hold(_: ubpx.Hit) -> ubpx.Verdict:
            nonlocal seen
            seen += 1
            return ubpx.Verdict.HOLD

        target.client("a").probe("answer", hold)
        target.client("b").probe("answer", hold)
        program.tell("1\n")
        assert eventually(lambda: seen == 2 and len(list(target.holds())) == 2)
        until_answered(target, eventually)
        first, second = target.holds()
        assert {first.owner, second.owner} == {"a", "b"}
        first.release()
        until_answered(target, eventually)
        assert [one.owner for one in target.holds()] == [second.owner]
        second.release()
        assert program.number("answer") == 2
        assert seen == 2


@pytest.mark.contract("verdict-4")
def test_process_is_held_whole(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: HOLD_PROCESS stops every thread until it is released."""
    program = target_program("echo", 4)
    with ubpx.attach(program.pid) as target:
        busy = target.client("counts").probe("busy", lambda _: None)
        target.client("debugger").probe("answer", lambda _: ubpx.Verdict.HOLD_PROCESS)
        program.tell("1\n")
        # Where the answer of a client elsewhere is late, its own thread is held for that meanwhile.
        assert eventually(lambda: [each.thread for each in target.holds()] == [None])
        (hold,) = target.holds()
        assert (hold.thread, hold.process) == (None, program.pid)
        assert eventually(lambda: rests(lambda: busy.hits))  # who was in the trap already still counts
        hits = busy.hits
        hold.release()
        assert program.number("answer") == 2
        assert eventually(lambda: busy.hits > hits)


def test_a_thread_that_is_sent_away_from_a_system_call_arrives_exactly(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: rip given to a thread that waits in a system call is where it goes on, not where a restart would."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target:
        client = target.client("debugger")
        hold = client.hold(thread=program.pid)
        back = dict(target.registers(program.pid))
        seen: list[int] = []

        def at_ret(hit: ubpx.Hit) -> None:
            seen.append(hit.regs.rip)
            hit.regs.rip, hit.regs.rax = back["rip"] - 2, 0  # the read begins again
            for name in ("rdi", "rsi", "rdx"):
                hit.regs[name] = back[name]

        lease = client.probe("answer+4", at_ret)
        assert lease.address is not None
        hold.release(registers={"rip": lease.address})
        assert eventually(lambda: seen == [lease.address])
        lease.release()
        assert program.answer(1) == 2


@pytest.mark.contract("hold-1", "hold-2")
def test_client_takes_a_hold_unasked(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: client.hold stops one thread, or all, wherever they are; releasing lets them run, no hit is lost."""
    program = target_program("echo", 2)
    with ubpx.attach(program.pid) as target:
        client = target.client("debugger")
        by_thread: dict[int, int] = {}
        client.probe("busy", lambda hit: by_thread.update({hit.tid: by_thread.get(hit.tid, 0) + 1}))
        assert eventually(lambda: len(by_thread) == 2)
        one, other = by_thread
        with client.hold(thread=one) as hold:
            assert (hold.thread, hold.owner) == (one, "debugger")
            assert eventually(lambda: rests(lambda: by_thread[one]))
            before = dict(by_thread)
            assert eventually(lambda: by_thread[other] > before[other] + 10)
            assert by_thread[one] == before[one]
        assert eventually(lambda: by_thread[one] > before[one] + 10)
        with client.hold():
            assert eventually(lambda: rests(lambda: dict(by_thread)))
        assert program.answer(1) == 2
        with pytest.raises(ubpx.UsageError):
            client.hold(thread=1)


@pytest.mark.parametrize("end", ["close", "quarantine", "detach"])
@pytest.mark.contract("hold-3")
def test_hold_ends_with_its_client(target_program: StartProgram, eventually: Callable[..., bool], end: str) -> None:
    """Invariant: the death of a client ends its holds, and a detach all of them."""
    program = target_program("echo", 1)
    maps = program.maps()

    with ubpx.attach(program.pid) as target:
        client = target.client("debugger")
        client.probe("answer", lambda _: ubpx.Verdict.HOLD)
        program.tell("1\n")
        assert eventually(lambda: list(target.holds()))
        if end == "close":
            client.close()
        elif end == "quarantine":
            client.probe("busy", lambda _: 1 // 0)
        if end != "detach":
            assert program.number("answer") == 2
            assert list(target.holds()) == []
    if end == "detach":
        assert program.number("answer") == 2
    program.assert_untouched(maps)


def test_killed_while_held(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: SIGKILL ends a held process like any other; its holds are gone with it."""
    program = target_program("echo", 2)
    assert program.popen is not None
    with ubpx.attach(program.pid) as target:
        target.client("debugger").probe("answer", lambda _: ubpx.Verdict.HOLD)
        program.tell("1\n")
        assert eventually(lambda: list(target.holds()))
        program.popen.kill()
        assert program.wait(10) == -9
        assert target.wait(timeout=10) == -9
        assert eventually(lambda: not list(target.holds()))
