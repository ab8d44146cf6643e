"""One accepted connection: who is there, what it says, and in which order it is answered. In the event loop."""

import asyncio
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from ubpx import PermissionRefused, QuotaExceeded, UbpxError, UsageError
from ubpx_froggy.broker.access import Peer, Right, check_peer, peer_of
from ubpx_froggy.broker.channel import Channel
from ubpx_froggy.broker.guests import Guest
from ubpx_froggy.broker.quotas import Quotas
from ubpx_froggy.failures import as_failure
from ubpx_froggy.messages import (
    Ask,
    Evicted,
    Failed,
    FromPeer,
    Handle,
    Hello,
    Hits,
    Refused,
    Reply,
    Wait,
    Welcome,
    as_raw,
)
from ubpx_froggy.wire import HELLO_BYTES, PROTOCOL, REQUEST_BYTES, Framer, Parser, WireError, pack

HANDSHAKE_S: Final = 10.0
SOFTWARE: Final = "ubpx-froggy 0.1.0"

_parse: Final = Parser(FromPeer).parse


class Lobby(Protocol):
    """The broker, as its connections need it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """In which all of it runs."""
        ...

    @property
    def quotas(self) -> Quotas:
        """Of each connection."""
        ...

    def enter(self, connection: "Connection", peer: Peer) -> str | None:
        """Count it; why it may not, if it may not."""
        ...

    def new_guest(self, connection: "Connection", peer: Peer) -> tuple[Guest, Handle] | str:
        """For a connection that has said hello, and the token by which its channel will find it; or why not."""
        ...

    def claim_channel(self, token: Handle, peer: Peer) -> "Guest | None":
        """The connection that was given the token; a token is good once."""
        ...

    def make_channel(self, connected: socket.socket, guest: Guest) -> Channel:
        """Around a socket that is the channel's own."""
        ...

    def submit(self, job: Callable[[], object]) -> None:
        """Have a worker thread do it; from any thread."""
        ...

    def sweep(self, guest: Guest) -> None:
        """Have everything taken back that a connection had."""
        ...

    def leave(self, connection: "Connection") -> None:
        """It has ended."""
        ...


