"""What the bits of a RV64GC instruction say: lengths, fields, immediates.

Source: The RISC-V Instruction Set Manual, volume I (unprivileged ISA), version 20240411: chapter 1.5 (lengths),
chapters 2.2 and 2.3 (formats), chapter 34 (listings).
"""

from typing import Final, NamedTuple

from ubpx.core.ubp.riscv64_short import expand, jump_word, signed

PARCEL: Final = 2
"""Bytes that every length and every address of an instruction is a multiple of, with compressed instructions."""
LONGEST_INSN: Final = 4
"""Bytes; what is longer is no RV64GC."""

REGISTERS: Final = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5",
    "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)  # fmt: skip
"""By number, x0 to x31, as the calling convention names them."""
MASK: Final = 2**64 - 1

MISC_MEM, AUIPC, AMO, OP_FP, OP_V, SYSTEM = 0x0F, 0x17, 0x2F, 0x53, 0x57, 0x73
FMADD, FMSUB, FNMSUB, FNMADD = 0x43, 0x47, 0x4B, 0x4F


class Encoding(NamedTuple):
    """One instruction of 32 bits, or what one of 16 bits stands for."""

    word: int
    length: int
    """Bytes that it has in the program: 2 or 4."""

    @property
    def opcode(self) -> int:
        """Bits 6 to 0."""
        return self.word & 0x7F

    @property
    def rd(self) -> int:
        """The number of the register that is written."""
        return self.word >> 7 & 0x1F

    @property
    def funct3(self) -> int:
        """Bits 14 to 12."""
        return self.word >> 12 & 7

    @property
    def rs1(self) -> int:
        """The number of the first register that is read."""
        return self.word >> 15 & 0x1F

    @property
    def rs2(self) -> int:
        """The number of the second one."""
        return self.word >> 20 & 0x1F

    @property
    def funct7(self) -> int:
        """Bits 31 to 25."""
        return self.word >> 25

    @property
    def i_immediate(self) -> int:
        """Of jalr: bits 31 to 20, with their sign."""
        return signed(self.word >> 20, 12)

    @property
    def b_immediate(self) -> int:
        """Of branches, bytes from the instruction to the target."""
        word = self.word
        low = (word >> 8 & 0xF) << 1 | (word >> 25 & 0x3F) << 5
        return signed(low | (word >> 7 & 1) << 11 | (word >> 31) << 12, 13)

    @property
    def u_immediate(self) -> int:
        """Of auipc: bits 31 to 12 where they stand, with their sign."""
        return signed(self.word & 0xFFFF_F000, 32)

    @property
    def j_immediate(self) -> int:
        """Of jal, bytes from the instruction to the target."""
        word = self.word
        low = (word >> 21 & 0x3FF) << 1 | (word >> 20 & 1) << 11
        return signed(low | (word >> 12 & 0xFF) << 12 | (word >> 31) << 20, 21)


def length_of(first: int) -> int | None:
    """Bytes of an instruction whose first halfword is ``first``: 2 or 4; None for a longer format."""
    if first & 0b11 != 0b11:
        return PARCEL
    return LONGEST_INSN if first & 0b11100 != 0b11100 else None


def parse(code: bytes) -> Encoding | None:
    """The instruction that ``code`` begins with; None if it is not whole, too long, or a reserved short one."""
    first = int.from_bytes(code[:PARCEL], "little")
    length = length_of(first)
    if length is None or len(code) < length:
        return None
    word = int.from_bytes(code[:length], "little") if length == LONGEST_INSN else expand(first)
    return None if word is None else Encoding(word, length)


def jal(rd: int, distance: int) -> bytes | None:
    """The jump over ``distance`` bytes; None beyond 1 MiB."""
    if not -(1 << 20) <= distance < 1 << 20:
        return None
    return jump_word(rd, distance).to_bytes(4, "little")
