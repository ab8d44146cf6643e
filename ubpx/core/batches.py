"""Arming and disarming many places at once: one pass of analysis, slots and traps in spans, all or nothing.

What is done for each place here may be done a million times: no look at other places, no hook, no
request to the tracer.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Final

import attrs

from ubpx._errors import (
    AddressRefused,
    ForeignTrap,
    InsnRefused,
    MemoryFault,
    SlotsExhausted,
    StrategyRefused,
    UbpxError,
)
from ubpx.core import arming, boundaries, footing
from ubpx.core.grounds import Mapped
from ubpx.core.ports import Refusal
from ubpx.core.probepoints import Probepoint
from ubpx.core.sites import Reception, TombSite
from ubpx.core.slots import AREA_SIZE, far, slot_image
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import InsnAnalysis, SlotCode, Strategy
from ubpx.core.values import PAGE_SIZE, MappedRange, Place, ProcessId, VirtAddr

_WINDOW: Final = 1 << 14
"""Bytes of code that are read at once."""
MapArea = Callable[[AddressSpace, Sequence[VirtAddr], int], None]
"""Adds an area of so many bytes within reach of the addresses, or frees old slots; raises SlotsExhausted.

The program is served meanwhile.
"""


TakeOutJumps = Callable[[AddressSpace, Sequence[Probepoint]], None]
"""Has traps stand in place of the jumps of these."""

_CANNOT_BE_PROBED: Final = (AddressRefused, InsnRefused, ForeignTrap, StrategyRefused)
"""What may be wrong with a place itself."""


@attrs.define
class Places:
    """What a client's specs or glob lead to. Owned by whoever arms them."""

    skip_refused: bool
    """What cannot be probed is left out, and kept in ``refused``; else it is raised."""
    places: dict[VirtAddr, tuple[Place, str | None]] = attrs.field(factory=dict, init=False)
    """Each address once, in the client's order, and by which spec it can be found again."""
    refused: list[Refusal] = attrs.field(factory=list, init=False)
    others: bool = attrs.field(default=False, init=False)
    """Whether there are places elsewhere that can be probed."""

    def refuse(self, name: str, error: UbpxError) -> None:
        """One of them cannot be probed."""
        if not self.skip_refused:
            error.add_note(f"while probing {name}")
            raise error
        self.refused.append(Refusal(name, error))

    def check_any(self) -> None:
        """Raises the first refusal if nothing else is left."""
        if not (self.places or self.others) and self.refused:
            raise self.refused[0].error


def sort_out(
    wanted: str | Sequence[str | int], answers: Sequence[Place | Refusal], *, skip_refused: bool, others: bool = False
) -> Places:
    """What a resolver answered to a glob, or to each of the specs and addresses. Raises the first refusal.

    ``others``: there are more answers, which are none.
    """
    found = Places(skip_refused)
    found.others = others
    specs: Iterable[str | int | None] = repeat(None) if isinstance(wanted, str) else wanted
    for spec, answer in zip(specs, answers, strict=False):
        if isinstance(answer, Refusal):
            found.refuse(answer.name, answer.error)
        elif answer.address not in found.places:  # aliases are one
            again = answer.name if spec is None else spec if isinstance(spec, str) else None
            found.places[answer.address] = answer, again
    found.check_any()
    return found


@attrs.frozen
class Prospect:
    """A place that can be probed, and how."""

    address: VirtAddr
    analysis: InsnAnalysis
    choice: arming.Choice


