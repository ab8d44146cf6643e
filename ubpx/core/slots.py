"""Slots: where out-of-line copies lie, and how long (S11, S12).

A slot is freed when no lease holds it **and** no thread is in it. Threads run through boosted
slots unobserved, so a slot that nobody leases is *retired* first: it stays as it is, is revived
if the same instruction is armed again, and is freed only once a quiesced process has shown that
no thread's PC lies in it.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final

import attrs

from ubpx.core.ubp.plans import SlotCode
from ubpx.core.values import PAGE_SIZE, MappedRange, SlotUse, VirtAddr

_REACH_MARGIN: Final = 0x10000
"""Less than a displacement reaches, bytes: for the length of a slot and an area."""
AREA_SIZE: Final = 16 * PAGE_SIZE
ORIGIN_SIZE: Final = 8
"""At a slot's end: the address of the instruction that it holds a copy of, little-endian."""
_LOWEST: Final = 0x10000
_MARGIN: Final = 0x10000
"""What is left of user space above the last multiple of this stays free, bytes."""
_GROWTH: Final = 64 << 20
"""Room left below the stack where that is possible, bytes."""
_HEAP_GROWTH: Final = 1 << 30
"""The same above the heap, or above the program where the heap will begin."""
_PROGRAM_GAP: Final = 16 << 20
"""Bytes: a program's own mappings are not further apart than this, and nothing else is as near."""


class _Way(IntEnum):
    """Whose way a place is in; the best first."""

    NOBODYS = 0
    MAPPINGS = 1
    """The kernel puts there what the program maps next: its addresses would be others than without us."""
    GROWTH = 2
    """Heap or stack grow there."""


@attrs.define(eq=False)
class SlotArea:
    """A piece of the program's memory that the program mapped for us; cut into slots.

    Owned by its SlotTable.
    """

    # Rule: a slot that nothing lies in is in _vacated, or at the cursor or behind it.

    start: VirtAddr
    size: int
    slot_size: int
    used: dict[VirtAddr, SlotCode] = attrs.field(factory=dict, init=False)
    """By slot address; retired ones included."""
    forsaken: bool = attrs.field(default=False, init=False)
    """The program has unmapped or changed some of it."""
    _cursor: int = attrs.field(default=0, init=False)
    _vacated: list[VirtAddr] = attrs.field(factory=list, init=False)
    """Slots that were used once; some may be used again."""

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.start + self.size

    @property
    def full(self) -> bool:
        """Whether something lies in every slot."""
        return len(self.used) * self.slot_size >= self.size

    def free(self) -> VirtAddr | None:
        """Some slot that nothing lies in, one that was used before if there is any; None if it is full."""
        while self._vacated:
            if self._vacated[-1] not in self.used:
                return self._vacated[-1]
            self._vacated.pop()
        while self._cursor < self.size:
            place = VirtAddr(self.start + self._cursor)
            if place not in self.used:
                return place
            self._cursor += self.slot_size
        return None

    def vacate(self, slot: VirtAddr) -> None:
        """Nothing lies in the slot any more."""
        del self.used[slot]
        self._vacated.append(slot)


