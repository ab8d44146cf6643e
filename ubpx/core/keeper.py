"""Keeping threads stopped: holds, quiescing, and borrowing one stopped thread for a system call.

One page, although a long one: whoever wants a thread to stand, for whichever of these reasons, decides by the same few
facts of it (held, wanted, quiesced), and it runs when none of them keeps it. Two pages would each need half of the
other.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import MappingProxyType
from typing import Final

from ubpx._errors import SlotsExhausted, TargetGone, UbpxError, UsageError
from ubpx.core.checks import is_int
from ubpx.core.footing import own_parts
from ubpx.core.grounds import Mapped
from ubpx.core.hits import as_word
from ubpx.core.holds import NOTHING, Hold, HoldTable, Parting
from ubpx.core.ports import Guard, TracedThread, Tracer
from ubpx.core.quiet import StillRunning
from ubpx.core.slots import AREA_SIZE, SlotArea, choose_hole, far
from ubpx.core.spaces import AddressSpace, PostponedSignal, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import LEAVING, Input, State
from ubpx.core.values import PAGE_SIZE, Disturbance, ProcessId, ThreadId, VirtAddr

_log = logging.getLogger("ubpx.keeper")
_WORTH_QUIESCING: Final = 512
"""So many retired slots are worth a stop of all threads."""
_HIGHEST_SIGNAL: Final = 64
_INTERRUPTIBLE: Final = frozenset({State.RUNNING, State.LISTENING})
_STOPPED: Final = frozenset({State.PARKED, State.EXITING, State.GONE})

Move = Callable[[Thread, Input], None]
RunUntil = Callable[[Callable[[], bool]], None]
WriteRegisters = Callable[[Thread, str, Mapping[str, int]], None]
"""To a stopped thread, in a client's name."""


