"""Holds in a broker's target, with the face of ``ubpx.Hold``."""

from collections.abc import Iterable, Mapping
from typing import Final, Generic, Protocol, Self, TypeVar

from ubpx import PermissionRefused, UbpxError, UsageError
from ubpx.core.values import ProcessId, ThreadId
from ubpx_froggy.client.checks import checked_parting
from ubpx_froggy.client.conversation import Ending
from ubpx_froggy.messages import HoldInfo, ReleaseHold


class KnownDesk(Protocol):
    """What is known of holds without asking."""

    @property
    def ending(self) -> Ending | None:
        """How the connection has ended; None while it has not."""
        ...


class Desk(KnownDesk, Protocol):
    """Where questions about holds go."""

    def hold_infos(self) -> list[HoldInfo]:
        """Everybody's holds; raises what requests raise."""
        ...

    def release_hold(self, parting: ReleaseHold) -> None:
        """End one of ours; raises what the broker answers."""
        ...


D = TypeVar("D", bound=KnownDesk)


class KnownHold(Generic[D]):
    """One owner's hold, as far as we know."""

    def __init__(self, info: HoldInfo, desk: D) -> None:
        self.owner: Final = info.owner
        """The client's name, or ``ubpx`` itself."""
        self.process: Final = ProcessId(info.process)
        self.thread: Final = None if info.thread is None else ThreadId(info.thread)
        """None: every thread of the process, those to come included."""
        self._handle: Final = info.hold
        self._desk: Final = desk
        self._released = False

    @property
    def _is_over(self) -> bool:
        """Whether it has ended, as far as we know."""
        return self._released or self._desk.ending is not None

    def _take(self, infos: Iterable[HoldInfo]) -> None:
        """The broker has said which holds there are."""
        self._released = not any(self._is_told_by(info) for info in infos)

    def _is_told_by(self, info: HoldInfo) -> bool:
        if self._handle is not None:
            return info.hold == self._handle
        return info.hold is None and info.owner == self.owner and info.thread == self.thread

    def _parting(self, registers: Mapping[str, int] | None, signal: int | None) -> ReleaseHold:
        """The request that ends it; raises UsageError, and PermissionRefused for a hold of another connection."""
        if self._handle is None:
            cause = f"the hold is one of client {self.owner!r}, of another connection"
            raise PermissionRefused(self.process, cause, "have that client release it")
        written, number = checked_parting(registers, signal)
        if self.thread is None and (written is not None or number is not None):
            raise UsageError("registers and a signal go with the release of one thread's hold only")
        return ReleaseHold(self._handle, written, number)

    def __repr__(self) -> str:
        what = f"thread {self.thread}" if self.thread is not None else f"process {self.process}"
        return f"<hold of {what} by {self.owner!r}{', released' if self._released else ''}>"


class RemoteHold(KnownHold[Desk]):
    """One owner keeps one thread, or all threads of one process, stopped.

    What is held runs again when nobody holds it. The hold of another connection can be seen, and not released.
    """

    @property
    def released(self) -> bool:
        """Whether it has ended; the broker is asked."""
        if self._is_over:
            return True
        try:
            infos = self._desk.hold_infos()
        except UbpxError:
            return self._desk.ending is not None
        self._take(infos)
        return self._released

    def release(self, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """End it, first writing ``registers`` (by name) to the held thread. Again: does nothing.

        ``signal`` takes the place of the one that the thread stopped for; 0: it never sees that one.
        Raises UsageError for either with a hold of a whole process, and PermissionRefused for a hold of another
        connection.
        """
        if self._is_over:
            return
        self._desk.release_hold(self._parting(registers, signal))
        self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
