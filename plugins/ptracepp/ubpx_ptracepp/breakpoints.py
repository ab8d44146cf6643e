"""Breakpoints of ptrace++: each is a lease, which shares its place with whoever else has one there."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ubpx
    from ubpx_ptracepp.process import PtraceProcess


class Breakpoint:
    """A breakpoint that is set until ``desinstall``; losing the last reference ends nothing."""

    def __init__(self, process: PtraceProcess, address: int, old_bytes: bytes, lease: ubpx.Lease) -> None:
        self.process: Final = weakref.ref(process)
        """The thread that set it."""
        self.address: Final = address
        self.size: Final = len(old_bytes)
        self.old_bytes: Final = old_bytes
        self.lease: Final = lease

    @property
    def hits(self) -> int:
        """Arrivals so far, each Ptrace object's breakpoint for itself."""
        return self.lease.hits

    def desinstall(self, set_ip: bool = False) -> None:
        """Remove it; ``set_ip`` sends the thread that set it to the address. Again, or too late: does nothing.

        While a thread is stopped at it, other threads that arrive wait until that one is let go, so that none slips
        past a breakpoint that is set again after a step.
        """
        process = self.process()
        if process is not None:
            process.unset(self)
            if set_ip and process.is_stopped:
                process.setInstrPointer(self.address)

    def __str__(self) -> str:
        return f"<Breakpoint {self.address:#018x}..{self.address + self.size - 1:#018x}>"
