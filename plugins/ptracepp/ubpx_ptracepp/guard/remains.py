"""What a tracer that was killed has left in a program, read from its memory with caps, and not believed."""

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from ubpx import MemoryFault
from ubpx.core.values import PAGE_SIZE, MappedRange, ProcessId, ThreadId, VirtAddr
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import Abi
from ubpx_ptracepp.guard import layout
from ubpx_ptracepp.injection import Makeshift, find_makeshift
from ubpx_ptracepp.memory import ProcessMemory

_MOST_CODE: Final = 256 << 20
"""Bytes of anonymous code that are looked through for a guard."""
_MOST_ROWS: Final = 256 << 20
"""Bytes of rows that are read."""
_WINDOW: Final = 1 << 20


@attrs.frozen(kw_only=True)
class GuardRemains:
    """See ``ports.Remains``."""

    traps: Sequence[tuple[VirtAddr, bytes]]
    areas: Sequence[tuple[VirtAddr, int]]
    guard_code: range
    masks: Sequence[tuple[ThreadId, int]]
    guard: VirtAddr | None
    """Where the guard is, if it was finished."""
    mapped: Sequence[tuple[VirtAddr, int]]
    """What is to be unmapped beside the guard: areas, rows, and a guard that was not finished."""
    makeshift: Makeshift | None
    """What lies in the vdso's padding."""


def find_remains(pid: ProcessId, memory: ProcessMemory, abi: Abi) -> GuardRemains | None:
    """None where there is nothing."""
    mappings = procfs.maps(pid)
    makeshift = find_makeshift(mappings, memory, abi)
    guard = _find_guard(mappings, memory, abi)
    if guard is None and makeshift is None:
        return None
    traps: list[tuple[VirtAddr, bytes]] = []
    areas: list[tuple[VirtAddr, int]] = []
    mapped: list[tuple[VirtAddr, int]] = []
    masks: list[tuple[ThreadId, int]] = []
    if guard is not None:
        for start, size, kind in _areas(memory, guard):
            if kind != layout.SLOTS and start == guard + layout.ROWS_AT:
                traps += _rows(memory, start, size)
            elif _is_ours(mappings, start, size, executable=kind == layout.SLOTS):
                mapped.append((start, size))
                if kind == layout.SLOTS:
                    areas.append((start, size))
                elif kind == layout.ROWS:
                    traps += _rows(memory, start, size)
        masks = list(_masks(memory, guard))
    elif makeshift is not None and makeshift.planned and _is_fresh(mappings, memory, makeshift.planned):
        mapped.append((makeshift.planned, layout.SIZE))
    return GuardRemains(
        traps=traps,
        areas=areas,
        guard_code=range(0) if guard is None else range(guard, guard + PAGE_SIZE),
        masks=masks,
        guard=guard,
        mapped=mapped,
        makeshift=makeshift,
    )


def _find_guard(mappings: Sequence[MappedRange], memory: ProcessMemory, abi: Abi) -> VirtAddr | None:
    """By its code, whole: a page of anonymous memory that cannot be written begins with it."""
    code, left = layout.image(abi), _MOST_CODE
    behind = layout.ACTION_AT + layout.ACTION_ROOM
    for mapping in mappings:
        if mapping.path or mapping.permissions != "r-xp":
            continue
        for start in range(mapping.start, mapping.end, _WINDOW):
            left -= _WINDOW
            if left < 0:
                return None
            try:
                data = memory.read(start, min(_WINDOW, mapping.end - start))
            except MemoryFault:
                break
            for page in range(0, len(data), PAGE_SIZE):
                found = data[page : page + len(code)]
                if found[: layout.ACTION_AT] == code[: layout.ACTION_AT] and found[behind:] == code[behind:]:
                    return VirtAddr(start + page)
    return None


def _areas(memory: ProcessMemory, guard: VirtAddr) -> Iterator[tuple[VirtAddr, int, int]]:
    count = int.from_bytes(memory.read(guard + layout.LIST_AT, 8), "little")
    listed = memory.read(guard + layout.AREAS_AT, layout.MANY_AREAS * layout.AREA.size)
    for start, size in list(layout.AREA.iter_unpack(listed))[:count]:
        kind = size % PAGE_SIZE
        if size and start % PAGE_SIZE == 0:
            yield VirtAddr(start), size - kind, kind


def _rows(memory: ProcessMemory, start: VirtAddr, size: int) -> Iterator[tuple[VirtAddr, bytes]]:
    """The traps that stand by what an area of rows says."""
    for at in range(start, start + min(size, _MOST_ROWS), _WINDOW):
        try:
            words = memoryview(memory.read(at, min(_WINDOW, start + size - at))).cast("Q")
        except MemoryFault:
            return
        for word in words:
            if not word:
                return
            address, original, standing = layout.unpack_row(word)
            if standing:
                yield address, bytes((original,))


def _masks(memory: ProcessMemory, guard: VirtAddr) -> Iterator[tuple[ThreadId, int]]:
    table = memory.read(guard + layout.TASKS_AT, layout.MANY_TASKS * layout.TASK.size)
    for tid, mask, _ in layout.TASK.iter_unpack(table):
        if tid:
            yield ThreadId(tid), mask


def _is_ours(mappings: Sequence[MappedRange], start: int, size: int, *, executable: bool) -> bool:
    """Whether all of it is mapped as we would have: anonymous, private, never writable."""
    wanted = "r-xp" if executable else "r--p"
    covered = start
    for mapping in mappings:
        if mapping.start <= covered < mapping.end and not mapping.path and mapping.permissions == wanted:
            covered = mapping.end
    return covered >= start + size


def _is_fresh(mappings: Sequence[MappedRange], memory: ProcessMemory, start: VirtAddr) -> bool:
    """A guard that was mapped and not finished: nothing, or the beginning of our code, and then nothing."""
    inside = [each for each in mappings if start <= each.start and each.end <= start + layout.SIZE]
    whole = sum(each.end - each.start for each in inside) == layout.SIZE or any(
        each.start <= start and start + layout.SIZE <= each.end for each in mappings if each.permissions == "rw-p"
    )
    if not whole or any(each.path for each in inside):
        return False
    return not any(memory.read(start + layout.LIST_AT, layout.SIZE - layout.LIST_AT))
