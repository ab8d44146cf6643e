"""What is mapped where traps stand: programs unmap, replace and move their code, and an address alone is no place."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from ubpx._errors import MemoryFault
from ubpx.core.ports import Memory
from ubpx.core.probepoints import Probepoint
from ubpx.core.values import PAGE_SIZE, MappedRange, VirtAddr

_VDSO: Final = "[vdso]"


@attrs.frozen
class Ground:
    """What one page of a program was mapped from."""

    device: str
    inode: int
    offset: int
    """Of the page in the file, bytes; 0 where no file is mapped."""
    rewritable: bool = attrs.field(eq=False)
    """The program may change the code there at any moment, without a system call."""
    image: bytes = attrs.field(eq=False, repr=False)
    """The program's own bytes when it was noted, if it is rewritable; else empty."""


@attrs.define
class Changes:
    """What a program has done to its code where traps of ours stood. Owned by its address space."""

    lost: dict[VirtAddr, Probepoint] = attrs.field(factory=dict, init=False)
    """In whose place it has put something else; a child forked before may still have their traps."""
    amended: set[VirtAddr] = attrs.field(factory=set, init=False)
    """Where our trap was taken out since the instruction behind it was changed; not lost yet."""
    suspected: dict[VirtAddr, bytes] = attrs.field(factory=dict, init=False)
    """Where an instruction looked changed at the last look, and its bytes."""
    moved: set[VirtAddr] = attrs.field(factory=set, init=False)
    """Where traps of ours were taken out of code that was moved there."""


class Mapped:
    """What a program has mapped at one moment, found by address."""

    def __init__(self, ranges: Sequence[MappedRange]) -> None:
        self.ranges: Final = ranges
        self._starts: Final = [each.start for each in ranges]

    def at(self, address: int) -> MappedRange | None:
        """The range that holds the address."""
        number = bisect_right(self._starts, address) - 1
        return self.ranges[number] if number >= 0 and address in self.ranges[number] else None


class Grounds:
    """The grounds of all pages in which traps were armed, in one memory. Changed in the tracer thread alone."""

    def __init__(self) -> None:
        self._by_page: Final[dict[int, Ground]] = {}

    def note(self, addresses: Iterable[VirtAddr], mapped: Mapped, shown: Memory) -> None:
        """Traps are about to stand there; ``shown`` are the program's own bytes."""
        for page in {address // PAGE_SIZE for address in addresses}:
            found = mapped.at(page * PAGE_SIZE)
            if found is not None:
                self._by_page[page] = _ground(page * PAGE_SIZE, found, shown)

    def of(self, address: int) -> Ground | None:
        """What was noted of the address's page."""
        return self._by_page.get(address // PAGE_SIZE)

    def is_same(self, address: int, mapped: Mapped) -> bool:
        """Whether what is mapped there is what was noted; True where nothing was."""
        ground = self.of(address)
        if ground is None:
            return True
        page = address - address % PAGE_SIZE
        found = mapped.at(page)
        if found is None:
            return False
        return (ground.device, ground.inode, ground.offset) == (found.device, found.inode, _offset(page, found))


def is_rewritable(mapped: MappedRange) -> bool:
    """Whether the program may change code there without a system call, or makes such code."""
    return "w" in mapped.permissions or mapped.permissions.endswith("s") or not (mapped.inode or mapped.path == _VDSO)


def _offset(page: int, mapped: MappedRange) -> int:
    return mapped.offset + page - mapped.start if mapped.inode else 0


def _ground(page: int, mapped: MappedRange, shown: Memory) -> Ground:
    image = b""
    if is_rewritable(mapped):
        with contextlib.suppress(MemoryFault):  # being unmapped
            image = shown.read(page, PAGE_SIZE)
    return Ground(mapped.device, mapped.inode, _offset(page, mapped), is_rewritable(mapped), image)
