"""What the clients of a followed child have from its parent: clients of the same names, and leases like theirs.

In the tracer thread. What there is, is what the parent's clients had when the child was made.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import attrs

from ubpx._errors import InternalError, UbpxError
from ubpx.core import arming, batches
from ubpx.core.clients import Client, ClientState, Desk, Roster
from ubpx.core.coordinator import Coordinator
from ubpx.core.herald import Herald
from ubpx.core.leasing import Leasing
from ubpx.core.plugins import ClientPlugin
from ubpx.core.probepoints import Family, Lease, LeaseState, Probepoint
from ubpx.core.requests import Request
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.values import VirtAddr
from ubpx.core.watching import Watching

_log = logging.getLogger("ubpx.following")


class Kin(Protocol):
    """The target of a desk among its family (see ``target.Target``)."""

    def bear(self) -> Any:
        """The desk of a new target, for a followed child; None where nobody is followed any more."""
        ...

    def born(self) -> None:
        """The target's process is traced: people may see it."""
        ...

    def gone(self) -> None:
        """The process is traced no more."""
        ...


class Alone:
    """A target that has no followed children."""

    def bear(self) -> Any:
        """None."""
        return None

    def born(self) -> None:
        """Nobody looks."""

    def gone(self) -> None:
        """Nobody looks."""


@attrs.frozen(kw_only=True)
class Household:
    """The clients of one target, and what they have there."""

    roster: Roster
    herald: Herald
    leasing: Leasing
    watching: Watching


@attrs.frozen
class _Heirloom:
    """A lease of the parent's that a client of the child has too."""

    original: Lease
    request: Request
    client: Client


