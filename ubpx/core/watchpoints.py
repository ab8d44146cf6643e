"""Hardware debug registers: four in each address space, leased to clients like everything that is shared."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import attrs

from ubpx._errors import DebugRegistersBusy, UsageError
from ubpx.core.probepoints import Lease, LeaseState
from ubpx.core.values import VirtAddr, Watched

REGISTERS: Final = 4
NOTHING: Final[tuple[Watched | None, ...]] = (None,) * REGISTERS
"""What is watched where nobody watches anything."""
_SIZES: Final = (1, 2, 4, 8)


class Access(StrEnum):
    """What a watchpoint notices."""

    WRITE = "WRITE"
    READWRITE = "READWRITE"
    """Reads too, where the processor cannot tell them apart."""
    EXECUTE = "EXECUTE"


def checked(address: object, size: object, access: str) -> Watched:
    """What to watch; raises UsageError for what no debug register can."""
    if isinstance(address, bool) or not isinstance(address, int) or not 0 < address < 1 << 47:
        raise UsageError(f"{address!r} cannot be watched; give an address of the program's memory")
    try:
        kind = Access(access)
    except ValueError:
        raise UsageError(f"{access!r} cannot be watched for; choose one of {', '.join(Access)}") from None
    if size not in _SIZES or not isinstance(size, int):
        raise UsageError(f"{size!r} bytes cannot be watched; choose one of {', '.join(map(str, _SIZES))}")
    if kind is Access.EXECUTE and size != 1:
        raise UsageError("an instruction is watched by its first byte; give size=1")
    if address % size:
        raise UsageError(f"{address:#x} is no multiple of {size}; watch an aligned place")
    return Watched(VirtAddr(address), size, kind)


class Watchpoint:
    """One watched place of one address space. Owned by its WatchTable."""

    def __init__(self, watched: Watched) -> None:
        self.watched: Final = watched
        self.leases: tuple[Lease, ...] = ()
        """In handler order."""

    @property
    def address(self) -> VirtAddr:
        """Of the first byte."""
        return self.watched.address

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients that share it, in handler order."""
        return tuple(lease.client.name for lease in self.leases)

    def __repr__(self) -> str:
        return f"<watchpoint {self.address:#x}, {self.watched.size} bytes, {self.watched.access}>"


@attrs.define
class WatchTable:
    """The debug registers of one address space, the same in every thread."""

    _registers: list[Watchpoint | None] = attrs.field(factory=lambda: [None] * REGISTERS, init=False)
    watched: tuple[Watched | None, ...] = attrs.field(default=NOTHING, init=False)
    """What each register watches; looked at whenever a thread goes on."""

    def hit(self, registers: Sequence[int]) -> list[Watchpoint]:
        """The watchpoints of these registers."""
        return [found for number in registers if (found := self._registers[number]) is not None]

    def grant(self, lease: Lease, watched: Watched) -> bool:
        """Let ``lease`` share a watchpoint; True if it is its first. Raises DebugRegistersBusy."""
        point = next((each for each in self._registers if each is not None and each.watched == watched), None)
        fresh = point is None
        if point is None:
            if None not in self._registers:
                holders = sorted({name for each in self._registers if each for name in each.clients})
                raise DebugRegistersBusy(watched.address, holders)
            point = Watchpoint(watched)
            self._put(self._registers.index(None), point)
        point.leases = tuple(sorted((*point.leases, lease)))
        lease.watchpoint, lease.address, lease.state = point, watched.address, LeaseState.ARMED
        return fresh

    def withdraw(self, lease: Lease, state: LeaseState) -> bool:
        """End the lease; True if it was its watchpoint's last. Again: does nothing, False."""
        point = lease.watchpoint
        if not isinstance(point, Watchpoint) or lease not in point.leases:
            return False
        lease.state = state
        point.leases = tuple(each for each in point.leases if each is not lease)
        if not point.leases:
            self._put(self._registers.index(point), None)
        return not point.leases

    def _put(self, number: int, point: Watchpoint | None) -> None:
        self._registers[number] = point
        self.watched = tuple(each.watched if each else None for each in self._registers)

    def leases(self) -> tuple[Lease, ...]:
        """All of them."""
        return tuple(lease for each in self._registers if each for lease in each.leases)
