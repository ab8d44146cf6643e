"""The imperative shell: takes the tracer's events, moves each thread's machine, does what it says.

Everything here runs in the session's tracer thread. What happens is told to a Listener (the
target); how a thread moves is decided by ``stepping.step`` alone.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, Protocol

from ubpx._errors import InternalError, MemoryFault, SlotsExhausted, TargetGone, UbpxError, UsageError
from ubpx.core import events
from ubpx.core.arming import Armory
from ubpx.core.deadlines import Watchdog
from ubpx.core.events import Verdict
from ubpx.core.holds import Hold, HoldTable
from ubpx.core.ports import TracedThread, Tracer
from ubpx.core.probepoints import Lease
from ubpx.core.registers import WordRegisters, put
from ubpx.core.sites import Answer, ProbeSite, TombSite, set_pc
from ubpx.core.slots import AREA_SIZE, SlotArea, choose_hole
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess
from ubpx.core.stepping import Action, Input, State, step
from ubpx.core.ubp.plans import Architecture, Outcome
from ubpx.core.values import AddressSpaceId, ProcessId, ThreadId, VirtAddr
from ubpx.core.verdicts import RegisterCollision, merge_verdicts, merge_writes

_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})
_LEAVING: Final = frozenset({State.EXITING, State.GONE})
_STOPPED: Final = frozenset({State.PARKED, State.EXITING, State.GONE})


def _can_stop(thread: Thread) -> bool:
    """Not on its way out, and not waiting for a vfork child."""
    waits = thread.vfork_child is not None and thread.state is State.RUNNING
    return thread.state not in _LEAVING and not waits


class Listener(Protocol):
    """Who is told what happened to a process."""

    def handler_failed(self, lease: Lease, error: BaseException) -> None: ...
    def handler_blocked(self, lease: Lease) -> None: ...
    def collided(self, address: VirtAddr, collision: RegisterCollision) -> None: ...
    def stepped(self, process: TracedProcess, clients: Sequence[str], tid: ThreadId, address: VirtAddr) -> None: ...
    def thread_started(self, process: TracedProcess, tid: ThreadId) -> None: ...
    def thread_exited(self, process: TracedProcess, tid: ThreadId) -> None: ...
    def forked(self, process: TracedProcess, child: ProcessId) -> None: ...
    def execed(self, process: TracedProcess, old: AddressSpace) -> None: ...
    def entered(self, process: TracedProcess) -> None: ...
    def detaching(self, process: TracedProcess) -> None: ...
    def ended(self, process: TracedProcess) -> None: ...


class Coordinator:
    """All traced processes of one session. Owned by its tracer thread."""

    def __init__(self, tracer: Tracer, architecture: Architecture) -> None:
        self.tracer = tracer
        self.architecture: Final = architecture
        self.holds: Final = HoldTable()
        self.armory: Final = Armory(self, self._map_area)
        self.processes: Final[dict[ProcessId, TracedProcess]] = {}
        self.serving: TracedThread | None = None
        self.dispatch: Callable[[Callable[[], None]], None] = lambda job: job()
        """Runs a job in the tracer thread, from any; set by the thread that owns us."""
        self.serving_since = 0.0
        """When the handlers of the last hit began, by the monotonic clock, in seconds."""
        self.watchdog = Watchdog()
        self.after_hit: list[Callable[[], None]] = []
        self._threads: Final[dict[ThreadId, Thread]] = {}
        self._listeners: Final[dict[ProcessId, Listener]] = {}
        self._early: Final[set[ThreadId]] = set()
        """Tasks that appeared before whoever made them said so."""
        self._current: Thread | None = None
        """The thread whose event is being handled: it is stopped."""
        self._identities: Final = count(1)
        self._handlers: Final[Mapping[type, Callable[[Thread, Any], None]]] = {
            events.StepDone: self._on_step_done,
            events.SignalArrived: self._on_signal,
            events.Interrupted: self._on_interrupted,
            events.GroupStopped: self._on_group_stopped,
            events.TaskCreated: self._on_task_created,
            events.Execed: self._on_execed,
            events.ThreadExiting: self._on_exiting,
            events.ThreadGone: self._on_gone,
        }
        self._actions: Final[Mapping[Action, Callable[[Thread], None]]] = {
            Action.PROCEED: self._go,
            Action.DELIVER: self._deliver,
            Action.DEFER: self._defer,
            Action.CANCEL_AND_DELIVER: self._go,
            Action.FINISH_STEP: self._go,
            Action.LISTEN: self._go,
        }

    # Processes ----------------------------------------------------------------------------

    def attach(self, pid: ProcessId, listener: Listener, *, slots_allowed: bool = True) -> TracedProcess:
        """Trace a running process; none of its threads is stopped."""
        if pid in self.processes:
            raise UsageError(f"process {pid} is in this session already; use its target")
        ports = self.tracer.seize(pid)
        process = TracedProcess(pid, self._new_space(pid, slots_allowed=slots_allowed), self.tracer)
        self.processes[pid] = process
        self._listeners[pid] = listener
        for port in ports:
            self._adopt(port, process)
        return process

    def _new_space(self, pid: ProcessId, *, slots_allowed: bool) -> AddressSpace:
        identity = AddressSpaceId(next(self._identities))
        memory = self.tracer.memory(pid)
        return AddressSpace(identity, pid, memory, self.architecture, slots_allowed=slots_allowed)

    def _adopt(self, port: TracedThread, process: TracedProcess) -> Thread:
        thread = Thread(port, process)
        process.threads[port.tid] = self._threads[port.tid] = thread
        port.sites = process.space.silent_sites if process.silent else process.space.sites
        self._refresh_held(thread)
        return thread

    def detach(self, process: TracedProcess) -> None:
        """Leave the process as if nobody had been there."""
        if process.ended.is_set():
            return
        space = process.space
        space.quiesced = True
        try:
            self._stop_all(space)
            if not process.ended.is_set():
                self._listeners[process.pid].detaching(process)
                self._clean(space)
        finally:
            space.quiesced = False
        for each in self._sharing(space):
            self._let_go(each)
        if not process.ended.is_set():
            self._end(process, None)

    def _clean(self, space: AddressSpace) -> None:
        for probepoint in space.registry:
            self.armory.disarm(space, probepoint)
        self.armory.remove_entry_trap(space)
        for thread in self._threads_in(space):
            self._leave_slot(thread)
        if space.slots.areas:
            with self._stopped_thread(space) as thread:
                for area in space.slots.areas:
                    self.tracer.unmap_area(thread.port, area.start, area.size)
                space.slots.areas.clear()

    def _let_go(self, process: TracedProcess) -> None:
        for thread in process.living():
            if thread.state is State.PARKED:
                self.tracer.detach(thread.port, thread.pending)
            self._forget(thread)
        if process.silent:
            self._end(process, None)

    def _leave_slot(self, thread: Thread) -> None:
        """Stand in the program's own code, nothing half done."""
        if thread.state is not State.PARKED or not self.tracer.fetch(thread.port):
            return
        space = thread.process.space
        words = thread.port.words
        pc = words[space.layout.pc]
        code = space.slots.code_at(pc)
        if code is not None:
            set_pc(self.tracer, thread.port, space, code.to_origin(VirtAddr(pc)) or code.origin)
        thread.plan = None
        self._give_back_signals(thread)

    def _end(self, process: TracedProcess, status: int | None) -> None:
        self.processes.pop(process.pid, None)
        for hold in self.holds.in_process(process.pid):
            self.holds.drop(hold)
        process.status = status
        process.space.vforked.discard(process.pid)
        process.ended.set()
        listener = self._listeners.pop(process.pid, None)
        if listener is not None:
            listener.ended(process)

    def _sharing(self, space: AddressSpace) -> tuple[TracedProcess, ...]:
        return tuple(process for process in self.processes.values() if process.space is space)

    def _threads_in(self, space: AddressSpace) -> tuple[Thread, ...]:
        return tuple(thread for process in self._sharing(space) for thread in process.living())

    # Events -------------------------------------------------------------------------------

    def run_until(self, done: Callable[[], bool]) -> None:
        """Serve the program until ``done()``."""
        while not done():
            event = self.tracer.wait()
            if not isinstance(event, events.Doorbell):
                self.handle(event)

    def handle(self, event: events.StopEvent) -> None:
        """Take one event of the tracer's."""
        if isinstance(event, events.ThreadAppeared):
            self._on_appeared(event)
            return
        thread = self._threads.get(event.thread.tid)
        if thread is None and isinstance(event, events.Execed) and event.thread.pid in self.processes:
            thread = self._adopt(event.thread, self.processes[event.thread.pid])
        if thread is None:
            self._on_unknown(event)
            return
        before, self._current = self._current, thread
        thread.stop = StopKind.PLAIN
        thread.vfork_child = None
        try:
            self._handlers[type(event)](thread, event)
        finally:
            self._current = before

    def _move(self, thread: Thread, event: Input) -> None:
        thread.state, action = step(thread.state, event, thread.debts)
        perform = self._actions.get(action)
        if perform is not None:
            perform(thread)

    def _go(self, thread: Thread) -> None:
        """Let the thread do what its state says."""
        match thread.state:
            case State.STEPPING:
                self.tracer.step(thread.port)
            case State.LISTENING:
                self.tracer.listen(thread.port)
            case State.RUNNING:
                if thread.vfork_child is not None:
                    thread.process.space.vforked.add(thread.vfork_child)
                    self._refresh_process(thread.vfork_child)
                thread.site = thread.arrival = None
                thread.pending, due = 0, thread.pending
                self.tracer.resume(thread.port, due)

    def _on_unknown(self, event: events.StopEvent) -> None:
        """Of a thread that we never had: it died before it appeared, or was left meanwhile."""
        if not isinstance(event, events.ThreadGone):
            self.tracer.resume(event.thread)
            return
        for process in tuple(self.processes.values()):
            if event.thread.tid in process.announced:
                process.announced.discard(event.thread.tid)
                self._end_if_empty(process)

    def _on_appeared(self, event: events.ThreadAppeared) -> None:
        port = event.thread
        parent = self.processes.get(event.parent)
        if parent is None:
            self.tracer.detach(port)
            self.tracer.forget(port)
            return
        if port.tid in parent.announced:
            parent.announced.discard(port.tid)
        else:
            self._early.add(port.tid)
        process = self.processes.get(event.process)
        if process is not None:
            thread = self._adopt(port, process)
            listener = self._listeners.get(process.pid)
            if listener is not None:
                listener.thread_started(process, port.tid)
            self._move(thread, Input.APPEARED)
            return
        if event.shares_memory:
            child = TracedProcess(event.process, parent.space, self.tracer, silent=True)
            self.processes[child.pid] = child
            thread = self._adopt(port, child)
            self._tell_forked(parent, child.pid)
            self._move(thread, Input.APPEARED)
            return
        self.armory.clean(parent.space, self._new_space(event.process, slots_allowed=False))
        self._tell_forked(parent, event.process)
        self.tracer.detach(port)
        self.tracer.forget(port)
        self._end_if_empty(parent)

    def _tell_forked(self, parent: TracedProcess, child: ProcessId) -> None:
        listener = self._listeners.get(parent.pid)
        if listener is not None:
            listener.forked(parent, child)

    def _on_step_done(self, thread: Thread, event: events.StepDone) -> None:
        if thread.state is State.RUNNING:
            self._on_signal(thread, events.SignalArrived(event.thread, signal.SIGTRAP, 0, VirtAddr(0)))
        else:
            self._finish_step(thread)
            self._move(thread, Input.STEP_DONE)

    def _on_interrupted(self, thread: Thread, _event: events.Interrupted) -> None:
        thread.group_stopped = False
        if thread.port.held and self.tracer.pending_fault(thread.port):
            self._resume_for_fault(thread)
            return
        self._move(thread, Input.INTERRUPTED)

    def _resume_for_fault(self, thread: Thread) -> None:
        """A trap that the thread ran into already must be reported before the thread may park."""
        if thread.state is State.STEPPING:
            self.tracer.step(thread.port)
        else:
            thread.state = State.RUNNING
            self.tracer.resume(thread.port)

    def _on_group_stopped(self, thread: Thread, _event: events.GroupStopped) -> None:
        thread.group_stopped = True
        self._move(thread, Input.GROUP_STOPPED)

    def _on_task_created(self, thread: Thread, event: events.TaskCreated) -> None:
        thread.stop = StopKind.EVENT
        if event.child in self._early:
            self._early.discard(event.child)
        else:
            thread.process.announced.add(event.child)
        if event.waits_for_child:
            thread.vfork_child = ProcessId(event.child)
        self._move(thread, Input.TASK_CREATED)

    def _on_exiting(self, thread: Thread, event: events.ThreadExiting) -> None:
        process = thread.process
        process.last_status = event.status
        listener = self._listeners.get(process.pid)
        if listener is not None:
            listener.thread_exited(process, thread.tid)
        self._move(thread, Input.EXITING)
        if process.own_child and int(thread.tid) == process.pid:
            # Its parent is in our own process: whoever waits for it must find its exit status.
            self.tracer.detach(thread.port)
            self._drop(thread)
        else:
            self.tracer.resume(thread.port)

    def _on_gone(self, thread: Thread, event: events.ThreadGone) -> None:
        process = thread.process
        self._move(thread, Input.GONE)
        if int(thread.tid) == process.pid:
            process.last_status = event.status
            for other in process.living():
                if other is not thread:
                    self._forget(other)
        self._drop(thread)

    def _drop(self, thread: Thread) -> None:
        process = thread.process
        self._forget(thread)
        self._end_if_empty(process)

    def _end_if_empty(self, process: TracedProcess) -> None:
        if not process.threads and not process.announced and not process.ended.is_set():
            self._end(process, process.last_status)

    def _forget(self, thread: Thread) -> None:
        thread.state = State.GONE
        thread.process.stops_of_gone += thread.port.stops
        thread.process.threads.pop(thread.tid, None)
        self._threads.pop(thread.tid, None)
        self.holds.forget_thread(thread.tid)
        self.tracer.forget(thread.port)

    # exec -----------------------------------------------------------------------------------

    def _on_execed(self, thread: Thread, _event: events.Execed) -> None:
        process = thread.process
        thread.stop = StopKind.EVENT
        for other in process.living():
            if other is not thread:
                self._forget(other)
        thread.plan = thread.deferred = thread.mask = None
        thread.pending, thread.group_stopped = 0, False
        self._move(thread, Input.EXECED)
        if process.silent:
            self.tracer.detach(thread.port)
            self._drop(thread)
            return
        old = process.space
        process.space = self._new_space(process.pid, slots_allowed=old.slots_allowed)
        thread.port.sites = process.space.sites
        self._listeners[process.pid].execed(process, old)
        try:
            self.armory.set_entry_trap(process.space, self.tracer.entry_point(process.pid))
        except UbpxError as error:
            process.failure = error
            self.tracer.detach(thread.port)
            self._forget(thread)
            self._end(process, None)
            return
        self._refresh_held(thread)
        self._move(thread, Input.APPEARED)

    def entered(self, port: TracedThread) -> None:
        """The new program stands at its entry point (see sites.EntrySite)."""
        thread = self._threads[port.tid]
        before, self._current = self._current, thread
        try:
            self.armory.remove_entry_trap(thread.process.space)
            self._listeners[thread.process.pid].entered(thread.process)
            self._move(thread, Input.ARRIVED)
        finally:
            self._current = before

    # Signals and steps --------------------------------------------------------------------

    def _on_signal(self, thread: Thread, event: events.SignalArrived) -> None:
        thread.pending = event.signal
        fault = event.code > 0 and event.signal in _FAULTS
        if thread.state is not State.STEPPING and self.tracer.fetch(thread.port):
            self._look_for_slot(thread)
        if fault:
            self._cancel_step(thread, event)
        self._move(thread, Input.FAULT if fault else Input.SIGNAL)

    def _look_for_slot(self, thread: Thread) -> None:
        """A signal never finds the thread in a slot: behind the copy it moves on, before it it steps."""
        space = thread.process.space
        pc = VirtAddr(thread.port.words[space.layout.pc])
        code = space.slots.code_at(pc)
        if code is None:
            return
        if pc != code.slot:
            set_pc(self.tracer, thread.port, space, code.to_origin(pc) or code.origin)
            return
        probepoint = space.registry.at(code.origin)
        analysis = self.architecture.analyze(self._original_code(space, code.origin), code.origin)
        if probepoint is not None:
            analysis = probepoint.analysis
        thread.plan = self.architecture.before_step(analysis, code.slot, WordRegisters(thread.port.words, space.layout))

    def _original_code(self, space: AddressSpace, address: VirtAddr) -> bytes:
        try:
            return space.memory.read(address, self.architecture.longest_insn)
        except MemoryFault:
            return b""

    def _deliver(self, thread: Thread) -> None:
        if thread.plan is not None:
            self._defer(thread)
        else:
            self._go(thread)

    def _defer(self, thread: Thread) -> None:
        number, thread.pending = thread.pending, 0
        if number == signal.SIGSTOP:
            self.tracer.send_signal(thread.port, number)  # it cannot be blocked; it stays pending
            thread.deferred = thread.deferred or (0, b"")
        else:
            thread.deferred = (number, self.tracer.signal_info(thread.port))
        if thread.mask is None:
            thread.mask = self.tracer.block_signals(thread.port)
        self._go(thread)

    def _cancel_step(self, thread: Thread, event: events.SignalArrived) -> None:
        """The copy faulted: the program sees its own instruction's address, in siginfo too."""
        plan = thread.plan
        if plan is None or not self.tracer.fetch(thread.port):
            return
        space = thread.process.space
        self._apply(thread, self.architecture.cancel_step(plan, WordRegisters(thread.port.words, space.layout)))
        thread.plan = None
        if plan.slot <= event.fault_address < plan.slot_end:
            self.tracer.correct_fault_address(thread.port, plan.origin)
        self._give_back_signals(thread)

    def _finish_step(self, thread: Thread) -> None:
        """Put right what a step over a copy left; a repeated instruction may need another."""
        plan = thread.plan
        if plan is None:
            raise InternalError(f"thread {thread.tid} ended a step that nobody asked for")
        space = thread.process.space
        if not self.tracer.fetch(thread.port):
            return  # killed meanwhile: its exit follows
        outcome = self.architecture.after_step(plan, WordRegisters(thread.port.words, space.layout))
        if outcome.finished:
            self._apply(thread, outcome)
            thread.plan = None
            self._give_back_signals(thread)
            if thread.step_clients:
                self._tell_stepped(thread)

    def _tell_stepped(self, thread: Thread) -> None:
        clients, thread.step_clients = thread.step_clients, ()
        listener = self._listeners.get(thread.process.pid)
        if listener is not None:
            pc = VirtAddr(thread.port.words[thread.process.space.layout.pc])
            listener.stepped(thread.process, clients, thread.tid, pc)

    def _apply(self, thread: Thread, outcome: Outcome) -> None:
        for write in outcome.writes:
            thread.process.space.raw.write(write.address, write.data)
        if outcome.registers:
            put(thread.port.words, thread.process.space.layout, outcome.registers)
            self.tracer.store(thread.port)

    def _give_back_signals(self, thread: Thread) -> None:
        if thread.mask is not None:
            self.tracer.restore_signals(thread.port, thread.mask)
            thread.mask = None
        if thread.deferred is not None:
            number, info = thread.deferred
            thread.deferred = None
            if number and not thread.pending:
                self.tracer.replace_signal(thread.port, info)
                thread.pending = number
            elif number:
                self.tracer.send_signal(thread.port, number)

    # Hits ---------------------------------------------------------------------------------

    def handler_failed(self, lease: Lease, error: BaseException) -> None:
        """A handler raised: its client alone pays."""
        lease.errors += 1
        if lease.probepoint is not None:
            for pid in self._pids_of(lease):
                self._listeners[pid].handler_failed(lease, error)

    def handler_succeeded(self, lease: Lease) -> None:
        """A handler returned, after exceptions before."""
        lease.client.strikes = 0

    def calm(self, lease: Lease) -> None:
        """A handler overran, and has returned; one that was blocked in C is quarantined at once."""
        if self.watchdog.calm():
            for pid in self._pids_of(lease):
                self._listeners[pid].handler_blocked(lease)

    def _pids_of(self, lease: Lease) -> Iterator[ProcessId]:
        space = lease.probepoint.space if lease.probepoint else None
        return (pid for pid, each in self.processes.items() if each.space.identity == space and not each.silent)

    def conclude(self, port: TracedThread, site: ProbeSite | TombSite, answers: list[Answer]) -> None:
        """After all handlers: verdicts, register writes, the step, and what was put off."""
        thread = self._threads[port.tid]
        before, self._current = self._current, thread
        thread.stop = StopKind.PLAIN
        try:
            if isinstance(site, ProbeSite):
                self._settle_hit(thread, site, answers)
            deferred, self.after_hit = self.after_hit, []
            for action in deferred:
                action()
            if thread.state is not State.GONE:
                self._move(thread, Input.ARRIVED)
        finally:
            self._current = before

    def _settle_hit(self, thread: Thread, site: ProbeSite, answers: list[Answer]) -> None:
        for lease, answer, _ in answers:
            if answer is not None and not isinstance(answer, Verdict):
                wrong = UsageError(f"a handler returned {answer!r}; return None or a ubpx.Verdict")
                self.handler_failed(lease, wrong)
        thread.site, thread.arrival = site, tuple(thread.port.words)
        wanted = [(lease.client.name, answer) for lease, answer, _ in answers if isinstance(answer, Verdict)]
        written = [(lease.client.name, writes) for lease, _, writes in answers if writes]
        merged = merge_writes(written)
        for collision in merged.collisions:
            self._listeners[thread.process.pid].collided(site.probepoint.address, collision)
        if merged.registers or thread.tid in site.unlanded:
            self._land(thread, site, merged.registers)
        verdict = merge_verdicts(answer for _, answer in wanted)
        if verdict is Verdict.STEP:
            thread.step_clients = tuple(name for name, answer in wanted if answer is Verdict.STEP)
        self._plan_step(thread, site, merged.registers)
        for name, answer in wanted:
            if answer >= Verdict.HOLD and answer is verdict:
                whole = verdict is Verdict.HOLD_PROCESS
                self.take_hold(name, thread.process, None if whole else thread.tid)

    def _land(self, thread: Thread, site: ProbeSite, changes: Mapping[str, int]) -> None:
        """Send the thread past the trap again, from its registers at arrival with ``changes``."""
        space, words = thread.process.space, thread.port.words
        if thread.arrival is not None:
            for position, word in enumerate(thread.arrival):
                words[position] = word
        put(words, space.layout, changes)
        if space.layout.pc_name not in changes:
            self._pass_trap(thread, site)
        self.tracer.store(thread.port)

    def _pass_trap(self, thread: Thread, site: ProbeSite) -> None:
        space, words, probepoint = thread.process.space, thread.port.words, site.probepoint
        if probepoint.slot is not None:
            words[space.layout.pc] = probepoint.slot
            return
        try:
            put(words, space.layout, site.emulate(thread.port))
            return
        except MemoryFault:
            site.unlanded.discard(thread.tid)
        # The program must see this fault as its own: the instruction itself runs, from a slot.
        code = self.armory.occupy_slot(space, probepoint.analysis, thread.process.pid)
        words[space.layout.pc] = code.slot
        space.slots.retire(code)

    def _plan_step(self, thread: Thread, site: ProbeSite, changes: Mapping[str, int]) -> None:
        code = site.probepoint.slot_code
        if code is None or thread.process.space.layout.pc_name in changes:
            if thread.step_clients:
                self.tracer.fetch(thread.port)
                self._tell_stepped(thread)  # emulation has done the instruction
            return
        if site.probepoint.strategy == "STEP" or thread.step_clients:
            registers = WordRegisters(thread.port.words, thread.process.space.layout)
            thread.plan = self.architecture.before_step(site.probepoint.analysis, code.slot, registers)

    # Holds --------------------------------------------------------------------------------

    def take_hold(self, owner: str, process: TracedProcess, thread: ThreadId | None) -> Hold:
        """Keep a thread or all threads of a process stopped; those that run stop soon."""
        if process.ended.is_set():
            raise TargetGone(process.pid, process.status)
        if thread is not None and thread not in process.threads:
            raise UsageError(f"{thread} is no thread of process {process.pid}; see target.threads()")
        hold = Hold(owner, process.pid, thread, self._release_from_anywhere)
        self.holds.take(hold)
        self._refresh_process(process.pid)
        return hold

    def await_hold(self, hold: Hold) -> None:
        """Serve the program until everything that ``hold`` names has stopped."""
        process = self.processes.get(hold.process)
        if process is None:
            return

        def stopped() -> bool:
            held = (each for each in process.living() if hold.thread in (None, each.tid))
            return all(each.state in _STOPPED or each is self._current for each in held)

        self.run_until(stopped)

    def _release_from_anywhere(self, hold: Hold, registers: Mapping[str, int] | None) -> None:
        if not hold.released:
            self.dispatch(lambda: self.release_hold(hold, registers))

    def release_hold(self, hold: Hold, registers: Mapping[str, int] | None = None) -> None:
        """End a hold; what nobody holds any more runs."""
        if registers and not hold.released:
            self._write_held(hold, registers)
        if self.holds.drop(hold):
            self._refresh_process(hold.process)

    def _write_held(self, hold: Hold, registers: Mapping[str, int]) -> None:
        thread = self._threads.get(hold.thread) if hold.thread is not None else None
        if thread is None or thread.state is not State.PARKED:
            raise UsageError("registers can be written at the release of a held, stopped thread only")
        known = thread.process.space.layout.index
        unknown = [name for name in registers if name not in known]
        if unknown:
            raise UsageError(f"no register is named {unknown[0]!r}; there are {', '.join(known)}")
        if isinstance(thread.site, ProbeSite) and thread.arrival is not None:
            self._land(thread, thread.site, registers)
            thread.arrival = None
        elif self.tracer.fetch(thread.port):
            put(thread.port.words, thread.process.space.layout, registers)
            self.tracer.store(thread.port)

    def _refresh_process(self, pid: ProcessId) -> None:
        process = self.processes.get(pid)
        for thread in process.living() if process else ():
            self._refresh_held(thread)

    def _refresh_held(self, thread: Thread) -> None:
        """Bring a thread in line with who holds it."""
        process = thread.process
        quiesced = process.space.quiesced and process.pid not in process.space.vforked
        was = thread.port.held
        thread.port.held = thread.wanted or quiesced or self.holds.holds(process.pid, thread.tid)
        if thread.port.held and not was and thread is not self._current:
            if thread.state in (State.RUNNING, State.LISTENING):
                self.tracer.interrupt(thread.port)
        elif not thread.port.held and thread.state is State.PARKED and thread is not self._current:
            self._move(thread, Input.RELEASED)

    def _stop_all(self, space: AddressSpace) -> None:
        for thread in self._threads_in(space):
            self._refresh_held(thread)
        self.run_until(lambda: self._is_quiet(space))
        self.run_until(lambda: self._end_is_clear(space))

    def _is_quiet(self, space: AddressSpace) -> bool:
        """All stopped, and no child on its way that would have to be cleaned."""
        announced = any(process.announced for process in self._sharing(space))
        return not announced and all(thread.state in _STOPPED for thread in self._threads_in(space))

    def _end_is_clear(self, space: AddressSpace) -> bool:
        """A process whose threads all are exiting must be seen to its end."""
        return all(any(thread.state is State.PARKED for thread in process.living()) for process in self._sharing(space))

    @contextmanager
    def _stopped_thread(self, space: AddressSpace) -> Iterator[Thread]:
        """A stopped thread of the space that a system call can be injected into; raises TargetGone."""
        serving = self._threads.get(self.serving.tid) if self.serving else self._current
        if serving is not None and serving.process.space is space and self._injectable(serving):
            yield serving
            return
        thread = next((each for each in self._threads_in(space) if self._parked_plainly(each)), None)
        if thread is not None:
            yield thread
            return
        thread = self._stop_one(space)
        try:
            yield thread
        finally:
            thread.wanted = False
            self._refresh_held(thread)

    def _parked_plainly(self, thread: Thread) -> bool:
        return thread.state is State.PARKED and self._injectable(thread)

    def _injectable(self, thread: Thread) -> bool:
        if thread.pending or thread.vfork_child is not None or thread.state in _LEAVING:
            return False
        if thread.stop is StopKind.EVENT:
            if not self.tracer.settle(thread.port):
                return False
            thread.stop = StopKind.PLAIN
        return True

    def _stop_one(self, space: AddressSpace) -> Thread:
        """Stop some thread for a moment; one that owes a signal takes it first."""
        while candidates := [each for each in self._threads_in(space) if _can_stop(each)]:
            thread = candidates[0]
            thread.wanted = True
            if thread.state is State.PARKED:
                thread.state = State.RUNNING
                thread.pending, due = 0, thread.pending
                self.tracer.resume(thread.port, due)
                self.tracer.interrupt(thread.port)
            self._refresh_held(thread)
            self.run_until(lambda thread=thread: thread.state in _STOPPED)  # type: ignore[misc]
            if self._parked_plainly(thread):
                return thread
            thread.wanted = False
        raise TargetGone(space.pid, None)

    def _map_area(self, space: AddressSpace, reach: Sequence[VirtAddr]) -> None:
        """Let the program map an area of slots for us (S12)."""
        with self._stopped_thread(space) as thread:
            pid = thread.process.pid
            while True:
                place = choose_hole(self.tracer.mappings(pid), reach, AREA_SIZE)
                if place is None:
                    near = reach[0] if reach else VirtAddr(0)
                    raise SlotsExhausted(pid, near, "no room within 2 GiB of the instruction")
                if self.tracer.map_area(thread.port, place, AREA_SIZE):
                    break  # else another thread of the program took the place meanwhile
        space.slots.areas.append(SlotArea(place, AREA_SIZE, self.architecture.slot_size))
