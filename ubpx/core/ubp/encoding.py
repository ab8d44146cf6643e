"""The parts of one x86 instruction's encoding: prefixes, opcode, ModRM, displacement.

Pure functions over bytes that a decoder has called one instruction of 64-bit mode, or of 32-bit
code. Source: Intel SDM volume 2A, chapter 2 and appendix A; AMD APM volume 3, chapter 1 (XOP, 3DNow!).
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

OPERAND_SIZE: Final = 0x66
ADDRESS_SIZE: Final = 0x67
LOCK: Final = 0xF0
REPNE: Final = 0xF2
REP: Final = 0xF3

PREFIXES: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPNE, REP})
"""The legacy prefixes: all but REX."""


class Form(Enum):
    """How the opcode is wrapped."""

    LEGACY = "legacy"
    VEX = "VEX"
    EVEX = "EVEX"
    XOP = "XOP"


_NEVER_ON_MEMORY: Final = range(0x20, 0x24)
"""Behind 0f: moves of control and debug registers, which take whatever ModRM.mod says for a register."""


class Encoding(NamedTuple):
    """Where the parts of one instruction are, and what they say."""

    raw: bytes
    bits: int
    """Of the mode: 64 or 32."""
    form: Form
    prefixes: frozenset[int]
    rex: int
    """The REX prefix; 0 where there is none, or it is not next to the opcode and so has no effect."""
    opcode_map: int
    """0: one byte; 1: 0f; 2: 0f 38; 3: 0f 3a; as VEX numbers them. XOP and EVEX have more."""
    opcode: int
    modrm: int | None
    modrm_at: int
    """Offset of ModRM, where it has one: SIB and displacement follow it."""

    @property
    def mask(self) -> int:
        """The greatest address."""
        return (1 << self.bits) - 1

    @property
    def displacement_at(self) -> int | None:
        """Offset of the disp32 of a rip-relative operand (ModRM mod=00 rm=101); None without one."""
        relative = self.modrm is not None and self.modrm & 0xC7 == 0x05 and self.bits == 64 and not self.on_register
        return self.modrm_at + 1 if relative else None

    @property
    def wide(self) -> bool:
        """Whether REX.W stands there; it takes precedence over an operand-size prefix."""
        return bool(self.rex & 8)

    @property
    def extended(self) -> int:
        """What REX.B adds to a register number in the opcode or in ModRM.rm: 0 or 8."""
        return (self.rex & 1) << 3

    @property
    def narrow(self) -> bool:
        """Whether the operand size is 16 bits."""
        return OPERAND_SIZE in self.prefixes and not self.wide

    @property
    def reg(self) -> int:
        """ModRM.reg without REX.R: what extends an opcode. -1 without ModRM."""
        return -1 if self.modrm is None else self.modrm >> 3 & 7

    @property
    def on_register(self) -> bool:
        """Whether ModRM.rm is a register, not memory."""
        if self.modrm is None:
            return False
        return self.modrm >= 0xC0 or (
            self.opcode_map == 1 and self.opcode in _NEVER_ON_MEMORY and self.form is Form.LEGACY
        )

    def operand_address(self, end: int) -> int | None:
        """Where the rip-relative operand is if the instruction ends at ``end``; None without one."""
        at = self.displacement_at
        if at is None:
            return None
        address = end + signed(self.raw[at : at + 4])
        return address & (0xFFFF_FFFF if ADDRESS_SIZE in self.prefixes else self.mask)


def one_of(values: Iterable[int]) -> bytes:
    """A regular expression that matches each of these bytes."""
    return b"[" + re.escape(bytes(sorted(values))) + b"]"


def signed(data: bytes) -> int:
    """A little-endian two's complement number."""
    return int.from_bytes(data, "little", signed=True)


def parse(raw: bytes, bits: int) -> Encoding:
    """Take apart exactly one instruction of 64-bit mode or 32-bit code."""
    prefixes, rex, at = _leading_bytes(raw, bits)
    form, opcode_map, at = _opcode_map(raw, at, bits)
    opcode = raw[at]
    modrm = raw[at + 1] if _has_modrm(form, opcode_map, opcode, bits) else None
    if form is Form.LEGACY and opcode_map == 1 and opcode == 0x0F:
        opcode = raw[-1]  # 3DNow! has it behind everything
        opcode_map = _MAP_3DNOW
    return Encoding(raw, bits, form, prefixes, rex, opcode_map, opcode, modrm, at + 1)


