"""What wakes the tracer thread out of its wait.

A signal to a thread does not end ``os.waitid`` there (PEP 475). A stop of something that the thread
traces does: so it traces a small sleeping child, and whoever wants it to wake sends that a signal.
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
        sleep = shutil.which("sleep", path=os.defpath)
        if sleep is None:
            raise UsageError(f"no 'sleep' in {os.defpath}, which the tracer is woken by; install coreutils")
        # A process group of its own keeps the terminal's Ctrl-C away. Not a session of its own: under load the
        # scheduler's new autogroup starved the child for more than 60 s before its exec (measured, Linux 6.18).
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        self.pid: Final = os.posix_spawn(sleep, ["ubpx-doorbell", "infinity"], {}, file_actions=null, setpgroup=0)
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
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            while not os.WIFSIGNALED(waitpid(self.pid, WAIT_THREAD)[1]):
                pass
