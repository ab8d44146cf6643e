"""Keeps a traced child of our own program from its parent's waits while it is traced.

A process that traces its own child is given the child's ptrace stops by *every* wait for it, in any
of its threads: the kernel takes a tracee that is one's own child for a tracee only (wait_consider_task
in kernel/exit.c), so ``Popen.poll()`` of the embedding program would report a stop as an end, and
the stop would be lost to the tracer. So while such a child is traced, waits for it find it running;
they go on when it is let go, which is before it can be reaped.

A wait that is blocked already cannot be kept away: ``is_waited_for`` finds it, and the attach is refused.
Waits for *any* child (``os.wait()``, ``os.wait3()``, ``os.waitpid(-1, ...)``) cannot be kept apart; see
docs/how-to/embed.md.
"""

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from ubpx_ptracepp import procfs

waitpid: Final = os.waitpid
"""The real one; what the tracer itself uses."""
waitid: Final = os.waitid
"""As ``waitpid``."""
_wait4: Final = os.wait4
_poll: Final[Any] = vars(subprocess.Popen)["_internal_poll"]

_WAIT4: Final = "61"  # x86_64's numbers, as /proc/PID/syscall prints them
_WAITID: Final = "247"
_ANY_CHILD: Final = 0xFFFF_FFFF
_WNOTHREAD: Final = 0x2000_0000
_HAND_OVER_S: Final = 0.1
"""At most so long after taking a status the tracer thread has handed it over."""
T = TypeVar("T")
_sessions = 0
_lock: Final = threading.Lock()
_kept: Final[dict[int, threading.Event]] = {}
"""By pid: set when the child is let go. Global as what it guards is: the children of this process."""
_statuses: Final[dict[int, int]] = {}
"""By pid: wait statuses that the tracer had to take, for the parent to find."""


def _waitpid(pid: int, options: int, /) -> tuple[int, int]:
    if _runs(pid, options):
        return (0, 0)
    return _wait_or_find(pid, lambda: waitpid(pid, options), lambda status: (pid, status))


def _waitpid4(pid: int, options: int) -> tuple[int, int, resource.struct_rusage]:
    usage = resource.struct_rusage([0] * 16)  # of one whose status the tracer had to take nothing is known
    if _runs(pid, options):
        return (0, 0, usage)
    return _wait_or_find(pid, lambda: _wait4(pid, options), lambda status: (pid, status, usage))


def _waitid(idtype: int, ident: int, options: int, /) -> os.waitid_result | None:
    pid = _pid_of(idtype, ident)
    if pid is None:
        return waitid(idtype, ident, options)
    if _runs(pid, options):
        return None
    if options & os.WNOWAIT and pid in _statuses:
        return _as_waitid(pid, _statuses[pid])
    return _wait_or_find(pid, lambda: waitid(idtype, ident, options), lambda status: _as_waitid(pid, status))


def _runs(pid: int, options: int) -> bool:
    """Whether a traced child is to be found running; one who would wait for it waits until it is let go."""
    while (let_go := _kept.get(pid)) is not None:
        if options & os.WNOHANG:
            return True
        let_go.wait()
    return False


def _wait_or_find(pid: int, wait: Callable[[], T], found: Callable[[int], T]) -> T:
    status = _statuses.pop(pid, None)
    if status is None:
        try:
            return wait()
        except ChildProcessError:
            status = _taken(pid)
            if status is None:
                raise
    _uninstall_when_idle()
    return found(status)


def _pid_of(idtype: int, ident: int) -> int | None:
    """The one child that a waitid names; None if it names several."""
    if idtype == os.P_PIDFD:
        try:
            lines = Path(f"/proc/self/fdinfo/{ident}").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("Pid:")), None)
    return ident if idtype == os.P_PID else None


def _as_waitid(pid: int, status: int) -> os.waitid_result:
    code = os.waitstatus_to_exitcode(status)
    how = os.CLD_EXITED if code >= 0 else os.CLD_DUMPED if os.WCOREDUMP(status) else os.CLD_KILLED
    return os.waitid_result((pid, os.getuid(), signal.SIGCHLD, abs(code), how))


def _taken(pid: int) -> int | None:
    """The status of a child that the tracer thread took while we waited for it, once it has said so."""
    deadline = time.monotonic() + _HAND_OVER_S
    while pid not in _statuses and time.monotonic() < deadline and _sessions:
        time.sleep(_HAND_OVER_S / 100)
    return _statuses.pop(pid, None)


