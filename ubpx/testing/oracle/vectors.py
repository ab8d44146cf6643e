"""Vector and x87 states to start from, in XSAVE's standard form.

Source: Intel SDM volume 1, chapter 13 (XSAVE), section 10.2.3 (MXCSR), section 8.1 (x87).
"""

import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from ubpx.testing.oracle.processor import Processor, tile_configuration

HEADER: Final = slice(512, 576)
"""Which parts are in use: the processor decides that as it likes, so nobody compares it."""
SOFTWARE: Final = slice(464, 512)
"""The kernel's own words."""
FIP_AT: Final = 8
"""Of the x87 last-instruction pointer, 64 bits."""
_SUPPORTED_AT: Final = 464
_XMM_AT, _ST_AT = 160, 32
_X87_SSE_AVX: Final = 0b111
_AVX, _MASKS, _HIGH_HALVES, _HIGH_REGISTERS, _TILE_CONFIGURATION, _TILE_DATA = 2, 5, 6, 7, 17, 18
_ERROR_SUMMARY: Final = 0x8080
"""ES and B of the x87 status: an exception that is not masked is pending."""
_CPUID: Final = b"\x0f\xa2\xcc"
_XSAVE_LEAF: Final = 0xD

_Lanes = Callable[[Random, int], bytes]
"""Fills so many bytes of vector registers."""


def components(processor: Processor) -> dict[int, tuple[int, int]]:
    """Offset and size in the standard form of each component above SSE, as this processor's cpuid says."""
    layout, names = processor.layout, processor.registers.index
    a, b, c = ("rax", "rbx", "rcx") if layout.word_size == 8 else ("eax", "ebx", "ecx")
    supported = int.from_bytes(processor.xstate()[_SUPPORTED_AT : _SUPPORTED_AT + 8], "little")
    found = {}
    for number in (_AVX, _MASKS, _HIGH_HALVES, _HIGH_REGISTERS, _TILE_CONFIGURATION, _TILE_DATA):
        if supported >> number & 1 and (processor.has_tiles or number < _TILE_CONFIGURATION):
            words = processor.ask(_CPUID, {a: _XSAVE_LEAF, c: number})
            found[number] = (words[names[b]], words[names[a]])
    return found


class Vectors:
    """A stock of random states, made once. Owned by whoever makes cases."""

    def __init__(self, template: bytes, parts: Mapping[int, tuple[int, int]], random: Random, count: int = 64) -> None:
        self._template: Final = template
        self._parts: Final = parts
        self.any: Final = [self._make(random, lanes) for lanes in _LANES for _ in range(count // len(_LANES))]
        self.indices: Final = [self._make(random, lanes) for lanes in (_small32, _small64) for _ in range(8)]
        """Of these every vector is an index that stays near its base."""

    def _make(self, random: Random, lanes: _Lanes) -> bytes:
        state = bytearray(self._template)
        tiles = _TILE_DATA in self._parts and random.random() < 0.25
        in_use = _X87_SSE_AVX
        _fill_x87(state, random)
        struct.pack_into("<I", state, 24, _mxcsr(random))
        state[_XMM_AT : _XMM_AT + 256] = lanes(random, 256)
        for number, (at, size) in self._parts.items():
            if number in {_TILE_CONFIGURATION, _TILE_DATA} and not tiles:
                continue
            in_use |= 1 << number
            if number == _TILE_CONFIGURATION:
                shapes = [(random.randint(1, 16), 4 * random.randint(1, 16)) for _ in range(8)]
                data = tile_configuration(shapes if random.random() < 0.5 else ((16, 64),) * 8)
            elif number in {_MASKS, _TILE_DATA}:
                data = random.randbytes(size)
            else:
                data = lanes(random, size)
            state[at : at + size] = data
        struct.pack_into("<QQ", state, HEADER.start, in_use, 0)
        return bytes(state)


def _fill_x87(state: bytearray, random: Random) -> None:
    """All exceptions masked as a rule; now and then some are not, or one is pending already."""
    control = 0x37F
    if random.random() < 0.3:
        control = 0x40 | random.getrandbits(12) & 0xF00 | 0x3F
    status = random.randrange(8) << 11 | random.getrandbits(16) & 0x4700
    if random.random() < 0.15:
        control &= ~random.getrandbits(6)
    if random.random() < 0.1:
        status |= random.getrandbits(6)
    status &= ~_ERROR_SUMMARY  # as the processor would find it: any other value it corrects, sooner or later
    if status & ~control & 0x3F:
        status |= _ERROR_SUMMARY
    pointer = random.getrandbits(31)
    struct.pack_into("<HHBxHQQ", state, 0, control, status, random.getrandbits(8), 0, pointer, pointer + 64)
    if random.random() < 0.4:
        state[4] = 0xFF  # all full: most operations work
    for number in range(8):
        exponent = random.choice((random.getrandbits(16), 0x3FFF + random.randrange(-40, 60), 0x3FFF))
        mantissa = random.choice((random.getrandbits(64) | 1 << 63, 1 << 63, random.getrandbits(8) << 56 | 1 << 63))
        at = _ST_AT + 16 * number
        struct.pack_into("<QHxxxxxx", state, at, mantissa, exponent)


def _mxcsr(random: Random) -> int:
    value = 0x1F80
    if random.random() < 0.4:
        value |= (
            random.getrandbits(2) << 13
            | random.getrandbits(6)
            | random.getrandbits(1) << 15
            | random.getrandbits(1) << 6
        )
    if random.random() < 0.1:
        value &= ~(random.getrandbits(6) << 7)
    return value


def _bits(random: Random, size: int) -> bytes:
    return random.randbytes(size)


def _floats(random: Random, size: int) -> bytes:
    values = (random.choice((0.0, 1.0, -2.5, 1e30, random.uniform(-9, 9))) for _ in range(size // 4))
    return struct.pack(f"<{size // 4}f", *values)


def _doubles(random: Random, size: int) -> bytes:
    values = (random.choice((0.0, 1.0, -2.5, 1e300, random.uniform(-9, 9))) for _ in range(size // 8))
    return struct.pack(f"<{size // 8}d", *values)


def _small32(random: Random, size: int) -> bytes:
    return struct.pack(f"<{size // 4}i", *(random.randrange(-64, 192) for _ in range(size // 4)))


def _small64(random: Random, size: int) -> bytes:
    return struct.pack(f"<{size // 8}q", *(random.randrange(-64, 192) for _ in range(size // 8)))


_LANES: Final[tuple[_Lanes, ...]] = (_bits, _floats, _doubles, _small32)
