"""The leases of a remote client as its seat has them: one by one, and as groups of which most are not made yet.

Nothing is made for a lease of a group before it is hit or somebody names it. Its handle tells which it is: eight bytes
that nobody can guess, the same for the whole group, and its address.
"""

# Rule 1: a lease has one handle. One that was hit before its group was known has a handle of its own.
# Rule 2: nobody asks the tracer thread for something with a group's lock: a hit, served there, may wait for the lock.

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from ubpx import Lease, LeaseGroup, LeaseState, UsageError
from ubpx.core.values import VirtAddr
from ubpx_froggy.broker.handlers import Absent, NotifyHandler, SyncHandler, count
from ubpx_froggy.broker.notices import Notices
from ubpx_froggy.failures import as_failure
from ubpx_froggy.messages import Handle, LeaseInfo, WatchpointInfo

ALIVE: Final = (LeaseState.ARMED, LeaseState.PENDING)
MODES: Final = ("sync", "notify", "count")
_HANDLE_SIZE: Final = 16
_SECRET_SIZE: Final = 8


def new_handle() -> Handle:
    """What nobody can guess."""
    return secrets.token_bytes(_HANDLE_SIZE)


def check_mode(mode: str) -> None:
    """Raises UsageError if there is no such mode."""
    if mode not in MODES:
        raise UsageError(f"mode={mode!r}; choose one of {', '.join(MODES)}")


class Owner(Absent, Protocol):
    """The seat whose leases they are."""

    @property
    def notices(self) -> Notices | None:
        """None while the client is absent."""
        ...

    @property
    def entries(self) -> "dict[Handle, Entry]":
        """All that are made."""
        ...


class Entry:
    """One lease of a remote client. Owned by its seat."""

    __slots__ = ("group", "handle", "handler", "late_errors", "lease", "left", "mode", "persistent", "place", "seat")

    def __init__(self, seat: Any, place: str | int, *, mode: str, persistent: bool) -> None:
        check_mode(mode)
        self.seat: Final = seat
        self.place: Final = place
        self.mode: Final = mode
        self.persistent: Final = persistent
        self.handle = new_handle()
        self.group: EntryGroup | None = None
        """The one that it is of, if it is of one."""
        self.left = False
        """Whether a former client has left it, and nobody has taken it up since."""
        self.lease: Lease | None = None
        """None until it is granted."""
        self.late_errors = 0
        """Exceptions in answers that were late: they are not in ``lease.errors``."""
        self.handler: Callable[[Any], object] = count
        if mode != "count":
            self.handler = (SyncHandler if mode == "sync" else NotifyHandler)(seat, self)

    @property
    def is_alive(self) -> bool:
        """Whether it is armed or pending."""
        return self.lease is not None and self.lease.state in ALIVE

    def described(self) -> str:
        """Its handler, for people."""
        lease = self.lease
        return f"its handler at {lease.address or 0:#x}" if lease is not None else f"its handler of {self.place!r}"

    def info(self) -> LeaseInfo:
        """As it is now."""
        lease = self.lease
        if lease is None:
            raise UsageError("the lease has not been granted yet; wait for the reply")
        notices = self.seat.notices
        return LeaseInfo(
            lease=self.handle,
            spec=lease.spec,
            address=lease.address,
            state=lease.state,
            hits=lease.hits,
            errors=lease.errors + self.late_errors,
            dropped=notices.dropped(self.handle) if notices else 0,
            mode=self.mode,
            persistent=self.persistent,
            priority=lease.priority,
            exclusive=lease.exclusive,
            forced=lease.forced,
            obstacle=None if lease.obstacle is None else as_failure(lease.obstacle),
            watchpoint=_watchpoint(lease),
            family=[lease.family_hits, lease.family_errors + self.late_errors] if lease.family else [],
        )


def _watchpoint(lease: Lease) -> WatchpointInfo | None:
    watchpoint = lease.watchpoint
    if watchpoint is None:
        return None
    watched = watchpoint.watched
    return WatchpointInfo(watched.address, watched.size, watched.access, list(watchpoint.clients))


