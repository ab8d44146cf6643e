"""Leases that a broker keeps for us, with the faces of ``ubpx.Lease`` and ``ubpx.LeaseGroup``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, Self, TypeVar, overload

import msgspec

from ubpx import LeaseState, Refusal, Strategy, UbpxError
from ubpx.core.values import VirtAddr
from ubpx_froggy.client.conversation import Ending, EndKind, decoder
from ubpx_froggy.client.probepoints import RemoteProbepoint, RemoteWatchpoint
from ubpx_froggy.failures import as_error
from ubpx_froggy.messages import Call, Handle, LeaseInfo, RefusalInfo, WatchpointInfo

Handler = Callable[[Any], object]

_HANDLES: Final = 50_000
"""So many fit into one request."""
_leases: Final = decoder(list[LeaseInfo])
_LIVING: Final = frozenset({LeaseState.ARMED, LeaseState.PENDING})
_ENDED_AS: Final = {
    EndKind.EVICTED: LeaseState.QUARANTINED,
    EndKind.GONE: LeaseState.LOST,
    EndKind.LEFT: LeaseState.RELEASED,
}


class KnownDesk(Protocol):
    """What is known of leases without asking."""

    @property
    def ending(self) -> Ending | None:
        """How the connection has ended; None while it has not."""
        ...

    def dropped(self, lease: Handle) -> tuple[int, int]:
        """How many hits of a lease were left out, by the broker as far as it has told, and here."""
        ...

    def watchpoint(self, info: WatchpointInfo) -> RemoteWatchpoint:
        """The one that watches this."""
        ...


class KnownLease:
    """A client's share of a probepoint in a broker, as it was when we last heard of it."""

    def __init__(
        self, client: Any, info: LeaseInfo, handler: Handler | None, desk: KnownDesk, *, watches: bool
    ) -> None:
        self.client: Final = client
        self.handler = handler
        """None with ``mode="count"``, and where a former client has left the lease."""
        self.handle: Final = info.lease
        self.known = info
        """As it was when we last heard of it."""
        self._facts: Final = desk
        self._watches: Final = watches
        self._errors_here = 0
        self._ended: LeaseState | None = None

    # What never changes -------------------------------------------------------------------

    @property
    def spec(self) -> str | None:
        """What the client asked for, where it was not a bare address."""
        return self.known.spec

    @property
    def mode(self) -> str:
        """``sync``: the thread waits for the handler; ``notify``: it does not; ``count``: there is no handler."""
        return self.known.mode

    @property
    def persistent(self) -> bool:
        """Whether it stays in the broker when its client goes, and counts on."""
        return self.known.persistent

    @property
    def priority(self) -> int:
        """A higher one runs earlier."""
        return self.known.priority

    @property
    def exclusive(self) -> bool:
        """Whether it refuses to share its probepoint."""
        return self.known.exclusive

    @property
    def forced(self) -> Strategy | None:
        """The strategy that the client insists on."""
        return None if self.known.forced is None else Strategy(self.known.forced)

    # What can change -----------------------------------------------------------------------

    @property
    def address(self) -> VirtAddr | None:
        """None while it is PENDING."""
        address = self._now().address
        return None if address is None else VirtAddr(address)

    @property
    def hits(self) -> int:
        """Arrivals since arming, those whose handler raised included."""
        return self._now().hits

    @property
    def errors(self) -> int:
        """Arrivals whose handler raised."""
        return self._now().errors + self._errors_here

    @property
    def family_hits(self) -> int:
        """Those of followed children's leases too, that they have or had of the same request."""
        now = self._now()
        return now.family[0] if now.family else now.hits

    @property
    def family_errors(self) -> int:
        """The same for the arrivals whose handler raised."""
        now = self._now()
        return (now.family[1] if now.family else now.errors) + self._errors_here

    @property
    def dropped(self) -> int:
        """Hits in mode ``notify`` that no handler got, because we were slow; they are in ``hits``."""
        told, here = self._facts.dropped(self.handle)
        return max(self._now().dropped, told) + here

    @property
    def obstacle(self) -> UbpxError | None:
        """While it is PENDING: why it could not be armed when that was last tried."""
        failure = self._now().obstacle
        return None if failure is None else as_error(failure)

    @property
    def state(self) -> LeaseState:
        """What became of it: LOST too when the broker is gone, QUARANTINED when it has thrown us out.

        RELEASED at once when it is released in a handler. After its client's ``close``, or a detach, too: a
        persistent one stays in the broker, and is no more of ours.
        """
        self._now()
        return self.known_state

    @property
    def watchpoint(self) -> RemoteWatchpoint | None:
        """The debug register that it shares; None for a lease of a probepoint."""
        info = self._now().watchpoint
        return None if info is None else self._facts.watchpoint(info)

    def _now(self) -> LeaseInfo:
        return self.known

    # What its client and the handlers' thread need ------------------------------------------

    @property
    def known_state(self) -> LeaseState:
        """Its state as far as we know, without asking."""
        state = LeaseState(self.known.state)
        if state not in _LIVING:
            return state
        if self._ended is not None:
            return self._ended
        ending = self._facts.ending
        return state if ending is None else _ENDED_AS[ending.kind]

    @property
    def is_over(self) -> bool:
        """Whether nothing about it can change any more, as far as we know."""
        return self.known_state not in _LIVING

    @property
    def place(self) -> str:
        """Where it is, for people, as far as we know."""
        return f"{self.known.address or 0:#x}"

    def take(self, info: LeaseInfo) -> None:
        """The broker has said how it is now."""
        if not self.is_over:
            self.known = info

    def end(self) -> None:
        """It was given back, or its client has closed."""
        if self._facts.ending is None:
            self._ended = self._ended or LeaseState.RELEASED

    def count_error(self) -> None:
        """A handler has raised, and the broker is not told."""
        self._errors_here += 1

    def __repr__(self) -> str:
        where = self.spec or (self.place if self.known.address is not None else "nowhere")
        return f"<lease of {self.client.name!r} at {where}: {self.known_state}, {self.known.hits} hits>"


