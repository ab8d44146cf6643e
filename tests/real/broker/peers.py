"""Peers of a broker that speak the protocol themselves, and so can break it."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from ubpx_froggy import messages as m
from ubpx_froggy import wire
from ubpx_froggy.failures import as_error

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess

PATIENCE_S: Final = 30.0

GIVES: Final[dict[type, Any]] = {
    m.Overview: list[m.TargetOverview],
    m.Join: m.TargetInfo,
    m.Attach: m.TargetInfo,
    m.Leave: None,
    m.Threads: list[int],
    m.ReadRegisters: m.Registers,
    m.ReadMemory: bytes,
    m.WriteMemory: None,
    m.Mappings: list[m.MappingInfo],
    m.Clients: list[m.NamedClient],
    m.Probepoints: list[m.ProbepointInfo],
    m.Holds: list[m.HoldInfo],
    m.Stops: int,
    m.Slots: m.SlotUseInfo,
    m.Resume: None,
    m.Wait: int | None,
    m.OpenClient: m.ClientInfo,
    m.CloseClient: None,
    m.Probe: m.LeaseInfo,
    m.ProbeMany: m.GroupInfo,
    m.Watch: m.LeaseInfo,
    m.Leases: list[m.LeaseInfo],
    m.ReadLeases: list[m.LeaseInfo],
    m.Release: list[m.LeaseInfo],
    m.TakeHold: m.HoldInfo,
    m.ReleaseHold: None,
    m.Step: None,
    m.Catch: None,
}
"""What the reply to each request carries."""


class Refused(Exception):
    """The broker has refused the connection; the reason is the message."""


class Evicted(Exception):
    """The broker has thrown the peer out; the reason is the message."""


class Ended(Exception):
    """The broker has closed the connection, and said nothing."""


class Line:
    """One socket to a broker, message by message."""

    def __init__(self, path: str, types: Any) -> None:
        self.socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self._framer: Final = wire.Framer(wire.REPLY_BYTES)
        self._messages: Final[list[Any]] = []
        self._decode: Final = msgspec.msgpack.Decoder(types).decode
        try:
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def send(self, *messages: Any) -> Self:
        """Whole messages; bytes go as they are."""
        data = b"".join(each if isinstance(each, bytes) else wire.pack(each) for each in messages)
        self.socket.sendall(data)
        return self

    def recv(self, timeout: float = PATIENCE_S) -> Any:
        """The next message; None where the broker has closed. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing came in {timeout} s")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            finally:
                self.socket.settimeout(PATIENCE_S)
            if not data:
                return None
            self._messages.extend(self._decode(body) for body in self._framer.feed(data))
        return self._messages.pop(0)

    def greet(self, versions: tuple[int, ...] = (1,), channel: bytes | None = None) -> m.Welcome:
        """Say hello; raises Refused, Ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said already why it refuses
            self.send(m.Hello(list(versions), "a test", channel))
        answer = self.recv()
        if isinstance(answer, m.Refused):
            raise Refused(answer.reason)
        if answer is None:
            raise Ended
        assert isinstance(answer, m.Welcome), answer
        return answer

    def close(self) -> None:
        """Again: does nothing."""
        self.socket.close()


class Channel(Line):
    """A connection's channel."""

    def __init__(self, path: str, token: bytes) -> None:
        super().__init__(path, m.FromBrokerOnChannel)
        self._next_id = 0
        try:
            self.greet(channel=token)
        except BaseException:
            self.close()
            raise

    def ask(self, call: Any) -> Any:
        """As a handler does, while its hit is unanswered; Hits that come meanwhile are kept for ``recv``."""
        self._next_id += 1
        self.send(m.Ask(self._next_id, call))
        kept = []
        while isinstance(answer := self.recv(), m.Hit | m.Hook):
            kept.append(answer)
        self._messages[:0] = kept
        if answer is None:
            raise Ended
        assert answer.id == self._next_id
        return result(call, answer)

    def answer(self, hit: m.Hit | m.Hook, **fields: Any) -> None:
        """That the handler is done."""
        self.send(m.Answer(hit.call, **fields))


