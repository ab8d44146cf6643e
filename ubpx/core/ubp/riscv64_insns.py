"""What each RV64GC instruction is to a probe: which one it is, its class, and where it leads.

Source: The RISC-V Instruction Set Manual, volume I (unprivileged ISA), version 20240411, chapter 34 (listings) and
chapter 2.9 (HINTs).
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from ubpx.core.ubp.riscv64_encoding import (
    AMO,
    AUIPC,
    FMADD,
    FMSUB,
    FNMADD,
    FNMSUB,
    MASK,
    MISC_MEM,
    OP_FP,
    OP_V,
    SYSTEM,
    Encoding,
)  # fmt: skip
from ubpx.core.ubp.riscv64_short import (
    BRANCH,
    JAL,
    JALR,
    LOAD,
    LOAD_FP,
    LUI,
    OP,
    OP_32,
    OP_IMM,
    OP_IMM_32,
    STORE,
    STORE_FP,
)  # fmt: skip
from ubpx.core.values import VirtAddr


class InsnClass(Enum):
    """Instructions that a probe treats alike."""

    PLAIN = "runs anywhere"
    NOP = "does nothing: nop, hints, arithmetic that is written to x0"
    JUMP = "jal"
    INDIRECT_JUMP = "jalr"
    BRANCH = "beq, bne, blt, bge, bltu, bgeu"
    ADDRESS = "auipc"
    SYSTEM_CALL = "ecall"
    BREAKPOINT = "ebreak"
    FENCE = "fence, fence.i"
    RESERVES = "lr"
    STORES_CONDITIONALLY = "sc"
    SYSTEM = "csr instructions that are not for programs, and what is privileged"
    NO_INSTRUCTION = "unimp"
    VECTOR = "the vector extension"

    __hash__ = object.__hash__  # see x86.InsnClass


_BY_FUNCT3: Final[Mapping[int, Mapping[int, str]]] = {
    LOAD: dict(enumerate(("lb", "lh", "lw", "ld", "lbu", "lhu", "lwu"))),
    LOAD_FP: {2: "flw", 3: "fld"},
    OP_IMM: {0: "addi", 2: "slti", 3: "sltiu", 4: "xori", 6: "ori", 7: "andi"},
    OP_IMM_32: {0: "addiw"},
    STORE: dict(enumerate(("sb", "sh", "sw", "sd"))),
    STORE_FP: {2: "fsw", 3: "fsd"},
    BRANCH: {0: "beq", 1: "bne", 4: "blt", 5: "bge", 6: "bltu", 7: "bgeu"},
    JALR: {0: "jalr"},
}
_ALONE: Final[Mapping[int, str]] = {AUIPC: "auipc", LUI: "lui", JAL: "jal"}
# By bits 31 to 25 and 14 to 12.
_BY_FUNCT7: Final[Mapping[int, Mapping[tuple[int, int], str]]] = {
    OP: {
        **{(0, at): name for at, name in enumerate(("add", "sll", "slt", "sltu", "xor", "srl", "or", "and"))},
        **{(1, at): name for at, name in enumerate(("mul", "mulh", "mulhsu", "mulhu", "div", "divu", "rem", "remu"))},
        (0x20, 0): "sub",
        (0x20, 5): "sra",
    },
    OP_32: {
        (0, 0): "addw", (0, 1): "sllw", (0, 5): "srlw", (0x20, 0): "subw", (0x20, 5): "sraw",
        (1, 0): "mulw", (1, 4): "divw", (1, 5): "divuw", (1, 6): "remw", (1, 7): "remuw",
    },
    OP_IMM_32: {(0, 1): "slliw", (0, 5): "srliw", (0x20, 5): "sraiw"},
}  # fmt: skip
_SHIFTS: Final = {(0, 1): "slli", (0, 5): "srli", (0x10, 5): "srai"}
"""Of 64 bits, by bits 31 to 26 and 14 to 12."""
_ATOMICS: Final = {
    0x00: "amoadd", 0x01: "amoswap", 0x02: "lr", 0x03: "sc", 0x04: "amoxor", 0x08: "amoor", 0x0C: "amoand",
    0x10: "amomin", 0x14: "amomax", 0x18: "amominu", 0x1C: "amomaxu",
}  # fmt: skip
"""By bits 31 to 27."""
_FUSED: Final = {FMADD: "fmadd", FMSUB: "fmsub", FNMSUB: "fnmsub", FNMADD: "fnmadd"}
_ROUNDED: Final = {0x00: "fadd", 0x01: "fsub", 0x02: "fmul", 0x03: "fdiv"}
"""By bits 31 to 27; bits 14 to 12 are a rounding mode."""
_UNROUNDED: Final = {
    0x04: ("fsgnj", "fsgnjn", "fsgnjx"),
    0x05: ("fmin", "fmax"),
    0x14: ("fle", "flt", "feq"),
}
"""By bits 31 to 27, and 14 to 12."""
_INTEGERS: Final = ("w", "wu", "l", "lu")
_FORMATS: Final = ("s", "d")
_ROUNDING_MODES: Final = frozenset({0, 1, 2, 3, 4, 7})
_CSR_INSNS: Final = {1: "csrrw", 2: "csrrs", 3: "csrrc", 5: "csrrwi", 6: "csrrsi", 7: "csrrci"}
_PRIVILEGED: Final = {0x000: "ecall", 0x001: "ebreak", 0x102: "sret", 0x105: "wfi", 0x302: "mret"}
_FCSR: Final = frozenset({0x001, 0x002, 0x003})
"""fflags, frm, fcsr: a thread's own."""
_COUNTERS: Final = frozenset({0xC00, 0xC01, 0xC02})
"""cycle, time, instret; they can be read alone."""
_PAUSE: Final = 0x0100_000F
_UNIMP: Final = 0xC000_1073
"""csrrw x0, cycle, x0: writes what cannot be written."""
_VECTOR_WIDTHS: Final = frozenset({0, 5, 6, 7})
_COMPUTES: Final = frozenset({AUIPC, LUI, OP, OP_32, OP_IMM, OP_IMM_32})


