"""Machine code of our own that runs in the tracer (lane/, crowd/), where the process may have any."""

import ctypes
import mmap
from typing import Any, Final

from ubpx.core.values import PAGE_SIZE

_READ, _EXECUTE = 1, 4
_mprotect: Final[Any] = ctypes.CDLL(None).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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
