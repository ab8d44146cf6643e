"""The tracer: what is traced, and what is done to it. How it waits is in ``arrivals``, why threads stop in ``stops``.

Everything but ``ring`` runs in the session's tracer thread, which owns all ptrace requests: any
other thread's would fail with ESRCH, and that thread's end is the tracer's death.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ubpx import TargetGone
from ubpx.core.values import Disturbance, MappedRange, Placement, ProcessId, TracerPost, Urgency, VirtAddr
from ubpx_ptracepp import parenthood, procfs, waiting
from ubpx_ptracepp.abi import ABIS, CALL_INSN_SIZE, ORIG_RAX, RAX, RIP
from ubpx_ptracepp.arrivals import Arrivals
from ubpx_ptracepp.doorbell import Doorbell
from ubpx_ptracepp.guard.remains import GuardRemains
from ubpx_ptracepp.guard.table import GuardTable
from ubpx_ptracepp.guarding import FindPlace
from ubpx_ptracepp.injection import signal_mask, wait_for
from ubpx_ptracepp.launch import Launch
from ubpx_ptracepp.requests import (
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_STOP,
    PTRACE_INTERRUPT,
    SyscallEntry,
    request,
    syscall_info,
)
from ubpx_ptracepp.seizing import Seizure, check_seizable
from ubpx_ptracepp.tasks import PtraceThread

_NO_CALL: Final = 0xFFFF_FFFF_FFFF_FFFF
"""In orig_rax: the thread is in no system call, or this one is not to be made."""


class PtraceTracer(Arrivals):
    """Implements ``ubpx.core.ports.Tracer`` for the programs that an x86_64 kernel runs: its own and i386's."""

    def open(self) -> None:
        """Called in the tracer thread."""
        self._doorbell = Doorbell()
        parenthood.open_session()

    def take_post(self, urgency: Urgency, placement: Placement) -> None:
        """Have the tracer thread run so, as far as that is permitted."""
        self._post.take(urgency, placement)

    @property
    def post(self) -> TracerPost:
        """How it runs now."""
        return self._post.now

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
        self._leave_stop(thread)
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
