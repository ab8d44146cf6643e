"""Starting a program so that it is traced from its first instruction.

``subprocess`` starts it, so every option means what it means there; the child waits at a gate
right before its exec until the tracer has it.
"""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ubpx import UsageError
from ubpx.core.values import ProcessId


def _checked(argv: object) -> list[str]:
    if isinstance(argv, list | tuple) and argv and all(isinstance(word, str | os.PathLike) for word in argv):
        return [os.fspath(word) for word in argv]
    raise UsageError(f"argv is {argv!r}; give a list of strings: the program, then its arguments")


class Launch:
    """One program about to start. Used by the thread that asked for it, except ``pid``."""

    def __init__(self, argv: Sequence[str], options: Mapping[str, Any]) -> None:
        self._argv: Final = _checked(argv)
        announce, self._announced = os.pipe()[::-1]
        self._gate, self._go = os.pipe()
        self._announce: Final = announce
        self._options: Final = dict(options)
        self._popen: subprocess.Popen[Any] | None = None
        self._error: BaseException | None = None
        self._starter: Final = threading.Thread(target=self._start, name="ubpx-launch", daemon=True)
        self._starter.start()
        said = os.read(self._announced, 32)
        self.pid: Final = ProcessId(int(said)) if said else None
        """None: it could not even be forked; ``finish`` says why."""

    def _start(self) -> None:
        try:
            # The child makes three system calls between fork and exec, and takes no lock that a thread may hold.
            self._popen = subprocess.Popen(self._argv, preexec_fn=self._wait_at_gate, **self._options)  # noqa: PLW1509
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in finish()
            self._error = error
        finally:
            os.close(self._announce)

    def _wait_at_gate(self) -> None:
        """Runs in the child, between fork and exec."""
        os.close(self._go)
        os.write(self._announce, b"%d" % os.getpid())
        os.read(self._gate, 1)

    def go(self) -> None:
        """Open the gate: the child execs. From any thread."""
        os.write(self._go, b"g")

    def finish(self) -> "subprocess.Popen[Any]":
        """The started program, once its exec has happened.

        Raises UsageError if it could not be started; then nothing of it is left.
        """
        self._starter.join()
        for descriptor in (self._announced, self._gate, self._go):
            os.close(descriptor)
        if self._popen is None:
            cause = self._error
            what = cause.strerror if isinstance(cause, OSError) and cause.strerror else repr(cause)
            raise UsageError(f"cannot start {self._argv[0]!r}: {what}; check its path and permissions") from cause
        return self._popen
