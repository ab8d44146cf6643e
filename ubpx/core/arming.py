"""Arming and disarming: from an address to a standing trap, and back.

Everything that can fail comes before the trap's one byte is written; that write is the moment
from which hits count, and it needs no thread stopped.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from ubpx._errors import ForeignTrap, InsnRefused, MemoryFault, SlotsExhausted, StrategyRefused
from ubpx.core.footing import is_intact, looks_ours
from ubpx.core.grounds import Mapped
from ubpx.core.probepoints import Probepoint
from ubpx.core.silent import EntrySite
from ubpx.core.sites import ProbeSite, Reception, probe_site
from ubpx.core.slots import far, slot_image
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import InsnAnalysis, SlotCode, Strategy, TrapPatch
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr

SLOTTED: Final = frozenset({Strategy.BOOST, Strategy.STEP})
"""The strategies that need a slot."""
_RANKS: Final = {strategy: rank for rank, strategy in enumerate(Strategy)}

Protect = Callable[[AddressSpace, int], None]
"""Has the space guarded, with room for so many more traps, if that can be; the program may be served meanwhile."""

MapArea = Callable[[AddressSpace, Sequence[VirtAddr]], None]
"""Adds an area within reach of the addresses to the space's slot table; raises SlotsExhausted."""


@attrs.frozen(kw_only=True)
class Choice:
    """A strategy, and why it and no better one."""

    strategy: Strategy
    why: str
    without_slots: Strategy | None = None
    """What to do instead if no slot can be had."""

    out_of_reach: Strategy | None = None
    """What to do instead, before that, if a slot can be had that does not reach the program."""

    def slotless(self, error: SlotsExhausted) -> "Choice":
        """What to do instead, because of ``error``; raises it if there is nothing."""
        if self.without_slots is None:
            raise error
        return Choice(strategy=self.without_slots, why=f"no {self.strategy}: {error.reason}")

    def farther(self, error: SlotsExhausted) -> "Choice":
        """What to do in a slot that does not reach the program, because of ``error``; raises it if there is nothing."""
        if self.out_of_reach is None:
            raise error
        return Choice(strategy=self.out_of_reach, why=f"no {self.strategy}: {error.reason}")


def reach_of(analysis: InsnAnalysis, strategy: Strategy) -> tuple[VirtAddr, ...]:
    """What the slot must reach."""
    return () if strategy is Strategy.STEP and analysis.steps_anywhere else analysis.reach


def analyze(space: AddressSpace, address: VirtAddr) -> InsnAnalysis:
    """Analyse the program's own instruction at ``address``; raises InsnRefused, MemoryFault."""
    return analyze_code(space, read_code(space, address), address)


def read_code(space: AddressSpace, address: VirtAddr) -> bytes:
    """What is readable of the program's own bytes there, as many as an instruction may have; raises MemoryFault."""
    longest = space.architecture.longest_insn
    try:
        return space.memory.read(address, longest)
    except MemoryFault:
        return space.memory.read(address, min(longest, PAGE_SIZE - address % PAGE_SIZE))


def analyze_code(space: AddressSpace, code: bytes, address: VirtAddr) -> InsnAnalysis:
    """Analyse what stands at ``address``; raises InsnRefused, ForeignTrap."""
    trap = next((each for each in space.architecture.trap_forms if code.startswith(each)), None)
    if trap is not None:
        raise ForeignTrap(address, trap)
    return space.architecture.analyze(code, address)


def choose(space: AddressSpace, analysis: InsnAnalysis, forced: Strategy | None) -> Choice:
    """The best strategy that instruction, target and client allow; raises StrategyRefused, InsnRefused."""
    address = analysis.insn.address
    allowed = [each for each in analysis.strategies if space.slots_allowed or each not in SLOTTED]
    if forced is Strategy.JUMP and Strategy.BOOST in allowed:
        forced = Strategy.BOOST  # until the jump stands
    if forced is not None:
        if forced not in allowed:
            reason = analysis.refusals.get(forced, "the instruction does not allow it")
            if forced in analysis.strategies:
                reason = "slots are forbidden in this target (slots='none')"
            raise StrategyRefused(address, forced, allowed, f"{analysis.insn}: {reason}")
        return Choice(strategy=forced, why="asked for by the client")
    if not allowed:
        reason = f"it needs a slot ({' or '.join(analysis.strategies)}), and slots are forbidden in this target"
        raise InsnRefused(address, analysis.insn, reason)
    better = [f"no {each}: {why}" for each, why in analysis.refusals.items() if _RANKS[each] < _RANKS[allowed[0]]]
    slotless = next((each for each in allowed if each not in SLOTTED), None)
    return Choice(
        strategy=allowed[0],
        why="; ".join(better) or "the best there is",
        without_slots=slotless,
        out_of_reach=Strategy.STEP if analysis.steps_anywhere and allowed[0] is Strategy.BOOST else None,
    )


def revive_slot(space: AddressSpace, analysis: InsnAnalysis, strategy: Strategy) -> SlotCode | None:
    """The slot that held the same copy of the instruction before, in use again; None where none that will do is."""
    retired = space.slots.retired(analysis.insn.address)
    if (
        retired is None
        or strategy not in retired.serves
        or space.architecture.slot_code(analysis, retired.slot) != retired
    ):
        return None
    space.slots.revive(retired)
    return retired


