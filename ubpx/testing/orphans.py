"""What a program leaves behind when it ends: it is found, and ended."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final, Self

_SET_CHILD_SUBREAPER: Final = 36
_GET_CHILD_SUBREAPER: Final = 37
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.01


class Orphans:
    """Adopts those whose parents have ended (``PR_SET_CHILD_SUBREAPER`` of prctl(2)), and ends them on leaving.

    Owned by one thread of a process that starts nothing else meanwhile: a child that was not there before is the
    program, or one of its descendants. They see this process as their parent, however they are run.
    """

    def __init__(self) -> None:
        self._prctl: Final = ctypes.CDLL(None, use_errno=True).prctl
        self._before: Final = ctypes.c_int()
        self._spared: set[int] = set()

    def __enter__(self) -> Self:
        self._prctl(_GET_CHILD_SUBREAPER, ctypes.byref(self._before), 0, 0, 0)
        self._prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._spared = children()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
        self._prctl(_SET_CHILD_SUBREAPER, self._before.value, 0, 0, 0)

    def spare_all_but(self, pid: int) -> None:
        """The children that are there now, of which ``pid`` alone is a program's."""
        self._spared = children() - {pid}

    def end(self) -> set[int]:
        """Kill them, and those that they leave; the pids of whoever is there nevertheless.

        Nobody else may wait for them meanwhile: a tracer has left them.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (left := children() - self._spared) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(_PAUSE_S)
        return left


def children() -> set[int]:
    """The pids of this process's children, those that have ended and were not waited for included."""
    found, me = set(), os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                _, _, rest = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(") ")
                if int(rest.split()[1]) == me:
                    found.add(int(entry))
    return found