_MAP_3DNOW: Final = -1  # no number is given to it


def opcode_offset(code: bytes, bits: int) -> int:
    """How many prefixes ``code`` begins with, REX included; for code that may not be an instruction."""
    return _leading_bytes(code, bits)[2]


_NONE: Final[frozenset[int]] = frozenset()


def _leading_bytes(raw: bytes, bits: int) -> tuple[frozenset[int], int, int]:
    """Legacy prefixes, effective REX, and the offset of what follows them."""
    prefixes: set[int] | None = None
    rex = at = 0
    last = len(raw) - 1
    while at < last:  # code that ends in a prefix has that for its opcode
        byte = raw[at]
        if byte in PREFIXES:
            prefixes = {byte} if prefixes is None else prefixes | {byte}
            rex = 0
        elif byte & 0xF0 == 0x40 and bits == 64:
            rex = byte
        else:
            break
        at += 1
    return _NONE if prefixes is None else frozenset(prefixes), rex, at


def _opcode_map(raw: bytes, at: int, bits: int) -> tuple[Form, int, int]:
    """The form, the map, and the offset of the opcode byte, for an opcode that starts at ``at``."""
    form, opcode_map, size = Form.LEGACY, 0, 0
    first = raw[at]
    if first == 0x0F:
        opcode_map = {0x38: 2, 0x3A: 3}.get(raw[at + 1], 1)
        size = 1 if opcode_map == 1 else 2
    # In 32-bit code these are les, lds and bound unless what follows would be a ModRM of registers.
    elif first in _VECTOR_ESCAPES and (bits == 64 or first == _XOP or raw[at + 1] >= 0xC0):
        form, map_bits, size = _VECTOR_ESCAPES[first]
        opcode_map = raw[at + 1] & map_bits if map_bits else 1
        if form is Form.XOP and opcode_map < 8:  # pop r/m
            form, opcode_map, size = Form.LEGACY, 0, 0
    return form, opcode_map, at + size


_XOP: Final = 0x8F
_VECTOR_ESCAPES: Final = {
    0x62: (Form.EVEX, 0x07, 4),
    _XOP: (Form.XOP, 0x1F, 3),
    0xC4: (Form.VEX, 0x1F, 3),
    0xC5: (Form.VEX, 0, 2),
}
"""The form, the bits of the next byte that name the map, and the bytes before the opcode."""


def _ranges(*spans: tuple[int, int]) -> frozenset[int]:
    return frozenset(byte for first, last in spans for byte in range(first, last + 1))


_ONE_BYTE_WITH_MODRM: Final = frozenset(
    opcode for opcode in range(0x40) if opcode & 7 < 4
) | _ranges(
    (0x63, 0x63), (0x69, 0x69), (0x6B, 0x6B), (0x80, 0x8F), (0xC0, 0xC1), (0xC6, 0xC7), (0xD0, 0xD3),
    (0xD8, 0xDF), (0xF6, 0xF7), (0xFE, 0xFF),
)  # fmt: skip

_ONE_BYTE_WITH_MODRM_IN_32_BIT: Final = _ONE_BYTE_WITH_MODRM | {0x62, 0xC4, 0xC5}
"""bound, les, lds."""

# ud1 (0f b9) and ud0 (0f ff) have a ModRM byte on some processors only; x86 refuses them.
_TWO_BYTE_WITHOUT_MODRM: Final = _ranges(
    (0x04, 0x0C), (0x0E, 0x0E), (0x24, 0x27), (0x30, 0x37), (0x77, 0x77), (0x80, 0x8F), (0xA0, 0xA2),
    (0xA8, 0xAA), (0xB9, 0xB9), (0xC8, 0xCF), (0xFF, 0xFF),
)  # fmt: skip


def _has_modrm(form: Form, opcode_map: int, opcode: int, bits: int) -> bool:
    if form is Form.LEGACY and opcode_map == 0:
        return opcode in (_ONE_BYTE_WITH_MODRM if bits == 64 else _ONE_BYTE_WITH_MODRM_IN_32_BIT)
    if form is Form.LEGACY and opcode_map == 1:
        return opcode not in _TWO_BYTE_WITHOUT_MODRM
    return not (form is Form.VEX and opcode_map == 1 and opcode == _VZERO)


_VZERO: Final = 0x77
"""vzeroupper, vzeroall."""
