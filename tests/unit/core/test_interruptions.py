"""Many threads that stopped because we asked, told in one event."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import InternalError
from ubpx.core import events
from ubpx.core.stepping import State
from ubpx.core.values import ProcessId, ThreadId
from ubpx.testing.script import FakeThread

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

PID = 100
TIDS = (101, 102, 103, 104)


class InOneEvent:
    """Tells Interrupted events that wait in a row as one, as a tracer of real threads may."""

    def __init__(self, world: World) -> None:
        self.event = events.Interruptions(deque())
        self.sizes: list[int] = []
        self.first: Any = None
        """Told as if it had been interrupted, too, before all others."""
        self._queue, self._wait = world.fake._queue, world.fake.wait
        world.fake.wait = self.wait  # type: ignore[method-assign]

    def wait(self) -> Any:
        """As FakeTracer's."""
        threads, queue = self.event.threads, self._queue
        if not threads:
            event = self._wait()
            if not isinstance(event, events.Interrupted):
                return event
            if self.first is not None:
                threads.append(self.first)
                self.first = None
            threads.append(event.thread)
            while queue and isinstance(queue[0], events.Interrupted):
                threads.append(queue.popleft().thread)
        self.sizes.append(len(threads))
        return self.event


def states(world: World) -> set[State]:
    return {thread.state for thread in world.process.living()}


def test_all_of_them_are_parked(world: World) -> None:
    """Invariant: when the hold is taken all have stopped, whether told one by one or in one event; then they run."""
    told = InOneEvent(world)
    client = world.attach(*TIDS).client("one")
    hold = client.hold()
    assert states(world) == {State.PARKED}
    assert told.sizes == [1 + len(TIDS)]
    hold.release()
    world.fake.idle()
    assert states(world) == {State.RUNNING}


def test_one_that_nobody_knows_goes_on(world: World) -> None:
    """Invariant: a thread that was left meanwhile is let go, and those behind it are taken."""
    told = InOneEvent(world)
    client = world.attach(*TIDS).client("one")
    stranger = FakeThread(ThreadId(999), ProcessId(PID))
    resumed: list[Any] = []
    resume = world.fake.resume
    world.fake.resume = lambda thread, signal=0: (  # type: ignore[method-assign]
        resumed.append(thread) if thread is stranger else resume(thread, signal)
    )
    told.first = stranger
    with client.hold():
        assert states(world) == {State.PARKED}
    assert resumed == [stranger]
    assert told.sizes == [2 + len(TIDS)]


def test_what_goes_wrong_with_one_loses_none_behind_it(world: World) -> None:
    """Invariant: a thread that could not have stopped ends the hold that waits; the others' stops are told again."""
    told = InOneEvent(world)
    client = world.attach(*TIDS).client("one")
    with client.hold(TIDS[0]):
        told.first = world.fake.thread(TIDS[0])
        with pytest.raises(InternalError, match="a thread that is PARKED cannot have INTERRUPTED"):
            client.hold()
        world.fake.idle()
        assert told.sizes == [1, 1 + len(TIDS), len(TIDS)]
        assert sorted(thread.tid for thread in world.process.living() if thread.state is State.PARKED) == [TIDS[0]]
    world.fake.idle()
    assert states(world) == {State.RUNNING}
    with client.hold():
        assert states(world) == {State.PARKED}
