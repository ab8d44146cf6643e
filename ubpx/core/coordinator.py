"""The imperative shell: takes the tracer's events, moves each thread's machine, does what it says.

Everything here runs in the session's tracer thread. What happens is told to a Listener (the
target); how a thread moves is decided by ``stepping.step`` alone.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ubpx._errors import LeftAtExec, UbpxError
from ubpx.core import events, watchpoints
from ubpx.core.batches import Batches
from ubpx.core.census import Census
from ubpx.core.departure import Departure
from ubpx.core.following import Following
from ubpx.core.guard_code import GuardCode
from ubpx.core.healing import Healer
from ubpx.core.jumps import Jumps
from ubpx.core.keeper import Keeper
from ubpx.core.listener import Listener
from ubpx.core.ports import TracedThread, Tracer
from ubpx.core.reception import HitReception
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import LEAVING, Action, Input, State, step
from ubpx.core.steps import Steps
from ubpx.core.turns import Turns
from ubpx.core.values import Follow, ProcessId, VirtAddr

# Looked up once: at each quiesce a thousand threads come by.
_PARKED, _PLAIN, _INTERRUPTED = State.PARKED, StopKind.PLAIN, Input.INTERRUPTED


class Coordinator:
    """All traced processes of one session. Owned by its tracer thread."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer: Final = tracer
        self.tracees: Final = Tracees()
        self.keeper: Final = Keeper(tracer, self.tracees, self._move, self.run_until)
        self._turns: Final = Turns(tracer, self.tracees, self.keeper, move=self._move, run_until=self.run_until)
        self._steps: Final = Steps(tracer, self._tell_stepped)
        self.reception: Final = HitReception(
            self.keeper, self._steps, tracer=tracer, tracees=self.tracees, move=self._move, entered=self._entered
        )
        self.armory: Final = self.reception.armory
        self.jumps: Final = Jumps(tracer, self.tracees, self.keeper, self.armory, self.reception)
        self.batches: Final = Batches(
            self.reception, self.keeper.map_area, self.keeper.protect, self.jumps.take_out
        )  # fmt: skip
        self._listeners: Final[dict[ProcessId, Listener]] = self.tracees.listeners
        self._census: Final = Census(
            tracer, self.tracees, self.keeper, self.armory,
            move=self._move, abandon=self._abandon,
        )  # fmt: skip
        guard_code = GuardCode(tracer, self.tracees, self.keeper, self.run_until)
        self._healer: Final = Healer(tracer, self.tracees, self.keeper, guard_code)
        self._following: Final = Following(
            tracer, self.tracees, self._census, armory=self.armory, move=self._move, run_until=self.run_until
        )  # fmt: skip
        self._census.followers = self._following
        self._departure: Final = Departure(
            tracer, self.tracees, self._census,
            keeper=self.keeper, steps=self._steps, armory=self.armory, batches=self.batches,
            guard_code=guard_code, run_until=self.run_until,
        )  # fmt: skip
        self.detach: Final = self._departure.detach
        self._handlers: Final[Mapping[type, Callable[[Thread, Any], None]]] = {
            events.StepDone: self._on_step_done,
            events.SignalArrived: self._on_signal,
            events.Interrupted: self._on_interrupted,
            events.Interruptions: self._on_interrupted,
            events.GroupStopped: self._on_group_stopped,
            events.WatchHit: self._on_watch_hit,
            events.SyscallEntered: self._on_syscall,
            events.SyscallExited: self._on_syscall,
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

    def attach(
        self, pid: ProcessId, listener: Listener, *, slots_allowed: bool = True, follow: Follow = Follow.EXEC
    ) -> TracedProcess:
        """Trace a running process; what a killed tracer has left there is taken out first."""
        process = self._census.attach(pid, listener, slots_allowed=slots_allowed, follow=follow)
        process.healed = self._healer.heal(process)
        return process

    @property
    def has_probes(self) -> bool:
        """Whether a trap of any client stands anywhere."""
        spaces = {process.space for process in self.tracees.processes.values()}
        return any(len(space.registry) or space.dormant.count for space in spaces)

    def look_at_text(self) -> None:
        """Find out what programs have changed of what is probed."""
        for process in tuple(self.tracees.processes.values()):
            listener = self._listeners.get(process.pid)
            space = process.space
            if listener is not None and (len(space.registry) or space.dormant.count):
                listener.look_at_text(process, serve=True)
        self.jumps.look()

    # What is asked about --------------------------------------------------------------------

    def report_syscalls(self, process: TracedProcess, *, wanted: bool) -> None:
        """Make system calls events, or no longer; for threads that run when this returns, from a handler soon."""
        if process.reports_syscalls == wanted:
            return
        process.reports_syscalls = wanted
        for thread in process.living():
            self._steps.look_at_frames(thread)
        if wanted:
            self._stop_each_once(process)

    def rewatch(self, process: TracedProcess) -> None:
        """The process's watchpoints have changed: so do its threads' debug registers, from a handler soon."""
        for thread in process.living():
            if thread.state is State.PARKED or thread is self.tracees.current:
                self._watch(thread)
        self._stop_each_once(process)

    def _watch(self, thread: Thread) -> None:
        wanted = thread.process.space.watches.watched
        if thread.watches != wanted and not thread.process.silent:
            self.tracer.watch(thread.port, wanted)
            thread.watches = wanted

    def _stop_each_once(self, process: TracedProcess) -> None:
        """Have each running thread stop and go on, as it is wanted now; wait for that, except from a handler."""
        running = {}
        for thread in process.living():
            if thread.state in (State.RUNNING, State.LISTENING) and thread is not self.tracees.current:
                running[thread] = thread.port.stops
                self.tracer.interrupt(thread.port)
        if self.reception.serving is None and self.tracees.current is None:
            self.run_until(lambda: not any(_runs_as_before(thread, stops) for thread, stops in running.items()))

    def _abandon(self, space: AddressSpace) -> None:
        self._departure.abandon(space)

    # Events -------------------------------------------------------------------------------

    def run_until(self, done: Callable[[], bool]) -> None:
        """Serve the program until ``done()``."""
        while not done():
            event = self.tracer.wait()
            if not isinstance(event, events.Doorbell):
                self.handle(event)

    def handle(self, event: events.StopEvent | events.Interruptions) -> None:
        """Take one event of the tracer's."""
        if isinstance(event, events.Interruptions):
            while event.threads:
                self._take(event.threads.popleft(), event)
        elif isinstance(event, events.ThreadAppeared):
            self._census.appeared(event)
        else:
            self._take(event.thread, event)

    def _take(self, port: TracedThread, event: events.StopEvent | events.Interruptions) -> None:
        thread = self.tracees.threads.get(port.tid)
        if thread is None and isinstance(event, events.Execed) and port.pid in self.tracees.processes:
            thread = self._census.adopt(port, self.tracees.processes[port.pid])
        if thread is None:
            self._census.unknown(port, gone=isinstance(event, events.ThreadGone))
            return
        before, self.tracees.current = self.tracees.current, thread
        thread.stop = _PLAIN
        thread.vfork_child = None
        try:
            self._handlers[type(event)](thread, event)
        finally:
            self.tracees.current = before

    def _move(self, thread: Thread, event: Input) -> None:
        thread.state, action = step(thread.state, event, thread.debts)
        perform = self._actions.get(action)
        if perform is not None:
            perform(thread)

    def _go(self, thread: Thread) -> None:
        """Let the thread do what its state says."""
        self._watch(thread)
        if thread.state is _PARKED:
            return
        match thread.state:
            case State.STEPPING if self._turns.needs(thread):
                self._turns.ask(thread)
                self._departure.leave_abandoned()
            case State.STEPPING:
                thread.tell_port()
                self._note_vfork(thread)
                self._steps.take(thread)
            case State.LISTENING if thread.stop is StopKind.GROUP:
                self.tracer.listen(thread.port)
            case State.LISTENING:  # it stopped for something else meanwhile: back into the group-stop first
                self.tracer.interrupt(thread.port)
                self._resume(thread)
            case State.RUNNING:
                thread.tell_port()
                self._note_vfork(thread)
                self._resume(thread)

    def _note_vfork(self, thread: Thread) -> None:
        """From now on the thread waits for its child, which therefore must run."""
        if thread.vfork_child is not None:
            thread.process.space.vforked.add(thread.vfork_child)
            self.keeper.refresh_process(thread.vfork_child)

    def _resume(self, thread: Thread) -> None:
        thread.leave_site()
        thread.pending, due = 0, thread.pending
        self._steps.send_postponed(thread)
        if due and thread.returning is not None:
            self._steps.run_one(thread, due)  # into the signal's handler, if it has one
        else:
            self.tracer.resume(thread.port, due)

    def _on_interrupted(self, thread: Thread, _event: events.Interrupted | events.Interruptions) -> None:
        thread.group_stopped = False
        if thread.held:
            must_end = thread.plan is not None and thread.state is State.STEPPING
            if must_end or self.tracer.pending_fault(thread.port):
                self._resume_before_parking(thread)
                return
        self._move(thread, _INTERRUPTED)

    def _resume_before_parking(self, thread: Thread) -> None:
        """A step must end, and a trap that the thread ran into already be reported, before it may park."""
        if thread.state is State.STEPPING:
            self._steps.run_one(thread)
        else:
            thread.state = State.RUNNING
            self.tracer.resume(thread.port)

    def _on_group_stopped(self, thread: Thread, _event: events.GroupStopped) -> None:
        thread.group_stopped = True
        thread.stop = StopKind.GROUP
        if thread.held and self.tracer.pending_fault(thread.port):
            self._resume_before_parking(thread)
            return
        self._move(thread, Input.GROUP_STOPPED)

    def _on_task_created(self, thread: Thread, event: events.TaskCreated) -> None:
        thread.stop = StopKind.EVENT
        self._census.announced(thread, event.child)
        if event.waits_for_child:
            thread.vfork_child = ProcessId(event.child)
        self._move(thread, Input.TASK_CREATED)

    def _on_exiting(self, thread: Thread, event: events.ThreadExiting) -> None:
        process = thread.process
        process.last_status = event.status
        listener = self._listeners.get(process.pid)
        if listener is not None:
            listener.thread_exited(process, thread.tid, event.status)
        self._move(thread, Input.EXITING)
        if process.own_child and int(thread.tid) == process.pid:
            # Its parent is in our own process: whoever waits for it must find its exit status.
            self.tracer.detach(thread.port)
            self._census.drop(thread)
        else:
            self.tracer.resume(thread.port)

    def _on_gone(self, thread: Thread, event: events.ThreadGone) -> None:
        process = thread.process
        self._move(thread, Input.GONE)
        if int(thread.tid) == process.pid:
            process.last_status = event.status
            for other in process.living():
                if other is not thread:
                    self._census.forget(other)
        self._census.drop(thread)

    # exec -----------------------------------------------------------------------------------

    def _on_execed(self, thread: Thread, _event: events.Execed) -> None:
        process = thread.process
        thread.stop = StopKind.EVENT
        for other in process.living():
            if other is not thread:
                self._census.forget(other)
        if not self._following.children_are_seen(thread):
            return
        thread.plan = thread.mask = None
        thread.watches = watchpoints.NOTHING  # the kernel has cleared them
        thread.deferred.clear()
        thread.pending, thread.group_stopped, thread.dying = 0, False, False
        # Whoever held the thread held it in the program that is gone: nothing of that may reach the new one.
        thread.leave_site()
        thread.returning = None
        thread.frames.clear()
        thread.step_clients, thread.stepped_by = (), None
        self.keeper.holds.forget_thread(thread.tid)
        self._move(thread, Input.EXECED)
        if process.silent:
            if not self._following.execed(thread):
                self.tracer.detach(thread.port)
                self._census.drop(thread)
            return
        try:
            entered = self._enter_program(thread)
        except UbpxError as error:
            process.failure = error
            self._leave_new_program(thread)
            return
        if not process.follow.execs and thread.state is not State.GONE:
            self._listeners[process.pid].detaching(process)
            self._leave_new_program(thread)
        elif entered:
            self.keeper.refresh(thread)
            self._move(thread, Input.APPEARED)

    def _leave_new_program(self, thread: Thread) -> None:
        """In which there is nothing of ours yet."""
        process = thread.process
        self.tracer.detach(thread.port)
        self._census.forget(thread)
        self._census.end(process, None)

    def _enter_program(self, thread: Thread) -> bool:
        """Give the process the memory of its new program, to be stopped at its entry point; False: it is gone, or left.

        Raises UbpxError if the program cannot be traced.
        """
        process = thread.process
        old = process.space
        space = self._census.new_space(process.pid, slots_allowed=old.slots_allowed)
        process.space = space
        thread.port.sites = space.sites
        self._census.left(process, old)
        self._departure.abandon(old)
        if thread.state is State.GONE:
            return False
        self._listeners[process.pid].execed(process, old)
        if not process.follow.execs:
            process.failure = LeftAtExec(process.pid, process.follow)
            return False
        # A guard is mapped by a system call, which would take the place of the exec's own end where calls are told.
        guarded = not process.reports_syscalls
        self.armory.set_entry_trap(space, self.tracer.entry_point(process.pid), guarded=guarded)
        return True

    def _entered(self, port: TracedThread) -> None:
        """The new program stands at its entry point (see sites.EntrySite)."""
        thread = self.tracees.threads[port.tid]
        before, self.tracees.current = self.tracees.current, thread
        try:
            self.armory.remove_entry_trap(thread.process.space)
            self._listeners[thread.process.pid].entered(thread.process)
            if thread.state not in LEAVING:  # killed meanwhile
                self._move(thread, Input.ARRIVED)
        finally:
            self.tracees.current = before

    # Signals and steps --------------------------------------------------------------------

    def _on_signal(self, thread: Thread, event: events.SignalArrived) -> None:
        if event.signal == signal.SIGTRAP and event.code > 0:
            if thread.state is State.STEPPING and self._steps.ends_step(thread):
                self._on_step_done(thread, events.StepDone(event.thread, (), event.fault_address))
                return
            if self.reception.trap_has_moved(thread):
                self._move(thread, Input.INTERRUPTED)
                return
        known = self._steps.is_postponed(thread, event)
        fault = self._steps.signal_arrived(thread, event)
        if not known and (fault or thread.state is not State.STEPPING):
            self._ask_about_signal(thread)
        self._move(thread, Input.FAULT if fault else Input.SIGNAL)

    def _ask_about_signal(self, thread: Thread) -> None:
        """Before a signal is delivered; one that must wait for a step is asked about after that."""
        process = thread.process
        if thread.pending and thread.plan is None and not process.silent:
            wanted = self._listeners[process.pid].signalled(process, thread.tid, thread.pending)
            self.reception.obey(thread, wanted)

    def _on_syscall(self, thread: Thread, event: events.SyscallEntered | events.SyscallExited) -> None:
        thread.stop = StopKind.EVENT
        process = thread.process
        if isinstance(event, events.SyscallEntered):
            self._steps.syscall_entered(thread, event.number)
        if process.reports_syscalls:
            self._ask_about_syscall(thread, event)
        self._move(thread, Input.SYSCALL)

    def _ask_about_syscall(self, thread: Thread, event: events.SyscallEntered | events.SyscallExited) -> None:
        process = thread.process
        listener = self._listeners[process.pid]
        if isinstance(event, events.SyscallEntered):
            wanted = listener.syscall_entered(process, thread.tid, event.number, event.arguments)
        else:
            wanted = listener.syscall_exited(process, thread.tid, event.number, event.result)
        self.reception.obey(thread, wanted)

    def _on_watch_hit(self, thread: Thread, event: events.WatchHit) -> None:
        self.reception.watch_hit(thread, event.watched)
        self._move(thread, Input.WATCHED)

    def _on_step_done(self, thread: Thread, event: events.StepDone) -> None:
        if event.watched:
            self.reception.watch_hit(thread, event.watched)
        if thread.state is State.RUNNING and thread.returning is not None:
            self._steps.handler_entered(thread)
            self._move(thread, Input.INTERRUPTED)
            return
        if thread.state is State.RUNNING and self._steps.trap_is_ours(thread):
            self._move(thread, Input.INTERRUPTED)
        elif thread.state is State.RUNNING:
            self._steps.hide_slot(thread, event.address)
            self._on_signal(thread, events.SignalArrived(event.thread, signal.SIGTRAP, 0, event.address))
        else:
            self._steps.finish(thread)
            self._ask_about_signal(thread)
            self._move(thread, Input.STEP_DONE)

    def _deliver(self, thread: Thread) -> None:
        if thread.plan is not None:
            self._steps.defer(thread)
        self._go(thread)

    def _defer(self, thread: Thread) -> None:
        self._steps.defer(thread)
        self._go(thread)

    def _tell_stepped(self, thread: Thread, clients: Sequence[str], address: VirtAddr) -> None:
        self.keeper.step_is_done(thread)
        listener = self._listeners.get(thread.process.pid)
        if listener is not None:
            listener.stepped(thread.process, clients, thread.tid, address)


def _runs_as_before(thread: Thread, stops: int) -> bool:
    """Whether it has not stopped since, so that it may still run as it was let run then."""
    return (
        thread.state in (State.RUNNING, State.LISTENING) and thread.vfork_child is None and thread.port.stops == stops
    )