class Connection(asyncio.Protocol):
    """One of them; a channel's, too, until it has said that it is one."""

    def __init__(self, lobby: Lobby) -> None:
        self.guest: Guest | None = None
        self.token: Handle = b""
        self.uid = -1
        self._lobby: Final = lobby
        self._framer: Final = Framer(HELLO_BYTES)
        self._waiting: Final[deque[Ask]] = deque()
        self._busy = False
        self._ended = False
        self._transport: Any = None
        self._peer: Peer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waits: Final[set[Callable[[], None]]] = set()
        self._clogged = False

    # From the transport -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there; who, the kernel says."""
        self._transport = transport
        self._transport.set_write_buffer_limits(high=self._lobby.quotas.bytes)
        try:
            self._peer = peer_of(transport.get_extra_info("socket"))
            self.uid = self._peer.uid
            check_peer(self._peer)
        except (PermissionRefused, OSError) as error:
            self._refuse(str(error))
            return
        reason = self._lobby.enter(self, self._peer)
        if reason is not None:
            self._refuse(reason)
            return
        self._timer = self._lobby.loop.call_later(HANDSHAKE_S, self._refuse, f"no hello in {HANDSHAKE_S:g} s")

    def data_received(self, data: bytes) -> None:
        """Bytes, whole messages or not."""
        try:
            for body in self._framer.feed(data):
                if not self._ended:
                    self._take(_parse(body))
        except WireError as error:
            self.end(str(error))
        self._regulate()

    def pause_writing(self) -> None:
        """The peer does not read: it is not read from either until it does."""
        self._clogged = True
        self._regulate()

    def resume_writing(self) -> None:
        """It reads again."""
        self._clogged = False
        self._regulate()
        self._go_on()

    def _regulate(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._clogged or len(self._waiting) >= self._lobby.quotas.requests:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """The peer has gone, or we have closed."""
        del error
        self._finish()

    # What it says -------------------------------------------------------------------------------

    def _take(self, message: Hello | Ask) -> None:
        if isinstance(message, Hello):
            self._greet(message)
        elif self.guest is None:
            raise WireError("a request before the hello")
        else:
            self._waiting.append(message)
            self._go_on()

    def _greet(self, hello: Hello) -> None:
        if self.guest is not None:
            raise WireError("a second hello")
        if PROTOCOL not in hello.versions:
            theirs = ", ".join(map(str, hello.versions[:8])) or "none"
            self._refuse(f"this broker speaks version {PROTOCOL} of the protocol, the peer {theirs}; upgrade the older")
            return
        if self._timer is not None:
            self._timer.cancel()
        assert self._peer is not None  # noqa: S101 - set before any byte is received
        if hello.channel is not None:
            self._become_channel(hello.channel, self._peer)
            return
        made = self._lobby.new_guest(self, self._peer)
        if isinstance(made, str):
            self._refuse(made)
            return
        self.guest, self.token = made
        self._framer.limit = REQUEST_BYTES
        self._write(Welcome(PROTOCOL, SOFTWARE, os.getpid(), self.token))

    def _become_channel(self, token: Handle, peer: Peer) -> None:
        guest = self._lobby.claim_channel(token, peer)
        if guest is None:
            self._refuse("no connection waits for that channel; a connection has one, and its token is good once")
            return
        self._transport.pause_reading()
        own = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        with contextlib.suppress(OSError):  # the peer may have gone: the first hit will find out
            own.send(pack(Welcome(PROTOCOL, SOFTWARE, os.getpid(), b"")), socket.MSG_NOSIGNAL)
        guest.channel = self._lobby.make_channel(own, guest)  # from here on hits may come
        self._ended = True
        self._transport.abort()

    # Answers, one request after the other ---------------------------------------------------------

    def _go_on(self) -> None:
        while self._waiting and not self._busy and not self._ended and not self._clogged:
            ask = self._waiting.popleft()
            if isinstance(ask.call, Wait):
                self._wait(ask, ask.call)
            else:
                self._busy = True
                self._lobby.submit(lambda ask=ask: self._perform(ask))  # type: ignore[misc]

    def _perform(self, ask: Ask) -> None:
        """In a worker thread."""
        guest = self.guest
        assert guest is not None  # noqa: S101 - nothing is asked before the hello
        answer: Reply | Failed
        try:
            answer = Reply(ask.id, guest.perform(ask.call))
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told and the others are served
            answer = Failed(ask.id, as_failure(error))
        self._lobby.loop.call_soon_threadsafe(self._performed, answer)

    def _performed(self, answer: Reply | Failed) -> None:
        self._busy = False
        if self.guest is not None:
            self.guest.notices.flush()  # the hits of before it come before it
        self._write(answer)
        self._go_on()
        self._regulate()

    def _wait(self, ask: Ask, call: Wait) -> None:
        """Answered when the process has ended, or the time is over; other requests go on meanwhile."""
        guest = self.guest
        assert guest is not None  # noqa: S101 - nothing is asked before the hello
        loop = self._lobby.loop
        try:
            self._check_wait(call)
            used = guest.used(call.target, Right.LOOK)
            if used.right >= Right.CHANGE:
                self._lobby.submit(used.hosted.resume)
        except UbpxError as error:
            self._write(Failed(ask.id, as_failure(error)))
            return

        def tell(status: int) -> None:
            loop.call_soon_threadsafe(answer, status)

        def give_up(error: UbpxError) -> None:
            loop.call_soon_threadsafe(answer, error)

        def answer(outcome: int | UbpxError | None) -> None:
            if stop in self._waits:
                stop()
                if isinstance(outcome, UbpxError):
                    self._write(Failed(ask.id, as_failure(outcome)))
                else:
                    self._reply(ask.id, outcome)

        def stop() -> None:
            self._waits.discard(stop)
            used.waiting.discard(give_up)
            used.hosted.forget_waiter(tell)
            if timer is not None:
                timer.cancel()

        timer = None if call.timeout is None else loop.call_later(max(call.timeout, 0.0), answer, None)
        self._waits.add(stop)
        used.waiting.add(give_up)
        used.hosted.on_exit(tell)
        if not guest.uses(used):  # taken away meanwhile
            give_up(UsageError("the target was given up before the process has ended; join it again"))

    def _check_wait(self, call: Wait) -> None:
        if call.timeout is not None and not 0 <= call.timeout <= threading.TIMEOUT_MAX:  # NaN is neither
            raise UsageError(f"timeout={call.timeout!r}; give seconds, 0 or more, or nil")
        if len(self._waits) >= self._lobby.quotas.requests:
            raise QuotaExceeded("waits", self._lobby.quotas.requests)

    def _reply(self, number: int, value: object) -> None:
        self._write(Reply(number, as_raw(value)))

    def send_hits(self, hits: Hits) -> bool:
        """A batch of notices; False: the peer must read first what it was sent."""
        if self._ended:
            return True
        if self._clogged or self._transport.get_write_buffer_size() > self._lobby.quotas.bytes // 2:
            return False
        self._write(hits)
        return True

    def _write(self, message: Any) -> None:
        if not self._ended and not self._transport.is_closing():
            self._transport.write(pack(message))

    # The end --------------------------------------------------------------------------------------

    def _refuse(self, reason: str) -> None:
        self._write(Refused(reason))
        self._ended = True
        self._transport.close()

    def end_soon(self, reason: str | None) -> None:
        """End it; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is everything else
            self._lobby.loop.call_soon_threadsafe(self.end, reason)

    def end(self, reason: str | None) -> None:
        """Tell the peer why, if it was evicted, and close. Again: does nothing."""
        if self._ended:
            return
        guest = self.guest
        if reason is not None and guest is not None:
            guest.evicted = reason
            self._write(Evicted(reason))
        elif reason is not None:
            self._write(Refused(reason))
        self._finish()
        if self._clogged or self._transport.get_write_buffer_size():
            self._lobby.loop.call_later(1.0, self._transport.abort)  # who does not read need not be told
        self._transport.close()

    def _finish(self) -> None:
        first, self._ended = not self._ended, True
        if self._timer is not None:
            self._timer.cancel()
        for stop in tuple(self._waits):
            stop()
        self._lobby.leave(self)
        guest = self.guest
        if guest is None or not first:
            return
        guest.gone = True
        if guest.channel is not None:
            guest.channel.shut()
        self._lobby.sweep(guest)
