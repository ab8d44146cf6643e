"""The way of a connection's hits: the tracer thread writes and reads it itself while the peer is prompt.

A peer that has not answered after ``patience_s`` does not keep the tracer any longer: its answer is *late*.
The thread that arrived is held then, in the client's name; the event loop reads the channel, and the hold ends
when the answer has come. While one answer is late all hits go that way. A peer that answers nothing
for ``deadline_s`` is evicted.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from time import monotonic
from typing import Any, Final, Protocol

import msgspec

from ubpx_froggy.failures import as_failure
from ubpx_froggy.messages import Answer, Ask, Call, ChildHit, Failed, FromPeerOnChannel, Hit, Hook, Raised, Reply
from ubpx_froggy.wire import REQUEST_BYTES, Framer, Parser, WireError, pack

PATIENCE_S: Final = 0.002
"""For how long the tracer itself waits for an answer."""
_TURNS: Final = 10
"""So many times the patience at most, where a handler asks this and that."""
_CHUNK: Final = 1 << 16
_CHUNKS_AT_ONCE: Final = 8
"""More than a socket's buffer holds, unless its peer has made it larger."""
_BACKLOG: Final = 4096
"""Messages that do not fit into the socket's buffer; a peer that lets more of them wait is evicted."""
_NOW: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

_parse: Final = Parser(FromPeerOnChannel).parse
_log = logging.getLogger("ubpx.broker")


_PREFIX: Final = 4
_QUIET: Final = b"\x94\xa6answer\xcf"
"""How an Answer begins whose number takes eight bytes."""
_QUIET_SIZE: Final = (len(_QUIET) + 10).to_bytes(_PREFIX, "little")


def quiet(call: int) -> bytes:
    """The Answer that wants nothing, as our own client side writes it: nearly every one, so it is not parsed."""
    return b"%b%b%b\xc0\xc0" % (_QUIET_SIZE, _QUIET, call.to_bytes(8, "big"))


class Unanswered(Enum):
    """Why there is no answer."""

    LATE = "LATE"
    """It will come to ``settle``."""
    GONE = "GONE"
    """The peer is gone."""


class Caller(Protocol):
    """Who asks by channel: a handler or hook of a remote client."""

    def settle(self, tid: int, answer: Answer | Raised) -> None:
        """Do what a late answer says; in a worker thread."""
        ...


class Owner(Protocol):
    """The connection that the channel belongs to."""

    held_s: float
    """For how long it has kept the program waiting, in seconds, when it is evicted for that."""

    def perform(self, call: Call) -> msgspec.Raw:
        """Do what the peer asks, and give the reply's value; raises an UbpxError."""
        ...

    def submit(self, job: Callable[[], object]) -> None:
        """Have a worker thread do it; from any thread."""
        ...

    def settle(self, job: Callable[[], object]) -> None:
        """Have it done by a thread that waits for nobody's request; from any thread."""
        ...

    def evict(self, reason: str) -> None:
        """Take back everything, and end; from any thread. Again: does nothing."""
        ...

    def lost(self) -> None:
        """The peer has closed the channel; from any thread."""
        ...


