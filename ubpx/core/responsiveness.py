"""How soon the tracer thread gets the interpreter back from a Python thread of the host that computes.

CPython lets the running thread go on for a *switch interval* (5 ms unless told otherwise) before another that
waits gets its turn, so a hit would cost 5 ms more while the host computes in Python. While probes are armed the
interval is lowered for the whole interpreter, and afterwards put back; it costs nothing unless threads contend.
"""

import sys
import threading
from typing import Final

SWITCH_INTERVAL_S: Final = 50e-6

_lock: Final = threading.Lock()
_wanting: Final[set["Responsiveness"]] = set()
"""Global as what it changes is: the interpreter's one interval."""
_former: float | None = None
"""The interval that the host had; None while it is in force."""


class Responsiveness:
    """One session's wish for a short switch interval. Used by its tracer thread."""

    def __init__(self, interval_s: float | None = SWITCH_INTERVAL_S) -> None:
        self.interval_s = interval_s
        """None: leave the host's as it is."""
        self._wanted = False

    def want(self, *, wanted: bool) -> None:
        """From now on the interval is short, or this session does not need that any more."""
        if wanted == self._wanted or self.interval_s is None:
            return
        self._wanted = wanted
        with _lock:
            _wanting.add(self) if wanted else _wanting.discard(self)
            _apply()


def _apply() -> None:
    global _former  # noqa: PLW0603 - as _wanting
    intervals = [each.interval_s for each in _wanting if each.interval_s is not None]
    if intervals:
        if _former is None:
            _former = sys.getswitchinterval()
        sys.setswitchinterval(min(*intervals, _former))
    elif _former is not None:
        sys.setswitchinterval(_former)
        _former = None
