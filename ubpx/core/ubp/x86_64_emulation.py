"""What the emulated x86_64 instructions do to registers and stack.

Source: Intel SDM volume 2, each instruction's own page, 64-bit mode.
"""

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from ubpx.core.ports import Memory
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, signed
from ubpx.core.ubp.plans import MemoryWrite, Outcome
from ubpx.core.ubp.x86 import ZERO, InsnClass, branch_target, condition_holds
from ubpx.core.values import ReadableRegisters, VirtAddr

_WORD: Final = 8
_ALL_ONES: Final = 2**64 - 1
_BY_NUMBER: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Arrival:
    """A thread before an instruction."""

    encoding: Encoding
    end: VirtAddr
    """The address behind the instruction."""
    regs: ReadableRegisters
    memory: Memory

    @property
    def target(self) -> int:
        """Where a relative branch leads."""
        return branch_target(self.encoding, self.end)

    @property
    def numbered(self) -> str:
        """The register whose number is in the opcode and REX.B."""
        return _BY_NUMBER[self.encoding.opcode & 7 | self.encoding.extended]

    def word(self, address: int) -> int:
        """Read from the stack."""
        return int.from_bytes(self.memory.read(VirtAddr(address), _WORD), "little")

    def pushed(self, value: int, rip: int) -> Outcome:
        """``value`` pushed, and the thread at ``rip``."""
        sp = self.regs["rsp"] - _WORD & _ALL_ONES
        write = MemoryWrite(VirtAddr(sp), (value & _ALL_ONES).to_bytes(_WORD, "little"))
        return Outcome(registers={"rsp": sp, "rip": rip}, writes=(write,))


def _nop(at: Arrival) -> Outcome:
    return Outcome(registers={"rip": at.end})


def _jump(at: Arrival) -> Outcome:
    return Outcome(registers={"rip": at.target})


def _branch(at: Arrival) -> Outcome:
    taken = condition_holds(at.encoding.opcode & 0x0F, at.regs["eflags"])
    return Outcome(registers={"rip": at.target if taken else at.end})


def _counted_branch(at: Arrival) -> Outcome:
    """The counter is ecx under an address-size prefix; writing it then clears the upper half of rcx."""
    mask = 2**32 - 1 if ADDRESS_SIZE in at.encoding.prefixes else _ALL_ONES
    count = at.regs["rcx"] & mask
    target = at.target
    if at.encoding.opcode == 0xE3:  # jrcxz
        return Outcome(registers={"rip": at.end if count else target})
    count = count - 1 & mask
    wanted = {0xE0: 0, 0xE1: ZERO}.get(at.encoding.opcode, at.regs["eflags"] & ZERO)  # loopne, loope; loop takes either
    taken = count != 0 and at.regs["eflags"] & ZERO == wanted
    return Outcome(registers={"rcx": count, "rip": target if taken else at.end})


def _call(at: Arrival) -> Outcome:
    return at.pushed(at.end, at.target)


def _push_register(at: Arrival) -> Outcome:
    """``push rsp`` stores the value from before it."""
    return at.pushed(at.regs[at.numbered], at.end)


def _push_immediate(at: Arrival) -> Outcome:
    return at.pushed(signed(at.encoding.raw[-1:] if at.encoding.opcode == 0x6A else at.encoding.raw[-4:]), at.end)


def _pop_register(at: Arrival) -> Outcome:
    """``pop rsp`` leaves the value that it read."""
    sp = at.regs["rsp"]
    value = at.word(sp)
    return Outcome(registers={"rsp": sp + _WORD & _ALL_ONES, "rip": at.end} | {at.numbered: value})


def _unwind_frame(at: Arrival) -> Outcome:
    frame = at.regs["rbp"]
    outer = at.word(frame)
    return Outcome(registers={"rsp": frame + _WORD & _ALL_ONES, "rbp": outer, "rip": at.end})


EMULATORS: Final[Mapping[InsnClass, Callable[[Arrival], Outcome]]] = {
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