class EntryGroup:
    """The entries of one group of leases, and the handler of all of these. Owned by its seat."""

    def __init__(self, seat: Owner, mode: str, priority: int) -> None:
        """Raises UsageError if there is no such mode; ``priority`` is that of the leases."""
        check_mode(mode)
        self.secret: Final = secrets.token_bytes(_SECRET_SIZE)
        self._seat: Final = seat
        self._mode: Final = mode
        self._priority: Final = priority
        self._leases: LeaseGroup | None = None
        """None until it is granted."""
        self._entries: Final[dict[Lease, Entry]] = {}
        self._moved: dict[Lease, VirtAddr] = {}
        """Where those were given that are elsewhere now."""
        self._ended: Final[set[Handle]] = set()
        """Those of its handles that mean nothing any more."""
        self._lock: Final = threading.Lock()

    def __call__(self, hit: Any) -> object:
        """One of the leases is hit."""
        lease = hit.lease.original
        entry = self._entries.get(lease) or self._make(lease, self._address_of(lease))
        return entry.handler(hit)

    def grant(self, leases: LeaseGroup) -> list[LeaseInfo]:
        """These are its leases; what is to be told of each."""
        with self._lock:
            self._leases = leases
        return [self._info(leases, address) for address in leases.addresses]

    def take_back(self) -> None:
        """The group was not granted after all."""
        for entry in tuple(self._entries.values()):
            self._seat.entries.pop(entry.handle, None)

    def release(self) -> None:
        """End all of its leases."""
        if self._leases is not None:
            self._leases.release()

    # What is not made -----------------------------------------------------------------------

    @property
    def unmade(self) -> int:
        """How many of the leases are armed, or wait for their module, while nothing is made of them."""
        leases = self._leases
        if leases is None:
            return 0
        if leases.state is LeaseState.ARMED:
            return max(len(leases) - len(self._entries), 0)
        made = [lease for lease in map(leases.made, leases.addresses) if lease not in self._entries]
        return sum(lease is not None and lease.state in ALIVE for lease in made)  # an exec has moved them, say

    def info(self, handle: Handle) -> LeaseInfo | None:
        """Of what a handle names, without making anything; None for one that means nothing."""
        leases, address = self._leases, self._address_in(handle)
        return None if leases is None or address is None else self._info(leases, address)

    def _info(self, leases: LeaseGroup, address: VirtAddr) -> LeaseInfo:
        lease = leases.made(address)
        if lease is not None:  # it was hit, or somebody has named it, or it never slept
            return self._make(lease, address).info()
        return LeaseInfo(
            lease=self._handle(address),
            spec=leases.spec_of(address),
            address=address,
            state=leases.state,
            hits=0,
            errors=0,
            dropped=0,
            mode=self._mode,
            persistent=False,
            priority=self._priority,
            exclusive=False,
            forced=None,
            obstacle=None,
        )

    # Making ---------------------------------------------------------------------------------

    def make(self, handles: Iterable[Handle]) -> None:
        """The entries that handles name, in one go; those that mean nothing are passed over."""
        leases = self._leases
        if leases is not None:
            addresses = [each for each in map(self._address_in, handles) if each is not None]
            for lease, address in zip(leases.at(addresses), addresses, strict=True):
                self._make(lease, address)

    def make_all(self) -> None:
        """All entries."""
        if self._leases is not None:
            self.make(map(self._handle, self._leases.addresses))

    def _make(self, lease: Lease, address: VirtAddr | None) -> Entry:
        """The lease's entry, which has none yet or this one."""
        with self._lock:
            entry = self._entries.get(lease)
            if entry is None:
                entry = Entry(self._seat, lease.spec or address or 0, mode=self._mode, persistent=False)
                entry.lease, entry.group = lease, self
                if address is not None:
                    entry.handle = self._handle(address)
                self._seat.entries[entry.handle] = entry
                self._entries[lease] = entry
            return entry

    def _address_of(self, lease: Lease) -> VirtAddr | None:
        """Where a lease that was hit was given; None while the group is not known, and for one that is none of it."""
        leases, address = self._leases, lease.address or VirtAddr(0)
        if leases is None:
            return None
        with contextlib.suppress(UsageError):
            if leases.made(address) is lease:
                return address
        if lease not in self._moved:  # the program has moved it, and all others with it
            self._moved = {made: each for each in leases.addresses if (made := leases.made(each)) is not None}
        return self._moved.get(lease)

    # Handles --------------------------------------------------------------------------------

    def end(self, handle: Handle) -> bool:
        """The handle means nothing from now on; whether that was the last one."""
        self._ended.add(handle)
        return self._leases is not None and len(self._ended) >= len(self._leases)

    def _handle(self, address: VirtAddr) -> Handle:
        return self.secret + address.to_bytes(_SECRET_SIZE, "little")

    def _address_in(self, handle: Handle) -> VirtAddr | None:
        """None for a handle that means nothing, or no more."""
        address = VirtAddr(int.from_bytes(handle[_SECRET_SIZE:], "little"))
        if self._leases is None or handle in self._ended or len(handle) != _HANDLE_SIZE:
            return None
        if secret_of(handle) != self.secret:
            return None
        try:
            self._leases.made(address)
        except UsageError:
            return None
        return address


def secret_of(handle: Handle) -> bytes:
    """That of the group whose handle it is, if it is one of a group's."""
    return handle[:_SECRET_SIZE]
