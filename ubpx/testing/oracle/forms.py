"""What x86 instructions there are: every opcode of every map, with every prefix that may change what it does.

Sources: Intel SDM volume 2A, chapter 2 and appendix A; AMD APM volume 3, chapter 1 (XOP, 3DNow!).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

LEGACY, NOW_3D, VEX, EVEX, XOP = "legacy", "3DNow!", "VEX", "EVEX", "XOP"

ANY: Final = -1
ADDRESS_SIZE: Final = 0x67
FS, GS = 0x64, 0x65
WIDE: Final = 0x48
"""Stands for REX.W in a form's prefixes; other bits of a REX prefix come with the operands."""


class Form(NamedTuple):
    """One kind of instruction; its registers, addresses and immediates are free."""

    kind: str
    opcode_map: int
    """As ``ubp.encoding`` numbers them; 0 for 3DNow!, whose opcode stands behind everything."""
    opcode: int
    prefixes: bytes
    """Legacy prefixes in their order, then REX.W; nothing for VEX, EVEX and XOP."""
    simd_prefix: int
    """pp of VEX, EVEX and XOP: 0 none, 1 66, 2 F3, 3 F2."""
    wide: int
    """W of VEX, EVEX and XOP."""
    vector_length: int
    """L or L'L of those."""
    broadcast: int
    """EVEX.b."""
    reg: int
    """ModRM.reg where it extends the opcode, or ANY."""
    rm: int
    """ModRM.rm where ModRM names registers and it extends the opcode, or ANY."""
    on_memory: bool
    """ModRM, if there is one, names memory."""

    @property
    def where(self) -> tuple[int, int]:
        """Map and opcode."""
        return self.opcode_map, self.opcode

    def __str__(self) -> str:
        parts = [self.kind]
        if self.prefixes:
            parts.append(self.prefixes.hex(" "))
        parts.append(f"map {self.opcode_map} opcode {self.opcode:02x}")
        if self.kind in {VEX, EVEX, XOP}:
            parts.append(f"pp{self.simd_prefix} W{self.wide} L{self.vector_length} b{self.broadcast}")
        parts += [f"{name}{value}" for name, value in (("/", self.reg), ("rm", self.rm)) if value != ANY]
        return " ".join([*parts, "memory" if self.on_memory else "register"])


def legacy(
    opcode_map: int, opcode: int, prefixes: bytes = b"", *, reg: int = ANY, rm: int = ANY, on_memory: bool = False
) -> Form:
    """A form without VEX and the like."""
    return Form(LEGACY, opcode_map, opcode, prefixes, 0, 0, 0, 0, reg, rm, on_memory)


_LEGACY_PREFIXES: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "", "66", "f2", "f3", "f0", "67", "64", "65", "2e", "3e", "66 f2", "66 f3", "66 f0", "f2 f0", "f3 f0",
        "66 67", "f3 67", "f2 67", "66 66", "f3 f3", "f2 f3",
    )
)  # fmt: skip
_WIDE_PREFIXES: Final = tuple(bytes.fromhex(text) for text in ("48", "66 48", "f2 48", "f3 48", "f0 48", "67 48"))

# Opcodes that ModRM.reg extends, and of those the ones that ModRM.rm extends too when it names a register.
_GROUPS: Final = {
    0: {
        0x80, 0x81, 0x82, 0x83, 0x8C, 0x8E, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7, *range(0xD0, 0xD4), *range(0xD8, 0xE0),
        0xF6, 0xF7, 0xFE, 0xFF,
    },
    1: {0x00, 0x01, 0x0D, *range(0x18, 0x20), 0x71, 0x72, 0x73, 0x78, 0x79, 0xA6, 0xA7, 0xAE, 0xB9, 0xBA, 0xC7},
}  # fmt: skip
_WHOLE_MODRM: Final = {0: {*range(0xD8, 0xE0), 0xC6, 0xC7}, 1: {0x01, 0x1E, 0xAE, 0xC7}}
_VECTOR_GROUPS: Final = {
    1: {0x71, 0x72, 0x73, 0xAE, 0x77},
    2: {0xC6, 0xC7, 0xF3, 0x49},
    9: {0x01, 0x02, 0x12},
    10: {0x12},
}

