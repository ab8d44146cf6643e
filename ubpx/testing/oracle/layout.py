"""What is mapped in the program that runs the instructions: a few areas at fixed addresses, all else is a guard.

All areas are windows on one shared file, so that whoever traces the program reads and writes them
without a system call.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from ubpx._errors import MemoryFault, UsageError
from ubpx.core.values import PAGE_SIZE, VirtAddr

INT3: Final = b"\xcc"
CODE_SIZE: Final = 0x20000
SLOT_SIZE: Final = PAGE_SIZE
DATA_SIZE: Final = 4 * PAGE_SIZE
STACK_SIZE: Final = 2 * PAGE_SIZE
SLOTS_AT: Final = CODE_SIZE
DATA_AT: Final = SLOTS_AT + SLOT_SIZE
STACK_AT: Final = DATA_AT + DATA_SIZE
FILE_SIZE: Final = STACK_AT + STACK_SIZE
"""Offsets in the shared file: code, slots, data, stack."""

MEMORY: Final = slice(DATA_AT, FILE_SIZE)
"""What the program may write, in the shared file."""


@attrs.frozen(kw_only=True)
class Layout:
    """Where one kind of program has its areas, and how it is asked for system calls."""

    architecture: str
    word_size: int
    program: int
    """Where the program itself is linked to; unmapped once all is set up."""
    code: int
    slots: int
    data: int
    stack: int
    low: int
    """The data area again, where addresses of half the width reach."""
    system_call: bytes
    calls: Mapping[str, int]
    """System call numbers."""
    arguments: tuple[str, ...]
    """The words that carry a system call's arguments."""

    @property
    def origin(self) -> VirtAddr:
        """Where instructions run in place: in the middle of the code."""
        return VirtAddr(self.code + CODE_SIZE // 2)

    @property
    def slot(self) -> VirtAddr:
        """Where their copies run."""
        return VirtAddr(self.slots + 0x40)

    @property
    def mask(self) -> int:
        """All bits of a general register."""
        return (1 << 8 * self.word_size) - 1

    def offset(self, address: int, size: int, *, writing: bool) -> int:
        """Where in the shared file the bytes are; raises MemoryFault as the program would fault."""
        if not writing and self.code <= address <= self.code + CODE_SIZE - size:
            return address - self.code
        for start, length, at in (
            (self.data, DATA_SIZE, DATA_AT),
            (self.stack, STACK_SIZE, STACK_AT),
            (self.low, DATA_SIZE, DATA_AT),
        ):
            if start <= address <= start + length - size:
                return at + address - start
        raise MemoryFault(address, size, "write" if writing else "read")


_LAYOUTS: Final = (
    Layout(
        architecture="x86_64",
        word_size=8,
        program=0x40_0000,
        code=0x5555_4000_0000,
        slots=0x5555_7000_0000,
        data=0x5555_5000_0000,
        stack=0x5555_6000_0000,
        low=0x2000_0000,
        system_call=b"\x0f\x05",
        calls={"mmap": 9, "munmap": 11, "prctl": 157, "arch_prctl": 158, "seccomp": 317},
        arguments=("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    ),
    Layout(
        architecture="i386",
        word_size=4,
        program=0x0804_8000,
        code=0x1000_0000,
        slots=0xD000_0000,
        data=0x5000_0000,
        stack=0x6000_0000,
        low=0x8000,
        system_call=b"\xcd\x80",
        calls={"mmap": 192, "munmap": 91, "prctl": 172, "set_thread_area": 243, "seccomp": 354},
        arguments=("ebx", "ecx", "edx", "esi", "edi", "ebp"),
    ),
)
LAYOUTS: Final[Mapping[str, Layout]] = {layout.architecture: layout for layout in _LAYOUTS}


def layout_of(architecture: str) -> Layout:
    """The layout for programs of that architecture; raises UsageError if this processor is no oracle for it."""
    found = LAYOUTS.get(architecture)
    if found is None:
        raise UsageError(f"no hardware to run {architecture!r} on; there is {', '.join(LAYOUTS)}")
    return found
