"""Who keeps which thread or process stopped. A hold is to a stop what a lease is to a trap."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Self

import attrs

from ubpx.core.values import ProcessId, ThreadId


@attrs.frozen(kw_only=True)
class Parting:
    """What the owner of a hold gives the thread along."""

    registers: Mapping[str, int]
    signal: int | None = None
    """Instead of the one that is due; None: as it is."""


NOTHING: Final = Parting(registers={})


class Hold:
    """One owner keeps one thread, or all threads of one process, stopped.

    Owned by the HoldTable until released; what is held runs again when nobody holds it.
    """

    __slots__ = ("_release", "owner", "process", "released", "thread")

    def __init__(
        self,
        owner: str,
        process: ProcessId,
        thread: ThreadId | None,
        release: Callable[["Hold", Parting], None],
    ) -> None:
        self.owner: Final = owner
        """The client's name, or ``ubpx`` itself."""
        self.process: Final = process
        self.thread: Final = thread
        """None: every thread of the process, those to come included."""
        self.released = False
        self._release = release

    def release(self, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """End it, first writing ``registers`` (by name) to the held thread. Again: does nothing.

        ``signal`` takes the place of the one that the thread stopped for; 0: it never sees that one.
        Raises UsageError for either with a hold of a whole process.
        """
        self._release(self, Parting(registers=registers or {}, signal=signal))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        what = f"thread {self.thread}" if self.thread is not None else f"process {self.process}"
        return f"<hold of {what} by {self.owner!r}{', released' if self.released else ''}>"


@attrs.define
class HoldTable:
    """All holds of one session."""

    _holds: list[Hold] = attrs.field(factory=list, init=False)

    def __iter__(self) -> Iterator[Hold]:
        return iter(tuple(self._holds))

    def take(self, hold: Hold) -> None:
        """Count a hold from now on."""
        self._holds.append(hold)

    def drop(self, hold: Hold) -> bool:
        """Count it no more; False if it was released before."""
        if hold.released:
            return False
        hold.released = True
        self._holds.remove(hold)
        return True

    def holds(self, process: ProcessId, thread: ThreadId, *, but_for: str | None = None) -> bool:
        """Whether anybody keeps this thread stopped; ``but_for`` is an owner whose holds do not count."""
        for hold in self._holds:  # a loop, since a thousand threads are asked about at each quiesce
            if hold.process == process and hold.owner != but_for and (hold.thread is None or hold.thread == thread):
                return True
        return False

    def on(self, process: ProcessId, thread: ThreadId) -> Iterator[Hold]:
        """The holds that concern one thread."""
        return (hold for hold in self._holds if hold.thread in (thread, None) and hold.process == process)

    def of(self, owner: str, process: ProcessId) -> tuple[Hold, ...]:
        """The holds of one owner in one process."""
        return tuple(hold for hold in self._holds if hold.owner == owner and hold.process == process)

    def in_process(self, process: ProcessId) -> tuple[Hold, ...]:
        """Everybody's holds in one process."""
        return tuple(hold for hold in self._holds if hold.process == process)

    def forget_thread(self, thread: ThreadId) -> None:
        """The thread is gone; so are the holds of it."""
        for hold in self:
            if hold.thread == thread:
                self.drop(hold)