class Keeper:
    """Who is kept stopped, and why. Owned by the Coordinator, which moves the threads."""

    def __init__(self, tracer: Tracer, tracees: Tracees, move: Move, run_until: RunUntil) -> None:
        self.holds: Final = HoldTable()
        self.dispatch: Callable[[Callable[[], None]], None] = lambda job: job()
        """Runs a job in the tracer thread, from any; set by the thread that owns us."""
        self.serving: Callable[[], TracedThread | None] = lambda: None
        """The thread whose handlers run now; set by the reception."""
        self.write_registers: WriteRegisters = lambda _thread, _owner, _registers: None
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
        for each in process.living():
            if each.stepped_by == owner and thread in (None, each.tid):
                each.stepped_by = None  # it wants the thread as it stands now, even in the middle of its own step
        try:
            self.refresh_process(process.pid)
        except UbpxError:  # the kernel refused; nobody would have this hold to release
            self.release_hold(hold)
            raise
        return hold

    def await_hold(self, hold: Hold) -> None:
        """Serve the program until everything that ``hold`` names has stopped, or nobody has the hold any more.

        What fails meanwhile ends it.
        """
        process = self._tracees.processes.get(hold.process)
        if process is None:
            return

        concerned = StillRunning(
            lambda: [each for each in process.living() if hold.thread in (None, each.tid)],
            lambda each: (
                each.state in _STOPPED or each is self._tracees.current or process.threads.get(each.tid) is not each
            ),
        )

        def stopped() -> bool:
            if hold.released:  # its client has left meanwhile, or the thread has
                return True
            return concerned.none

        try:
            self._run_until(stopped)
        except BaseException:
            self.release_hold(hold)
            raise

    def _release_from_anywhere(self, hold: Hold, parting: Parting) -> None:
        if not hold.released:
            self.dispatch(lambda: self.release_hold(hold, parting))

    def release_hold(self, hold: Hold, parting: Parting = NOTHING) -> None:
        """End a hold; what nobody holds any more runs."""
        if parting != NOTHING and not hold.released:
            if hold.thread is None:
                raise UsageError("registers and a signal go with the release of one thread's hold only")
            self._give_along(hold.thread, hold.owner, parting)
        if self.holds.drop(hold):
            self.refresh_process(hold.process)

    def step(self, owner: str, process: TracedProcess, tid: ThreadId, parting: Parting) -> None:
        """Let a thread that ``owner`` holds run one instruction, and hold it again; others' holds come first."""
        thread = process.threads.get(tid)
        if thread is None or not any(hold.owner == owner for hold in self.holds.on(process.pid, tid)):
            raise UsageError(f"client {owner!r} does not hold thread {tid}; hold it before it steps")
        architecture = process.space.architecture
        if not architecture.has_single_step:
            raise UsageError(f"{architecture.name} has no single step; probe the next instruction instead")
        self._stopped(tid)
        parting = self._checked(thread, parting)
        self.protect(process.space)
        thread.step_clients += (owner,)
        thread.stepped_by = owner
        if parting.signal is not None:
            self._exchange_signal(thread, parting.signal)
        if parting.registers or thread.arrival is not None:
            self.write_registers(thread, owner, parting.registers)
        self.refresh(thread)

    def step_is_done(self, thread: Thread) -> None:
        """Whoever had the thread step holds it again."""
        thread.stepped_by = None
        self.refresh(thread)

    def registers(self, process: TracedProcess, tid: ThreadId) -> Mapping[str, int]:
        """What a stopped thread has, as the program would see it; raises UsageError if it runs, TargetGone."""
        thread = self._stopped(tid, process)
        layout = process.space.layout
        served = self._is_served(thread)
        if thread.arrival is None and not served and not self._tracer.fetch(thread.port):
            raise TargetGone(process.pid, None)
        words = tuple(thread.port.words) if served else thread.arrival or tuple(thread.port.words)
        registers = layout.values(words)
        flag, bit = process.space.architecture.moved_flag
        registers[flag] &= ~bit  # ours, on its way past a trap
        code = process.space.slots.code_at(words[layout.pc])
        if code is not None:
            registers |= process.space.architecture.leave_slot(code, registers).registers
        return MappingProxyType(registers)

    def _stopped(self, tid: ThreadId, process: TracedProcess | None = None) -> Thread:
        thread = self._tracees.threads.get(tid)
        if thread is None or (process is not None and thread.process is not process):
            raise UsageError(f"no thread {tid} is traced here; see target.threads()")
        if thread.state is not State.PARKED and thread is not self._tracees.current and not self._is_served(thread):
            raise UsageError(f"thread {tid} is not stopped; hold it first")
        return thread

    def _is_served(self, thread: Thread) -> bool:
        """Its handlers run now: it is stopped, and ``words`` are those at arrival."""
        return self.serving() is thread.port

    def _give_along(self, tid: ThreadId, owner: str, parting: Parting) -> None:
        thread = self._stopped(tid)
        parting = self._checked(thread, parting)
        if parting.signal is not None:
            self._exchange_signal(thread, parting.signal)
        if parting.registers:
            self.write_registers(thread, owner, parting.registers)

    def _exchange_signal(self, thread: Thread, signal: int) -> None:
        if thread.pending:
            thread.pending = signal
        elif thread.postponed is not None:
            thread.postponed = PostponedSignal(signal, b"") if signal else None
        elif signal:  # only from a signal's own stop could it go along
            self._tracer.send_signal(thread.port, signal)

    def _checked(self, thread: Thread, parting: Parting) -> Parting:
        """What can be given along, whole; raises UsageError before any of it is given."""
        registers, signal = parting.registers, parting.signal
        if not isinstance(registers, Mapping):
            raise UsageError(f"registers={registers!r}; give a mapping from names to ints")
        layout = thread.process.space.layout
        unknown = [name for name in registers if name not in layout.index]
        if unknown:
            raise UsageError(f"no register is named {unknown[0]!r}; there are {', '.join(layout.names)}")
        if signal is not None and not (is_int(signal) and 0 <= signal <= _HIGHEST_SIGNAL):
            raise UsageError(f"signal={signal!r}; give a signal's number, 0 for none, or leave it out")
        wanted = {name: as_word(name, value, layout) for name, value in registers.items()}
        return Parting(registers=wanted, signal=signal)

    def refresh_process(self, pid: ProcessId) -> None:
        process = self._tracees.processes.get(pid)
        self._refresh_all(process.living() if process else ())

    def _refresh_all(self, threads: Iterable[Thread]) -> None:
        """As ``refresh`` for each; they are asked to stop in one go: a processor that idles between two wakes late."""
        self._tracer.interrupt_all([each.port for each in threads if self._must_stop(each)])

    def refresh(self, thread: Thread) -> None:
        """Bring a thread in line with who holds it."""
        if self._must_stop(thread):
            self._tracer.interrupt(thread.port)

    def _must_stop(self, thread: Thread) -> bool:
        """Note who holds the thread; whether it has to be asked to stop. What nobody holds any more is let go."""
        process = thread.process
        space = process.space
        quiesced = (space.quiesced or space.taking_turns) and process.pid not in space.vforked
        was = thread.held
        held = self.holds.holds(process.pid, thread.tid, but_for=thread.stepped_by)
        thread.held = thread.wanted > 0 or quiesced or held
        thread.tell_port()
        if thread.held and not was and thread is not self._tracees.current:
            return thread.state in _INTERRUPTIBLE or thread.steps_as_it_is
        if not thread.held and thread.state is State.PARKED and thread is not self._tracees.current:
            self._move(thread, Input.RELEASED)
        return False

    def serve_for(self, limit_s: float, done: Callable[[], bool]) -> None:
        """Serve the program until ``done()``, for so many seconds at most."""
        until = monotonic() + limit_s
        bell = threading.Timer(limit_s, self._tracer.ring)
        bell.daemon = True
        bell.start()
        try:
            self._run_until(lambda: done() or monotonic() >= until)
        finally:
            bell.cancel()

    # Quiescing ----------------------------------------------------------------------------

    def stop_all(self, space: AddressSpace) -> None:
        self._stop_threads(space)
        self._run_until(lambda: self._end_is_clear(space))

    @contextmanager
    def quiet(self, space: AddressSpace, *, to_its_end: bool = False) -> Iterator[None]:
        """No thread of the space runs meanwhile; one whose handlers or event we are in is stopped as it is.

        ``to_its_end``: a process that is exiting has ended by then.
        """
        if space.quiesced:
            yield
            return
        space.quiesced = True
        try:
            if to_its_end:
                self.stop_all(space)
            else:
                self._stop_threads(space)
            yield
        finally:
            space.quiesced = False
            self._refresh_all(self._tracees.threads_in(space))

    def _stop_threads(self, space: AddressSpace) -> None:
        """Serve the program until all of them have stopped, and no child is on its way that has to be cleaned."""
        self._refresh_all(self._tracees.threads_in(space))
        running = StillRunning(lambda: self._tracees.threads_in(space), lambda each: self._stands(each, space))

        def is_quiet() -> bool:
            announced = any(process.announced for process in self._tracees.sharing(space))
            return not announced and running.none

        self._run_until(is_quiet)

    def _stands(self, thread: Thread, space: AddressSpace) -> bool:
        """It does not run, or not in this space: an exec has given it another, or it is gone."""
        if thread.state in _STOPPED or thread is self._tracees.current or self._is_served(thread):
            return True
        return thread.process.space is not space or thread.process.threads.get(thread.tid) is not thread

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
        if serving is not None and current is not None:
            current.vfork_child = None  # it has arrived: it waits for none any more
        if current is not None and current.process.space is space and self._injectable(current):
            yield current
            return
        thread = self._some_parked(space)
        if thread is not None:
            yield thread
            return
        thread = self._stop_one(space)
        try:
            yield thread
        finally:
            self._let_run(thread)

    def _some_parked(self, space: AddressSpace) -> Thread | None:
        threads = sorted(self._tracees.threads_in(space), key=lambda each: each.pending)  # those that owe none first
        return next((each for each in threads if self._parked_plainly(each)), None)

    def _parked_plainly(self, thread: Thread) -> bool:
        return thread.state is State.PARKED and self._injectable(thread)

    def _injectable(self, thread: Thread) -> bool:
        if self._waits(thread) or thread.state in LEAVING:
            return False
        if thread.pending:
            if not self._is_somebodys(thread):
                return False  # it may as well take its signal first
            thread.postponed = PostponedSignal(thread.pending, self._tracer.signal_info(thread.port))
            thread.pending = 0
        if thread.stop is StopKind.EVENT:
            if not self._tracer.settle(thread.port):
                thread.dying = True
                return False
            thread.stop = StopKind.PLAIN
        return True

    def _waits(self, thread: Thread) -> bool:
        """Or would wait as soon as it ran: for a vfork child that has neither exec'd nor exited yet."""
        child = None if thread.vfork_child is None else self._tracees.processes.get(thread.vfork_child)
        return child is not None and child.silent

    def _is_somebodys(self, thread: Thread) -> bool:
        """Held by a client, not just by us for a moment."""
        return self.holds.holds(thread.process.pid, thread.tid, but_for=thread.stepped_by)

    def _stop_one(self, space: AddressSpace) -> Thread:
        """Stop some thread for a moment; one that owes a signal takes it first. Raises TargetGone, SlotsExhausted."""
        while candidates := [each for each in self._tracees.threads_in(space) if self._can_stop(each)]:
            thread = self._least_disturbed(candidates)
            try:
                self._stop_for_a_moment(thread)
                if thread.process.space is space and self._parked_plainly(thread):  # it may have exec'd meanwhile
                    return thread
            except BaseException:
                self._let_run(thread)
                raise
            self._let_run(thread)
            other = self._some_parked(space)  # made by that one, which waits for it now
            if other is not None:
                return other
        left = [thread for thread in self._tracees.threads_in(space) if thread.state not in LEAVING]
        if left and not any(thread.dying for thread in left):
            raise SlotsExhausted(space.pid, VirtAddr(0), "each of its threads is held, or waits for a vfork child")
        raise TargetGone(space.pid, None)

    def _least_disturbed(self, candidates: Sequence[Thread]) -> Thread:
        """The first that would notice nothing of being stopped; else the first that would notice least."""
        found: list[tuple[Disturbance, Thread]] = []
        for thread in candidates:
            if thread.state is State.PARKED:
                return thread
            found.append((self._tracer.disturbance(thread.port), thread))
            if found[-1][0] is Disturbance.NONE:
                break  # each look costs a read
        return min(found, key=lambda each: each[0])[1]

    def _stop_for_a_moment(self, thread: Thread) -> None:
        """Want it stopped; what it owes it takes first."""
        thread.wanted += 1
        if thread.state is State.PARKED:
            thread.state = State.RUNNING
            thread.pending, due = 0, thread.pending
            self._tracer.resume(thread.port, due)
            self._tracer.interrupt(thread.port)
        self.refresh(thread)
        self._run_until(lambda: thread.state in _STOPPED)

    def _let_run(self, thread: Thread) -> None:
        """Once nobody wants it stopped any more: a handler that ran meanwhile may have wanted the same one."""
        thread.wanted = max(thread.wanted - 1, 0)
        self.refresh(thread)

    def _can_stop(self, thread: Thread) -> bool:
        """Not on its way out, waiting for a vfork child, or held by somebody."""
        if thread.state in LEAVING or self._waits(thread) or self._is_served(thread):
            return False
        if thread.state is State.PARKED:
            return thread.pending > 0 and not self._is_somebodys(thread)
        return not (thread.process.space.vforked and self._tracer.cannot_run(thread.port))

    def _reclaim(self, space: AddressSpace) -> bool:
        """Free the retired slots that no thread is in; False where the threads cannot all be stopped now."""
        if self.serving() is not None or self._tracees.current is not None or space.quiesced:
            return False
        with self.quiet(space, to_its_end=True):
            return space.slots.free_retired(self.counters(space)) > 0

    def counters(self, space: AddressSpace) -> list[int]:
        """Where the parked threads of the space stand."""
        return [thread.pc for thread in self.standing(space)]

    def standing(self, space: AddressSpace) -> Iterator[Thread]:
        """The parked threads of the space, their registers up to date."""
        for thread in self._tracees.threads_in(space):
            if thread.state is State.PARKED and self._tracer.fetch(thread.port):
                yield thread

    def protect(self, space: AddressSpace, traps: int = 0) -> None:
        """Before anything is done that would be the program's end if we were killed: have it guarded, if it can be.

        ``traps``: so many more are about to stand. Raises TargetGone.
        """
        guard = space.guard
        if (
            not (self._tracer.can_guard and space.slots_allowed)
            or space.unguarded is not None
            or (guard is not None and guard.room >= traps)
        ):
            return
        try:
            with self.stopped_thread(space) as thread:
                space.guard = self._guard(space, thread, traps)
        except SlotsExhausted as error:
            _log.warning("process %d would not survive our death: %s", space.pid, error.reason)

    def _guard(self, space: AddressSpace, thread: Thread, traps: int) -> Guard:
        pid, limit, slot_reach = thread.process.pid, space.architecture.address_limit, space.architecture.slot_reach
        try:
            return self._tracer.guard(
                thread.port,
                traps,
                lambda size: choose_hole(self._tracer.mappings(pid), (), size, limit=limit, slot_reach=slot_reach),
            )
        except SlotsExhausted as error:
            space.unguarded = error.reason
            raise

    def map_area(self, space: AddressSpace, reach: Sequence[VirtAddr], size: int = AREA_SIZE) -> None:
        """Let the program map an area of slots for us (S12), unless enough of the old slots are free by now.

        ``size`` in bytes, whole pages.
        """
        self.protect(space)
        if space.slots.retired_count >= _WORTH_QUIESCING and self._reclaim(space):
            return
        with self.stopped_thread(space) as thread:
            pid = thread.process.pid
            while True:
                place = choose_hole(
                    self._tracer.mappings(pid), reach, size,
                    limit=space.architecture.address_limit, slot_reach=space.architecture.slot_reach,
                )  # fmt: skip
                if place is None:
                    near = reach[0] if reach else VirtAddr(0)
                    raise SlotsExhausted(pid, near, f"no room {far(space.slots.slot_reach)} of the instruction")
                if self._tracer.map_area(thread.port, place, size):
                    break  # else another thread of the program took the place meanwhile
        space.slots.add_area(SlotArea(place, size, space.architecture.slot_size))

    def map_page(self, space: AddressSpace, place: VirtAddr) -> None:
        """Let the program map a page of slots there; raises SlotsExhausted."""
        with self.stopped_thread(space) as thread:
            if not self._tracer.map_area(thread.port, place, PAGE_SIZE):
                raise SlotsExhausted(space.pid, place, "another thread of the program has taken the place")
        space.slots.add_area(SlotArea(place, PAGE_SIZE, space.architecture.slot_size))


def give_back(tracer: Tracer, thread: TracedThread, space: AddressSpace) -> None:
    """Have the stopped thread's memory, which is the space's or a copy of it, be without what we have mapped there."""
    mapped = Mapped(tracer.mappings(thread.pid))
    parts = [part for area in space.slots.areas for part in own_parts(space, area, mapped)]
    if space.guard is not None:
        tracer.give_back(thread, space.guard, [(VirtAddr(part.start), len(part)) for part in parts])
        return
    for part in parts:
        tracer.unmap_area(thread, VirtAddr(part.start), len(part))
