"""Handlers that take too long: Python code is interrupted, and the program goes on.

A watchdog thread looks at the handler that runs and, past the deadline, raises HandlerOverran in the
tracer thread (PyThreadState_SetAsyncExc). It is never delivered outside the handler: after each
handler the tracer thread looks whether an alarm was raised and, if so, takes it back under the lock
that the watchdog held while it raised it. Code that blocks in C cannot be interrupted; its alarm is
delivered when it returns, and its client is then quarantined at once.
"""

import ctypes
import logging
import threading
from time import monotonic
from typing import Any, Final

DEADLINE_S: Final = 1.0
"""How long a handler may run."""
GRACE_S: Final = 0.5
"""A handler that an alarm has not ended after so long was blocked in C."""
_LOOKS_PER_DEADLINE: Final = 4

_raise_in: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
_log = logging.getLogger("ubpx.deadlines")


class HandlerOverran(BaseException):
    """Raised inside a handler that runs past its deadline. Not an Exception, so that few swallow it."""


class Watchdog:
    """Watches the handlers that one tracer thread runs. Owned by that thread's coordinator.

    The tracer thread sets ``watched`` before a handler and clears it after; that, and a look at
    ``alarmed``, is all that the hot path pays.
    """

    def __init__(self) -> None:
        self.deadline_s = DEADLINE_S
        self.watched: Any = None
        """The hit whose handler runs now; compared by identity alone."""
        self.alarmed = False
        """An alarm was raised, and not yet taken back."""
        self.alarmed_at = 0.0
        self._seen: Any = None
        """What was watched at the last look."""
        self._began = self._alarmed_began = 0.0
        """When it was not watched yet; when that was which is alarmed."""
        self._lock: Final = threading.Lock()
        self._stop: Final = threading.Event()
        self._thread: threading.Thread | None = None
        self._tracer_thread = 0

    def start(self) -> None:
        """Watch the handlers of the calling thread; again: does nothing."""
        if self._thread is None:
            self._tracer_thread = threading.get_ident()
            self._thread = threading.Thread(target=self._watch, name="ubpx-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def calm(self) -> bool:
        """Take an alarm back, in the tracer thread; whether the handler had kept it waiting, blocked in C."""
        with self._lock:
            _raise_in(self._tracer_thread, ctypes.py_object())  # NULL: whatever is still to be raised is dropped
            self.alarmed = False
        return monotonic() - self.alarmed_at > GRACE_S

    def ran_s(self, watched: Any) -> float:
        """For how long a handler has run, now that it is over: by less than the time between two looks too long.

        0.0 for one that no look has found. To be asked before it is watched no more, unless it has been alarmed.
        """
        if self.alarmed:
            return monotonic() - self._alarmed_began
        return monotonic() - self._began if self._seen is watched else 0.0

    def _watch(self) -> None:
        since = looked = monotonic()
        while not self._stop.wait(self.deadline_s / _LOOKS_PER_DEADLINE):
            watched, now = self.watched, monotonic()
            before, looked = looked, now
            if watched is not self._seen:
                self._began, since = before, now
                self._seen = watched
            elif watched is not None and now - since >= self.deadline_s:
                self._alarm(watched, now - since)

    def _alarm(self, watched: Any, ran_s: float) -> None:
        with self._lock:
            first = not self.alarmed
            if first:
                self.alarmed_at, self._alarmed_began = monotonic(), self._began
            self.alarmed = True
            if self.watched is watched:
                _raise_in(self._tracer_thread, HandlerOverran)
        if first:
            _log.warning("a handler has run for over %.1f s, and its thread waits: %r", ran_s, watched)
