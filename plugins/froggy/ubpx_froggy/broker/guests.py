"""A connection's share of the broker: what its handles mean, its clients, its channel."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, TypeVar

import msgspec

from ubpx import Hold, NoSuchProcess, PermissionRefused, QuotaExceeded, Target, UbpxError, UsageError
from ubpx.core.ports import Memory
from ubpx_froggy.broker.access import ROOT, Peer, Right, check_target
from ubpx_froggy.broker.channel import Channel
from ubpx_froggy.broker.entries import Entry, new_handle
from ubpx_froggy.broker.hosted import Hosted
from ubpx_froggy.broker.notices import Mailer, Notices
from ubpx_froggy.broker.quotas import Quotas
from ubpx_froggy.broker.seats import Seat
from ubpx_froggy.messages import Call, Handle, Hits, LeaseInfo

Thing = TypeVar("Thing")
_TRUST_S: Final = 0.1
"""Looking a process's credentials up costs as much as a hit."""
_MANY_HOLDS: Final = 1024
_LOOKS: Final = 5
"""So often, in the time that something may be kept stopped, it is looked for."""
_LEAST_LOOK_S: Final = 0.02
_ENDED: Final = 100_000
"""So many handles of leases that have ended a connection may keep; they end with ``Release``, too."""


class Used:
    """A target, as one connection uses it."""

    def __init__(self, hosted: Hosted, right: Right) -> None:
        self.handle: Final = new_handle()
        self.hosted: Final = hosted
        self.right: Final = right
        """What the connection may do there at most."""
        self.waiting: Final[set[Callable[[UbpxError], None]]] = set()
        """Who waits for the end of the process; told why where the connection does not use it any more."""

    def over(self, error: UbpxError) -> None:
        """It is not used any more; from any thread."""
        for tell in tuple(self.waiting):
            tell(error)


