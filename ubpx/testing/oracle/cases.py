"""Instructions with operands, and threads that stand before them: each case follows from a seed and a number."""

import functools
from collections.abc import Mapping
from random import Random
from typing import Final

import attrs

from ubpx._errors import UsageError
from ubpx.core.values import VirtAddr
from ubpx.testing.oracle.demands import Arrival, settle_operands, settle_registers, settle_segments
from ubpx.testing.oracle.forms import (
    ADDRESS_SIZE,
    ANY,
    EVEX,
    FS,
    GS,
    LEGACY,
    NOW_3D,
    VEX,
    XOP,
    Fields,
    Form,
    Length,
    candidates,
    encode,
    valid_fields,
)
from ubpx.testing.oracle.layout import DATA_SIZE, STACK_SIZE, Layout
from ubpx.testing.oracle.operands import Operand, Pointers, choose
from ubpx.testing.oracle.processor import REGISTERS, Processor
from ubpx.testing.oracle.vectors import Vectors, components

_GENERAL_64: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_GENERAL_32: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SP: Final = 4
_FLAGS: Final = 0x8D5
_TRAP, _DIRECTION, _ALIGNMENT = 1 << 8, 1 << 10, 1 << 18
_IDENTIFICATION: Final = 1 << 21
_INTERRUPTS: Final = 0x202
_GATHERS: Final = frozenset((2, opcode) for opcode in (*range(0x90, 0x94), *range(0xA0, 0xA4), 0xC6, 0xC7))
_TILE_OPERAND: Final = (2, 0x4B)
_MOST_TRIES: Final = 6
_MOST_DRAWS: Final = 20_000
_TRANSFERS: Final = "transfers"
_KINDS: Final = (_TRANSFERS,) * 20 + (LEGACY,) * 45 + (VEX,) * 15 + (EVEX,) * 18 + (XOP, NOW_3D)
"""To draw from: the instructions that move rip or the stack come as often as all together."""
_TRANSFER_OPCODES: Final = frozenset(
    {(0, opcode) for opcode in (
        *range(0x50, 0x60), 0x68, 0x6A, *range(0x70, 0x80), 0x8F, 0x90, 0x9C, 0x9D, 0xC2, 0xC3, 0xC8, 0xC9,
        *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEB, 0xFF,
    )}
    | {(1, opcode) for opcode in (0x05, 0x1E, 0x1F, *range(0x80, 0x90), 0xA0, 0xA1, 0xA8, 0xA9)}
)  # fmt: skip
_SYSTEMATIC: Final = 40
"""A bit of the seeds of the systematic part."""


Aim = frozenset[tuple[int, int]]
"""Opcodes, each with its map."""
ANYWHERE: Final[Aim] = frozenset()


@attrs.frozen(kw_only=True)
class Case:
    """One instruction, and everything that it finds when it begins."""

    name: str
    """The number with which it was drawn; behind ``form-`` that of the systematic part."""
    form: Form
    code: bytes
    origin: VirtAddr
    words: bytes
    """The general registers, packed."""
    xstate: bytes
    memory: bytes
    """Data, then stack."""


