"""How a traced process ended, for whoever waits for it, and left for its parent to find."""

import os
import select
import subprocess
from typing import Any

from ubpx.core.spaces import TracedProcess


def exit_status(process: TracedProcess, popen: "subprocess.Popen[Any] | None", timeout: float | None) -> int | None:
    """Of a process whose last thread has gone; ``popen`` is that of one that we started. None after ``timeout``."""
    if popen is not None:
        try:
            return popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
    if process.own_child:
        return _peek(process.pid, timeout, unless_reaped=process.status)
    return process.status


def _peek(pid: int, timeout: float | None, *, unless_reaped: int | None) -> int | None:
    """The exit status of a child of this program, left for its parent to find; None after ``timeout``."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return unless_reaped
    try:
        if not select.select([descriptor], [], [], timeout)[0]:
            return None
        found = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return unless_reaped
    finally:
        os.close(descriptor)
    if found is None:
        return unless_reaped
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
