"""Who leases what in one target: from a client's request to standing traps, and back. In the tracer thread."""

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

from ubpx._errors import (
    InternalError,
    MemoryFault,
    StrategyRefused,
    TargetGone,
    UbpxError,
    UnknownModule,
    UsageError,
)
from ubpx.core import arming, batches, boundaries, footing
from ubpx.core.clients import Client, ClientState
from ubpx.core.coordinator import Coordinator
from ubpx.core.grounds import Mapped
from ubpx.core.herald import Herald
from ubpx.core.ports import Refusal
from ubpx.core.probepoints import Handler, Lease, LeaseState, Probepoint
from ubpx.core.requests import Request, Requests
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import PAGE_SIZE, Place, VirtAddr

Resolve = Callable[[str | int, TracedProcess], Place]
"""From a spec or an address to a place; raises an UbpxError."""

ResolveMany = Callable[[str | Sequence[str | int], TracedProcess], Sequence[Place | Refusal]]
"""From a glob, or from specs and addresses, to places; raises an UbpxError if a glob leads nowhere."""


class OnceHandler:
    """For leases that end at their first hit, also if the next one comes before that one is over."""

    def __init__(self, leasing: "Leasing", handler: Handler) -> None:
        self.handler: Final = handler
        """The client's own."""
        self.leasing: Final = leasing

    def __call__(self, hit: Any) -> object:
        """End the lease, then run the client's handler."""
        lease = hit.lease
        if not self.leasing.end_after_hit(self.leasing.process_of(hit), lease):
            lease.hits -= 1  # it had ended when this thread arrived
            return None
        return self.handler(hit)