def _internal_poll(self: "subprocess.Popen[Any]", *args: Any, **kwargs: Any) -> Any:
    if self.pid in _kept and self.returncode is None:
        return None
    return _poll(self, *args, _waitpid=_waitpid, **kwargs)


def _set_waits(*, ours: bool) -> None:
    os.waitpid = _waitpid if ours else waitpid
    os.wait4 = _waitpid4 if ours else _wait4
    os.waitid = _waitid if ours else waitid
    # Popen keeps os.waitpid as a default argument, so that replacing that one is not enough.
    type.__setattr__(subprocess.Popen, "_internal_poll", _internal_poll if ours else _poll)


def is_waited_for(pid: int) -> bool:
    """Whether a thread of this program is blocked in a wait that would be given the stops of process ``pid``."""
    for name in os.listdir("/proc/self/task"):
        try:
            number, *words = Path(f"/proc/self/task/{name}/syscall").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if number not in (_WAIT4, _WAITID):
            continue
        arguments = [int(word, 16) for word in words[:4]]
        if number == _WAIT4 and arguments[0] & 0xFFFF_FFFF in (pid, _ANY_CHILD):
            return True
        named = arguments[0] == os.P_PID and arguments[1] & 0xFFFF_FFFF == pid
        if number == _WAITID and not arguments[3] & _WNOTHREAD and (named or arguments[0] == os.P_ALL):
            return True
    return False


def keep(pid: int) -> None:
    """From now on waits for this child find it running."""
    with _lock:
        if pid in _kept:
            return
        _statuses.pop(pid, None)  # of an earlier child with this pid, which nobody asked for
        _kept[pid] = threading.Event()
        _set_waits(ours=True)


def let_go(pid: int, status: int | None = None) -> None:
    """The child is traced no more, or has ended and the tracer had to take its wait ``status``.

    A pid that was not kept does no harm.
    """
    with _lock:
        event = _kept.get(pid)
        if event is None:
            return
        if status is not None:
            _statuses[pid] = status
        del _kept[pid]
        event.set()
    _uninstall_when_idle()


class KeptChildren:
    """The children of our own program that one tracer keeps. Owned by it."""

    def __init__(self) -> None:
        self._pids: Final[set[int]] = set()
        self._leaderless: Final[set[int]] = set()
        """Their leader is not traced; another thread may exec, and become the leader that is."""

    def __contains__(self, pid: int) -> bool:
        return pid in self._pids

    def keep(self, pid: int) -> None:
        """While it is traced, a child of our own is not for its parent to wait for; no other is kept."""
        self._leaderless.discard(pid)
        if procfs.is_own_child(pid):
            keep(pid)
            self._pids.add(pid)

    def let_go(self, pid: int, status: int | None = None) -> None:
        """As the function; a pid that is not kept here does no harm."""
        if pid in self._pids:
            self._pids.discard(pid)
            self._leaderless.discard(pid)
            let_go(pid, status)

    def leader_is_left(self, pid: int) -> None:
        """While other threads of it are traced it stays kept."""
        if pid in self._pids:
            self._leaderless.add(pid)

    def last_is_left(self, pid: int) -> None:
        """None of its threads is traced any more; how a traced leader ended is told by ``let_go``."""
        if pid in self._leaderless:
            self.let_go(pid)

    def let_go_all(self) -> None:
        """The tracer ends."""
        for pid in tuple(self._pids):
            self.let_go(pid)


def open_session() -> None:
    """A tracer thread starts: what handlers start are its children, and it sees their exits first."""
    global _sessions  # noqa: PLW0603 - as _kept
    with _lock:
        _sessions += 1
        _set_waits(ours=True)


def close_session() -> None:
    """A tracer thread ends."""
    global _sessions  # noqa: PLW0603 - as _kept
    with _lock:
        _sessions -= 1
    _uninstall_when_idle()


def hand_over(pid: int, status: int) -> None:
    """The tracer thread had to take the status of a child that it does not trace: somebody's, from a handler."""
    with _lock:
        _statuses[pid] = status
        _set_waits(ours=True)


def _uninstall_when_idle() -> None:
    with _lock:
        if not _kept and not _statuses and not _sessions:
            _set_waits(ours=False)