class Guest:
    """One connection. Handles are looked up here, so nobody can name what is another's.

    Its methods run in worker threads, or in the tracer thread while one of its handlers asks for something.
    """

    def __init__(
        self,
        peer: Peer,
        quotas: Quotas,
        mailer: Mailer,
        *,
        perform: Callable[["Guest", Call], msgspec.Raw],
        submit: Callable[[Callable[[], object]], None],
        settle: Callable[[Callable[[], object]], None],
        send: Callable[[Hits], bool],
        end: Callable[[str | None], None],
        later: Callable[[float, Callable[[], None]], None],
        left: Callable[[], None],
    ) -> None:
        self.peer: Final = peer
        self.quotas: Final = quotas
        self.channel: Channel | None = None
        self.notices: Final = Notices(quotas.queue, send, mailer)
        self.submit: Final = submit
        self.settle: Final = settle
        self.evicted: str | None = None
        """Why; None: it was not."""
        self.held_s = 0.0
        """For how long it has kept the program waiting then, in seconds."""
        self._perform: Final = perform
        self._end: Final = end
        self._later: Final = later
        self._left: Final = left
        self._used: Final[dict[Handle, Used]] = {}
        self._seats: Final[dict[Handle, tuple[Hosted, Seat]]] = {}
        self._holds: Final[dict[Handle, Hold]] = {}
        self._allowed: Final[dict[int, tuple[Memory, float]]] = {}
        """By pid: which memory it had when its credentials were looked up last, and until when they are trusted.

        Monotonic seconds. An exec, which may change the credentials, gives it another memory.
        """
        self._lock: Final = threading.Lock()
        self._looks = False
        """Whether somebody looks for what is kept stopped too long; guarded by the lock."""
        self._stopped: dict[Hold, float] = {}
        """What its clients kept stopped when that was looked for last, and since when at least."""
        self.gone = False
        """Whether the connection has ended; what it had is swept soon."""

    # What the channel needs of its owner ------------------------------------------------------

    def perform(self, call: Call) -> msgspec.Raw:
        """Do what the peer asks; raises an UbpxError."""
        return self._perform(self, call)

    def evict(self, reason: str) -> None:
        """Take everything back, tell the peer why, and end. Again: does nothing."""
        self._end(reason)

    def lost(self) -> None:
        """The peer has gone."""
        self._end(None)

    # Targets ------------------------------------------------------------------------------------

    def refusal(self, pid: int) -> PermissionRefused | None:
        """Why the peer may not use the process, if it may not; looked up anew."""
        self._allowed.pop(pid, None)
        try:
            check_target(self.peer, pid)
        except PermissionRefused as refusal:
            return refusal
        except UbpxError:  # it has ended, and there is nothing left to protect
            return None
        return None

    def stranger(self, hosted: Hosted) -> PermissionRefused | None:
        """Why the peer may not come to use a target, if it may not; looked up anew.

        What has ended has no credentials any more; it is for those that use it, and for their users.
        """
        with contextlib.suppress(NoSuchProcess):
            if hosted.status is None:
                try:
                    check_target(self.peer, hosted.pid)
                except PermissionRefused as refusal:
                    return refusal
                return None
        users = {ROOT, os.geteuid(), *(each.peer.uid for each in tuple(hosted.guests))}
        if self.peer.uid in users:
            return None
        return PermissionRefused(hosted.pid, "it has ended, and was used by others", "attach to one that runs")

    def use(self, hosted: Hosted, right: Right) -> Used:
        """Have a target; raises PermissionRefused."""
        used = Used(hosted, right)
        refusal = self.stranger(hosted)
        if refusal is None:
            self._used[used.handle] = used
            hosted.guests.add(self)
            # Once more: an exec of before that moment has not asked for us, and one of after it will.
            refusal = self.refusal(hosted.pid) if hosted.status is None else None
        if refusal is not None or self.gone:  # gone: the connection has ended while this was asked for
            self.leave(used)
        if refusal is not None:
            raise refusal
        return used

    def used(self, handle: Handle, right: Right) -> Used:
        """The target that a handle names; raises UsageError, PermissionRefused where that is not allowed."""
        return self.memory(handle, right)[0]

    def memory(self, handle: Handle, right: Right) -> tuple[Used, Memory]:
        """The same, with its memory: the very one that the peer may use, should the process exec meanwhile."""
        used = _found(self._used, handle, "target")
        if used.right < right:
            cause = f"this connection asked for {used.right.name.lower()} access alone"
            raise PermissionRefused(used.hosted.pid, cause, "connect without read_only=True")
        return used, self._checked_memory(used.hosted)

    def _checked_memory(self, hosted: Hosted) -> Memory:
        memory = hosted.target.memory  # first: credentials that are looked up later are no older than it
        trusted, until = self._allowed.get(hosted.pid, (None, 0.0))
        if hosted.status is None and not (memory is trusted and monotonic() < until):
            refusal = self.refusal(hosted.pid)
            if refusal is not None:
                raise refusal
            self._allowed[hosted.pid] = memory, monotonic() + _TRUST_S
        return memory

    def child(self, used: Used, pid: int) -> Target:
        """A followed child of a target that is used; raises UsageError, PermissionRefused."""
        found = next((each for each in used.hosted.target.family if each.pid == pid), None)
        if found is None:
            raise UsageError(f"process {pid} is no followed child of target {used.hosted.pid}, or has ended")
        if self.has_less_rights:
            refusal = self.refusal(pid)
            if refusal is not None:
                raise refusal
        return found

    def confirm(self, used: Used) -> None:
        """What was read a moment ago may be given to the peer; raises as ``used`` does, looked up anew.

        For what is read of the process itself, whatever program that runs by now.
        """
        if not self.uses(used):
            raise _not_used(used.hosted.pid)
        if self.has_less_rights and used.hosted.status is None:
            refusal = self.refusal(used.hosted.pid)
            if refusal is not None:
                raise refusal

    @property
    def has_less_rights(self) -> bool:
        """Whether the broker might do to a process what the peer may not."""
        return self.peer.uid != ROOT and os.geteuid() == ROOT

    def uses(self, used: Used) -> bool:
        """Whether it was neither given up nor taken away."""
        return used.handle in self._used

    def leave(self, used: Used) -> None:
        """Close all clients there, and use it no more."""
        self._used.pop(used.handle, None)
        hosted = used.hosted
        used.over(_not_used(hosted.pid))
        if not any(other.hosted is hosted for other in tuple(self._used.values())):
            self._catch_up()
            for seat in self._seats_on(hosted):
                self._close_seat(seat)
            hosted.guests.discard(self)

    def lose_target(self, hosted: Hosted, reason: str) -> None:
        """The target is taken from the connection."""
        for seat in self._seats_on(hosted):
            self._drop_seat(seat)
            hosted.expel_seat(seat, reason, 0.0)
        cause = "it runs a program now that this user may not trace"
        for used in [each for each in tuple(self._used.values()) if each.hosted is hosted]:
            self._used.pop(used.handle, None)
            used.over(PermissionRefused(hosted.pid, cause, "connect as root"))
        self._allowed.pop(hosted.pid, None)
        hosted.guests.discard(self)

    def _seats_on(self, hosted: Hosted) -> list[Seat]:
        return [seat for place, seat in tuple(self._seats.values()) if place is hosted]

    # Clients ------------------------------------------------------------------------------------

    def open_seat(self, used: Used, name: str, priority: int, hooks: list[str]) -> Seat:
        """A client of this connection; raises QuotaExceeded, and what ``Hosted.open_seat`` does."""
        if len(self._seats) >= self.quotas.clients:
            raise QuotaExceeded("clients", self.quotas.clients)
        if hooks:
            self.check_channel("hooks")
        seat = used.hosted.open_seat(name, priority, hooks, self, self.peer.uid)
        if self.gone or not self.uses(used):  # taken away while this was asked for
            self._drop_seat(seat)
            used.hosted.close_seat(seat)
        if not self.uses(used):
            raise _not_used(used.hosted.pid)
        return seat

    def seated(self, hosted: Hosted, seat: Seat) -> None:
        """The connection has a client there from now on: its hooks may ask for things before it has joined."""
        self._seats[seat.handle] = hosted, seat
        with self._lock:
            first, self._looks = not self._looks, True
        if first:
            self._look_again()

    def unseated(self, seat: Seat) -> None:
        """It could not join."""
        self._drop_seat(seat)

    def check_channel(self, what: str) -> None:
        """Raises UsageError where nobody could be asked."""
        if self.channel is None:
            raise UsageError(f"{what} need a channel, and this connection has none; open it first (see the protocol)")

    def seat(self, handle: Handle, right: Right) -> tuple[Hosted, Seat]:
        """The client that a handle names; raises UsageError, PermissionRefused."""
        hosted, seat = _found(self._seats, handle, "client")
        self._check(hosted, right)
        return hosted, seat

    def _check(self, hosted: Hosted, right: Right) -> None:
        rights = [used.right for used in tuple(self._used.values()) if used.hosted is hosted]
        if not rights:
            raise _not_used(hosted.pid)
        if max(rights) < right:
            raise PermissionRefused(hosted.pid, "this connection reads alone by now", "join it again")
        self._checked_memory(hosted)

    def close_seat(self, seat: Seat) -> None:
        """A client leaves, when what its handlers have answered is done."""
        self._catch_up()
        self._close_seat(seat)

    def _catch_up(self) -> None:
        if self.channel is not None:
            self.channel.catch_up()

    def _close_seat(self, seat: Seat) -> None:
        hosted = self._drop_seat(seat)
        if hosted is not None:
            hosted.close_seat(seat)

    def _drop_seat(self, seat: Seat) -> Hosted | None:
        hosted, _ = self._seats.pop(seat.handle, (None, seat))
        return hosted

    # Leases and holds -----------------------------------------------------------------------------

    def entry(self, handle: Handle) -> Entry:
        """The lease that a handle names; raises UsageError."""
        return self._of_a_seat(lambda seat: seat.entry(handle))

    def lease_info(self, handle: Handle) -> LeaseInfo:
        """The same, told of: nothing is made for that."""
        return self._of_a_seat(lambda seat: seat.info(handle))

    def _of_a_seat(self, look: Callable[[Seat], Thing | None]) -> Thing:
        """What the first client has of whom ``look`` finds something; raises UsageError if none has."""
        for _, seat in tuple(self._seats.values()):
            found = look(seat)
            if found is not None:
                return found
        raise _unknown("lease")

    def make(self, handles: Sequence[Handle]) -> None:
        """What is to be made of the leases that handles name, in one go."""
        for _, seat in tuple(self._seats.values()):
            seat.make(handles)

    def check_probes(self, more: int) -> None:
        """Raises QuotaExceeded if so many leases more would be too many."""
        tables = [seat.entries for _, seat in tuple(self._seats.values())]
        unmade = sum(seat.unmade for _, seat in tuple(self._seats.values()))
        total = sum(map(len, tables))
        if total + unmade + more <= self.quotas.probes:
            return
        entries = [entry for table in tables for entry in tuple(table.values())]
        alive = sum(entry.lease is None or entry.is_alive for entry in entries)
        if alive + unmade + more > self.quotas.probes:
            raise QuotaExceeded("probes", self.quotas.probes)
        if total - alive > _ENDED:
            raise QuotaExceeded("leases that have ended and were not released", _ENDED)

    def check_slots(self) -> None:
        """Raises QuotaExceeded if the connection has too many leases that need a slot, the last one included."""
        tables = [seat.entries for _, seat in tuple(self._seats.values())]
        if sum(map(len, tables)) <= self.quotas.slots:
            return
        if sum(_has_slot(entry) for table in tables for entry in tuple(table.values())) > self.quotas.slots:
            raise QuotaExceeded("slots", self.quotas.slots)

    def add_hold(self, hold: Hold, seat: Seat) -> Handle:
        """A handle for a hold of this connection's."""
        for handle, known in tuple(self._holds.items()):
            if known is hold:
                return handle
        if len(self._holds) >= _MANY_HOLDS:  # most of those that verdicts took ended otherwise than by their handles
            for known_handle, known in tuple(self._holds.items()):
                if known.released:
                    self._holds.pop(known_handle, None)
        handle = new_handle()
        self._holds[handle] = hold
        seat.note_stop()
        return handle

    def hold(self, handle: Handle) -> Hold:
        """The hold that a handle names; raises UsageError, PermissionRefused."""
        hold = _found(self._holds, handle, "hold")
        used = (each.hosted for each in tuple(self._used.values()))
        hosted = next((each for each in used if each.has(hold.process)), None)
        if hosted is None:
            raise _not_used(hold.process)
        self._check(hosted, Right.CHANGE)
        return hold

    def drop_hold(self, handle: Handle) -> None:
        """It was released."""
        self._holds.pop(handle, None)

    def owns(self, hold: Hold) -> Seat | None:
        """The client of this connection whose hold it is."""
        owners = (seat for hosted, seat in tuple(self._seats.values()) if hosted.has(hold.process))
        return next((seat for seat in owners if seat.name == hold.owner), None)

    def note_stop(self, seat: Seat) -> None:
        """A client keeps something stopped from now on: that is found out in any case (see ``_look_again``)."""

    def _look_again(self) -> None:
        """Look from time to time for what is kept stopped too long, where there is a limit to that."""
        limit = self.quotas.stop_s
        if limit is not None and not self.gone:
            self._later(max(limit / _LOOKS, _LEAST_LOOK_S), lambda: self.submit(self._check_stops))

    def _check_stops(self) -> None:
        """In a worker thread. A hold that was found for the first time is younger than the last look."""
        now, found = monotonic(), dict[Hold, float]()
        for hosted, seat in tuple(self._seats.values()):
            for target in (hosted.target, *hosted.target.family):
                with contextlib.suppress(UbpxError):
                    for hold in target.holds():
                        if hold.owner == seat.name:
                            found[hold] = self._stopped.get(hold, now)
        self._stopped = found
        longest = now - min(found.values(), default=now)
        if longest >= (self.quotas.stop_s or 0.0) and found:
            name = min(found, key=lambda hold: found[hold]).owner
            self.held_s = longest
            self.evict(f"client {name!r} has kept threads stopped for {longest:.1f} s")
        else:
            self._look_again()

    # The end ----------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """The connection has ended: give everything back. In a worker thread; again: does nothing."""
        self.gone = True
        for hosted, seat in tuple(self._seats.values()):
            self._drop_seat(seat)
            seat.guest = None  # nobody is there to be told any more
            if self.evicted is None:
                hosted.close_seat(seat)
            else:
                hosted.expel_seat(seat, self.evicted, self.held_s)
        for used in tuple(self._used.values()):
            self._used.pop(used.handle, None)
            used.hosted.guests.discard(self)
        if self.channel is not None:
            self.channel.close()
        self._left()


def _found(among: dict[Handle, Thing], handle: Handle, what: str) -> Thing:
    found = among.get(handle)
    if found is None:
        raise _unknown(what)
    return found


def _has_slot(entry: Entry) -> bool:
    probepoint = entry.lease.probepoint if entry.lease is not None else None
    return probepoint is not None and probepoint.slot is not None


def _not_used(pid: int) -> UsageError:
    return UsageError(f"target {pid} is not used by this connection any more; join it again")


def _unknown(what: str) -> UsageError:
    return UsageError(f"no {what} of this connection has that handle; handles are good where they were given out alone")