def mnemonic(encoding: Encoding) -> str | None:
    """The long form's name; None for what is no instruction of RV64GC, or a reserved one."""
    opcode, funct3 = encoding.opcode, encoding.funct3
    named = _ALONE.get(opcode) or _BY_FUNCT3.get(opcode, {}).get(funct3)
    if named is None:
        named = _BY_FUNCT7.get(opcode, {}).get((encoding.funct7, funct3))
    if named is None:
        find = _OTHERS.get(opcode)
        named = find(encoding) if find is not None else None
    return named


def _shift(encoding: Encoding) -> str | None:
    return _SHIFTS.get((encoding.word >> 26, encoding.funct3))


def _atomic(encoding: Encoding) -> str | None:
    name = _ATOMICS.get(encoding.word >> 27)
    if name is None or encoding.funct3 not in (2, 3) or (name == "lr" and encoding.rs2):
        return None
    return f"{name}.{'wd'[encoding.funct3 - 2]}"


def _fence(encoding: Encoding) -> str | None:
    return {0: "pause" if encoding.word == _PAUSE else "fence", 1: "fence.i"}.get(encoding.funct3)


def _fused(encoding: Encoding) -> str | None:
    form = encoding.word >> 25 & 3
    rounded = form < len(_FORMATS) and encoding.funct3 in _ROUNDING_MODES
    return f"{_FUSED[encoding.opcode]}.{_FORMATS[form]}" if rounded else None


def _floating(encoding: Encoding) -> str | None:
    kind, form, funct3 = encoding.word >> 27, encoding.word >> 25 & 3, encoding.funct3
    if form >= len(_FORMATS):
        return None
    suffix = _FORMATS[form]
    if kind in _UNROUNDED:
        names = _UNROUNDED[kind]
        return f"{names[funct3]}.{suffix}" if funct3 < len(names) else None
    if kind in (0x1C, 0x1E):
        bits = "wd"[form]
        moves = {(0x1C, 0): f"fmv.x.{bits}", (0x1C, 1): f"fclass.{suffix}", (0x1E, 0): f"fmv.{bits}.x"}
        return moves.get((kind, funct3)) if encoding.rs2 == 0 else None
    return _rounded(kind, suffix, encoding.rs2) if funct3 in _ROUNDING_MODES else None


