"""What the emulated riscv64 instructions do to registers. None of them touches memory, and none can fault.

Source: The RISC-V Instruction Set Manual, volume I, chapters 2.4 and 2.5.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import Emulator, Outcome
from ubpx.core.ubp.riscv64_encoding import MASK, REGISTERS, Encoding
from ubpx.core.ubp.riscv64_insns import InsnClass, target_of
from ubpx.core.ubp.riscv64_short import signed
from ubpx.core.ubp.riscv64_slots import PC
from ubpx.core.values import Insn, ReadableRegisters

# Each takes an encoding and the instruction that it is of, and gives what does that instruction.
Make = Callable[[Encoding, Insn], Emulator]


def _read(regs: ReadableRegisters, number: int) -> int:
    return regs[REGISTERS[number]] if number else 0


def _written(number: int, value: int) -> dict[str, int]:
    """What writing a register changes: nothing for x0."""
    return {REGISTERS[number]: value} if number else {}


def _fixed(registers: Mapping[str, int]) -> Emulator:
    outcome = Outcome(registers=registers)
    return lambda _regs, _memory: outcome


def _nop(_encoding: Encoding, insn: Insn) -> Emulator:
    return _fixed({PC: insn.end})


def _jump(encoding: Encoding, insn: Insn) -> Emulator:
    target = insn.address + encoding.j_immediate & MASK
    return _fixed({**_written(encoding.rd, insn.end), PC: target})


def _indirect_jump(encoding: Encoding, insn: Insn) -> Emulator:
    """The target is taken before the return address is written, also where both are in one register."""
    base, immediate, link = encoding.rs1, encoding.i_immediate, _written(encoding.rd, insn.end)

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        return Outcome(registers={**link, PC: _read(regs, base) + immediate & MASK & ~1})

    return emulate


def _branch(encoding: Encoding, insn: Insn) -> Emulator:
    holds, end = _CONDITIONS[encoding.funct3], insn.end
    one, other = encoding.rs1, encoding.rs2
    target = target_of(encoding, InsnClass.BRANCH, insn.address)

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        return Outcome(registers={PC: int(target or 0) if holds(_read(regs, one), _read(regs, other)) else end})

    return emulate


def _address(encoding: Encoding, insn: Insn) -> Emulator:
    value = insn.address + encoding.u_immediate & MASK
    return _fixed({**_written(encoding.rd, value), PC: insn.end})


_CONDITIONS: Final[Mapping[int, Callable[[int, int], bool]]] = {
    0: lambda one, other: one == other,
    1: lambda one, other: one != other,
    4: lambda one, other: signed(one, 64) < signed(other, 64),
    5: lambda one, other: signed(one, 64) >= signed(other, 64),
    6: lambda one, other: one < other,
    7: lambda one, other: one >= other,
}
"""By bits 14 to 12."""
_MAKERS: Final[Mapping[InsnClass, Make]] = {
    InsnClass.NOP: _nop,
    InsnClass.JUMP: _jump,
    InsnClass.INDIRECT_JUMP: _indirect_jump,
    InsnClass.BRANCH: _branch,
    InsnClass.ADDRESS: _address,
}
EMULATED: Final = frozenset(_MAKERS)


def make_emulator(encoding: Encoding, kind: InsnClass, insn: Insn) -> Emulator | None:
    """What does this instruction; None for a class that is not emulated."""
    make = _MAKERS.get(kind)
    return None if make is None else make(encoding, insn)
