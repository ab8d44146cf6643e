"""Hits whose threads have gone on: kept in order, and given to their handlers by a thread of their own."""

import threading
from queue import SimpleQueue
from typing import Final, Protocol

from ubpx_froggy.client.handling import Handling, Leased
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.messages import Handle, Hits
from ubpx_froggy.wire import WireError

LIMIT: Final = 65_536
"""So many hits may wait for slow handlers; more are dropped, and counted."""


class Owner(Protocol):
    """The link, as its notices need it."""

    @property
    def handling(self) -> Handling:
        """Where handlers run."""
        ...

    @property
    def roster(self) -> Roster:
        """Where what is left out is counted."""
        ...

    def await_grant(self, handle: Handle) -> Leased | None:
        """The lease of a hit, whose grant may still be on its way; None if it was given back."""
        ...

    def break_off(self, reason: str) -> object:
        """What the broker says cannot be used."""
        ...


class Notices:
    """The hits in mode ``notify`` of one connection. Owned by its link."""

    def __init__(self, owner: Owner) -> None:
        self._owner: Final = owner
        self._queue: Final[SimpleQueue[Hits | threading.Event | None]] = SimpleQueue()
        self._taken = 0
        """Hits that have come; written by the link's reader alone."""
        self._served = 0
        """Those of them that are done; written by our thread alone."""
        self._thread: threading.Thread | None = None

    def put(self, message: Hits) -> None:
        """Keep what has come for the handlers; in the link's reader, which never waits for them."""
        roster = self._owner.roster
        roster.dropped_there.update(message.dropped)
        if self._taken - self._served + len(message.records) > LIMIT:
            for lease, *_ in message.records:
                roster.drop(lease)
            return
        self._taken += len(message.records)
        self._queue.put(message)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ubpx-notices", daemon=True)
            self._thread.start()

    def flush(self, timeout: float) -> None:
        """Wait until the handlers have had all that has come so far, or for ``timeout`` seconds.

        From a handler: does nothing, for it would wait for itself.
        """
        if self._thread is not None and not self._owner.handling.is_here:
            done = threading.Event()
            self._queue.put(done)
            done.wait(timeout)

    def end(self) -> None:
        """Nothing more comes."""
        self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, unless the caller is in it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        with self._owner.handling.running_here():
            while (item := self._queue.get()) is not None:
                if isinstance(item, threading.Event):
                    item.set()
                else:
                    self._serve(item)

    def _serve(self, message: Hits) -> None:
        for handle, thread, moment, registers in message.records:
            lease = self._owner.await_grant(handle)
            if lease is None or lease.handler is None:
                self._owner.roster.drop(handle)
            else:
                try:
                    self._owner.handling.notice(lease, thread, moment, registers, message.processes.get(thread, 0))
                except WireError as error:
                    self._owner.break_off(str(error))
                    return
            self._served += 1
