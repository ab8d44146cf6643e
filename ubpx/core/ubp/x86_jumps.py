"""Jumps that are written over one instruction's own bytes: where they can lead, and what they are.

A near jump has five bytes. An instruction that has fewer gives its own; the last bytes of the displacement
are then those that follow, which stay as they are, so that fewer targets can be had (instruction
punning: Chamith et al., PLDI 2017).
"""

from typing import Final

from ubpx._errors import InsnRefused
from ubpx.core.ubp.encoding import LOCK, Encoding, Form
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.ubp.x86 import InsnClass, insn_class, is_repeated_string
from ubpx.core.ubp.x86_slots import ENTERED
from ubpx.core.values import Insn, VirtAddr

JUMP_SIZE: Final = 5
_NEAR_JUMP: Final = b"\xe9"
_MOST: Final = 1 << 31


def targets(encoding: Encoding, insn: Insn, following: bytes) -> range:
    """See ``Architecture.jump_targets``."""
    reason = _refusal(encoding)
    if reason is not None:
        raise InsnRefused(insn.address, insn, reason)
    end = insn.address + JUMP_SIZE
    free = min(insn.length, JUMP_SIZE) - 1
    if free == JUMP_SIZE - 1:
        found = range(end - _MOST, end + _MOST)
    else:
        fixed = following[: JUMP_SIZE - 1 - free]
        if free + len(fixed) < JUMP_SIZE - 1:
            raise InsnRefused(insn.address, insn, "what follows it, and would be the jump's end, cannot be read")
        low = int.from_bytes(bytes(free) + fixed, "little", signed=True)
        found = range(end + low, end + low + (1 << 8 * free))
    return range(max(found.start, 0), min(found.stop, encoding.mask + 1))


def jump(insn: Insn, target: VirtAddr, following: bytes) -> TrapPatch:
    """See ``Architecture.jump``."""
    size = min(insn.length, JUMP_SIZE)
    displacement = (target - insn.address - JUMP_SIZE).to_bytes(JUMP_SIZE - 1, "little", signed=True)
    whole = _NEAR_JUMP + displacement
    if not following.startswith(whole[size:]):
        raise InsnRefused(insn.address, insn, f"no jump made of its own bytes leads to {target:#x}")
    return TrapPatch(
        address=insn.address, trap=whole[:size], original=insn.raw[:size], reported_pc=VirtAddr(target + 1)
    )


def jump_target(code: bytes, address: VirtAddr, bits: int) -> VirtAddr | None:
    """See ``Architecture.jump_target``."""
    if len(code) < JUMP_SIZE or not code.startswith(_NEAR_JUMP):
        return None
    displacement = int.from_bytes(code[1:JUMP_SIZE], "little", signed=True)
    return VirtAddr(address + JUMP_SIZE + displacement & (1 << bits) - 1)


def _refusal(encoding: Encoding) -> str | None:
    kind = insn_class(encoding)
    if kind not in ENTERED or is_repeated_string(encoding):
        return "its copy must be gone to from a trap"
    if kind is InsnClass.NOP and encoding.form is Form.LEGACY and encoding.opcode_map == 1 and encoding.opcode == 0x1E:
        return "it marks a place that indirect branches may lead to"
    if encoding.form is Form.LEGACY and (LOCK in encoding.prefixes or (encoding.prefixes and not encoding.opcode_map)):
        return "a branch may skip its prefix, and would run into the jump"
    return None