class Peer(Line):
    """A connection that has said hello."""

    def __init__(self, path: str, versions: tuple[int, ...] = (1,)) -> None:
        super().__init__(path, m.FromBroker)
        self.path: Final = path
        self.channel: Channel | None = None
        self.records: Final[list[tuple[bytes, int, float, bytes]]] = []
        """Hits in mode notify that have come."""
        self.dropped: Final[dict[bytes, int]] = {}
        self._next_id = 0
        try:
            self.welcome: Final = self.greet(versions)
        except BaseException:
            self.close()
            raise

    def open_channel(self) -> Channel:
        """To be asked at hits."""
        self.channel = Channel(self.path, self.welcome.channel)
        return self.channel

    def ask(self, call: Any, timeout: float = PATIENCE_S) -> Any:
        """What the broker gives; raises what it answers, Evicted, Ended, TimeoutError."""
        return self.reply(self.begin(call), call, timeout)

    def begin(self, call: Any) -> int:
        """Ask, and do not wait for the reply."""
        self._next_id += 1
        self.send(m.Ask(self._next_id, call))
        return self._next_id

    def reply(self, number: int, call: Any, timeout: float = PATIENCE_S) -> Any:
        """To a request that was begun; replies come in order."""
        answer = self.hear(timeout)
        if answer is None:
            raise Ended
        assert answer.id == number, answer
        return result(call, answer)

    def hear(self, timeout: float = PATIENCE_S) -> Any:
        """The next message that is not Hits; those are noted. Raises Evicted."""
        deadline = time.monotonic() + timeout
        while isinstance(message := self.recv(max(0.001, deadline - time.monotonic())), m.Hits):
            self.records.extend(message.records)
            self.dropped.update(message.dropped)
        if isinstance(message, m.Evicted):
            raise Evicted(message.reason)
        return message

    def end_of(self, timeout: float = PATIENCE_S) -> str:
        """Read to the end: why the broker has ended it, or "" where it does not say."""
        deadline = time.monotonic() + timeout
        try:
            while self.hear(max(0.001, deadline - time.monotonic())) is not None:
                pass
        except Evicted as eviction:
            assert self.recv() is None, "something came behind the eviction"
            return str(eviction)
        return ""

    def probe(self, place: str | int, *, pid: int | None = None, name: str = "peer", **options: Any) -> m.LeaseInfo:
        """Join, or attach to ``pid``; open a client, probe: the lease."""
        if options.get("mode", "sync") == "sync" and self.channel is None:
            self.open_channel()
        self.target: bytes = self.ask(m.Join() if pid is None else m.Attach(pid)).target
        self.client: bytes = self.ask(m.OpenClient(self.target, name)).client
        lease: m.LeaseInfo = self.ask(m.Probe(self.client, place, **options))
        return lease

    def until_gone(self, *names: str) -> None:
        """Until its target has no client of any of these names."""
        deadline = time.monotonic() + PATIENCE_S
        while set(names) & {each.name for each in self.ask(m.Clients(self.target))}:
            assert time.monotonic() < deadline, f"there still is one of {names}"
            time.sleep(0.01)

    def until_held(self, thread: int) -> None:
        """Until somebody holds that thread of its target: the broker does, for an answer that is late."""
        deadline = time.monotonic() + PATIENCE_S
        while thread not in {each.thread for each in self.ask(m.Holds(self.target))}:
            assert time.monotonic() < deadline, "nobody holds it"
            time.sleep(0.001)

    def note(self, target: bytes, client: bytes) -> None:
        """What ``probe`` notes too."""
        self.target, self.client = target, client

    def lease_client(self) -> bytes:
        """The client that ``probe`` has opened; of a Remote, too."""
        return self.client

    def lease(self, handle: bytes) -> m.LeaseInfo:
        """As it is now."""
        lease: m.LeaseInfo = self.ask(m.ReadLeases([handle]))[0]
        return lease

    def close(self) -> None:
        """The socket, and the channel's."""
        super().close()
        if self.channel is not None:
            self.channel.close()


def result(call: Any, answer: Any) -> Any:
    """What a Reply carries; raises what a Failed says."""
    if isinstance(answer, m.Failed):
        raise as_error(answer.failure)
    assert isinstance(answer, m.Reply), answer
    return msgspec.msgpack.decode(answer.value, type=GIVES[type(call)])


def channel_of(peer: Peer) -> Channel:
    assert peer.channel is not None
    return peer.channel


def counting(peers: Peers, broker: BrokerProcess, place: str = "answer") -> tuple[Peer, bytes]:
    """Somebody else, who counts what the program does."""
    peer = peers(broker)
    return peer, peer.probe(place, name="beside", mode="count").lease
