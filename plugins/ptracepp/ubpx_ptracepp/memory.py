"""A process's memory by /proc/PID/mem, and by process_vm_writev where protections must hold."""

import ctypes
import errno
import os
import threading
from typing import Any, Final

from ubpx import MemoryFault, TargetGone
from ubpx.core.values import ProcessId
from ubpx_ptracepp import procfs


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_writev: Final[Any] = ctypes.CDLL(None, use_errno=True).process_vm_writev
_writev.restype = ctypes.c_ssize_t
_quick_writev: Final[Any] = ctypes.PyDLL(None).process_vm_writev
_quick_readv: Final[Any] = ctypes.PyDLL(None).process_vm_readv
_WORDS: Final = (8, 4)
_HIGHEST: Final = 2**64 - 1


class _OneWord:
    """Prebuilt transfers of one size: what an emulated push needs, at a third of the cost."""

    def __init__(self, size: int) -> None:
        self._size: Final = size
        self._lock: Final = threading.Lock()
        self._value: Final = ctypes.create_string_buffer(size)
        self._remote: Final = _IoVector(0, size)
        self._local: Final = _IoVector(ctypes.addressof(self._value), size)
        self._local_reference: Final = ctypes.byref(self._local)
        self._remote_reference: Final = ctypes.byref(self._remote)

    def read(self, tid: int, address: int) -> bytes | None:
        """None if not all of it could be read."""
        with self._lock:
            self._remote.base = address
            done = _quick_readv(tid, self._local_reference, 1, self._remote_reference, 1, 0) == self._size
            return self._value.raw if done else None

    def write(self, tid: int, address: int, data: bytes) -> bool:
        """Whether all of it was written."""
        with self._lock:
            self._value.raw = data
            self._remote.base = address
            return bool(_quick_writev(tid, self._local_reference, 1, self._remote_reference, 1, 0) == self._size)


class ProcessMemory:
    """One memory; it stays this one when the process execs. Usable from any thread."""

    def __init__(self, pid: ProcessId) -> None:
        self._pid = pid
        self._tid = procfs.living_tid(pid)
        self._one_word: Final = {size: _OneWord(size) for size in _WORDS}
        self._using: Final = threading.Lock()
        """Held while the descriptor is used: a number that was closed may be another file's the next moment."""
        try:
            self._descriptor = os.open(f"/proc/{self._tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGone(pid, None) from error

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises MemoryFault."""
        one_word = self._one_word.get(size)
        if one_word is not None and self._descriptor >= 0 and 0 <= address <= _HIGHEST:
            word = one_word.read(self._tid, address)
            if word is not None:
                return word
        try:
            with self._using:
                data = os.pread(self._descriptor, size, address)
        except (OSError, OverflowError) as error:
            raise MemoryFault(address, size, "read") from error
        if len(data) != size:
            raise MemoryFault(address, size, "read")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write what the program itself could write; raises MemoryFault."""
        if not 0 <= address <= _HIGHEST:
            raise MemoryFault(address, len(data), "write")
        one_word = self._one_word.get(len(data))
        if one_word is not None and self._descriptor >= 0 and one_word.write(self._tid, address, data):
            return
        local = _IoVector(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
        remote = _IoVector(address, len(data))
        if self._descriptor < 0 or not (self._write(local, remote) or self._write_by_another(local, remote)):
            raise MemoryFault(address, len(data), "write")

    def _write(self, local: _IoVector, remote: _IoVector) -> bool:
        written: int = _writev(self._tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        return bool(written == local.length)

    def _write_by_another(self, local: _IoVector, remote: _IoVector) -> bool:
        """Once more, if the thread that we write by has exited and another has not."""
        if ctypes.get_errno() != errno.ESRCH:
            return False
        self._tid = procfs.living_tid(self._pid)
        return self._write(local, remote)

    def patch(self, address: int, data: bytes) -> None:
        """Write through page protections; raises MemoryFault."""
        try:
            with self._using:
                written = os.pwrite(self._descriptor, data, address)
        except (OSError, OverflowError) as error:
            raise MemoryFault(address, len(data), "patch") from error
        if written != len(data):
            raise MemoryFault(address, len(data), "patch")

    def move_to(self, pid: ProcessId) -> None:
        """The process has left this memory, and another one lives on in it."""
        self._pid, self._tid = pid, procfs.living_tid(pid)

    def close(self) -> None:
        """The process is left: from now on every access is a MemoryFault."""
        with self._using:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
