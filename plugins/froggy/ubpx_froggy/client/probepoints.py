"""Probed and watched places in a broker's target, with the faces of ubpx's own."""

from collections.abc import Callable
from typing import Final

from ubpx import Strategy, UbpxError, UsageError
from ubpx.core.values import VirtAddr, Watched
from ubpx_froggy.messages import ProbepointInfo, WatchpointInfo

Read = Callable[[int], ProbepointInfo | None]
"""Asks the broker what stands at an address; raises an UbpxError."""


class KnownProbepoint:
    """One probed place, as it was when we last heard of it."""

    def __init__(self, address: int) -> None:
        self.address: Final = VirtAddr(address)
        self.known: ProbepointInfo | None = None
        """As it was when we last heard of it."""
        self._shared = False

    def take(self, info: ProbepointInfo | None) -> None:
        """The broker has said how it is now; None: nobody leases it."""
        self.known = info or self.known
        self._shared = info is not None

    def _now(self) -> ProbepointInfo:
        if self.known is None:
            raise UsageError(f"nothing is known of the probepoint at {self.address:#x}: nobody leases it any more")
        return self.known

    @property
    def strategy(self) -> Strategy:
        """How threads get past its instruction. Raises UsageError if it was gone before it was first asked for."""
        return Strategy(self._now().strategy)

    @property
    def slot(self) -> VirtAddr | None:
        """Where the out-of-line copy lies; None where the strategy needs none. Raises as ``strategy`` does."""
        slot = self._now().slot
        return None if slot is None else VirtAddr(slot)

    @property
    def why(self) -> str:
        """Why this strategy, for people. Raises as ``strategy`` does."""
        return self._now().why

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients that share it, in handler order: everybody's."""
        return tuple(self.known.clients) if self.known is not None and self._shared else ()

    def __repr__(self) -> str:
        if self.known is None:
            return f"<probepoint {self.address:#x}>"
        sharing = ", ".join(self.known.clients) if self._shared else "nobody"
        return f"<probepoint {self.address:#x} {self.known.strategy}: {sharing}>"


class RemoteProbepoint(KnownProbepoint):
    """One probed place. One object for each address of a target, as long as somebody has it.

    What can be read is asked of the broker; when nobody leases the place any more, or the broker
    cannot be asked, it is what was last known.
    """

    def __init__(self, address: int, read: Read) -> None:
        super().__init__(address)
        self._read: Final = read

    def refresh(self) -> None:
        """Ask the broker."""
        try:
            info = self._read(self.address)
        except UbpxError:
            return
        self.take(info)

    def _now(self) -> ProbepointInfo:
        self.refresh()
        return super()._now()

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients that share it, in handler order: everybody's."""
        self.refresh()
        return super().clients


class RemoteWatchpoint:
    """One watched place. One object for each of a target, as long as somebody has it.

    ``clients`` is as it was when a lease of it was last asked.
    """

    def __init__(self, info: WatchpointInfo) -> None:
        self.watched: Final = Watched(VirtAddr(info.address), info.size, info.access)
        self.clients: tuple[str, ...] = tuple(info.clients)
        """The names of the clients that share it, in handler order: everybody's."""

    @property
    def address(self) -> VirtAddr:
        """Of the first byte."""
        return self.watched.address

    def __repr__(self) -> str:
        watched = self.watched
        sharing = ", ".join(self.clients) or "nobody"
        return f"<watchpoint {watched.address:#x} {watched.access} of {watched.size} bytes: {sharing}>"
