"""How programs ask the kernel for something: what differs between x86_64's and i386's on one kernel.

Registers are words of x86_64's struct user_regs_struct for both: that is what PTRACE_GETREGS gives a
64-bit tracer. Of a 32-bit thread's word the upper half says nothing, except for the result of a system
call, which the kernel keeps as the sign-extended 64-bit number that its restart logic looks at.
"""

import ctypes
import signal
from collections.abc import Mapping
from functools import cache
from typing import Final, Literal

import attrs

from ubpx.core.ubp import architecture
from ubpx_ptracepp import calls

WORDS: Final = 27
"""64-bit words in x86_64's struct user_regs_struct."""
RegisterBuffer = ctypes.c_uint64 * WORDS

_RBX, _RCX, _RDX, _RSI, _RDI, _RBP, _R8, _R9, _R10 = 5, 11, 12, 13, 14, 4, 9, 8, 7
RAX: Final = 10
ORIG_RAX: Final = 15
RIP: Final = 16
EFLAGS: Final = 18
TRAP_FLAG: Final = 0x100
"""In EFLAGS: the program steps itself."""
RSP: Final = 19

FAULTS: Final = frozenset({signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals that instructions raise: a thread that has one blocked dies of it."""
ALL_BUT_FAULTS: Final = ~sum(1 << (each - 1) for each in FAULTS) & 0xFFFF_FFFF_FFFF_FFFF
"""A set of signals, as the kernel has it."""

CALL_INSN_SIZE: Final = 2
"""Of ``syscall`` and ``int $0x80``. Where i386's vdso enters by sysenter, it is left behind an ``int $0x80``."""


@attrs.frozen(kw_only=True)
class Abi:
    """One architecture's system calls."""

    name: str
    """As ``ubpx.core.ubp.architecture`` takes it."""
    calls: Mapping[str, int]
    """Numbers by name."""
    insn: bytes
    """The instruction that makes one."""
    arguments: tuple[int, ...]
    """The words that take its arguments, in order; the number is in RAX."""
    mmap: str
    """The call that maps memory, its offset 0."""
    mask: int
    """What a register can hold."""
    auxiliary: Literal["Q", "I"]
    """What ``memoryview.cast`` calls a word of /proc/PID/auxv."""

    def is_result(self, word: int, error: int) -> bool:
        """Whether a call's result, in RAX, is this error."""
        return (word ^ -error) & self.mask == 0


X86_64: Final = Abi(
    name="x86_64",
    calls=calls.X86_64,
    insn=b"\x0f\x05",
    arguments=(_RDI, _RSI, _RDX, _R10, _R8, _R9),
    mmap="mmap",
    mask=0xFFFF_FFFF_FFFF_FFFF,
    auxiliary="Q",
)
I386: Final = Abi(
    name="i386",
    calls=calls.I386,
    insn=b"\xcd\x80",
    arguments=(_RBX, _RCX, _RDX, _RSI, _RDI, _RBP),
    mmap="mmap2",
    mask=0xFFFF_FFFF,
    auxiliary="I",
)
ABIS: Final[Mapping[str, Abi]] = {abi.name: abi for abi in (X86_64, I386)}
"""Of the programs that can be traced, by name."""


@cache
def words_of(name: str) -> Mapping[str, str]:
    """What a program of that architecture calls the words that are registers of its, by x86_64's names for them.

    By these python-ptrace, in a 64-bit tracer, knows the registers of a 32-bit thread too.
    """
    names = architecture(X86_64.name).register_names, architecture(name).register_names
    return {wide: its for wide, its in zip(*names, strict=True) if its}
