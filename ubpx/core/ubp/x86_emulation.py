"""What the emulated x86 instructions do to registers and stack.

Source: Intel SDM volume 2, each instruction's own page.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx._errors import NotEmulated
from ubpx.core.ports import Memory
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, signed
from ubpx.core.ubp.plans import Emulator, MemoryWrite, Outcome
from ubpx.core.ubp.x86 import (
    ADJUST,
    ALIGNMENT_CHECK,
    CARRY,
    DIRECTION,
    IDENTIFICATION,
    NESTED_TASK,
    OVERFLOW,
    PARITY,
    SIGN,
    TRAP_FLAG,
    ZERO,
    InsnClass,
    branch_target,
    condition_holds,
    insn_class,
)
from ubpx.core.ubp.x86_operands import Mode, operand_address, segment
from ubpx.core.values import ReadableRegisters, VirtAddr

# Each takes an encoding, the address behind the instruction and the mode, and gives what does that instruction.

Make = Callable[[Encoding, VirtAddr, Mode], Emulator]


def _word(memory: Memory, address: int, mode: Mode) -> int:
    """Read from the stack, or where a call's target is."""
    return int.from_bytes(memory.read(VirtAddr(address), mode.word), "little")


def _pushed(regs: ReadableRegisters, value: int, pc: int, mode: Mode) -> Outcome:
    """``value`` pushed, and the thread at ``pc``."""
    sp = regs[mode.sp] - mode.word & mode.mask
    write = MemoryWrite(VirtAddr(sp), (value & mode.mask).to_bytes(mode.word, "little"))
    return Outcome(registers={mode.sp: sp, mode.pc: pc}, writes=(write,))


def _numbered(encoding: Encoding, mode: Mode) -> str:
    """The register whose number is in the opcode and REX.B."""
    return mode.registers[encoding.opcode & 7 | encoding.extended]


