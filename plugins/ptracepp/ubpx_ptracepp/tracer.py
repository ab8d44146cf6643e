"""The tracer: waits for what it traces, serves arrivals at sites, and says why a thread stopped.

Everything but ``ring`` runs in the session's tracer thread, which owns all ptrace requests: any
other thread's would fail with ESRCH, and that thread's end is the tracer's death.
"""

import contextlib
import ctypes
import errno
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from ubpx import SlotsExhausted, TargetGone
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import Disturbance, MappedRange, ProcessId, ThreadId, VirtAddr
from ubpx_ptracepp import parenthood, procfs, waiting
from ubpx_ptracepp.abi import ABIS, CALL_INSN_SIZE, ORIG_RAX, RAX, RIP
from ubpx_ptracepp.commands import SI_ADDR, SI_CODE, SIGINFO_SIZE, ThreadCommands, siginfo
from ubpx_ptracepp.doorbell import Doorbell
from ubpx_ptracepp.guard.remains import GuardRemains
from ubpx_ptracepp.guard.table import GuardTable
from ubpx_ptracepp.guarding import FindPlace, Guards
from ubpx_ptracepp.injection import signal_mask, wait_for
from ubpx_ptracepp.launch import Launch
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.parenthood import KeptChildren, waitid, waitpid
from ubpx_ptracepp.processes import ProcessTable
from ubpx_ptracepp.requests import (
    PEEK,
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_EXIT,
    PTRACE_EVENT_STOP,
    PTRACE_EVENT_VFORK,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_INTERRUPT,
    PTRACE_POKEUSER,
    SYSCALL_STOP,
    TASK_EVENTS,
    WAIT_THREAD,
    SyscallEntry,
    event_message,
    quick,
    request,
    syscall_info,
)
from ubpx_ptracepp.seizing import Seizure, check_seizable
from ubpx_ptracepp.tasks import PtraceThread, TaskTable

_TRAP_STATUS: Final = signal.SIGTRAP << 8 | 0x7F
_RIP_OFFSET: Final = ctypes.c_long(RIP * 8)
_SI_CODE_WORD: Final = SI_CODE // 4
_SI_KERNEL: Final = 0x80
_NO_CALL: Final = 0xFFFF_FFFF_FFFF_FFFF
"""In orig_rax: the thread is in no system call, or this one is not to be made."""
_TRAP_BRKPT: Final = 1
_TRAP_TRACE: Final = 2
_TRAP_HWBKPT: Final = 4
_STEP_ENDS: Final = frozenset({_TRAP_BRKPT, int(signal.SIGTRAP)})
"""Codes that no program can give: at the end of a stepped system call, and at a handler's first instruction."""
_SELDOM: Final = 64
"""After so many stops of a thread its mask is looked at, at a site where SIGTRAP has not been found blocked."""
_FOR_GOOD: Final = 1 << 60


