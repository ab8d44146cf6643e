"""The ways past one instruction, each run to its end on a machine that unicorn plays."""

from typing import Final

from ubpx._errors import MemoryFault, NotEmulated
from ubpx.core.registers import RegisterLayout
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing.emulated.processor import Case, End, Machine, Processor

_MOST_RUNS: Final = 8
"""Instructions of a slot, and steps of one instruction."""
_LOST: Final = "the thread does not come out of the slot"


class Routes:
    """Runs cases, each from the same beginning. Owned by one Campaign."""

    def __init__(self, processor: Processor, architecture: Architecture) -> None:
        self.machine: Final = Machine(processor)
        self._processor: Final = processor
        self._architecture: Final = architecture
        names = architecture.register_names
        self.layout: Final = RegisterLayout(
            architecture.name, names, architecture.pc_name, word_size=architecture.word_size
        )  # fmt: skip
        self._places: Final = {name: place for place, name in enumerate(names)}
        self._pc: Final = self.layout.pc

    def in_place(self, case: Case) -> End:
        """The instruction itself, at its own address."""
        self.machine.again()
        return self.machine.end(self.machine.run(case.origin))

    def by(self, strategy: Strategy, case: Case, analysis: InsnAnalysis) -> End | None:
        """The same by one strategy; None where emulation leaves this arrival to another."""
        self.machine.again()
        match strategy:
            case Strategy.EMULATE:
                return self._emulated(analysis)
            case Strategy.BOOST:
                return self._boosted(case, analysis)
            case _:
                return self._stepped(case, analysis, in_place=strategy is Strategy.INLINE)

    def _emulated(self, analysis: InsnAnalysis) -> End | None:
        try:
            outcome = self._architecture.emulate(analysis, self, self.machine)
        except (MemoryFault, NotEmulated):
            return None
        self._apply(outcome)
        return self.machine.end("")

    def _boosted(self, case: Case, analysis: InsnAnalysis) -> End:
        code = self._copy(case, analysis)
        if Strategy.BOOST not in code.serves:
            return self.machine.end("the slot has no way back")
        inside = range(case.slot, case.slot + len(code.code))
        at, fault = case.slot, ""
        for _ in range(_MOST_RUNS):
            fault = self.machine.run(at)
            at = self.machine[self._pc]
            if fault or at not in inside:
                break
        else:
            fault = _LOST
        if fault:
            self._apply(self._architecture.leave_slot(code, self))
        return self._end(case, fault)

    def _stepped(self, case: Case, analysis: InsnAnalysis, *, in_place: bool) -> End:
        slot = case.origin if in_place else self._copy(case, analysis).slot
        plan = self._architecture.before_step(analysis, VirtAddr(slot), self)
        for _ in range(_MOST_RUNS):
            fault = self._step(plan)
            if fault:
                self._apply(self._architecture.cancel_step(plan, self))
                return self._end(case, fault)
            outcome = self._architecture.after_step(plan, self)
            self._apply(outcome)
            if outcome.finished:
                return self._end(case, "")
        return self._end(case, _LOST)

    def _step(self, plan: StepPlan) -> str:
        """Of one instruction; where the processor cannot, the trap behind the copy ends it."""
        fault = self.machine.run(plan.slot)
        pc = self.machine[self._pc]
        if fault or plan.in_place or self._architecture.has_single_step or pc != plan.slot_end:
            return fault
        ending = self.machine.run(pc)
        return "" if ending == self._processor.trap else f"{ending or 'no trap'} behind the copy"

    def _copy(self, case: Case, analysis: InsnAnalysis) -> SlotCode:
        code = self._architecture.slot_code(analysis, VirtAddr(case.slot))
        self.machine.put_code(case.slot, code.code)
        return code

    def __getitem__(self, name: str) -> int:
        """See ReadableRegisters."""
        return self.machine[self._places[name]]

    def _apply(self, outcome: Outcome) -> None:
        for write in outcome.writes:
            self.machine.write(write.address, write.data)
        for name, value in outcome.registers.items():
            self.machine.set_register(self._places[name], value)

    def _end(self, case: Case, fault: str) -> End:
        """A fault on the copy's own address is one on the instruction's: the tracer corrects that."""
        end = self.machine.end(fault)
        offset = end.fault_address - case.slot
        return end._replace(fault_address=case.origin + offset) if 0 <= offset < len(case.code) else end
