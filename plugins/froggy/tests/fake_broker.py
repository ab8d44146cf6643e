"""A broker that does as it is told, and traces nothing; for the tests of both forms of the client side."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any, Final

import pytest

from tests.real.loops import out
from ubpx_froggy import aio
from ubpx_froggy import messages as m
from ubpx_froggy.client import RemoteTarget, connect
from ubpx_froggy.failures import as_failure
from ubpx_froggy.wire import PROTOCOL, REQUEST_BYTES, Framer, Parser, pack

PATIENCE_S: Final = 10.0
PID: Final = 4711
NAMES: Final = ("rip", "rsp", "rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax")
PLACE: Final = 0x401000
TARGET, CLIENT, LEASE, HOLD, CHANNEL = (bytes([each]) * 16 for each in range(5))
UNANSWERED: Final = object()
"""What a script says to leave a request without an answer."""

parse_from_peer: Final = Parser(m.FromPeerOnChannel).parse


def registers(**values: int) -> bytes:
    return struct.pack(f"<{len(NAMES)}Q", *({"rip": PLACE, **values}.get(name, 0) for name in NAMES))


def lease_info(handle: bytes = LEASE, **changes: Any) -> m.LeaseInfo:
    fields: dict[str, Any] = {
        "lease": handle, "spec": None, "address": PLACE, "state": "ARMED", "hits": 0, "errors": 0, "dropped": 0,
        "mode": "sync", "persistent": False, "priority": 0, "exclusive": False, "forced": None, "obstacle": None,
    }  # fmt: skip
    return m.LeaseInfo(**{**fields, **changes})


class Peer:
    """One connection, as the broker sees it."""

    def __init__(self, broker: FakeBroker, connected: socket.socket) -> None:
        self.broker, self.socket = broker, connected
        self.asked: Queue[m.Ask] = Queue()
        self.answers: Queue[m.Answer | m.Raised] = Queue()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        framer = Framer(REQUEST_BYTES)
        with self.socket, suppress(OSError):
            while data := self.socket.recv(1 << 16):
                for body in framer.feed(data):
                    self._take(parse_from_peer(body))
        self.ended.set()

    def _take(self, message: Any) -> None:
        match message:
            case m.Hello():
                self.broker.greet(self, message)
            case m.Ask():
                answer = self.broker.answer(self, message.call)
                self.asked.put(message)
                if answer is not UNANSWERED:
                    self.reply(message.id, answer)
            case _:
                self.answers.put(message)

    def send(self, *batch: Any) -> None:
        """All at once, so that they may arrive in one piece."""
        with suppress(OSError):
            self.socket.sendall(b"".join(pack(each) for each in batch))

    def reply(self, number: int, value: Any) -> None:
        if isinstance(value, BaseException):
            self.send(m.Failed(number, as_failure(value)))
        else:
            self.send(m.Reply(number, m.as_raw(value)))

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.ended.wait(PATIENCE_S)

    def next_ask(self, kind: type) -> m.Ask:
        """The next request of a kind; the others before it are dropped."""
        while not isinstance((ask := self.asked.get(timeout=PATIENCE_S)).call, kind):
            pass
        return ask

    def next_answer(self) -> Any:
        return self.answers.get(timeout=PATIENCE_S)

    def hit(self, call: int, lease: bytes = LEASE, thread: int = 7, **values: int) -> Any:
        """Tell of a hit, and wait for what the handler says."""
        self.send(m.Hit(call, lease, thread, registers(**values)))
        answer = self.next_answer()
        assert answer.call == call
        return answer


class FakeBroker:
    """Answers each request by ``script``: by the request's class, a value, an exception, or a function of it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.refusal: str | None = None
        self.dumb = False
        self.control: Peer
        self.channel: Peer
        self.channel_is_open = threading.Event()
        self.peers: list[Peer] = []
        info = m.TargetInfo(TARGET, PID, "x86_64", list(NAMES), "rip", deadline_s=1.0, spawned=False)
        self.script: dict[type, Any] = {
            m.Join: info,
            m.Attach: info,
            m.OpenClient: m.ClientInfo(CLIENT, []),
            m.Probe: lambda call: lease_info(mode=call.mode, persistent=call.persistent),
            m.ReadLeases: lambda call: [lease_info(each) for each in call.leases],
            m.Release: lambda call: [lease_info(each, state="RELEASED") for each in call.leases],
            m.Threads: [PID, 7],
            m.Clients: [m.NamedClient("a", 0, "LIVE", ""), m.NamedClient("b", 3, "QUARANTINED", "it failed")],
        }
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.peers.append(Peer(self, self._listener.accept()[0]))

    def greet(self, peer: Peer, hello: m.Hello) -> None:
        if self.dumb:
            return
        if self.refusal is not None:
            peer.send(m.Refused(self.refusal))
            peer.socket.shutdown(socket.SHUT_RDWR)
        elif hello.channel is None:
            self.control = peer
            peer.send(m.Welcome(PROTOCOL, "fake", os.getpid(), CHANNEL))
        else:
            assert hello.channel == CHANNEL
            self.channel = peer
            peer.send(m.Welcome(PROTOCOL, "fake", os.getpid(), b""))
            self.channel_is_open.set()

    def answer(self, peer: Peer, call: Any) -> Any:
        answer = self.script.get(type(call))
        if not callable(answer):
            return answer
        return answer(peer, call) if answer.__code__.co_argcount == 2 else answer(call)

    def evict(self, reason: str) -> None:
        self.control.send(m.Evicted(reason))
        for peer in self.peers:
            peer.close()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()
        for peer in self.peers:
            peer.close()
            peer.thread.join(PATIENCE_S)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[FakeBroker]:
    """And no thread of ours, and no socket, is left."""
    fake = FakeBroker(tmp_path / "socket")
    yield fake
    fake.stop()
    until = time.monotonic() + PATIENCE_S
    while (
        left := [each for each in threading.enumerate() if each.name.startswith("ubpx")]
    ) and time.monotonic() < until:
        time.sleep(0.01)
    assert left == []
    gc.collect()


# For the blocking form ------------------------------------------------------------------------


@pytest.fixture
def target(broker: FakeBroker) -> Iterator[RemoteTarget]:
    with connect(broker.path, pid=None, read_only=False) as joined:
        yield joined


@contextmanager
def elsewhere(job: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Runs it in a thread; what is given waits for its result, or raises what it raised."""
    outcome: Queue[tuple[Any, BaseException | None]] = Queue()

    def run() -> None:
        try:
            outcome.put((job(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the result is wanted
            outcome.put((None, error))

    def result() -> Any:
        value, error = outcome.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return value

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def ask_until(done: Callable[[], Any], target: RemoteTarget) -> None:
    """Ask the broker for something, again and again, until it is so."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and not done():
        target.threads()


# For the asyncio form -------------------------------------------------------------------------


async def soon(done: Callable[[], object]) -> None:
    """Until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not done():
            await asyncio.sleep(0.002)


async def joined(broker: FakeBroker, name: str = "a") -> tuple[aio.AsyncTarget, aio.AsyncClient]:
    """A target, and a client of it."""
    target = await aio.connect(broker.path)
    return target, await target.client(name)


async def told(peer: Peer, *messages: Any) -> Any:
    """Tell a channel, and give the next answer."""
    peer.send(*messages)
    return await out(peer.next_answer)


def hit(call: int, thread: int = 7, lease: bytes | None = None, **values: int) -> m.Hit:
    """A message that tells of one."""
    return m.Hit(call, lease or LEASE, thread, registers(**values))
