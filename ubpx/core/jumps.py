"""Jumps in place of traps: probepoints that threads come by often have one, until something is in its way.

A jump leads to a trap in the probepoint's slot, behind which the thread runs on as it is. It is written and taken
out in one write while no thread of the memory runs.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from ubpx._errors import InsnRefused, MemoryFault, SlotsExhausted, TargetGone
from ubpx.core import arming
from ubpx.core.boosts import Boosts, gains
from ubpx.core.keeper import Keeper
from ubpx.core.ports import Tracer
from ubpx.core.probepoints import Probepoint
from ubpx.core.sites import JumpSite, Reception, probe_site
from ubpx.core.slots import page_within
from ubpx.core.spaces import AddressSpace, Tracees
from ubpx.core.ubp.plans import SlotCode, Strategy, TrapPatch
from ubpx.core.values import MOST_JUMP_PAGES, PAGE_SIZE, VirtAddr

HOT: Final = 500
"""Hits between two looks that are worth a stop of all threads."""
_ANYWHERE: Final = 1 << 31
"""A jump with more targets than this can lead to any area."""
_MOST_AT_ONCE: Final = 64
"""Jumps that are made during one stop."""
_UNMAPPED: Final = "its code is not mapped any more"
_PROMOTED: Final = frozenset({Strategy.BOOST, Strategy.EMULATE})


@attrs.frozen
class _Plan:
    """A jump that can be made."""

    code: SlotCode
    jump: TrapPatch
    relied_on: range
    fresh: bool
    """The copy is not in its slot yet."""


class Jumps:
    """Makes and takes out jumps in any of a session's spaces. Owned by the Coordinator."""

    def __init__(
        self, tracer: Tracer, tracees: Tracees, keeper: Keeper, armory: arming.Armory, reception: Reception
    ) -> None:
        self.enabled = True
        """Whether probepoints that are hot get jumps by themselves."""
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._reception: Final = reception
        self._boosts: Final = Boosts(armory, reception)

    # Making -------------------------------------------------------------------------------

    def look(self) -> None:
        """Have those probepoints jump that threads have come by often since the last look."""
        if not self.enabled:
            return
        for space in {process.space for process in self._tracees.processes.values()}:
            hot = [each for each in space.registry if _has_become_hot(each) and not each.is_forced]
            if hot and self._may(space):
                with contextlib.suppress(TargetGone):  # its end follows
                    self.make(space, [each for each in hot if each.jumpless is None][:_MOST_AT_ONCE])
                    emulated = [each for each in hot if each.jumpless is not None and gains(space, each)]
                    for each in emulated[:_MOST_AT_ONCE]:
                        self._boosts.make(space, each)

    def _may(self, space: AddressSpace) -> bool:
        """Not while somebody would run that cannot be stopped."""
        alone = len(self._tracees.sharing(space)) == 1 and not space.vforked
        return alone and space.slots_allowed and not (space.taking_turns or space.quiesced)

    def make(self, space: AddressSpace, probepoints: Sequence[Probepoint]) -> None:
        """Have these jump, as far as they can; ``jumpless`` says why one does not. Raises TargetGone."""
        wanted = []
        for each in probepoints:
            each.jumpless = self._refusal(space, each) or self._obstacle(space, each)
            if each.jumpless is None:
                wanted.append(each)
        if not wanted:
            return
        self._keeper.protect(space, (space.architecture.jump_size + 1) * len(wanted))
        with self._keeper.quiet(space):
            for each in wanted:
                if space.registry.at(each.address) is each and each.leases and each.jump is None:
                    try:
                        self._make(space, each)
                    except (InsnRefused, SlotsExhausted) as error:
                        each.jumpless = error.reason
                    except MemoryFault:
                        each.jumpless = _UNMAPPED

    def _refusal(self, space: AddressSpace, probepoint: Probepoint) -> str | None:
        """Why it must not jump, whatever its neighbours are."""
        ground = space.grounds.of(probepoint.address)
        if not self._tracer.can_jump:
            return "the tracer does not follow jumps"
        if probepoint.armed_by not in _PROMOTED or Strategy.BOOST not in probepoint.analysis.strategies:
            return f"{probepoint.armed_by} is the only way past it"
        if ground is None or ground.rewritable:
            return "the program may change this code at any moment"
        if not self._may(space):
            return "children share the memory, or slots are forbidden"
        return None

    def _obstacle(self, space: AddressSpace, probepoint: Probepoint) -> str | None:
        """Why it cannot jump where it is, found without stopping anybody."""
        try:
            targets, _ = self._targets(space, probepoint)
            entry = self._entry(space, probepoint)
            code, reach = probepoint.slot_code, probepoint.analysis.reach
            starts = range(targets.start - entry, targets.stop - entry)
            reached = (code is not None and code.slot in starts) or len(starts) > _ANYWHERE
            if not reached and space.slots.find_free_within(starts, reach) is None:
                self._page(space, probepoint, starts)
        except (InsnRefused, SlotsExhausted) as error:
            return error.reason
        except MemoryFault:
            return _UNMAPPED
        return None

    def _page(self, space: AddressSpace, probepoint: Probepoint, starts: range) -> VirtAddr:
        """Where another page can be mapped in which a slot begins at one of ``starts``; raises SlotsExhausted."""
        if space.slots.jump_pages >= MOST_JUMP_PAGES:
            raise SlotsExhausted(space.pid, probepoint.address, f"the {MOST_JUMP_PAGES} pages for jumps are taken")
        architecture = space.architecture
        page = page_within(
            self._tracer.mappings(space.pid), starts, probepoint.analysis.reach,
            slot_size=architecture.slot_size, slot_reach=architecture.slot_reach, limit=architecture.address_limit,
        )  # fmt: skip
        if page is None:
            raise SlotsExhausted(space.pid, probepoint.address, "something else is mapped where its jump can lead")
        return page

    def _make(self, space: AddressSpace, probepoint: Probepoint) -> None:
        plan = self._plan(space, probepoint)
        address, jump = probepoint.address, plan.jump
        there = space.raw.read(address, len(jump.trap))
        trap = probepoint.patch.trap
        inside = range(address + 1, address + len(there))
        if there != trap + jump.original[len(trap) :] or any(pc in inside for pc in self._keeper.counters(space)):
            return  # it is looked at again
        if plan.fresh:
            arming.fill_slot(space, probepoint.analysis, plan.code.slot)
        former, probepoint.slot_code = probepoint.slot_code, plan.code
        if former is not None and former is not plan.code:
            space.slots.retire(former)
        if space.guard is not None:  # it opens the way through the slot; the jump is for whoever heals
            space.guard.stand(
                [
                    *_tail(jump),
                    (VirtAddr(jump.reported_pc - space.architecture.trap_advance), space.architecture.nop_bytes),
                ]
            )
        space.registry.change_jump(probepoint, jump, plan.relied_on)
        site = JumpSite(probepoint, space, self._reception)
        site.leases = probepoint.leases
        space.sites[jump.reported_pc] = site
        space.memory.make_way = lambda addresses: self._make_way(space, addresses)
        with space.memory.writing:
            space.patches[address] = jump
            space.raw.patch(address, jump.trap)
        probepoint.why = f"threads come by often: a jump instead of {probepoint.armed_by}'s trap"

    def _targets(self, space: AddressSpace, probepoint: Probepoint) -> tuple[range, bytes]:
        """Where its jump can lead, and with which bytes behind it; raises InsnRefused, MemoryFault."""
        analysis, address = probepoint.analysis, probepoint.address
        insn = analysis.insn
        longest = space.architecture.jump_size
        size = min(insn.length, longest)
        if address % PAGE_SIZE + longest > PAGE_SIZE:
            raise InsnRefused(address, insn, "a jump there would lie in two pages")
        behind = range(address + 1, address + longest)
        if space.patches.overlapping(behind.start, len(behind)) or space.dormant.first_in(behind.start, len(behind)):
            raise InsnRefused(address, insn, "a neighbour is probed")
        following = space.raw.read(address + size, longest - size) if size < longest else b""
        return space.architecture.jump_targets(analysis, following), following

    def _entry(self, space: AddressSpace, probepoint: Probepoint) -> int:
        """Offset in its slot of the trap that its jump leads to; raises InsnRefused."""
        analysis = probepoint.analysis
        entry = space.architecture.slot_code(analysis, analysis.insn.address).entry
        if entry is None:
            raise InsnRefused(analysis.insn.address, analysis.insn, "its copy must be gone to from a trap")
        return entry

    def _plan(self, space: AddressSpace, probepoint: Probepoint) -> _Plan:
        """Raises InsnRefused, SlotsExhausted, MemoryFault."""
        analysis, address = probepoint.analysis, probepoint.address
        targets, following = self._targets(space, probepoint)
        entry = self._entry(space, probepoint)
        code = probepoint.slot_code
        fresh = code is None or code.slot + entry not in targets
        if code is None or fresh:
            code = space.architecture.slot_code(analysis, self._find_slot(space, probepoint, targets, entry))
        jump = space.architecture.jump(analysis, VirtAddr(code.slot + entry), following)
        if space.architecture.trap_bytes in jump.trap:  # whoever looks for traps that were left would take it for one
            raise InsnRefused(address, analysis.insn, "its jump would look like a trap")
        relied_on = range(address + len(jump.trap), address + space.architecture.jump_size)
        return _Plan(code, jump, relied_on, fresh)

    def _find_slot(self, space: AddressSpace, probepoint: Probepoint, targets: range, entry: int) -> VirtAddr:
        starts = range(targets.start - entry, targets.stop - entry)
        reach = probepoint.analysis.reach
        slot = space.slots.find_free_within(starts, reach)
        if slot is None and len(starts) > _ANYWHERE:
            self._keeper.map_area(space, reach)
        elif slot is None:
            self._keeper.map_page(space, self._page(space, probepoint, starts))
            space.slots.jump_pages += 1
        slot = slot or space.slots.find_free_within(starts, reach)
        if slot is None:
            raise SlotsExhausted(space.pid, probepoint.address, "no slot can lie where its jump can lead")
        return slot

    # Taking out ---------------------------------------------------------------------------

    def take_out(self, space: AddressSpace, probepoints: Iterable[Probepoint], why: str | None = None) -> None:
        """Have traps stand in place of the jumps of these; ``why``: they get none again."""
        jumping = [each for each in probepoints if each.jump is not None]
        if not jumping:
            return
        if space.vforked and not space.quiesced:  # a child must run on
            self._take_out(space, jumping, why)
            return
        with contextlib.suppress(TargetGone), self._keeper.quiet(space):
            self._take_out(space, [each for each in jumping if each.jump is not None], why)

    def make_way(self, space: AddressSpace, address: VirtAddr, strategy: Strategy | None = None) -> None:
        """Before something is leased there; ``strategy``: that somebody insists on."""
        if space.registry.jumped:
            near = [each for each in space.registry.jumps_near(range(address, address + 1)) if each.address != address]
            self.take_out(space, near, "a neighbour is probed")
        here = space.registry.at(address)
        if here is not None and strategy not in (None, Strategy.JUMP):
            self.take_out(space, (here,))
            if strategy is Strategy.EMULATE:
                self._boosts.take_back(space, here)

    def clear(self, space: AddressSpace, addresses: range) -> None:
        """Before code is probed as a whole; the program may be served meanwhile. What is hot still may jump again."""
        while near := space.registry.jumps_near(addresses):
            self.take_out(space, near)

    def _make_way(self, space: AddressSpace, addresses: range) -> None:
        """Before a client writes there, from any thread."""
        if any(each.jump is not None for each in space.registry.relying_on(addresses)):
            self._keeper.dispatch(
                lambda: self.take_out(space, space.registry.relying_on(addresses), "a client wrote behind it")
            )

    def _take_out(self, space: AddressSpace, jumping: Sequence[Probepoint], why: str | None) -> None:
        for each in jumping:
            jump, trap = each.standing, each.patch.trap
            with space.memory.writing:
                with contextlib.suppress(MemoryFault):
                    if space.raw.read(each.address, len(jump.trap)) == jump.trap:
                        if space.vforked:
                            space.raw.patch(each.address, trap)
                        space.raw.patch(each.address, trap + jump.original[len(trap) :])
                if space.guard is not None:
                    space.guard.fall(_tail(jump))
                space.registry.change_jump(each, None, range(0))
                space.patches[each.address] = each.patch
            site = probe_site(each, space, self._reception)
            site.leases = each.leases
            space.sites[each.patch.reported_pc] = site
            each.jumpless = why
            each.why = f"its jump was taken out: {why}" if why else "the best there is"


def _tail(jump: TrapPatch) -> list[tuple[VirtAddr, bytes]]:
    """Its bytes but the first: where, and what the program has there."""
    return [(VirtAddr(jump.address + at), jump.original[at : at + 1]) for at in range(1, len(jump.original))]


def _has_become_hot(probepoint: Probepoint) -> bool:
    hits = sum(lease.hits for lease in probepoint.leases)
    fresh, probepoint.seen_hits = hits - probepoint.seen_hits, hits
    return fresh >= HOT and probepoint.jump is None
