"""What is known for certain of a simulated kernel's processes and threads, whatever the core believes."""

from typing import Any, Final

from ubpx.core.values import ProcessId
from ubpx.testing.fake import FakeTracer
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import PC, Condition, FakeProcess, FakeThread
from ubpx.testing.simulation.program import Body


class Facts(FakeTracer):
    """A FakeTracer that answers for what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: Final[dict[int, Body]] = {}
        """By tid: what each thread has done."""

    def in_area(self, thread: FakeThread) -> bool:
        """Whether the thread stands in memory that was mapped for slots."""
        pc = thread.registers[PC]
        areas = self._processes[thread.pid].areas
        return bool(areas) and any(start <= pc < start + size for start, size in areas.items())

    def process_of(self, thread: FakeThread) -> FakeProcess:
        """The thread's own."""
        return self._processes[thread.pid]

    def process_by(self, pid: int) -> FakeProcess:
        """By its number."""
        return self._processes[ProcessId(pid)]

    def traced(self) -> list[FakeThread]:
        """All threads that are traced."""
        return [thread for thread in self._threads.values() if thread.traced]

    def untraced(self) -> list[FakeThread]:
        """All that live and are not."""
        return [thread for thread in self._threads.values() if not thread.traced]

    def is_traced(self, memory: FakeMemory) -> bool:
        """Whether a traced thread runs in it."""
        return any(thread.traced for thread in self.threads_in(memory))

    def threads_in(self, memory: Any) -> list[FakeThread]:
        """All that run in one memory."""
        return [each for each in self._threads.values() if self._processes[each.pid].memory is memory]

    def stopped(self) -> list[FakeThread]:
        """Those that stand still because they are traced."""
        return [each for each in self._threads.values() if each.condition is Condition.STOPPED]

    def lives(self, pid: int) -> bool:
        """Whether the process has threads."""
        return bool(self._processes[ProcessId(pid)].threads)

    def living(self) -> list[FakeProcess]:
        """The processes that have threads."""
        return [process for process in self._processes.values() if process.threads]