class Channel:
    """One channel. What its parts are called says which thread they belong to; ``shut`` and ``close`` to any."""

    def __init__(
        self,
        connected: socket.socket,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        *,
        patience_s: float,
        deadline_s: float,
    ) -> None:
        self._socket: Final = connected
        self._owner: Final = owner
        self._loop: Final = loop
        self.deadline_s: Final = deadline_s
        """For how long a peer that makes no progress is waited for."""
        self._patience_s: Final = patience_s
        self._framer: Final = Framer(REQUEST_BYTES)
        self._lock: Final = threading.Lock()
        """Guards who reads, what is late, and what is sent."""
        self._progress: Final = threading.Condition(self._lock)
        """Told, if somebody catches up, of each of the following."""
        self._turns = 0
        """How often the tracer thread has stopped waiting for an answer."""
        self._catching_up = 0
        """How many threads do."""
        self._unsettled: Final[set[int]] = set()
        """Calls whose late answers have come, and are not done yet."""
        self._late: Final[dict[int, tuple[Caller, int]]] = {}
        """By call: whose answers are due, the oldest first. While there are any the event loop reads."""
        self._since = 0.0
        """When the peer last made progress, monotonic seconds."""
        self._backlog: Final[deque[bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._awaiting = False
        """Whether the tracer thread waits for an answer; a hit that it serves meanwhile, because a handler's request
        made it, is not waited for."""
        self._tracer = 0
        self._calls = 0
        connected.settimeout(None)
        timeout = struct.pack("@ll", int(patience_s), int(patience_s % 1 * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    @property
    def is_serving_here(self) -> bool:
        """Whether the caller does what one of the peer's handlers asks for, while the tracer waits for that."""
        return self._awaiting and threading.get_ident() == self._tracer

    # In the tracer thread -------------------------------------------------------------------

    def hit(self, caller: Caller, lease: bytes, tid: int, registers: bytes) -> Answer | Raised | Unanswered | None:
        """Tell the peer of a hit; its answer, if that comes at once. None: it wants nothing."""
        self._calls = number = self._calls + 1
        return self._call(caller, tid, number, pack(Hit(number, lease, tid, registers)))

    def child_hit(
        self, caller: Caller, lease: bytes, tid: int, registers: bytes, pid: int
    ) -> Answer | Raised | Unanswered | None:
        """The same for one in a followed child."""
        self._calls = number = self._calls + 1
        return self._call(caller, tid, number, pack(ChildHit(number, lease, tid, registers, pid)))

    def hook(
        self, caller: Caller, client: bytes, tid: int, name: str, arguments: dict[str, Any]
    ) -> Answer | Raised | Unanswered | None:
        """Call a hook of the peer's; its answer, if that comes at once. None: it wants nothing."""
        self._calls = number = self._calls + 1
        return self._call(caller, tid, number, pack(Hook(number, client, name, arguments)))

    def _call(self, caller: Caller, tid: int, number: int, frame: bytes) -> Answer | Raised | Unanswered | None:
        with self._lock:
            if self._closed:
                return Unanswered.GONE
            behind = bool(self._late) or self._awaiting
            if not self._send(frame):
                return Unanswered.GONE
            if behind or self._backlog:
                return self._await_later({number: (caller, tid)})
            self._awaiting, self._tracer = True, threading.get_ident()
        try:
            return self._await(number, caller, tid)
        except WireError as error:
            self._owner.evict(str(error))
        except BaseException:  # the deadline's alarm: the peer's answer would be taken for the next one's
            self._owner.evict("its handler asked for things that took longer than the deadline")
            raise
        finally:
            self._stop_awaiting()
        return Unanswered.GONE

    def _stop_awaiting(self) -> None:
        """Whatever else was told of meanwhile is late."""
        with self._lock:
            if self._awaiting:
                self._end_turn()
                if self._late and not self._closed:
                    self._read_by_loop()

    def _end_turn(self) -> None:
        """The tracer thread waits no more. Under the lock."""
        self._awaiting = False
        self._turns += 1
        self._tell_progress()

    def _await(self, number: int, caller: Caller, tid: int) -> Answer | Raised | Unanswered | None:
        until, wanted = 0.0, quiet(number)
        receive, feed = self._socket.recv, self._framer.feed
        while True:
            try:
                data = receive(_CHUNK)
            except BlockingIOError:
                return self._go_late(number, caller, tid)
            except OSError:
                data = b""
            if data == wanted and not self._framer.is_inside:
                return None
            if not data:
                self._owner.lost()
                return Unanswered.GONE
            for body in feed(data):
                message = _parse(body)
                if not isinstance(message, Ask):
                    return _expected(message, number)
                until = until or monotonic() + _TURNS * self._patience_s
                if monotonic() > until:
                    return self._go_late(number, caller, tid, message)
                self._serve(message)

    def _go_late(self, number: int, caller: Caller, tid: int, unserved: Ask | None = None) -> Unanswered:
        with self._lock:
            if self._closed:
                return Unanswered.GONE
            self._end_turn()
            meanwhile = dict(self._late)
            self._late.clear()  # the answers come in the order of the calls
            outcome = self._await_later({number: (caller, tid), **meanwhile})
        if unserved is not None:
            self._owner.submit(lambda: self._serve(unserved))
        return outcome

    def _await_later(self, calls: dict[int, tuple[Caller, int]]) -> Unanswered:
        """Note that these answers are due; the event loop reads them, unless the tracer does. Under the lock."""
        first = not self._late
        self._late.update(calls)
        if first and not self._awaiting:
            self._read_by_loop()
        return Unanswered.LATE

    def _read_by_loop(self) -> None:
        self._since = monotonic()
        self._loop.call_soon_threadsafe(self._begin)

    # In a worker thread, where the peer asks for its end ----------------------------------------

    def catch_up(self) -> None:
        """Wait until what the peer has answered by now is done: it has said that before what it asks now.

        Not for longer than the deadline. In the tracer thread, for a handler whose own answer is still to come: does
        nothing.
        """
        if self.is_serving_here:
            return
        until = monotonic() + self.deadline_s
        with self._lock:
            self._catching_up += 1
            try:
                turn = self._turns
                caught_up = self._wait_for(lambda: not self._awaiting or self._turns != turn, until)
                if self._late:
                    caught_up = self._have_read(until) and caught_up
                come = frozenset(self._unsettled)
                caught_up = self._wait_for(lambda: come.isdisjoint(self._unsettled), until) and caught_up
            finally:
                self._catching_up -= 1
        if not caught_up:
            _log.warning("a client leaves, and for %g s what it has answered could not be done", self.deadline_s)

    def _have_read(self, until: float) -> bool:
        """Have the event loop read what is there; whether it has. Under the lock."""
        read = threading.Event()
        try:
            self._loop.call_soon_threadsafe(self._read_what_is_there, read)
        except RuntimeError:  # it is closed: everything is given back
            return True
        return self._wait_for(read.is_set, until)

    def _wait_for(self, done: Callable[[], object], until: float) -> bool:
        """Until it is so, or the channel is closed; whether it is. Under the lock, which others have meanwhile."""
        return bool(self._progress.wait_for(lambda: self._closed or done(), max(until - monotonic(), 0.0)))

    def _tell_progress(self) -> None:
        """Have those that catch up look again. Under the lock."""
        if self._catching_up:
            self._progress.notify_all()

    # In either ------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> bool:
        """Without waiting; what does not fit waits in the backlog. Under the lock; False: the peer is gone."""
        sent = 0
        if not self._backlog:
            try:
                sent = self._socket.send(frame, _NOW)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._owner.lost()
                return False
        if sent < len(frame):
            if not self._backlog:
                self._loop.call_soon_threadsafe(self._begin_writing)
            self._backlog.append(frame[sent:])
            if len(self._backlog) > _BACKLOG:
                self._owner.evict(f"it has left {_BACKLOG} messages unread")
                return False
        return True

    def _serve(self, ask: Ask) -> None:
        """Do what a handler asks for while it runs."""
        try:
            frame = pack(Reply(ask.id, self._owner.perform(ask.call)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told and the others are served
            frame = pack(Failed(ask.id, as_failure(error)))
        with self._lock:
            self._send(frame)

    # In the event loop ----------------------------------------------------------------------

    def _begin(self) -> None:
        if self._closed:
            return
        self._loop.add_reader(self._socket, self._read)
        self._timer = self._loop.call_later(self.deadline_s, self._check_deadline)
        self._take(b"")

    def _begin_writing(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._socket, self._write)

    def _read(self) -> bool:
        """Take some of what has come; False: there was nothing."""
        try:
            data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._owner.lost()
        return bool(data)

    def _read_what_is_there(self, read: threading.Event) -> None:
        """So much as there is now, where the event loop reads, and tell whoever catches up."""
        for _ in range(_CHUNKS_AT_ONCE):  # who asks for more all the time must not keep the event loop
            if self._closed or self._awaiting or not self._late or not self._read():
                break
        with self._lock:
            read.set()
            self._tell_progress()

    def _take(self, data: bytes) -> None:
        try:
            for body in self._framer.feed(data):
                self._take_message(_parse(body))
        except WireError as error:
            self._owner.evict(str(error))

    def _take_message(self, message: Any) -> None:
        if isinstance(message, Ask):
            self._owner.submit(lambda: self._serve(message))
            return
        with self._lock:
            if not self._late:
                raise WireError(f"an answer to call {message.call} came, and none is due")
            number = next(iter(self._late))
            answer = _expected(message, number)
            caller, tid = self._late.pop(number)
            self._unsettled.add(number)
            self._since = monotonic()
            if not self._late and not self._backlog:
                self._end()
        self._owner.settle(lambda: self._settle(number, caller, tid, answer))

    def _settle(self, number: int, caller: Caller, tid: int, answer: Answer | Raised) -> None:
        try:
            caller.settle(tid, answer)
        finally:
            with self._lock:
                self._unsettled.discard(number)
                self._tell_progress()

    def _write(self) -> None:
        with self._lock:
            waiting, whole = tuple(self._backlog), len(self._backlog)
            self._backlog.clear()
            for position, frame in enumerate(waiting):
                self._send(frame)
                if self._backlog:  # it did not fit: what is left of it goes first
                    self._backlog.extend(waiting[position + 1 :])
                    break
            if not self._backlog:
                self._loop.remove_writer(self._socket)
            elif len(self._backlog) < whole:
                self._since = monotonic()

    def _check_deadline(self) -> None:
        left = self._since + self.deadline_s - monotonic()
        if left <= 0:
            self._owner.held_s = self.deadline_s
            self._owner.evict(f"it has not answered a hit for {self.deadline_s:g} s")
        else:
            self._timer = self._loop.call_later(left, self._check_deadline)

    def _end(self) -> None:
        """Every answer is there: the tracer thread reads again."""
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        if self._timer is not None:
            self._timer.cancel()

    def shut(self) -> None:
        """No more calls; the tracer thread, if it waits, is told that the peer is gone. Again: does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._tell_progress()
            self._end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back, once no thread can be reading from it any more."""
        self.shut()
        self._socket.close()

    def late_calls(self) -> Iterator[int]:
        """Tids whose answers are due; for people."""
        return iter([tid for _, tid in tuple(self._late.values())])


def _expected(message: Any, number: int) -> Answer | Raised:
    """The message, if it is the answer that is due; raises WireError."""
    if not isinstance(message, Answer | Raised) or message.call != number:
        raise WireError(f"the answer to call {number} is due, and {type(message).__name__.lower()} came")
    return message
