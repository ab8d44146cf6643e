"""The broker's end of a channel: prompt answers, late ones, and peers that give none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.channel_world import LEASE, PATIENCE_S, REGISTERS, World
from ubpx import UsageError
from ubpx_froggy.broker import channel as module
from ubpx_froggy.broker.channel import Unanswered
from ubpx_froggy.messages import Answer, Ask, Failed, Hit, Hook, Raised, Reply, Stops, as_raw


def test_a_prompt_answer_is_what_the_tracer_gets(make_world: Callable[..., World]) -> None:
    """Invariant: it is told of the thread, the lease and the registers, and what is answered is nobody else's."""
    world = make_world()
    told: list[Any] = []

    def answer() -> None:
        for verdict in (None, 2):
            told.append(world.peer.next())
            world.peer.say(Answer(told[-1].call, verdict, {"rdi": 5} if verdict else None))

    world.in_peer(answer)
    first, second = world.hit(1), world.hit(2)
    assert (first.verdict, first.registers) == (None, None)
    assert (second.verdict, second.registers) == (2, {"rdi": 5})
    assert [(each.lease, each.thread, each.registers) for each in told] == [
        (LEASE, 1, REGISTERS),
        (LEASE, 2, REGISTERS),
    ]
    assert world.caller.answers == []
    assert world.owner.evictions == []


def test_a_hook_is_told_with_its_arguments(make_world: Callable[..., World]) -> None:
    world = make_world()
    told: list[Any] = []

    def hook() -> None:
        told.append(world.peer.next())
        world.peer.say(Raised(told[0].call, "E: x"))

    world.in_peer(hook)
    answer = world.channel.hook(world.caller, b"c" * 16, 3, "ubpx_signal", {"tid": 3, "signal": 10})
    assert isinstance(answer, Raised)
    assert told == [Hook(1, b"c" * 16, "ubpx_signal", {"tid": 3, "signal": 10})]


def test_a_late_answer_settles_and_then_the_channel_is_prompt_again(make_world: Callable[..., World]) -> None:
    """Invariant: the tracer waits no longer than its patience; the answer is not lost."""
    world = make_world(patience_s=0.01)
    assert world.hit(5) is Unanswered.LATE
    assert tuple(world.channel.late_calls()) == (5,)
    call = world.peer.next().call
    world.peer.say(Answer(call, 0, {"rax": 1}))
    ((tid, answer),) = world.caller.wait(1)
    assert (tid, answer.verdict, answer.registers) == (5, 0, {"rax": 1})
    assert world.owner.evictions == []
    world.channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (20).to_bytes(8, "little") + bytes(8))
    assert world.is_prompt_again()


def test_hits_behind_a_late_answer_are_late_too_and_settle_in_order(make_world: Callable[..., World]) -> None:
    world = make_world(patience_s=0.01)
    assert [world.hit(tid) for tid in range(10)] == [Unanswered.LATE] * 10
    calls = [world.peer.next() for _ in range(10)]
    assert [each.thread for each in calls] == list(range(10))
    world.peer.say(*(Answer(each.call, 0, {"rax": each.thread}) for each in calls))
    assert [(tid, answer.registers) for tid, answer in world.caller.wait(10)] == [(n, {"rax": n}) for n in range(10)]


def test_what_a_handler_asks_is_done_by_the_tracer_itself(make_world: Callable[..., World]) -> None:
    """Invariant: it runs in the thread that waits for the handler, as an in-process handler's calls do."""
    world = make_world()
    replies: list[Any] = []

    def handler() -> None:
        call = world.peer.next().call
        for number in (1, 2):
            world.peer.say(Ask(number, Stops(b"t" * 16)))
            replies.append(world.peer.next())
        world.peer.say(Answer(call))

    def perform(call: Any) -> int:
        assert world.channel.is_serving_here
        if len(world.owner.performed) == 2:
            raise UsageError("no")
        return 41

    world.owner.perform_with = perform
    world.in_peer(handler)
    assert isinstance(world.hit(), Answer)
    assert [thread for _, thread in world.owner.performed] == [threading.get_ident()] * 2
    assert replies[0] == Reply(1, as_raw(41)) or msgspec.msgpack.decode(replies[0].value) == 41
    assert isinstance(replies[1], Failed)
    assert replies[1].failure.message == "no"
    assert not world.channel.is_serving_here


def test_a_handler_that_asks_on_and_on_does_not_keep_the_tracer(make_world: Callable[..., World]) -> None:
    """Invariant: requests too use up the tracer's patience, several times of it; then they are done elsewhere."""
    world = make_world(patience_s=0.05)
    stop = threading.Event()

    def handler() -> None:
        call = world.peer.next().call
        number = 0
        while not stop.is_set():
            number += 1
            world.peer.say(Ask(number, Stops(b"t" * 16)))
            assert world.peer.next().id == number
        world.peer.say(Answer(call, 1))

    thread = world.in_peer(handler)
    assert world.hit(8) is Unanswered.LATE
    seen = len(world.owner.performed)
    assert seen > 1
    until = time.monotonic() + PATIENCE_S
    while len(world.owner.performed) < seen + 3 and time.monotonic() < until:
        time.sleep(0.001)
    assert world.owner.performed[-1][1] != threading.get_ident()
    stop.set()
    ((tid, answer),) = world.caller.wait(1)
    assert (tid, answer.verdict) == (8, 1)
    thread.join(PATIENCE_S)
    assert world.owner.evictions == []


