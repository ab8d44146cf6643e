"""A peer that asks for its end has its last answers done before: the broker's end of a channel catches up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.channel_world import PATIENCE_S, World
from ubpx_froggy.broker.channel import Unanswered
from ubpx_froggy.messages import Answer


def test_catching_up_waits_for_what_was_answered_and_no_longer(make_world: Callable[..., World]) -> None:
    """Invariant: answers that have come are done by then, read by the event loop or not; one to come is not awaited."""
    world = make_world(patience_s=0.01)
    world.channel.catch_up()
    assert [world.hit(tid) for tid in (1, 2, 3)] == [Unanswered.LATE] * 3
    calls = [world.peer.next().call for _ in range(3)]
    world.caller.may_settle.clear()
    blocked, go_on = threading.Event(), threading.Event()
    world.loop.call_soon_threadsafe(blocked.set)
    world.loop.call_soon_threadsafe(go_on.wait, PATIENCE_S)
    assert blocked.wait(PATIENCE_S)
    world.peer.say(Answer(calls[0]), Answer(calls[1]))  # the event loop cannot have read them yet
    catching_up = world.in_peer(world.channel.catch_up)
    go_on.set()
    catching_up.join(0.1)
    assert catching_up.is_alive()
    world.caller.may_settle.set()
    catching_up.join(PATIENCE_S)
    assert not catching_up.is_alive()
    assert [tid for tid, _ in world.caller.answers] in ([1, 2], [2, 1])
    assert tuple(world.channel.late_calls()) == (3,)


def test_catching_up_waits_for_the_tracers_own_turn(make_world: Callable[..., World]) -> None:
    """Invariant: also an answer that comes just when the tracer has lost its patience is done by then."""
    world = make_world(patience_s=0.1)
    threads: list[threading.Thread] = []

    def answer() -> None:
        call = world.peer.next().call
        threads.append(world.in_peer(world.channel.catch_up))
        assert threads[0].is_alive()
        while not tuple(world.channel.late_calls()):
            time.sleep(0.001)
        world.peer.say(Answer(call))

    world.in_peer(answer)
    assert world.hit(7) is Unanswered.LATE
    assert [tid for tid, _ in world.caller.wait(1)] == [7]
    threads[0].join(PATIENCE_S)
    assert not threads[0].is_alive()


def test_who_asks_on_and_on_does_not_keep_the_event_loop(make_world: Callable[..., World]) -> None:
    """Invariant: while one is caught up with whose socket is never empty, the loop serves the others."""
    world = make_world(patience_s=0.01)
    assert world.hit() is Unanswered.LATE
    call = world.peer.next().call
    world.in_loop(lambda: None)  # it reads by now
    over = threading.Event()
    world.channel._read = lambda: not over.is_set()  # type: ignore[method-assign]
    world.channel.catch_up()
    world.in_loop(over.set)
    world.peer.say(Answer(call))
    assert len(world.caller.wait(1)) == 1


@pytest.mark.parametrize("end", ["shut", "deadline"])
def test_catching_up_does_not_wait_for_ever(make_world: Callable[..., World], end: str) -> None:
    world = make_world(patience_s=0.01, deadline_s=10.0 if end == "shut" else 0.3)
    assert world.hit() is Unanswered.LATE
    call = world.peer.next().call
    world.caller.may_settle.clear()
    world.peer.say(Answer(call))
    catching_up = world.in_peer(world.channel.catch_up)
    catching_up.join(0.1)
    assert catching_up.is_alive()
    if end == "shut":
        world.in_loop(world.channel.shut)
    catching_up.join(5)
    assert not catching_up.is_alive()
    assert world.caller.answers == []
    world.caller.may_settle.set()
