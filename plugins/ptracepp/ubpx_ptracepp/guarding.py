"""Guards: how programs survive our death. Each is mapped by its program, told what we do, and given back.

Every step is made so that being killed right behind it harms nothing; what is left over then is found
by ``guard.remains``.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ubpx import SlotsExhausted, TargetGone
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx_ptracepp.abi import Abi
from ubpx_ptracepp.commands import SIGTRAP_BIT
from ubpx_ptracepp.guard import layout
from ubpx_ptracepp.guard.remains import GuardRemains, find_remains
from ubpx_ptracepp.guard.table import GuardTable
from ubpx_ptracepp.injection import Gate, makeshift_gate, plan, set_signal_mask, signal_mask
from ubpx_ptracepp.processes import ProcessTable
from ubpx_ptracepp.procfs import is_caught
from ubpx_ptracepp.tasks import PtraceThread

_READ, _WRITE, _EXECUTE = 1, 2, 4
_SIGTRAP: Final = 5
_MASK_SIZE: Final = 8

FindPlace = Callable[[int], VirtAddr | None]
"""Where so many bytes can be mapped; None: nowhere."""


class Guards:
    """The guard of each traced memory that has one. Owned by the tracer, used in its thread."""

    def __init__(self, processes: ProcessTable) -> None:
        self._processes: Final = processes
        self._tables: Final[dict[ProcessId, GuardTable]] = {}

    def of(self, pid: ProcessId) -> GuardTable | None:
        """The guard of the process's memory."""
        return self._tables.get(pid)

    def share(self, pid: ProcessId, other: ProcessId) -> None:
        """The process lives in the memory of another."""
        table = self._tables.get(other)
        if table is not None:
            self._tables[pid] = table

    def forget(self, pid: ProcessId) -> None:
        """It is left, or has another memory."""
        self._tables.pop(pid, None)

    # Installing ---------------------------------------------------------------------------

    def ensure(self, thread: PtraceThread, traps: int, find_place: FindPlace) -> GuardTable:
        """A guard in the stopped thread's memory that has room for so many more traps.

        Raises SlotsExhausted if the program cannot have one, TargetGone.
        """
        table = self._tables.get(thread.pid)
        if table is None:
            table = self._tables[thread.pid] = self._install(thread, find_place)
        while table.room < traps:
            self._extend(thread, table, traps - table.room, find_place)
        return table

    def _install(self, thread: PtraceThread, find_place: FindPlace) -> GuardTable:
        pid = thread.pid
        memory, abi = self._processes.memory(pid), self._processes.abi(pid)
        with makeshift_gate(pid, memory, abi) as makeshift:
            address = self._map(thread, layout.SIZE, _READ | _WRITE, find_place, makeshift)
            action = layout.our_action(abi, address)
            memory.patch(address + layout.ACTION_AT, action.pack(abi))
            code = layout.image(abi)
            memory.patch(address + layout.ACTION_AT + layout.ACTION_ROOM, code[layout.ACTION_AT + layout.ACTION_ROOM :])
            memory.patch(address, code[: layout.ACTION_AT])  # the magic last: from here on it can be found
            gate = _gate(abi, address)
            protect = ("mprotect", (address, PAGE_SIZE, _READ | _EXECUTE))
            (result,) = self._processes.calls(thread, [protect], gate=makeshift)
            if result < 0:
                self._processes.calls(thread, [("munmap", (address, layout.SIZE))], gate=makeshift)
                raise SlotsExhausted(pid, address, f"its memory may not become code: {os.strerror(-result)}")
        self._processes.enter_by(pid, gate)
        listed = address + layout.LIST_AT
        self._processes.calls(
            thread,
            [
                ("mprotect", (listed, layout.SIZE - layout.LIST_AT, _READ)),
                self._set_action(address + layout.ACTION_AT, address + layout.BEFORE_AT),
            ],
        )
        before = layout.unpack_action(memory.read(address + layout.BEFORE_AT, layout.ACTION_ROOM), abi)
        if before.is_handler:
            memory.patch(address + layout.ACTION_AT, layout.our_action(abi, address, before).pack(abi))
            self._processes.calls(thread, [self._set_action(address + layout.ACTION_AT, 0)])
        return GuardTable(pid, memory, address, before)

    def _extend(self, thread: PtraceThread, table: GuardTable, rows: int, find_place: FindPlace) -> None:
        """Room for so many more traps, and for as many again as there were."""
        size = -(-rows * layout.ROW_SIZE // layout.SIZE) * layout.SIZE
        if not table.has_room_for_area:
            raise SlotsExhausted(thread.pid, table.address, "its guard knows no more areas")
        place = find_place(size)
        if place is None:
            raise SlotsExhausted(thread.pid, table.address, "no room for the guard's rows")
        table.add_area(place, size, layout.COMING)
        if not self._processes.map(thread, place, size, _READ):
            table.drop_area(place)
            return
        table.add_area(place, size, layout.ROWS)

    def _map(
        self, thread: PtraceThread, size: int, protection: int, find_place: FindPlace, gate: Gate | None = None
    ) -> VirtAddr:
        while True:
            place = find_place(size)
            if place is None:
                raise SlotsExhausted(thread.pid, VirtAddr(0), "no room for its guard")
            if gate is not None:
                plan(self._processes.memory(thread.pid), gate, place)
            if self._processes.map(thread, place, size, protection, gate):
                return place

    def _set_action(self, new: int, found: int) -> tuple[str, tuple[int, ...]]:
        return "rt_sigaction", (_SIGTRAP, new, found, _MASK_SIZE)

    def repair(self, thread: PtraceThread, table: GuardTable, *, thoroughly: bool) -> bool:
        """Whether the thread had SIGTRAP blocked at the trap that it has stopped for; then all is as before that.

        ``thoroughly``: also where it blocks nothing, as most threads do; it may have blocked SIGTRAP alone.
        """
        mask = signal_mask(thread.tid)
        if mask is None or mask & SIGTRAP_BIT or not (mask or thoroughly):
            return False
        undone = not is_caught(thread.tid, _SIGTRAP)
        if not undone and mask not in table.masks_without_trap:  # one that another thread's repair has come before
            return False
        table.masks_without_trap.add(mask)
        if undone and thread.pid == table.pid:  # a child that shares the memory has actions of its own, not for long
            with contextlib.suppress(TargetGone):  # killed: its exit follows
                self._processes.calls(thread, [self._set_action(table.address + layout.ACTION_AT, 0)])
        set_signal_mask(thread.tid, mask | SIGTRAP_BIT)
        return True

    # Areas of slots -----------------------------------------------------------------------

    def map_slots(self, thread: PtraceThread, address: VirtAddr, size: int) -> bool:
        """Private executable memory exactly there; False: the place is taken. Raises SlotsExhausted, TargetGone."""
        table = self._tables.get(thread.pid)
        if table is not None:
            if not table.has_room_for_area:
                raise SlotsExhausted(thread.pid, address, "its guard knows no more areas")
            table.add_area(address, size, layout.SLOTS)
        mapped = False
        try:
            mapped = self._processes.map(thread, address, size, _READ | _EXECUTE)
        finally:
            if table is not None and not mapped:
                table.drop_area(address)
        return mapped

    # Giving back --------------------------------------------------------------------------

    def give_back(self, thread: PtraceThread, table: GuardTable, areas: Sequence[tuple[VirtAddr, int]]) -> None:
        """Have the stopped thread's memory, or the copy of it that a forked child has, be as before us.

        ``areas`` are those of slots. Raises TargetGone, SlotsExhausted.
        """
        self._tables.pop(thread.pid, None)
        if table.is_intact:
            self._undo(thread, table.address, dict([*areas, *table.areas]))
        elif areas:
            self._processes.enter_by(thread.pid, None)
            self._processes.calls(thread, [("munmap", each) for each in areas])

    def remains(self, pid: ProcessId) -> GuardRemains | None:
        """What another tracer has left."""
        return find_remains(pid, self._processes.memory(pid), self._processes.abi(pid))

    def clear(self, thread: PtraceThread, remains: GuardRemains) -> None:
        """Have the stopped thread's memory be without them. Raises TargetGone, SlotsExhausted."""
        if remains.guard is not None:
            self._undo(thread, remains.guard, dict(remains.mapped))
            return
        pid = thread.pid
        with makeshift_gate(pid, self._processes.memory(pid), self._processes.abi(pid)) as makeshift:
            calls = [("munmap", each) for each in remains.mapped]
            self._processes.calls(thread, calls, gate=makeshift)

    def _undo(self, thread: PtraceThread, at: VirtAddr, mapped: Mapping[VirtAddr, int]) -> None:
        """Take our action back, unmap these, and last the guard itself."""
        pid = thread.pid
        memory, abi = self._processes.memory(pid), self._processes.abi(pid)
        gate = _gate(abi, at)
        calls = [self._set_action(at + layout.BEFORE_AT, at + layout.FOUND_AT)]
        calls += [("munmap", (start, size)) for start, size in mapped.items()]
        self._processes.calls(thread, calls, gate=gate)
        found = layout.unpack_action(memory.read(at + layout.FOUND_AT, layout.ACTION_ROOM), abi)
        if found.handler not in (layout.our_action(abi, at).handler, layout.SIG_DFL):  # it set another one meanwhile
            self._processes.calls(thread, [self._set_action(at + layout.FOUND_AT, 0)], gate=gate)
        self._processes.enter_by(pid, None)
        with makeshift_gate(pid, memory, abi) as makeshift:
            plan(memory, makeshift, at)
            self._processes.calls(thread, [("munmap", (at, layout.SIZE))], gate=makeshift)


def _gate(abi: Abi, guard: VirtAddr) -> Gate:
    """How system calls are made once a guard is there."""
    return Gate(
        abi=abi,
        insn=VirtAddr(guard + layout.gate_at(abi)),
        frame=VirtAddr(guard + layout.FRAME_AT),
        room=layout.ROWS_AT - layout.FRAME_AT,
    )