def forsake_changed_areas(space: AddressSpace, mapped: Mapped) -> None:
    """Use no slot any more where the program has unmapped or changed something of an area."""
    for area in space.slots.areas:
        if mapped.ranges and not is_intact(area, mapped):
            space.slots.forsake(area)


def fill_slot(space: AddressSpace, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
    """Have a free slot hold the copy of the instruction. Raises InsnRefused if it is out of reach."""
    code = space.architecture.slot_code(analysis, slot)
    space.raw.patch(slot, slot_image(code, space.architecture.slot_size, space.architecture.trap_bytes))
    space.slots.occupy(code)
    return code


def enlist(space: AddressSpace, probepoint: Probepoint, reception: Reception) -> None:
    """All that must be known of a probepoint before its trap stands: clients that read memory never see one."""
    space.registry.add(probepoint)
    space.sites[probepoint.patch.reported_pc] = probe_site(probepoint, space, reception)
    space.patches[probepoint.address] = probepoint.patch


def sites_of(space: AddressSpace, probepoint: Probepoint) -> Iterator[ProbeSite]:
    """That of its trap, and of the trap that its jump leads to, or led to."""
    code = probepoint.slot_code
    for pc in (probepoint.patch.reported_pc, code.entered if code is not None else None):
        site = space.sites.get(pc) if pc is not None else None
        while isinstance(site, ProbeSite) and site.probepoint is probepoint:
            yield site
            site = site.former


class Armory:
    """Arms and disarms probepoints in any of a session's spaces. Owned by the Coordinator."""

    def __init__(self, reception: Reception, map_area: MapArea, protect: Protect) -> None:
        self._reception: Final = reception
        self._map_area: Final = map_area
        self._protect: Final = protect

    def refresh(self, space: AddressSpace, probepoint: Probepoint) -> None:
        """The probepoint's leases have changed."""
        for site in sites_of(space, probepoint):
            site.leases = probepoint.leases

    def occupy_slot(self, space: AddressSpace, analysis: InsnAnalysis, pid: ProcessId) -> SlotCode:
        """A slot that holds a copy of the instruction; raises SlotsExhausted, InsnRefused."""
        forsake_changed_areas(space, Mapped(self._reception.tracer.mappings(pid)))
        strategy = Strategy.BOOST if Strategy.BOOST in analysis.strategies else Strategy.STEP
        revived = revive_slot(space, analysis, strategy)
        if revived is not None:
            return revived
        slot = space.slots.find_free(analysis.reach)
        for _ in range(2):  # freeing retired slots may give none within reach; then there is a new area
            if slot is None:
                self._map_area(space, analysis.reach)
                slot = space.slots.find_free(analysis.reach)
        if slot is None:
            raise SlotsExhausted(pid, analysis.insn.address, f"all slots {far(space.slots.slot_reach)} are taken")
        try:
            return fill_slot(space, analysis, slot)
        except MemoryFault as error:
            raise SlotsExhausted(pid, analysis.insn.address, "the program has unmapped its slots") from error

    def set_entry_trap(self, space: AddressSpace, address: VirtAddr, *, guarded: bool) -> None:
        """Stop the new program where its libraries are mapped; ``guarded``: it survives our death until then, too."""
        if guarded:
            self._protect(space, 1)
        trap = space.architecture.trap_bytes
        original = space.raw.read(address, len(trap))
        reported_pc = VirtAddr(address + space.architecture.trap_advance)
        patch = TrapPatch(address=address, trap=trap, original=original, reported_pc=reported_pc)
        if space.guard is not None:
            space.guard.stand([(address, original)])
        traps.insert(space.raw, patch)
        space.patches[address] = patch
        space.sites[reported_pc] = EntrySite(address, space, self._reception)

    def remove_entry_trap(self, space: AddressSpace) -> None:
        """The program has reached its entry point."""
        for pc, site in tuple(space.sites.items()):
            if isinstance(site, EntrySite):
                del space.sites[pc]
                patch = space.patches.pop(site.address)
                with contextlib.suppress(MemoryFault):  # being killed: its memory goes first
                    traps.remove(space.raw, patch)
                if space.guard is not None:
                    space.guard.fall([(patch.address, patch.original)])

    def clean(self, space: AddressSpace, child: "AddressSpace") -> None:
        """Take every trap of ours out of a forked copy of ``space``."""
        space.dormant.clean(child.raw)
        ours = [
            each for each in (*space.patches.values(), *space.former.values()) if not space.dormant.knows(each.address)
        ]
        jumped = [[patch] for patch in space.registry.jumped.values()]
        traps.remove_all(child.raw, jumped)  # the child does not run: nobody writes
        traps.remove_all(child.raw, traps.spans(ours, apart=lambda _: False))
        for probepoint in space.changes.lost.values():
            if looks_ours(child.raw, probepoint):  # forked before the program put something else there
                traps.remove(child.raw, probepoint.patch)
