"""What a client has of many dormant probepoints: leases that are made when somebody asks for one, or arrives there."""

import contextlib
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol, overload

from ubpx._errors import UbpxError, UsageError
from ubpx.core import arming
from ubpx.core.clients import Client
from ubpx.core.ports import Refusal
from ubpx.core.probepoints import Handler, Lease, LeaseGroup, LeaseState, Probepoint
from ubpx.core.requests import Request
from ubpx.core.sleepers import CodeProbe, Services, Sleeper
from ubpx.core.spaces import TracedProcess
from ubpx.core.values import VirtAddr

HEAD_SIZE: Final = 16
"""Bytes of each place's code that are kept: what its instruction was when its trap was written."""

# Rule 1: a lease whose probepoint is dormant is ARMED, and shares none yet. It is made when that is woken.
# Rule 2: leases are made in the tracer thread while the group lives, so each place has one; afterwards under a lock.
# Rule 3: a lease that was made is among its client's requests until it ends, like any other.


class DormantLease(Lease):
    """A lease whose probepoint may be dormant: that is woken when somebody asks for it."""

    __slots__ = ("sleeper",)

    sleeper: "GroupSleeper"

    @property
    def probepoint(self) -> Probepoint | None:
        """As in ``Lease``."""
        found: Probepoint | None = _PROBEPOINT.__get__(self, Lease)
        if found is None and self.state is LeaseState.ARMED and self.address is not None:
            self.sleeper.wake_from_anywhere(self.address)
            found = _PROBEPOINT.__get__(self, Lease)
        return found

    @probepoint.setter
    def probepoint(self, probepoint: Probepoint | None) -> None:
        _PROBEPOINT.__set__(self, probepoint)

    @property
    def is_dormant(self) -> bool:
        """Whether its trap stands, and its probepoint is not made."""
        asleep = self.state is LeaseState.ARMED and _PROBEPOINT.__get__(self, Lease) is None
        return asleep and self.sleeper.lives and self.address is not None


_PROBEPOINT: Final = Lease.__dict__["probepoint"]
"""Where a lease keeps it."""


class Keeping(Services, Protocol):
    """What a group's sleeper needs of whoever made it."""

    def new_lease(self, sleeper: "GroupSleeper", spec: str | None) -> DormantLease: ...
    def add(self, lease: Lease, request: Request) -> None: ...
    def grant(self, sleeper: "GroupSleeper", lease: Lease, address: VirtAddr) -> None: ...
    def let_go(self, lease: Lease, why: UbpxError | None) -> None: ...
    def run(self, action: Callable[[], None]) -> None:
        """In the tracer thread; raises UsageError, TargetGone where that is not possible any more."""
        ...


class GroupSleeper(Sleeper):
    """The dormant probepoints of one ``probe_many``, in one memory. Owned by its Groups."""

    def __init__(
        self,
        owner: Keeping,
        process: TracedProcess,
        client: Client,
        request: Request,
        handler: Handler,
        *,
        age: int,
        spec_of: Callable[[VirtAddr], str | None],
    ) -> None:
        super().__init__(owner, CodeProbe(client, handler, None, request.priority), process, age=age, request=request)
        self.handler: Final = handler
        self.state = LeaseState.ARMED
        """ARMED while it lives; then what became of all that were dormant."""
        self.addresses: Sequence[VirtAddr] = ()
        """Ascending; all that were dormant at first."""
        self.pages: frozenset[int] = frozenset()
        """In which they are, by number."""
        self.heads = b""
        """HEAD_SIZE bytes of code for each of them."""
        self.made: Final[dict[VirtAddr, DormantLease]] = {}
        self._keeping: Final = owner
        self.spec_of: Final = spec_of
        self._lock: Final = threading.Lock()

    @property
    def lives(self) -> bool:
        """Whether some may be dormant."""
        return self.state is LeaseState.ARMED

    # Leases -------------------------------------------------------------------------------

    def has(self, address: VirtAddr) -> bool:
        """Whether it was dormant at first."""
        at = bisect_left(self.addresses, address)
        return at < len(self.addresses) and self.addresses[at] == address

    def lease_of(self, address: VirtAddr) -> DormantLease:
        """The place's lease; from any thread."""
        if address not in self.made:
            self.make_leases((address,))
        return self.made[address]

    def make_leases(self, addresses: Sequence[VirtAddr]) -> None:
        """Make those leases that are not made yet; from any thread."""
        if self.lives:
            with contextlib.suppress(UbpxError):  # it has ended meanwhile
                self._keeping.run(lambda: self._make(addresses))
        with self._lock:
            for address in addresses:
                if address not in self.made:
                    self.made[address] = self._new(address)

    def _make(self, addresses: Sequence[VirtAddr]) -> None:
        """In the tracer thread."""
        for address in addresses:
            if address not in self.made and self.lives:
                lease = self._new(address)
                self._keeping.add(lease, self.request)
                self.made[address] = lease

    def _new(self, address: VirtAddr) -> DormantLease:
        lease = self._keeping.new_lease(self, self.spec_of(address))
        lease.sleeper, lease.address, lease.state = self, address, self.state
        return lease

    def dormant(self) -> Iterator[VirtAddr]:
        """Where they are still dormant, ascending; in the tracer thread."""
        return self.space.dormant.of(self)

    # Waking -------------------------------------------------------------------------------

    def wake_from_anywhere(self, address: VirtAddr) -> None:
        """Wake what is dormant there; from any thread."""
        if self.lives:
            with contextlib.suppress(UbpxError):  # it has ended meanwhile
                self._keeping.run(lambda: self.space.dormant.wake(address) if self.lives else None)

    def grant(self, address: VirtAddr) -> None:
        """See ``Sleeper``."""
        self._make((address,))
        self._keeping.grant(self, self.made[address], address)

    def _give_up(self, address: VirtAddr, reason: str) -> None:
        super()._give_up(address, reason)
        self.lose(address, UsageError(f"{address:#x} cannot be probed any more: {reason}"))

    def wake_as_it_was(self, address: VirtAddr) -> None:
        """Make the probepoint of what its code was, for whoever finds out what has become of that."""
        space = self.space
        at = bisect_left(self.addresses, address) * HEAD_SIZE
        analysis = arming.analyze_code(space, self.heads[at : at + HEAD_SIZE - 1], address)
        patch = space.architecture.trap(analysis)
        choice = arming.choose(space, analysis, None)
        strategy = choice.without_slots or choice.strategy  # what sleeps can do without a slot
        probepoint = Probepoint(space.identity, analysis, patch, strategy, why=choice.why)
        arming.enlist(space, probepoint, self._owner.reception)
        space.dormant.settle(address)
        self.grant(address)

    def lose(self, address: VirtAddr, why: UbpxError | None = None) -> None:
        """No trap of ours stands there any more: given by a spec it waits, else it is lost."""
        self._make((address,))
        self._keeping.let_go(self.made[address], why)


