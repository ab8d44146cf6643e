"""Signals that meet a slot, and the steps over copies: the program never sees that it was elsewhere."""

import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ubpx._errors import InsnRefused, InternalError, MemoryFault
from ubpx.core import events
from ubpx.core.ports import Tracer
from ubpx.core.registers import WordRegisters, put
from ubpx.core.sites import ReturningSite, leave_slot
from ubpx.core.spaces import AddressSpace, HandlerFrame, Thread
from ubpx.core.stepping import State
from ubpx.core.ubp.plans import InsnAnalysis, Outcome, SlotCode, Strategy, carry_out
from ubpx.core.values import VirtAddr

_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})

_POPPED_OF_FRAME: Final = 16
"""Bytes at most that a handler's return has taken off the stack when it makes the system call that ends it."""
_STACK: Final = 8 << 20
"""Bytes that a stack has, for telling it from another one."""

TellStepped = Callable[[Thread, Sequence[str], VirtAddr], None]
"""Somebody asked for a step of the thread; it now stands at the address."""


class Steps:
    """Puts right what stepping, and being elsewhere, leaves wrong. Owned by the Coordinator; moves nobody."""

    def __init__(self, tracer: Tracer, tell_stepped: TellStepped) -> None:
        self._tracer: Final = tracer
        self._tell_stepped: Final = tell_stepped

    def signal_arrived(self, thread: Thread, event: events.SignalArrived) -> bool:
        """Before the signal is passed on: out of any slot. Whether the thread's own instruction raised it."""
        thread.pending = event.signal
        fault = event.code > 0 and event.signal in _FAULTS
        if event.code > 0:
            self.hide_slot(thread, event.fault_address)
        if thread.state is not State.STEPPING and self._tracer.fetch(thread.port):
            self._look_for_slot(thread, returns=not fault)
        if fault:
            self._cancel(thread, event)
        return fault

    def hide_slot(self, thread: Thread, address: VirtAddr) -> None:
        """What the kernel says of where a signal came from is the program's own: si_addr, or SIGSYS's si_call_addr."""
        code = thread.process.space.slots.code_at(address)
        if code is not None:
            self._tracer.correct_fault_address(thread.port, code.program_pc(address))

    def _look_for_slot(self, thread: Thread, *, returns: bool) -> None:
        """Behind the copy the thread moves on; before it, it must step over it first, or come back by itself.

        ``returns``: coming back is no new arrival. From the handler of a fault it is one, as for any instruction.
        """
        space = thread.process.space
        pc = VirtAddr(thread.port.words[space.layout.pc])
        code = space.slots.code_at(pc)
        if code is None:
            return
        pc = self._to_copy(thread, code, pc)
        analysis = self._analysis_of(space, code)
        registers = WordRegisters(thread.port.words, space.layout)
        if pc == code.slot and analysis is not None and not analysis.restarts:
            thread.plan = space.architecture.before_step(analysis, code.slot, registers)
            return
        restarted = space.architecture.restarted(registers) if analysis is not None and analysis.waits else None
        self._apply(thread, space.architecture.leave_slot(code, registers))
        if returns and analysis is not None and (pc == code.slot or restarted is not None):
            self._expect_return(thread, code.origin, restarted or {})

    def _to_copy(self, thread: Thread, code: SlotCode, pc: VirtAddr) -> VirtAddr:
        """One that came to the slot by a jump, and was counted, stands before the copy as if it had come by a trap."""
        if pc != code.entered:
            return pc
        thread.port.words[thread.process.space.layout.pc] = code.slot
        self._tracer.store(thread.port)
        return code.slot

    def _expect_return(self, thread: Thread, origin: VirtAddr, changes: Mapping[str, int]) -> None:
        """The instruction begins again at ``origin`` when the signal has been dealt with: that is no new arrival."""
        space = thread.process.space
        probepoint = space.registry.at(origin)
        site = thread.port.sites.get(probepoint.patch.reported_pc) if probepoint is not None else None
        if not isinstance(site, ReturningSite):
            return
        words = list(thread.port.words)
        put(words, space.layout, {**changes, space.layout.pc_name: origin})
        relevant = site.relevant(words)
        site.expect_at_once(thread.port, relevant)
        thread.returning = HandlerFrame(site, relevant)

    def trap_is_ours(self, thread: Thread) -> bool:
        """Whether the trap of a program that steps itself came from what only the slot has; then it is out of there."""
        if not self._tracer.fetch(thread.port):
            return False
        space = thread.process.space
        pc = thread.port.words[space.layout.pc]
        code = space.slots.code_at(pc)
        if code is not None and code.entry is not None and pc == code.slot + code.entry:
            return True  # the step over the jump; the instruction is not done yet
        if code is None or code.cushion is None or pc <= code.slot + code.cushion:
            return False
        self._leave_slot(thread)
        return True

    def handler_entered(self, thread: Thread) -> None:
        """The signal has a handler: the thread comes back when that returns, if it does, and if not with EINTR."""
        frame, thread.returning = thread.returning, None
        if frame is None or not self._tracer.fetch(thread.port):
            return
        frame.site.dismiss(thread.port)
        space = thread.process.space
        registers = WordRegisters(thread.port.words, space.layout)
        with contextlib.suppress(MemoryFault):
            if space.architecture.interrupted_pc(registers, space.memory) == frame.site.probepoint.address:
                frame.sp = registers[space.architecture.sp_name]
                thread.frames.append(frame)
        self.look_at_frames(thread)

    def look_at_frames(self, thread: Thread) -> None:
        """While handlers run that a thread may come back from, its system calls are looked at."""
        thread.port.reports_syscalls = thread.process.reports_syscalls or bool(thread.frames)

    def syscall_entered(self, thread: Thread, number: int) -> None:
        """The end of a handler is one, by its frame; frames that the stack has grown out of were left otherwise."""
        if not thread.frames or not self._tracer.fetch(thread.port):
            return
        architecture = thread.process.space.architecture
        sp = thread.port.words[thread.process.space.layout.index[architecture.sp_name]]
        for at, frame in enumerate(thread.frames):
            if number in architecture.sigreturn_calls and 0 < sp - frame.sp <= _POPPED_OF_FRAME:
                frame.site.expect(thread.port, frame.relevant)
                del thread.frames[at:]
                break
        thread.frames[:] = [frame for frame in thread.frames if not 0 < sp - frame.sp < _STACK]
        self.look_at_frames(thread)

    def _analysis_of(self, space: AddressSpace, code: SlotCode) -> InsnAnalysis | None:
        """What the slot holds a copy of; None if the program has other code there by now."""
        probepoint = space.registry.at(code.origin)
        if probepoint is not None:
            return probepoint.analysis
        try:
            raw = space.memory.read(code.origin, space.architecture.longest_insn)
            return space.architecture.analyze(raw, code.origin)
        except (InsnRefused, MemoryFault):
            return None

    def is_postponed(self, thread: Thread, event: events.SignalArrived) -> bool:
        """Whether this is the signal that the thread was borrowed from: it is delivered as it was, and nobody asked."""
        postponed = thread.postponed
        if postponed is None or not postponed.sent or postponed.number != event.signal:
            return False
        thread.postponed = None
        if postponed.info:
            self._tracer.replace_signal(thread.port, postponed.info)
        return True

    def send_postponed(self, thread: Thread) -> None:
        """Have the signal come again that could not be delivered from the present stop."""
        if thread.postponed is not None and not thread.postponed.sent:
            thread.postponed.sent = True
            self._tracer.send_signal(thread.port, thread.postponed.number)

    def part_with(self, thread: Thread) -> None:
        """Before a stopped thread is left: no signal is lost with it. A fault comes again by itself."""
        if thread.postponed is not None and not thread.postponed.is_fault:
            self.send_postponed(thread)

    def defer(self, thread: Thread) -> None:
        """Keep the signal that the thread stopped for until its step is done; no other comes meanwhile."""
        number, thread.pending = thread.pending, 0
        thread.deferred.append((number, self._tracer.signal_info(thread.port)))
        if thread.mask is None:
            thread.mask = self._tracer.block_signals(thread.port)

    def _cancel(self, thread: Thread, event: events.SignalArrived) -> None:
        """The copy faulted: the program sees its own instruction's address, in siginfo too."""
        plan = thread.plan
        if plan is None or not self._tracer.fetch(thread.port):
            return
        space = thread.process.space
        self._apply(thread, space.architecture.cancel_step(plan, WordRegisters(thread.port.words, space.layout)))
        thread.plan = None
        if plan.slot <= event.fault_address < plan.slot_end:
            self._tracer.correct_fault_address(thread.port, plan.origin)
        self._give_back_signals(thread)

    def take(self, thread: Thread) -> None:
        """Let the thread run its one instruction; a signal that is due comes first, unless a copy must end before."""
        if thread.plan is None:
            self._plan_where_it_stands(thread)
        due = 0
        if thread.plan is None:
            thread.pending, due = 0, thread.pending
        thread.leave_site()
        self.send_postponed(thread)
        self.run_one(thread, due)

    def run_one(self, thread: Thread, due: int = 0) -> None:
        """Let it go for one instruction; a copy that no single step can end does so by its own trap."""
        if thread.process.space.architecture.has_single_step:
            self._tracer.step(thread.port, due)
            return
        self._go_to_copy(thread)
        self._tracer.resume(thread.port, due)

    def _go_to_copy(self, thread: Thread) -> None:
        """Before the copy that ends in a trap: the one at the slot's start leads back to the program."""
        plan, place = thread.plan, thread.process.space.layout.pc
        if plan is None or plan.in_place or not self._tracer.fetch(thread.port):
            return
        code = thread.process.space.slots.code_at(thread.port.words[place])
        if code is not None and code.to_origin(VirtAddr(thread.port.words[place])) == plan.origin:
            thread.port.words[place] = plan.slot
            self._tracer.store(thread.port)

    def ends_step(self, thread: Thread) -> bool:
        """Whether the trap that the thread ran into is the one behind its copy."""
        plan, space = thread.plan, thread.process.space
        if plan is None or plan.in_place or space.architecture.has_single_step or not self._tracer.fetch(thread.port):
            return False
        pc = thread.port.words[space.layout.pc]
        return pc == plan.slot_end + space.architecture.trap_advance

    def _plan_where_it_stands(self, thread: Thread) -> None:
        """Over a copy, and for an instruction that shows a step; at a trap of ours the thread arrives first."""
        space = thread.process.space
        if thread.pending or not self._tracer.fetch(thread.port):
            return
        pc = VirtAddr(thread.port.words[space.layout.pc])
        code = space.slots.code_at(pc)
        if code is None and (pc in space.patches or pc in space.dormant):
            probepoint = space.registry.at(pc)
            if probepoint is not None and probepoint.jump is not None:  # a step over the jump would be no arrival
                thread.port.words[space.layout.pc] = probepoint.jump.reported_pc - space.architecture.trap_advance
                self._tracer.store(thread.port)
            return
        if code is not None:
            pc = self._to_copy(thread, code, pc)
        analysis = self._analysis_of(space, code) if code is not None else self._analysis_at(space, pc)
        if analysis is None or analysis.waits or (code is not None and Strategy.STEP not in analysis.strategies):
            return
        if pc == (code.slot if code is not None else pc) and (code is not None or analysis.fix_ups):
            registers = WordRegisters(thread.port.words, space.layout)
            thread.plan = space.architecture.before_step(analysis, pc, registers)

    def _analysis_at(self, space: AddressSpace, pc: VirtAddr) -> InsnAnalysis | None:
        """Of what stands there; None if no probe could."""
        try:
            return space.architecture.analyze(space.memory.read(pc, space.architecture.longest_insn), pc)
        except (InsnRefused, MemoryFault):
            return None

    def finish(self, thread: Thread) -> None:
        """Put right what a step left; a repeated instruction keeps its plan, and needs another step."""
        plan = thread.plan
        if plan is None and not thread.step_clients:
            raise InternalError(f"thread {thread.tid} ended a step that nobody asked for")
        space = thread.process.space
        if not self._tracer.fetch(thread.port):
            return  # killed meanwhile: its exit follows
        registers = WordRegisters(thread.port.words, space.layout)
        if plan is None:
            self._apply(thread, space.architecture.hide_step(registers))
            if space.architecture.restarted(registers) is None:  # else a signal follows, and wants to know where it was
                self._leave_slot(thread)
            self.stepped(thread)
            return
        outcome = space.architecture.after_step(plan, registers)
        if outcome.finished:
            self._apply(thread, outcome)
            thread.plan = None
            if plan.steps_itself:  # it waits for a trap of its own
                thread.pending = signal.SIGTRAP
                pc = VirtAddr(thread.port.words[space.layout.pc])
                self._tracer.correct_fault_address(thread.port, pc)
                if plan.repeats and pc == plan.origin:
                    self._expect_return(thread, plan.origin, {})
            self.stepped(thread)

    def stepped(self, thread: Thread) -> None:
        """The instruction is done, and what was put off for it is due: tell who asked for it.

        ``words`` are up to date.
        """
        self._give_back_signals(thread)
        if thread.step_clients:
            clients, thread.step_clients = thread.step_clients, ()
            space = thread.process.space
            pc = VirtAddr(thread.port.words[space.layout.pc])
            code = space.slots.code_at(pc)
            self._tell_stepped(thread, clients, pc if code is None else code.program_pc(pc))

    def leave_slot(self, thread: Thread) -> None:
        """Stand in the program's own code, nothing half done; for a stopped thread that is let go."""
        if thread.state is not State.PARKED or not self._tracer.fetch(thread.port):
            return
        self._leave_slot(thread)
        thread.plan = None
        deferred, thread.deferred = thread.deferred, []
        for number, _ in deferred:  # from a stop that may be no signal's own none could be delivered
            self._tracer.send_signal(thread.port, number)
        self._give_back_signals(thread)

    def _leave_slot(self, thread: Thread) -> None:
        space = thread.process.space
        leave_slot(self._tracer, thread.port, space, space)

    def _apply(self, thread: Thread, outcome: Outcome) -> None:
        for write in outcome.writes:
            with contextlib.suppress(MemoryFault):  # the program has taken its stack away, or changed our copy
                carry_out(write, thread.process.space.raw)
        if outcome.registers:
            put(thread.port.words, thread.process.space.layout, outcome.registers)
            self._tracer.store(thread.port)
        if outcome.x87_pointer is not None:
            self._tracer.correct_x87_pointer(thread.port, *outcome.x87_pointer)

    def _give_back_signals(self, thread: Thread) -> None:
        if thread.mask is not None:
            self._tracer.restore_signals(thread.port, thread.mask)
            thread.mask = None
        deferred, thread.deferred = thread.deferred, []
        for number, info in deferred:
            if thread.pending:
                self._tracer.send_signal(thread.port, number)
            else:
                self._tracer.replace_signal(thread.port, info)
                thread.pending = number
