"""Out-of-line copies of aarch64 instructions: the bytes of a slot, the places in it, and steps of the copy."""

from typing import Final

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ubp.aarch64_insns import INSN_SIZE, InsnClass
from ubpx.core.ubp.plans import InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr

SLOT_REACH: Final = 1 << 27
"""Of ``b``, bytes in either direction."""
_B: Final = 0x1400_0000


def make_slot(analysis: InsnAnalysis, kind: InsnClass, slot: VirtAddr) -> SlotCode:
    """See ``Architecture.slot_code``. Raises UsageError for what no slot can hold."""
    insn = analysis.insn
    check_copied(analysis)
    code, places = insn.raw, [(0, insn.address)]
    if kind is not InsnClass.LEAVES:
        places.append((INSN_SIZE, insn.end))
        code += _branch(insn, VirtAddr(slot + INSN_SIZE), insn.end)
    return SlotCode(origin=insn.address, slot=slot, code=code, places=tuple(places))


def check_copied(analysis: InsnAnalysis) -> None:
    """Raises UsageError for an instruction that can have no copy."""
    if Strategy.BOOST not in analysis.strategies:
        raise UsageError(f"'{analysis.insn}' cannot run in a slot: {analysis.refusals[Strategy.BOOST]}")


def _branch(insn: Insn, at: VirtAddr, target: VirtAddr) -> bytes:
    distance = (target - at + 2**63) % 2**64 - 2**63
    if not -SLOT_REACH <= distance < SLOT_REACH:
        raise InsnRefused(insn.address, insn, f"the slot at {at:#x} is more than 128 MiB away from {target:#x}")
    return (_B | distance // INSN_SIZE & 0x3FF_FFFF).to_bytes(INSN_SIZE, "little")


def plan_step(analysis: InsnAnalysis, slot: VirtAddr) -> StepPlan:
    """See ``Architecture.before_step``."""
    insn = analysis.insn
    if slot != insn.address:
        check_copied(analysis)
    return StepPlan(
        origin=insn.address,
        slot=slot,
        origin_end=insn.end,
        slot_end=VirtAddr(slot + insn.length),
        repeats=False,
        fix_ups=analysis.fix_ups,
    )


def finish_step(plan: StepPlan, regs: ReadableRegisters) -> Outcome:
    """See ``Architecture.after_step``: no copy that is stepped leaves anything wrong but where the thread is."""
    pc = regs["pc"]
    if pc == plan.slot and not plan.in_place:
        return Outcome(registers={}, finished=False)
    return Outcome(registers={"pc": plan.origin_end} if pc == plan.slot_end else {})