class Cases:
    """Makes cases: equal seed and number, equal case. Owned by one thread.

    ``known`` are all forms there are, if somebody has found that out; it changes nothing but the speed.
    ``aim``: to draw from these opcodes alone.
    """

    def __init__(
        self,
        processor: Processor,
        length: Length,
        seed: int,
        known: Mapping[Form, Fields] | None = None,
        aim: Aim = ANYWHERE,
    ) -> None:
        self.layout: Final[Layout] = processor.layout
        self.wide: Final = self.layout.word_size == 8
        self._length: Final = length
        self._seed: Final = seed
        self._stock: Final = {
            kind: [forms for forms in opcodes if not aim or forms[0].where in aim]
            for kind, opcodes in _by_opcode(wide=self.wide).items()
        }
        self._known: Final = known
        self._fields: Final[dict[Form, Fields | None]] = dict(known or {})
        self._pointers: Final = Pointers(self.layout)
        self._index: Final = processor.registers.index
        self._pc: Final = processor.registers.pc
        self._general: Final = tuple(self._index[name] for name in (_GENERAL_64 if self.wide else _GENERAL_32))
        self._flags: Final = self._index["eflags"]
        self._template: Final = processor.words()
        stock = Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._vectors: Final = Vectors(processor.xstate(), components(processor), stock)
        self._images: Final = [_image(stock) for _ in range(24)]

    def draw(self, number: int) -> Case:
        """A case of any form; raises UsageError if there seems to be none of what it aims at."""
        random = Random(self._seed << 64 | number)  # noqa: S311
        for _ in range(_MOST_DRAWS):
            opcodes = self._stock[_KINDS[random.randrange(len(_KINDS))]]
            made = self._make(str(number), random.choice(random.choice(opcodes)), random) if opcodes else None
            if made is not None:
                return made
        raise UsageError("there is no instruction with any of these opcodes in this mode")

    def of_form(self, number: int, form: Form) -> Case | None:
        """A case of that form; None if it is no instruction."""
        return self._make(f"form-{number}", form, Random(self._seed << 64 | 1 << _SYSTEMATIC | number))  # noqa: S311

    def _make(self, name: str, form: Form, random: Random) -> Case | None:
        fields = self._valid(form)
        if fields is None:
            return None
        origin = VirtAddr(self.layout.origin - (random.randrange(1, 16) if random.random() < 0.05 else 0))
        arrival = Arrival(
            layout=self.layout,
            form=form,
            origin=origin,
            random=random,
            pointers=self._pointers,
            registers=[],
            flags=_INTERRUPTS,
            padding=_padding(random, form),
        )
        self._settle(arrival)
        vector = form.kind in {VEX, EVEX} and form.where in _GATHERS
        if form.on_memory:
            arrival.target = self._pointers.gathered(low=arrival.low) if vector else arrival.pointer()
        settle_operands(arrival)
        code = self._encoded(arrival, fields, vector=vector)
        words = list(self._template)
        for word, value in zip(self._general, arrival.registers, strict=True):
            words[word] = value
        for segment, value in arrival.segments.items():
            words[self._index[segment]] = value
        words[self._flags], words[self._pc] = arrival.flags, origin
        words[self._index["orig_rax" if self.wide else "orig_eax"]] = 2**64 - 1
        return Case(
            name=name,
            form=form,
            code=code,
            origin=origin,
            words=REGISTERS.pack(*words),
            xstate=random.choice(self._vectors.indices if vector else self._vectors.any),
            memory=self._memory(arrival),
        )

    def _valid(self, form: Form) -> Fields | None:
        if form not in self._fields:
            self._fields[form] = valid_fields(form, self._length, wide=self.wide) if self._known is None else None
        return self._fields[form]

    def _settle(self, arrival: Arrival) -> None:
        """Registers and flags as nothing in particular needs them."""
        random, layout = arrival.random, self.layout
        settle_segments(arrival)
        arrival.registers = [self._value(arrival) for _ in self._general]
        near_edge = random.random() < 0.06
        if near_edge:
            sp = layout.stack + random.choice((0, STACK_SIZE)) + random.randrange(-8, 9)
        else:
            sp = layout.stack + STACK_SIZE // 2 + 8 * random.randrange(-400, 400) + random.choice((0, 0, 0, 4, 1))
        arrival.registers[_SP] = sp
        arrival.flags |= random.getrandbits(12) & _FLAGS
        if random.random() < 0.1:
            arrival.flags |= random.choice((_DIRECTION, _DIRECTION, _DIRECTION, _IDENTIFICATION))
        if random.random() < 0.02:
            arrival.flags |= random.choice((_ALIGNMENT, _TRAP))

    def _value(self, arrival: Arrival) -> int:
        random, mask = arrival.random, self.layout.mask
        chance = random.random()
        if chance < 0.35:
            return arrival.pointer() & mask
        if chance < 0.6:
            return random.randrange(-16, 64) & mask
        if chance < 0.7:
            return (1 << random.randrange(mask.bit_length())) - random.randrange(2) & mask
        return random.getrandbits(mask.bit_length())

    def _encoded(self, arrival: Arrival, fields: Fields, *, vector: bool) -> bytes:
        """The instruction's bytes; the registers that they name get their values."""
        form, operand = arrival.form, None
        if form.on_memory:
            sib = vector or (form.kind == VEX and form.where == _TILE_OPERAND)
            operand = choose(
                arrival.random, arrival.target, wide=self.wide, narrow=arrival.low, vector=sib, base_shift=arrival.shift
            )
        for attempt in range(_MOST_TRIES):
            chosen = fields if attempt == _MOST_TRIES - 1 else self._varied(arrival.random, form, fields)
            chosen = chosen._replace(padding=arrival.padding)
            if operand is not None:
                chosen = chosen._replace(operand=operand.encoded, base_high=operand.base_high)
                if not vector:
                    chosen = chosen._replace(index_high=operand.index_high)
            code = self._cut(arrival, chosen, operand)
            if code:
                break
        else:  # with an ordinary operand it is an instruction (see valid_fields)
            operand, chosen = None, fields
            code = self._cut(arrival, fields, None)
        on_register = chosen.operand[0] & 7 | chosen.base_high
        settle_registers(arrival, chosen.reg, -1 if form.on_memory else on_register)
        for number, value in (operand.registers if operand else {}).items():
            arrival.put(number, value)
        return code

    def _varied(self, random: Random, form: Form, fields: Fields) -> Fields:
        """Other registers; those of vectors have more numbers."""
        most = 1 if not self.wide else 4 if form.kind == EVEX else 2
        high = [8 * random.randrange(2) if self.wide else 0 for _ in range(2)]
        if form.kind == EVEX and not form.on_memory and self.wide:
            high[1] |= 16 * random.randrange(2)
        return Fields(
            reg=random.randrange(8 * most),
            second=fields.second and random.randrange(8 * most),
            mask=random.randrange(8) if form.kind == EVEX else 0,
            zeroing=form.kind == EVEX and random.randrange(2),
            base_high=high[0],
            index_high=high[1],
            bare_rex=form.kind == LEGACY and random.random() < 0.1,
            operand=bytes((0xC0 | (random.randrange(8) if form.rm == ANY else form.rm),)),
        )

    def _cut(self, arrival: Arrival, fields: Fields, operand: Operand | None) -> bytes:
        """Encoded, and as long as the instruction is; b"" if it is none with these fields."""
        form = arrival.form
        code = encode(form, fields, arrival.tail, wide=self.wide)
        size = self._length(code)
        if size and operand is not None and operand.relative:
            at = len(encode(form, fields, b"", wide=self.wide)) - 4 - (form.kind == NOW_3D)
            distance = operand.target - arrival.origin - size
            if not -(2**31) <= distance < 2**31 and not arrival.low:
                distance = arrival.random.randrange(-(2**30), 2**30)  # as far as a slot can reach too
            code = code[:at] + (distance & 2**32 - 1).to_bytes(4, "little") + code[at + 4 :]
        return code[:size]

    def _memory(self, arrival: Arrival) -> bytes:
        image = arrival.random.choice(self._images)
        if not arrival.pokes:
            return image
        changed, layout = bytearray(image), self.layout
        for address, data in arrival.pokes.items():
            for start, size, at in (
                (layout.data, DATA_SIZE, 0),
                (layout.low, DATA_SIZE, 0),
                (layout.stack, STACK_SIZE, DATA_SIZE),
            ):
                if start <= address <= start + size - len(data):
                    changed[at + address - start : at + address - start + len(data)] = data
        return bytes(changed)


