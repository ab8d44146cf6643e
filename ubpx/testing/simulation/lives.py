"""How simulated tasks are born, replaced and killed: each half of it by itself."""

from collections.abc import Callable
from itertools import count
from typing import Any, Final

import attrs

from ubpx.core import events
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import Condition, FakeProcess, FakeThread
from ubpx.testing.simulation.choices import Pick
from ubpx.testing.simulation.kernel import FIRST_CHILD, Kernel, Watcher
from ubpx.testing.simulation.memory import SeededMemory
from ubpx.testing.simulation.program import ENTRY, Body, begin, image


@attrs.frozen(eq=False)
class Birth:
    """The half of a birth that has not been reported."""

    child: FakeThread
    parent: ProcessId
    shares_memory: bool
    maker: FakeThread | None
    """Who is still to say that it has made a task; None: it is the child that is still to appear."""
    waits: bool


class LivingKernel(Kernel):
    """Makes, replaces and kills; see Kernel."""

    def __init__(
        self,
        pick: Pick,
        *,
        budget: int = 0,
        watcher: Watcher | None = None,
        alone: bool = False,
        memory: Callable[[], FakeMemory] = FakeMemory,
    ) -> None:
        super().__init__(pick, budget=budget, watcher=watcher, alone=alone)
        self._births: Final[list[Birth]] = []
        self._execs: Final[dict[ProcessId, FakeThread]] = {}
        """Who execs, and waits until the others have gone."""
        self._ids: Final = count(FIRST_CHILD)
        self._new_memory: Final = memory

    def _born(self, thread: FakeThread) -> FakeThread:
        self.bodies.setdefault(thread.tid, Body())
        return super()._born(thread)

    def advance(self) -> bool:
        """See Kernel."""
        for pid in tuple(self._execs):
            self._exec_if_alone(pid)
        return super().advance()

    def _able(self) -> list[Any]:
        return [*self._births, *super()._able()] if self._births else super()._able()

    def _must_go_on(self, thread: FakeThread) -> bool:
        return super()._must_go_on(thread) or self._processes[thread.pid].vfork_parent is not None

    def _go_on(self, thread: Any) -> None:
        if isinstance(thread, Birth):
            self._births.remove(thread)
            self._complete(thread)
            return
        super()._go_on(thread)

    # Births ---------------------------------------------------------------------------------

    def _complete(self, birth: Birth) -> None:
        maker = birth.maker
        if maker is None:
            self._appear(birth.child, birth.parent, shares_memory=birth.shares_memory)
        elif maker.condition is Condition.BLOCKED and maker.exit_status is None:
            maker.condition = Condition.RUNNING
            self._event(maker, events.TaskCreated(maker, birth.child.tid, birth.waits))

    def _begin_birth(self, maker: FakeThread, child: FakeThread, *, shares_memory: bool, waits: bool) -> None:
        """One half is reported now, the other one by and by."""
        child.registers[:] = maker.registers
        child.mask = maker.mask
        self.bodies[child.tid] = self.bodies[maker.tid].copy()
        if self.pick(2):
            maker.condition = Condition.BLOCKED
            self._births.append(Birth(child, maker.pid, shares_memory, maker, waits))
            self._appear(child, maker.pid, shares_memory=shares_memory)
        else:
            self._births.append(Birth(child, maker.pid, shares_memory, None, waits))
            self._event(maker, events.TaskCreated(maker, child.tid, waits))

    def make_thread(self, maker: FakeThread) -> None:
        """It clones a thread of its process."""
        child = FakeThread(ThreadId(next(self._ids)), maker.pid)
        self._begin_birth(maker, child, shares_memory=True, waits=False)

    def make_process(self, maker: FakeThread, *, shares_memory: bool, waits: bool) -> None:
        """It forks; with ``waits`` by vfork."""
        parent = self._processes[maker.pid]
        memory = parent.memory if shares_memory else parent.memory.copy()
        pid = ProcessId(next(self._ids))
        child = self._processes[pid] = FakeProcess(pid, memory, parent.entry, parent.architecture)
        child.areas = parent.areas if shares_memory else dict(parent.areas)
        if waits:
            child.vfork_parent, maker.waits_for = maker, pid
        self._begin_birth(maker, FakeThread(ThreadId(pid), pid), shares_memory=shares_memory, waits=waits)

    # Deaths ---------------------------------------------------------------------------------

    def doom(self, pid: ProcessId, status: int) -> None:
        """The process is killed: each of its threads is seen at its exit, if it has been seen at all."""
        process = self._processes[pid]
        self._execs.pop(pid, None)
        for thread in list(process.threads.values()):
            self._doom(thread, status)
        self._lose_births(process, status)

    def kill(self, pid: int, status: int = -9) -> None:
        """All threads of the process are gone at once, those too that have not appeared."""
        super().kill(pid, status)
        self._execs.pop(ProcessId(pid), None)
        self._lose_births(self._processes[ProcessId(pid)], status)

    def _lose_births(self, process: FakeProcess, status: int) -> None:
        """Threads that have not appeared never do."""
        for birth in [each for each in self._births if each.maker is None and each.child.pid == process.pid]:
            if birth.child.tid not in process.threads:
                self._births.remove(birth)
                birth.child.traced = True
                self._lost(birth.child, status)

    def _lost(self, thread: FakeThread, status: int) -> None:
        """It dies before the core has heard of it."""
        thread.condition = Condition.GONE
        process = self._processes[thread.pid]
        self._unseen.append(events.ThreadGone(thread, status))
        if not process.threads:
            self._leave_memory(process)
            self._unblock_parent(process)

    def _leave_memory(self, process: FakeProcess) -> None:
        """Its memory goes, unless others live there."""
        memory = process.memory
        others = any(
            other.memory is memory for other in self._processes.values() if other is not process and other.threads
        )
        unborn = any(self._processes[birth.child.pid].memory is memory for birth in self._births if birth.maker is None)
        if isinstance(memory, SeededMemory) and not others and not unborn:
            memory.is_gone = True

    def _doom(self, thread: FakeThread, status: int) -> None:
        if thread.exit_status is not None or thread.condition is Condition.GONE:
            return
        thread.script.clear()
        thread.overtaken = thread.waits_for = thread.interrupt_since = None
        for child in self._processes.values():
            if child.vfork_parent is thread:
                child.vfork_parent = None
        if not thread.traced:
            self._die(thread, status)
            return
        if isinstance(self._drop_unseen(thread), events.ThreadAppeared):
            self._die(thread, status)
            return
        self._exiting(thread, status)

    def _die(self, thread: FakeThread, status: int) -> None:
        self._drop_unseen(thread)
        self._remove(thread)
        process = self._processes[thread.pid]
        if thread.traced:
            self._unseen.append(events.ThreadGone(thread, status))
        if not process.threads:
            self._leave_memory(process)
            self._unblock_parent(process)

    def _exited(self, thread: FakeThread) -> None:
        super()._exited(thread)
        self._exec_if_alone(thread.pid)

    def _is_replaced(self, process: FakeProcess) -> bool:
        return process.pid in self._execs

    # exec -----------------------------------------------------------------------------------

    def replace(self, thread: FakeThread) -> None:
        """It execs; its process's other threads must go first."""
        process = self._processes[thread.pid]
        if process.pid in self._execs:
            return
        self._execs[process.pid] = thread
        thread.condition = Condition.BLOCKED
        for other in list(process.threads.values()):
            if other is not thread:
                self._doom(other, 0)
        self._lose_births(process, 0)
        self._exec_if_alone(process.pid)

    def _exec_if_alone(self, pid: ProcessId) -> None:
        thread, process = self._execs.get(pid), self._processes[pid]
        if thread is None:
            return
        for other in process.threads.values():
            zombie = int(other.tid) == pid and other.condition is Condition.BLOCKED and other.exit_status is not None
            if other is not thread and not zombie:
                return
        told = [*self._queue, *self._told]
        if any(item.thread.pid == pid for item in told if isinstance(item, events.StopEvent)):
            return  # what is told of the old program is dealt with first
        del self._execs[pid]
        leader = process.threads.get(ThreadId(pid), thread)
        leader.exit_status = leader.overtaken = None
        leader.condition, leader.mask, leader.x87_pointer = Condition.RUNNING, 0, 0
        self._leave_memory(process)
        process.areas = {}  # a child that shares the old memory keeps what it has
        self.watcher.replaced(process)
        self._exec(thread, image(self._new_memory), VirtAddr(ENTRY), process.architecture)
        self.bodies[leader.tid] = Body()
        begin(leader, ENTRY)
