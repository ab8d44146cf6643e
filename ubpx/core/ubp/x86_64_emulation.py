"""What the emulated x86_64 instructions do to registers and stack.

Source: Intel SDM volume 2, each instruction's own page, 64-bit mode.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx.core.ports import Memory
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, signed
from ubpx.core.ubp.plans import Emulator, MemoryWrite, Outcome
from ubpx.core.ubp.x86 import ZERO, InsnClass, branch_target, condition_holds
from ubpx.core.values import ReadableRegisters, VirtAddr

_WORD: Final = 8
_ALL_ONES: Final = 2**64 - 1
_BY_NUMBER: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


# Each takes an encoding and the address behind the instruction, and gives what does that instruction.


def _word(memory: Memory, address: int) -> int:
    """Read from the stack."""
    return int.from_bytes(memory.read(VirtAddr(address), _WORD), "little")


def _pushed(regs: ReadableRegisters, value: int, rip: int) -> Outcome:
    """``value`` pushed, and the thread at ``rip``."""
    sp = regs["rsp"] - _WORD & _ALL_ONES
    write = MemoryWrite(VirtAddr(sp), (value & _ALL_ONES).to_bytes(_WORD, "little"))
    return Outcome(registers={"rsp": sp, "rip": rip}, writes=(write,))


def _numbered(encoding: Encoding) -> str:
    """The register whose number is in the opcode and REX.B."""
    return _BY_NUMBER[encoding.opcode & 7 | encoding.extended]


def _nop(_encoding: Encoding, end: VirtAddr) -> Emulator:
    outcome = Outcome(registers={"rip": end})
    return lambda _regs, _memory: outcome


def _jump(encoding: Encoding, end: VirtAddr) -> Emulator:
    outcome = Outcome(registers={"rip": branch_target(encoding, end)})
    return lambda _regs, _memory: outcome


def _branch(encoding: Encoding, end: VirtAddr) -> Emulator:
    condition, target = encoding.opcode & 0x0F, branch_target(encoding, end)
    return lambda regs, _memory: Outcome(
        registers={"rip": target if condition_holds(condition, regs["eflags"]) else end}
    )


def _counted_branch(encoding: Encoding, end: VirtAddr) -> Emulator:
    """The counter is ecx under an address-size prefix; writing it then clears the upper half of rcx."""
    opcode, target = encoding.opcode, branch_target(encoding, end)
    mask = 2**32 - 1 if ADDRESS_SIZE in encoding.prefixes else _ALL_ONES

    def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
        count = regs["rcx"] & mask
        if opcode == 0xE3:  # jrcxz
            return Outcome(registers={"rip": end if count else target})
        count = count - 1 & mask
        zero = regs["eflags"] & ZERO
        wanted = {0xE0: 0, 0xE1: ZERO}.get(opcode, zero)  # loopne, loope; loop takes either
        return Outcome(registers={"rcx": count, "rip": target if count != 0 and zero == wanted else end})

    return emulate


def _call(encoding: Encoding, end: VirtAddr) -> Emulator:
    target = branch_target(encoding, end)
    return lambda regs, _memory: _pushed(regs, end, target)


def _push_register(encoding: Encoding, end: VirtAddr) -> Emulator:
    """``push rsp`` stores the value from before it."""
    name = _numbered(encoding)
    return lambda regs, _memory: _pushed(regs, regs[name], end)


def _push_immediate(encoding: Encoding, end: VirtAddr) -> Emulator:
    value = signed(encoding.raw[-1:] if encoding.opcode == 0x6A else encoding.raw[-4:])
    return lambda regs, _memory: _pushed(regs, value, end)


def _pop_register(encoding: Encoding, end: VirtAddr) -> Emulator:
    """``pop rsp`` leaves the value that it read."""
    name = _numbered(encoding)

    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        sp = regs["rsp"]
        return Outcome(registers={"rsp": sp + _WORD & _ALL_ONES, "rip": end} | {name: _word(memory, sp)})

    return emulate


def _unwind_frame(_encoding: Encoding, end: VirtAddr) -> Emulator:
    def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
        frame = regs["rbp"]
        outer = _word(memory, frame)
        return Outcome(registers={"rsp": frame + _WORD & _ALL_ONES, "rbp": outer, "rip": end})

    return emulate


EMULATORS: Final[Mapping[InsnClass, Callable[[Encoding, VirtAddr], Emulator]]] = {
    InsnClass.NOP: _nop,
    InsnClass.JUMP: _jump,
    InsnClass.BRANCH: _branch,
    InsnClass.COUNTED_BRANCH: _counted_branch,
    InsnClass.CALL: _call,
    InsnClass.PUSH_REGISTER: _push_register,
    InsnClass.PUSH_IMMEDIATE: _push_immediate,
    InsnClass.POP_REGISTER: _pop_register,
    InsnClass.UNWIND_FRAME: _unwind_frame,
}
