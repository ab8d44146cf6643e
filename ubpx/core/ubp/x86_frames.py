"""Frames of signals on x86 stacks: where a thread goes on when their handlers return."""

# Source: struct sigcontext_64 and sigcontext_32, arch/x86/include/uapi/asm/sigcontext.h. A frame is recognized by the
# user's selectors, which the kernel writes into each, and by flags that can be. What a former frame has left can only
# lie in the gaps of one that counts, and is passed over with that.

from collections.abc import Iterator
from typing import Final

from ubpx.core.values import VirtAddr

_SELECTORS_64: Final = b"\x33\0\0\0\0\0\x2b\0"
"""CS, GS, FS and SS, behind SP, IP and the flags."""
_CODE_32, _DATA_32 = b"\x23\0\0\0", b"\x2b\0\0\0"
"""CS, behind IP; SS, behind CS, the flags and SP."""
_ALWAYS_SET: Final = 0x2
_MOST_FLAGS: Final = 1 << 22
"""Of the flags: a bit that is never clear, and where they end."""


def innermost_64(stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
    """See ``Architecture.innermost_frame``."""
    for at in _whole_words(stack, _SELECTORS_64, 8):
        sp, pc, flags = (int.from_bytes(stack[at - back : at - back + 8], "little") for back in (24, 16, 8))
        if at >= 24 and _can_be(flags):
            return VirtAddr(pc), VirtAddr(sp)
    return None


def innermost_32(stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
    """See ``Architecture.innermost_frame``."""
    for at in _whole_words(stack, _CODE_32, 4):
        pc, flags, sp = (int.from_bytes(stack[at + ahead : at + ahead + 4], "little") for ahead in (-4, 4, 8))
        if at >= 4 and stack[at + 12 : at + 16] == _DATA_32 and _can_be(flags):
            return VirtAddr(pc), VirtAddr(sp)
    return None


def _can_be(flags: int) -> bool:
    return bool(flags & _ALWAYS_SET) and flags < _MOST_FLAGS


def _whole_words(stack: bytes, wanted: bytes, size: int) -> Iterator[int]:
    at = stack.find(wanted)
    while at >= 0:
        if at % size == 0:
            yield at
        at = stack.find(wanted, at + 1)