class DormantGroup(LeaseGroup):
    """The leases that one ``probe_many`` gave, most of which are made when they are asked for."""

    def __init__(
        self,
        sleeper: GroupSleeper,
        order: Sequence[VirtAddr],
        awake: Mapping[VirtAddr, Lease],
        refused: Sequence[Refusal],
    ) -> None:
        super().__init__(sleeper.probe.client, (), refused)
        self.sleeper: Final = sleeper
        self.awake: Final = awake
        """Those that never were dormant."""
        self._order: Final = order

    @property
    def hits(self) -> int:
        """See ``LeaseGroup``."""
        return sum(lease.hits for lease in self.known)

    @property
    def family_hits(self) -> int:
        """See ``LeaseGroup``."""
        return sum(lease.family_hits for lease in self.known)

    @property
    def known(self) -> list[Lease]:
        """Those leases that are made: of all others nothing has been hit."""
        return [*self.awake.values(), *tuple(self.sleeper.made.values())]

    def release(self) -> None:
        """See ``LeaseGroup``."""
        self.client.release_all(self)

    @property
    def addresses(self) -> Sequence[VirtAddr]:
        """See ``LeaseGroup``."""
        return self._order

    @property
    def state(self) -> LeaseState:
        """See ``LeaseGroup``."""
        return self.sleeper.state

    def made(self, address: VirtAddr) -> Lease | None:
        """See ``LeaseGroup``."""
        lease = self.awake.get(address) or self.sleeper.made.get(address)
        return super().made(address) if lease is None and not self.sleeper.has(address) else lease

    def spec_of(self, address: VirtAddr) -> str | None:
        """See ``LeaseGroup``."""
        lease = self.made(address)
        return self.sleeper.spec_of(address) if lease is None else lease.spec

    def at(self, addresses: Sequence[VirtAddr]) -> tuple[Lease, ...]:
        """See ``LeaseGroup``."""
        for address in addresses:
            self.made(address)  # or raises
        return self._all(addresses)

    def _lease(self, address: VirtAddr) -> Lease:
        return self.awake.get(address) or self.sleeper.lease_of(address)

    def _all(self, addresses: Sequence[VirtAddr]) -> tuple[Lease, ...]:
        self.sleeper.make_leases([each for each in addresses if each not in self.awake])
        return tuple(map(self._lease, addresses))

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._all(self._order))

    @overload
    def __getitem__(self, index: int) -> Lease: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Lease, ...]: ...
    def __getitem__(self, index: int | slice) -> Lease | tuple[Lease, ...]:
        if isinstance(index, slice):
            return self._all(self._order[index])
        return self._lease(self._order[index])

    def __len__(self) -> int:
        return len(self._order)
