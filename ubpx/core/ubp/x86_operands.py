"""General registers by their numbers, and the address of a memory operand, in each mode.

Source: Intel SDM volume 2A, sections 2.1.5 and 2.2.1.
"""

from collections.abc import Callable
from typing import Final

import attrs

from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, signed
from ubpx.core.values import ReadableRegisters, VirtAddr


@attrs.frozen(kw_only=True)
class Mode:
    """64-bit mode, or 32-bit code: what differs between them."""

    bits: int
    registers: tuple[str, ...]
    """General registers by number."""
    pc: str
    word: int
    """Bytes of an address, and of what a call pushes."""

    @property
    def mask(self) -> int:
        """The greatest address."""
        return (1 << self.bits) - 1

    @property
    def sp(self) -> str:
        """The stack pointer."""
        return self.registers[4]

    @property
    def bp(self) -> str:
        """The frame pointer."""
        return self.registers[5]

    @property
    def counter(self) -> str:
        """What loop counts in."""
        return self.registers[1]


MODE_64: Final = Mode(
    bits=64,
    registers=(
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    ),
    pc="rip",
    word=8,
)  # fmt: skip
MODE_32: Final = Mode(
    bits=32, registers=("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"), pc="eip", word=4
)  # fmt: skip

_BASED: Final = {0x64: "fs", 0x65: "gs"}
_SEGMENTS_WITHOUT_BASE: Final = frozenset({0x26, 0x2E, 0x36, 0x3E})
_SIB: Final = 4
_NO_BASE: Final = 5
_NO_INDEX: Final = 4

Address = Callable[[ReadableRegisters], int]
"""From the registers at arrival to an address."""


def operand_address(encoding: Encoding, mode: Mode, end: VirtAddr) -> Address | None:
    """Where the memory operand of the instruction that ends at ``end`` is; None if that is not known here.

    Not known: 16-bit addressing, and a segment whose base is not among the registers.
    """
    if mode.bits == 32 and (ADDRESS_SIZE in encoding.prefixes or encoding.prefixes & _SEGMENTS_WITHOUT_BASE):
        return None
    if encoding.prefixes >= _BASED.keys():
        return None
    override = segment(encoding)
    fixed = encoding.operand_address(end)
    offset = _computed(encoding, mode) if fixed is None else lambda _regs: fixed
    if override is None:
        return offset
    base = f"{override}_base"
    return lambda regs: offset(regs) + regs[base] & mode.mask


def segment(encoding: Encoding) -> str | None:
    """The segment with a base of its own that the instruction's operand is in."""
    return next((name for prefix, name in _BASED.items() if prefix in encoding.prefixes), None)


def _computed(encoding: Encoding, mode: Mode) -> Address:
    """Base, scaled index, displacement."""
    modrm, at = encoding.modrm or 0, encoding.modrm_at + 1
    mod, rm, base, index, scale = modrm >> 6, modrm & 7, None, None, 1
    if rm == _SIB:
        sib = encoding.raw[at]
        at += 1
        number = sib >> 3 & 7 | (encoding.rex & 2) << 2
        scale = 1 << (sib >> 6)
        index = None if number == _NO_INDEX else mode.registers[number]
        rm = sib & 7
    if mod or rm != _NO_BASE:
        base = mode.registers[rm | encoding.extended]
    size = {0: 0 if base else 4, 1: 1, 2: 4}[mod]
    displacement = signed(encoding.raw[at : at + size])
    mask = 0xFFFF_FFFF if ADDRESS_SIZE in encoding.prefixes else mode.mask

    def address(regs: ReadableRegisters) -> int:
        sum_ = displacement
        if base is not None:
            sum_ += regs[base]
        if index is not None:
            sum_ += regs[index] * scale
        return sum_ & mask

    return address
