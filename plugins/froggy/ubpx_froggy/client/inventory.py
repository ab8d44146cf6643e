"""What there is one object of for each thing of a target, as long as somebody has it."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from ubpx_froggy.client.holds import KnownHold
from ubpx_froggy.client.probepoints import KnownProbepoint, RemoteWatchpoint
from ubpx_froggy.messages import Handle, HoldInfo, ProbepointInfo, WatchpointInfo

H = TypeVar("H", bound=KnownHold[Any])
P = TypeVar("P", bound=KnownProbepoint)


class Inventory(Generic[H, P]):
    """The holds, probepoints and watchpoints of one target. Owned by its desk; usable from any thread."""

    def __init__(self, make_hold: Callable[[HoldInfo], H], make_probepoint: Callable[[int], P]) -> None:
        self._make_hold: Final = make_hold
        self._make_probepoint: Final = make_probepoint
        self._lock: Final = threading.Lock()
        self._holds: Final[WeakValueDictionary[Handle, H]] = WeakValueDictionary()
        self._probepoints: Final[WeakValueDictionary[int, P]] = WeakValueDictionary()
        self._watchpoints: Final[WeakValueDictionary[tuple[int, int, str], RemoteWatchpoint]] = WeakValueDictionary()

    def hold(self, info: HoldInfo) -> H:
        """The one that the broker tells of; one of another connection's has no handle, and is new each time."""
        fresh = self._make_hold(info)
        if info.hold is None:
            return fresh
        with self._lock:
            return self._holds.setdefault(info.hold, fresh)

    def probepoint(self, address: int) -> P:
        """The one at this address; nothing may be known of it yet."""
        fresh = self._make_probepoint(address)
        with self._lock:
            return self._probepoints.setdefault(address, fresh)

    def probepoints(self, infos: Iterable[ProbepointInfo]) -> tuple[P, ...]:
        """Those that the broker tells of, as it does."""
        found = []
        for info in infos:
            probepoint = self.probepoint(info.address)
            probepoint.take(info)
            found.append(probepoint)
        return tuple(found)

    def watchpoint(self, info: WatchpointInfo) -> RemoteWatchpoint:
        """The one that watches this, as the broker tells of it."""
        fresh = RemoteWatchpoint(info)
        with self._lock:
            watchpoint = self._watchpoints.setdefault((info.address, info.size, info.access), fresh)
        watchpoint.clients = tuple(info.clients)
        return watchpoint
