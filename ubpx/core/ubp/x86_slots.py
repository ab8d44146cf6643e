"""Out-of-line copies of x86 instructions: the bytes of a slot, and the places in it."""

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding
from ubpx.core.ubp.plans import SlotCode
from ubpx.core.ubp.x86 import RELATIVE, TRAP, InsnClass, branch_target, insn_class, is_repeated_string, relative
from ubpx.core.values import Insn, VirtAddr

NEVER_FALLS_THROUGH = frozenset({InsnClass.JUMP, InsnClass.LEAVES, InsnClass.SYSENTER})
COUNTED_REFUSAL = "its 8-bit displacement does not reach the program from a slot"
_DISPLACEMENT_SIZE = 4
_NO_OWN_TRAP = frozenset({InsnClass.SYSTEM_CALL, InsnClass.STACK_SEGMENT, InsnClass.KERNEL_EMULATED})
"""Behind these a program that steps itself gets its trap one instruction later, or may do."""
ENTERED = frozenset(
    {InsnClass.PLAIN, InsnClass.NOP, InsnClass.JUMP, InsnClass.BRANCH, InsnClass.LEAVES, InsnClass.UNWIND_FRAME}
    | {InsnClass.PUSH_REGISTER, InsnClass.PUSH_IMMEDIATE, InsnClass.POP_REGISTER, InsnClass.PUSH_FLAGS}
)
"""Those whose copies a jump from the program may lead to: they run anywhere, at once, and begin once."""
_NOP = b"\x90"
_LEA_RCX = b"\x48\x8d\x0d"


def make_slot(encoding: Encoding, insn: Insn, slot: VirtAddr) -> SlotCode:
    """See ``Architecture.slot_code``."""
    kind = check_copied(encoding, insn)
    code = _copy(encoding, kind, insn, slot)
    places, link, cushion = [(0, insn.address)], None, None
    if kind in _NO_OWN_TRAP:
        cushion = len(code)
        places.append((len(code), insn.end))
    if kind is InsnClass.SYSTEM_CALL:
        # The kernel leaves the copy's next address in rcx; no flag may change while that is put right.
        link = len(code), "rcx"
        code += _LEA_RCX + _reaching(insn, slot, insn.end, slot + len(code) + 7, encoding.bits)
    elif kind in _NO_OWN_TRAP:
        code += _NOP
    if kind not in NEVER_FALLS_THROUGH:
        places.append((len(code), insn.end))
        code += b"\xe9" + _reaching(insn, slot, insn.end, slot + len(code) + 5, encoding.bits)
    entry = b""
    if kind in ENTERED and not is_repeated_string(encoding):
        entry = TRAP + b"\xeb" + (-(len(code) + 3)).to_bytes(1, "little", signed=True)
    return SlotCode(
        origin=insn.address, slot=slot, code=code, places=tuple(places), link=link, cushion=cushion, entry_code=entry
    )


def check_copied(encoding: Encoding, insn: Insn) -> InsnClass:
    """The instruction's class; raises UsageError for what no slot can hold (loop, jrcxz)."""
    kind = insn_class(encoding)
    if kind is InsnClass.COUNTED_BRANCH:
        raise UsageError(f"'{insn}' cannot run in a slot: {COUNTED_REFUSAL}; emulate it")
    return kind


def copy_size(encoding: Encoding, kind: InsnClass, insn: Insn) -> int:
    """Bytes of the copy itself."""
    return len(_long_form(encoding, kind)) + _DISPLACEMENT_SIZE if kind in RELATIVE else insn.length


def used_operand(encoding: Encoding, kind: InsnClass, insn: Insn) -> int | None:
    """Where a rip-relative operand is; None without one. A nop's is never used."""
    return None if kind is InsnClass.NOP else encoding.operand_address(insn.end)


def reach(encoding: Encoding, kind: InsnClass, insn: Insn) -> tuple[VirtAddr, ...]:
    """What a slot must lie within 2 GiB of."""
    if encoding.bits == 32 or kind is InsnClass.COUNTED_BRANCH:
        return ()
    end = insn.end
    way_back = () if kind in NEVER_FALLS_THROUGH else (end,)
    if kind in RELATIVE:
        return (VirtAddr(branch_target(encoding, end)), *way_back)
    if encoding.displacement_at is None or ADDRESS_SIZE in encoding.prefixes:
        return way_back
    operand = used_operand(encoding, kind, insn)
    return way_back if operand is None else (VirtAddr(operand), *way_back)


def _copy(encoding: Encoding, kind: InsnClass, insn: Insn, slot: VirtAddr) -> bytes:
    if kind in RELATIVE:
        opcode = _long_form(encoding, kind)
        end = slot + len(opcode) + _DISPLACEMENT_SIZE
        return opcode + _reaching(insn, slot, branch_target(encoding, insn.end), end, encoding.bits)
    operand, at = used_operand(encoding, kind, insn), encoding.displacement_at
    if operand is None or at is None:
        return insn.raw
    bits = 32 if ADDRESS_SIZE in encoding.prefixes else encoding.bits
    reaching = _reaching(insn, slot, operand, slot + insn.length, bits)
    return insn.raw[:at] + reaching + insn.raw[at + _DISPLACEMENT_SIZE :]


def _long_form(encoding: Encoding, kind: InsnClass) -> bytes:
    """The opcode of a relative branch that takes a disp32; its prefixes say nothing."""
    match kind:
        case InsnClass.BRANCH:
            return bytes((0x0F, 0x80 | encoding.opcode & 0x0F))
        case InsnClass.CALL:
            return b"\xe8"
        case InsnClass.TRANSACTION:
            return b"\xc7\xf8"
        case _:
            return b"\xe9"


def _reaching(insn: Insn, slot: VirtAddr, target: int, end: int, bits: int) -> bytes:
    displacement = relative(target, end, bits)
    if displacement is None:
        raise InsnRefused(insn.address, insn, f"the slot at {slot:#x} is more than 2 GiB away from {target:#x}")
    return displacement
