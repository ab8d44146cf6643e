"""The tracer: waits for what it traces, serves arrivals at sites, and says why a thread stopped.

Everything but ``ring`` runs in the session's tracer thread, which owns all ptrace requests: any
other thread's would fail with ESRCH, and that thread's end is the tracer's death.
"""

import contextlib
import ctypes
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ubpx import TargetGone
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import Disturbance, MappedRange, ProcessId, VirtAddr
from ubpx_ptracepp import parenthood, procfs, waiting
from ubpx_ptracepp.abi import ABIS, CALL_INSN_SIZE, ORIG_RAX, RAX, RIP
from ubpx_ptracepp.commands import SI_CODE, SIGINFO_SIZE
from ubpx_ptracepp.doorbell import Doorbell
from ubpx_ptracepp.guard.remains import GuardRemains
from ubpx_ptracepp.guard.table import GuardTable
from ubpx_ptracepp.guarding import FindPlace
from ubpx_ptracepp.injection import signal_mask, wait_for
from ubpx_ptracepp.launch import Launch
from ubpx_ptracepp.parenthood import waitid
from ubpx_ptracepp.requests import (
    PEEK,
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_STOP,
    PTRACE_GETSIGINFO,
    PTRACE_INTERRUPT,
    PTRACE_POKEUSER,
    SyscallEntry,
    peek,
    quick,
    reap,
    request,
    syscall_info,
)
from ubpx_ptracepp.seizing import Seizure, check_seizable
from ubpx_ptracepp.stops import Stops
from ubpx_ptracepp.tasks import PtraceThread

_SIGTRAP: Final = int(signal.SIGTRAP)
_ALL: Final = os.P_ALL
_CLD_TRAPPED: Final = os.CLD_TRAPPED
_TRAP_STATUS: Final = _SIGTRAP << 8 | 0x7F
_RIP_OFFSET: Final = ctypes.c_long.from_param(RIP * 8)
_SI_CODE_WORD: Final = SI_CODE // 4
_SI_KERNEL: Final = 0x80
_Stop = tuple[int, int, int, int, int]
"""As waitid gives it: who, of which user, by SIGCHLD, with which signal or status, and how (CLD_*)."""
_NO_CALL: Final = 0xFFFF_FFFF_FFFF_FFFF
"""In orig_rax: the thread is in no system call, or this one is not to be made."""
_SELDOM: Final = 64
"""After so many stops of a thread its mask is looked at, at a site where SIGTRAP has not been found blocked."""


class PtraceTracer(Stops):
    """Implements ``ubpx.core.ports.Tracer`` for the programs that an x86_64 kernel runs: its own and i386's."""

    def __init__(self) -> None:
        super().__init__()
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

    @property
    def can_jump(self) -> bool:
        """They do."""
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
        batch, queue = self._batch, self._queue
        while True:
            while batch:
                thread, site = batch.popleft()
                if not site.arrive(thread):
                    return events.Doorbell()
                quick(thread.go, thread.tid, 0, 0)
            if queue:
                return queue.popleft()
            stop = self._attend() if len(self._threads) == 1 else waitid(os.P_ALL, 0, PEEK)
            if stop is None:
                return events.Doorbell()
            self._gather(stop)

    def _attend(self) -> _Stop | None:
        """Serve the only thread there is: the fast lane, for as long as it does nothing but arrive at sites.

        The first stop that ``_gather`` has to take; None: the core has the thread, or there are others. Nobody starves
        meanwhile: the kernel shows the doorbell and new tasks first. Each step is ``_take_trap``'s, in the same order.
        """
        threads, queue = self._threads, self._queue
        (thread,) = threads.values()
        if thread.trap_unblocked:
            return waitid(os.P_ALL, 0, PEEK)
        tid, words, get_registers = thread.tid, thread.words, thread.get_registers
        ask, take = quick, reap
        next_stop: Any = waitid
        while len(threads) == 1 and not queue:
            stop: _Stop = next_stop(_ALL, 0, PEEK)
            stopped, _, _, number, code = stop
            stops = thread.stops + 1
            if stopped != tid or number != _SIGTRAP or code != _CLD_TRAPPED or not stops % _SELDOM:
                return stop
            words[RIP] = 0
            ask(*get_registers)
            try:
                site = thread.sites[words[RIP]]
                landing = site.landing_word
            except KeyError:
                landing = None
            if landing is None:
                return stop
            ask(PTRACE_POKEUSER, tid, _RIP_OFFSET, landing)
            status = take(tid)
            if status != _TRAP_STATUS:
                if status is not None:  # killed meanwhile
                    self._classify(tid, thread, status)
                break
            thread.stops = stops
            if not site.arrive(thread):
                break
            ask(thread.go, tid, 0, 0)
        return None

    def _gather(self, first: _Stop) -> None:
        """Consume every stop there is, ``first`` first, before any thread goes on: so none starves."""
        threads, batch = self._threads, self._batch
        tid, _, _, number, code = first
        while True:
            thread = threads.get(tid)
            if thread is None or number != _SIGTRAP or code != _CLD_TRAPPED:
                self._consume(tid, thread)
            else:
                self._take_trap(tid, thread)
                if len(batch) == len(threads) and thread.stops % _SELDOM:
                    return  # there is nobody else who could have stopped
            peeked = peek()
            if peeked is None:
                return
            tid, number, code = peeked

    def _take_trap(self, tid: int, thread: PtraceThread) -> None:
        """Make the thread safe before its stop is consumed: from then on our death does no harm."""
        words = thread.words
        words[RIP] = 0
        quick(*thread.get_registers)
        try:
            site = thread.sites[words[RIP]]
        except KeyError:
            site = None
        if site is None or not (site.certain or (site.in_slot and self._has_moved(thread)) or self._is_breakpoint(tid)):
            self._consume(tid, thread)
            return
        if site.landing is not None:
            landing = site.landing_word or ctypes.c_ulong.from_param(site.landing)
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, landing)
        elif not site.make_safe(thread):
            self._consume(tid, thread)
            return
        status = reap(tid)
        if status == _TRAP_STATUS:
            thread.stops = stops = thread.stops + 1
            if thread.trap_unblocked:
                self.block_trap_again(thread)
            if site.watchful or not stops % _SELDOM:
                self._look_at_mask(thread, site)
            self._batch.append((thread, site))
        elif status is not None:  # killed meanwhile
            self._classify(tid, thread, status)

    def _has_moved(self, thread: PtraceThread) -> bool:
        """Since it last stopped at a trap in a slot; if no register is another, it may not have run at all."""
        registers = bytes(thread.buffer)
        moved, thread.entered_with = registers != thread.entered_with, registers
        return moved

    def _is_breakpoint(self, tid: int) -> bool:
        info = self._trap_info
        info[_SI_CODE_WORD] = 0
        quick(PTRACE_GETSIGINFO, tid, 0, self._trap_info_buffer)
        return info[_SI_CODE_WORD] == _SI_KERNEL

    def _consume(self, tid: int, thread: PtraceThread | None) -> None:
        somebodys = thread is None and self._is_untraced_child(tid)
        status = reap(tid)
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