def survey(
    space: AddressSpace, fresh: Sequence[Place], found: Places, strategy: Strategy | None, *, assume_boundary: bool
) -> list[Prospect]:
    """Analyse the program's own instructions at the ``fresh`` places of those found, ascending.

    ``strategy`` is the one that the client insists on. Raises MemoryFault, and what ``found`` does not skip.
    """
    unproved = {} if assume_boundary else boundaries.unproved(space, fresh)
    prospects = []
    choices: dict[tuple[int, int], arming.Choice] = {}  # by what it depends on; the prospects keep that alive
    for place, code in _read_code(space, sorted(fresh, key=lambda each: each.address)):
        address = place.address
        try:
            if address in unproved:
                raise unproved[address]
            analysis = arming.analyze_code(space, code, address)
            boundaries.check_interruptible(space, place, analysis)
            alike = id(analysis.strategies), id(analysis.refusals)
            choice = choices.get(alike) or arming.choose(space, analysis, strategy)
            choices[alike] = choice
            prospects.append(Prospect(address, analysis, choice))
        except _CANNOT_BE_PROBED as error:
            found.refuse(place.name, error)
            del found.places[address]
    found.check_any()
    return prospects


def _read_code(space: AddressSpace, places: Sequence[Place]) -> Iterator[tuple[Place, bytes]]:
    """The bytes at each of the ascending places, as many as an instruction may have."""
    longest = space.architecture.longest_insn
    first = 0
    while first < len(places):
        start, last = places[first].address, first
        while last + 1 < len(places) and places[last + 1].address < start + _WINDOW:
            last += 1
        window = places[first : last + 1]
        try:
            code = space.memory.read(start, window[-1].address + longest - start)
        except MemoryFault:  # a hole, or the mapping's end: each by itself
            yield from ((place, arming.read_code(space, place.address)) for place in window)
        else:
            yield from ((place, code[at : at + longest]) for place in window for at in (place.address - start,))
        first = last + 1


