"""Seizing: all threads of a process, or none."""

import contextlib
import ctypes
import errno
import os
import signal
import threading
from typing import Final

from ubpx import PtraceFailed, UbpxError, UsageError
from ubpx.core.values import ProcessId, ThreadId
from ubpx_ptracepp import parenthood, procfs
from ubpx_ptracepp.injection import wait_for
from ubpx_ptracepp.requests import (
    OPTIONS,
    PTRACE_DETACH,
    PTRACE_EVENT_STOP,
    PTRACE_GETREGS,
    PTRACE_INTERRUPT,
    PTRACE_SEIZE,
    PTRACE_SETREGS,
    request,
    shares_memory,
)
from ubpx_ptracepp.tasks import PtraceThread
from ubpx_ptracepp.waiting import begin_again

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
            known = len(self.threads)
            for tid in now:
                if tid not in self.threads and _seize_one(pid, tid):
                    self.threads[tid] = PtraceThread(ThreadId(tid), pid)  # at once: the next may be refused
            if now == before and len(self.threads) == known:
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
        for tid, thread in self.threads.items():
            with contextlib.suppress(ChildProcessError):
                request(PTRACE_INTERRUPT, tid)
                status = wait_for(tid)
                if status is None:
                    continue
                if os.WIFSTOPPED(status):
                    self._leave(thread, status)
                else:
                    self._kept.let_go(tid, status)

    def _leave(self, thread: PtraceThread, status: int) -> None:
        """A stopped one, which does not notice that it was stopped."""
        by_us = status >> 16 == PTRACE_EVENT_STOP and os.WSTOPSIG(status) == signal.SIGTRAP
        if by_us and request(PTRACE_GETREGS, thread.tid, 0, ctypes.addressof(thread.buffer)):
            with contextlib.suppress(UbpxError):  # it may be of no architecture that we know: that is why it is left
                if begin_again(thread.words, procfs.abi(thread.pid)):
                    request(PTRACE_SETREGS, thread.tid, 0, ctypes.addressof(thread.buffer))
        request(PTRACE_DETACH, thread.tid, 0, 0 if status >> 16 else os.WSTOPSIG(status))


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
