"""The targets that the Ptrace objects of one program share: one tracer for each process, left by the last of them."""

import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ptrace.debugger import ChildError

import ubpx


class SharedTarget:
    """One target, and how many Ptrace objects use it. Owned by the pool, and guarded by its lock."""

    def __init__(self, target: ubpx.Target, session: ubpx.Session | None) -> None:
        self.target: Final = target
        self.session: Final = session
        """To be closed with it; None for a target that belongs to somebody else."""
        self.users = 0


class TargetPool:
    """Every target in use, by pid."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._shared: Final[dict[int, SharedTarget]] = {}

    def spawn(self, arguments: Sequence[str], options: Mapping[str, Any]) -> int:
        """Start a program for the first that joins; its pid. Raises UsageError if it cannot be started."""
        session = ubpx.Session()
        try:
            target = session.spawn(arguments, **options)
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._shared[target.pid] = SharedTarget(target, session)
        return target.pid

    def adopt(self, target: ubpx.Target) -> None:
        """Share a target that somebody else has attached, and will detach."""
        with self._lock:
            self._shared.setdefault(target.pid, SharedTarget(target, None))

    def join(self, pid: int) -> SharedTarget:
        """Use the target of this process; attach if nobody has. Raises what ``ubpx.attach`` does."""
        with self._lock:
            shared = self._shared.get(pid)
            if shared is None:
                session = ubpx.Session()
                try:
                    shared = self._shared[pid] = SharedTarget(session.attach(pid), session)
                except BaseException:
                    session.close()
                    raise
            shared.users += 1
            return shared

    def forget(self, shared: SharedTarget) -> None:
        """The process has ended: whoever joins next means another one."""
        with self._lock:
            if self._shared.get(shared.target.pid) is shared:
                del self._shared[shared.target.pid]

    def leave(self, shared: SharedTarget) -> None:
        """Use it no more; the last one detaches."""
        with self._lock:
            shared.users -= 1
            if shared.users:
                return
            if self._shared.get(shared.target.pid) is shared:
                del self._shared[shared.target.pid]
            if shared.session is not None:
                shared.session.close()


POOL: Final = TargetPool()
"""The one of this program: two tracers cannot have one process, and one program is one tracer."""


def createChild(
    arguments: Sequence[str],
    no_stdout: bool,
    env: Mapping[str, str] | None = None,
    close_fds: bool = True,
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program, stopped at its entry point with its libraries mapped; its pid, for ``addProcess``.

    ``no_stdout`` sends its output and errors to /dev/null; the rest as for ``subprocess.Popen``.
    Raises ChildError if it cannot be started.
    """
    options: dict[str, Any] = {"env": env, "close_fds": close_fds, "pass_fds": tuple(pass_fds)}
    if no_stdout:
        options["stdout"] = options["stderr"] = subprocess.DEVNULL
    try:
        return POOL.spawn(list(arguments), options)
    except ubpx.UbpxError as error:
        raise ChildError(str(error)) from None
