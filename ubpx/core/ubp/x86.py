"""What each x86 instruction is to a probe: its class, and where it leads.

Sources: Intel SDM volume 2, appendix A (opcode maps) and the instructions' own pages; AMD APM volume 3.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from ubpx.core.ubp.encoding import REP, REPNE, Encoding, Form, signed

TRAP: Final = b"\xcc"
"""int3."""

CARRY: Final = 1 << 0
PARITY: Final = 1 << 2
ADJUST: Final = 1 << 4
ZERO: Final = 1 << 6
SIGN: Final = 1 << 7
TRAP_FLAG: Final = 1 << 8
RESUME_FLAG: Final = 1 << 16
"""It suppresses instruction breakpoints of the debug registers for one instruction; no int3 leaves it set."""
DIRECTION: Final = 1 << 10
OVERFLOW: Final = 1 << 11
NESTED_TASK: Final = 1 << 14
ALIGNMENT_CHECK: Final = 1 << 18
IDENTIFICATION: Final = 1 << 21


class InsnClass(Enum):
    """Instructions that a probe treats alike."""

    PLAIN = "runs anywhere"
    NOP = "does nothing"
    JUMP = "jmp rel"
    BRANCH = "jcc rel"
    COUNTED_BRANCH = "loop, loope, loopne, jrcxz"
    CALL = "call rel"
    INDIRECT_CALL = "call r/m"
    LEAVES = "goes elsewhere by itself: ret, jmp r/m"
    PUSH_REGISTER = "push reg"
    PUSH_IMMEDIATE = "push imm"
    POP_REGISTER = "pop reg"
    UNWIND_FRAME = "leave"
    PUSH_FLAGS = "pushf"
    POP_FLAGS = "popf"
    STACK_SEGMENT = "mov ss, pop ss, lss: the processor runs the next instruction with it"
    SYSTEM_CALL = "syscall"
    SYSENTER = "sysenter of 32-bit code: the kernel returns to its own page, wherever it was called from"
    TRANSACTION = "xbegin"
    X87 = "floating point that records its own address"
    KERNEL_EMULATED = "str, sldt, smsw, sgdt, sidt: where UMIP forbids it, the kernel does it instead"

    # Members are compared by identity anyway; Enum's own hash costs a call for each look-up.
    __hash__ = object.__hash__


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


_ONE_BYTE_CLASSES: Final[Mapping[int, InsnClass]] = {
    **dict.fromkeys(range(0x50, 0x58), InsnClass.PUSH_REGISTER),
    **dict.fromkeys(range(0x58, 0x60), InsnClass.POP_REGISTER),
    **dict.fromkeys((0x68, 0x6A), InsnClass.PUSH_IMMEDIATE),
    **dict.fromkeys(range(0x70, 0x80), InsnClass.BRANCH),
    0x9C: InsnClass.PUSH_FLAGS,
    0x9D: InsnClass.POP_FLAGS,
    **dict.fromkeys((0xC2, 0xC3), InsnClass.LEAVES),
    0xC9: InsnClass.UNWIND_FRAME,
    **dict.fromkeys(range(0xE0, 0xE4), InsnClass.COUNTED_BRANCH),
    0xE8: InsnClass.CALL,
    **dict.fromkeys((0xE9, 0xEB), InsnClass.JUMP),
}
# (map, opcode) of those that go elsewhere for good, beside JUMP and LEAVES; all are refused.
_NOTHING_BEHIND: Final = frozenset(
    {(0, 0xCA), (0, 0xCB), (0, 0xCF), (0, 0xEA), (0, 0xF4)}  # ret far, iret, jmp far, hlt
    | {(1, 0x07), (1, 0x0B), (1, 0x35), (1, 0xAA), (1, 0xB9), (1, 0xFF)}  # sysret, ud2, sysexit, rsm, ud1, ud0
)
_CALL_FAR: Final = 0x9A
"""In 32-bit code."""
_POP_SS: Final = 0x17
"""In 32-bit code."""

# We emulate these at their full operand size only.
_WIDE_ONLY: Final = frozenset(
    {InsnClass.PUSH_REGISTER, InsnClass.PUSH_IMMEDIATE, InsnClass.POP_REGISTER, InsnClass.UNWIND_FRAME}
)


def insn_class(encoding: Encoding) -> InsnClass:
    """Which class an instruction belongs to, refusals aside."""
    if encoding.form is not Form.LEGACY:
        return InsnClass.PLAIN
    if encoding.opcode_map == 0:
        found = _one_byte_class(encoding)
        return InsnClass.PLAIN if encoding.narrow and found in _WIDE_ONLY else found
    return _two_byte_class(encoding) if encoding.opcode_map == 1 else InsnClass.PLAIN


def _one_byte_class(encoding: Encoding) -> InsnClass:
    opcode, reg = encoding.opcode, encoding.reg
    found = _ONE_BYTE_CLASSES.get(opcode, InsnClass.PLAIN)
    match opcode:
        case 0x90 if not encoding.extended and REP not in encoding.prefixes:  # else xchg r8, or pause
            found = InsnClass.NOP
        case 0xFF:
            found = {2: InsnClass.INDIRECT_CALL, 4: InsnClass.LEAVES}.get(reg, InsnClass.PLAIN)
        case 0x8E if reg == 2:
            found = InsnClass.STACK_SEGMENT
        case _ if opcode == _POP_SS and encoding.bits == 32:
            found = InsnClass.STACK_SEGMENT
        case 0xC7 if encoding.modrm == 0xF8:
            found = InsnClass.TRANSACTION
        case _ if 0xD8 <= opcode <= 0xDF and not _is_x87_control(encoding):
            found = InsnClass.X87
    return found


def _two_byte_class(encoding: Encoding) -> InsnClass:
    opcode = encoding.opcode
    found = InsnClass.PLAIN
    if opcode & 0xF0 == 0x80:
        found = InsnClass.BRANCH
    elif opcode == 0x1F or (opcode == 0x1E and encoding.modrm in _ENDBR and REP in encoding.prefixes):
        found = InsnClass.NOP
    elif opcode == 0x05:
        found = InsnClass.SYSTEM_CALL
    elif opcode < 2 and (opcode, encoding.reg) in _FORBIDDEN_BY_UMIP and _stores_table(encoding):
        found = InsnClass.KERNEL_EMULATED
    elif opcode == 0x34:
        found = InsnClass.SYSENTER
    elif opcode == 0xB2:  # lss
        found = InsnClass.STACK_SEGMENT
    return found


# (opcode, ModRM.reg) of sldt, str, sgdt, sidt, smsw.
_FORBIDDEN_BY_UMIP: Final = frozenset({(0, 0), (0, 1), (1, 0), (1, 1), (1, 4)})


def _stores_table(encoding: Encoding) -> bool:
    """Sgdt and sidt are on memory alone: on registers their opcodes are other instructions."""
    return not encoding.on_register or (encoding.opcode, encoding.reg) not in {(1, 0), (1, 1)}


_ENDBR: Final = frozenset({0xFA, 0xFB})
"""ModRM of endbr64 and endbr32."""

# (opcode, ModRM.reg) on memory: fldenv, fldcw, fnstenv, fnstcw; frstor, fnsave, fnstsw.
_X87_CONTROL: Final = frozenset({(0xD9, 4), (0xD9, 5), (0xD9, 6), (0xD9, 7), (0xDD, 4), (0xDD, 6), (0xDD, 7)})
# (opcode, ModRM) on registers: fnclex, fninit, fnstsw ax.
_X87_CONTROL_ON_REGISTERS: Final = frozenset({(0xDB, 0xE2), (0xDB, 0xE3), (0xDF, 0xE0)})


def _is_x87_control(encoding: Encoding) -> bool:
    """Whether it leaves the x87 instruction pointer alone (Intel SDM volume 1, section 8.1.8)."""
    if encoding.on_register:
        return (encoding.opcode, encoding.modrm) in _X87_CONTROL_ON_REGISTERS
    return (encoding.opcode, encoding.reg) in _X87_CONTROL


_STRINGS: Final = frozenset({*range(0xA4, 0xA8), *range(0xAA, 0xB0)})
"""movs, cmps, stos, lods, scas; ins and outs are refused."""


def is_repeated_string(encoding: Encoding) -> bool:
    """Whether one step runs one iteration of it only."""
    is_string = encoding.form is Form.LEGACY and encoding.opcode_map == 0 and encoding.opcode in _STRINGS
    return is_string and bool(encoding.prefixes & {REP, REPNE})


_GATHERS_AND_SCATTERS: Final = frozenset({*range(0x90, 0x94), *range(0xA0, 0xA4), 0xC6, 0xC7})
_TILES: Final = 0x4B


def goes_on_after_fault(encoding: Encoding) -> bool:
    """Whether it may stop half-way, keep what it has done, and go on from there: gathers, scatters, tiles of AMX."""
    if encoding.form not in (Form.VEX, Form.EVEX) or encoding.opcode_map != 2:
        return False
    return encoding.opcode in _GATHERS_AND_SCATTERS or (encoding.opcode == _TILES and not encoding.on_register)


def falls_through(encoding: Encoding, kind: InsnClass) -> bool:
    """Whether what stands behind an instruction of the class ``kind`` may run next; a call is taken to return."""
    if kind in (InsnClass.JUMP, InsnClass.LEAVES):
        return False
    if encoding.form is not Form.LEGACY:
        return True
    match encoding.opcode_map, encoding.opcode:
        case 0, 0xFF:  # jmp far
            return encoding.reg != 5
        case 1, 0x01:
            leaves = encoding.modrm == _SKINIT or bool(encoding.prefixes & _RETURNS_0F01.get(encoding.modrm, _NONE))
            return not leaves
        case where:
            return where not in _NOTHING_BEHIND


_SKINIT: Final = 0xDE
_NONE: Final[frozenset[int]] = frozenset()
# ModRM of 0f 01 and the prefixes with one of which it returns: eretu and erets, uiret.
_RETURNS_0F01: Final[Mapping[int | None, frozenset[int]]] = {0xCA: frozenset({REP, REPNE}), 0xEC: frozenset({REP})}


def calls(encoding: Encoding, kind: InsnClass) -> bool:
    """Whether it is a call, near or far; a system call is none."""
    if kind in (InsnClass.CALL, InsnClass.INDIRECT_CALL):
        return True
    if encoding.form is not Form.LEGACY or encoding.opcode_map:
        return False
    return encoding.opcode == _CALL_FAR or (encoding.opcode == 0xFF and encoding.reg == 3)


NEAR_BRANCHES: Final = frozenset(
    {InsnClass.JUMP, InsnClass.BRANCH, InsnClass.COUNTED_BRANCH, InsnClass.CALL, InsnClass.INDIRECT_CALL}
    | {InsnClass.LEAVES, InsnClass.TRANSACTION}
)
RELATIVE: Final = frozenset({InsnClass.JUMP, InsnClass.BRANCH, InsnClass.CALL, InsnClass.TRANSACTION})
"""Those that have a form with a disp32."""


def branch_target(encoding: Encoding, end: int) -> int:
    """Where a relative branch or call leads that ends at ``end``: ``RELATIVE`` and COUNTED_BRANCH have one."""
    size = 4 if encoding.opcode_map == 1 or encoding.opcode in (0xE8, 0xE9, 0xC7) else 1
    return end + signed(encoding.raw[-size:]) & encoding.mask


def relative(target: int, end: int, bits: int) -> bytes | None:
    """The disp32 that leads to ``target`` from an instruction that ends at ``end``; None beyond 2 GiB.

    Addresses of 32 ``bits`` wrap, so that none is beyond.
    """
    if bits == 32:
        return (target - end & 0xFFFF_FFFF).to_bytes(4, "little")
    distance = (target - end + 2**63) % 2**64 - 2**63
    return distance.to_bytes(4, "little", signed=True) if -(2**31) <= distance < 2**31 else None


BRANCHING: Final = frozenset(
    {(0, opcode) for opcode, kind in _ONE_BYTE_CLASSES.items() if kind in NEAR_BRANCHES}
    | {(0, 0xFF), (0, _CALL_FAR), (1, 0x01)}
    | {(1, opcode) for opcode in range(0x80, 0x90)}
    | _NOTHING_BEHIND
)
"""(map, opcode) of all behind which something else than the next instruction may run, xbegin (c7 f8) aside."""