class Leasing:
    """Grants and takes back the leases of one target. Owned by its desk."""

    def __init__(
        self, coordinator: Coordinator, herald: Herald, resolve: Resolve, resolve_many: ResolveMany, *, itself: Client
    ) -> None:
        self.requests: Final = Requests()
        self._coordinator: Final = coordinator
        self._herald: Final = herald
        self._resolve: Final = resolve
        self._resolve_many: Final = resolve_many
        self._itself: Final = itself
        """The client in whose name ubpx probes for itself: nobody is told of that."""
        self._ages: Final = count()
        self._waits_again = False
        """What the program changed has left leases waiting, and nothing was tried for them yet."""

    def probe(
        self, client: Client, process: TracedProcess, place: str | int, request: Request, handler: Handler
    ) -> Lease:
        """See ``Client.probe``."""
        client.check_live()
        lease = self.new_lease(client, request, handler, place if isinstance(place, str) else None)
        try:
            self._arm(lease, request, self._resolve(place, process), process)
        except UnknownModule as error:
            if lease.spec is None or not request.defer:
                raise
            self.wait_for_module(lease, error)
        self.requests.add(lease, request)
        return lease

    def next_age(self) -> int:
        """Of a lease that is made now, or later for what was asked for now."""
        return next(self._ages)

    def new_lease(
        self,
        client: Client,
        request: Request,
        handler: Handler,
        spec: str | None,
        *,
        age: int | None = None,
        kind: type[Lease] = Lease,
    ) -> Lease:
        """One that has nothing yet, and is nobody's request."""
        age = self.next_age() if age is None else age
        if request.once:
            handler = self.once(handler)
        lease = kind(client, handler, priority=request.priority, age=age, spec=spec, exclusive=request.exclusive)
        lease.forced = request.strategy
        return lease

    def once(self, handler: Handler) -> "OnceHandler":
        """What ends the lease first; one that a lease of another target had becomes ours."""
        if isinstance(handler, OnceHandler):
            return handler if handler.leasing is self else OnceHandler(self, handler.handler)
        return OnceHandler(self, handler)

    def _arm(self, lease: Lease, request: Request, place: Place, process: TracedProcess) -> None:
        space, registry = process.space, process.space.registry
        space.dormant.wake(place.address)
        self._settle(process, (place.address,))
        registry.check(place.address, exclusive=request.exclusive, strategy=None)
        self._coordinator.jumps.make_way(space, place.address, request.strategy)
        registry.check(place.address, exclusive=request.exclusive, strategy=request.strategy)
        fresh = registry.at(place.address) is None
        if fresh:
            if not request.assume_boundary:
                for error in boundaries.unproved(space, (place,)).values():
                    raise error
            analysis = arming.analyze(space, place.address)
            boundaries.check_interruptible(space, place, analysis)
            prospect = batches.Prospect(place.address, analysis, arming.choose(space, analysis, request.strategy))
            fresh = self._coordinator.batches.arm(space, (prospect,), process.pid)
            self._check_still_there(lease, process, space, place.address)
            if not fresh:  # a handler has probed it while an area was mapped
                registry.check(place.address, exclusive=request.exclusive, strategy=request.strategy)
        probepoint = self.grant(lease, space, place.address)
        if request.strategy is Strategy.JUMP:
            self._have_jump(lease, process, probepoint)
        if fresh and lease.client is not self._itself:
            probepoint.told = True
            self._herald.tell("ubpx_probepoint_armed", address=place.address)

    def _have_jump(self, lease: Lease, process: TracedProcess, probepoint: Probepoint) -> None:
        """Or take everything back, and raise StrategyRefused."""
        space, jumps = process.space, self._coordinator.jumps
        if probepoint.jump is None:
            jumps.make(space, (probepoint,))
        if probepoint.jump is None:
            if space.registry.withdraw(lease, LeaseState.RELEASED):
                self._take_back(space, [probepoint.address])
            self._coordinator.armory.refresh(space, probepoint)
            reason = f"{probepoint.analysis.insn}: {probepoint.jumpless or 'a thread stands in it'}"
            raise StrategyRefused(probepoint.address, Strategy.JUMP, probepoint.analysis.strategies, reason)

    def _check_still_there(self, lease: Lease, process: TracedProcess, space: AddressSpace, address: VirtAddr) -> None:
        """While the program was served its client may have left, or it: then the trap goes again, and this raises."""
        client = lease.client
        left = isinstance(client, Client) and client.state is not ClientState.LIVE
        if not (left or process.ended.is_set() or process.space is not space):
            return
        self._take_back(space, [address])
        if isinstance(client, Client):
            client.check_live()
        if process.ended.is_set():
            raise TargetGone(process.pid, process.status)
        raise MemoryFault(address, len(space.architecture.trap_bytes), "patch")  # an exec has replaced it

    def _take_back(self, space: AddressSpace, addresses: Sequence[VirtAddr]) -> None:
        """What was armed there for somebody who does not get it, unless others share it."""
        armed = [space.registry.at(address) for address in addresses]
        idle = [probepoint for probepoint in armed if probepoint is not None and not probepoint.leases]
        self._coordinator.batches.disarm(space, idle)

    def grant(self, lease: Lease, space: AddressSpace, address: VirtAddr) -> Probepoint:
        """Let the lease share what was armed there."""
        probepoint = space.registry.at(address)
        if probepoint is None:
            raise InternalError(f"nothing was armed at {address:#x}")
        space.registry.grant(lease, probepoint)
        self._coordinator.armory.refresh(space, probepoint)
        return probepoint

    # Many at once -------------------------------------------------------------------------

    def resolve_many(self, wanted: str | Sequence[str | int], process: TracedProcess) -> Sequence[Place | Refusal]:
        """Where all of them lead; raises an UbpxError."""
        return self._resolve_many(wanted, process)

    def probe_many(
        self, client: Client, process: TracedProcess, found: batches.Places, request: Request, handler: Handler
    ) -> list[Lease] | None:
        """Arm all the places ``found``, or none. None: a handler or an exec has come between; once more, please."""
        client.check_live()
        if request.strategy is Strategy.JUMP:
            raise UsageError("many places at once get no jumps; leave strategy= out, and those that are hot get theirs")
        space, registry = process.space, process.space.registry
        for address in found.places:
            space.dormant.wake(address)
        self._settle(process, found.places)
        for address in found.places:
            registry.check(address, exclusive=request.exclusive, strategy=None)
        for address in found.places:
            self._coordinator.jumps.make_way(space, address, request.strategy)
            registry.check(address, exclusive=request.exclusive, strategy=request.strategy)
        fresh = [place for place, _ in found.places.values() if registry.at(place.address) is None]
        prospects = batches.survey(space, fresh, found, request.strategy, assume_boundary=request.assume_boundary)
        try:
            if not self._coordinator.batches.arm(space, prospects, process.pid):
                return None
        except MemoryFault:
            if process.space is space and not process.ended.is_set():
                raise
            return None
        stays = process.space is space and not process.ended.is_set() and client.state is ClientState.LIVE
        if not stays or any(registry.at(address) is None for address in found.places):
            self._take_back(space, [place.address for place in fresh])
            return None
        return self._grant_all(client, process, found, request, handler)

    def _grant_all(
        self, client: Client, process: TracedProcess, found: batches.Places, request: Request, handler: Handler
    ) -> list[Lease]:
        """A lease for each place; nothing can fail any more."""
        space, leases = process.space, []
        for address, (_, spec) in found.places.items():
            lease = self.new_lease(client, request, handler, spec)
            self.grant(lease, space, address)
            self.requests.add(lease, request)
            leases.append(lease)
        return leases

    def process_of(self, hit: Any) -> TracedProcess:
        """Where a thread has arrived."""
        return self._coordinator.tracees.processes[hit.pid]

    def end_after_hit(self, process: TracedProcess, lease: Lease) -> bool:
        """From its handler: end the lease now, and what nobody leases any more after the hit; False: it had ended."""
        probepoint = lease.probepoint
        if probepoint is None or not self.requests.remove(lease):
            return False
        if process.space.registry.withdraw(lease, LeaseState.RELEASED):
            self._coordinator.reception.after_hit.append(lambda: self._disarm_idle(process, (probepoint,)))
        self._coordinator.armory.refresh(process.space, probepoint)
        return True

    def share(
        self, client: Client, space: AddressSpace, address: VirtAddr, request: Request, handler: Handler, *, age: int
    ) -> Lease:
        """A lease of the probepoint that stands at the address, which is not told of."""
        lease = self.new_lease(client, request, handler, None, age=age)
        self.grant(lease, space, address)
        self.requests.add(lease, request)
        return lease

    # Giving back --------------------------------------------------------------------------

    def withdraw(self, leases: Sequence[Lease], state: LeaseState, process: TracedProcess | None) -> None:
        """End those leases that have not ended; what nobody leases any more is disarmed."""
        idle = []
        for lease in leases:
            if not self.requests.remove(lease):
                continue
            probepoint = lease.probepoint
            if process is None or probepoint is None or process.space.identity != probepoint.space:
                self.requests.pending.pop(lease, None)
                lease.state = state
            elif process.space.registry.withdraw(lease, state):
                idle.append(probepoint)
            else:
                self._coordinator.armory.refresh(process.space, probepoint)
        if process is not None and idle:
            self._disarm_idle(process, idle)

    def _disarm_idle(self, process: TracedProcess, probepoints: Sequence[Probepoint]) -> None:
        """Disarm those that nobody leases, and tell of those that somebody was told of."""
        registry = process.space.registry
        idle = [each for each in probepoints if registry.at(each.address) is each and not each.leases]
        gone = set(self._coordinator.batches.disarm(process.space, idle))
        for probepoint in idle:
            if probepoint in gone:
                self._tell_lost(probepoint.address, "the program wrote something else there")
            elif probepoint.told:
                self._herald.tell("ubpx_probepoint_disarmed", address=probepoint.address)

    def _tell_lost(self, address: VirtAddr, reason: str) -> None:
        self._herald.tell("ubpx_probepoint_lost", address=address, reason=reason)

    def end(self, process: TracedProcess) -> None:
        """Everybody's leases are over; whoever leaves the process takes the traps out."""
        for lease in self.requests:
            if not process.space.registry.withdraw(lease, LeaseState.RELEASED):
                lease.state = LeaseState.RELEASED
        self.requests.clear()

    # Modules that come and go -------------------------------------------------------------

    def suspend(self, old: AddressSpace) -> Sequence[VirtAddr]:
        """The program is gone, and its probepoints: what was given by a spec waits for its module.

        Gives the addresses of those whose loss is to be told.
        """
        told = []
        for probepoint in old.registry:
            self._lose_leases(old, probepoint)
            old.registry.remove(probepoint)
            if probepoint.told:
                told.append(probepoint.address)
        return told

    def tell_replaced(self, addresses: Sequence[VirtAddr]) -> None:
        """Tell of those."""
        for address in addresses:
            self._tell_lost(address, "the process runs a new program")

    def lose(self, space: AddressSpace, addresses: range, reason: str) -> None:
        """What was mapped there is gone: as ``suspend``, for these addresses."""
        space.dormant.drop(addresses)
        lost = space.registry.owning(addresses)
        for probepoint in lost:
            self._lose_leases(space, probepoint)
        self._coordinator.batches.disarm(space, lost)
        for probepoint in lost:
            if probepoint.told:
                self._tell_lost(probepoint.address, reason)

    # Code that the program changes --------------------------------------------------------

    def look_at_text(self, process: TracedProcess, *, serve: bool) -> bool:
        """What is probed and does not stand any more is lost; whether that was something of ubpx's own.

        ``serve``: the program may be served, so that what is given by a spec may be armed again.
        """
        space, itself = process.space, False
        mapped = Mapped(process.mappings())
        if mapped.ranges and not space.taking_turns:  # else a trap may be out for a step in place
            lost = footing.changed(space, mapped)
            if lost:
                itself = any(lease.client is self._itself for each in lost for lease in each.leases)
                self._lose_changed(space, lost, mapped)
        if serve and self._waits_again:
            self.arm_waiting(process)
        return itself

    def _lose_changed(self, space: AddressSpace, lost: dict[Probepoint, footing.Footing], mapped: Mapped) -> None:
        told = [each for each in lost if any(lease.client is not self._itself for lease in each.leases)]
        with space.memory.writing:
            footing.take_out_moved(space, lost, mapped)
        for probepoint in lost:
            self._lose_leases(space, probepoint)
        self._coordinator.batches.disarm(space, tuple(lost))
        self._waits_again = True
        for probepoint in told:
            self._tell_lost(probepoint.address, lost[probepoint].value)

    def _settle(self, process: TracedProcess, addresses: Collection[VirtAddr]) -> None:
        """Before something is armed there or shared: what does not stand there any more is lost."""
        space = process.space
        pages = {address // PAGE_SIZE for address in addresses}
        trapped = {page for page in pages if space.patches.overlapping(page * PAGE_SIZE, PAGE_SIZE)}
        noted = [address for address in addresses if address // PAGE_SIZE in trapped and space.grounds.of(address)]
        if not noted:
            return
        mapped = Mapped(process.mappings())
        for address in noted:
            probepoint = space.registry.at(address)
            stands = probepoint is None or footing.footing(space, probepoint, mapped) is footing.Footing.STANDS
            if not (stands and space.grounds.is_same(address, mapped)):
                self.look_at_text(process, serve=False)
                return

    def _lose_leases(self, space: AddressSpace, probepoint: Probepoint) -> None:
        for lease in probepoint.leases:
            space.registry.withdraw(lease, LeaseState.LOST)
            if lease.spec:
                self.wait_for_module(lease)
            else:
                self.requests.remove(lease)

    def wait_for_module(self, lease: Lease, why: UbpxError | None = None) -> None:
        """It arms when something that it can mean is mapped."""
        lease.state, lease.probepoint, lease.obstacle = LeaseState.PENDING, None, why
        self.requests.pending[lease] = None

    def arm_waiting(self, process: TracedProcess) -> None:
        """Something was mapped: arm what waited for it, as far as it can be."""
        self._waits_again = False
        waiting = {lease: lease.spec for lease in self.requests.pending if lease.spec is not None}
        if not waiting:
            return
        answers: Sequence[Place | Refusal]
        try:
            answers = self._resolve_many(tuple(waiting.values()), process)
        except UbpxError as error:
            answers = [Refusal(spec, error) for spec in waiting.values()]
        for lease, answer in zip(waiting, answers, strict=True):
            if lease not in self.requests:
                continue  # a hook has swept its client meanwhile
            try:
                if isinstance(answer, Refusal):
                    raise answer.error
                self._arm(lease, self.requests[lease], answer, process)
            except UbpxError as error:
                lease.obstacle = error
            else:
                lease.obstacle = None
                self.requests.pending.pop(lease, None)


@contextmanager
def all_stays() -> Iterator[None]:
    """Do not look for garbage meanwhile: all that is made is kept, and looking costs a quarter of making it."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
