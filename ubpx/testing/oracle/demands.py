"""What instructions need to find, so that most of them do their work and none of them does harm.

Without this a random ``ret`` would always fault and a random system call might do anything.
"""

from collections.abc import Callable
from random import Random
from typing import Final

import attrs

from ubpx.core.values import VirtAddr
from ubpx.testing.oracle.forms import ADDRESS_SIZE, FS, GS, LEGACY, Form
from ubpx.testing.oracle.layout import CODE_SIZE, STACK_SIZE, Layout
from ubpx.testing.oracle.operands import Pointers

AX, CX, DX, BX, SP, BP, SI, DI = range(8)
_KEEP_AWAY: Final = 48
_HARMLESS_CALLS: Final = (20, 24, 39, 102, 186, 0xFFFF, 2**32 - 1, 1000)
_SELECTORS: Final = (0, 3, 0x2B, 0x2B, 0x2B, 0x33, 0x23, 0x63, 0x7B)
_OWN_SEGMENT: Final = 0x63
"""What an i386 program's first own segment is called."""
SEGMENT_BASE: Final = 0x100


@attrs.define(kw_only=True)
class Arrival:
    """A thread before an instruction that is being made up. Owned by the maker of one case."""

    layout: Layout
    form: Form
    origin: VirtAddr
    random: Random
    pointers: Pointers
    registers: list[int]
    """By number."""
    flags: int
    tail: bytes = b""
    """What follows ModRM, SIB and displacement: immediates, and more than enough."""
    target: int = 0
    """Where a memory operand points to."""
    segments: dict[str, int] = attrs.field(factory=dict)
    """Selectors and bases by name, where they are not as usual."""
    shift: int = 0
    """What the segment adds to an operand's address."""
    pokes: dict[int, bytes] = attrs.field(factory=dict)
    """Bytes by address that must stand in memory."""

    padding: bytes = b""
    """Prefixes before those of the form."""

    @property
    def prefixes(self) -> bytes:
        """All of them."""
        return self.padding + self.form.prefixes

    @property
    def low(self) -> bool:
        """Whether addresses have half the width."""
        return ADDRESS_SIZE in self.prefixes

    def pointer(self) -> int:
        """A good address as a rule."""
        return self.pointers.any(self.random, low=self.low)

    def code_target(self) -> int:
        """Somewhere in the code, but not at the instruction; rarely anywhere."""
        if self.random.random() < 0.06:
            return self.random.getrandbits(8 * self.layout.word_size)
        while True:
            chosen = self.layout.code + self.random.randrange(CODE_SIZE - 64)
            if abs(chosen - self.origin) > _KEEP_AWAY:
                return chosen

    def poke(self, address: int, value: int, size: int = 0) -> None:
        """Have ``value`` stand at ``address``."""
        size = size or self.layout.word_size
        self.pokes[address] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def put(self, number: int, value: int) -> None:
        """Give a register a value."""
        self.registers[number] = value & self.layout.mask


def settle_segments(arrival: Arrival) -> None:
    """What fs and gs are; before any address is chosen."""
    prefixes, random = arrival.prefixes, arrival.random
    if FS not in prefixes and GS not in prefixes:
        if arrival.layout.word_size == 8 and random.random() < 0.2:
            arrival.segments = {"fs_base": random.getrandbits(46), "gs_base": random.getrandbits(46)}
    elif arrival.layout.word_size == 8:
        arrival.shift = random.choice((0, 0x10, 0x1000, random.getrandbits(40)))
        if arrival.low:
            arrival.shift &= 0xFFF
        arrival.segments = {"fs_base": arrival.shift, "gs_base": arrival.shift}
    elif random.random() < 0.85:
        arrival.shift = SEGMENT_BASE
        own = {"fs": _OWN_SEGMENT, "gs": _OWN_SEGMENT}
        arrival.segments = {**own, "fs_base": SEGMENT_BASE, "gs_base": SEGMENT_BASE}


def settle_operands(arrival: Arrival) -> None:
    """Registers, immediates and memory that the opcode wants; before ModRM's registers get their values."""
    random, form = arrival.random, arrival.form
    arrival.tail = random.randbytes(12)
    if random.random() < 0.4:
        arrival.tail = bytes((random.randrange(12),)) + arrival.tail[1:]
    if form.kind == LEGACY:
        for opcodes, meet in _DEMANDS:
            if form.where in opcodes:
                meet(arrival)


