"""Ctrl-C and its like, while a program is traced.

A terminal sends its signals to a process group: a program that we started has got them too. What is
sent to us alone (``kill``) must be passed on, and nothing twice. Python is not told who else got a signal.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Witness:
    """A child in our process group that keeps the group's signals pending, where /proc shows them.

    The kernel gives a signal to all of a group before any of them runs on. The child ends with us, when
    the pipe that it reads closes.
    """

    def __init__(self) -> None:
        cat = shutil.which("cat", path=os.defpath) or "cat"
        reading, self._writing = os.pipe()
        files = [
            (os.POSIX_SPAWN_DUP2, reading, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        try:
            self.pid: Final = os.posix_spawn(cat, ["ubpx-witness"], {}, file_actions=files, setsigmask=SIGNALS)
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    def has_seen(self, number: int) -> bool:
        """Whether the signal was sent to the group, once or more."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("ShdPnd:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
        return False

    def close(self) -> None:
        """End it."""
        os.close(self._writing)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Relay:
    """Passes signals on to the program that we started, unless it got them as we did."""

    def __init__(self) -> None:
        self._witness = Witness()

    def pass_on(self, number: int, pid: int) -> None:
        """What we were sent, to the program; one that has ended does not mind."""
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == os.getpgrp() and self._witness.has_seen(number):
                self._witness.close()  # it has served: what is pending says nothing of the next one
                self._witness = Witness()
            else:
                os.kill(pid, number)

    def close(self) -> None:
        """End the witness."""
        self._witness.close()


@contextlib.contextmanager
def caught(tell: Callable[[int], None], *, also_ignored: bool) -> Iterator[None]:
    """Inside, ``tell(signal)`` instead of being ended; what a caller of ours had ignored stays so.

    With ``also_ignored`` SIGINT and SIGTERM are told nevertheless: a shell ignores SIGINT for what it starts
    in the background, and a trace that nobody else can end must end by ``kill -INT``.
    """

    def handle(number: int, _: FrameType | None) -> None:
        tell(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    wanted = [
        number
        for number in SIGNALS
        if before[number] is not signal.SIG_IGN or (also_ignored and number is not signal.SIGHUP)
    ]
    for number in wanted:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, before[number])