def _nop(_encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    outcome = Outcome(registers={mode.pc: end})
    return lambda _regs, _memory: outcome


def _jump(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    outcome = Outcome(registers={mode.pc: branch_target(encoding, end)})
    return lambda _regs, _memory: outcome


def _branch(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    condition, target, pc = encoding.opcode & 0x0F, branch_target(encoding, end), mode.pc
    return lambda regs, _memory: Outcome(registers={pc: target if condition_holds(condition, regs["eflags"]) else end})


def _counted_branch(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    """Under an address-size prefix the counter is half as wide: ecx, whose upper half goes, or cx, whose stays."""
    opcode, target, name = encoding.opcode, branch_target(encoding, end), mode.counter
    narrow = ADDRESS_SIZE in encoding.prefixes
    mask = mode.mask >> mode.bits // 2 if narrow else mode.mask
    kept = mode.mask ^ mask if narrow and mode.bits == 32 else 0

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        count = regs[name] & mask
        if opcode == 0xE3:  # jrcxz
            return Outcome(registers={mode.pc: end if count else target})
        count = count - 1 & mask
        zero = regs["eflags"] & ZERO
        wanted = {0xE0: 0, 0xE1: ZERO}.get(opcode, zero)  # loopne, loope; loop takes either
        taken = count != 0 and zero == wanted
        return Outcome(registers={name: count | regs[name] & kept, mode.pc: target if taken else end})

    return emulate


def _call(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    target = branch_target(encoding, end)
    return lambda regs, _memory: _pushed(regs, end, target, mode)


def _indirect_call(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    """The target is read before the return address is pushed, also where that lies at the same place."""
    if encoding.on_register:
        name = mode.registers[(encoding.modrm or 0) & 7 | encoding.extended]
        return lambda regs, _memory: _pushed(regs, end, _checked(regs[name], mode), mode)
    address = operand_address(encoding, mode, end)
    if address is None:
        return _never("the segment or the form of its operand is not followed here")
    selector = segment(encoding) if mode.bits == 32 else None

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        if selector is not None and regs[selector] <= _LAST_NULL_SELECTOR:
            raise NotEmulated("its operand is in a segment that is not there")
        return _pushed(regs, end, _checked(_word(memory, address(regs), mode), mode), mode)

    return emulate


def _checked(target: int, mode: Mode) -> int:
    """A call to what may be no address at all faults at the call, not at its target."""
    if mode.bits == 64 and target >> _USUAL_ADDRESS_BITS:
        raise NotEmulated("the target may be no canonical address")
    return target


_USUAL_ADDRESS_BITS: Final = 47
_LAST_NULL_SELECTOR: Final = 3


def _never(reason: str) -> Emulator:
    def refuse(_regs: ReadableRegisters, _memory: Memory) -> Outcome:
        raise NotEmulated(reason)

    return refuse


def _push_register(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    """``push rsp`` stores the value from before it."""
    name = _numbered(encoding, mode)
    return lambda regs, _memory: _pushed(regs, regs[name], end, mode)


def _push_immediate(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    value = signed(encoding.raw[-1:] if encoding.opcode == 0x6A else encoding.raw[-4:])
    return lambda regs, _memory: _pushed(regs, value, end, mode)


def _pop_register(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    """``pop rsp`` leaves the value that it read."""
    name = _numbered(encoding, mode)

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        sp = regs[mode.sp]
        value = _word(memory, sp, mode)
        return Outcome(registers={mode.sp: sp + mode.word & mode.mask, mode.pc: end} | {name: value})

    return emulate


def _unwind_frame(_encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        frame = regs[mode.bp]
        outer = _word(memory, frame, mode)
        return Outcome(registers={mode.sp: frame + mode.word & mode.mask, mode.bp: outer, mode.pc: end})

    return emulate


_STATUS: Final = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW
_POPPED: Final = _STATUS | TRAP_FLAG | DIRECTION | NESTED_TASK | ALIGNMENT_CHECK
"""What popf changes for a program, but for ID, which ptrace does not let us set."""


def _pop_flags(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator:
    size = 2 if encoding.narrow else mode.word
    mask = _POPPED & (0xFFFF if encoding.narrow else 0xFFFF_FFFF)

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        sp, flags = regs[mode.sp], regs["eflags"]
        popped = int.from_bytes(memory.read(VirtAddr(sp), size), "little")
        if size > 2 and (popped ^ flags) & IDENTIFICATION:
            raise NotEmulated("popf changes the ID flag, which no tracer can set")
        flags = flags & ~mask | popped & mask
        return Outcome(registers={mode.sp: sp + size & mode.mask, "eflags": flags, mode.pc: end})

    return emulate


EMULATORS: Final[Mapping[InsnClass, Make]] = {
    InsnClass.NOP: _nop,
    InsnClass.JUMP: _jump,
    InsnClass.BRANCH: _branch,
    InsnClass.COUNTED_BRANCH: _counted_branch,
    InsnClass.CALL: _call,
    InsnClass.INDIRECT_CALL: _indirect_call,
    InsnClass.PUSH_REGISTER: _push_register,
    InsnClass.PUSH_IMMEDIATE: _push_immediate,
    InsnClass.POP_REGISTER: _pop_register,
    InsnClass.UNWIND_FRAME: _unwind_frame,
    InsnClass.POP_FLAGS: _pop_flags,
}
_FLAT_STACK: Final = 0x2B
"""The stack segment that Linux gives 32-bit programs: base 0, no limit."""


def make_emulator(encoding: Encoding, end: VirtAddr, mode: Mode) -> Emulator | None:
    """What does this instruction, which ends at ``end``; None for a class that is not emulated."""
    make = EMULATORS.get(insn_class(encoding))
    if make is None:
        return None
    run = make(encoding, end, mode)
    is_32_bit = mode.bits == 32

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        if regs["eflags"] & (TRAP_FLAG | ALIGNMENT_CHECK):
            raise NotEmulated("the program steps itself, or wants a fault for whatever is not aligned")
        if is_32_bit and regs["ss"] != _FLAT_STACK:
            raise NotEmulated("the program has a stack segment of its own")
        return run(regs, memory)

    return emulate
