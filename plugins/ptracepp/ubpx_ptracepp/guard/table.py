"""What one guard knows, kept true from outside: written before what it tells of is done."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from ubpx import MemoryFault
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx_ptracepp.guard import layout
from ubpx_ptracepp.memory import ProcessMemory


@attrs.define
class _Rows:
    """Room for rows in the program, and what we have written there."""

    start: VirtAddr
    capacity: int
    written: bytearray = attrs.field(factory=bytearray)

    @property
    def room(self) -> int:
        return self.capacity - len(self.written) // layout.ROW_SIZE


class GuardTable:
    """One program's guard (a ``ports.Guard``). Owned by the ProcessTable; changed in the tracer thread."""

    def __init__(self, pid: ProcessId, memory: ProcessMemory, address: VirtAddr, before: layout.Action) -> None:
        self.pid: Final = pid
        """Whose memory it is; children may share it."""
        self.address: Final = address
        self.before: Final = before
        """The program's own action for SIGTRAP."""
        self.masks_without_trap: Final[set[int]] = set()
        """Of threads that had blocked SIGTRAP: what the kernel has made of their masks at a trap."""
        self._memory: Final = memory
        self._areas: Final[list[tuple[VirtAddr, int]]] = []
        """Start and size, with the kind in its low bits; (0, 0) is free."""
        self._rows: Final[list[_Rows]] = []
        self._places: Final[dict[int, tuple[_Rows, int]]] = {}
        """By a trap's address: where its row is."""
        self._tasks: Final[list[int]] = [0] * layout.MANY_TASKS
        size = layout.SIZE - layout.ROWS_AT
        self.add_area(VirtAddr(address + layout.ROWS_AT), size, layout.ROWS)

    @property
    def code(self) -> range:
        """Where its code is."""
        return range(self.address, self.address + PAGE_SIZE)

    def _write(self, address: int, data: bytes) -> None:
        """Not if the program has taken its guard away, or has something else there: then it goes without."""
        if self.is_intact:
            with contextlib.suppress(MemoryFault):
                self._memory.patch(address, data)

    @property
    def is_intact(self) -> bool:
        """Whether the guard is where we have put it."""
        try:
            return self._memory.read(self.address, len(layout.MAGIC)) == layout.MAGIC
        except MemoryFault:
            return False

    # Traps --------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more traps it can know."""
        return sum(rows.room for rows in self._rows)

    def stand(self, traps: Sequence[tuple[VirtAddr, bytes]], *, for_good: bool = False) -> None:
        """These are about to be written, each over its byte. There is room.

        ``for_good``: until all of the guard is given back, at most once for each.
        """
        known = self._places
        if any(address in known for address, _ in traps) if known else False:
            for address, original in traps:
                if address in known:
                    self._rewrite(address, layout.row(address, original[0], standing=True))
            traps = [each for each in traps if each[0] not in known]
        self._append(traps, for_good=for_good)

    def fall(self, traps: Iterable[tuple[VirtAddr, bytes]]) -> None:
        """These were taken out; a thread may still come from there."""
        touched: dict[int, tuple[_Rows, int, int]] = {}
        for address, original in traps:
            place = self._places.get(address)
            if place is None:
                continue
            rows, at = place
            value = layout.row(address, original[0], standing=False)
            rows.written[at : at + layout.ROW_SIZE] = value.to_bytes(layout.ROW_SIZE, "little")
            _, first, last = touched.get(id(rows), (rows, at, at))
            touched[id(rows)] = rows, min(first, at), max(last, at)
        for rows, first, last in touched.values():
            self._write(rows.start + first, bytes(rows.written[first : last + layout.ROW_SIZE]))

    def forget(self, addresses: Iterable[VirtAddr]) -> None:
        """What stands there is not ours any more; the row is kept for when it is again."""
        for address in addresses:
            if address in self._places:
                self._rewrite(address, layout.NO_TRAP)

    def _append(self, fresh: Sequence[tuple[VirtAddr, bytes]], *, for_good: bool) -> None:
        done = 0
        for rows in self._rows:
            part = fresh[done : done + rows.room]
            if not part:
                continue
            done += len(part)
            at = len(rows.written)
            rows.written += layout.standing_rows(part)
            if not for_good:
                for number, (address, _) in enumerate(part):
                    self._places[address] = rows, at + number * layout.ROW_SIZE
            self._write(rows.start + at, bytes(rows.written[at:]))

    def _rewrite(self, address: int, value: int) -> None:
        rows, at = self._places[address]
        data = value.to_bytes(layout.ROW_SIZE, "little")
        rows.written[at : at + layout.ROW_SIZE] = data
        self._write(rows.start + at, data)

    # Areas --------------------------------------------------------------------------------

    @property
    def areas(self) -> Sequence[tuple[VirtAddr, int]]:
        """All that is mapped for rows beside the guard itself: start and size."""
        kinds = layout.COMING | layout.ROWS
        return [
            (start, size & ~kinds)
            for start, size in self._areas
            if size & kinds and start != self.address + layout.ROWS_AT
        ]

    @property
    def has_room_for_area(self) -> bool:
        """The list of areas is bounded."""
        return len(self._areas) < layout.MANY_AREAS or (VirtAddr(0), 0) in self._areas

    def add_area(self, start: VirtAddr, size: int, kind: int) -> None:
        """About to be mapped (rows: mapped by now). There is room."""
        entry = start, size | kind
        free = next((at for at, (known, _) in enumerate(self._areas) if known in (0, start)), len(self._areas))
        self._areas[free:] = [entry, *self._areas[free + 1 :]]
        self._write(self.address + layout.AREAS_AT + free * layout.AREA.size, layout.AREA.pack(*entry))
        self._write(self.address + layout.LIST_AT, len(self._areas).to_bytes(8, "little"))
        if kind == layout.ROWS:
            self._rows.append(_Rows(start, size // layout.ROW_SIZE))

    def drop_area(self, start: VirtAddr) -> None:
        """It is not mapped any more, or was not after all."""
        for at, (known, _) in enumerate(self._areas):
            if known == start:
                self._areas[at] = VirtAddr(0), 0
                self._write(self.address + layout.AREAS_AT + at * layout.AREA.size, bytes(layout.AREA.size))

    # Threads whose signals wait -----------------------------------------------------------

    def postpone(self, tid: int, mask: int, waiting: int) -> None:
        """The thread's own mask, and the signals (bit n-1 for signal n) that wait until its step is done."""
        if 0 in self._tasks:
            at = self._tasks.index(0)
            self._tasks[at] = tid
            self._write_task(at, (tid, mask, waiting))

    def resume(self, tid: int) -> None:
        """Its signals are given back."""
        if tid in self._tasks:
            at = self._tasks.index(tid)
            self._tasks[at] = 0
            self._write_task(at, (0, 0, 0))

    def _write_task(self, at: int, values: tuple[int, int, int]) -> None:
        self._write(self.address + layout.TASKS_AT + at * layout.TASK.size, layout.TASK.pack(*values))