def _short_branch(arrival: Arrival) -> None:
    distance = arrival.random.choice((arrival.random.randrange(128), arrival.random.randrange(-128, -20)))
    arrival.tail = (distance & 0xFF).to_bytes(1, "little") + arrival.tail[1:]
    if arrival.random.random() < 0.7:
        arrival.put(CX, arrival.random.choice((0, 1, 2, 1 << 32, (1 << 32) + 1, 1 << 16)))


def _near_branch(arrival: Arrival) -> None:
    distance = arrival.code_target() - arrival.origin - 6
    if abs(distance) > CODE_SIZE:  # as far as a slot can reach too
        distance = arrival.random.randrange(-(2**30), 2**30)
    arrival.tail = (distance & 2**32 - 1).to_bytes(4, "little") + arrival.tail[4:]


def _return(arrival: Arrival) -> None:
    arrival.poke(arrival.registers[SP], arrival.code_target())
    arrival.tail = bytes((arrival.random.randrange(64), 0)) + arrival.tail[2:]


def _strings(arrival: Arrival) -> None:
    """Pointers that may be near an edge; few iterations, or so many that the edge ends them."""
    random, layout = arrival.random, arrival.layout
    for number in (SI, DI):
        if random.random() < 0.9:
            arrival.put(number, arrival.pointer() - (arrival.shift if number == SI else 0))
    arrival.put(CX, random.randrange(6) if random.random() < 0.9 else random.randrange(40))
    if layout.word_size == 8 and random.random() < 0.5 and arrival.low:
        arrival.registers[CX] |= random.getrandbits(32) << 32
        arrival.registers[SI] |= random.getrandbits(32) << 32


def _translation(arrival: Arrival) -> None:
    arrival.put(BX, arrival.pointer() - arrival.shift)


def _stored_pointer(arrival: Arrival) -> None:
    arrival.put(DI, arrival.pointer() - arrival.shift)


def _absolute(arrival: Arrival) -> None:
    """moffs; an address-size prefix halves it."""
    size = arrival.layout.word_size if not arrival.low else arrival.layout.word_size // 2
    arrival.tail = (arrival.pointer() - arrival.shift & (1 << 8 * size) - 1).to_bytes(size, "little") + bytes(4)


def _enter(arrival: Arrival) -> None:
    random = arrival.random
    arrival.tail = bytes((random.getrandbits(8), random.randrange(2), random.randrange(4))) + bytes(4)
    _leave(arrival)


