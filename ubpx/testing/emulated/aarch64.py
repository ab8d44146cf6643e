"""Unicorn as an aarch64 processor."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

from ubpx.core.ubp.aarch64_insns import BRANCH_TYPE, CARRY, NEGATIVE, OVERFLOW, ZERO
from ubpx.testing.emulated.processor import STACK, STACK_SIZE, Form, some_value

_MASK: Final = 0xFFE0_FC00
"""Of a form: bits 31 to 21 and 15 to 10 hold nearly all of what tells one instruction from another."""
_FLAGS: Final = NEGATIVE | ZERO | CARRY | OVERFLOW
_PSTATE: Final = 33
_CONTROL: Final = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 26 | 1 << 15 | 1 << 14 | 1 << 13
"""SCTLR_EL1: EnIA, EnIB, EnDA, UCI, UCT, DZE, EnDB, as Linux has them for programs."""
_EMULATED: Final = (
    (0xFFFF_FFFF, 0xD503_201F), (0xFC00_0000, 0x1400_0000), (0xFC00_0000, 0x9400_0000), (0xFF00_0010, 0x5400_0000),
    (0x7E00_0000, 0x3400_0000), (0x7E00_0000, 0x3600_0000), (0x9F00_0000, 0x1000_0000), (0x9F00_0000, 0x9000_0000),
    (0xFFFF_FC1F, 0xD61F_0000), (0xFFFF_FC1F, 0xD63F_0000), (0xFFFF_FFFF, 0xD63F_03C0), (0xFFFF_FC1F, 0xD65F_0000),
    (0xFF80_0000, 0x1800_0000), (0xFF80_0000, 0x5800_0000), (0xFF80_0000, 0x9800_0000), (0xFF00_0000, 0xD800_0000),
    (0x3F00_0000, 0x1C00_0000),
)  # fmt: skip
"""Mask and value of what would come seldom, and is worth most."""
_LITERALS: Final = frozenset({0x18, 0x58, 0x98, 0xD8, 0x1C, 0x5C, 0x9C})
_NEAR: Final = 1 << 14
"""Words: how far a literal in the code may be."""


class Aarch64Processor:
    """See Processor."""

    name = "aarch64"
    trap = "exception 7"
    system_call = 2
    undefined = frozenset({"exception 1"})
    unkept: tuple[str, ...] = ()
    alignment = 4
    filler = bytes.fromhex("1f2003d5 34120000 1f2003d5 cdab0000")
    """nop and udf."""

    def machine(self) -> Any:
        """At EL0, vectors on, pointer authentication on."""
        import unicorn
        from unicorn import arm64_const as numbers

        machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        machine.ctl_set_cpu_model(numbers.UC_CPU_ARM64_MAX)
        machine.reg_write(numbers.UC_ARM64_REG_CPACR_EL1, 3 << 20 | 3 << 16)
        control = 1, 0, 3, 0, 0
        before = machine.reg_read(numbers.UC_ARM64_REG_CP_REG, control)
        machine.reg_write(numbers.UC_ARM64_REG_CP_REG, (*control, before | _CONTROL))
        machine.reg_write(numbers.UC_ARM64_REG_PSTATE, 0)
        return machine

    def register_numbers(self) -> Sequence[int]:
        """See Processor."""
        from unicorn import arm64_const as numbers

        names = (*(f"X{number}" for number in range(31)), "SP", "PC", "PSTATE")
        return [getattr(numbers, f"UC_ARM64_REG_{name}") for name in names]

    def vector_numbers(self) -> Mapping[str, int]:
        """See Processor."""
        from unicorn import arm64_const as numbers

        names = (*(f"Q{number}" for number in range(32)), "FPCR", "FPSR", "TPIDR_EL0")
        return {name.lower(): getattr(numbers, f"UC_ARM64_REG_{name}") for name in names}

    def forms(self) -> Iterator[Form]:
        """See Processor."""
        for high in range(1 << 11):
            for low in range(1 << 6):
                yield Form(high << 21 | low << 10, _MASK, 4)

    def form_of(self, code: bytes) -> Form:
        """See Processor."""
        return Form(int.from_bytes(code, "little") & _MASK, _MASK, 4)

    def draw(self, random: Random) -> bytes:
        """See Processor."""
        word = random.getrandbits(32)
        if random.randrange(3) == 0:
            mask, value = random.choice(_EMULATED)
            word = word & ~mask | value
            if word >> 24 in _LITERALS and random.randrange(4):  # else it is far away, where nothing is
                word = word & 0xFF00_001F | random.randrange(-_NEAR, _NEAR) % (1 << 19) << 5
        return word.to_bytes(4, "little")

    def registers(self, random: Random, origin: int) -> tuple[int, ...]:
        """See Processor."""
        general = [some_value(random, origin) for _ in range(31)]
        sp = STACK + random.randrange(STACK_SIZE // 16) * 16
        return (*general, sp, origin, random.getrandbits(32) & _FLAGS)

    def vectors(self, random: Random) -> tuple[int, ...]:
        """See Processor."""
        return (*(random.getrandbits(128) for _ in range(32)), 0, 0, random.getrandbits(64))

    def visible(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """How the thread was branched to says nothing where code is not guarded."""
        return (*registers[:_PSTATE], registers[_PSTATE] & ~BRANCH_TYPE)
