"""What each x86 instruction is to a probe: its class, or the reason why it is refused.

The tables are for 64-bit mode; conditions and flags hold for i386 too. Sources: Intel SDM volume 2,
appendix A (opcode maps) and the instructions' own pages; AMD APM volume 3.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from ubpx.core.ubp.encoding import LOCK, OPERAND_SIZE, REP, REPNE, Encoding, Form, opcode_offset, signed

TRAP: Final = b"\xcc"
"""int3."""

CARRY: Final = 1 << 0
PARITY: Final = 1 << 2
ZERO: Final = 1 << 6
SIGN: Final = 1 << 7
TRAP_FLAG: Final = 1 << 8
OVERFLOW: Final = 1 << 11


class InsnClass(Enum):
    """Instructions that a probe treats alike."""

    PLAIN = "runs anywhere"
    NOP = "does nothing"
    JUMP = "jmp rel"
    BRANCH = "jcc rel"
    COUNTED_BRANCH = "loop, loope, loopne, jrcxz"
    CALL = "call rel32"
    INDIRECT_CALL = "call r/m"
    LEAVES = "goes elsewhere by itself: ret, jmp r/m"
    PUSH_REGISTER = "push reg"
    PUSH_IMMEDIATE = "push imm"
    POP_REGISTER = "pop reg"
    UNWIND_FRAME = "leave"
    PUSH_FLAGS = "pushf"


def condition_holds(condition: int, eflags: int) -> bool:
    """Whether a jcc whose opcode ends in the nibble ``condition`` is taken (Intel SDM volume 1, appendix B)."""
    less = bool(eflags & SIGN) != bool(eflags & OVERFLOW)
    holds = (
        bool(eflags & OVERFLOW),
        bool(eflags & CARRY),
        bool(eflags & ZERO),
        bool(eflags & (CARRY | ZERO)),
        bool(eflags & SIGN),
        bool(eflags & PARITY),
        less,
        less or bool(eflags & ZERO),
    )[condition >> 1]
    return holds != bool(condition & 1)


_PRIVILEGED: Final = "only the kernel may execute it"
_FAR: Final = "a far transfer also loads cs, which a copy or an emulation would have to follow"
_PORT: Final = "it accesses an I/O port"
_SYSTEM_CALL: Final = (
    "from a copy the kernel would leave the copy's address in rcx or on its own stack; in place the call might wait "
    "for ever for a thread that is held meanwhile"
)
_TRANSACTION: Final = "any trap aborts a hardware transaction, so the program would never get past it"
_STACK_SEGMENT: Final = "the processor runs it and the next instruction as one, so that it cannot be stepped alone"
_NOT_AN_INSTRUCTION: Final = "no valid instruction begins there"
_UNDEFINED: Final = "processors disagree on this undefined instruction's length"
_NEAR_BRANCH_16: Final = "Intel's and AMD's processors disagree on a near branch with an operand-size prefix"
_RET_66: Final = "disassemblers disagree on the length of a ret with an operand-size prefix"

_REFUSED_ONE_BYTE: Final[Mapping[int, str]] = {
    **dict.fromkeys((0x6C, 0x6D, 0x6E, 0x6F, *range(0xE4, 0xE8), *range(0xEC, 0xF0)), _PORT),
    **dict.fromkeys((0xCA, 0xCB), _FAR),
    0x9D: "popf may set the trap flag, which a tracer uses itself",
    0xCC: "it is a breakpoint already, of the program itself or of another tool",
    0xCD: "a software interrupt enters the kernel",
    0xCF: "it returns from an interrupt",
    0xF1: "it is a breakpoint already (int1)",
    0xF4: _PRIVILEGED,
    0xFA: "disabling interrupts is the kernel's",
    0xFB: "enabling interrupts is the kernel's",
}

_REFUSED_TWO_BYTE: Final[Mapping[int, str]] = {
    **dict.fromkeys((0x06, 0x07, 0x08, 0x09, *range(0x20, 0x24), 0x30, 0x32, 0x35, 0xAA), _PRIVILEGED),
    **dict.fromkeys((0x05, 0x34), _SYSTEM_CALL),
    0x37: "getsec enters another mode of the processor",
    0xB2: _STACK_SEGMENT,
    **dict.fromkeys((0xB9, 0xFF), _UNDEFINED),
}

_INVALID_IN_64_BIT: Final = frozenset(
    {0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x82, 0x9A, 0xCE, 0xD4, 0xD6, 0xEA}
)
_REX2: Final = 0xD5

# Opcodes that ModRM.reg extends: (map, opcode, reg), whatever ModRM.rm is.
_REFUSED_GROUPS: Final[Mapping[tuple[int, int, int], str]] = {
    (0, 0x8E, 2): _STACK_SEGMENT,
    (0, 0xFF, 3): _FAR,
    (0, 0xFF, 5): _FAR,
    (1, 0x00, 2): _PRIVILEGED,
    (1, 0x00, 3): _PRIVILEGED,
    (1, 0x00, 6): _PRIVILEGED,
}

# (map, opcode, reg) where ModRM.rm is memory: lgdt, lidt, lmsw, invlpg; xrstors, xsaves; VMX.
_REFUSED_MEMORY_GROUPS: Final = frozenset(
    {(1, 0x01, 2), (1, 0x01, 3), (1, 0x01, 6), (1, 0x01, 7), (1, 0xC7, 3), (1, 0xC7, 5), (1, 0xC7, 6), (1, 0xC7, 7)}
)

# ModRM bytes of 0f 01 on registers that a program may use: xgetbv, xtest, smsw, serialize (with f2 xsusldtrk),
# xresldtrk, saveprevssp, testui, rdpkru or clui, wrpkru or stui, rdtscp, monitorx, mwaitx, clzero, rdpru.
_PLAIN_0F01: Final = frozenset(
    {0xD0, 0xD6, *range(0xE0, 0xE8), 0xE8, 0xE9, 0xEA, 0xED, 0xEE, 0xEF, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD}
)
_REFUSED_0F01: Final[Mapping[int | None, str]] = {
    0xD5: _TRANSACTION,
    0xD7: "an enclave returns to the address behind it, which would be the copy's",
    0xEC: "it returns from a user interrupt",
}


def refusal(encoding: Encoding) -> str | None:
    """Why there can be no probe at this instruction; None if there can."""
    if encoding.form is not Form.LEGACY:
        clashes = encoding.rex or encoding.prefixes & {LOCK, OPERAND_SIZE, REP, REPNE}
        return _NOT_AN_INSTRUCTION if clashes else None
    return (
        _refusal_of_prefixes(encoding)
        or _refusal_of_opcode(encoding)
        or _refusal_of_group(encoding)
        or (_PRIVILEGED if _privileged_by_prefix(encoding) else None)
    )


def _refusal_of_prefixes(encoding: Encoding) -> str | None:
    if not encoding.prefixes:
        return None
    kind = insn_class(encoding)
    if LOCK in encoding.prefixes and kind is not InsnClass.PLAIN:
        return _NOT_AN_INSTRUCTION
    if kind is InsnClass.LEAVES and encoding.opcode == 0xC2 and OPERAND_SIZE in encoding.prefixes:
        return _RET_66
    return _NEAR_BRANCH_16 if encoding.narrow and kind in _NEAR_BRANCHES else None


def _refusal_of_opcode(encoding: Encoding) -> str | None:
    match encoding.opcode_map, encoding.opcode:
        case 0, opcode if opcode in _INVALID_IN_64_BIT or opcode == _REX2:  # no decoder should have taken it
            return undecodable(encoding.raw)
        case 0, 0xC6 | 0xC7 if encoding.modrm == 0xF8:  # xabort, xbegin
            return _TRANSACTION
        case 0, opcode:
            return _REFUSED_ONE_BYTE.get(opcode)
        case 1, opcode:
            return _REFUSED_TWO_BYTE.get(opcode)
        case _:
            return None


def _refusal_of_group(encoding: Encoding) -> str | None:
    """The refusals that hang on ModRM."""
    if encoding.modrm is None:
        return None
    group = encoding.opcode_map, encoding.opcode, encoding.reg
    if group in _REFUSED_GROUPS:
        return _REFUSED_GROUPS[group]
    loads_shadow_stack = group == (1, 0x01, 5) and REP in encoding.prefixes  # rstorssp
    if group in _REFUSED_MEMORY_GROUPS and not encoding.on_register and not loads_shadow_stack:
        return _PRIVILEGED
    if group[:2] == (1, 0x01) and encoding.on_register and encoding.modrm not in _PLAIN_0F01:
        return _REFUSED_0F01.get(encoding.modrm, _PRIVILEGED)
    return None


def _privileged_by_prefix(encoding: Encoding) -> bool:
    """What only the kernel may execute and shares its opcode with what anybody may."""
    if encoding.opcode_map == 0:
        return False
    prefixes = encoding.prefixes
    match encoding.opcode_map, encoding.opcode:
        case 1, 0x01:  # setssbsy, rmpquery; else serialize, rdpru
            found = encoding.modrm in {0xE8, 0xFD} and REP in prefixes
        case 1, 0x78 | 0x79:  # vmread, vmwrite; with a prefix SSE4a
            found = not prefixes & {OPERAND_SIZE, REPNE}
        case 1, 0xAE:  # clrssbsy
            found = REP in prefixes and encoding.reg == 6 and not encoding.on_register
        case 2, 0xDC:  # loadiwkey
            found = REP in prefixes and encoding.on_register
        case 2, 0xF5:  # wruss
            found = OPERAND_SIZE in prefixes
        case 2, 0xF8:  # enqcmds
            found = REP in prefixes
        case where:  # invept, invvpid, invpcid, hreset
            found = where in {(2, 0x80), (2, 0x81), (2, 0x82), (3, 0xF0)}
    return found


def undecodable(code: bytes) -> str:
    """Why no decoder takes these bytes, which are not cut short, for an instruction."""
    match list(code[opcode_offset(code) :]):
        case [opcode, *_] if opcode == _REX2:
            return "d5 begins an APX instruction (REX2 prefix), whose length is not known here, or none at all"
        case [0x62, payload, *_] if payload & 7 == 4:
            return "62 begins an APX instruction (EVEX map 4), whose length is not known here, or none at all"
        case [opcode, *_] if opcode in _INVALID_IN_64_BIT:
            return f"opcode {opcode:02x} does not exist in 64-bit mode"
        case _:
            return _NOT_AN_INSTRUCTION


_ONE_BYTE_CLASSES: Final[Mapping[int, InsnClass]] = {
    **dict.fromkeys(range(0x50, 0x58), InsnClass.PUSH_REGISTER),
    **dict.fromkeys(range(0x58, 0x60), InsnClass.POP_REGISTER),
    **dict.fromkeys((0x68, 0x6A), InsnClass.PUSH_IMMEDIATE),
    **dict.fromkeys(range(0x70, 0x80), InsnClass.BRANCH),
    0x9C: InsnClass.PUSH_FLAGS,
    **dict.fromkeys((0xC2, 0xC3), InsnClass.LEAVES),
    0xC9: InsnClass.UNWIND_FRAME,
    **dict.fromkeys(range(0xE0, 0xE4), InsnClass.COUNTED_BRANCH),
    0xE8: InsnClass.CALL,
    **dict.fromkeys((0xE9, 0xEB), InsnClass.JUMP),
}

# We emulate these at their full operand size only.
_WIDE_ONLY: Final = frozenset(
    {InsnClass.PUSH_REGISTER, InsnClass.PUSH_IMMEDIATE, InsnClass.POP_REGISTER, InsnClass.UNWIND_FRAME}
)


def insn_class(encoding: Encoding) -> InsnClass:
    """Which class an instruction belongs to, refusals aside."""
    found = InsnClass.PLAIN
    if encoding.form is not Form.LEGACY:
        return found
    match encoding.opcode_map, encoding.opcode:
        case 0, 0x90 if not encoding.extended and REP not in encoding.prefixes:  # else xchg r8, or pause
            found = InsnClass.NOP
        case 0, 0xFF:
            found = {2: InsnClass.INDIRECT_CALL, 4: InsnClass.LEAVES}.get(encoding.reg, InsnClass.PLAIN)
        case 0, opcode:
            found = _ONE_BYTE_CLASSES.get(opcode, InsnClass.PLAIN)
        case 1, 0x1E if encoding.modrm in {0xFA, 0xFB} and REP in encoding.prefixes:  # endbr64, endbr32
            found = InsnClass.NOP
        case 1, 0x1F:
            found = InsnClass.NOP
        case 1, opcode if opcode & 0xF0 == 0x80:
            found = InsnClass.BRANCH
    return InsnClass.PLAIN if encoding.narrow and found in _WIDE_ONLY else found


_STRINGS: Final = frozenset({*range(0xA4, 0xA8), *range(0xAA, 0xB0)})
"""movs, cmps, stos, lods, scas; ins and outs are refused."""


def is_repeated_string(encoding: Encoding) -> bool:
    """Whether one step runs one iteration of it only."""
    is_string = encoding.form is Form.LEGACY and encoding.opcode_map == 0 and encoding.opcode in _STRINGS
    return is_string and bool(encoding.prefixes & {REP, REPNE})


_NEAR_BRANCHES: Final = frozenset(
    {InsnClass.JUMP, InsnClass.BRANCH, InsnClass.COUNTED_BRANCH, InsnClass.CALL, InsnClass.INDIRECT_CALL}
    | {InsnClass.LEAVES}
)


def branch_target(encoding: Encoding, end: int) -> int:
    """Where a relative branch or call leads that ends at ``end``: JUMP, BRANCH, COUNTED_BRANCH and CALL have one."""
    size = 4 if encoding.opcode_map == 1 or encoding.opcode in (0xE8, 0xE9) else 1
    return end + signed(encoding.raw[-size:]) & 2**64 - 1


def relative(target: int, end: int) -> bytes | None:
    """The disp32 that leads to ``target`` from an instruction that ends at ``end``; None beyond 2 GiB."""
    distance = (target - end + 2**63) % 2**64 - 2**63
    return distance.to_bytes(4, "little", signed=True) if -(2**31) <= distance < 2**31 else None
