"""Asks the processor itself how long an instruction is. On x86_64 Linux, in 64-bit mode.

The bytes are put right in front of a page that may be read and written but not executed, one byte
more each time, and stepped once in a child process. As long as the instruction is not whole, the
fetch of its next byte faults at the first byte of that page with the program counter still at the
start; the first time that anything else happens (a step, another fault, an undefined opcode), it is.
Data accesses to that page succeed, so an operand that lies there does not look like a fetch.
Source for the method: C. Domas, "Breaking the x86 ISA", 2017.
"""

import ctypes
import mmap
import os
import platform
import signal
import struct
import sys
import time
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

import attrs

from ubpx._errors import UsageError
from ubpx.core.ubp.decode import LONGEST_INSN
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.testing.oracle import ptrace

_REGISTERS: Final = X86_64.register_names
_CLEARED: Final = frozenset(_REGISTERS) - {"cs", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"}
_NO_SUCH_CALL: Final = 2**64 - 1
"""In rax and orig_rax: a system call of this number does nothing, and none is restarted."""
_PAGE: Final = mmap.PAGESIZE
_PATIENCE_S: Final = 2.0


class Happened(StrEnum):
    """What one step over a whole instruction ended in."""

    EXECUTED = "executed"
    UNDEFINED = "undefined"
    """#UD: this processor has no such instruction, but it knows where it would end."""
    FAULTED = "faulted"
    """A fault of its operands or privilege."""
    UNKNOWN = "not found out"


@attrs.frozen
class Measured:
    """The processor's answer."""

    happened: Happened
    length: int | None = None
    falls_through: bool | None = None
    """Whether the thread then stood right behind the instruction; None if it was not executed."""

    def __str__(self) -> str:
        if self.length is None:
            return self.happened
        where = {True: ", goes on behind it", False: ", goes elsewhere", None: ""}[self.falls_through]
        return f"{self.length} bytes ({self.happened}{where})"


def can_ask() -> bool:
    """Whether this machine and interpreter can run 64-bit x86 code."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and struct.calcsize("P") == 8


class LengthOracle:
    """A child process in which instructions are run, one step each. Used by one thread; a context manager."""

    def __init__(self) -> None:
        """Raises UsageError on any other machine."""
        if not can_ask():
            raise UsageError("only an x86_64 Linux machine can be asked; compare the disassemblers alone")
        self._mprotect = ctypes.CDLL(None).mprotect
        self._mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        # Three pages: stack, code, and the one that cannot be executed. The child has a copy at the same address.
        self._pages = mmap.mmap(-1, 3 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self._stack = start + _PAGE // 2
        self._code, self._boundary = start + _PAGE, start + 2 * _PAGE
        self._initial = (ctypes.c_ulonglong * len(_REGISTERS))()
        self._pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, code: bytes) -> Measured:
        """How long the instruction is that ``code`` begins with; up to all of ``code``, 15 bytes at most.

        A length of None: it is longer, or the processor answered nothing of use.
        """
        for length in range(1, min(len(code), LONGEST_INSN) + 1):
            measured = self._try(code[:length])
            if measured is not None:
                return measured
        return Measured(Happened.UNKNOWN)

    def _try(self, code: bytes) -> Measured | None:
        """None if the processor wanted more bytes."""
        if not self._pid:
            self._start()
        start = self._boundary - len(code)
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(code)
        words = type(self._initial)(*self._initial)  # sysenter, for one, leaves other segments
        for name in _CLEARED:
            words[_REGISTERS.index(name)] = 0
        for name, value in {
            "rip": start, "rsp": self._stack, "eflags": 0x202, "rax": _NO_SUCH_CALL, "orig_rax": _NO_SUCH_CALL,
        }.items():  # fmt: skip
            words[_REGISTERS.index(name)] = value
        ptrace.request(ptrace.SETREGS, self._pid, data=ctypes.addressof(words))
        ptrace.request(ptrace.SINGLESTEP, self._pid)
        return self._judge(self._wait(), start, len(code))

    def _judge(self, status: int | None, start: int, length: int) -> Measured | None:
        if status is None or not os.WIFSTOPPED(status):
            self._end()
            return Measured(Happened.UNKNOWN)
        rip = self._registers()[_REGISTERS.index("rip")]
        match os.WSTOPSIG(status):
            case signal.SIGTRAP:
                return Measured(Happened.EXECUTED, length, falls_through=rip == self._boundary)
            case signal.SIGSEGV if self._fault_address() == self._boundary:
                if rip == start:
                    return None
                return Measured(Happened.EXECUTED, length, falls_through=rip == self._boundary)
            case signal.SIGILL:
                return Measured(Happened.UNDEFINED, length)
            case _:
                return Measured(Happened.FAULTED, length)

    def _fault_address(self) -> int:
        info = (ctypes.c_byte * 128)()
        ptrace.request(ptrace.GETSIGINFO, self._pid, data=ctypes.addressof(info))
        address: int = struct.unpack_from("Q", info, 16)[0]
        return address

    def _registers(self) -> ctypes.Array[ctypes.c_ulonglong]:
        words = (ctypes.c_ulonglong * len(_REGISTERS))()
        ptrace.request(ptrace.GETREGS, self._pid, data=ctypes.addressof(words))
        return words

    def _start(self) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_traced()
        self._pid = pid
        status = self._wait()
        if status is None or not os.WIFSTOPPED(status):
            self._end()
            raise UsageError("a child process cannot be traced here; compare the disassemblers alone")
        ptrace.request(ptrace.SETOPTIONS, self._pid, data=ptrace.EXITKILL)
        self._initial = self._registers()

    def _become_traced(self) -> None:
        """In the child: nothing but system calls."""
        try:
            self._mprotect(self._code, _PAGE, mmap.PROT_READ | mmap.PROT_EXEC)
            ptrace.request(ptrace.TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)

    def _wait(self) -> int | None:
        """The child's next wait status; None if it comes to none in time."""
        deadline = time.monotonic() + _PATIENCE_S
        spins = 0
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                if not os.WIFSTOPPED(status):
                    self._pid = 0
                return status
            if time.monotonic() > deadline:
                return None
            spins += 1
            time.sleep(0 if spins < 200 else 0.001)

    def _end(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
