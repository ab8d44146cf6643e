"""What the compressed instructions of RV64GC stand for: each is one of 32 bits.

Source: The RISC-V Instruction Set Manual, volume I (unprivileged ISA), version 20240411, chapter 27 ("C").
"""

from typing import Final

LOAD, LOAD_FP, OP_IMM, OP_IMM_32, STORE, STORE_FP = 0x03, 0x07, 0x13, 0x1B, 0x23, 0x27
OP, LUI, OP_32, BRANCH, JALR, JAL = 0x33, 0x37, 0x3B, 0x63, 0x67, 0x6F
EBREAK: Final = 0x0010_0073
C_EBREAK: Final = 0x9002
_RA, _SP = 1, 2
_SUB: Final = 0x20 << 25
_KEEPS_SIGN: Final = 0x20 << 5
"""In the immediate of a shift to the right."""


def signed(value: int, bits: int) -> int:
    """The number that the lowest ``bits`` say in two's complement."""
    return (value & (1 << bits) - 1) - ((value >> bits - 1 & 1) << bits)


def jump_word(rd: int, distance: int) -> int:
    """The jal over ``distance`` bytes."""
    high = (distance >> 1 & 0x3FF) << 21 | (distance >> 20 & 1) << 31
    return JAL | rd << 7 | (distance >> 12 & 0xFF) << 12 | (distance >> 11 & 1) << 20 | high


def expand(half: int) -> int | None:
    """What a halfword stands for; None for a reserved one, all zeros among them."""
    return (_quadrant_0, _quadrant_1, _quadrant_2)[half & 3](half, half >> 13)


def _on_registers(opcode: int, funct3: int, rd: int, rs1: int, rs2: int) -> int:
    return opcode | rd << 7 | funct3 << 12 | rs1 << 15 | rs2 << 20


def _on_immediate(opcode: int, funct3: int, rd: int, rs1: int, immediate: int) -> int:
    return opcode | rd << 7 | funct3 << 12 | rs1 << 15 | (immediate & 0xFFF) << 20


def _store(opcode: int, funct3: int, rs1: int, rs2: int, immediate: int) -> int:
    return opcode | (immediate & 0x1F) << 7 | funct3 << 12 | rs1 << 15 | rs2 << 20 | (immediate >> 5 & 0x7F) << 25


def _branch(funct3: int, rs1: int, distance: int) -> int:
    low = (distance >> 11 & 1) << 7 | (distance >> 1 & 0xF) << 8
    return BRANCH | low | funct3 << 12 | rs1 << 15 | (distance >> 5 & 0x3F) << 25 | (distance >> 12 & 1) << 31


Fields = tuple[tuple[int, int, int], ...]
"""Of an immediate's parts: the lowest bit in the halfword, how many there are, their place in the immediate."""

_SIX: Final[Fields] = ((2, 5, 0), (12, 1, 5))
_ADDED_TO_SP: Final[Fields] = ((11, 2, 4), (7, 4, 6), (6, 1, 2), (5, 1, 3))
_SP_STEP: Final[Fields] = ((12, 1, 9), (6, 1, 4), (5, 1, 6), (3, 2, 7), (2, 1, 5))
_JUMP: Final[Fields] = (
    (12, 1, 11), (11, 1, 4), (9, 2, 8), (8, 1, 10), (7, 1, 6), (6, 1, 7), (3, 3, 1), (2, 1, 5),
)  # fmt: skip
_BRANCHED: Final[Fields] = ((12, 1, 8), (10, 2, 3), (5, 2, 6), (3, 2, 1), (2, 1, 5))
_WORD_AT: Final[Fields] = ((10, 3, 3), (6, 1, 2), (5, 1, 6))
_DOUBLE_AT: Final[Fields] = ((10, 3, 3), (5, 2, 6))
_WORD_FROM_SP: Final[Fields] = ((12, 1, 5), (4, 3, 2), (2, 2, 6))
_DOUBLE_FROM_SP: Final[Fields] = ((12, 1, 5), (5, 2, 3), (2, 3, 6))
_WORD_TO_SP: Final[Fields] = ((9, 4, 2), (7, 2, 6))
_DOUBLE_TO_SP: Final[Fields] = ((10, 3, 3), (7, 3, 6))


def _immediate(half: int, fields: Fields) -> int:
    return sum((half >> at & (1 << count) - 1) << place for at, count, place in fields)


