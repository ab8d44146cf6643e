"""A program's memory as clients see it: its own bytes, whatever of ours stands there."""

import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Final

from ubpx._errors import UsageError
from ubpx.core.checks import check_bytes, check_span
from ubpx.core.dormant import DormantTraps, blended
from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.values import PAGE_SIZE, VirtAddr

_FEW_BYTES: Final = 32
"""Up to so many it is quicker to look at each than at its page."""


class StandingTraps(MutableMapping[VirtAddr, TrapPatch]):
    """The traps that stand in one memory, by address; found by page too.

    Changed in the tracer thread alone, read by any.
    """

    def __init__(self, patches: Iterable[TrapPatch] = ()) -> None:
        self._by_address: Final[dict[VirtAddr, TrapPatch]] = {}
        self._by_page: Final[dict[int, dict[VirtAddr, TrapPatch]]] = {}
        self._longest = 1
        """Bytes of the longest trap that ever stood."""
        for patch in patches:
            self[patch.address] = patch

    def __getitem__(self, address: VirtAddr) -> TrapPatch:
        return self._by_address[address]

    def __setitem__(self, address: VirtAddr, patch: TrapPatch) -> None:
        self._by_address[address] = patch
        self._longest = max(self._longest, len(patch.trap))
        for page in _pages(address, len(patch.trap)):
            self._by_page.setdefault(page, {})[address] = patch

    def __delitem__(self, address: VirtAddr) -> None:
        patch = self._by_address.pop(address)
        for page in _pages(address, len(patch.trap)):
            del self._by_page[page][address]
            if not self._by_page[page]:
                del self._by_page[page]

    def __iter__(self) -> Iterator[VirtAddr]:
        return iter(self._by_address)

    def __len__(self) -> int:
        return len(self._by_address)

    def overlapping(self, address: int, size: int) -> list[TrapPatch]:
        """Those that own a byte of these."""
        if size <= 0 or not self._by_address:
            return []
        if size <= _FEW_BYTES:
            standing = self._by_address
            near = [standing.get(VirtAddr(at)) for at in range(address - self._longest + 1, address + size)]
            return [p for p in near if p is not None and address < p.address + len(p.trap)]
        pages = _pages(address, size)
        found = [self._by_page.get(page) for page in (pages if len(pages) <= len(self) else tuple(self._by_page))]
        end = address + size
        # Each page at once, as a copy: probes come and go in the tracer thread.
        patches = {p.address: p for traps in found if traps for p in tuple(traps.values())}
        return [p for p in patches.values() if p.address < end and address < p.address + len(p.trap)]


def _pages(address: int, size: int) -> range:
    return range(address // PAGE_SIZE, (address + size - 1) // PAGE_SIZE + 1)


class HidingMemory:
    """A space's memory as clients see it: the program's own bytes, never a trap of ours."""

    def __init__(self, raw: Memory, patches: StandingTraps, dormant: DormantTraps) -> None:
        self.writing: Final = threading.RLock()
        """Held while clients write, and while traps are written together with what stands between them."""
        self.make_way: Callable[[range], None] = lambda _addresses: None
        """Called before somebody writes there: what relies on these bytes does so no more."""
        self._raw = raw
        self._patches = patches
        self._dormant = dormant

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes; raises MemoryFault."""
        check_span(address, size)
        asleep = self._dormant.cover(address, size)
        before = self._patches.overlapping(address, size)
        data = self._raw.read(address, size)
        for cover in (asleep, self._dormant.cover(address, size)):
            if cover is not None:
                data = blended(data, *cover)
        patched = self._patches.overlapping(address, size)
        if not (patched or before):
            return data
        patched += before  # those too that were taken out meanwhile
        shown = bytearray(data)
        for patch in patched:
            offset = patch.address - address
            first = max(offset, 0)
            original = patch.original[first - offset : size - offset]
            shown[first : first + len(original)] = original
        return bytes(shown)

    def write(self, address: int, data: bytes) -> None:
        """Write as the program could; raises MemoryFault, and UsageError over a probed byte."""
        self._change(self._raw.write, address, data)

    def patch(self, address: int, data: bytes) -> None:
        """Write through page protections; raises MemoryFault, and UsageError over a probed byte."""
        self._change(self._raw.patch, address, data)

    def _change(self, change: Callable[[int, bytes], None], address: int, data: bytes) -> None:
        check_bytes(data)
        check_span(address, len(data))
        self.make_way(range(address, address + len(data)))
        with self.writing:
            self._refuse_patched(address, len(data))
            change(address, data)

    def _refuse_patched(self, address: int, size: int) -> None:
        check_span(address, size)
        for patch in self._patches.overlapping(address, size):
            raise UsageError(f"a probe stands at {patch.address:#x}; release its leases before writing there")
        dormant = self._dormant.first_in(address, size)
        if dormant is not None:
            raise UsageError(f"a probe stands at {dormant:#x}; release the code that is probed before writing there")
