"""Who shares which place: probepoints, leases, and the registry that owns them."""

import threading
from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol, Self, TypeVar, overload

import attrs

from ubpx._errors import ProbepointBusy, StrategyRefused, UbpxError, UsageError
from ubpx.core.ports import Refusal
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

    def release_all(self, leases: Sequence["Lease"], /) -> None:
        """The same for many at once."""
        ...


Handler = Callable[[Any], object]


class Lease:
    """A client's share of a probepoint.

    Owned by the Registry while it is armed; mutated in the tracer thread alone, read by anyone.
    """

    __slots__ = ("address", "age", "client", "errors", "exclusive", "family", "forced", "handler", "hits", "obstacle",
                 "priority", "probepoint", "spec", "state", "watchpoint")  # fmt: skip

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
        self.family: Family | None = None
        """With the leases that followed children have of it, once there is one."""

    @property
    def original(self) -> "Lease":
        """The lease that a client asked for; in a followed child not itself, but the one that it is like."""
        return self if self.family is None else self.family.first

    @property
    def family_hits(self) -> int:
        """Of the lease that was asked for, and of all that followed children have or had of it."""
        return self.hits if self.family is None else self.family.hits

    @property
    def family_errors(self) -> int:
        """The same for the arrivals whose handler raised."""
        return self.errors if self.family is None else self.family.errors

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


class Family:
    """What was asked for once, in a process and its followed children. Changed in the tracer thread, read by anyone."""

    def __init__(self, first: Lease) -> None:
        self.first: Final = first
        """The one that was asked for."""
        self._lock: Final = threading.Lock()
        self._members: Final[set[Lease]] = {first}
        self._hits_of_gone = 0
        self._errors_of_gone = 0

    @property
    def hits(self) -> int:
        """Of all of them together."""
        with self._lock:
            return self._hits_of_gone + sum(lease.hits for lease in self._members)

    @property
    def errors(self) -> int:
        """Of all of them together."""
        with self._lock:
            return self._errors_of_gone + sum(lease.errors for lease in self._members)

    def join(self, lease: Lease) -> None:
        """A followed child has it."""
        with self._lock:
            self._members.add(lease)
        lease.family = self

    def leave(self, lease: Lease) -> None:
        """The child is gone; its hits stay. The lease itself is kept no more."""
        with self._lock:
            if lease in self._members:
                self._members.discard(lease)
                self._hits_of_gone += lease.hits
                self._errors_of_gone += lease.errors


class LeaseGroup(Sequence[Lease]):
    """The leases that one ``probe_many`` gave, one for each address. Immutable; usable from any thread."""

    def __init__(self, client: LeaseHolder, leases: Sequence[Lease], refused: Sequence[Refusal]) -> None:
        self.client: Final = client
        self.refused: Final = tuple(refused)
        """What was left out because it cannot be probed."""
        self._leases: Final = tuple(leases)
        self._by_address: Final = {VirtAddr(lease.address or 0): lease for lease in leases}

    @property
    def addresses(self) -> Sequence[VirtAddr]:
        """Where they were given, in order."""
        return tuple(self._by_address)

    @property
    def state(self) -> LeaseState:
        """That of the leases that are not made yet: to index or iterate the group makes them."""
        return LeaseState.ARMED

    def made(self, address: VirtAddr) -> Lease | None:
        """The lease that was given there, None if it is not made yet. Raises UsageError where none was given."""
        return self._given(address)

    def spec_of(self, address: VirtAddr) -> str | None:
        """Of the lease that was given there. Raises UsageError where none was given."""
        return self._given(address).spec

    def at(self, addresses: Sequence[VirtAddr]) -> tuple[Lease, ...]:
        """Those that were given there, made in one go. Raises UsageError where none was given."""
        return tuple(map(self._given, addresses))

    def _given(self, address: VirtAddr) -> Lease:
        try:
            return self._by_address[address]
        except KeyError:
            message = f"the group has no lease at {address:#x}; its addresses say where it has some"
            raise UsageError(message) from None

    @property
    def hits(self) -> int:
        """Of all its leases together."""
        return sum(lease.hits for lease in self._leases)

    @property
    def family_hits(self) -> int:
        """Of all its leases together, and of those that followed children have or had of them."""
        return sum(lease.family_hits for lease in self._leases)

    def release(self) -> None:
        """Give all of them back at once. Doing it twice does nothing."""
        self.client.release_all(self._leases)

    @overload
    def __getitem__(self, index: int) -> Lease: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Lease, ...]: ...
    def __getitem__(self, index: int | slice) -> Lease | tuple[Lease, ...]:
        return self._leases[index]

    def __len__(self) -> int:
        return len(self._leases)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{len(self)} leases of {self.client.name!r}: {self.hits} hits>"


