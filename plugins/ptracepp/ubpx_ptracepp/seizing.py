"""Seizing: all threads of a process, or none."""

import contextlib
import errno
import os
import threading
from typing import Final

from ubpx import PtraceFailed, UsageError
from ubpx.core.values import ProcessId, ThreadId
from ubpx_ptracepp import parenthood, procfs
from ubpx_ptracepp.injection import wait_for
from ubpx_ptracepp.requests import OPTIONS, PTRACE_DETACH, PTRACE_INTERRUPT, PTRACE_SEIZE, request, shares_memory
from ubpx_ptracepp.tasks import PtraceThread

_TRIES: Final = 3
"""An exec may have put a leader in the place of one that was refused because it had exited."""


def check_seizable(pid: ProcessId) -> None:
    """Refuse what cannot be traced; only reads. Raises as ``Tracer.seize`` does."""
    procfs.check_attachable(pid)
    if procfs.is_own_child(pid) and parenthood.is_waited_for(pid):
        raise UsageError(
            f"a thread of this program is waiting for its child {pid} already, and the kernel would give it "
            "the tracer's stops; attach before waiting, or wait with a timeout (Popen.wait(timeout=...))"
        )


class Seizure:
    """One attach under way: what it has seized so far, to be taken over or abandoned."""

    def __init__(self, kept: parenthood.KeptChildren) -> None:
        self.threads: Final[dict[int, PtraceThread]] = {}
        self._kept: Final = kept

    def take(self, pid: ProcessId) -> None:
        """Seize the threads of one process, those too that are made meanwhile; and the leader that an exec makes."""
        before: list[int] = []
        while (now := self._list(pid)) != before or any(tid not in self.threads for tid in now):
            taken = [tid for tid in now if tid not in self.threads and _seize_one(pid, tid)]
            self.threads.update((tid, PtraceThread(ThreadId(tid), pid)) for tid in taken)
            if now == before and not taken:
                break
            before = now

    def _list(self, pid: ProcessId) -> list[int]:
        """The process's threads now; a leader that an exec has put in the place of the one that we seized is new."""
        if pid in self.threads and not _is_ours(pid):
            del self.threads[pid]
        return sorted(procfs.tids(pid))

    def take_children_in_flight(self, pid: ProcessId) -> None:
        """A vfork in flight would run into traps that nobody serves."""
        for child in procfs.children(pid):
            if shares_memory(child, next(iter(self.threads))):
                self.take(ProcessId(child))

    def abandon(self) -> None:
        """Let all of it go again."""
        for tid in self.threads:
            with contextlib.suppress(ChildProcessError):
                request(PTRACE_INTERRUPT, tid)
                status = wait_for(tid)
                if status is None:
                    continue
                if os.WIFSTOPPED(status):
                    plain = status >> 16
                    request(PTRACE_DETACH, tid, 0, 0 if plain else os.WSTOPSIG(status))
                else:
                    self._kept.let_go(tid, status)


def _seize_one(pid: ProcessId, tid: int) -> bool:
    for _ in range(_TRIES):
        try:
            return request(PTRACE_SEIZE, tid, 0, OPTIONS)
        except PtraceFailed as error:
            if error.error.errno != errno.EPERM:
                raise
            refusal = error
        if procfs.has_exited(tid):
            return False  # exited, a leader perhaps whose threads live on
        if _is_ours(tid):
            return False  # the thread that made it was traced already; it will appear
        if procfs.status(tid).get("TracerPid", "0") != "0":
            procfs.check_attachable(pid)
    raise procfs.explain_refusal(pid) from refusal


def _is_ours(tid: int) -> bool:
    return procfs.status(tid).get("TracerPid") == str(threading.get_native_id())
