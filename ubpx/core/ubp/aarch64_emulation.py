"""What the emulated aarch64 instructions do to registers.

Source: DDI 0487, section C6.2, each instruction's own page. Literals are little-endian: Linux runs this machine so, but
for kernels that call themselves aarch64_be.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx.core.ports import Memory
from ubpx.core.ubp.aarch64_insns import BRANCH_TYPE, INSN_SIZE, InsnClass, bits, condition_holds, named
from ubpx.core.ubp.plans import Emulator, Outcome
from ubpx.core.values import ReadableRegisters, VirtAddr

Make = Callable[[int, int, int], Emulator]
"""Takes a word, its address, and what it names relative to that."""
_LINK: Final = "x30"
_NO_REGISTER: Final = 31
_MASK: Final = 2**64 - 1


def _moved(regs: ReadableRegisters, pc: int, changes: Mapping[str, int] | None = None) -> Outcome:
    """The thread at ``pc``, as after any instruction: how it was branched to is forgotten."""
    registers = {**(changes or {}), "pc": pc & _MASK}
    pstate = regs["pstate"]
    if pstate & BRANCH_TYPE:
        registers["pstate"] = pstate & ~BRANCH_TYPE
    return Outcome(registers=registers)


def _set(register: int, value: int) -> dict[str, int]:
    return {} if register == _NO_REGISTER else {f"x{register}": value & _MASK}


def _value(register: int, regs: ReadableRegisters) -> int:
    return 0 if register == _NO_REGISTER else regs[f"x{register}"]


def _nop(_word: int, address: int, _target: int) -> Emulator:
    return lambda regs, _memory: _moved(regs, address + INSN_SIZE)


def _jump(_word: int, _address: int, target: int) -> Emulator:
    return lambda regs, _memory: _moved(regs, target)


def _call(_word: int, address: int, target: int) -> Emulator:
    return lambda regs, _memory: _moved(regs, target, {_LINK: address + INSN_SIZE & _MASK})


def _branch(word: int, address: int, target: int) -> Emulator:
    condition = bits(word, 3, 0)

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        return _moved(regs, target if condition_holds(condition, regs["pstate"]) else address + INSN_SIZE)

    return emulate


def _compare_branch(word: int, address: int, target: int) -> Emulator:
    register, wanted = bits(word, 4, 0), bool(bits(word, 24, 24))
    mask = _MASK if bits(word, 31, 31) else 0xFFFF_FFFF

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        taken = bool(_value(register, regs) & mask) == wanted
        return _moved(regs, target if taken else address + INSN_SIZE)

    return emulate


def _test_branch(word: int, address: int, target: int) -> Emulator:
    register, wanted = bits(word, 4, 0), bits(word, 24, 24)
    tested = bits(word, 31, 31) << 5 | bits(word, 23, 19)

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        taken = _value(register, regs) >> tested & 1 == wanted
        return _moved(regs, target if taken else address + INSN_SIZE)

    return emulate


def _indirect(word: int, _address: int, _target: int) -> Emulator:
    register = bits(word, 9, 5)
    return lambda regs, _memory: _moved(regs, _value(register, regs))


def _indirect_call(word: int, address: int, _target: int) -> Emulator:
    """The target is read before the link register is written: ``blr x30`` goes where that led."""
    register = bits(word, 9, 5)
    return lambda regs, _memory: _moved(regs, _value(register, regs), {_LINK: address + INSN_SIZE & _MASK})


def _address(word: int, address: int, target: int) -> Emulator:
    changes = _set(bits(word, 4, 0), target)
    return lambda regs, _memory: _moved(regs, address + INSN_SIZE, changes)


def _literal(word: int, address: int, target: int) -> Emulator:
    register = bits(word, 4, 0)
    extends = bits(word, 31, 30) == 2  # ldrsw
    size = 8 if bits(word, 31, 30) == 1 else 4

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        value = int.from_bytes(memory.read(VirtAddr(target), size), "little", signed=extends)
        return _moved(regs, address + INSN_SIZE, _set(register, value))

    return emulate


_MAKERS: Final[Mapping[InsnClass, Make]] = {
    InsnClass.NOP: _nop,
    InsnClass.PREFETCH: _nop,
    InsnClass.JUMP: _jump,
    InsnClass.CALL: _call,
    InsnClass.BRANCH: _branch,
    InsnClass.COMPARE_BRANCH: _compare_branch,
    InsnClass.TEST_BRANCH: _test_branch,
    InsnClass.LEAVES: _indirect,
    InsnClass.INDIRECT_CALL: _indirect_call,
    InsnClass.ADDRESS: _address,
    InsnClass.PAGE_ADDRESS: _address,
    InsnClass.LITERAL: _literal,
}


def make_emulator(word: int, kind: InsnClass, address: VirtAddr) -> Emulator | None:
    """What does that instruction of the class ``kind``; None where only the instruction itself can."""
    make = _MAKERS.get(kind)
    return None if make is None else make(word, address, named(word, kind, address) or 0)
