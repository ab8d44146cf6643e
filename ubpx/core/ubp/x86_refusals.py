"""Which x86 instructions can have no probe, and why not.

Sources: Intel SDM volume 2, appendix A (opcode maps) and the instructions' own pages; AMD APM volume 3.
"""

from collections.abc import Mapping
from typing import Final

from ubpx.core.ubp.encoding import LOCK, OPERAND_SIZE, REP, REPNE, Encoding, Form, opcode_offset
from ubpx.core.ubp.x86 import NEAR_BRANCHES, InsnClass

_PRIVILEGED: Final = "only the kernel may execute it"
_FAR: Final = "a far transfer also loads cs, which a copy or an emulation would have to follow"
_PORT: Final = "it accesses an I/O port"
_SYSENTER: Final = "in 64-bit mode the kernel returns from it to an address that it chooses, or nowhere"
_SYSCALL_32: Final = "in 32-bit code only the kernel's own code page may contain it"
_INTERRUPT: Final = "a software interrupt enters the kernel"
_TRANSACTION: Final = "any trap aborts a hardware transaction, so the program would never get past it"
_NOT_AN_INSTRUCTION: Final = "no valid instruction begins there"
_UNDEFINED: Final = "processors disagree on this undefined instruction's length"
_NEAR_BRANCH_16: Final = "Intel's and AMD's processors disagree on a near branch with an operand-size prefix"
_NEAR_BRANCH_16_IN_32_BIT: Final = "an operand-size prefix cuts a near branch's target to 16 bits"
_RET_66: Final = "disassemblers disagree on the length of a ret with an operand-size prefix"

_REFUSED_ONE_BYTE: Final[Mapping[int, str]] = {
    **dict.fromkeys((0x6C, 0x6D, 0x6E, 0x6F, *range(0xE4, 0xE8), *range(0xEC, 0xF0)), _PORT),
    **dict.fromkeys((0xCA, 0xCB), _FAR),
    0xCC: "it is a breakpoint already, of the program itself or of another tool",
    0xCD: _INTERRUPT,
    0xCF: "it returns from an interrupt",
    0xF1: "it is a breakpoint already (int1)",
    0xF4: _PRIVILEGED,
    0xFA: "disabling interrupts is the kernel's",
    0xFB: "enabling interrupts is the kernel's",
}

_REFUSED_TWO_BYTE: Final[Mapping[int, str]] = {
    **dict.fromkeys((0x06, 0x07, 0x08, 0x09, *range(0x20, 0x24), 0x30, 0x32, 0x35, 0xAA), _PRIVILEGED),
    0x37: "getsec enters another mode of the processor",
    **dict.fromkeys((0xB9, 0xFF), _UNDEFINED),
}

# One-byte opcodes of 32-bit code alone: call far, into, jmp far.
_REFUSED_IN_32_BIT: Final[Mapping[int, str]] = {0x9A: _FAR, 0xCE: _INTERRUPT, 0xEA: _FAR}

_INVALID_IN_64_BIT: Final = frozenset(
    {0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x82, 0x9A, 0xCE, 0xD4, 0xD6, 0xEA}
)
_REX2: Final = 0xD5

# Opcodes that ModRM.reg extends: (map, opcode, reg), whatever ModRM.rm is.
_REFUSED_GROUPS: Final[Mapping[tuple[int, int, int], str]] = {
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


def refusal(encoding: Encoding, kind: InsnClass) -> str | None:
    """Why there can be no probe at this instruction of the class ``kind``; None if there can."""
    if encoding.form is not Form.LEGACY:
        clashes = encoding.rex or encoding.prefixes & {LOCK, OPERAND_SIZE, REP, REPNE}
        return _NOT_AN_INSTRUCTION if clashes else None
    found = _refusal_of_prefixes(encoding, kind) if encoding.prefixes else None
    if encoding.opcode_map == 0:
        found = found or _refusal_of_one_byte(encoding)
    else:
        found = found or _refusal_of_opcode(encoding)
        if found is None and _privileged_by_prefix(encoding):
            return _PRIVILEGED
    return found or (_refusal_of_group(encoding) if encoding.modrm is not None else None)


def _refusal_of_prefixes(encoding: Encoding, kind: InsnClass) -> str | None:
    if LOCK in encoding.prefixes and kind is not InsnClass.PLAIN:
        return _NOT_AN_INSTRUCTION
    if kind is InsnClass.LEAVES and encoding.opcode == 0xC2 and OPERAND_SIZE in encoding.prefixes:
        return _RET_66
    if encoding.narrow and kind in NEAR_BRANCHES:
        return _NEAR_BRANCH_16 if encoding.bits == 64 else _NEAR_BRANCH_16_IN_32_BIT
    return None


def _refusal_of_opcode(encoding: Encoding) -> str | None:
    if encoding.opcode_map == 1:
        if encoding.opcode == (0x34 if encoding.bits == 64 else 0x05):
            return _SYSENTER if encoding.bits == 64 else _SYSCALL_32
        return _REFUSED_TWO_BYTE.get(encoding.opcode)
    return None


def _refusal_of_one_byte(encoding: Encoding) -> str | None:
    opcode = encoding.opcode
    if opcode == 0xC6 and encoding.modrm == 0xF8:  # xabort
        return _TRANSACTION
    if encoding.bits == 32:
        return _REFUSED_IN_32_BIT.get(opcode) or _REFUSED_ONE_BYTE.get(opcode)
    if opcode in _INVALID_IN_64_BIT or opcode == _REX2:  # no decoder should have taken it
        return undecodable(encoding.raw, encoding.bits)
    return _REFUSED_ONE_BYTE.get(opcode)


def _refusal_of_group(encoding: Encoding) -> str | None:
    """The refusals that hang on ModRM."""
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
    """What only the kernel may execute and shares its opcode with what anybody may; not among the one-byte opcodes."""
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


def undecodable(code: bytes, bits: int) -> str:
    """Why no decoder takes these bytes, which are not cut short, for an instruction."""
    if bits == 32:
        return _NOT_AN_INSTRUCTION
    match list(code[opcode_offset(code, bits) :]):
        case [opcode, *_] if opcode == _REX2:
            return "d5 begins an APX instruction (REX2 prefix), whose length is not known here, or none at all"
        case [0x62, payload, *_] if payload & 7 == 4:
            return "62 begins an APX instruction (EVEX map 4), whose length is not known here, or none at all"
        case [opcode, *_] if opcode in _INVALID_IN_64_BIT:
            return f"opcode {opcode:02x} does not exist in 64-bit mode"
        case _:
            return _NOT_AN_INSTRUCTION
