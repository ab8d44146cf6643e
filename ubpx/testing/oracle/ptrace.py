"""ptrace(2) of one program that this process has started, as cheaply as ctypes can.

The requests here serve tests: they tell nothing of errors but by ``PtraceFailed``, and know one thread.
"""

import ctypes
import errno
import os
from typing import Any, Final

from ubpx._errors import PtraceFailed

TRACEME: Final = 0
CONT: Final = 7
SINGLESTEP: Final = 9
GETREGS: Final = 12
SETREGS: Final = 13
SETOPTIONS: Final = 0x4200
GETSIGINFO: Final = 0x4202
GETREGSET: Final = 0x4204
SETREGSET: Final = 0x4205
EXITKILL: Final = 1 << 20
NT_X86_XSTATE: Final = 0x202
ADDR_NO_RANDOMIZE: Final = 0x0004_0000

_ptrace: Final[Any] = ctypes.PyDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_personality: Final[Any] = ctypes.PyDLL(None, use_errno=True).personality


def request(number: int, pid: int, address: object = None, data: object = None) -> None:
    """One request; raises PtraceFailed."""
    if _ptrace(number, pid, address, data) == -1:
        code = ctypes.get_errno()
        raise PtraceFailed(f"ptrace request {number:#x}", pid, OSError(code, os.strerror(code or errno.ESRCH)))


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def become(path: str, descriptor: int) -> None:
    """In a child that was just forked: have it traced, its addresses not random, and run ``path``.

    ``path`` inherits ``descriptor``. Does not return.
    """
    try:
        _ptrace(TRACEME, 0, None, None)
        _personality(ADDR_NO_RANDOMIZE)
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
        os.execve(path, ["ubpx-processor"], {})  # noqa: S606 - no shell is wanted
    finally:
        os._exit(127)
