"""Unicorn as a riscv64 processor."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

from ubpx.testing.emulated.processor import STACK, STACK_SIZE, Form, some_value

_COMPRESSED: Final = 0xFFFF
_MASK: Final = 0xFE00_707F
"""Of a form of four bytes: opcode, funct3 and funct7, which tell nearly all instructions from each other."""
_MASK_WITH_RS2: Final = 0xFFF0_707F
_RS2_TELLS: Final = frozenset({0x13, 0x1B, 0x2F, 0x53, 0x73})
"""Opcodes of which rs2's field tells more: OP-IMM, OP-IMM-32, AMO, OP-FP, SYSTEM."""
_FIELDS_MASK: Final = 0x707F
_IMMEDIATES: Final = frozenset({0x03, 0x07, 0x0F, 0x17, 0x23, 0x27, 0x37, 0x63, 0x67, 0x6F})
"""Opcodes with an immediate where others have funct7; some have one in funct3, too."""
_NO_FUNCT3: Final = frozenset({0x17, 0x37, 0x6F})
_FLOATING: Final = 1 << 13
"""MSTATUS.FS: initial."""
_REGISTERS: Final = (
    "PC", "X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "X9", *(f"X{number}" for number in range(10, 32)),
)  # fmt: skip
_EMULATED: Final = (0x6F, 0x67, 0x63, 0x17)
"""jal, jalr, branches, auipc."""
_EMULATED_COMPRESSED: Final = ((0xE003, 0xA001), (0xF07F, 0x8002), (0xF07F, 0x9002), (0xC003, 0xC001))
"""Mask and value of c.j, c.jr, c.jalr, c.beqz and c.bnez."""


class Riscv64Processor:
    """See Processor."""

    name = "riscv64"
    trap = "error 10"
    system_call = 8
    undefined = frozenset({"exception 2"})
    unkept: tuple[str, ...] = ("fcsr",)
    alignment = 2
    filler = bytes.fromhex("0100 0100 13000000 13050580 0100 0100")
    """c.nop, nop, and an addi."""

    def machine(self) -> Any:
        """In user mode, with floating point."""
        import unicorn
        from unicorn import riscv_const as numbers

        machine = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
        status = machine.reg_read(numbers.UC_RISCV_REG_MSTATUS)
        machine.reg_write(numbers.UC_RISCV_REG_MSTATUS, status | _FLOATING)
        machine.reg_write(numbers.UC_RISCV_REG_PRIV, 0)
        return machine

    def register_numbers(self) -> Sequence[int]:
        """See Processor."""
        from unicorn import riscv_const as numbers

        return [getattr(numbers, f"UC_RISCV_REG_{name}") for name in _REGISTERS]

    def vector_numbers(self) -> Mapping[str, int]:
        """See Processor."""
        from unicorn import riscv_const as numbers

        names = (*(f"F{number}" for number in range(32)), "FCSR")
        return {name.lower(): getattr(numbers, f"UC_RISCV_REG_{name}") for name in names}

    def forms(self) -> Iterator[Form]:
        """See Processor."""
        for word in range(1 << 16):
            if word & 3 != 3:
                yield Form(word, _COMPRESSED, 2)
        for opcode in range(3, 1 << 7, 4):
            yield from self._forms_of(opcode)

    def _forms_of(self, opcode: int) -> Iterator[Form]:
        if opcode & 0x1F == 0x1F:  # six bytes and more
            return
        for funct3 in range(1 if opcode in _NO_FUNCT3 else 8):
            if opcode in _IMMEDIATES:
                mask = 0x7F if opcode in _NO_FUNCT3 else _FIELDS_MASK
                yield Form(opcode | funct3 << 12, mask, 4)
                continue
            for funct7 in range(1 << 7):
                word = opcode | funct3 << 12 | funct7 << 25
                if opcode not in _RS2_TELLS:
                    yield Form(word, _MASK, 4)
                    continue
                for rs2 in range(1 << 5):
                    yield Form(word | rs2 << 20, _MASK_WITH_RS2, 4)

    def form_of(self, code: bytes) -> Form:
        """See Processor."""
        word = int.from_bytes(code, "little")
        if len(code) == 2:
            return Form(word, _COMPRESSED, 2)
        opcode = word & 0x7F
        if opcode in _IMMEDIATES:
            mask = 0x7F if opcode in _NO_FUNCT3 else _FIELDS_MASK
        else:
            mask = _MASK_WITH_RS2 if opcode in _RS2_TELLS else _MASK
        return Form(word & mask, mask, 4)

    def draw(self, random: Random) -> bytes:
        """See Processor."""
        match random.randrange(6):
            case 0:
                mask, value = random.choice(_EMULATED_COMPRESSED)
                return (random.getrandbits(16) & ~mask | value).to_bytes(2, "little")
            case 1:
                word = random.getrandbits(16)
                return (word & ~3 | random.randrange(3)).to_bytes(2, "little")
            case 2:
                word = random.getrandbits(32) & ~0x7F | random.choice(_EMULATED)
                return self._plausible(word).to_bytes(4, "little")
            case _:
                return self._plausible(random.getrandbits(32) | 3).to_bytes(4, "little")

    def _plausible(self, word: int) -> int:
        """With funct3 0, where nothing else is an instruction; a jalr may have one register for both."""
        if word & 0x7F == 0x67:
            word &= ~0x7000
            if word >> 20 & 3 == 0:
                word = word & ~(0x1F << 7) | (word >> 15 & 0x1F) << 7
        return word

    def registers(self, random: Random, origin: int) -> tuple[int, ...]:
        """See Processor."""
        general = [some_value(random, origin) for _ in range(31)]
        general[1] = STACK + random.randrange(STACK_SIZE // 16) * 16
        return (origin, *general)

    def vectors(self, random: Random) -> tuple[int, ...]:
        """See Processor."""
        return (*(random.getrandbits(64) for _ in range(32)), 0)

    def visible(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """See Processor."""
        return registers