class Desk(KnownDesk, Protocol):
    """Where questions about leases go."""

    def refresh(self, leases: "Sequence[RemoteLease]") -> None:
        """Ask how these are, at once; what cannot be found out stays as it was last known."""
        ...

    def release(self, leases: "Sequence[RemoteLease]") -> None:
        """Give these back at once. Again: does nothing."""
        ...

    def probepoint(self, address: int) -> RemoteProbepoint:
        """The one at this address."""
        ...


class RemoteLease(KnownLease):
    """A client's share of a probepoint in a broker.

    What can change (``address``, ``dropped``, ``errors``, ``hits``, ``obstacle``, ``probepoint``, ``state``) is asked
    of the broker when it is read. Once the lease, the client, the target or the connection has ended, it is what was
    last known. Made by a client; one object for each lease of a connection.
    """

    def __init__(self, client: Any, info: LeaseInfo, handler: Handler | None, desk: Desk, *, watches: bool) -> None:
        super().__init__(client, info, handler, desk, watches=watches)
        self._desk: Final = desk

    @property
    def probepoint(self) -> RemoteProbepoint | None:
        """The place that it shares; None while it is PENDING, and for a watchpoint."""
        address = None if self._watches else self._now().address
        return None if address is None else self._desk.probepoint(address)

    def _now(self) -> LeaseInfo:
        self._desk.refresh((self,))
        return self.known

    def release(self) -> None:
        """Give it back; ``hits`` stays readable. Doing it twice does nothing."""
        self._desk.release((self,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


L = TypeVar("L", bound=KnownLease)


class KnownLeaseGroup(Sequence[L]):
    """The leases that one ``probe_many`` gave, one for each address. Immutable."""

    def __init__(self, client: Any, leases: Sequence[L], refused: Sequence[RefusalInfo]) -> None:
        self.client: Final = client
        self.refused: Final = tuple(Refusal(each.name, as_error(each.failure)) for each in refused)
        """What was left out because it cannot be probed."""
        self._leases: Final = tuple(leases)

    @property
    def hits(self) -> int:
        """Of all its leases together."""
        return sum(lease.known.hits for lease in self._leases)

    @overload
    def __getitem__(self, index: int) -> L: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[L, ...]: ...
    def __getitem__(self, index: int | slice) -> L | tuple[L, ...]:
        return self._leases[index]

    def __len__(self) -> int:
        return len(self._leases)

    def __repr__(self) -> str:
        hits = sum(lease.known.hits for lease in self._leases)
        return f"<{len(self)} leases of {self.client.name!r}: {hits} hits>"


class RemoteLeaseGroup(KnownLeaseGroup[RemoteLease]):
    """The leases that one ``probe_many`` gave, one for each address. Immutable; usable from any thread."""

    def __init__(self, client: Any, leases: Sequence[RemoteLease], refused: Sequence[RefusalInfo], desk: Desk) -> None:
        super().__init__(client, leases, refused)
        self._desk: Final = desk

    @property
    def hits(self) -> int:
        """Of all its leases together, asked for at once."""
        self._desk.refresh(self._leases)
        return super().hits

    def release(self) -> None:
        """Give all of them back at once. Doing it twice does nothing."""
        self._desk.release(self._leases)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def parted(leases: Iterable[L]) -> tuple[list[L], list[L]]:
    """Those that stay in the broker when their client goes, and those that do not."""
    staying: list[L] = []
    going: list[L] = []
    for lease in leases:
        (staying if lease.persistent else going).append(lease)
    return staying, going


def questions_about(
    leases: Sequence[KnownLease], call: Callable[[list[Handle]], Call]
) -> Iterator[tuple[Call, Callable[[msgspec.Raw], None]]]:
    """Requests that name these leases, as many as are needed, and what takes each one's reply."""
    for start in range(0, len(leases), _HANDLES):
        some = leases[start : start + _HANDLES]
        yield call([lease.handle for lease in some]), _taken_by(some)


def _taken_by(leases: Sequence[KnownLease]) -> Callable[[msgspec.Raw], None]:
    def take(value: msgspec.Raw) -> None:
        for lease, info in zip(leases, _leases(value), strict=True):
            lease.take(info)

    return take
