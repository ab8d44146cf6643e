"""What the core needs of the world, as Protocols; backends implement them."""

from collections.abc import Sequence
from typing import Protocol

from ubpx.core.values import MappedRange, ProcessId, VirtAddr


class Memory(Protocol):
    """One address space of a target."""

    def read(self, address: VirtAddr, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises MemoryFault if any of them is not mapped.
        """
        ...

    def write(self, address: VirtAddr, data: bytes) -> None:
        """Write as the program itself could: page protections hold.

        Raises MemoryFault, and then wrote nothing the program could not have written itself.
        """
        ...

    def patch(self, address: VirtAddr, data: bytes) -> None:
        """Write through page protections, for traps and slots (private copy of the page).

        Raises MemoryFault if the address is not mapped.
        """
        ...


class ProcessView(Protocol):
    """A traced process, as hooks see it. Valid while its target is attached."""

    @property
    def pid(self) -> ProcessId:
        """The process's id."""
        ...

    @property
    def memory(self) -> Memory:
        """The program's memory; reads never show a trap of ours."""
        ...

    def mappings(self) -> Sequence[MappedRange]:
        """What is mapped now, ascending, slot areas included."""
        ...
