"""Who owns dormant traps: makes a probepoint of one when a thread meets it, or when somebody asks about it.

In the tracer thread. What a thread meets is made at its stop, where the program cannot be served: slots lie ready
for that. Where they have run out, the thread is sent back to the trap after an area was mapped at the end of its
arrival.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Protocol

import attrs

from ubpx._errors import (
    ForeignTrap,
    InsnRefused,
    MemoryFault,
    SlotsExhausted,
    StrategyRefused,
    TargetGone,
)
from ubpx.core import arming
from ubpx.core.clients import Client
from ubpx.core.ports import Site, TracedThread
from ubpx.core.probepoints import Handler, Lease, LeaseState, Probepoint
from ubpx.core.requests import Request
from ubpx.core.sites import Reception, TombSite, set_pc
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.ubp.plans import InsnAnalysis, SlotCode
from ubpx.core.values import VirtAddr

_RESERVE_SIZE: Final = 4 << 20
"""Bytes of slots that are mapped at once."""
_FEW: Final = 64
"""Slots: if fewer are left, the next area is mapped as soon as the program can be served."""
_FEW_SIZE: Final = 16 * 64
"""Bytes: whether few slots are left is looked at once for so many of them."""
_CODE: Final = Request(strategy=None, exclusive=False, priority=0, assume_boundary=True, inherited=False)


@attrs.define(eq=False)
class CodeProbe:
    """What a client gets that probes code as a whole. Owned by its CodeProbes; changed in the tracer thread alone."""

    client: Client
    handler: Handler | None
    first_hits: int | None
    """So often a probe is hit, then it ends; None: it stays."""
    priority: int
    instructions: int = 0
    """How many the code has; each of them is probed or refused."""
    refused: Counter[str] = attrs.field(factory=Counter)
    """Why, and how many."""
    strategies: Counter[str] = attrs.field(factory=Counter)
    """Of those that somebody has arrived at."""
    undecoded: int = 0
    """Bytes of the ranges that are no instruction, or come behind one that is none."""
    hits: int = 0
    state: LeaseState = LeaseState.ARMED

    @property
    def probed(self) -> int:
        """How many instructions have or had a trap."""
        return self.instructions - sum(self.refused.values())

    @property
    def reached(self) -> int:
        """How many somebody has arrived at."""
        return sum(self.strategies.values())

    def __repr__(self) -> str:
        return f"<code of {self.client.name!r}: {self.probed} instructions probed, {self.hits} hits>"


Verdicts = dict[Hashable, str]
"""By the kind of instruction: why it is refused, or one of the two below."""
SLEEPS: Final = ""
SLOT_NEEDED: Final = "there must be a slot for it"


def open_tombs(space: AddressSpace, addresses: Iterable[VirtAddr]) -> None:
    """What threads met where traps were taken out must not answer for those that come there now."""
    buried = space.former.keys() | space.changes.lost.keys()
    for address in buried.intersection(addresses) if buried else ():
        pc = address + space.architecture.trap_advance
        if isinstance(space.sites.get(pc), TombSite):
            del space.sites[pc]
        space.changes.lost.pop(address, None)


def judge(space: AddressSpace, code: bytes, address: VirtAddr) -> str:
    """What is to become of an instruction that is probed, as all of its kind."""
    try:
        choice = arming.choose(space, arming.analyze_code(space, code, address), None)
    except (InsnRefused, ForeignTrap) as error:
        return reason_of(error)
    return SLOT_NEEDED if choice.strategy in arming.SLOTTED and choice.without_slots is None else SLEEPS


class Services(Protocol):
    """What sleepers need of whoever made them."""

    reception: Reception

    def map_area(self, space: AddressSpace, reach: Sequence[VirtAddr], size: int) -> None: ...
    def lease(self, sleeper: "Sleeper", address: VirtAddr) -> Lease: ...
    def end_lease(self, process: TracedProcess, lease: Lease) -> bool: ...


class _WaitingSite:
    """A dormant trap without a slot for its copy: the thread is sent back, and a slot made meanwhile."""

    __slots__ = ("_refill", "address", "certain", "landing", "landing_word", "reception", "space", "watchful")
    in_slot = False
    express = None

    def __init__(
        self, address: VirtAddr, space: AddressSpace, reception: Reception, refill: Callable[[], None]
    ) -> None:
        self.address: Final = address
        self.space: Final = space
        self.reception: Final = reception
        self.landing: VirtAddr | None = None
        self.landing_word: Any = None
        self.watchful = 3
        self.certain = False
        self._refill: Final = refill

    def make_safe(self, thread: TracedThread) -> bool:
        """Not yet there: it runs into the trap again."""
        set_pc(self.reception.tracer, thread, self.space, self.address)
        return True

    def arrive(self, thread: TracedThread) -> bool:
        """Nothing is counted; when this is over there is a slot, or none can be had."""
        self.reception.after_hit.append(self._refill)
        self.reception.conclude(thread, self, [])
        return False


class Sleeper:
    """The traps of one CodeProbe in one memory (see ``dormant.Sleeper``). Owned by its CodeProbes."""

    def __init__(
        self, owner: Services, probe: CodeProbe, process: TracedProcess, *, age: int, request: Request = _CODE
    ) -> None:
        self.probe: Final = probe
        self.process: Final = process
        self.space: Final = process.space
        self.age: Final = age
        """Of its leases, whenever they are made."""
        self.request: Final = attrs.evolve(request, priority=probe.priority)
        self.leases: Final[dict[Lease, None]] = {}
        """Those that were woken and have not ended."""
        self._owner: Final = owner
        self._barren = False
        """No area can be had any more."""
        self._lacking: tuple[VirtAddr, Sequence[VirtAddr]] = VirtAddr(0), ()
        """For which instruction there was no slot, and what a slot for it must reach."""
        self._slotless: Final[set[VirtAddr]] = set()
        """For these no slot can be had."""

    # Waking -------------------------------------------------------------------------------

    def meet(self, address: VirtAddr) -> Site | None:
        """See ``dormant.Sleeper``."""
        space = self.space
        try:
            if not self._rouse(address):
                return _WaitingSite(address, space, self._owner.reception, self._find_room)
        except MemoryFault:  # being killed: its memory goes first
            return None
        return space.sites[address + space.architecture.trap_advance]

    def wake(self, address: VirtAddr) -> None:
        """See ``dormant.Sleeper``."""
        while address in self.space.dormant and not self._rouse(address):
            self._find_room()

    def _rouse(self, address: VirtAddr) -> bool:
        """Make the probepoint; False: a slot is needed for that, and there is none."""
        space = self.space
        try:
            analysis = arming.analyze(space, address)
            choice = arming.choose(space, analysis, None)
            code = None
            if choice.strategy in arming.SLOTTED:
                code = arming.revive_slot(space, analysis, choice.strategy) or self._slot(analysis)
                if code is None:
                    if not self._barren and address not in self._slotless:
                        self._lacking = address, analysis.reach
                        return False
                    choice = choice.slotless(SlotsExhausted(space.pid, address, "no area can be had"))
        except (InsnRefused, ForeignTrap, StrategyRefused, SlotsExhausted) as error:
            self._give_up(address, reason_of(error))
            return True
        patch = space.architecture.trap(analysis)
        probepoint = Probepoint(space.identity, analysis, patch, choice.strategy, why=choice.why, slot_code=code)
        arming.enlist(space, probepoint, self._owner.reception)
        space.dormant.settle(address)
        self.grant(address)
        return True

    def _slot(self, analysis: InsnAnalysis) -> SlotCode | None:
        """A slot that holds the copy; None if none is free."""
        space = self.space
        slot = space.slots.find_free(analysis.reach)
        if slot is None:
            return None
        code = arming.fill_slot(space, analysis, slot)
        if not self._barren and slot % _FEW_SIZE == 0 and space.slots.room(analysis.reach) < _FEW:
            self._owner.reception.after_hit.append(lambda: self.make_room(analysis.reach, _FEW))
        return code

    def _give_up(self, address: VirtAddr, reason: str) -> None:
        """It cannot be probed after all: the program goes on as if nothing had stood there."""
        space = self.space
        found = space.dormant.cover(address, 1)
        if found is not None:
            space.raw.patch(address, found[0])
        space.dormant.settle(address)
        self.probe.refused[reason] += 1

    def _find_room(self) -> None:
        """Have a slot for the instruction that had none, or know that there will be none."""
        address, reach = self._lacking
        for _ in range(2):  # freeing retired slots may give none within reach; then there is a new area
            self.make_room(reach, 1)
        if self.space.slots.find_free(reach) is None:
            self._slotless.add(address)

    def make_room(self, reach: Sequence[VirtAddr], slots: int) -> None:
        """Map an area unless there is room for so many slots; the program may be served meanwhile."""
        space = self.space
        if self._barren or not space.slots_allowed or space.slots.room(reach) >= slots:
            return
        try:
            self._owner.map_area(space, reach, _RESERVE_SIZE)
        except (SlotsExhausted, TargetGone):
            self._barren = True

    # Leases -------------------------------------------------------------------------------

    def grant(self, address: VirtAddr) -> None:
        """Share what stands there."""
        self.leases[self._owner.lease(self, address)] = None

    def arrived(self, hit: Any) -> object:
        """The handler of each lease."""
        probe, lease = self.probe, hit.lease
        if probe.first_hits is not None and lease.hits >= probe.first_hits:
            if not self._owner.end_lease(self.process, lease):
                lease.hits -= 1  # it had ended when this thread arrived
                return None
            self.leases.pop(lease, None)
        probe.hits += 1
        if lease.hits == 1:
            probe.strategies[lease.probepoint.strategy] += 1
        return None if probe.handler is None else probe.handler(hit)


def reason_of(error: Exception) -> str:
    """Why, without where."""
    return str(getattr(error, "reason", "")) or type(error).__name__
