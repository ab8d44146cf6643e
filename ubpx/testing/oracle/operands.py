"""Memory operands: the bytes that name one, and the registers that make them name what is mapped."""

from random import Random
from typing import Final, NamedTuple

from ubpx.testing.oracle.layout import CODE_SIZE, DATA_SIZE, STACK_SIZE, Layout

_EDGE: Final = 64
_GATHER_BASE: Final = 0x1800
"""In the data area: an index from -64 to 191 with any scale stays inside."""


class Operand(NamedTuple):
    """One memory operand."""

    encoded: bytes
    """ModRM without reg, SIB, displacement."""
    registers: dict[int, int]
    """Values by register number."""
    target: int
    """Where it points to; what the instruction itself adds (bt) is not in it."""
    base_high: int = 0
    index_high: int = 0
    relative: bool = False
    """The displacement counts from behind the instruction: ``encoded`` ends in a place for it."""


class Pointers:
    """Chooses addresses: mostly good ones, some at the edges, a few anywhere. Owned by whoever makes cases."""

    def __init__(self, layout: Layout) -> None:
        self._layout: Final = layout

    def any(self, random: Random, *, low: bool) -> int:
        """An address; ``low``: within reach of half the width."""
        layout = self._layout
        areas = ((layout.low if low else layout.data, DATA_SIZE), (layout.stack, STACK_SIZE))
        start, size = areas[not low and random.random() < 0.15]
        chance = random.random()
        if chance < 0.8:
            inside = start + 64 * random.randrange(8, size // 64 - 8)
            return inside + (0 if random.random() < 0.6 else random.randrange(64))
        if chance < 0.92:
            return random.choice((start, start + size)) + random.randrange(-_EDGE, _EDGE)
        if chance < 0.96 and not low:
            return layout.code + random.choice(
                (random.randrange(CODE_SIZE // 2 - 256), random.randrange(-_EDGE, _EDGE))
            )
        return random.getrandbits(random.choice((12, 31, 47, 64))) & layout.mask

    def gathered(self, *, low: bool) -> int:
        """A base for a vector of indices."""
        return (self._layout.low if low else self._layout.data) + _GATHER_BASE


def choose(random: Random, target: int, *, wide: bool, narrow: bool, vector: bool, base_shift: int) -> Operand:
    """An operand that points to ``target``.

    ``wide``: in 64-bit mode; ``narrow``: under an address-size prefix; ``vector``: the index is a
    vector register, so that there is a SIB byte; ``base_shift``: what the segment adds.
    """
    if narrow and not wide:
        return _sixteen_bits(random, target - base_shift)
    bits = 64 if wide and not narrow else 32
    offset = target - base_shift & (1 << bits) - 1
    noise = random.getrandbits(32) << 32 if wide and narrow else 0
    if not vector:
        chance = random.random()
        if chance < 0.25 and wide:
            return Operand(b"\x05\0\0\0\0", {}, target, relative=True)
        if chance < 0.35 and (offset < 2**31 or not wide):
            encoded = b"\x04\x25" if wide else b"\x05"
            return Operand(encoded + (offset & 2**32 - 1).to_bytes(4, "little"), {}, target)
        if chance < 0.7:
            return _based(random, target, offset, noise, bits=bits, high=wide)
    return _indexed(random, target, offset, noise, bits=bits, high=wide, vector=vector)


def _displacement(random: Random) -> tuple[int, bytes]:
    """The mod bits in place, and the bytes; small, because EVEX scales what takes one byte."""
    chance = random.random()
    if chance < 0.35:
        return 0, b""
    if chance < 0.7:
        return 0x40, random.randrange(-8, 8).to_bytes(1, "little", signed=True)
    return 0x80, random.randrange(-(2**31), 2**31).to_bytes(4, "little", signed=True)


def _based(random: Random, target: int, offset: int, noise: int, *, bits: int, high: bool) -> Operand:
    mod, displacement = _displacement(random)
    number = random.randrange(8)
    if number & 7 == 5 and mod == 0:
        mod, displacement = 0x40, b"\0"
    sib = b"\x24" if number & 7 == 4 else b""
    extended = 8 if high and random.random() < 0.4 else 0
    value = offset - int.from_bytes(displacement, "little", signed=True) & (1 << bits) - 1 | noise
    return Operand(bytes((mod | number,)) + sib + displacement, {number | extended: value}, target, extended)


def _indexed(random: Random, target: int, offset: int, noise: int, *, bits: int, high: bool, vector: bool) -> Operand:
    mod, displacement = _displacement(random)
    if vector and mod == 0x40:
        displacement = b"\0"
    base, index, scale = random.randrange(8), random.randrange(8), random.randrange(4)
    base_high, index_high = (8 if high and random.random() < 0.4 else 0 for _ in range(2))
    if base == 5 and mod == 0:
        mod, displacement = 0x40, b"\0"
    while not vector and (index | index_high in (4, base | base_high)):  # 4: none; equal: no free sum
        index = (index + 1) % 8
    step = random.choice((0, 1, 2, random.randrange(-100, 100), random.getrandbits(bits)))
    moved = 0 if vector else step << scale
    value = offset - int.from_bytes(displacement, "little", signed=True) - moved & (1 << bits) - 1 | noise
    registers = {} if vector else {index | index_high: step & (1 << bits) - 1}
    registers[base | base_high] = value
    encoded = bytes((mod | 4, scale << 6 | index << 3 | base)) + displacement
    return Operand(encoded, registers, target, base_high, index_high)


_SIXTEEN: Final = ((3, 6), (3, 7), (5, 6), (5, 7), (6,), (7,), (5,), (3,))
"""Register numbers that ModRM.rm adds up under 16-bit addressing."""


def _sixteen_bits(random: Random, target: int) -> Operand:
    """Of the registers the lower halves count."""
    number = random.randrange(8)
    mod, displacement = random.choice(
        ((0, b""), (0x40, bytes((random.getrandbits(7),))), (0x80, random.randbytes(2)))
    )  # fmt: skip
    if mod == 0 and number == 6:
        return Operand(b"\x06" + (target & 0xFFFF).to_bytes(2, "little"), {}, target)
    rest = target - int.from_bytes(displacement, "little", signed=True)
    registers = {}
    for register in _SIXTEEN[number][1:]:
        registers[register] = random.getrandbits(32)
        rest -= registers[register]
    registers[_SIXTEEN[number][0]] = rest & 0xFFFF | random.getrandbits(16) << 16
    return Operand(bytes((mod | number,)) + displacement, registers, target)