def _quadrant_0(half: int, funct3: int) -> int | None:
    low, high = 8 + (half >> 2 & 7), 8 + (half >> 7 & 7)
    word, double = _immediate(half, _WORD_AT), _immediate(half, _DOUBLE_AT)
    found = None
    match funct3:
        case 0 if added := _immediate(half, _ADDED_TO_SP):  # c.addi4spn
            found = _on_immediate(OP_IMM, 0, low, _SP, added)
        case 1:  # c.fld
            found = _on_immediate(LOAD_FP, 3, low, high, double)
        case 2:  # c.lw
            found = _on_immediate(LOAD, 2, low, high, word)
        case 3:  # c.ld
            found = _on_immediate(LOAD, 3, low, high, double)
        case 5:  # c.fsd
            found = _store(STORE_FP, 3, high, low, double)
        case 6:  # c.sw
            found = _store(STORE, 2, high, low, word)
        case 7:  # c.sd
            found = _store(STORE, 3, high, low, double)
    return found


def _quadrant_1(half: int, funct3: int) -> int | None:
    rd, immediate = half >> 7 & 0x1F, signed(_immediate(half, _SIX), 6)
    found = None
    match funct3:
        case 0:  # c.addi, c.nop
            found = _on_immediate(OP_IMM, 0, rd, rd, immediate)
        case 1 if rd:  # c.addiw
            found = _on_immediate(OP_IMM_32, 0, rd, rd, immediate)
        case 2:  # c.li
            found = _on_immediate(OP_IMM, 0, rd, 0, immediate)
        case 3 if immediate and rd == _SP:  # c.addi16sp, whose immediate has the same bits
            found = _on_immediate(OP_IMM, 0, _SP, _SP, signed(_immediate(half, _SP_STEP), 10))
        case 3 if immediate:  # c.lui
            found = LUI | rd << 7 | (immediate & 0xF_FFFF) << 12
        case 4:
            found = _arithmetic(half, 8 + (rd & 7), immediate)
        case 5:  # c.j
            found = jump_word(0, signed(_immediate(half, _JUMP), 12))
        case 6 | 7:  # c.beqz, c.bnez
            found = _branch(funct3 - 6, 8 + (rd & 7), signed(_immediate(half, _BRANCHED), 9))
    return found


def _arithmetic(half: int, rd: int, immediate: int) -> int | None:
    shift, rs2 = immediate & 0x3F, 8 + (half >> 2 & 7)
    found = None
    match half >> 10 & 3, half >> 12 & 1, half >> 5 & 3:
        case 0, _, _:  # c.srli
            found = _on_immediate(OP_IMM, 5, rd, rd, shift)
        case 1, _, _:  # c.srai
            found = _on_immediate(OP_IMM, 5, rd, rd, shift | _KEEPS_SIGN)
        case 2, _, _:  # c.andi
            found = _on_immediate(OP_IMM, 7, rd, rd, immediate)
        case 3, 0, 0:  # c.sub
            found = _on_registers(OP, 0, rd, rd, rs2) | _SUB
        case 3, 0, kind:  # c.xor, c.or, c.and
            found = _on_registers(OP, (0, 4, 6, 7)[kind], rd, rd, rs2)
        case 3, 1, 0:  # c.subw
            found = _on_registers(OP_32, 0, rd, rd, rs2) | _SUB
        case 3, 1, 1:  # c.addw
            found = _on_registers(OP_32, 0, rd, rd, rs2)
    return found


def _quadrant_2(half: int, funct3: int) -> int | None:
    rd, rs2 = half >> 7 & 0x1F, half >> 2 & 0x1F
    found = None
    match funct3:
        case 0:  # c.slli
            found = _on_immediate(OP_IMM, 1, rd, rd, _immediate(half, _SIX))
        case 1:  # c.fldsp
            found = _on_immediate(LOAD_FP, 3, rd, _SP, _immediate(half, _DOUBLE_FROM_SP))
        case 2 if rd:  # c.lwsp
            found = _on_immediate(LOAD, 2, rd, _SP, _immediate(half, _WORD_FROM_SP))
        case 3 if rd:  # c.ldsp
            found = _on_immediate(LOAD, 3, rd, _SP, _immediate(half, _DOUBLE_FROM_SP))
        case 4:
            found = _jump_or_move(half >> 12 & 1, rd, rs2)
        case 5:  # c.fsdsp
            found = _store(STORE_FP, 3, _SP, rs2, _immediate(half, _DOUBLE_TO_SP))
        case 6:  # c.swsp
            found = _store(STORE, 2, _SP, rs2, _immediate(half, _WORD_TO_SP))
        case 7:  # c.sdsp
            found = _store(STORE, 3, _SP, rs2, _immediate(half, _DOUBLE_TO_SP))
    return found


def _jump_or_move(adds: int, rd: int, rs2: int) -> int | None:
    if rs2:  # c.mv, c.add
        return _on_registers(OP, 0, rd, rd if adds else 0, rs2)
    if rd:  # c.jr, c.jalr
        return _on_immediate(JALR, 0, _RA if adds else 0, rd, 0)
    return EBREAK if adds else None
