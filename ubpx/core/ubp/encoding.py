"""The parts of one x86 instruction's encoding in 64-bit mode: prefixes, opcode, ModRM, displacement.

Pure functions over bytes that a decoder has called one instruction. Source: Intel SDM volume 2A,
chapter 2 and appendix A; AMD APM volume 3, chapter 1 (XOP, 3DNow!).
"""

from enum import Enum
from typing import Final

import attrs

OPERAND_SIZE: Final = 0x66
ADDRESS_SIZE: Final = 0x67
LOCK: Final = 0xF0
REPNE: Final = 0xF2
REP: Final = 0xF3

_PREFIXES: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPNE, REP})


class Form(Enum):
    """How the opcode is wrapped."""

    LEGACY = "legacy"
    VEX = "VEX"
    EVEX = "EVEX"
    XOP = "XOP"


@attrs.frozen(kw_only=True)
class Encoding:
    """Where the parts of one instruction are, and what they say."""

    raw: bytes
    form: Form
    prefixes: frozenset[int]
    rex: int
    """The REX prefix; 0 where there is none, or it is not next to the opcode and so has no effect."""
    opcode_map: int
    """0: one byte; 1: 0f; 2: 0f 38; 3: 0f 3a; as VEX numbers them. XOP and EVEX have more."""
    opcode: int
    modrm: int | None
    displacement_at: int | None
    """Offset of the disp32 of a rip-relative operand (ModRM mod=00 rm=101)."""

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
        return self.modrm is not None and self.modrm >= 0xC0

    def operand_address(self, end: int) -> int | None:
        """Where the rip-relative operand is if the instruction ends at ``end``; None without one."""
        if self.displacement_at is None:
            return None
        address = end + signed(self.raw[self.displacement_at : self.displacement_at + 4])
        return address & (0xFFFF_FFFF if ADDRESS_SIZE in self.prefixes else 0xFFFF_FFFF_FFFF_FFFF)


def signed(data: bytes) -> int:
    """A little-endian two's complement number."""
    return int.from_bytes(data, "little", signed=True)


def parse(raw: bytes) -> Encoding:
    """Take apart exactly one instruction."""
    prefixes, rex, at = _leading_bytes(raw)
    form, opcode_map, at = _opcode_map(raw, at)
    opcode = raw[at]
    has_modrm = _has_modrm(form, opcode_map, opcode)
    modrm = raw[at + 1] if has_modrm else None
    if (form, opcode_map, opcode) == (Form.LEGACY, 1, 0x0F):
        opcode = raw[-1]  # 3DNow! has it behind everything
        opcode_map = _MAP_3DNOW
    return Encoding(
        raw=raw,
        form=form,
        prefixes=prefixes,
        rex=rex,
        opcode_map=opcode_map,
        opcode=opcode,
        modrm=modrm,
        displacement_at=at + 2 if modrm is not None and modrm & 0xC7 == 0x05 else None,
    )


_MAP_3DNOW: Final = -1  # no number is given to it


def opcode_offset(code: bytes) -> int:
    """How many prefixes ``code`` begins with, REX included; for code that may not be an instruction."""
    return _leading_bytes(code)[2]


def _leading_bytes(raw: bytes) -> tuple[frozenset[int], int, int]:
    """Legacy prefixes, effective REX, and the offset of what follows them."""
    prefixes = set()
    rex = at = 0
    while at < len(raw) - 1:  # code that ends in a prefix has that for its opcode
        byte = raw[at]
        if byte in _PREFIXES:
            prefixes.add(byte)
            rex = 0
        elif byte & 0xF0 == 0x40:
            rex = byte
        else:
            break
        at += 1
    return frozenset(prefixes), rex, at


def _opcode_map(raw: bytes, at: int) -> tuple[Form, int, int]:
    """The form, the map, and the offset of the opcode byte, for an opcode that starts at ``at``."""
    form, opcode_map, size = Form.LEGACY, 0, 0
    match raw[at]:
        case 0x0F:
            opcode_map = {0x38: 2, 0x3A: 3}.get(raw[at + 1], 1)
            size = 1 if opcode_map == 1 else 2
        case 0xC5:
            form, opcode_map, size = Form.VEX, 1, 2
        case 0xC4:
            form, opcode_map, size = Form.VEX, raw[at + 1] & 0x1F, 3
        case 0x62:
            form, opcode_map, size = Form.EVEX, raw[at + 1] & 0x07, 4
        case 0x8F if raw[at + 1] & 0x1F >= 8:  # with a smaller number it is pop r/m
            form, opcode_map, size = Form.XOP, raw[at + 1] & 0x1F, 3
    return form, opcode_map, at + size


def _ranges(*spans: tuple[int, int]) -> frozenset[int]:
    return frozenset(byte for first, last in spans for byte in range(first, last + 1))


_ONE_BYTE_WITH_MODRM: Final = frozenset(
    opcode for opcode in range(0x40) if opcode & 7 < 4
) | _ranges(
    (0x63, 0x63), (0x69, 0x69), (0x6B, 0x6B), (0x80, 0x8F), (0xC0, 0xC1), (0xC6, 0xC7), (0xD0, 0xD3),
    (0xD8, 0xDF), (0xF6, 0xF7), (0xFE, 0xFF),
)  # fmt: skip

# ud1 (0f b9) and ud0 (0f ff) have a ModRM byte on some processors only; x86 refuses them.
_TWO_BYTE_WITHOUT_MODRM: Final = _ranges(
    (0x04, 0x0C), (0x0E, 0x0E), (0x24, 0x27), (0x30, 0x37), (0x77, 0x77), (0x80, 0x8F), (0xA0, 0xA2),
    (0xA8, 0xAA), (0xB9, 0xB9), (0xC8, 0xCF), (0xFF, 0xFF),
)  # fmt: skip


def _has_modrm(form: Form, opcode_map: int, opcode: int) -> bool:
    if form is Form.LEGACY and opcode_map == 0:
        return opcode in _ONE_BYTE_WITH_MODRM
    if form is Form.LEGACY and opcode_map == 1:
        return opcode not in _TWO_BYTE_WITHOUT_MODRM
    return not (form is Form.VEX and opcode_map == 1 and opcode == _VZERO)


_VZERO: Final = 0x77
"""vzeroupper, vzeroall."""
