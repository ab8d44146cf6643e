"""What stands in the broker for the handlers and hooks of a client elsewhere. All of it runs in the tracer thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from time import time
from typing import Any, Final, Protocol

from ubpx import Hit, UbpxError, UsageError, Verdict
from ubpx_froggy.broker.channel import Caller, Channel, Unanswered
from ubpx_froggy.broker.hooks import ATTACHED, STOP_HOOKS
from ubpx_froggy.broker.notices import Notices
from ubpx_froggy.messages import Answer, Handle, Raised


class RemoteFailure(UbpxError):
    """A handler or hook in another process has raised. Made by ``remote_failure``."""

    def __init__(self, client: str, error: str) -> None:
        super().__init__(f"in the process of client {client!r}: {error}; its own log has the traceback")
        self.client, self.error = client, error


def remote_failure(client: str, error: str) -> RemoteFailure:
    """Of a class with the name of the exception's, for that is what people are told of a quarantine."""
    name = error.partition(":")[0]
    kind: type[RemoteFailure] = type(name, (RemoteFailure,), {}) if name.isidentifier() else RemoteFailure
    return kind(client, error)


class Here(Protocol):
    """A client's connection."""

    @property
    def channel(self) -> Channel | None:
        """None until it has one."""
        ...

    @property
    def notices(self) -> Notices:
        """Its queue."""
        ...


class Absent(Protocol):
    """Whose handlers these are: a client that may be here or, with persistent leases, not."""

    @property
    def name(self) -> str:
        """The client's."""
        ...

    @property
    def guest(self) -> Here | None:
        """The connection of who is to answer; None while nobody is there."""
        ...

    strikes: int
    """Exceptions since its last success."""

    @property
    def pid(self) -> int:
        """The target's."""
        ...

    def keeps_waiting(self, tid: int) -> None:
        """This thread is held until a late answer comes."""
        ...

    def failed(self, error: str, where: str) -> None:
        """A handler or hook has raised."""
        ...

    def settle(self, entry: Any, tid: int, answer: Answer | Raised) -> None:
        """See ``channel.Caller``; ``entry`` is the lease's, None for a hook."""
        ...


def count(_: Hit) -> None:
    """Mode ``count``: the lease itself counts."""


class SyncHandler:
    """Mode ``sync``: the peer's handler runs while the thread waits."""

    __slots__ = ("_entry", "_seat")

    def __init__(self, seat: Absent, entry: Any) -> None:
        self._seat: Final = seat
        self._entry: Final = entry

    def __call__(self, hit: Hit) -> Verdict | None:
        """This is the hot path of a remote client."""
        guest = self._seat.guest
        channel = guest.channel if guest is not None else None
        if channel is None:
            return None
        tid, registers = hit.brief()
        pid = hit.pid
        if pid == self._seat.pid:
            answer = channel.hit(self, self._entry.handle, tid, registers)
        else:
            answer = channel.child_hit(self, self._entry.handle, tid, registers, pid)
        if answer is None:
            self._seat.strikes = 0
            return None
        if isinstance(answer, Answer):
            with _understood(self._seat, self._entry.described):
                if answer.registers:
                    for name, value in answer.registers.items():
                        hit.regs[name] = value
                return verdict_of(answer)
        return _unusual(self._seat, tid, answer, Verdict.HOLD, self._entry.described)

    def settle(self, tid: int, answer: Answer | Raised) -> None:
        """A late answer has come; in a worker thread."""
        self._seat.settle(self._entry, tid, answer)


class NotifyHandler:
    """Mode ``notify``: the hit is queued, and the program goes on."""

    __slots__ = ("_entry", "_seat")

    def __init__(self, seat: Absent, entry: Any) -> None:
        self._seat: Final = seat
        self._entry: Final = entry

    def __call__(self, hit: Hit) -> None:
        """This is the hot path of a remote client that need not be waited for."""
        guest = self._seat.guest
        if guest is not None:
            tid, registers = hit.brief()
            if hit.pid != self._seat.pid:
                guest.notices.note_child(tid, hit.pid)
            guest.notices.put((self._entry.handle, tid, time(), registers))


class HookCaller:
    """Calls the hooks of one remote client."""

    def __init__(self, seat: Absent, handle: Callable[[], Handle], *, told_first: bool) -> None:
        self.attached: Final = threading.Event()
        """Set when the client knows that it is there: nothing is told before ``ubpx_process_attached`` has returned."""
        if not told_first:
            self.attached.set()
        self._seat: Final = seat
        self._handle: Final = handle

    def __call__(self, name: str, /, **arguments: Any) -> Verdict | None:
        """What the peer's hook returns; an answer that is late holds the thread of a stop hook."""
        guest = self._seat.guest
        channel = guest.channel if guest is not None else None
        if channel is None or (name != ATTACHED and not self.attached.is_set()):
            return None
        tid = arguments.get("tid", 0)
        waits = name in STOP_HOOKS
        caller: Caller = self if waits else _Told(self._seat, name, self.attached if name == ATTACHED else None)
        answer = channel.hook(caller, self._handle(), tid, name, arguments)
        if name == ATTACHED and answer is not Unanswered.LATE:
            self.attached.set()
        if answer is None or isinstance(answer, Answer):
            with _understood(self._seat, lambda: name):
                return verdict_of(answer) if waits and answer is not None else None
        return _unusual(self._seat, tid, answer, Verdict.HOLD if waits else None, lambda: name)

    def settle(self, tid: int, answer: Answer | Raised) -> None:
        """A late answer has come; in a worker thread."""
        self._seat.settle(None, tid, answer)


class _Told:
    """Who is told of something, and whose answer may as well be late."""

    def __init__(self, seat: Absent, name: str, came: threading.Event | None) -> None:
        self._seat: Final = seat
        self._name: Final = name
        self._came: Final = came

    def settle(self, tid: int, answer: Answer | Raised) -> None:
        """Nothing is held for it; an exception counts."""
        del tid
        if isinstance(answer, Raised):
            with contextlib.suppress(UbpxError):  # it has left meanwhile
                self._seat.failed(answer.error, self._name)
        else:
            self._seat.strikes = 0
        if self._came is not None:
            self._came.set()


def verdict_of(answer: Answer) -> Verdict | None:
    """What a peer wants to happen; raises UsageError for a number that means nothing."""
    if answer.verdict is None:
        return None
    try:
        return Verdict(answer.verdict)
    except ValueError:
        raise UsageError(f"verdict {answer.verdict} is none; answer 0 to 3, or nil") from None


@contextlib.contextmanager
def _understood(seat: Absent, where: Callable[[], str]) -> Iterator[None]:
    """A prompt answer is made sense of: a success, or a failure in the same row as those that come late."""
    try:
        yield
    except UsageError as mistake:
        seat.failed(f"UsageError: {mistake}", where())
        raise
    seat.strikes = 0


def _unusual(
    seat: Absent, tid: int, answer: Raised | Unanswered | None, when_late: Verdict | None, where: Callable[[], str]
) -> Verdict | None:
    if answer is Unanswered.LATE:
        if when_late is not None:
            seat.keeps_waiting(tid)
        return when_late
    if isinstance(answer, Raised):
        seat.failed(answer.error, where())
        raise remote_failure(seat.name, answer.error)
    return None