def _rounded(kind: int, suffix: str, rs2: int) -> str | None:
    """Those that round, by a mode that is one."""
    other = _FORMATS[rs2] if rs2 < len(_FORMATS) else suffix
    match kind:
        case 0x0B:
            return f"fsqrt.{suffix}" if rs2 == 0 else None
        case 0x08:
            return f"fcvt.{suffix}.{other}" if other != suffix else None
        case 0x18:
            return f"fcvt.{_INTEGERS[rs2]}.{suffix}" if rs2 < len(_INTEGERS) else None
        case 0x1A:
            return f"fcvt.{suffix}.{_INTEGERS[rs2]}" if rs2 < len(_INTEGERS) else None
        case _:
            return f"{_ROUNDED[kind]}.{suffix}" if kind in _ROUNDED else None


def _system(encoding: Encoding) -> str | None:
    if encoding.funct3 == 0:
        return _PRIVILEGED.get(encoding.word >> 20) if encoding.rd == encoding.rs1 == 0 else None
    return "unimp" if encoding.word == _UNIMP else _CSR_INSNS.get(encoding.funct3)


_OTHERS: Final[Mapping[int, Callable[[Encoding], str | None]]] = {
    OP_IMM: _shift,
    AMO: _atomic,
    MISC_MEM: _fence,
    **dict.fromkeys(_FUSED, _fused),
    OP_FP: _floating,
    SYSTEM: _system,
}

_CLASSES: Final[Mapping[str, InsnClass]] = {
    "jal": InsnClass.JUMP,
    "jalr": InsnClass.INDIRECT_JUMP,
    "ecall": InsnClass.SYSTEM_CALL,
    "ebreak": InsnClass.BREAKPOINT,
    "pause": InsnClass.NOP,
    "unimp": InsnClass.NO_INSTRUCTION,
    **dict.fromkeys(_BY_FUNCT3[BRANCH].values(), InsnClass.BRANCH),
    **dict.fromkeys(("fence", "fence.i"), InsnClass.FENCE),
    **dict.fromkeys(("lr.w", "lr.d"), InsnClass.RESERVES),
    **dict.fromkeys(("sc.w", "sc.d"), InsnClass.STORES_CONDITIONALLY),
    **dict.fromkeys(("sret", "wfi", "mret"), InsnClass.SYSTEM),
}


def insn_class(encoding: Encoding) -> InsnClass | None:
    """Which class an instruction belongs to; None for one that is reserved or unknown."""
    named = mnemonic(encoding)
    if named is None:
        return InsnClass.VECTOR if _is_vector(encoding) else None
    if encoding.opcode in _COMPUTES and encoding.rd == 0:
        return InsnClass.NOP
    if named.startswith("csr"):
        return InsnClass.PLAIN if _is_own_register(encoding) else InsnClass.SYSTEM
    return InsnClass.ADDRESS if named == "auipc" else _CLASSES.get(named, InsnClass.PLAIN)


def _is_vector(encoding: Encoding) -> bool:
    moves = encoding.opcode in (LOAD_FP, STORE_FP) and encoding.funct3 in _VECTOR_WIDTHS
    return moves or encoding.opcode == OP_V


def _is_own_register(encoding: Encoding) -> bool:
    """Whether a csr instruction is one that any program may use: on the floating-point state, or reading a counter."""
    number = encoding.word >> 20
    reads = encoding.funct3 & 2 and encoding.rs1 == 0
    return number in _FCSR or (number in _COUNTERS and bool(reads))


def target_of(encoding: Encoding, kind: InsnClass, address: int) -> VirtAddr | None:
    """Where a direct jump or branch at ``address`` leads; None for what is none."""
    if kind is InsnClass.JUMP:
        return VirtAddr(address + encoding.j_immediate & MASK)
    return VirtAddr(address + encoding.b_immediate & MASK) if kind is InsnClass.BRANCH else None


def falls_through(encoding: Encoding, kind: InsnClass) -> bool:
    """Whether what stands behind it may run next; a call is taken to return, a breakpoint not to."""
    if kind in (InsnClass.JUMP, InsnClass.INDIRECT_JUMP):
        return encoding.rd != 0
    return kind not in (InsnClass.BREAKPOINT, InsnClass.NO_INSTRUCTION)


def calls(encoding: Encoding, kind: InsnClass) -> bool:
    """Whether it leaves a return address in a register."""
    return kind in (InsnClass.JUMP, InsnClass.INDIRECT_JUMP) and encoding.rd != 0
