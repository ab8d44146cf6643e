"""Keeping threads stopped: holds, quiescing, and borrowing one stopped thread for a system call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from ubpx._errors import SlotsExhausted, TargetGone, UsageError
from ubpx.core.holds import Hold, HoldTable
from ubpx.core.ports import TracedThread, Tracer
from ubpx.core.slots import AREA_SIZE, SlotArea, choose_hole
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import Input, State
from ubpx.core.values import ProcessId, ThreadId, VirtAddr

_WORTH_QUIESCING: Final = 512
"""So many retired slots are worth a stop of all threads."""
_LEAVING: Final = frozenset({State.EXITING, State.GONE})
_STOPPED: Final = frozenset({State.PARKED, State.EXITING, State.GONE})

Move = Callable[[Thread, Input], None]
RunUntil = Callable[[Callable[[], bool]], None]
WriteRegisters = Callable[[Thread, Mapping[str, int]], None]


def _can_stop(thread: Thread) -> bool:
    """Not on its way out, and not waiting for a vfork child."""
    waits = thread.vfork_child is not None and thread.state is State.RUNNING
    return thread.state not in _LEAVING and not waits


class Keeper:
    """Who is kept stopped, and why. Owned by the Coordinator, which moves the threads."""

    def __init__(self, tracer: Tracer, tracees: Tracees, move: Move, run_until: RunUntil) -> None:
        self.holds: Final = HoldTable()
        self.dispatch: Callable[[Callable[[], None]], None] = lambda job: job()
        """Runs a job in the tracer thread, from any; set by the thread that owns us."""
        self.serving: Callable[[], TracedThread | None] = lambda: None
        """The thread whose handlers run now; set by the reception."""
        self.write_registers: WriteRegisters = lambda _thread, _registers: None
        """How registers are written to a held thread; set by the reception."""
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._move: Final = move
        self._run_until: Final = run_until

    # Holds --------------------------------------------------------------------------------

    def take_hold(self, owner: str, process: TracedProcess, thread: ThreadId | None) -> Hold:
        """Keep a thread or all threads of a process stopped; those that run stop soon."""
        if process.ended.is_set():
            raise TargetGone(process.pid, process.status)
        if thread is not None and thread not in process.threads:
            raise UsageError(f"{thread} is no thread of process {process.pid}; see target.threads()")
        hold = Hold(owner, process.pid, thread, self._release_from_anywhere)
        self.holds.take(hold)
        self.refresh_process(process.pid)
        return hold

    def await_hold(self, hold: Hold) -> None:
        """Serve the program until everything that ``hold`` names has stopped."""
        process = self._tracees.processes.get(hold.process)
        if process is None:
            return

        def stopped() -> bool:
            held = (each for each in process.living() if hold.thread in (None, each.tid))
            return all(each.state in _STOPPED or each is self._tracees.current for each in held)

        self._run_until(stopped)

    def _release_from_anywhere(self, hold: Hold, registers: Mapping[str, int] | None) -> None:
        if not hold.released:
            self.dispatch(lambda: self.release_hold(hold, registers))

    def release_hold(self, hold: Hold, registers: Mapping[str, int] | None = None) -> None:
        """End a hold; what nobody holds any more runs."""
        if registers and not hold.released:
            self._write_held(hold, registers)
        if self.holds.drop(hold):
            self.refresh_process(hold.process)

    def _write_held(self, hold: Hold, registers: Mapping[str, int]) -> None:
        thread = self._tracees.threads.get(hold.thread) if hold.thread is not None else None
        if thread is None or thread.state is not State.PARKED:
            raise UsageError("registers can be written at the release of a held, stopped thread only")
        known = thread.process.space.layout.index
        unknown = [name for name in registers if name not in known]
        if unknown:
            raise UsageError(f"no register is named {unknown[0]!r}; there are {', '.join(known)}")
        self.write_registers(thread, registers)

    def refresh_process(self, pid: ProcessId) -> None:
        process = self._tracees.processes.get(pid)
        for thread in process.living() if process else ():
            self.refresh(thread)

    def refresh(self, thread: Thread) -> None:
        """Bring a thread in line with who holds it."""
        process = thread.process
        space = process.space
        quiesced = (space.quiesced or space.taking_turns) and process.pid not in space.vforked
        was = thread.port.held
        thread.port.held = thread.wanted or quiesced or self.holds.holds(process.pid, thread.tid)
        if thread.port.held and not was and thread is not self._tracees.current:
            if thread.state in (State.RUNNING, State.LISTENING):
                self._tracer.interrupt(thread.port)
        elif not thread.port.held and thread.state is State.PARKED and thread is not self._tracees.current:
            self._move(thread, Input.RELEASED)

    # Quiescing ----------------------------------------------------------------------------

    def stop_all(self, space: AddressSpace) -> None:
        for thread in self._tracees.threads_in(space):
            self.refresh(thread)
        self._run_until(lambda: self._is_quiet(space))
        self._run_until(lambda: self._end_is_clear(space))

    def _is_quiet(self, space: AddressSpace) -> bool:
        """All stopped, and no child on its way that would have to be cleaned."""
        announced = any(process.announced for process in self._tracees.sharing(space))
        return not announced and all(thread.state in _STOPPED for thread in self._tracees.threads_in(space))

    def _end_is_clear(self, space: AddressSpace) -> bool:
        """A process whose threads all are exiting must be seen to its end."""
        return all(
            any(thread.state is State.PARKED for thread in process.living()) for process in self._tracees.sharing(space)
        )

    # One stopped thread -------------------------------------------------------------------

    @contextmanager
    def stopped_thread(self, space: AddressSpace) -> Iterator[Thread]:
        """A stopped thread of the space that a system call can be injected into; raises TargetGone."""
        serving = self.serving()
        current = self._tracees.threads.get(serving.tid) if serving is not None else self._tracees.current
        if current is not None and current.process.space is space and self._injectable(current):
            yield current
            return
        thread = next((each for each in self._tracees.threads_in(space) if self._parked_plainly(each)), None)
        if thread is not None:
            yield thread
            return
        thread = self._stop_one(space)
        try:
            yield thread
        finally:
            thread.wanted = False
            self.refresh(thread)

    def _parked_plainly(self, thread: Thread) -> bool:
        return thread.state is State.PARKED and self._injectable(thread)

    def _injectable(self, thread: Thread) -> bool:
        if thread.pending or thread.vfork_child is not None or thread.state in _LEAVING:
            return False
        if thread.stop is StopKind.EVENT:
            if not self._tracer.settle(thread.port):
                return False
            thread.stop = StopKind.PLAIN
        return True

    def _stop_one(self, space: AddressSpace) -> Thread:
        """Stop some thread for a moment; one that owes a signal takes it first."""
        while candidates := [each for each in self._tracees.threads_in(space) if _can_stop(each)]:
            thread = candidates[0]
            thread.wanted = True
            if thread.state is State.PARKED:  # by whoever holds it: it takes its signal, and stops again
                thread.state = State.RUNNING
                thread.pending, due = 0, thread.pending
                self._tracer.resume(thread.port, due)
                self._tracer.interrupt(thread.port)
            self.refresh(thread)
            self._run_until(lambda thread=thread: thread.state in _STOPPED)  # type: ignore[misc]
            if self._parked_plainly(thread):
                return thread
            thread.wanted = False
            self.refresh(thread)
        raise TargetGone(space.pid, None)

    def _reclaim(self, space: AddressSpace) -> bool:
        """Free the retired slots that no thread is in; False where the threads cannot all be stopped now."""
        if self.serving() is not None or self._tracees.current is not None:
            return False
        space.quiesced = True
        try:
            self.stop_all(space)
            threads = [thread for thread in self._tracees.threads_in(space) if thread.state is State.PARKED]
            counters = [each.port.words[space.layout.pc] for each in threads if self._tracer.fetch(each.port)]
            return space.slots.free_retired(counters) > 0
        finally:
            space.quiesced = False
            for thread in self._tracees.threads_in(space):
                self.refresh(thread)

    def map_area(self, space: AddressSpace, reach: Sequence[VirtAddr]) -> None:
        """Let the program map an area of slots for us (S12), unless enough of the old slots are free by now."""
        if space.slots.retired_count >= _WORTH_QUIESCING and self._reclaim(space):
            return
        with self.stopped_thread(space) as thread:
            pid = thread.process.pid
            while True:
                place = choose_hole(self._tracer.mappings(pid), reach, AREA_SIZE)
                if place is None:
                    near = reach[0] if reach else VirtAddr(0)
                    raise SlotsExhausted(pid, near, "no room within 2 GiB of the instruction")
                if self._tracer.map_area(thread.port, place, AREA_SIZE):
                    break  # else another thread of the program took the place meanwhile
        space.slots.areas.append(SlotArea(place, AREA_SIZE, space.architecture.slot_size))
