"""What a step of an x86 instruction or of its copy leaves wrong, and how that is put right."""

from typing import Final

from ubpx.core.ubp.encoding import Encoding
from ubpx.core.ubp.plans import FixUp, InsnAnalysis, MemoryWrite, Outcome, SlotCode, StepPlan
from ubpx.core.ubp.x86 import TRAP_FLAG, goes_on_after_fault, is_repeated_string
from ubpx.core.ubp.x86_operands import Mode
from ubpx.core.ubp.x86_slots import check_copied, copy_size
from ubpx.core.values import ReadableRegisters, VirtAddr

_RESTART_BLOCK: Final = 2**64 - 516
_RESTARTS: Final = frozenset(2**64 - error for error in (512, 513, 514, 516))
"""ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK: what rax holds until the kernel decides
(include/linux/errno.h)."""
_RESTART_SYSCALL: Final = {64: 219, 32: 0}
"""The number of restart_syscall."""


def plan_step(encoding: Encoding, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
    """See ``Architecture.before_step``."""
    insn, size, fix_ups = analysis.insn, analysis.insn.length, analysis.fix_ups
    if slot == insn.address:
        fix_ups -= {FixUp.RETURN_ADDRESS, FixUp.X87_POINTER}
    else:
        size = copy_size(encoding, check_copied(encoding, insn), insn)
    steps_itself = bool(regs["eflags"] & TRAP_FLAG)
    if steps_itself:  # a pushf of its own would store TF too
        fix_ups -= {FixUp.PUSHED_TRAP_FLAG}
    return StepPlan(
        origin=insn.address,
        slot=slot,
        origin_end=insn.end,
        slot_end=VirtAddr(slot + size),
        repeats=is_repeated_string(encoding) or goes_on_after_fault(encoding),
        fix_ups=fix_ups,
        steps_itself=steps_itself,
    )


def finish_step(plan: StepPlan, regs: ReadableRegisters, mode: Mode) -> Outcome:
    """See ``Architecture.after_step``.

    A rep that is still at its start has not finished, unless the program itself wants a trap behind each iteration;
    in place, a jump to itself has.
    """
    pc = regs[mode.pc]
    if pc == plan.slot and plan.repeats and plan.steps_itself:
        return Outcome(registers={mode.pc: plan.origin})
    if pc == plan.slot and (plan.repeats or not plan.in_place):
        return Outcome(registers={}, finished=False)
    writes = []
    sp = regs[mode.sp]
    if FixUp.RETURN_ADDRESS in plan.fix_ups:
        writes.append(MemoryWrite(VirtAddr(sp), plan.origin_end.to_bytes(mode.word, "little")))
    if FixUp.PUSHED_TRAP_FLAG in plan.fix_ups:
        # pushf changes no flag: what it should have stored is what the thread still has.
        second_byte = (regs["eflags"] & ~TRAP_FLAG) >> 8 & 0xFF
        writes.append(MemoryWrite(VirtAddr(sp + 1 & mode.mask), bytes((second_byte,))))
    registers = {mode.pc: int(plan.origin_end)} if pc == plan.slot_end else {}
    if FixUp.LINK_REGISTERS in plan.fix_ups and pc == plan.slot_end:
        registers |= _unlinked(regs, pc, plan.origin_end, own_trap=plan.steps_itself)
    pointer = (plan.slot, plan.origin) if FixUp.X87_POINTER in plan.fix_ups else None
    return Outcome(registers=registers, writes=tuple(writes), x87_pointer=pointer)


def unfinished(plan: StepPlan, regs: ReadableRegisters, mode: Mode) -> Outcome:
    """See ``Architecture.cancel_step``: the copy has not run.

    Before a call faults at its target, the processor writes the return address. And the kernel takes the trap flag
    of a step over popf for one that popf has set.
    """
    registers = {mode.pc: int(plan.origin)}
    if regs["eflags"] & TRAP_FLAG and not plan.steps_itself:
        registers["eflags"] = regs["eflags"] & ~TRAP_FLAG
    if FixUp.RETURN_ADDRESS not in plan.fix_ups:
        return Outcome(registers=registers)
    wrong, right = (address.to_bytes(mode.word, "little") for address in (plan.slot_end, plan.origin_end))
    write = MemoryWrite(VirtAddr(regs[mode.sp] - mode.word & mode.mask), right, wrong)
    return Outcome(registers=registers, writes=(write,))


def _unlinked(regs: ReadableRegisters, link: int, end: int, *, own_trap: bool) -> dict[str, int]:
    """Rcx and r11 as the system call would have left them in place; nothing if it has not left them so."""
    if regs["rcx"] != link:
        return {}
    changes = {} if link == end else {"rcx": end}
    return changes if own_trap else changes | {"r11": regs["r11"] & ~TRAP_FLAG}


def leave(code: SlotCode, regs: ReadableRegisters, mode: Mode) -> Outcome:
    """See ``Architecture.leave_slot``."""
    pc = VirtAddr(regs[mode.pc])
    landing = code.program_pc(pc)
    changes = {mode.pc: int(landing)}
    if code.link is not None and pc == code.slot + code.link[0] and regs[code.link[1]] == pc:
        changes[code.link[1]] = landing
    return Outcome(registers=changes)


def hide(regs: ReadableRegisters, mode: Mode) -> Outcome:
    """See ``Architecture.hide_step``: right behind a system call rcx is the PC."""
    pc = regs[mode.pc]
    if mode.bits == 32 or regs["rcx"] != pc or regs["eflags"] & TRAP_FLAG:
        return Outcome(registers={})
    return Outcome(registers=_unlinked(regs, pc, pc, own_trap=False))


def restarted(regs: ReadableRegisters, mode: Mode) -> dict[str, int] | None:
    """See ``Architecture.restarted``."""
    result, call = ("rax", "orig_rax") if mode.bits == 64 else ("eax", "orig_eax")
    found = _as_signed_word(regs[result], mode)
    if regs[call] >= 1 << mode.bits - 1 or found not in _RESTARTS:
        return None
    return {result: _RESTART_SYSCALL[mode.bits] if found == _RESTART_BLOCK else regs[call]}


def _as_signed_word(value: int, mode: Mode) -> int:
    """A result of 32 bits, which a tracer of 64 bits may see cut or extended, as one of 64."""
    return value | 0xFFFF_FFFF_0000_0000 if mode.bits == 32 and value & 1 << 31 else value