_SEGMENTS: Final = (0x26, 0x2E, 0x36, 0x3E, FS, GS)


def _padding(random: Random, form: Form) -> bytes:
    """More prefixes now and then: repeated ones up to the longest instruction, and those that VEX allows."""
    if random.random() > 0.06:
        return b""
    if form.kind not in {LEGACY, NOW_3D}:
        return bytes(random.sample((random.choice(_SEGMENTS), ADDRESS_SIZE), random.randint(1, 2)))
    repeated = form.prefixes[:1] if form.prefixes[:1] != b"\x48" else b""
    return (repeated or bytes((random.choice(_SEGMENTS[:4]),))) * random.randint(1, 10)


@functools.cache  # it is the same for all seeds, and takes longer than many cases
def _by_opcode(*, wide: bool) -> dict[str, list[list[Form]]]:
    """The candidates of each opcode, by kind."""
    found: dict[str, dict[tuple[int, int], list[Form]]] = {kind: {} for kind in _KINDS}
    for form in candidates(wide=wide):
        kinds = (LEGACY, _TRANSFERS) if form.kind == LEGACY and form.where in _TRANSFER_OPCODES else (form.kind,)
        for kind in kinds:
            found[kind].setdefault(form.where, []).append(form)
    return {kind: list(opcodes.values()) for kind, opcodes in found.items()}


def _image(random: Random) -> bytes:
    """What data and stack may hold: anything, small numbers, nothing."""
    size = DATA_SIZE + STACK_SIZE
    pieces = (
        random.choice(
            (random.randbytes(64), bytes(64), bytes((random.getrandbits(4), 0, 0, 0)) * 16, random.randbytes(8) * 8)
        )
        for _ in range(size // 64)
    )
    return b"".join(pieces)
