"""What a stop means: wait statuses to events, and none is dropped."""

import contextlib
import ctypes
import errno
import os
import signal
from collections import deque
from typing import Any, Final

import attrs

from ubpx import SlotsExhausted, TargetGone
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx_ptracepp import procfs, waiting
from ubpx_ptracepp.abi import ORIG_RAX, RAX
from ubpx_ptracepp.commands import SI_ADDR, SI_CODE, ThreadCommands, siginfo
from ubpx_ptracepp.doorbell import Doorbell
from ubpx_ptracepp.guarding import Guards
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.parenthood import KeptChildren
from ubpx_ptracepp.processes import ProcessTable
from ubpx_ptracepp.requests import (
    PTRACE_CONT,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_EXIT,
    PTRACE_EVENT_STOP,
    PTRACE_EVENT_VFORK,
    SYSCALL_STOP,
    TASK_EVENTS,
    SyscallEntry,
    event_message,
    request,
    syscall_info,
)
from ubpx_ptracepp.tasks import PtraceThread, TaskTable

_TRAP_BRKPT: Final = 1
_TRAP_TRACE: Final = 2
_TRAP_HWBKPT: Final = 4
_STEP_ENDS: Final = frozenset({_TRAP_BRKPT, int(signal.SIGTRAP)})
"""Codes that no program can give: at the end of a stepped system call, and at a handler's first instruction."""
_FOR_GOOD: Final = 1 << 60
SELDOM: Final = 64
"""After so many stops of a thread its mask is looked at, at a site where SIGTRAP has not been found blocked."""
_MOST_SELDOM: Final = 16 * SELDOM
"""After so many the process's action is, too, whatever the mask is: that costs twenty times as much."""


