"""A program of a few bytes, made here: an ELF file whose only code asks the kernel for something and stops."""

import struct
from typing import Final

from ubpx.testing.oracle.layout import INT3, Layout

_HEADERS_64: Final = 64 + 2 * 56
_HEADERS_32: Final = 52 + 2 * 32
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474_E551
_PF_R_X, _PF_R_W = 5, 6
_EM: Final = {8: 62, 4: 3}


def elf(layout: Layout) -> bytes:
    """A static executable: one segment, whose entry point is ``layout.system_call`` and an int3.

    Its other program header says that data are not to be executed. Source: System V ABI, ELF header
    and program header; a 32-bit file for a word of four bytes.
    """
    code = layout.system_call + INT3 * 14
    wide = layout.word_size == 8
    headers, first, each = (_HEADERS_64, 64, 56) if wide else (_HEADERS_32, 52, 32)
    size, start = headers + len(code), layout.program
    identity = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        2, _EM[layout.word_size], 1, start + headers, first, 0, 0, first, each, 2, 0, 0, 0,
    )  # fmt: skip
    if wide:
        text = struct.pack("<IIQQQQQQ", _PT_LOAD, _PF_R_X, 0, start, start, size, size, 0x1000)
        stack = struct.pack("<IIQQQQQQ", _PT_GNU_STACK, _PF_R_W, 0, 0, 0, 0, 0, 16)
    else:
        text = struct.pack("<IIIIIIII", _PT_LOAD, 0, start, start, size, size, _PF_R_X, 0x1000)
        stack = struct.pack("<IIIIIIII", _PT_GNU_STACK, 0, 0, 0, 0, 0, _PF_R_W, 16)
    return identity + header + text + stack + code


_AUDIT_64: Final = 0xC000_003E
_AUDIT_32: Final = 0x4000_0003
_HARMLESS: Final = {_AUDIT_64: (24, 39, 102, 186), _AUDIT_32: (20, 24, 158, 224)}
"""getpid, getuid, gettid, sched_yield, as each kind of system call numbers them."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NO_SUCH_CALL = 0x7FFF_0000, 0x0005_0000 | 38


def system_call_filter() -> bytes:
    """A seccomp program: what is harmless is done, all else ends with ENOSYS and does nothing.

    Source: linux/seccomp.h (offset 0 is the number, 4 the kind of call), linux/filter.h.
    """

    def instruction(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_so, if_not, value)

    parts = b""
    for kind, numbers in _HARMLESS.items():
        parts += instruction(_LOAD, 4) + instruction(_EQUAL, kind, 0, 2 * len(numbers) + 1) + instruction(_LOAD, 0)
        for number in numbers:
            parts += instruction(_EQUAL, number, 0, 1) + instruction(_RETURN, _ALLOW)
    return parts + instruction(_RETURN, _NO_SUCH_CALL)
