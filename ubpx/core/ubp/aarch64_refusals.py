"""Which aarch64 instructions can have no probe, and why not.

Source: Arm Architecture Reference Manual for A-profile, DDI 0487, sections C4.1.94 (branches, exceptions, system
instructions), C5.2 (registers by EL), D19 (who may access them); Linux, arch/arm64/kernel/probes/decode-insn.c.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx.core.ubp.aarch64_insns import InsnClass, bits

_PRIVILEGED: Final = "only the kernel may execute it"
_HINT: Final = "a hint that waits, or that is not known here, may do something else in a copy or beside a trap"
_AUTHENTICATED: Final = "a branch that checks a pointer's signature is neither copied nor emulated here"
_AUTHENTICATED_BY_PC: Final = "it takes its own address for a pointer's signature"
_MEMORY_SEQUENCE: Final = (
    "cpy and set instructions come three in a row, and the kernel goes back to the first of them when it must: none "
    "can run elsewhere"
)
_EXCLUSIVE_STORE: Final = (
    "a trap clears the exclusive monitor, so that the store never succeeds and the program tries again for ever; probe "
    "the exclusive load, or the instruction behind the store"
)
_SYSTEM_CALL: Final = (
    "it is a system call (svc): whether a signal ends it or begins it again is decided by where the thread stands when "
    "it has been stopped for that (arch/arm64/kernel/signal.c), so that no thread can be brought back from a copy"
)
_REFUSED_CLASSES: Final = {InsnClass.EXCLUSIVE_STORE: _EXCLUSIVE_STORE, InsnClass.SYSTEM_CALL: _SYSTEM_CALL}
_REGISTER: Final = "the kernel lets no program have that system register"
_STATE: Final = "it sets a part of the processor's state that is the kernel's"
_TRANSACTION: Final = "any trap cancels a transaction, so the program would never get past it"
NOT_AN_INSTRUCTION: Final = "no instruction that is known begins there"

_EXCEPTIONS: Final[Mapping[int, str]] = {
    0xD400_0002: "it calls the hypervisor",
    0xD400_0003: "it calls the secure monitor",
    0xD420_0000: "it is a breakpoint already, of the program itself or of another tool",
    0xD440_0000: "it halts for an external debugger",
    0xD460_0000: _TRANSACTION,
    0xD4A0_0001: _PRIVILEGED,
    0xD4A0_0002: _PRIVILEGED,
    0xD4A0_0003: _PRIVILEGED,
}
_ALLOWED_HINTS: Final = frozenset({0, 7, 8, 10, 12, 14, *range(24, 32), 32, 34, 36, 38})
"""nop; xpaclri; pacia1716, pacib1716, autia1716, autib1716; paciaz to autibsp; bti."""

_Register = tuple[int, int, int, int]
"""op1, CRn, CRm and op2 of a system register or instruction."""

_READABLE: Final = frozenset[_Register](
    {(3, 0, 0, 1), (3, 0, 0, 7), (3, 2, 4, 0), (3, 2, 4, 1)}  # CTR_EL0, DCZID_EL0, RNDR, RNDRRS
    | {(3, 13, 0, 3)}  # TPIDRRO_EL0
    | {(3, 14, 0, op2) for op2 in (0, 1, 2, 5, 6)}  # CNTFRQ_EL0, CNTPCT_EL0, CNTVCT_EL0, CNTPCTSS_EL0, CNTVCTSS_EL0
    | {(0, 0, crm, op2) for crm in range(8) for op2 in range(8)}  # identification: the kernel answers
)
_ACCESSIBLE: Final = frozenset[_Register](
    {(3, 4, 2, op2) for op2 in (0, 2, 5, 6, 7)}  # NZCV, SVCR, DIT, SSBS, TCO
    | {(3, 4, 4, op2) for op2 in (0, 1, 2)}  # FPCR, FPSR, FPMR
    | {(3, 13, 0, 2), (3, 13, 0, 5)}  # TPIDR_EL0, TPIDR2_EL0
)
_SETTABLE: Final = frozenset({(0, 0), (0, 1), (0, 2), (3, 1), (3, 2), (3, 3), (3, 4)})
"""(op1, op2) of what an immediate sets: cfinv, xaflag, axflag; SSBS, DIT, smstart and smstop, TCO."""
_MAINTENANCE: Final = 7
"""CRn of dc, ic, and of cfp, dvp and cpp, which a program may execute with op1 3."""


def refusal(word: int, kind: InsnClass) -> str | None:
    """Why there can be no probe at this instruction of the class ``kind``; None if there can."""
    if kind is not InsnClass.PLAIN:
        return _REFUSED_CLASSES.get(kind)
    find = next((find for mask, value, find in _SPACES if word & mask == value), None)
    return find(word) if callable(find) else find


def _refusal_of_exception(word: int) -> str:
    return _EXCEPTIONS.get(word & 0xFFE0_001F, NOT_AN_INSTRUCTION)


def _refusal_of_branch(word: int) -> str:
    """Of unconditional branches by register but br, blr and ret."""
    opcode = bits(word, 24, 21)
    if opcode in (4, 5):
        return "it returns from an exception, or from a debugger"
    return _AUTHENTICATED if bits(word, 15, 11) == 1 else NOT_AN_INSTRUCTION


def _refusal_of_system(word: int) -> str | None:
    """Of the space from hints to system registers."""
    register = bits(word, 18, 16), bits(word, 15, 12), bits(word, 11, 8), bits(word, 7, 5)
    op1, crn, crm, op2 = register
    reads = bool(bits(word, 21, 21))
    match bits(word, 20, 19):
        case 0 if reads:
            return _TRANSACTION
        case 0:
            return _refusal_of_state(op1, crn, crm << 3 | op2, op2)
        case 1:
            return None if op1 == 3 and crn == _MAINTENANCE else _PRIVILEGED
        case 3 if register in _ACCESSIBLE or (reads and register in _READABLE):
            return None
        case _:
            return _REGISTER


def _refusal_of_state(op1: int, crn: int, hint: int, op2: int) -> str | None:
    match crn:
        case 1:
            return _HINT  # wfet, wfit
        case 2:
            return None if hint in _ALLOWED_HINTS else _HINT
        case 3:
            return _TRANSACTION if hint == 3 else None  # tcommit; else clrex and barriers
        case 4:
            return None if (op1, op2) in _SETTABLE else _STATE
        case _:
            return NOT_AN_INSTRUCTION


_SPACES: Final[tuple[tuple[int, int, str | Callable[[int], str | None]], ...]] = (
    (0xFFFF_0000, 0x0000_0000, "it is there to fault (udf)"),
    (0x3B20_0C00, 0x1900_0400, _MEMORY_SEQUENCE),
    (0xFF00_0000, 0xD400_0000, _refusal_of_exception),
    (0xFFC0_0000, 0xD500_0000, _refusal_of_system),
    (0xFE00_0000, 0xD600_0000, _refusal_of_branch),
    (0xFFC0_001F, 0xF380_001F, _AUTHENTICATED_BY_PC),  # autiasppc
    (0xFFC0_001F, 0x5500_001F, _AUTHENTICATED_BY_PC),  # retaasppc
)
"""Mask, value, and why those that match are refused."""