class Stops(ThreadCommands):
    """The part of ``ports.Tracer`` that tells why threads stop, and who there is. Used in the tracer thread."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: Final = TaskTable()
        self._threads: Final = self._tasks.threads
        self._processes: Final = ProcessTable(self._take_status)
        self._guards: Final = Guards(self._processes)
        self._kept: Final = KeptChildren()
        self._doorbell: Doorbell | None = None
        self._queue: Final[deque[Any]] = deque()

    def _classify(self, tid: int, thread: PtraceThread | None, status: int) -> None:
        """Turn a wait status into an event; none is dropped."""
        if self._doorbell is not None and tid == self._doorbell.pid:
            self._doorbell.rearm()
            self._queue.append(events.Doorbell())
            return
        if thread is None:
            self._classify_unknown(tid, status)
            return
        if not os.WIFSTOPPED(status):
            self._kept.let_go(tid, status)
            self._queue.append(events.ThreadGone(thread, os.waitstatus_to_exitcode(status)))
            return
        thread.stops += 1
        if thread.trap_unblocked:
            self.block_trap_again(thread)
        self._enqueue(self._event_of(thread, status >> 16, os.WSTOPSIG(status)))

    def _event_of(self, thread: PtraceThread, event: int, number: int) -> Any:  # noqa: PLR0911 - one per kind of stop
        tid = thread.tid
        if event == 0:
            return self._syscall_event(thread) if number == SYSCALL_STOP else self._signal_event(thread, number)
        if event == PTRACE_EVENT_STOP:
            return self._interrupted(thread) if number == signal.SIGTRAP else events.GroupStopped(thread, number)
        message = event_message(tid)
        if message is None:
            return None  # killed meanwhile: its exit follows
        if event in TASK_EVENTS:
            self._appear(self._tasks.announced(message, thread))
            return events.TaskCreated(thread, ThreadId(message), event == PTRACE_EVENT_VFORK)
        if event == PTRACE_EVENT_EXEC:
            return self._exec_event(thread, message)
        if event == PTRACE_EVENT_EXIT:
            return events.ThreadExiting(thread, os.waitstatus_to_exitcode(message & 0xFFFF))
        return thread.interruption

    def _interrupted(self, thread: PtraceThread, *, fetched: bool = False) -> events.Interrupted:
        if thread.interrupted:  # which must not show in the call that the thread waited in
            thread.interrupted = False
            self._begin_again(thread, fetched=fetched)
        return thread.interruption

    def _signal_event(self, thread: PtraceThread, number: int) -> Any:
        info = siginfo(thread.tid)
        if info is None:
            return None
        code = _code(info)
        # A step over a system call is reported at its end, with the code that kill could not give either.
        address = VirtAddr(int.from_bytes(info[SI_ADDR : SI_ADDR + 8], "little"))
        if number == signal.SIGTRAP and (code == _TRAP_TRACE or (code in _STEP_ENDS and thread.stepping)):
            self._look_at_mask(thread, None)
            return events.StepDone(thread, self.noticed(thread) if thread.watching else (), address)
        if number == signal.SIGTRAP and code == _TRAP_HWBKPT and (noticed := self.noticed(thread)):
            self._look_at_mask(thread, None)
            return events.WatchHit(thread, noticed)
        self._begin_again(thread, number)
        return events.SignalArrived(thread, number, code, address)

    def _syscall_event(self, thread: PtraceThread) -> Any:
        found = syscall_info(thread.tid)
        if isinstance(found, SyscallEntry):
            waiting.call_entered(thread)
            if thread.rewound or not thread.reports_syscalls:
                thread.rewound = False
                return self._pass(thread)
            thread.call = found.number
            return events.SyscallEntered(thread, found.number, found.arguments)
        if found is None:
            return None  # killed meanwhile: its exit follows
        waiting.call_left(thread, found.result)
        if self._begins_again(thread, found.result):
            thread.rewound = thread.call >= 0
            return self._pass(thread)
        if not thread.reports_syscalls and thread.call < 0:
            return self._pass(thread)
        number, thread.call = thread.call, -1
        if number < 0 and self.fetch(thread):  # it was in the call before its calls were reported
            number = thread.words[ORIG_RAX] & self._processes.abi(thread.pid).mask
        return events.SyscallExited(thread, number, found.result)

    def _pass(self, thread: PtraceThread) -> None:
        """A system call's stop that nobody is told of; like any stop it has ended an interrupt that was due."""
        if thread.interrupted:
            self.interrupt(thread)
        self.resume(thread)

    def _begins_again(self, thread: PtraceThread, result: int) -> bool:
        """Whether a system call ends only because of our interrupt, and will be begun again at its stop."""
        if result != -errno.EINTR or not (thread.interrupted and self.fetch(thread)):
            return False
        return waiting.begin_again(thread.words, self._processes.abi(thread.pid))

    def _exec_event(self, thread: PtraceThread, former: int) -> events.Execed:
        if former != thread.tid:
            self._threads.pop(former, None)
        self._kept.keep(thread.pid)  # again, if its former leader had exited
        self._processes.forget(thread.pid)
        self._guards.forget(thread.pid)
        thread.set_limit(None)
        thread.call = -1  # this one ends under the new program's number for it, which the kernel sees to
        return events.Execed(thread, ThreadId(former))

    def _begin_again(self, thread: PtraceThread, signal: int | None = None, *, fetched: bool = False) -> None:
        """No EINTR because of us: of our interrupt, or of a signal that wakes the thread only because it is traced.

        ``fetched``: its ``words`` are up to date.
        """
        if not (fetched or self.fetch(thread)):
            return
        if thread.limit is None and not waiting.may_begin_again(thread.words[RAX]):
            return
        abi = self._processes.abi(thread.pid)
        if waiting.begin_again(thread.words, abi) and (signal is None or waiting.would_not_wake(thread.tid, signal)):
            if not thread.rewound:
                waiting.limit_wait(thread, abi, lambda: self.memory(thread.pid))
            self.store(thread)
        elif not waiting.is_to_begin_again(thread.words):
            thread.set_limit(None)
        elif signal is not None:  # if it has a handler, the call ends with EINTR after all
            thread.set_limit(None)
            thread.rewound = False

    def _classify_unknown(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._kept.let_go(tid, status)
            self._forget_if_left(self._tasks.never_came(tid))
            gone = PtraceThread(ThreadId(tid), ProcessId(tid))
            self._queue.append(events.ThreadGone(gone, os.waitstatus_to_exitcode(status)))
            return
        if status >> 16 == PTRACE_EVENT_EXIT:  # killed before its first instruction: its end follows
            request(PTRACE_CONT, tid)
            return
        pid = ProcessId(int(procfs.status(tid).get("Tgid", "0")))
        if status >> 16 == PTRACE_EVENT_EXEC and self._tasks.knows(pid):
            thread = PtraceThread(ThreadId(tid), pid)
            self._tasks.add([thread])
            self._queue.append(self._exec_event(thread, event_message(tid) or tid))
            return
        event = self._tasks.appeared(tid, pid)
        if event is not None and os.WSTOPSIG(status) != signal.SIGTRAP:
            event = attrs.evolve(event, group_signal=os.WSTOPSIG(status))
        self._appear(event)

    def _appear(self, event: events.ThreadAppeared | None) -> None:
        if event is not None and event.shares_memory and event.process != event.parent:
            self._share(event.process, event.parent)
        self._enqueue(event)
        if event is not None:
            self._forget_if_left(event.parent)  # it may have waited for this one alone

    def _enqueue(self, event: Any) -> None:
        if event is not None:
            self._queue.append(event)

    def _take_status(self, thread: PtraceThread, status: int) -> None:
        self._classify(thread.tid, thread, status)

    # Whom there is --------------------------------------------------------------------------

    def _look_at_mask(self, thread: PtraceThread, site: Site | None) -> None:
        """A trap that SIGTRAP was blocked for has undone the process's action for it, and the thread's mask."""
        guard = self._guards.of(thread.pid)
        found = False
        with contextlib.suppress(TargetGone, SlotsExhausted):  # its end follows; or it will not be helped
            thoroughly = site is not None and (site.watchful > 0 or thread.stops % _MOST_SELDOM < SELDOM)
            found = guard is not None and self._guards.repair(thread, guard, thoroughly=thoroughly)
        if site is not None:
            site.watchful = _FOR_GOOD if found else max(site.watchful - 1, 0)
            express = site.landing is not None and not site.watchful
            site.landing_word = ctypes.c_ulong.from_param(site.landing) if express else None

    def _share(self, child: ProcessId, parent: ProcessId) -> None:
        """The child lives in its parent's memory."""
        self._processes.share(child, parent)
        self._guards.share(child, parent)

    def _forget_if_left(self, pid: ProcessId) -> None:
        if not self._tasks.knows(pid):
            self._guards.forget(pid)
            self._processes.forget(pid)
            self._kept.last_is_left(pid)

    def memory(self, pid: ProcessId) -> ProcessMemory:
        """The memory of now."""
        return self._processes.memory(pid)


def _code(info: bytes) -> int:
    return int.from_bytes(info[SI_CODE : SI_CODE + 4], "little", signed=True)
