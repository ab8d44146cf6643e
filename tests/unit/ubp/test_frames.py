"""Signal frames are found on stacks as the kernel writes them, and nothing else is taken for one."""

import struct

import pytest

from ubpx.core.ubp import architecture

PC, SP, FLAGS = 0x40_1234, 0x7FF_0000, 0x246


def frame_64(pc: int, sp: int, flags: int = FLAGS) -> bytes:
    """The return address, uc_flags, uc_link, uc_stack, struct sigcontext_64 up to its selectors."""
    return struct.pack("<6Q15Q3QHHHH", 1, 0, 0, 2, 3, 4, *range(15), sp, pc, flags, 0x33, 0, 0, 0x2B)


def frame_32(pc: int, sp: int, flags: int = FLAGS) -> bytes:
    """The return address, the signal, struct sigcontext_32."""
    selectors = (0, 0, 0x2B, 0x2B)
    return struct.pack("<2I4I8I2I2I4I", 1, 2, *selectors, *range(8), 3, 0, pc, 0x23, flags, sp, 0x2B, 0)


FRAMES = {"x86_64": (frame_64, 8), "i386": (frame_32, 4)}


@pytest.mark.parametrize("name", FRAMES)
def test_the_first_frame_of_several_is_found(name: str) -> None:
    """Invariant: the innermost one tells where the thread goes on, whatever lies before it."""
    frame, word = FRAMES[name]
    stack = bytes(5 * word) + frame(PC, SP) + frame(PC + 1, SP + 1)
    assert architecture(name).innermost_frame(stack) == (PC, SP)


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_no_frame_is_not_taken_for_one(name: str) -> None:
    """Invariant: neither the selectors alone, nor with flags that cannot be, nor beside whole words."""
    frame, word = FRAMES[name]
    no_frame = architecture(name).innermost_frame
    assert no_frame(b"") is None
    assert no_frame(frame(PC, SP, 0)) is None
    assert no_frame(frame(PC, SP, 1 << 22 | 2)) is None
    assert no_frame(bytes(word // 2) + frame(PC, SP)) is None
    for cut in range(1, word):
        assert no_frame(frame(PC, SP)[-cut:]) is None
    assert no_frame(frame(PC, SP)[-word:]) is None
