"""Frames of signals on aarch64 stacks: where a thread goes on when their handlers return."""

# Source: struct rt_sigframe, arch/arm64/kernel/signal.c; struct sigcontext and fpsimd_context,
# arch/arm64/include/uapi/asm/sigcontext.h; struct ucontext, arch/arm64/include/uapi/asm/ucontext.h. A frame is
# recognized by the header of the vector registers' record, which the kernel writes right behind the general ones.

from typing import Final

from ubpx.core.values import VirtAddr

_SIGINFO: Final = 128
_UCONTEXT_HEAD: Final = 176
"""uc_flags, uc_link, uc_stack, uc_sigmask with its room to grow; what follows is aligned to 16."""
_REGISTERS: Final = _SIGINFO + _UCONTEXT_HEAD + 8
"""x0, behind the fault's address."""
PC_IN_FRAME: Final = _REGISTERS + 32 * 8
"""Behind x0 to x30 and sp."""
_SP_IN_FRAME: Final = PC_IN_FRAME - 8
_PSTATE_IN_FRAME: Final = PC_IN_FRAME + 8
_RECORDS_IN_FRAME: Final = -(-(_PSTATE_IN_FRAME + 8) // 16) * 16
_VECTORS: Final = bytes.fromhex("01805046 10020000")
"""FPSIMD_MAGIC, and the size of the record: 32 vector registers, two words of state, the header."""
_MODE: Final = 0x1F
"""Of PSTATE; 0 is a program of 64 bits."""


def innermost(stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
    """See ``Architecture.innermost_frame``."""
    at = stack.find(_VECTORS)
    while at >= 0:
        sp, pc, pstate = (
            int.from_bytes(stack[max(place, 0) : max(place + 8, 0)], "little")
            for place in (at - _RECORDS_IN_FRAME + each for each in (_SP_IN_FRAME, PC_IN_FRAME, _PSTATE_IN_FRAME))
        )
        if at % 8 == 0 and at >= _RECORDS_IN_FRAME - _SP_IN_FRAME and not pstate & _MODE and pstate < 1 << 32:
            return VirtAddr(pc), VirtAddr(sp)
        at = stack.find(_VECTORS, at + 1)
    return None
