"""What wakes the tracer thread out of its wait.

A signal to a thread does not end ``os.waitid`` there (PEP 475). A stop of something that the thread
traces does: so it traces a small sleeping child, and whoever wants it to wake sends that a signal.
The child sleeps in reading a pipe of ours, so that it ends with us before it is traced, too.
"""

import contextlib
import os
import shutil
import signal
from typing import Final

from ubpx import PtraceFailed, UsageError
from ubpx_ptracepp.parenthood import waitpid
from ubpx_ptracepp.requests import PTRACE_CONT, PTRACE_O_EXITKILL, PTRACE_SEIZE, WAIT_THREAD, request


class Doorbell:
    """A child of the tracer thread; dies with it, whatever happens (PTRACE_O_EXITKILL)."""

    def __init__(self) -> None:
        cat = shutil.which("cat", path=os.defpath)
        if cat is None:
            raise UsageError(f"no 'cat' in {os.defpath}, which the tracer is woken by; install coreutils")
        # A process group of its own keeps the terminal's Ctrl-C away. Not a session of its own: under load the
        # scheduler's new autogroup starved the child for more than 60 s before its exec (measured, Linux 6.18).
        ours, self._lifeline = os.pipe()
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (1, 2)]
        files = [(os.POSIX_SPAWN_DUP2, ours, 0), *null]
        try:
            self.pid: Final = os.posix_spawn(cat, ["ubpx-doorbell"], {}, file_actions=files, setpgroup=0)
        finally:
            os.close(ours)
        try:
            request(PTRACE_SEIZE, self.pid, 0, PTRACE_O_EXITKILL)
        except PtraceFailed:
            self.close()
            raise

    def ring(self) -> None:
        """From any thread."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGURG)

    def rearm(self) -> None:
        """It has stopped, and was heard."""
        request(PTRACE_CONT, self.pid)

    def close(self) -> None:
        """End it."""
        os.close(self._lifeline)
        # Once our program has become another user it may not kill it; without its lifeline it ends by itself.
        with contextlib.suppress(ProcessLookupError, ChildProcessError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
            while not os.WIFSIGNALED(waitpid(self.pid, WAIT_THREAD)[1]):
                pass