class PtraceTracer(ThreadCommands):
    """Implements ``ubpx.core.ports.Tracer`` for the programs that an x86_64 kernel runs: its own and i386's."""

    def __init__(self) -> None:
        self._tasks: Final = TaskTable()
        self._threads: Final = self._tasks.threads
        self._processes: Final = ProcessTable(self._take_status)
        self._guards: Final = Guards(self._processes)
        self._kept: Final = KeptChildren()
        self._doorbell: Doorbell | None = None
        self._queue: Final[deque[Any]] = deque()
        self._batch: Final[deque[tuple[PtraceThread, Site]]] = deque()
        self._trap_info_buffer: Final = (ctypes.c_int32 * (SIGINFO_SIZE // 4))()
        self._trap_info: Final = memoryview(self._trap_info_buffer).cast("B").cast("i")

    def open(self) -> None:
        """Called in the tracer thread."""
        self._doorbell = Doorbell()
        parenthood.open_session()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 5)

    def close(self) -> None:
        """Called in the tracer thread, when nothing is traced any more."""
        if self._doorbell is not None:
            self._doorbell.close()
        self._processes.close()
        self._kept.let_go_all()
        parenthood.close_session()

    def ring(self) -> None:
        """Wake ``wait``; from any thread."""
        if self._doorbell is not None:
            self._doorbell.ring()

    @property
    def can_guard(self) -> bool:
        """In all of its architectures."""
        return True

    def architecture_of(self, pid: ProcessId) -> str:
        """Of its present program."""
        return self._processes.abi(pid).name

    def syscall_numbers(self, architecture: str) -> Mapping[str, int]:
        """By name."""
        return ABIS[architecture].calls

    def launch(self, argv: Sequence[str], options: Mapping[str, Any]) -> Launch:
        """Prepare to start a program; from any thread."""
        return Launch(argv, options)

    def seize(self, pid: ProcessId) -> Sequence[PtraceThread]:
        """Trace all threads of a running process, without stopping them."""
        check_seizable(pid)
        self._kept.keep(pid)
        seizure = Seizure(self._kept)
        try:
            seizure.take(pid)
            if seizure.threads:
                self.memory(pid)
                self._processes.abi(pid)
                seizure.take_children_in_flight(pid)
        except BaseException:
            seizure.abandon()
            self._processes.forget(pid)
            self._kept.let_go(pid)
            raise
        if pid not in seizure.threads:
            self._kept.leader_is_left(pid)
        if not seizure.threads:
            self._kept.let_go(pid)
            procfs.check_attachable(pid)
            raise TargetGone(pid, None)
        seized = tuple(seizure.threads.values())
        for child in {thread.pid for thread in seized} - {pid}:
            self._share(child, pid)
        self._tasks.add(seized)
        return seized

    # Waiting --------------------------------------------------------------------------------

    def wait(self) -> Any:
        """The next event; arrivals at sites are served meanwhile."""
        while True:
            while self._batch:
                thread, site = self._batch.popleft()
                if not site.arrive(thread):
                    return events.Doorbell()
                quick(thread.go, thread.tid, 0, 0)
            if self._queue:
                return self._queue.popleft()
            self._gather()

    def _gather(self) -> None:
        """Consume every stop there is before any thread goes on: so none starves."""
        peeked = waitid(os.P_ALL, 0, PEEK)
        while peeked is not None:
            tid = peeked.si_pid
            thread = self._threads.get(tid)
            if thread is None or peeked.si_status != signal.SIGTRAP or peeked.si_code != os.CLD_TRAPPED:
                self._consume(tid, thread)
            else:
                self._take_trap(tid, thread)
            peeked = waitid(os.P_ALL, 0, PEEK | os.WNOHANG)

    def _take_trap(self, tid: int, thread: PtraceThread) -> None:
        """Make the thread safe before its stop is consumed: from then on our death does no harm."""
        words = thread.words
        words[RIP] = 0
        quick(PTRACE_GETREGS, tid, 0, thread.buffer)
        try:
            site = thread.sites[words[RIP]]
        except KeyError:
            site = None
        if site is None or not (site.certain or self._is_breakpoint(tid)):
            self._consume(tid, thread)
            return
        landing = site.landing_word
        if landing is not None:
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, landing)
        elif site.landing is not None:
            site.landing_word = ctypes.c_ulong(site.landing)
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, site.landing_word)
        elif not site.make_safe(thread):
            self._consume(tid, thread)
            return
        status = _reap(tid)
        if status == _TRAP_STATUS:
            thread.stops += 1
            if thread.trap_unblocked:
                self.block_trap_again(thread)
            if site.watchful or not thread.stops % _SELDOM:
                self._look_at_mask(thread, site)
            self._batch.append((thread, site))
        elif status is not None:  # killed meanwhile
            self._classify(tid, thread, status)

    def _look_at_mask(self, thread: PtraceThread, site: Site | None) -> None:
        """A trap that SIGTRAP was blocked for has undone the process's action for it, and the thread's mask."""
        guard = self._guards.of(thread.pid)
        found = False
        with contextlib.suppress(TargetGone, SlotsExhausted):  # its end follows; or it will not be helped
            found = guard is not None and self._guards.repair(thread, guard)
        if site is not None:
            site.watchful = _FOR_GOOD if found else max(site.watchful - 1, 0)

    def _is_breakpoint(self, tid: int) -> bool:
        info = self._trap_info
        info[_SI_CODE_WORD] = 0
        quick(PTRACE_GETSIGINFO, tid, 0, self._trap_info_buffer)
        return info[_SI_CODE_WORD] == _SI_KERNEL

    def _consume(self, tid: int, thread: PtraceThread | None) -> None:
        somebodys = thread is None and self._is_untraced_child(tid)
        status = _reap(tid)
        if status is None:
            return
        if somebodys and not os.WIFSTOPPED(status):
            parenthood.hand_over(tid, status)
        else:
            self._classify(tid, thread, status)

    def _is_untraced_child(self, tid: int) -> bool:
        """A handler has started it, so that it is a child of this very thread."""
        fields = procfs.status(tid)
        ours = fields.get("PPid") == str(os.getpid()) and fields.get("Tgid") == str(tid)
        return ours and tid not in self._kept and (self._doorbell is None or tid != self._doorbell.pid)

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
            if number != signal.SIGTRAP:
                return events.GroupStopped(thread, number)
            if thread.interrupted:  # which must not show in the call that the thread waited in
                thread.interrupted = False
                self._begin_again(thread)
            return events.Interrupted(thread)
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
        return events.Interrupted(thread)

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

    def _begin_again(self, thread: PtraceThread, signal: int | None = None) -> None:
        """No EINTR because of us: of our interrupt, or of a signal that wakes the thread only because it is traced."""
        if not self.fetch(thread):
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

    # Threads and processes ------------------------------------------------------------------

    def cannot_run(self, thread: PtraceThread) -> bool:
        """In an uninterruptible wait, state D of proc(5)."""
        return procfs.status(thread.tid).get("State", "").startswith("D")

    def disturbance(self, thread: PtraceThread) -> Disturbance:
        """By the system call that it waits in."""
        return waiting.disturbance(thread.tid, self._processes.abi(thread.pid))

    def settle(self, thread: PtraceThread) -> bool:
        """From an event's stop to a plain one; a system call that was about to be made is made later."""
        entered = isinstance(syscall_info(thread.tid), SyscallEntry) and self._change(thread, {ORIG_RAX: _NO_CALL})
        request(PTRACE_INTERRUPT, thread.tid)
        request(PTRACE_CONT, thread.tid)
        thread.stepping = False
        status = wait_for(thread.tid)
        if status is not None and status >> 16 == PTRACE_EVENT_STOP:
            thread.stops += 1
            if entered and self.fetch(thread):
                thread.rewound = True
                changes = {RIP: thread.words[RIP] - CALL_INSN_SIZE, RAX: thread.call, ORIG_RAX: _NO_CALL}
                return self._change(thread, changes)
            return True
        if status is not None:
            self._take_status(thread, status)
        return False

    def _change(self, thread: PtraceThread, words: Mapping[int, int]) -> bool:
        """Registers of a stopped thread, by their position; False if it is gone."""
        if not self.fetch(thread):
            return False
        for position, value in words.items():
            thread.words[position] = value
        self.store(thread)
        return True

    def detach(self, thread: PtraceThread, signal: int = 0) -> None:
        """Trace it no more."""
        if request(PTRACE_DETACH, thread.tid, 0, signal) and int(thread.tid) == thread.pid:
            self._kept.leader_is_left(thread.pid)  # one that was killed meanwhile is ours until we have its status

    def forget(self, thread: PtraceThread) -> None:
        """Drop the record, and with the last of a process its memory."""
        if self._threads.get(thread.tid) is thread:
            del self._threads[thread.tid]
        self._forget_if_left(thread.pid)

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

    def mappings(self, pid: ProcessId) -> Sequence[MappedRange]:
        """What is mapped now."""
        return procfs.maps(pid)

    def entry_point(self, pid: ProcessId) -> VirtAddr:
        """Of the program that it runs."""
        return procfs.entry_point(pid, self._processes.abi(pid))

    def is_own_child(self, pid: ProcessId) -> bool:
        """Whether the embedding program waits for it."""
        return procfs.is_own_child(pid)

    def map_area(self, thread: PtraceThread, address: VirtAddr, size: int) -> bool:
        """Private executable memory exactly there; False: the place is taken."""
        return self._guards.map_slots(thread, address, size)

    def unmap_area(self, thread: PtraceThread, address: VirtAddr, size: int) -> None:
        """Give it back."""
        self._processes.call(thread, "munmap", address, size)

    def guard(self, thread: PtraceThread, traps: int, find_place: FindPlace) -> GuardTable:
        """Have the stopped thread's program survive our death."""
        return self._guards.ensure(thread, traps, find_place)

    def remains(self, pid: ProcessId) -> GuardRemains | None:
        """What another tracer has left in the process's memory."""
        return self._guards.remains(pid)

    def clear_remains(self, thread: PtraceThread, remains: Any) -> None:
        """Have its memory be without them."""
        self._guards.clear(thread, remains)

    def give_back(self, thread: PtraceThread, guard: Any, areas: Sequence[tuple[VirtAddr, int]]) -> None:
        """Have the memory be as before us."""
        if self._guards.of(thread.pid) is guard:  # not a forked child's copy: all threads there are stopped
            for other in tuple(self._threads.values()):
                if other.stepping and self._guards.of(other.pid) is guard:  # it would step on if we were killed now
                    self.settle(other)
        self._guards.give_back(thread, guard, areas)

    def block_signals(self, thread: PtraceThread) -> int:
        """Block all but traps and faults; returns the former mask."""
        guard = self._guards.of(thread.pid)
        if guard is not None:
            number = int.from_bytes(self.signal_info(thread)[:4], "little")
            guard.postpone(thread.tid, signal_mask(thread.tid) or 0, 1 << (number - 1) if number else 0)
        return super().block_signals(thread)

    def restore_signals(self, thread: PtraceThread, mask: int) -> None:
        """Give the mask back."""
        super().restore_signals(thread, mask)
        guard = self._guards.of(thread.pid)
        if guard is not None:
            guard.resume(thread.tid)


def _reap(tid: int) -> int | None:
    """The wait status that was peeked at; None if it is there no more."""
    try:
        found, status = waitpid(tid, WAIT_THREAD | os.WNOHANG)
    except ChildProcessError:
        return None
    return status if found else None


def _code(info: bytes) -> int:
    return int.from_bytes(info[SI_CODE : SI_CODE + 4], "little", signed=True)
