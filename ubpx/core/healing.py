"""What a tracer that was killed has left in a program is taken out by the next one, before that does anything else.

Whatever is found in the program's memory is the program's word, not ours: it is compared before anything is
written, and written to that program alone.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Final

from ubpx._errors import InsnRefused, MemoryFault, SlotsExhausted, TargetGone
from ubpx.core.grounds import Mapped
from ubpx.core.guard_code import GuardCode, stack_of
from ubpx.core.keeper import Keeper
from ubpx.core.ports import Remains, Tracer
from ubpx.core.sites import set_pc
from ubpx.core.slots import ORIGIN_SIZE, SlotArea, slot_image
from ubpx.core.spaces import AddressSpace, Healed, Thread, TracedProcess, Tracees
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import SlotCode, TrapPatch
from ubpx.core.values import MappedRange, VirtAddr
from ubpx.core.watchpoints import NOTHING

_log = logging.getLogger("ubpx.healing")


class Healer:
    """Takes out what others have left. Owned by the Coordinator."""

    def __init__(self, tracer: Tracer, tracees: Tracees, keeper: Keeper, guard_code: GuardCode) -> None:
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._guard_code: Final = guard_code

    def heal(self, process: TracedProcess) -> Healed | None:
        """Of a process that we have just attached to; None where there was nothing. Raises TargetGone."""
        remains = self._tracer.remains(process.pid) if self._tracer.can_guard else None
        if remains is None:
            return None
        space = process.space
        with self._keeper.quiet(space, to_its_end=True):
            self._guard_code.let_out(space, remains.guard_code)
            self._guard_code.stand_before_traps(space)
            return self._heal(space, remains, process.mappings())

    def _heal(self, space: AddressSpace, remains: Remains, mappings: Sequence[MappedRange]) -> Healed:
        standing, overwritten = self._restore(space, remains)
        masks = dict(remains.masks)
        moved = set()
        slots = _Slots(space, remains.areas)
        for thread in self._keeper.standing(space):
            if thread.tid in masks:
                self._tracer.restore_signals(thread.port, masks[thread.tid])
            self._tracer.watch(thread.port, NOTHING)
            pc = thread.pc
            code = slots.code_at(pc)
            if code is not None:
                set_pc(self._tracer, thread.port, space, code.program_pc(pc))
                moved.add(thread.tid)
            if self._put_right_stack(thread, slots, mappings):
                moved.add(thread.tid)
        try:
            self._guard_code.once_empty(
                space, remains.guard_code, lambda thread: self._tracer.clear_remains(thread.port, remains)
            )
        except SlotsExhausted as error:
            _log.warning("process %d keeps memory of a tracer that was killed: %s", space.pid, error.reason)
        return Healed(traps=standing, overwritten=overwritten, areas=len(remains.areas), threads=len(moved))

    def _restore(self, space: AddressSpace, remains: Remains) -> tuple[int, int]:
        """The program's own bytes wherever a trap stands that a row tells of; how many did, and how many others."""
        trap, advance = space.architecture.trap_bytes, space.architecture.trap_advance
        patches = [
            TrapPatch(address=address, trap=trap, original=original, reported_pc=VirtAddr(address + advance))
            for address, original in dict(remains.traps).items()
            if original != trap and not any(start <= address < start + size for start, size in remains.areas)
        ]
        standing, overwritten = 0, 0
        slots = _Slots(space, remains.areas)
        with space.memory.writing:
            standing += sum(self._restore_jump(space, slots, patch, dict(remains.traps)) for patch in patches)
            for patch in patches:
                with contextlib.suppress(MemoryFault):
                    match traps.remove(space.raw, patch):
                        case traps.Removal.RESTORED:
                            standing += 1
                        case traps.Removal.OVERWRITTEN:
                            overwritten += 1
        return standing, overwritten

    def _restore_jump(
        self, space: AddressSpace, slots: "_Slots", patch: TrapPatch, originals: Mapping[VirtAddr, bytes]
    ) -> bool:
        """If a jump to the trap in its slot stands in place of the trap: the program's own bytes."""
        jump_size = space.architecture.jump_size
        address = patch.address
        try:
            there = space.raw.read(address, jump_size)
            target = space.architecture.jump_target(there, address)
            if target is None or not slots.is_for(target, address):
                return False
            own = (originals.get(VirtAddr(address + at), b"") for at in range(jump_size))
            known = b"".join(takewhile(bool, own))
            behind = space.raw.read(address + len(known), space.architecture.longest_insn)
            insn = space.architecture.analyze(known + behind, address).insn
            size = min(insn.length, jump_size)
            if size > len(known):
                return False
            space.raw.patch(address, known[:size])
        except (InsnRefused, MemoryFault):
            return False
        return True

    def _put_right_stack(self, thread: Thread, slots: "_Slots", mappings: Sequence[MappedRange]) -> bool:
        """Whatever would bring the thread back to a slot: a signal's frame, a return address."""
        space = thread.process.space
        sp = thread.port.words[space.layout.index[space.architecture.sp_name]]
        data = stack_of(space, sp, Mapped(mappings)) if slots.areas else None
        if data is None:
            return False
        size = space.architecture.word_size
        start = sp - sp % size
        found = False
        for at, word in enumerate(memoryview(data[: len(data) // size * size]).cast("Q" if size == 8 else "I")):
            code = slots.code_at(word) if slots.may_hold(word) else None
            right = code.to_origin(VirtAddr(word)) if code is not None else None
            if right is not None:
                with contextlib.suppress(MemoryFault):
                    space.raw.patch(start + at * size, right.to_bytes(size, "little"))
                found = True
        return found


class _Slots:
    """Slots of somebody else's, as their own bytes tell of them."""

    def __init__(self, space: AddressSpace, areas: Iterable[tuple[VirtAddr, int]]) -> None:
        self._space: Final = space
        self.areas: Final = [SlotArea(start, size, space.architecture.slot_size) for start, size in areas]
        self._low: Final = min((area.start for area in self.areas), default=0)
        self._high: Final = max((area.start + area.size for area in self.areas), default=0)

    def may_hold(self, address: int) -> bool:
        """Quickly: whether it is worth asking ``code_at``."""
        return self._low <= address < self._high

    def is_for(self, target: int, origin: VirtAddr) -> bool:
        """Whether a slot of the instruction at ``origin`` is where a jump leads."""
        area = next((area for area in self.areas if target in area), None)
        if area is None:
            return False
        end = target - (target - area.start) % area.slot_size + area.slot_size
        return self._space.raw.read(end - ORIGIN_SIZE, ORIGIN_SIZE) == origin.to_bytes(ORIGIN_SIZE, "little")

    def code_at(self, address: int) -> SlotCode | None:
        """The slot's copy, if its bytes are those of a copy of what stands where it says that it comes from."""
        area = next((area for area in self.areas if address in area), None)
        if area is None:
            return None
        slot = VirtAddr(address - (address - area.start) % area.slot_size)
        architecture = self._space.architecture
        try:
            image = self._space.raw.read(slot, area.slot_size)
            origin = VirtAddr(int.from_bytes(image[-ORIGIN_SIZE:], "little"))
            analysis = architecture.analyze(self._space.raw.read(origin, architecture.longest_insn), origin)
            code = architecture.slot_code(analysis, slot)
        except (InsnRefused, MemoryFault, TargetGone):
            return None
        if code.entry is not None and code.entry < len(image):  # a program that met a trap has opened the way
            image = image[: code.entry] + architecture.trap_bytes + image[code.entry + len(architecture.trap_bytes) :]
        return code if slot_image(code, area.slot_size, architecture.trap_bytes) == image else None