def _leave(arrival: Arrival) -> None:
    if arrival.random.random() < 0.9:
        arrival.put(BP, arrival.layout.stack + 8 * arrival.random.randrange(8, STACK_SIZE // 8))


def _indirect(arrival: Arrival) -> None:
    if arrival.form.reg in {2, 4} and arrival.target:
        arrival.poke(arrival.target, arrival.code_target())


def _selector(arrival: Arrival) -> None:
    """Loads of segment registers, by mov, by pop, or as the end of a far pointer."""
    chosen = arrival.random.choice(_SELECTORS)
    if arrival.form.on_memory and arrival.target:
        size = 4 if arrival.form.opcode != 0x8E else 0
        arrival.poke(arrival.target + size, chosen, 2)
    arrival.poke(arrival.registers[SP], chosen)


def _system_call(arrival: Arrival) -> None:
    arrival.put(AX, arrival.random.choice(_HARMLESS_CALLS))
    arrival.tail = b"\x80" + arrival.tail[1:]


def _division(arrival: Arrival) -> None:
    if arrival.form.reg >= 6 and arrival.random.random() < 0.7:
        arrival.put(DX, arrival.random.choice((0, 0, 1, arrival.layout.mask)))


def _bit_in_memory(arrival: Arrival) -> None:
    """The register is a bit's distance, which may be far."""
    if arrival.random.random() < 0.8:
        arrival.registers = [
            arrival.random.randrange(-2000, 2000) & arrival.layout.mask if number != SP else value
            for number, value in enumerate(arrival.registers)
        ]


def _comparison(arrival: Arrival) -> None:
    """For cmpxchg and its kin: equal half of the time."""
    if arrival.target and arrival.random.random() < 0.5:
        value, word = arrival.registers[AX], arrival.layout.word_size
        wide = arrival.form.prefixes[-1:] == b"\x48"
        half = 8 if wide else 4
        if arrival.form.opcode != 0xC7:
            arrival.poke(arrival.target, value, word)
            return
        both = arrival.registers[AX] & (1 << 8 * half) - 1 | (arrival.registers[DX] & (1 << 8 * half) - 1) << 8 * half
        arrival.poke(arrival.target, both, 2 * half)


def _flags_from_stack(arrival: Arrival) -> None:
    random = arrival.random
    flags = random.getrandbits(22) if random.random() < 0.3 else random.getrandbits(12) & 0x8D5 | 0x202
    if random.random() < 0.7:
        flags &= ~0x100
    arrival.poke(arrival.registers[SP], flags)


def _leaf(arrival: Arrival) -> None:
    """cpuid, xgetbv, rdpmc: small numbers."""
    arrival.put(AX, arrival.random.randrange(0x20))
    arrival.put(CX, arrival.random.randrange(3))


def _transaction(arrival: Arrival) -> None:
    if arrival.form.reg == 7 and arrival.form.rm == 0 and not arrival.form.on_memory:
        _near_branch(arrival)


def _one(*opcodes: int) -> frozenset[tuple[int, int]]:
    return frozenset((0, opcode) for opcode in opcodes)


def _two(*opcodes: int) -> frozenset[tuple[int, int]]:
    return frozenset((1, opcode) for opcode in opcodes)


_DEMANDS: Final[tuple[tuple[frozenset[tuple[int, int]], Callable[[Arrival], None]], ...]] = (
    (_one(*range(0x70, 0x80), *range(0xE0, 0xE4), 0xEB), _short_branch),
    (_one(0xE8, 0xE9) | _two(*range(0x80, 0x90)), _near_branch),
    (_one(0xC2, 0xC3), _return),
    (_one(*range(0xA4, 0xA8), *range(0xAA, 0xB0)), _strings),
    (_one(0xD7), _translation),
    (_two(0xF7), _stored_pointer),
    (_one(*range(0xA0, 0xA4)), _absolute),
    (_one(0xC8), _enter),
    (_one(0xC9), _leave),
    (_one(0xFF), _indirect),
    (_one(0x8E, 0x07, 0x17, 0x1F, 0xC4, 0xC5) | _two(0xA1, 0xA9, 0xB2, 0xB4, 0xB5), _selector),
    (_one(0xCD) | _two(0x05, 0x34), _system_call),
    (_one(0xF6, 0xF7), _division),
    (_two(0xA3, 0xAB, 0xB3, 0xBB), _bit_in_memory),
    (_two(0xB0, 0xB1, 0xC7), _comparison),
    (_one(0x9D), _flags_from_stack),
    (_two(0x01, 0xA2, 0x33), _leaf),
    (_one(0xC7), _transaction),
)


def settle_registers(arrival: Arrival, reg: int, rm: int) -> None:
    """What the registers must be that ModRM names, by their numbers; ``rm`` is -1 for memory."""
    random, form = arrival.random, arrival.form
    count = len(arrival.registers)
    reg, rm = reg % count, rm % count if rm >= 0 else -1
    match form.kind, form.opcode_map, form.opcode:
        case "legacy", 0, 0xFF if rm >= 0 and form.reg in {2, 4}:
            arrival.put(rm, arrival.code_target())
        case "legacy", 0, 0x8E if rm >= 0:
            arrival.put(rm, random.choice(_SELECTORS))
        case "legacy", 2, 0xF8 if rm < 0:  # movdir64b, enqcmd: the register is an address too
            arrival.put(reg, arrival.pointer() & ~63)
        case "VEX", 1, 0xF7:
            arrival.put(DI, arrival.pointer() - arrival.shift)
        case "legacy", 1, 0xAE if form.reg in {2, 3} and rm >= 0 and 0xF3 in form.prefixes:  # wrfsbase, wrgsbase
            arrival.registers[rm] &= (1 << 46) - 1
