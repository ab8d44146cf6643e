"""Machine code of our own that runs in the tracer (lane/, crowd/), where the process may have any."""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ubpx.core.values import PAGE_SIZE

_READ, _EXECUTE = 1, 4
_mprotect: Final[Any] = ctypes.CDLL(None).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_NO_ARGUMENTS: Final = 4
"""METH_NOARGS."""
_new_function: Final[Any] = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


class _Definition(ctypes.Structure):
    """PyMethodDef."""

    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("code", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


def address_of(name: str) -> int:
    """Of a function of Python's own in C."""
    address: int = ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p).value  # type: ignore[assignment]
    return address


class MachineCode:
    """One image that depends on no address, in a page of its own, and as many pages of data as it wants behind it."""

    def __init__(self, image: bytes, *, data_pages: int = 0, wanted: bool = True) -> None:
        """``wanted`` no: it is not to run, as if it might not."""
        self._memory: Final = mmap.mmap(-1, (1 + data_pages) * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(image)
        self.start: Final = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.data: Final = self.start + PAGE_SIZE
        """Where its data is, zero at first."""
        self.runs: Final = wanted and _mprotect(self.start, PAGE_SIZE, _READ | _EXECUTE) == 0
        """False where a policy of the system forbids it: the same is to be done by single calls then."""
        self._definition: Final = _Definition(b"machine_code", self.start, _NO_ARGUMENTS, None)

    def function(self) -> Callable[[], Any]:
        """The code, written for that, as a function of Python's without arguments, bound to this, which it keeps."""
        function: Callable[[], Any] = _new_function(ctypes.addressof(self._definition), self, None)
        return function
