"""The broker's targets: who uses each, which clients have a seat there, and what happens when one ends."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ubpx import PermissionRefused, Target, UbpxError, UsageError
from ubpx.core.ports import ClientApi
from ubpx.hookspecs import hookimpl
from ubpx_froggy.broker.seats import Guest, Seat

BROKER: Final = "ubpx-broker"
"""The name of the broker's own client on each target; it probes nothing."""
_PATIENCE_S: Final = 0.5
"""How long a client waits for its predecessor of the same name to be swept."""


class HostedGuest(Guest, Protocol):
    """A connection, as its targets know it."""

    def refusal(self, pid: int) -> Exception | None:
        """Why the peer may not use the process, if it may not."""
        ...

    def seated(self, hosted: "Hosted", seat: Seat) -> None:
        """The connection has a client there from now on: its hooks may ask for things before it has joined."""
        ...

    def unseated(self, seat: Seat) -> None:
        """It could not join."""
        ...

    def lose_target(self, hosted: "Hosted", reason: str) -> None:
        """The target is taken from the connection; in the tracer thread."""
        ...


class Hosted:
    """One target of the broker. Owned by its Host."""

    def __init__(self, target: Target, *, on_demand: bool, spawned: bool) -> None:
        self.target: Final = target
        self.on_demand: Final = on_demand
        """Whether a client asked for it: then it is left when nobody uses it any more."""
        self.spawned: Final = spawned
        self.pid: Final = target.pid
        self.guests: Final[set[Any]] = set()
        """The connections that use it."""
        self.seats: Final[dict[str, Seat]] = {}
        """By client's name, the absent ones included."""
        self.status: int | None = None
        """How the process ended; None while it has not."""
        self._lock: Final = threading.Lock()
        self._vacated: Final = threading.Condition(self._lock)
        """Notified when a seat was given up, or its client has become absent."""
        self._waiters: Final[list[Callable[[int], None]]] = []

    def watch(self, on_end: Callable[["Hosted"], None]) -> None:
        """Have the broker's own client told of an exec and of the end."""
        self.target.client(BROKER, hooks=_Watcher(self, on_end))

    def resume(self) -> None:
        """Start a program that stands at its entry point; one that has ended needs it no more."""
        with contextlib.suppress(UbpxError):
            self.target.resume()

    def on_exit(self, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called with the status when the process has ended; at once if it has. From any thread."""
        with self._lock:
            if self.status is None:
                self._waiters.append(tell)
                return
        tell(self.status)

    def forget_waiter(self, tell: Callable[[int], None]) -> None:
        """Nobody waits any more."""
        with self._lock:
            if tell in self._waiters:
                self._waiters.remove(tell)

    def ended(self, status: int) -> None:
        """The process has."""
        with self._lock:
            self.status = status
            waiters, self._waiters[:] = tuple(self._waiters), ()
        for tell in waiters:
            tell(status)

    def has(self, pid: int) -> bool:
        """Whether the process is the target's or a followed child's."""
        return pid == self.pid or any(each.pid == pid for each in self.target.family)

    def authorise_child(self, child: Target) -> None:
        """A followed child runs another program: who may not use that has no client there any more."""
        for guest in tuple(self.guests):
            refusal = guest.refusal(child.pid)
            if refusal is not None:
                names = {seat.name for seat in tuple(self.seats.values()) if seat.guest is guest}
                for client in child.clients():
                    if client.name in names:
                        client.expel(str(refusal))

    def authorise_again(self) -> None:
        """The process runs another program, perhaps with other rights: who may not use it any more loses it."""
        for guest in tuple(self.guests):
            refusal = guest.refusal(self.pid)
            if refusal is not None:
                guest.lose_target(self, str(refusal))

    def open_seat(self, name: str, priority: int, hooks: Sequence[str], guest: HostedGuest, uid: int) -> Seat:
        """A new client, or one that comes back; raises what ``target.client`` does, PermissionRefused."""
        with self._lock:
            self._vacated.wait_for(lambda: not self._is_leaving(name), _PATIENCE_S)
            seat = self.seats.get(name)
            returns = seat is not None
            if seat is None:
                seat = self.seats[name] = Seat(name, uid, self.target, guest, priority=priority, hooks=hooks)
            else:
                self._check_return(seat, uid, priority, hooks)
                seat.come_back(guest)
            guest.seated(self, seat)
        if not returns:
            try:
                seat.take()
            except BaseException:
                guest.unseated(seat)
                self.seats.pop(name, None)
                raise
        return seat

    def _is_leaving(self, name: str) -> bool:
        """Whether the client's connection has ended, and it is being swept."""
        seat = self.seats.get(name)
        return seat is not None and (seat.closing or (seat.guest is not None and seat.guest.gone))

    def _check_return(self, seat: Seat, uid: int, priority: int, hooks: Sequence[str]) -> None:
        if seat.guest is not None:
            raise UsageError(f"a client named {seat.name!r} is already here; choose another name, or close that one")
        if seat.uid != uid:
            cause = f"client {seat.name!r} has left persistent leases, and belongs to user {seat.uid}"
            raise PermissionRefused(self.pid, cause, "choose another name")
        if priority != seat.priority:
            raise UsageError(
                f"client {seat.name!r} comes back with priority {priority}, and had {seat.priority}; give the same"
            )
        if tuple(hooks) != seat.hooks:
            had = ", ".join(seat.hooks) or "none"
            raise UsageError(f"client {seat.name!r} comes back with other hooks than it had ({had}); give the same")

    def close_seat(self, seat: Seat) -> None:
        """The client leaves; it keeps its name while it has persistent leases."""
        self._vacate(seat, seat.leave)

    def expel_seat(self, seat: Seat, reason: str, held_s: float) -> None:
        """The client is thrown out."""
        self._vacate(seat, lambda: seat.expel(reason, held_s))

    def _vacate(self, seat: Seat, leave: Callable[[], bool]) -> None:
        """Nobody comes back to it while ``leave``, which says whether the seat is kept, is under way."""
        with self._lock:
            seat.closing = True
        kept = False
        try:
            kept = leave()
        finally:
            with self._lock:
                seat.closing = False
                if not kept and self.seats.get(seat.name) is seat:
                    del self.seats[seat.name]
                self._vacated.notify_all()

    @property
    def is_unused(self) -> bool:
        """Whether neither a connection nor, while it lives, an absent client has any use for it."""
        return not self.guests and (self.status is not None or not self.seats)


class _Watcher:
    """The hooks of the broker's own client. It joins first, so it is told before any other client."""

    def __init__(self, hosted: Hosted, on_end: Callable[[Hosted], None]) -> None:
        self._hosted: Final = hosted
        self._on_end: Final = on_end

    @hookimpl
    def ubpx_process_attached(self, client: ClientApi) -> None:
        """A followed child may be one that has exec'd just now."""
        if client.target is not self._hosted.target:
            self._hosted.authorise_child(client.target)

    @hookimpl
    def ubpx_process_execed(self, client: ClientApi) -> None:
        """Set-uid programs are the reason to look again."""
        if client.target is not self._hosted.target:
            self._hosted.authorise_child(client.target)
        else:
            self._hosted.authorise_again()

    @hookimpl
    def ubpx_process_exited(self, client: ClientApi, status: int) -> None:
        """Whoever waits is told."""
        if client.target is self._hosted.target:
            self._hosted.ended(status)
            self._on_end(self._hosted)