class Probepoint:
    """One probed place in one address space. Owned by its Registry.

    It *owns* the bytes of its trap, and may *rely on* bytes that stay as they are (a punned
    jump borrows its neighbours').
    """

    __slots__ = ("_leases", "address", "analysis", "armed_by", "jump", "jumpless", "patch", "relied_on", "seen_hits",
                 "slot_code", "slotless", "space", "told", "why")  # fmt: skip

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
        self.armed_by = strategy
        """How threads get past its trap; that they do again when its jump is taken out."""
        self.why = why
        """Why this strategy, for people."""
        self.slot_code = slot_code
        self.relied_on = relied_on
        self.jump: TrapPatch | None = None
        """The jump that stands in place of its trap."""
        self.jumpless: str | None = None
        """Why it gets none, if that was found."""
        self.slotless: str | None = None
        """Why it gets no slot though it is hot, if that was found."""
        self.seen_hits = 0
        """Hits of its leases when it was last looked whether it should have a jump."""
        self.told = False
        """Whether client plugins were told that it is armed, and so will be told when it is not."""
        self._leases: list[Lease] = []

    @property
    def strategy(self) -> Strategy:
        """How threads get past it now."""
        return self.armed_by if self.jump is None else Strategy.JUMP

    @property
    def standing(self) -> TrapPatch:
        """What is written there now: its trap, or a jump to one."""
        return self.patch if self.jump is None else self.jump

    @property
    def owned(self) -> range:
        """The addresses of the bytes that we wrote."""
        return range(self.address, self.address + len(self.standing.trap))

    @property
    def leases(self) -> tuple[Lease, ...]:
        """In handler order: higher priority first, then the older."""
        return tuple(self._leases)

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients that share it, in handler order."""
        return tuple(lease.client.name for lease in self._leases)

    @property
    def is_forced(self) -> bool:
        """Whether somebody insists on how threads get past its trap; who insists on a jump does not."""
        return any(lease.forced not in (None, Strategy.JUMP) for lease in self._leases)

    @property
    def slot(self) -> VirtAddr | None:
        """Where the out-of-line copy lies; None where the strategy needs none."""
        return self.slot_code.slot if self.slot_code else None

    def __repr__(self) -> str:
        return f"<probepoint {self.address:#x} {self.strategy}: {', '.join(self.clients) or 'nobody'}>"


@attrs.define
class Registry:
    """All probepoints of one address space; the sole owner of leases. Refcount = number of leases.

    No byte is owned by two of them (``check``); any number may rely on one.
    """

    _by_address: dict[VirtAddr, Probepoint] = attrs.field(factory=dict, init=False)
    _behind: dict[int, Probepoint] = attrs.field(factory=dict, init=False)
    """By the address of each owned byte but the first."""
    _relying: dict[int, list[Probepoint]] = attrs.field(factory=dict, init=False)
    """By the address of each byte that is relied on."""
    jumped: dict[VirtAddr, TrapPatch] = attrs.field(factory=dict, init=False)
    """Jumps that stand, or stood last at their addresses: a child forked meanwhile may still have them."""

    def __iter__(self) -> Iterator[Probepoint]:
        return iter(tuple(self._by_address.values()))

    def __len__(self) -> int:
        return len(self._by_address)

    def at(self, address: VirtAddr) -> Probepoint | None:
        """The probepoint at exactly this address."""
        return self._by_address.get(address)

    def owning(self, addresses: range) -> tuple[Probepoint, ...]:
        """Those of whose own bytes some lie in ``addresses``, ascending."""
        found = {probepoint for each in (self._by_address, self._behind) for probepoint in _among(each, addresses)}
        return tuple(sorted(found, key=_address))

    def relying_on(self, addresses: range) -> tuple[Probepoint, ...]:
        """Those that need the bytes at ``addresses`` to stay as they are, ascending."""
        found = {probepoint for several in _among(self._relying, addresses) for probepoint in several}
        return tuple(sorted(found, key=_address))

    def check(self, address: VirtAddr, *, exclusive: bool, strategy: Strategy | None) -> None:
        """Refuse a lease that cannot be had, before anything is written.

        Raises ProbepointBusy, StrategyRefused.
        """
        probepoint = self.at(address)
        if probepoint is None:
            in_the_way = [self._behind[address]] if address in self._behind else self._relying.get(address, ())
            for other in (each for each in in_the_way if each.jump is None):  # jumps make way
                raise ProbepointBusy(address, next(iter(other.clients), "nobody any more"))
            return
        for lease in probepoint.leases:
            if lease.exclusive or exclusive:
                raise ProbepointBusy(address, lease.client.name)
        if strategy not in (None, Strategy.JUMP, probepoint.strategy):
            reason = f"shared with {', '.join(dict.fromkeys(probepoint.clients))} by {probepoint.strategy}"
            raise StrategyRefused(address, str(strategy), [probepoint.strategy], reason)

    def add(self, probepoint: Probepoint) -> None:
        """Take a probepoint that has just been armed."""
        self._by_address[probepoint.address] = probepoint
        for byte in probepoint.owned[1:]:
            self._behind[byte] = probepoint
        for byte in probepoint.relied_on:
            self._relying.setdefault(byte, []).append(probepoint)

    def remove(self, probepoint: Probepoint) -> None:
        """Drop a probepoint that nobody leases."""
        del self._by_address[probepoint.address]
        for byte in probepoint.owned[1:]:
            del self._behind[byte]
        for byte in probepoint.relied_on:
            self._relying[byte].remove(probepoint)
            if not self._relying[byte]:
                del self._relying[byte]

    def change_jump(self, probepoint: Probepoint, jump: TrapPatch | None, relied_on: range) -> None:
        """A jump to its trap is about to stand in place of it, or stands no more."""
        self.remove(probepoint)
        probepoint.jump, probepoint.relied_on = jump, relied_on
        self.add(probepoint)
        if jump is not None:
            self.jumped[probepoint.address] = jump

    def jumps_near(self, addresses: range) -> tuple[Probepoint, ...]:
        """Those whose jumps have a byte of these, or rely on one, ascending."""
        near = {*self.owning(addresses), *self.relying_on(addresses)}
        return tuple(sorted((each for each in near if each.jump is not None), key=_address))

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


Found = TypeVar("Found")


def _among(by_byte: Mapping[Any, Found], addresses: range) -> Iterator[Found]:
    """What stands at any of ``addresses``, found by whichever is shorter."""
    if len(addresses) <= len(by_byte):
        return (by_byte[byte] for byte in addresses if byte in by_byte)
    return (found for byte, found in by_byte.items() if byte in addresses)


def _address(probepoint: Probepoint) -> int:
    return probepoint.address