class Heritage:
    """What one followed child has from its parent. Owned by the child's desk."""

    def __init__(self, theirs: Household, ours: Household, coordinator: Coordinator, target: Any, desk: Desk) -> None:
        self._ours: Final = ours
        self._coordinator: Final = coordinator
        living = (client for client in theirs.roster.living() if client.state is ClientState.LIVE)
        self._heirs: Final = {client: client.beget(target, desk) for client in living}
        for heir in self._heirs.values():
            ours.roster.join(heir)
        self._hooks: Final = [
            (plugin, self._heirs[client])
            for plugin, client in theirs.herald.active
            if client in self._heirs and plugin.for_children
        ]
        self._heirlooms: Final = [*self._requested(theirs), *self._watched(theirs)]
        self._inherited: Final[list[Lease]] = []

    def _requested(self, theirs: Household) -> list[_Heirloom]:
        found = []
        for lease in sorted(theirs.leasing.requests, key=lambda each: each.age):
            request = theirs.leasing.requests[lease]
            heir = self._heir_of(lease)
            if heir is not None and request.inherited:
                found.append(_Heirloom(lease, request, heir))
        return found

    def _watched(self, theirs: Household) -> list[_Heirloom]:
        found = []
        for client in self._heirs:
            for lease in theirs.watching.of(client):
                heir = self._heir_of(lease)
                if heir is not None:
                    found.append(_Heirloom(lease, _WATCHED, heir))
        return found

    def _heir_of(self, lease: Lease) -> Client | None:
        client = lease.client
        if not isinstance(client, Client) or lease in client.asks_anew:
            return None
        return self._heirs.get(client)

    def take_hooks(self) -> list[tuple[ClientPlugin, Client]]:
        """Whose hooks are to be told of the child; again: nobody's."""
        hooks, self._hooks[:] = list(self._hooks), ()
        return [(plugin, client) for plugin, client in hooks if client.state is ClientState.LIVE]

    # Leases -------------------------------------------------------------------------------

    def await_program(self) -> None:
        """The child will exec: what was given by a spec waits for that program."""
        for each in self._heirlooms:
            if each.original.spec is not None:
                self._let_wait(each, self._ours.leasing.next_age())
        self._heirlooms.clear()

    def arm(self, process: TracedProcess, copied_from: AddressSpace) -> None:
        """The child is a clean copy of that memory, and what stood there shall stand in it."""
        heirlooms, self._heirlooms[:] = list(self._heirlooms), ()
        heirlooms = [each for each in heirlooms if each.client.state is ClientState.LIVE]  # hooks may have failed
        standing = {each.original: place for each in heirlooms if (place := _place(each.original, copied_from))}
        refused = self._arm_places(process, standing.values())
        for each in heirlooms:
            age = self._ours.leasing.next_age()
            if each.original.watchpoint is not None:
                self._watch(process, each)
            elif each.original.state is LeaseState.PENDING:
                self._let_wait(each, age)
            elif each.original in standing:
                self._share(process.space, self._copy(each, age), each.request, refused)

    def _arm_places(self, process: TracedProcess, probepoints: Iterable[Probepoint]) -> Mapping[VirtAddr, UbpxError]:
        """Let traps stand where they stood; by address, why some do not."""
        space = process.space
        refused: dict[VirtAddr, UbpxError] = {}
        fresh = {each.address: each for each in probepoints if space.registry.at(each.address) is None}
        prospects = [_prospect(space, fresh[address]) for address in sorted(fresh)]
        try:
            self._coordinator.batches.arm(space, prospects, process.pid)
        except UbpxError:  # one of them cannot be had: see which
            for each in prospects:
                try:
                    self._coordinator.batches.arm(space, (each,), process.pid)
                except UbpxError as error:
                    refused[each.address] = error
        return refused

    def _share(
        self, space: AddressSpace, lease: Lease, request: Request, refused: Mapping[VirtAddr, UbpxError]
    ) -> None:
        """Let the copy of a lease share what stands at its original's place, if that could be had."""
        address = lease.address
        if address is None:
            raise InternalError(f"{lease!r} is a copy of one that is not armed")
        try:
            if address in refused:
                raise refused[address]
            space.registry.check(address, exclusive=lease.exclusive, strategy=None)
            self._ours.leasing.grant(lease, space, address)
        except UbpxError as error:
            lease.state, lease.obstacle = LeaseState.LOST, error
            _log.warning("the followed process %d goes on without a probe: %s", space.pid, error)
            self._ours.herald.tell("ubpx_probepoint_lost", address=address, reason=str(error))
        else:
            self._ours.leasing.requests.add(lease, request)

    def _let_wait(self, each: _Heirloom, age: int) -> None:
        lease = self._copy(each, age)
        lease.address = None
        self._ours.leasing.wait_for_module(lease, each.original.obstacle)
        self._ours.leasing.requests.add(lease, each.request)

    def _copy(self, each: _Heirloom, age: int) -> Lease:
        original = each.original
        lease = self._ours.leasing.new_lease(each.client, each.request, original.handler, original.spec, age=age)
        lease.address = original.address
        self._adopt(lease, original)
        return lease

    def _watch(self, process: TracedProcess, each: _Heirloom) -> None:
        original = each.original
        try:
            lease = self._ours.watching.watch(
                each.client, process, original.watchpoint.watched, original.handler, priority=original.priority
            )
        except UbpxError as error:
            self._ours.herald.tell("ubpx_probepoint_lost", address=original.address, reason=str(error))
        else:
            self._adopt(lease, original)

    def _adopt(self, lease: Lease, original: Lease) -> None:
        if original.family is None:
            original.family = Family(original)
        original.family.join(lease)
        self._inherited.append(lease)

    def end(self) -> None:
        """The child is traced no more."""
        for lease in self._inherited:
            if lease.family is not None:
                lease.family.leave(lease)
        for heir in self._heirs.values():
            heir.pass_on()


_WATCHED: Final = Request(strategy=None, exclusive=False, priority=0, assume_boundary=True)


def _place(lease: Lease, space: AddressSpace) -> Probepoint | None:
    """What the lease shares in that memory."""
    probepoint = lease.probepoint
    here = lease.state is LeaseState.ARMED and probepoint is not None and probepoint.space == space.identity
    return probepoint if here else None


def _prospect(space: AddressSpace, probepoint: Probepoint) -> batches.Prospect:
    """The same as there; where no slot can be had, what else is possible, unless somebody insists on a strategy."""
    slotless = None
    if not any(lease.forced for lease in probepoint.leases):
        slotless = arming.choose(space, probepoint.analysis, None).without_slots
    choice = arming.Choice(strategy=probepoint.armed_by, why=probepoint.why, without_slots=slotless)
    return batches.Prospect(probepoint.address, probepoint.analysis, choice)