_WITH_MODRM: Final = frozenset(
    {*(opcode for opcode in range(0x40) if opcode & 7 < 4), 0x62, 0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1,
     *range(0xC4, 0xC8), *range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF}
)  # fmt: skip
"""Of the one-byte opcodes."""
_WITHOUT_MODRM: Final = frozenset(
    {*range(0x04, 0x0D), 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA,
     *range(0xC8, 0xD0)}
)  # fmt: skip
"""Of the opcodes behind 0f."""
_ESCAPES: Final = {0: {0x0F}, 1: {0x0F, 0x38, 0x3A}}
_VECTOR_ESCAPES: Final = {0x62, 0xC4, 0xC5}


def has_modrm(kind: str, opcode_map: int, opcode: int) -> bool:
    """Whether a ModRM byte follows the opcode."""
    if kind == LEGACY and opcode_map == 0:
        return opcode in _WITH_MODRM
    if kind == LEGACY and opcode_map == 1:
        return opcode not in _WITHOUT_MODRM
    return (kind, opcode_map, opcode) != (VEX, 1, 0x77)


_PREFIX_BYTES: Final = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}


def candidates(*, wide: bool) -> Iterator[Form]:
    """What may be an instruction in 64-bit mode, or (not ``wide``) in 32-bit mode; most are none."""
    yield from _legacy(wide=wide)
    for opcode in range(256):
        for on_memory in (False, True):
            yield legacy(0, opcode, on_memory=on_memory)._replace(kind=NOW_3D)
    for kind, maps, lengths, broadcasts in (
        (VEX, (1, 2, 3), 2, 1),
        (XOP, (8, 9, 10), 2, 1),
        (EVEX, (1, 2, 3, 5, 6), 4, 2),
    ):
        for opcode_map in maps:
            yield from _vectors(kind, opcode_map, lengths, broadcasts)


def _legacy(*, wide: bool) -> Iterator[Form]:
    prefixes = (*_LEGACY_PREFIXES, *(_WIDE_PREFIXES if wide else ()))
    for opcode_map in range(4):
        for opcode in range(256):
            if opcode in _ESCAPES.get(opcode_map, ()):
                continue
            if opcode_map == 0 and (opcode in _PREFIX_BYTES or (wide and opcode & 0xF0 == 0x40)):
                continue
            for prefix in prefixes:
                yield from _of_opcode(opcode_map, opcode, prefix, wide=wide)


def _of_opcode(opcode_map: int, opcode: int, prefix: bytes, *, wide: bool) -> Iterator[Form]:
    """With ModRM as far as it matters."""
    if not has_modrm(LEGACY, opcode_map, opcode):
        yield legacy(opcode_map, opcode, prefix)
        return
    whole = opcode in _WHOLE_MODRM.get(opcode_map, ())
    escape = opcode_map == 0 and opcode in _VECTOR_ESCAPES  # with a register it is VEX or EVEX, in 64-bit mode always
    if escape and wide:
        return
    regs: Iterable[int] = range(8) if whole or opcode in _GROUPS.get(opcode_map, ()) else (ANY,)
    if (opcode_map, opcode) == (0, 0x8F):
        regs = (0,)  # with other numbers it is XOP
    for reg in regs:
        yield legacy(opcode_map, opcode, prefix, reg=reg, on_memory=True)
        for rm in () if escape else range(8) if whole else (ANY,):
            yield legacy(opcode_map, opcode, prefix, reg=reg, rm=rm)


def _vectors(kind: str, opcode_map: int, lengths: int, broadcasts: int) -> Iterator[Form]:
    for opcode in range(256):
        regs = range(8) if opcode in _VECTOR_GROUPS.get(opcode_map, ()) else (ANY,)
        operands = (False, True) if has_modrm(kind, opcode_map, opcode) else (False,)
        for simd_prefix, wide, length, broadcast, reg, on_memory in itertools.product(
            (0,) if kind == XOP else range(4), (0, 1), range(lengths), range(broadcasts), regs, operands
        ):
            yield Form(kind, opcode_map, opcode, b"", simd_prefix, wide, length, broadcast, reg, ANY, on_memory)


class Fields(NamedTuple):
    """The free parts of an encoding."""

    reg: int = 2
    """0 to 31; its upper bits go where the form has room for them."""
    second: int = 0
    """vvvv with V', 0 to 31; 0 is also what must stand there when it is not used."""
    mask: int = 0
    """EVEX.aaa."""
    zeroing: int = 0
    """EVEX.z."""
    base_high: int = 0
    """What extends ModRM.rm or SIB.base: 0 or 8."""
    index_high: int = 0
    """What extends SIB.index (or in EVEX a vector in ModRM.rm): 0 or 8 (16)."""
    operand: bytes = b"\x04\x08"
    """ModRM without reg, SIB, displacement; the default is [rax+rcx]."""
    bare_rex: bool = False
    """A REX prefix that says nothing stands there (it makes ah sil, and no more)."""
    padding: bytes = b""
    """Prefixes before those of the form."""