@attrs.define
class SlotTable:
    """All slots of one address space."""

    slot_reach: int
    """The architecture's."""
    _when_vacated: Callable[[SlotCode], object] = lambda _code: None
    """Called when a slot holds nothing any more."""
    _areas: list[SlotArea] = attrs.field(factory=list, init=False)
    """Ascending."""
    _roomy: list[SlotArea] = attrs.field(factory=list, init=False)
    """Those with free slots."""
    _retired: dict[VirtAddr, list[SlotCode]] = attrs.field(factory=dict, init=False)
    """By the original instruction's address: it may have had several copies."""
    retired_count: int = attrs.field(default=0, init=False)
    """How many slots wait for proof that no thread is in them."""
    jump_pages: int = attrs.field(default=0, init=False)
    """How many areas are pages that were mapped for jumps which few addresses can be the targets of."""

    @property
    def areas(self) -> tuple[SlotArea, ...]:
        """All that the program has mapped for us, ascending."""
        return tuple(self._areas)

    @property
    def use(self) -> SlotUse:
        """Of the moment; from any thread."""
        areas, retired = self.areas, self.retired_count
        used = sum(len(area.used) for area in areas)
        free = sum(area.size // area.slot_size for area in areas) - used
        return SlotUse(leased=max(used - retired, 0), retired=retired, free=free, jump_pages=self.jump_pages)

    def add_area(self, area: SlotArea) -> None:
        """The program has mapped another one."""
        insort(self._areas, area, key=_start)
        self._roomy.append(area)

    def forget_areas(self) -> None:
        """They are unmapped, all of them."""
        self._areas.clear()
        self._roomy.clear()

    def forsake(self, area: SlotArea) -> None:
        """The program has done something with it: no slot there is used any more for what is armed from now on."""
        if area in self._roomy:
            self._roomy.remove(area)
        area.forsaken = True

    def find_free(self, reach: Sequence[VirtAddr]) -> VirtAddr | None:
        """A free slot that reaches all of ``reach``; None: map another area."""
        return next((area.free() for area in self._roomy if self._reaches(area, reach)), None)

    def find_free_within(self, starts: range, reach: Sequence[VirtAddr]) -> VirtAddr | None:
        """The first free slot that begins at one of ``starts``, and reaches all of ``reach``."""
        for area in self._roomy:
            if not self._reaches(area, reach):
                continue
            first = max(area.start, area.start - (area.start - starts.start) // area.slot_size * area.slot_size)
            for slot in range(first, min(starts.stop, area.start + area.size), area.slot_size):
                if slot >= starts.start and slot not in area.used:
                    return VirtAddr(slot)
        return None

    def room(self, reach: Sequence[VirtAddr]) -> int:
        """How many free slots reach all of ``reach``."""
        near = (area for area in self._roomy if self._reaches(area, reach))
        return sum(area.size // area.slot_size - len(area.used) for area in near)

    def occupy(self, code: SlotCode) -> None:
        """The slot now holds ``code``."""
        area = self._area_of(code.slot)
        area.used[code.slot] = code
        if area.full and area in self._roomy:
            self._roomy.remove(area)

    def vacate(self, code: SlotCode) -> None:
        """The slot holds nothing: only right where no thread can be in it."""
        area = self._area_of(code.slot)
        if area.full and not area.forsaken:
            self._roomy.append(area)
        area.vacate(code.slot)
        self._when_vacated(code)

    def retire(self, code: SlotCode) -> None:
        """Nobody leases the slot any more; a thread may still be in it."""
        self._retired.setdefault(code.origin, []).append(code)
        self.retired_count += 1

    def retired(self, origin: VirtAddr) -> SlotCode | None:
        """A retired copy of the instruction at ``origin``, still in its slot."""
        copies = self._retired.get(origin, ())
        return next((code for code in copies if not self._area_of(code.slot).forsaken), None)

    def revive(self, code: SlotCode) -> None:
        """A retired slot is leased again, as it is."""
        self._drop(code)

    def _drop(self, code: SlotCode) -> None:
        copies = self._retired[code.origin]
        copies.remove(code)
        self.retired_count -= 1
        if not copies:
            del self._retired[code.origin]

    def free_retired(self, occupied: Iterable[int]) -> int:
        """Free the retired slots that no PC of ``occupied`` lies in; how many were freed.

        Only right while every thread of the address space is stopped and in ``occupied``.
        """
        busy = {code.slot for code in map(self.code_at, occupied) if code is not None}
        idle = [code for copies in self._retired.values() for code in copies if code.slot not in busy]
        for code in idle:
            self._drop(code)
            self.vacate(code)
        return len(idle)

    def code_at(self, pc: int) -> SlotCode | None:
        """The slot that ``pc`` lies in, leased or retired."""
        at = bisect_right(self._areas, VirtAddr(pc), key=_start) - 1
        if at < 0 or pc not in self._areas[at]:
            return None
        area = self._areas[at]
        return area.used.get(VirtAddr(pc - (pc - area.start) % area.slot_size))

    def _reaches(self, area: SlotArea, reach: Sequence[VirtAddr]) -> bool:
        return _reaches(area.start, area.size, reach, self.slot_reach)

    def _area_of(self, slot: VirtAddr) -> SlotArea:
        return self._areas[bisect_right(self._areas, slot, key=_start) - 1]


def slot_image(code: SlotCode, size: int, filler: bytes) -> bytes:
    """All bytes of a slot: the copy, and at the end for whom it is, so that others can read that after our death."""
    origin = code.origin.to_bytes(ORIGIN_SIZE, "little")
    image = code.code + code.entry_code
    room = size - ORIGIN_SIZE - len(image)
    return image + (filler * room)[:room] + origin


def _start(area: SlotArea) -> VirtAddr:
    return area.start


def far(slot_reach: int) -> str:
    """What lies within it, for people."""
    return f"within {slot_reach >> 30} GiB" if slot_reach >= 1 << 30 else f"within {slot_reach >> 20} MiB"


def _reaches(start: int, size: int, reach: Sequence[VirtAddr], slot_reach: int) -> bool:
    most = slot_reach - _REACH_MARGIN
    return all(abs(start - address) <= most and abs(start + size - address) <= most for address in reach)


def choose_hole(
    mappings: Sequence[MappedRange], reach: Sequence[VirtAddr], size: int, *, limit: int, slot_reach: int
) -> VirtAddr | None:
    """Where an area of ``size`` bytes can be mapped below ``limit``, within ``slot_reach`` bytes of all of ``reach``.

    None: nowhere.
    The nearest place wins that is in nobody's way, for no ``reach`` the one right below all that is mapped: what a wild
    pointer near 0 meets stays as it is. Places in the way of a growing heap or stack are taken last.
    """
    most = slot_reach - _REACH_MARGIN
    low = max([_LOWEST, *(address - most for address in reach)])
    highest = limit // _MARGIN * _MARGIN
    high = min([highest, *(address + most for address in reach)]) - size
    below = max(low, mappings[0].start - size) if mappings else low
    middle = sum(reach) // len(reach) if reach else below
    choices = []
    for hole, way in _holes(mappings, highest):
        first = -(-max(hole.start, low) // PAGE_SIZE) * PAGE_SIZE
        last = min(hole.stop - size, high) // PAGE_SIZE * PAGE_SIZE
        if first <= last:
            place = min(max(middle // PAGE_SIZE * PAGE_SIZE, first), last)
            choices.append((way, abs(place - middle), VirtAddr(place)))
    return min(choices)[2] if choices else None


def page_within(
    mappings: Sequence[MappedRange],
    starts: range,
    reach: Sequence[VirtAddr],
    *,
    slot_size: int,
    slot_reach: int,
    limit: int,
) -> VirtAddr | None:
    """A page that can be mapped and in which a slot can begin at one of ``starts``; None: there is none.

    What ``choose_hole`` says of places that are in somebody's way goes for it, too.
    """
    found = []
    for hole, way in _holes(mappings, limit // _MARGIN * _MARGIN):
        page = max(hole.start, starts.start - PAGE_SIZE + slot_size)
        page = -(-page // PAGE_SIZE) * PAGE_SIZE
        slot = max(page, -(-starts.start // slot_size) * slot_size)
        fits = page + PAGE_SIZE <= hole.stop and slot < starts.stop and slot + slot_size <= page + PAGE_SIZE
        if fits and _reaches(page, PAGE_SIZE, reach, slot_reach):
            found.append((way, VirtAddr(page)))
    return min(found)[1] if found else None


def _holes(mappings: Sequence[MappedRange], highest: int) -> Iterator[tuple[range, _Way]]:
    """The unmapped ranges, each in parts that are in one's way."""
    upper = highest // 4 * 3  # the kernel maps from the stack downwards, and loads programs below this
    end = _LOWEST
    below, loaded = "", False
    heap = "[heap]" if any(mapping.path == "[heap]" for mapping in mappings) else None
    for mapping in [*mappings, None]:
        start = mapping.start if mapping else highest
        above = mapping.path if mapping else ""
        if end < start:
            after_heap = below == heap
            if heap is None and loaded and start - end > _PROGRAM_GAP and end < upper:
                after_heap, heap = True, "[heap]"  # the program's end: it has no heap yet
            growth = min(_HEAP_GROWTH, highest // 8) if after_heap else 0
            before_stack = above.startswith("[stack")
            yield from _cut(range(end, start), growth=growth, before_stack=before_stack, upper=upper)
        if mapping:
            end, below = max(end, mapping.end), mapping.path
            loaded = loaded or below.startswith("/")


def _cut(hole: range, *, growth: int, before_stack: bool, upper: int) -> Iterator[tuple[range, _Way]]:
    first = min(hole.start + growth, hole.stop)
    last = max(hole.stop - _GROWTH, first) if before_stack else hole.stop
    middle = last if before_stack else min(max(first, upper), last)
    yield range(hole.start, first), _Way.GROWTH
    yield range(first, middle), _Way.NOBODYS
    yield range(middle, last), _Way.MAPPINGS
    yield range(last, hole.stop), _Way.GROWTH
