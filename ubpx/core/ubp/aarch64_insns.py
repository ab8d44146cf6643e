"""What each aarch64 instruction is to a probe: its class, where it leads, what it names relative to itself.

Source: Arm Architecture Reference Manual for A-profile, DDI 0487, section C4.1 (A64 instruction set encoding).
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

INSN_SIZE: Final = 4
TRAP: Final = 0xD420_0000.to_bytes(INSN_SIZE, "little")
"""brk #0."""
NOP: Final = 0xD503_201F.to_bytes(INSN_SIZE, "little")
NEGATIVE: Final = 1 << 31
ZERO: Final = 1 << 30
CARRY: Final = 1 << 29
OVERFLOW: Final = 1 << 28
BRANCH_TYPE: Final = 3 << 10
"""PSTATE.BTYPE: how the instruction was branched to; every instruction but a branch clears it."""


class InsnClass(Enum):
    """Instructions that a probe treats alike."""

    PLAIN = "runs anywhere"
    NOP = "does nothing"
    PREFETCH = "prfm of a literal: nothing that a program can see"
    JUMP = "b"
    BRANCH = "b.cond, bc.cond"
    COMPARE_BRANCH = "cbz, cbnz"
    TEST_BRANCH = "tbz, tbnz"
    CALL = "bl"
    INDIRECT_CALL = "blr"
    LEAVES = "goes elsewhere by itself: br, ret"
    ADDRESS = "adr"
    PAGE_ADDRESS = "adrp"
    LITERAL = "ldr, ldrsw of a literal"
    VECTOR_LITERAL = "ldr of a literal to a vector register"
    EXCLUSIVE_LOAD = "ldxr, ldaxr, ldxp, ldaxp"
    EXCLUSIVE_STORE = "stxr, stlxr, stxp, stlxp"
    SYSTEM_CALL = "svc"

    __hash__ = object.__hash__


class _Row(NamedTuple):
    mask: int
    value: int
    kind: InsnClass


_ROWS: Final = (
    _Row(0xFFFF_FFFF, 0xD503_201F, InsnClass.NOP),
    _Row(0xFF00_0000, 0xD800_0000, InsnClass.PREFETCH),
    _Row(0xFC00_0000, 0x1400_0000, InsnClass.JUMP),
    _Row(0xFF00_0000, 0x5400_0000, InsnClass.BRANCH),
    _Row(0x7E00_0000, 0x3400_0000, InsnClass.COMPARE_BRANCH),
    _Row(0x7E00_0000, 0x3600_0000, InsnClass.TEST_BRANCH),
    _Row(0xFC00_0000, 0x9400_0000, InsnClass.CALL),
    _Row(0xFFFF_FC1F, 0xD63F_0000, InsnClass.INDIRECT_CALL),
    _Row(0xFFFF_FC1F, 0xD61F_0000, InsnClass.LEAVES),
    _Row(0xFFFF_FC1F, 0xD65F_0000, InsnClass.LEAVES),
    _Row(0x9F00_0000, 0x1000_0000, InsnClass.ADDRESS),
    _Row(0x9F00_0000, 0x9000_0000, InsnClass.PAGE_ADDRESS),
    _Row(0xBF00_0000, 0x1800_0000, InsnClass.LITERAL),
    _Row(0xFF00_0000, 0x9800_0000, InsnClass.LITERAL),
    _Row(0x3F00_0000, 0x1C00_0000, InsnClass.VECTOR_LITERAL),
    _Row(0xBFE0_0000, 0x8820_0000, InsnClass.EXCLUSIVE_STORE),  # pairs; with bit 31 clear they are casp
    _Row(0xBFE0_0000, 0x8860_0000, InsnClass.EXCLUSIVE_LOAD),
    _Row(0x3FE0_0000, 0x0800_0000, InsnClass.EXCLUSIVE_STORE),
    _Row(0x3FE0_0000, 0x0840_0000, InsnClass.EXCLUSIVE_LOAD),
    _Row(0xFFE0_001F, 0xD400_0001, InsnClass.SYSTEM_CALL),
)


