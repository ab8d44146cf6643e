"""Frames of signals on riscv64 stacks: where a thread goes on when their handlers return."""

# Source: struct rt_sigframe, arch/riscv/kernel/signal.c; struct ucontext and sigcontext, arch/riscv/include/uapi/asm.
# A frame is recognized by what the kernel writes into each: a signal's number, no flags and no link, how the alternate
# stack stands, and a floating-point state that ends in a description of extensions: none, or the vectors'.

import re
from typing import Final

from ubpx.core.values import VirtAddr

_REGISTERS: Final = 128 + 176
"""Behind struct siginfo, the uc_mcontext of struct ucontext: struct user_regs_struct, pc first."""
PC_IN_FRAME: Final = _REGISTERS
_SP_IN_FRAME: Final = _REGISTERS + 16
_FCSR_IN_FRAME: Final = _REGISTERS + 256 + 256
_EXTENSIONS_IN_FRAME: Final = _REGISTERS + 256 + 516
_SIZE: Final = _EXTENSIONS_IN_FRAME + 12
_NO_EXTENSIONS: Final = bytes(12)
_VECTORS: Final = bytes(4) + (0x5346_5457).to_bytes(4, "little")
_MOST_FCSR: Final = 0xFF
_BEGINNING: Final = re.compile(
    rb"(?=[\x01-\x40]\0{3}.{124}"  # si_signo
    rb"\0{16}"  # uc_flags, uc_link
    rb".{8}[\0-\2]\0{2}[\0\x80])",  # ss_sp, ss_flags
    re.DOTALL,
)


def innermost(stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
    """See ``Architecture.innermost_frame``."""
    for found in _BEGINNING.finditer(stack):
        at = found.start()
        if at % 8 == 0 and at + _SIZE <= len(stack) and _ends_well(stack, at):
            pc, sp = (_word(stack, at + place) for place in (PC_IN_FRAME, _SP_IN_FRAME))
            if pc and pc % 2 == 0:
                return VirtAddr(pc), VirtAddr(sp)
    return None


def _ends_well(stack: bytes, at: int) -> bool:
    extensions = stack[at + _EXTENSIONS_IN_FRAME : at + _SIZE]
    fcsr = int.from_bytes(stack[at + _FCSR_IN_FRAME : at + _FCSR_IN_FRAME + 4], "little")
    return fcsr <= _MOST_FCSR and (extensions == _NO_EXTENSIONS or extensions.startswith(_VECTORS))


def _word(stack: bytes, at: int) -> int:
    return int.from_bytes(stack[at : at + 8], "little")
