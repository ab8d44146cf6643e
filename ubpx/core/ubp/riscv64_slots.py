"""Out-of-line copies of riscv64 instructions: the bytes of a slot, and what a step over one leaves.

A slot holds the copy, then a jump back, for BOOST; behind that the copy again, then a trap, for STEP: Linux has no
single step on riscv64 (arch/riscv defines no arch_has_single_step). Where the jump does not reach the program (jal:
1 MiB), there is the second half alone, and no BOOST.
"""

from typing import Final

from ubpx._errors import UsageError
from ubpx.core.ubp.plans import InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy
from ubpx.core.ubp.riscv64_encoding import jal
from ubpx.core.ubp.riscv64_short import C_EBREAK, EBREAK
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr

TRAP: Final = C_EBREAK.to_bytes(2, "little")
"""c.ebreak; the PC stays at it."""
LONG_TRAP: Final = EBREAK.to_bytes(4, "little")
"""ebreak; the PC stays at it."""
PC: Final = "pc"
NO_SINGLE_STEP: Final = "there is no single step, and whatever stands behind it in the program must not be a trap"
_JAL_SIZE: Final = 4


def make_slot(analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
    """See ``Architecture.slot_code``."""
    insn = _copied(analysis)
    back = jal(0, insn.end - (slot + insn.length))
    boosted = b"" if back is None else insn.raw + back
    stepped = len(boosted)
    stop = stepped + insn.length
    places = [(stepped, insn.address), (stop, insn.end)]
    if boosted:
        places = [(0, insn.address), (insn.length, insn.end), *places]
    return SlotCode(
        origin=insn.address,
        slot=slot,
        code=boosted + insn.raw + TRAP,
        places=tuple(places),
        stop=stop,
        serves=(Strategy.BOOST, Strategy.STEP) if boosted else (Strategy.STEP,),
    )


def _copied(analysis: InsnAnalysis) -> Insn:
    if Strategy.STEP not in analysis.strategies:
        raise UsageError(f"'{analysis.insn}' cannot run in a slot: {analysis.refusals[Strategy.STEP]}; emulate it")
    return analysis.insn


def plan_step(analysis: InsnAnalysis, slot: VirtAddr) -> StepPlan:
    """See ``Architecture.before_step``: the plan's ``slot`` is where the copy is that ends in a trap."""
    insn = analysis.insn
    if slot == insn.address:
        raise UsageError(f"'{insn}' cannot be stepped in place: {NO_SINGLE_STEP}")
    code = make_slot(analysis, slot)
    end = VirtAddr(slot + (code.stop or 0))
    return StepPlan(
        origin=insn.address,
        slot=VirtAddr(end - insn.length),
        origin_end=insn.end,
        slot_end=end,
        repeats=False,
        fix_ups=frozenset(),
    )


def finish_step(plan: StepPlan, regs: ReadableRegisters) -> Outcome:
    """See ``Architecture.after_step``: whatever has a copy goes on behind it, or faults before it."""
    pc = regs[PC]
    if pc == plan.slot:
        return Outcome(registers={}, finished=False)
    return Outcome(registers={PC: int(plan.origin_end)} if pc == plan.slot_end else {})


def give_up_step(plan: StepPlan, regs: ReadableRegisters) -> Outcome:
    """See ``Architecture.cancel_step``: whichever of its copies the thread stands at."""
    other_copy = plan.slot - (plan.slot_end - plan.slot) - _JAL_SIZE
    if other_copy <= regs[PC] < plan.slot_end:
        return Outcome(registers={PC: int(plan.origin)})
    return finish_step(plan, regs)


def leave(code: SlotCode, regs: ReadableRegisters) -> Outcome:
    """See ``Architecture.leave_slot``."""
    return Outcome(registers={PC: int(code.program_pc(VirtAddr(regs[PC])))})