def insn_class(word: int) -> InsnClass:
    """Which class an instruction belongs to, refusals aside."""
    return next((row.kind for row in _ROWS if word & row.mask == row.value), InsnClass.PLAIN)


def bits(word: int, high: int, low: int) -> int:
    """The field from bit ``high`` down to bit ``low``, both included."""
    return word >> low & (1 << high - low + 1) - 1


def signed(value: int, width: int) -> int:
    """A field of ``width`` bits as a signed number."""
    return value - (1 << width) if value >> width - 1 else value


def _by_26(word: int, address: int) -> int:
    return address + 4 * signed(bits(word, 25, 0), 26)


def _by_19(word: int, address: int) -> int:
    return address + 4 * signed(bits(word, 23, 5), 19)


def _by_14(word: int, address: int) -> int:
    return address + 4 * signed(bits(word, 18, 5), 14)


def _immediate(word: int) -> int:
    return signed(bits(word, 23, 5) << 2 | bits(word, 30, 29), 21)


_NAMED: Final[dict[InsnClass, Callable[[int, int], int]]] = {
    InsnClass.JUMP: _by_26,
    InsnClass.CALL: _by_26,
    InsnClass.BRANCH: _by_19,
    InsnClass.COMPARE_BRANCH: _by_19,
    InsnClass.TEST_BRANCH: _by_14,
    InsnClass.LITERAL: _by_19,
    InsnClass.VECTOR_LITERAL: _by_19,
    InsnClass.PREFETCH: _by_19,
    InsnClass.ADDRESS: lambda word, address: address + _immediate(word),
    InsnClass.PAGE_ADDRESS: lambda word, address: (address & ~0xFFF) + (_immediate(word) << 12),
}
DIRECT: Final = frozenset(
    {InsnClass.JUMP, InsnClass.CALL, InsnClass.BRANCH, InsnClass.COMPARE_BRANCH, InsnClass.TEST_BRANCH}
)
"""Those with a target that the instruction itself says."""
NAMES_OPERAND: Final = _NAMED.keys() - DIRECT - {InsnClass.PREFETCH}
LITERALS: Final = frozenset({InsnClass.LITERAL, InsnClass.VECTOR_LITERAL})
NEVER_FALLS_THROUGH: Final = frozenset({InsnClass.JUMP, InsnClass.LEAVES})


def named(word: int, kind: InsnClass, address: int) -> int | None:
    """The target of a direct branch, or where the literal is, or what ``adr`` and ``adrp`` give; None of others."""
    find = _NAMED.get(kind)
    return None if find is None else find(word, address) & 2**64 - 1


def always_leaves(word: int) -> bool:
    """Whether what stands behind it is not run next, those that are refused included: braa, retaa, eret, drps, udf."""
    if word & 0xFE00_0000 == 0xD600_0000:  # unconditional branches by register; opc<0> says which of them call
        return bits(word, 24, 21) & 7 != 1
    return word >> 16 == 0


def calls(word: int) -> bool:
    """Whether it is a call: bl, blr, blraa and kin."""
    by_register = word & 0xFE00_0000 == 0xD600_0000 and bits(word, 24, 21) & 7 == 1
    return by_register or word & 0xFC00_0000 == 0x9400_0000


def condition_holds(condition: int, pstate: int) -> bool:
    """Whether the flags meet a branch's four bits (DDI 0487, C1.2.4)."""
    negative, zero, carry, overflow = (bool(pstate & flag) for flag in (NEGATIVE, ZERO, CARRY, OVERFLOW))
    holds = (
        zero,
        carry,
        negative,
        overflow,
        carry and not zero,
        negative == overflow,
        negative == overflow and not zero,
        True,
    )[condition >> 1]
    return holds if condition in (0xE, 0xF) else holds != bool(condition & 1)