@pytest.mark.parametrize("outer_is_late", [False, True])
def test_a_hit_within_what_a_handler_asks_for_is_late(make_world: Callable[..., World], outer_is_late: bool) -> None:
    """Invariant: the peer answers one after the other; neither answer is taken for the other's."""
    world = make_world(patience_s=0.2)
    inner: list[Any] = []

    def perform(_call: Any) -> int:
        if not inner:
            inner.append(world.hit(2))
        return 1

    def handler() -> None:
        outer = world.peer.next()
        world.peer.say(Ask(1, Stops(b"t" * 16)))
        second, reply = world.peer.next(), world.peer.next()
        assert (outer.thread, second.thread, reply.id) == (1, 2, 1)
        if outer_is_late:
            time.sleep(0.5)
        world.peer.say(Answer(outer.call, 1))
        world.peer.say(Answer(second.call, 2))

    world.owner.perform_with = perform
    world.in_peer(handler)
    answer = world.hit(1)
    assert inner == [Unanswered.LATE]
    if outer_is_late:
        assert answer is Unanswered.LATE
        assert [(tid, each.verdict) for tid, each in world.caller.wait(2)] == [(1, 1), (2, 2)]
    else:
        assert answer.verdict == 1
        assert [(tid, each.verdict) for tid, each in world.caller.wait(1)] == [(2, 2)]
    assert world.owner.evictions == []
    assert world.is_prompt_again()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("nonsense", ["another's", "garbage", "huge"])
def test_nonsense_ends_the_connection(make_world: Callable[..., World], late: bool, nonsense: str) -> None:
    world = make_world(patience_s=0.01 if late else 5.0)

    def talk() -> None:
        call = world.peer.next().call
        if late:
            time.sleep(0.2)
        if nonsense == "another's":
            world.peer.say(Answer(call + 1))
        elif nonsense == "garbage":
            world.peer.socket.sendall(b"\x04\0\0\0abcd")
        else:
            world.peer.socket.sendall(b"\xff\xff\xff\xff")

    world.in_peer(talk)
    assert world.hit() is (Unanswered.LATE if late else Unanswered.GONE)
    assert world.owner.ended.wait(PATIENCE_S)
    (reason,) = world.owner.evictions
    assert "malformed message" in reason


@pytest.mark.parametrize("late", [False, True])
def test_a_peer_that_goes_is_noticed_at_once(make_world: Callable[..., World], late: bool) -> None:
    world = make_world(patience_s=0.01 if late else 5.0)

    def go() -> None:
        world.peer.next()
        if late:
            time.sleep(0.2)
        world.peer.socket.shutdown(socket.SHUT_RDWR)

    world.in_peer(go)
    assert world.hit() is (Unanswered.LATE if late else Unanswered.GONE)
    assert world.owner.ended.wait(PATIENCE_S)
    assert world.owner.losses >= 1
    assert world.owner.evictions == []


def test_a_peer_that_answers_nothing_is_evicted_at_the_deadline(make_world: Callable[..., World]) -> None:
    world = make_world(patience_s=0.01, deadline_s=0.3)
    began = time.monotonic()
    assert world.hit() is Unanswered.LATE
    assert world.owner.ended.wait(PATIENCE_S)
    assert world.owner.evictions == ["it has not answered a hit for 0.3 s"]
    assert time.monotonic() - began >= 0.3
    assert world.owner.held_s == 0.3


def test_a_slow_peer_that_makes_progress_is_not_evicted(make_world: Callable[..., World]) -> None:
    """Invariant: handlers run one at a time, so each has the whole deadline."""
    world = make_world(patience_s=0.01, deadline_s=1.0)
    assert [world.hit(tid) for tid in range(6)] == [Unanswered.LATE] * 6

    def answer() -> None:
        for _ in range(6):
            call = world.peer.next().call
            time.sleep(0.3)
            world.peer.say(Answer(call))

    world.in_peer(answer)
    assert len(world.caller.wait(6)) == 6
    assert world.owner.evictions == []


def test_hits_that_do_not_fit_into_the_socket_wait_and_none_is_lost(make_world: Callable[..., World]) -> None:
    world = make_world(patience_s=0.01)
    world.channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    amount = 300
    assert {world.hit(tid) for tid in range(amount)} == {Unanswered.LATE}

    def answer() -> None:
        for tid in range(amount):
            hit = world.peer.next()
            assert isinstance(hit, Hit)
            assert hit.thread == tid
            world.peer.say(Answer(hit.call, 0))

    thread = world.in_peer(answer)
    assert [tid for tid, _ in world.caller.wait(amount)] == list(range(amount))
    thread.join(PATIENCE_S)
    assert world.owner.evictions == []


def test_a_peer_that_reads_nothing_is_evicted(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKLOG", 50)
    world = make_world(patience_s=0.01)
    world.channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    until = time.monotonic() + PATIENCE_S
    while not world.owner.evictions and time.monotonic() < until:
        world.hit()
    assert world.owner.evictions[0] == "it has left 50 messages unread"


def test_after_the_end_nobody_is_asked(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.in_loop(world.channel.shut)
    world.in_loop(world.channel.shut)
    assert world.hit() is Unanswered.GONE
    with pytest.raises(EOFError):
        world.peer.next()


def test_the_deadlines_alarm_ends_the_connection(make_world: Callable[..., World]) -> None:
    """Invariant: an answer that nobody waits for any more must not be taken for the next one."""

    class Alarm(BaseException):
        pass

    def perform(_call: Any) -> int:
        raise Alarm

    world = make_world()
    world.owner.perform_with = perform

    def ask() -> None:
        world.peer.next()
        world.peer.say(Ask(1, Stops(b"t" * 16)))

    world.in_peer(ask)
    with pytest.raises(Alarm):
        world.hit()
    assert len(world.owner.evictions) == 1
    assert not world.channel.is_serving_here
