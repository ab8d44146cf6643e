"""Hits in mode ``notify``: queued by the tracer thread, sent in batches by the event loop.

The interpreter is shared with the tracer thread, so the event loop must do little: one timer serves all
connections, and rests several times as long as its last round took.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from ubpx_froggy.messages import Handle, Hits

Record = tuple[Handle, int, float, bytes]
"""See ``messages.Hits``."""

INTERVAL_S: Final = 0.01
"""Between two rounds, at least."""
_REST: Final = 6
"""So many times as long as a round took, the event loop leaves the interpreter to the tracer thread."""
BATCH: Final = 1024
"""Records in one message."""


class Notices:
    """What waits to be sent to one connection. Bounded: what comes when it is full is counted, and dropped."""

    def __init__(self, limit: int, send: Callable[[Hits], bool], mailer: "Mailer") -> None:
        self._limit: Final = limit
        self._send: Final = send
        """False: the peer does not read just now."""
        self._mailer: Final = mailer
        self._records: Final[deque[Record]] = deque()
        self._dropped: Final[dict[Handle, int]] = {}
        self._told: Final[dict[Handle, int]] = {}
        self._processes: dict[int, int] = {}
        """By tid: which followed child's the hits are, of those that were queued since the queue was empty."""
        self.waiting = False
        """Whether the mailer knows that there is something."""

    def note_child(self, tid: int, pid: int) -> None:
        """The hits of this thread that are queued next are a followed child's; in the tracer thread."""
        self._processes[tid] = pid

    def put(self, record: Record) -> None:
        """Queue one hit; in the tracer thread."""
        if len(self._records) < self._limit:
            self._records.append(record)
        else:
            self._dropped[record[0]] = self._dropped.get(record[0], 0) + 1
        if not self.waiting:
            self.waiting = True
            self._mailer.wake(self)

    def dropped(self, lease: Handle) -> int:
        """How many hits of the lease were left out so far."""
        return self._dropped.get(lease, 0)

    def forget(self, lease: Handle) -> None:
        """It has ended, and its last count was told."""
        self._dropped.pop(lease, None)
        self._told.pop(lease, None)

    def flush(self) -> None:
        """Send what there is; in the event loop."""
        self.waiting = False
        records, dropped = self._records, self._changed()
        while records or dropped:
            count = min(len(records), BATCH)
            batch = [records.popleft() for _ in range(count)]
            processes = self._processes
            children = {tid: processes[tid] for _, tid, *_ in batch if tid in processes} if processes else {}
            if not self._send(Hits(batch, dropped, children)):
                records.extendleft(reversed(batch))
                self.waiting = True
                self._mailer.again(self)
                return
            self._told.update(dropped)
            dropped = {}
        if self._processes and not records:
            self._processes = {}

    def _changed(self) -> dict[Handle, int]:
        return {lease: count for lease, count in tuple(self._dropped.items()) if self._told.get(lease) != count}


class Mailer:
    """Flushes all connections' notices, each round at once. Owned by the broker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Final = loop
        self._dirty: Final[deque[Notices]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, notices: Notices) -> None:
        """There is something to send; from any thread."""
        self._dirty.append(notices)
        self._loop.call_soon_threadsafe(self._schedule, INTERVAL_S)

    def again(self, notices: Notices) -> None:
        """It could not be sent; in the event loop."""
        self._dirty.append(notices)

    def _schedule(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._round)

    def _round(self) -> None:
        began = monotonic()
        self._timer = None
        for _ in range(len(self._dirty)):
            self._dirty.popleft().flush()
        if self._dirty:
            self._schedule(max(INTERVAL_S, _REST * (monotonic() - began)))
