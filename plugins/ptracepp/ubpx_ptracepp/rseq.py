"""A thread's announcement of a restartable sequence, kept while the thread does something else for us.

The kernel forgets an announcement (rseq_cs of the thread's struct rseq) when the thread comes back from a stop
with its pc outside the sequence, as a thread does that was borrowed for a system call. Put back into the middle
of its sequence it would run on as if nobody had interrupted it. With the announcement put back too, the kernel
sends it to the abort handler. Source: Linux, kernel/rseq.c; PTRACE_GET_RSEQ_CONFIGURATION since 5.13.
"""

import contextlib
import ctypes
from typing import Final

from ubpx import MemoryFault, PtraceFailed
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.requests import PTRACE_GET_RSEQ_CONFIGURATION, request

_RSEQ_CS: Final = 8
"""Offset in struct rseq of the word that names the sequence's descriptor."""
_WORD: Final = 8


class _Configuration(ctypes.Structure):
    """struct ptrace_rseq_configuration."""

    _fields_ = (
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Announcement:
    """What the stopped thread has announced. Made before it is borrowed, put back before it goes on."""

    def __init__(self, tid: int, memory: ProcessMemory) -> None:
        self._memory: Final = memory
        self._address = self._value = 0
        configuration = _Configuration()
        # An older kernel does not tell where the struct is; a struct that cannot be read announces nothing.
        with contextlib.suppress(PtraceFailed, MemoryFault):
            size = ctypes.sizeof(configuration)
            if request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, ctypes.addressof(configuration)):
                address = configuration.pointer + _RSEQ_CS
                self._value = self._read(address) if configuration.pointer else 0
                self._address = address

    def put_back(self) -> None:
        """If the kernel has forgotten it."""
        with contextlib.suppress(MemoryFault):
            if self._value and not self._read(self._address):
                self._memory.write(self._address, self._value.to_bytes(_WORD, "little"))

    def _read(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, _WORD), "little")