class Batches:
    """Arms and disarms any number of probepoints in any of a session's spaces. Owned by the Coordinator."""

    def __init__(
        self, reception: Reception, map_area: MapArea, protect: arming.Protect, take_out_jumps: TakeOutJumps
    ) -> None:
        self._take_out_jumps: Final = take_out_jumps
        self._reception: Final = reception
        self._map_area: Final = map_area
        self._protect: Final = protect

    def arm(self, space: AddressSpace, prospects: Sequence[Prospect], pid: ProcessId) -> bool:
        """Make probepoints without leases for the ascending prospects, and let all of their traps stand.

        False: the program was served for a slot area, and somebody has probed one of the places meanwhile.
        Raises SlotsExhausted, InsnRefused, ForeignTrap, NotAnInstruction, MemoryFault. Then, as with
        False, nothing is left behind but areas.
        """
        for each in prospects:
            if each.address in space.patches:  # the temporary trap at a new program's entry point
                raise ForeignTrap(each.address, space.architecture.trap_bytes)
        self._protect(space, len(prospects))
        mapped = Mapped(self._reception.tracer.mappings(space.pid))
        arming.forsake_changed_areas(space, mapped)
        choices, codes = self._occupy_slots(space, prospects, pid)
        if any(space.registry.at(each.address) for each in prospects):
            self._retire(space, codes)
            return False
        made = [
            Probepoint(
                space.identity,
                each.analysis,
                space.architecture.trap(each.analysis),
                choice.strategy,
                why=choice.why,
                slot_code=codes.get(each.address),
            )
            for each, choice in zip(prospects, choices, strict=True)
        ]
        self._raise_traps(space, made, mapped)
        return True

    def _raise_traps(self, space: AddressSpace, probepoints: Sequence[Probepoint], mapped: Mapped) -> None:
        space.grounds.note((each.address for each in probepoints), mapped, space.memory)
        for probepoint in probepoints:
            arming.enlist(space, probepoint, self._reception)
            space.dormant.note(probepoint.address, probepoint.patch.original)
        if space.guard is not None:
            space.guard.stand([(each.address, each.patch.original) for each in probepoints])
        with space.memory.writing:
            try:
                traps.insert_all(space.raw, self._groups(probepoints, mapped.ranges))
            except BaseException:
                self._bury(space, probepoints)  # some may have stood for a moment
                raise
        for probepoint in probepoints:
            space.former.pop(probepoint.address, None)
            space.changes.lost.pop(probepoint.address, None)

    def disarm(self, space: AddressSpace, probepoints: Sequence[Probepoint]) -> list[Probepoint]:
        """Take out those traps that still are ours; those in whose place something else stands, and stays."""
        self._take_out_jumps(space, probepoints)
        mappings = self._reception.tracer.mappings(space.pid) if probepoints else ()
        with space.memory.writing:
            mapped = Mapped(mappings)
            foreign = footing.foreign(space, probepoints, mapped) if mappings else frozenset()
            ours = [each for each in probepoints if each.address not in foreign]
            gone = {patch.address for patch in traps.remove_all(space.raw, self._groups(ours, mappings))} | foreign
            self._bury(space, probepoints)
            dying = bool(gone) and footing.is_dying(space, mapped)  # then a child may have a copy
            lost = [] if dying else [probepoint for probepoint in probepoints if probepoint.address in gone]
            for each in lost:
                space.former.pop(each.address, None)
                space.changes.lost[each.address] = each
            if space.guard is not None and gone:
                space.guard.forget([each.address for each in lost])
        return lost

    def _groups(self, probepoints: Sequence[Probepoint], mappings: Sequence[MappedRange]) -> Sequence[traps.Span]:
        """Traps that can be written at once; alone those in memory that the program itself may write."""
        shared = [each for each in mappings if "w" in each.permissions or each.permissions.endswith("s")]
        patches = (probepoint.patch for probepoint in probepoints)
        return list(traps.spans(patches, apart=lambda page: any(page in each for each in shared)))

    def _bury(self, space: AddressSpace, probepoints: Sequence[Probepoint]) -> None:
        """Their traps stand no more; threads that have run into one already are sent back."""
        for probepoint in probepoints:
            patch = probepoint.patch
            space.registry.remove(probepoint)
            space.changes.amended.discard(patch.address)
            space.patches.pop(patch.address, None)
            for site in arming.sites_of(space, probepoint):
                site.leases = ()  # a thread that has arrived already, and waits for its turn, meets nobody
            if space.dormant.knows(patch.address):
                space.sites.pop(patch.reported_pc, None)  # that of a dormant trap is made when somebody meets it
            else:
                space.former[patch.address] = patch
                space.sites[patch.reported_pc] = TombSite(patch.address, space, self._reception)
            if probepoint.slot_code is not None:
                space.slots.retire(probepoint.slot_code)
        if space.guard is not None:
            space.guard.fall([(each.address, each.patch.original) for each in probepoints])

    # Slots --------------------------------------------------------------------------------

    def _occupy_slots(
        self, space: AddressSpace, prospects: Sequence[Prospect], pid: ProcessId
    ) -> tuple[Sequence[arming.Choice], Mapping[VirtAddr, SlotCode]]:
        """The slots that hold the copies, by the instruction's address; and what is chosen with what could be had."""
        choices: list[arming.Choice] = []
        fresh: dict[VirtAddr, SlotCode] = {}
        revived: dict[VirtAddr, SlotCode] = {}
        barren: VirtAddr | None = None  # no area can be had near it: that is not tried for each
        try:
            for number, each in enumerate(prospects):
                choices.append(each.choice)
                if each.choice.strategy not in arming.SLOTTED:
                    continue
                code = arming.revive_slot(space, each.analysis, each.choice.strategy)
                if code is not None:
                    revived[each.address] = code
                    continue
                try:
                    full = barren is not None and each.address - barren < _neighbourhood(space)
                    slot = self._free_slot(space, prospects, number, pid, tries=0 if full else 2)
                except SlotsExhausted as error:
                    barren = each.address if not full else barren
                    far_slot = self._far_slot(space, each.choice)
                    choices[-1] = each.choice.slotless(error) if far_slot is None else each.choice.farther(error)
                    if far_slot is None:
                        continue
                    slot = far_slot
                fresh[each.address] = code = space.architecture.slot_code(each.analysis, slot)
                space.slots.occupy(code)
            _write_slots(space, fresh.values())
        except BaseException:
            for code in fresh.values():
                space.slots.vacate(code)
            self._retire(space, revived)
            raise
        return choices, fresh | revived

    def _free_slot(
        self, space: AddressSpace, prospects: Sequence[Prospect], number: int, pid: ProcessId, *, tries: int
    ) -> VirtAddr:
        """A slot within reach, if need be in a new area; ``tries``: 2, or 0 where no area can be had."""
        reach = _reach(prospects[number])
        slot = space.slots.find_free(reach)
        for _ in range(tries):  # freeing retired slots may give none within reach; then there is a new area
            if slot is None:
                self._make_room(space, prospects, number)
                slot = space.slots.find_free(reach)
        if slot is None:
            raise SlotsExhausted(pid, prospects[number].address, f"all slots {far(space.slots.slot_reach)} are taken")
        return slot

    def _make_room(self, space: AddressSpace, prospects: Sequence[Prospect], number: int) -> None:
        """One area for this instruction and all that follow it nearby; where that does not fit, one for this one."""
        low, high, count = _neighbours(prospects, number, _neighbourhood(space))
        wanted = -(-count * space.architecture.slot_size // PAGE_SIZE) * PAGE_SIZE
        try:
            self._map_area(space, (low, high) if high else (), max(wanted, AREA_SIZE))
        except SlotsExhausted:
            self._map_area(space, _reach(prospects[number]), AREA_SIZE)

    def _far_slot(self, space: AddressSpace, choice: arming.Choice) -> VirtAddr | None:
        """One anywhere, if need be in a new area; None where that does not help, or none can be had."""
        if choice.out_of_reach is None:
            return None
        slot = space.slots.find_free(())
        if slot is None:
            with contextlib.suppress(SlotsExhausted):
                self._map_area(space, (), AREA_SIZE)
                slot = space.slots.find_free(())
        return slot

    def _retire(self, space: AddressSpace, codes: Mapping[VirtAddr, SlotCode]) -> None:
        for code in codes.values():
            space.slots.retire(code)


def _neighbourhood(space: AddressSpace) -> int:
    """Places no further apart than this, in bytes, share an area."""
    return space.architecture.slot_reach // 2


def _reach(prospect: Prospect) -> tuple[VirtAddr, ...]:
    return arming.reach_of(prospect.analysis, prospect.choice.strategy)


def _neighbours(prospects: Sequence[Prospect], number: int, neighbourhood: int) -> tuple[VirtAddr, VirtAddr, int]:
    """What the slots of this and of those that follow it nearby must reach, lowest and highest, and how many they are.

    (0, 0) where all of them may lie anywhere.
    """
    low, high, count = VirtAddr(0), VirtAddr(0), 0
    for each in islice(prospects, number, None):
        if each.choice.strategy not in arming.SLOTTED:
            continue
        reach = _reach(each)
        if reach:
            lower, higher = min(low or reach[0], *reach), max(high, *reach)
            if count and higher - lower > neighbourhood:
                break
            low, high = lower, higher
        count += 1
    return low, high, count


def _write_slots(space: AddressSpace, codes: Iterable[SlotCode]) -> None:
    """Each run of adjacent slots by one write."""
    size, filler = space.architecture.slot_size, space.architecture.trap_bytes
    run: list[bytes] = []
    start = VirtAddr(0)
    for code in sorted(codes, key=lambda each: each.slot):
        if run and code.slot != start + len(run) * size:
            space.raw.patch(start, b"".join(run))
            run = []
        if not run:
            start = code.slot
        run.append(slot_image(code, size, filler))
    if run:
        space.raw.patch(start, b"".join(run))
