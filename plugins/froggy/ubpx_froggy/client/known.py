"""A client of ours, as far as it is known here; how its requests are checked and made. Sans-IO."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from ubpx import UsageError
from ubpx_froggy.client import checks
from ubpx_froggy.client.conversation import Decode, decoder
from ubpx_froggy.client.facts import AnyDesk, KnownLink
from ubpx_froggy.client.hooks import Hooks
from ubpx_froggy.client.leases import Handler, KnownLease
from ubpx_froggy.client.standing import ClientState, Standing
from ubpx_froggy.messages import (
    Catch,
    ClientInfo,
    GroupInfo,
    Handle,
    HoldInfo,
    LeaseInfo,
    OpenClient,
    Probe,
    ProbeMany,
    Step,
    TakeHold,
    Watch,
)

L = TypeVar("L", bound=KnownLease)
D = TypeVar("D", bound=AnyDesk[Any, Any, Any])

read_group: Final = decoder(GroupInfo)
read_hold: Final = decoder(HoldInfo)

_client: Final = decoder(ClientInfo)
_lease: Final = decoder(LeaseInfo)
_leases: Final = decoder(list[LeaseInfo])
_log = logging.getLogger("ubpx.clients")


class KnownClient(ABC, Generic[L, D]):
    """A client of ours; what it is and has, without asking."""

    def __init__(self, name: str, *, priority: int, target: Any, desk: D, hooks: Hooks) -> None:
        self.name: Final = name
        self.priority: Final = priority
        self.target: Final = target
        """Where it is a client."""
        self.hooks = hooks
        """What the broker may call, by name."""
        self.handle: Handle | None = None
        """None until the broker has opened it."""
        self.strikes = 0
        """Exceptions since the last success, as far as we know them here."""
        self.told: Final[set[str]] = set()
        """Which hooks have been called of those that are called once."""
        self._desk: Final = desk
        self._link: Final[KnownLink] = desk.link
        self._roster: Final = self._link.roster
        self._standing: Final = Standing(name, self._link)

    def check_live(self) -> None:
        """As far as we know: raises ClientQuarantined, BrokerGone, UsageError if it is closed or we have detached."""
        self._standing.check()

    def known_as(self, handle: Handle) -> None:
        """The broker has given it this handle."""
        self.handle = handle
        self._roster.clients[handle] = self

    def _read_opened(self, value: msgspec.Raw) -> None:
        info: ClientInfo = _client(value)
        self.known_as(info.client)
        for lease in info.leases:
            self._grant(lease, None)

    def _is_closed(self, clients: dict[str, Any]) -> None:
        """It has left; ``clients`` are those of the connection that have not."""
        if self._link.ending is None:
            self._link.roster.forget_client(self._opened())
        self._standing.state = ClientState.CLOSED
        if clients.get(self.name) is self:
            del clients[self.name]

    def failed(self, error: BaseException, where: str) -> None:
        """Log an exception of the client's code; the broker counts them, and quarantines."""
        self.strikes += 1
        _log.warning("client %r raised in %s (%d in a row)", self.name, where, self.strikes, exc_info=error)

    def _opened(self) -> Handle:
        if self.handle is None:
            raise UsageError(f"client {self.name!r} has not joined; it is made by target.client")
        return self.handle

    # Leases -------------------------------------------------------------------------------

    @abstractmethod
    def _make_lease(self, info: LeaseInfo, handler: Handler | None, *, watches: bool) -> L: ...

    def _grant(self, info: LeaseInfo, handler: Handler | None, *, watches: bool = False) -> L:
        """The one object for a lease."""
        leases: dict[Handle, L] = self._roster.leases
        lease = leases.get(info.lease)
        if lease is None:
            lease = leases[info.lease] = self._make_lease(info, handler, watches=watches)
        else:
            lease.take(info)
            lease.handler = handler or lease.handler
        return lease

    def _granting(self, handler: Handler | None, *, watches: bool = False) -> Decode:
        """What reads a reply that gives one lease."""
        return lambda value: self._grant(_lease(value), handler, watches=watches)

    def _read_leases(self, value: msgspec.Raw) -> Sequence[L]:
        """What the reply to ``Leases`` says."""
        return tuple(self._grant(info, None) for info in _leases(value))

    @property
    def _has_none(self) -> bool:
        """Whether it can have no leases any more, as far as we know."""
        return self._standing.state is ClientState.CLOSED or self._link.ending is not None

    def _mine(self) -> list[L]:
        """Its leases that have not been given back."""
        leases: dict[Handle, L] = self._roster.leases
        return [lease for lease in tuple(leases.values()) if lease.client is self]

    # Requests -----------------------------------------------------------------------------

    def _open(self) -> OpenClient:
        return OpenClient(self._desk.target, self.name, self.priority, sorted(self.hooks))

    def _probe(
        self,
        place: str | int,
        handler: object,
        *,
        mode: str,
        persistent: bool,
        strategy: str | None,
        exclusive: bool,
        priority: int | None,
        assume_boundary: bool,
        defer: bool,
        once: bool,
    ) -> Probe:
        self._check(handler, place, mode, priority)
        flags = {"persistent": persistent, "exclusive": exclusive, "assume_boundary": assume_boundary}
        checks.check_flags(**flags, defer=defer, once=once)
        return Probe(
            self._opened(),
            checks.checked_place(place),
            mode,
            persistent=persistent,
            strategy=checks.checked_strategy(strategy),
            exclusive=exclusive,
            priority=self.priority if priority is None else priority,
            assume_boundary=assume_boundary,
            defer=defer,
            once=once,
        )

    def _probe_many(
        self,
        places: Iterable[str | int] | str,
        handler: object,
        *,
        mode: str,
        once: bool,
        strategy: str | None,
        exclusive: bool,
        priority: int | None,
        assume_boundary: bool,
        skip_refused: bool | None,
    ) -> ProbeMany:
        self._check(handler, "probe_many", mode, priority)
        checks.check_flags(once=once, exclusive=exclusive, assume_boundary=assume_boundary)
        if skip_refused is not None:
            checks.check_flags(skip_refused=skip_refused)
        return ProbeMany(
            self._opened(),
            checks.checked_places(places),
            mode,
            once=once,
            strategy=checks.checked_strategy(strategy),
            exclusive=exclusive,
            priority=self.priority if priority is None else priority,
            assume_boundary=assume_boundary,
            skip_refused=skip_refused,
        )

    def _watch(
        self, address: int, handler: object, *, mode: str, size: int, access: str, priority: int | None
    ) -> Watch:
        self._check(handler, address, mode, priority)
        checks.check_watch(address, size, access)
        order = self.priority if priority is None else priority
        return Watch(self._opened(), address, mode, size, access, order)

    def _check(self, handler: object, place: object, mode: object, priority: object) -> None:
        self.check_live()
        checks.check_handler(handler, place, mode)
        checks.check_priority(priority)

    def _take_hold(self, thread: int | None) -> TakeHold:
        self.check_live()
        if thread is not None:
            checks.check_tid(thread)
        return TakeHold(self._opened(), thread)

    def _step(self, thread: int, registers: Mapping[str, int] | None, signal: int | None) -> Step:
        self.check_live()
        checks.check_tid(thread)
        written, number = checks.checked_parting(registers, signal)
        return Step(self._opened(), thread, written, number)

    def _catch_signals(self, signals: Iterable[int] | None) -> Catch:
        self.check_live()
        return self._catch("signals", checks.checked_signals(signals), ("ubpx_signal",))

    def _catch_syscalls(self, calls: Iterable[int | str] | None) -> Catch:
        self.check_live()
        hooks = ("ubpx_syscall_entered", "ubpx_syscall_exited")
        return self._catch("syscalls", checks.checked_syscalls(calls), hooks)

    def _catch(self, what: str, wanted: list[int | str] | None, hooks: Sequence[str]) -> Catch:
        if not any(hook in self.hooks for hook in hooks):
            raise UsageError(f"client {self.name!r} implements no {hooks[0]}, which would be called for these")
        return Catch(self._opened(), what, wanted)

    def __repr__(self) -> str:
        return f"<client {self.name!r}, {self._standing.state}>"
