"""Looks from time to time whether traps still stand: a program that changes its code tells nobody.

A thread of its own posts the look to the tracer thread, while probes are armed.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Final

from ubpx._errors import UsageError

PERIOD_S: Final = 1.0
"""So long after a change it is noticed at the latest, unless looking takes long."""
_MOST_OF_TIME: Final = 100
"""Looking takes one part of so many of the tracer thread's time at most."""

Post = Callable[[Callable[[], None]], "Future[None]"]
"""Have something done in the tracer thread; raises UsageError once that has ended."""


class Patrol:
    """The looks of one session. Owned by its tracer thread."""

    def __init__(self, look: Callable[[], None], post: Post) -> None:
        self.period_s = PERIOD_S
        self._look: Final = look
        self._post: Final = post
        self._cost_s = 0.0
        """Of the last look."""
        self._wanted = False
        self._stop: Final = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, *, wanted: bool) -> None:
        """From now on there is something to look at, or nothing any more."""
        self._wanted = wanted
        if wanted and self._thread is None:
            self._thread = threading.Thread(target=self._walk, name="ubpx-patrol", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _walk(self) -> None:
        last: Future[None] | None = None
        while not self._stop.wait(max(self.period_s, _MOST_OF_TIME * self._cost_s)):
            if self._wanted and (last is None or last.done()):
                try:
                    last = self._post(self._timed_look)
                except UsageError:  # closed
                    return

    def _timed_look(self) -> None:
        began = monotonic()
        self._look()
        self._cost_s = monotonic() - began
