"""How fake threads and processes come and go."""

import signal as signals
from functools import partial

from ubpx.core import events
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import Condition, FakeProcess, FakeThread, Stop
from ubpx.testing.stage import Stage


class Life(Stage):
    """The part of a Stage that makes and ends threads; any thread may call its methods."""

    def clone(self, tid: int, child: int, *, child_first: bool = False, group_signal: int = 0) -> None:
        """The thread makes another; ``child_first``: the new one is seen before its maker's event.

        ``group_signal``: the process is being stopped by it, and the new thread is born into that.
        """
        maker = self._threads[ThreadId(tid)]
        newborn = FakeThread(ThreadId(child), maker.pid, self._processes[maker.pid].architecture)
        newborn.group_signal = group_signal
        act = partial(self._make_task, maker, newborn, child_first=child_first)
        self._tell(tid, "clone", act)

    def fork(self, tid: int, child: int, *, child_first: bool = False, vfork: bool = False, lost: bool = False) -> None:
        """The thread makes a process: ``vfork``: it shares the memory, and the thread waits until it execs or exits.

        ``lost``: the child is killed before it is seen.
        """
        act = partial(self._fork, self._threads[ThreadId(tid)], ProcessId(child))
        act = partial(act, child_first=child_first, vfork=vfork, lost=lost)
        self._tell(tid, "fork", act)

    def access(self, tid: int, address: int) -> None:
        """The thread does what a debug register watches at ``address``; nothing, if none does as it comes there."""
        thread = self._threads[ThreadId(tid)]
        self._tell(tid, "access", partial(self._access, thread, address))

    def _access(self, thread: FakeThread, address: int) -> None:
        hit = tuple(number for number, each in enumerate(thread.watched) if each and each.address == address)
        if hit:
            self._stopped(thread, Stop.SIGNAL, events.WatchHit(thread, hit))

    def syscall(self, tid: int, number: int, *arguments: int, result: int = 0) -> None:
        """The thread makes a system call: two stops if it reports them as it comes there, else none."""
        thread = self._threads[ThreadId(tid)]
        padded = tuple(arguments) + (0,) * (6 - len(arguments))
        self._tell(tid, "syscall", partial(self._call_stop, thread, events.SyscallEntered(thread, number, padded)))
        self._tell(tid, "syscall", partial(self._call_stop, thread, events.SyscallExited(thread, number, result)))

    def _call_stop(self, thread: FakeThread, event: events.StopEvent) -> None:
        if thread.reports_syscalls:
            self._event(thread, event)

    def exec(self, tid: int, memory: FakeMemory, *, entry: int, architecture: str = "x86_64") -> None:
        """The thread's process runs a new program; its other threads are gone."""
        act = partial(self._exec, self._threads[ThreadId(tid)], memory, VirtAddr(entry), architecture)
        self._tell(tid, "exec", act)

    def exit(self, tid: int, status: int = 0, **how: bool) -> None:
        """The thread exits: its exit event, then, when it goes on, it is gone."""
        self._tell(tid, "exit", partial(self._exiting, self._threads[ThreadId(tid)], status), **how)

    def kill(self, pid: int, status: int = -signals.SIGKILL) -> None:
        """All threads of the process are gone at once, stopped ones too; requests find nobody."""
        with self._changed:
            threads = list(self._processes[ProcessId(pid)].threads.values())
            for thread in sorted(threads, key=lambda each: int(each.tid) == pid):
                self._die(thread, status)
            self._changed.notify_all()

    def continue_process(self, pid: int) -> None:
        """SIGCONT: the group-stop ends; each thread in it is interrupted."""
        with self._changed:
            for thread in self._processes[ProcessId(pid)].threads.values():
                if thread.group_signal:
                    thread.group_signal = 0
                    self._interrupt(thread)
            self._changed.notify_all()

    def _event(self, thread: FakeThread, event: events.StopEvent) -> None:
        self._stopped(thread, Stop.EVENT, event)

    def _appear(self, thread: FakeThread, parent: ProcessId, *, shares_memory: bool) -> None:
        thread.traced = True
        self._born(thread)
        appeared = events.ThreadAppeared(thread, thread.pid, parent, shares_memory, thread.group_signal)
        self._stopped(thread, Stop.PLAIN, appeared)

    def _make_task(self, maker: FakeThread, child: FakeThread, *, child_first: bool) -> None:
        child.registers[:] = maker.registers
        with self._changed:
            if child_first:
                self._appear(child, maker.pid, shares_memory=True)
            self._event(maker, events.TaskCreated(maker, child.tid, waits_for_child=False))
            if not child_first:
                self._appear(child, maker.pid, shares_memory=True)

    def _fork(self, maker: FakeThread, pid: ProcessId, *, child_first: bool, vfork: bool, lost: bool) -> None:
        parent = self._processes[maker.pid]
        memory = parent.memory if vfork else parent.memory.copy()
        child = FakeProcess(pid, memory, parent.entry, parent.architecture)
        child.areas = parent.areas if vfork else dict(parent.areas)
        thread = FakeThread(ThreadId(pid), pid, parent.architecture)
        thread.registers[:] = maker.registers
        created = events.TaskCreated(maker, thread.tid, waits_for_child=vfork)
        with self._changed:
            if vfork and not lost:
                child.vfork_parent, maker.waits_for = maker, pid
            self._processes[pid] = child
            if child_first and not lost:
                self._appear(thread, maker.pid, shares_memory=vfork)
            self._event(maker, created)
            if lost:
                self._queue.append(events.ThreadGone(thread, -signals.SIGKILL))
            elif not child_first:
                self._appear(thread, maker.pid, shares_memory=vfork)

    def _exec(self, thread: FakeThread, memory: FakeMemory, entry: VirtAddr, architecture: str) -> None:
        process = self._processes[thread.pid]
        with self._changed:
            leader = process.threads.get(ThreadId(process.pid), thread)
            for other in list(process.threads.values()):
                if other is not leader:
                    self._remove(other)
            process.memory, process.entry, process.architecture = memory, entry, architecture
            process.areas = {}  # a child that shares the old memory keeps its own
            leader.begin(architecture)
            leader.script.clear()
            leader.group_signal, leader.interrupt_since = 0, None
            self._unblock_parent(process)
            self._event(leader, events.Execed(leader, thread.tid))

    def _exiting(self, thread: FakeThread, status: int) -> None:
        thread.exit_status = status
        self._event(thread, events.ThreadExiting(thread, status))

    def _exited(self, thread: FakeThread) -> None:
        """It went on from its exit event; a leader is a zombie until the others have gone."""
        process = self._processes[thread.pid]
        status = thread.exit_status or 0
        if int(thread.tid) == thread.pid and len(process.threads) > 1:
            thread.condition = Condition.BLOCKED
            return
        self._die(thread, status)
        leader = process.threads.get(ThreadId(process.pid))
        waits = leader is not None and leader.condition is Condition.BLOCKED and leader.exit_status is not None
        if leader is not None and waits and len(process.threads) == 1 and not self._is_replaced(process):
            self._die(leader, leader.exit_status or 0)

    def _is_replaced(self, process: FakeProcess) -> bool:  # noqa: ARG002 - for who knows of an exec under way
        """Whether another thread is about to take the zombie leader's place, by an exec."""
        return False

    def _die(self, thread: FakeThread, status: int) -> None:
        self._remove(thread)
        process = self._processes[thread.pid]
        if not process.threads:
            self._unblock_parent(process)
        if thread.traced:
            self._queue.append(events.ThreadGone(thread, status))

    def _remove(self, thread: FakeThread) -> None:
        thread.condition = Condition.GONE
        self._processes[thread.pid].threads.pop(thread.tid, None)
        self._threads.pop(thread.tid, None)

    def _unblock_parent(self, process: FakeProcess) -> None:
        parent, process.vfork_parent = process.vfork_parent, None
        if parent is not None:
            parent.waits_for = None
            if parent.condition is Condition.BLOCKED:
                parent.condition = Condition.RUNNING
                parent.ready_since = next(self._moments)
