"""What one connection has of a broker, by handle."""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

from ubpx_froggy.messages import Handle, Hit

_REMEMBERED: Final = 1024


class Roster:
    """The clients and leases of one connection. Owned by its link; read and changed from any thread."""

    def __init__(self) -> None:
        self.leases: Final[dict[Handle, Any]] = {}
        """Those whose handlers may run. Nothing but this keeps a lease alive that its client has let go of."""
        self.ended: Final[WeakValueDictionary[Handle, Any]] = WeakValueDictionary()
        """Those that were given back."""
        self.clients: Final[dict[Handle, Any]] = {}
        self.dropped_there: Final[dict[Handle, int]] = {}
        """By lease: hits that the broker has left out so far, as it has told us."""
        self.dropped_here: Final[dict[Handle, int]] = {}
        """By lease: hits that we have left out, because the handlers were slow."""
        self._last: dict[Handle, tuple[Any, Hit]] = {}
        """Those that a handler has given back last, and the hit at which it did."""
        self._counting: Final = threading.Lock()
        self._former: Final[deque[Handle]] = deque(maxlen=_REMEMBERED)

    def forget(self, leases: Iterable[tuple[Handle, Any]], *, during: Hit | None = None) -> None:
        """These were given back: their handlers do not run any more, but for what is left of the hit ``during``."""
        self._last = {handle: last for handle, last in self._last.items() if last[1] is during}
        for handle, lease in leases:
            if self.leases.pop(handle, None) is not None:
                self.ended[handle] = lease
                if during is not None:
                    self._last[handle] = lease, during

    def last_of(self, hit: Hit) -> Any:
        """The lease of a hit, where a handler that ran before at the same arrival has given it back; else None."""
        lease, during = self._last.get(hit.lease, (None, hit))
        same = during.thread == hit.thread and during.registers == hit.registers
        return lease if same else None

    def forget_client(self, handle: Handle) -> None:
        """It has closed."""
        if self.clients.pop(handle, None) is not None:
            self._former.append(handle)

    def is_former(self, handle: Handle) -> bool:
        """Whether it is the handle of a client that has closed, as far back as we remember."""
        return handle in self._former

    def drop(self, handle: Handle, hits: int = 1) -> None:
        """So many more hits of a lease were left out."""
        with self._counting:
            self.dropped_here[handle] = self.dropped_here.get(handle, 0) + hits

    def dropped(self, handle: Handle) -> tuple[int, int]:
        """How many hits of a lease were left out by the broker, as far as it has told, and here."""
        return self.dropped_there.get(handle, 0), self.dropped_here.get(handle, 0)
