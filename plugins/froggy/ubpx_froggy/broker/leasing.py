"""Requests about leases."""

import ctypes
from collections.abc import Callable
from typing import Any, Final

from ubpx import Lease, LeaseGroup, UsageError
from ubpx_froggy import messages as m
from ubpx_froggy.broker.entries import Entry, EntryGroup
from ubpx_froggy.broker.guests import Guest
from ubpx_froggy.broker.seats import Seat
from ubpx_froggy.failures import as_failure

_MANY: Final = 1000
"""Leases at once; what finding and arming so many has used for a moment is given back to the system."""
_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's: else it keeps most of that, half a kilobyte for each (measured). None: this is another C library."""


def probe(guest: Guest, seat: Seat, call: m.Probe) -> m.LeaseInfo:
    """Lease one place; a persistent lease of that place, left by a former client, is taken up again."""
    if call.once and call.persistent:
        raise UsageError("a lease that ends at its first hit is not kept for later; leave out once, or persistent")
    left = _left_behind(seat, call)
    if left is not None:
        return left.info()
    options: dict[str, Any] = {
        "strategy": call.strategy,
        "exclusive": call.exclusive,
        "priority": call.priority,
        "assume_boundary": call.assume_boundary,
        "defer": call.defer,
        "once": call.once,
    }
    entry = _new_entry(guest, seat, call.place, mode=call.mode, persistent=call.persistent)
    return _granted(guest, seat, entry, lambda: seat.client.probe(call.place, entry.handler, **options))


def watch(guest: Guest, seat: Seat, call: m.Watch) -> m.LeaseInfo:
    """Lease a debug register."""
    entry = _new_entry(guest, seat, call.address, mode=call.mode, persistent=False)
    options: dict[str, Any] = {"size": call.size, "access": call.access, "priority": call.priority}
    return _granted(guest, seat, entry, lambda: seat.client.watch(call.address, entry.handler, **options))


def probe_many(guest: Guest, seat: Seat, call: m.ProbeMany) -> m.GroupInfo:
    """Lease many places, each with a handle of its own."""
    if call.mode == "sync":
        guest.check_channel("handlers in mode sync")
    guest.check_probes(1 if isinstance(call.places, str) else len(call.places))
    group = EntryGroup(seat, call.mode, seat.priority if call.priority is None else call.priority)
    leases = seat.client.probe_many(
        call.places,
        group,
        once=call.once,
        strategy=call.strategy,
        exclusive=call.exclusive,
        priority=call.priority,
        assume_boundary=call.assume_boundary,
        skip_refused=call.skip_refused,
    )
    try:
        seat.groups[group.secret] = group
        infos = group.grant(leases)
        guest.check_probes(0)
        guest.check_slots()
        if seat.guest is None:
            raise UsageError(f"client {seat.name!r} has left meanwhile; open it again")
    except BaseException:
        leases.release()
        seat.groups.pop(group.secret, None)
        group.take_back()
        raise
    if len(infos) >= _MANY and _trim is not None:
        _trim(0)
    return m.GroupInfo(infos, _refused(leases))


def _refused(group: LeaseGroup) -> list[m.RefusalInfo]:
    return [m.RefusalInfo(refusal.name, as_failure(refusal.error)) for refusal in group.refused]


def _new_entry(guest: Guest, seat: Seat, place: str | int, *, mode: str, persistent: bool) -> Entry:
    entry = Entry(seat, place, mode=mode, persistent=persistent)
    if mode == "sync":
        guest.check_channel("handlers in mode sync")
    guest.check_probes(1)
    return entry


def _granted(guest: Guest, seat: Seat, entry: Entry, grant: Callable[[], Lease]) -> m.LeaseInfo:
    seat.entries[entry.handle] = entry  # the first hit may come before this returns
    try:
        entry.lease = grant()
        guest.check_slots()
    except BaseException:
        seat.entries.pop(entry.handle, None)
        if entry.lease is not None:
            entry.lease.release()
        raise
    if seat.guest is None and not entry.persistent:  # the connection has ended meanwhile
        entry.lease.release()
    return entry.info()


def _left_behind(seat: Seat, call: m.Probe) -> Entry | None:
    """The persistent lease of this place that the client left when it was here before."""
    if not call.persistent:
        return None
    entry = seat.left_behind(call.place)
    if entry is not None:
        had, wanted = _options_of(entry, seat), _options_asked(call, seat)
        if had != wanted:
            raise UsageError(
                f"the persistent lease of {call.place!r} that was left has {had}, and not {wanted}; probe so, or "
                "release it first"
            )
        entry.left = False
    return entry


def _options_of(entry: Entry, seat: Seat) -> str:
    lease = entry.lease
    priority, exclusive = (lease.priority, lease.exclusive) if lease is not None else (seat.priority, False)
    return f"mode {entry.mode!r}, priority {priority}, exclusive {exclusive}"


def _options_asked(call: m.Probe, seat: Seat) -> str:
    priority = seat.priority if call.priority is None else call.priority
    return f"mode {call.mode!r}, priority {priority}, exclusive {call.exclusive}"


def release(guest: Guest, handles: list[bytes]) -> list[m.LeaseInfo]:
    """End them; what they have counted."""
    guest.make(handles)
    entries = [guest.entry(handle) for handle in handles]
    by_seat: dict[Seat, list[Entry]] = {}
    for entry in entries:
        by_seat.setdefault(entry.seat, []).append(entry)
    for seat, some in by_seat.items():
        seat.client.release_all([entry.lease for entry in some if entry.lease is not None])
    infos = [entry.info() for entry in entries]
    for entry in entries:
        entry.seat.forget(entry)
        guest.notices.forget(entry.handle)
    return infos