def encode(form: Form, fields: Fields, tail: bytes, *, wide: bool) -> bytes:
    """The bytes of an instruction of that form, with ``tail`` for its immediate and more.

    ``wide``: for 64-bit mode; for 32-bit mode all numbers must be below 8.
    """
    return fields.padding + _encoded(form, fields, tail, wide=wide)


def _encoded(form: Form, fields: Fields, tail: bytes, *, wide: bool) -> bytes:
    reg = fields.reg if form.reg == ANY else form.reg
    modrm = b""
    if has_modrm(form.kind, form.opcode_map, form.opcode):
        modrm = bytes((fields.operand[0] | (reg & 7) << 3,)) + fields.operand[1:]
    r, x, b = reg >> 3 & 1, fields.index_high >> 3 & 1, fields.base_high >> 3 & 1
    match form.kind:
        case "legacy":
            prefixes, rex = form.prefixes, r << 2 | x << 1 | b
            if prefixes[-1:] == b"\x48":
                prefixes, rex = prefixes[:-1], rex | 8
            opcode = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[form.opcode_map] + bytes((form.opcode,))
            return (
                prefixes + (bytes((0x40 | rex,)) if wide and (rex or fields.bare_rex) else b"") + opcode + modrm + tail
            )
        case "3DNow!":
            return b"\x0f\x0f" + modrm + bytes((form.opcode,))
        case "VEX" | "XOP":
            first = bytes((0xC4 if form.kind == VEX else 0x8F, (~(r << 7 | x << 6 | b << 5) & 0xE0) | form.opcode_map))
            last = form.wide << 7 | (~fields.second & 15) << 3 | (form.vector_length & 1) << 2 | form.simd_prefix
            if form.kind == VEX and form.opcode_map == 1 and not (form.wide or x or b):
                return bytes((0xC5, last | (1 - r) << 7, form.opcode)) + modrm + tail
            return first + bytes((last, form.opcode)) + modrm + tail
        case _:
            return bytes((0x62, *_evex(form, fields, reg), form.opcode)) + modrm + tail


def _evex(form: Form, fields: Fields, reg: int) -> tuple[int, int, int]:
    """The three payload bytes; X and V' extend an index, or X the number of a register in ModRM.rm."""
    extension, high = fields.index_high & 8, fields.second & 16
    if form.on_memory:
        high |= fields.index_high & 16
    else:
        extension = (fields.index_high & 16) >> 1
    register_bits = reg & 8 | extension >> 1 | (fields.base_high & 8) >> 2 | (reg & 16) >> 4
    return (
        (~(register_bits << 4) & 0xF0) | form.opcode_map,
        form.wide << 7 | (~fields.second & 15) << 3 | 4 | form.simd_prefix,
        fields.zeroing << 7 | form.vector_length << 5 | form.broadcast << 4 | (not high) << 3 | fields.mask,
    )


_ATTEMPTS: Final = tuple(
    Fields(second=second, mask=mask, reg=reg) for mask in (0, 1) for second in (0, 3) for reg in (2, 0)
)  # fmt: skip
_TAIL: Final = bytes(8)

Length = Callable[[bytes], int]
"""How long the instruction is that some bytes begin with; 0 if they begin with none."""


def valid_fields(form: Form, length: Length, *, wide: bool) -> Fields | None:
    """Operands with which the form is an instruction; None if there are none."""
    operand = b"\x04\x08" if form.on_memory else bytes((0xC0 | (1 if form.rm == ANY else form.rm),))
    for attempt in _ATTEMPTS if form.kind in {VEX, EVEX, XOP} else _ATTEMPTS[:1]:
        fields = attempt._replace(operand=operand)
        if length(encode(form, fields, _TAIL, wide=wide)):
            return fields
    return None


def all_forms(length: Length, *, wide: bool) -> dict[Form, Fields]:
    """Every form that a decoder takes for an instruction, with operands for it."""
    found = {}
    for form in candidates(wide=wide):
        fields = valid_fields(form, length, wide=wide)
        if fields is not None:
            found[form] = fields
    return found
