"""Who shares which place: probepoints, leases, and the registry that owns them."""

from bisect import insort
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final, Protocol, Self

import attrs

from ubpx._errors import ProbepointBusy, StrategyRefused, UbpxError
from ubpx.core.ubp.plans import InsnAnalysis, SlotCode, Strategy, TrapPatch
from ubpx.core.values import AddressSpaceId, VirtAddr


class LeaseState(StrEnum):
    """What became of a lease."""

    ARMED = "ARMED"
    PENDING = "PENDING"
    """Its module is not mapped; it arms when that appears."""
    RELEASED = "RELEASED"
    LOST = "LOST"
    """The place is gone: the program replaced or unmapped what stood there."""
    QUARANTINED = "QUARANTINED"
    """Its client was."""


class LeaseHolder(Protocol):
    """The client, as far as its leases need it."""

    strikes: int
    """Exceptions since its last success."""

    @property
    def name(self) -> str: ...

    def release(self, lease: "Lease", /) -> None:
        """Give the lease back; from any thread, any number of times."""
        ...


Handler = Callable[[Any], object]


class Lease:
    """A client's share of a probepoint.

    Owned by the Registry while it is armed; mutated in the tracer thread alone, read by anyone.
    """

    __slots__ = ("address", "age", "client", "errors", "exclusive", "forced", "handler", "hits", "obstacle", "priority",
                 "probepoint", "spec", "state", "watchpoint")  # fmt: skip

    def __init__(
        self, client: LeaseHolder, handler: Handler, *, priority: int, age: int, spec: str | None, exclusive: bool
    ) -> None:
        self.client = client
        self.handler = handler
        self.priority: Final = priority
        self.age: Final = age
        self.spec: Final = spec
        """What the client asked for, where it was not a bare address."""
        self.exclusive: Final = exclusive
        self.forced: Strategy | None = None
        """The strategy that the client insists on."""
        self.address: VirtAddr | None = None
        self.hits = 0
        """Arrivals since arming, those whose handler raised included."""
        self.errors = 0
        """Arrivals whose handler raised."""
        self.state = LeaseState.PENDING
        self.probepoint: Probepoint | None = None
        self.watchpoint: Any = None
        """The ``Watchpoint`` that it shares, where it is a lease of one."""
        self.obstacle: UbpxError | None = None
        """While it is PENDING: why it could not be armed when that was last tried."""

    def release(self) -> None:
        """Give it back; ``hits`` stays readable. Doing it twice does nothing."""
        self.client.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __lt__(self, other: "Lease") -> bool:
        return (-self.priority, self.age) < (-other.priority, other.age)

    def __repr__(self) -> str:
        where = self.spec or (f"{self.address:#x}" if self.address is not None else "nowhere")
        return f"<lease of {self.client.name!r} at {where}: {self.state}, {self.hits} hits>"


class Probepoint:
    """One probed place in one address space. Owned by its Registry.

    It *owns* the bytes of its trap, and may *rely on* bytes that stay as they are (a punned
    jump borrows its neighbours').
    """

    __slots__ = ("_leases", "address", "analysis", "patch", "relied_on", "slot_code", "space", "strategy", "why")

    def __init__(
        self,
        space: AddressSpaceId,
        analysis: InsnAnalysis,
        patch: TrapPatch,
        strategy: Strategy,
        *,
        why: str,
        slot_code: SlotCode | None = None,
        relied_on: range = range(0),
    ) -> None:
        self.space: Final = space
        self.address: Final = analysis.insn.address
        self.analysis: Final = analysis
        self.patch: Final = patch
        self.strategy: Final = strategy
        self.why: Final = why
        """Why this strategy, for people."""
        self.slot_code = slot_code
        self.relied_on: Final = relied_on
        self._leases: list[Lease] = []

    @property
    def owned(self) -> range:
        """The addresses of the bytes that we wrote."""
        return range(self.address, self.address + len(self.patch.trap))

    @property
    def leases(self) -> tuple[Lease, ...]:
        """In handler order: higher priority first, then the older."""
        return tuple(self._leases)

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients that share it, in handler order."""
        return tuple(lease.client.name for lease in self._leases)

    @property
    def slot(self) -> VirtAddr | None:
        """Where the out-of-line copy lies; None where the strategy needs none."""
        return self.slot_code.slot if self.slot_code else None

    def __repr__(self) -> str:
        return f"<probepoint {self.address:#x} {self.strategy}: {', '.join(self.clients) or 'nobody'}>"


def _overlap(first: range, second: range) -> bool:
    return first.start < second.stop and second.start < first.stop


@attrs.define
class Registry:
    """All probepoints of one address space; the sole owner of leases. Refcount = number of leases."""

    _by_address: dict[VirtAddr, Probepoint] = attrs.field(factory=dict, init=False)

    def __iter__(self) -> Iterator[Probepoint]:
        return iter(tuple(self._by_address.values()))

    def __len__(self) -> int:
        return len(self._by_address)

    def at(self, address: VirtAddr) -> Probepoint | None:
        """The probepoint at exactly this address."""
        return self._by_address.get(address)

    def owning(self, addresses: range) -> tuple[Probepoint, ...]:
        """Those of whose own bytes some lie in ``addresses``."""
        return tuple(each for each in self._by_address.values() if _overlap(each.owned, addresses))

    def relying_on(self, addresses: range) -> tuple[Probepoint, ...]:
        """Those that need the bytes at ``addresses`` to stay as they are."""
        return tuple(each for each in self._by_address.values() if _overlap(each.relied_on, addresses))

    def check(self, address: VirtAddr, *, exclusive: bool, strategy: Strategy | None) -> None:
        """Refuse a lease that cannot be had, before anything is written.

        Raises ProbepointBusy, StrategyRefused.
        """
        probepoint = self.at(address)
        if probepoint is None:
            trap = range(address, address + 1)
            for other in (*self.owning(trap), *self.relying_on(trap)):
                raise ProbepointBusy(address, other.clients[0])
            return
        for lease in probepoint.leases:
            if lease.exclusive or exclusive:
                raise ProbepointBusy(address, lease.client.name)
        if strategy is not None and strategy is not probepoint.strategy:
            reason = f"shared with {', '.join(probepoint.clients)} by {probepoint.strategy}"
            raise StrategyRefused(address, strategy, [probepoint.strategy], reason)

    def add(self, probepoint: Probepoint) -> None:
        """Take a probepoint that has just been armed."""
        self._by_address[probepoint.address] = probepoint

    def remove(self, probepoint: Probepoint) -> None:
        """Drop a probepoint that nobody leases."""
        del self._by_address[probepoint.address]

    def grant(self, lease: Lease, probepoint: Probepoint) -> None:
        """Let ``lease`` share ``probepoint``."""
        insort(probepoint._leases, lease)
        lease.probepoint, lease.address, lease.state = probepoint, probepoint.address, LeaseState.ARMED

    def withdraw(self, lease: Lease, state: LeaseState) -> bool:
        """End the lease; True if it was its probepoint's last. Again: does nothing, False."""
        if lease.state is not LeaseState.ARMED or lease.probepoint is None:
            return False
        lease.state = state
        lease.probepoint._leases.remove(lease)
        return not lease.probepoint._leases
