"""A broker's end of a channel among others that do as they are told: its peer, its connection, who asks by it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest

from ubpx_froggy import wire
from ubpx_froggy.broker.channel import Channel
from ubpx_froggy.messages import Answer, FromBrokerOnChannel, Raised, as_raw

PATIENCE_S: Final = 20.0
"""Of the tests; the channels' own is shorter."""
LEASE: Final = b"l" * 16
REGISTERS: Final = bytes(27 * 8)


class Peer:
    """The other end."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(PATIENCE_S)
        self._framer = wire.Framer(wire.REPLY_BYTES)
        self._parse = wire.Parser(FromBrokerOnChannel).parse
        self._read: list[Any] = []

    def next(self) -> Any:
        """The next message."""
        while not self._read:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._read += [self._parse(body) for body in self._framer.feed(data)]
        return self._read.pop(0)

    def say(self, *messages: msgspec.Struct) -> None:
        """All in one write."""
        self.socket.sendall(b"".join(map(wire.pack, messages)))


class Owner:
    """The connection."""

    def __init__(self) -> None:
        self.held_s = 0.0
        self.evictions: list[str] = []
        self.losses = 0
        self.performed: list[tuple[Any, int]] = []
        self.perform_with: Callable[[Any], Any] = lambda call: 7
        self.ended = threading.Event()

    def perform(self, call: Any) -> msgspec.Raw:
        self.performed.append((call, threading.get_ident()))
        return as_raw(self.perform_with(call))

    def submit(self, job: Callable[[], object]) -> None:
        threading.Thread(target=job, daemon=True).start()

    def settle(self, job: Callable[[], object]) -> None:
        self.submit(job)

    def evict(self, reason: str) -> None:
        self.evictions.append(reason)
        self.ended.set()

    def lost(self) -> None:
        self.losses += 1
        self.ended.set()


class Settled:
    """A caller whose late answers are kept, when they may be settled."""

    def __init__(self) -> None:
        self.may_settle = threading.Event()
        self.may_settle.set()
        self.answers: list[tuple[int, Any]] = []
        self.came = threading.Condition()

    def settle(self, tid: int, answer: Answer | Raised) -> None:
        assert self.may_settle.wait(PATIENCE_S)
        with self.came:
            self.answers.append((tid, answer))
            self.came.notify_all()

    def wait(self, count: int) -> list[tuple[int, Any]]:
        """So many answers, in the order of tids."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.answers) >= count, PATIENCE_S), self.answers
            return sorted(self.answers, key=lambda each: each[0])


class World:
    """A channel, its owner, its peer, and the event loop that they live by. The test's thread is the tracer's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, patience_s: float, deadline_s: float) -> None:
        ours, theirs = socket.socketpair()
        self.owner = Owner()
        self.peer = Peer(theirs)
        self.caller = Settled()
        self.loop = loop
        self.channel = Channel(ours, self.owner, loop, patience_s=patience_s, deadline_s=deadline_s)

    def hit(self, tid: int = 1) -> Any:
        """A hit of a thread; what the tracer gets."""
        return self.channel.hit(self.caller, LEASE, tid, REGISTERS)

    def in_peer(self, work: Callable[[], object]) -> threading.Thread:
        """Have the peer do something meanwhile."""
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def in_loop(self, work: Callable[[], object]) -> None:
        """Have it done by the event loop, and wait for it."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(PATIENCE_S)

    def is_prompt_again(self) -> bool:
        """Whether the tracer reads the channel itself, after the loop has done what it had to do."""
        until = time.monotonic() + PATIENCE_S
        while tuple(self.channel.late_calls()) and time.monotonic() < until:
            time.sleep(0.001)
        self.in_loop(lambda: None)
        thread = self.in_peer(lambda: self.peer.say(Answer(self.peer.next().call)))
        answer = self.hit(99)
        thread.join(PATIENCE_S)
        return isinstance(answer, Answer)


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """``make_world(patience_s=..., deadline_s=...)``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    worlds: list[World] = []

    def make(*, patience_s: float = 5.0, deadline_s: float = 10.0) -> World:
        worlds.append(World(loop, patience_s=patience_s, deadline_s=deadline_s))
        return worlds[-1]

    yield make
    for world in worlds:
        world.in_loop(world.channel.close)
        world.peer.socket.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_S)
    loop.close()
