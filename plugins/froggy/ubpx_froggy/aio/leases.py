"""Leases that a broker keeps for us, with the faces of ``ubpx.Lease`` and ``ubpx.LeaseGroup`` as last known."""

from collections.abc import Sequence
from typing import Any, Final, Protocol, Self

from ubpx_froggy.aio.probepoints import AsyncProbepoint
from ubpx_froggy.client.leases import Handler, KnownDesk, KnownLease, KnownLeaseGroup
from ubpx_froggy.messages import LeaseInfo, RefusalInfo


class Desk(KnownDesk, Protocol):
    """Where questions about leases go."""

    async def refresh(self, leases: "Sequence[AsyncLease]") -> None:
        """Ask how these are, at once; what cannot be found out stays as it was last known."""
        ...

    async def release(self, leases: "Sequence[AsyncLease]") -> None:
        """Give these back at once. Again: does nothing."""
        ...

    async def probepoint(self, address: int) -> AsyncProbepoint:
        """The one at this address, as it is now."""
        ...


class AsyncLease(KnownLease):
    """A client's share of a probepoint in a broker.

    Its attributes (``address``, ``dropped``, ``errors``, ``hits``, ``obstacle``, ``state``, ``watchpoint``) say what
    was last known: when it was granted, refreshed or released; ``dropped`` and ``state`` also what we have learned
    since. Made by a client; one object for each lease of a connection.
    """

    def __init__(self, client: Any, info: LeaseInfo, handler: Handler | None, desk: Desk, *, watches: bool) -> None:
        super().__init__(client, info, handler, desk, watches=watches)
        self._desk: Final = desk

    async def refresh(self) -> Self:
        """Ask the broker how it is now; when it cannot be asked, all stays as it was. Gives the lease itself."""
        await self._desk.refresh((self,))
        return self

    async def probepoint(self) -> AsyncProbepoint | None:
        """The place that it shares, as it is now; None while it is PENDING, and for a watchpoint."""
        if self._watches:
            return None
        await self.refresh()
        return None if self.address is None else await self._desk.probepoint(self.address)

    async def release(self) -> None:
        """Give it back; its attributes are the last ones then. Doing it twice does nothing.

        Cancelled, it is given back all the same.
        """
        await self._desk.release((self,))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()


class AsyncLeaseGroup(KnownLeaseGroup[AsyncLease]):
    """The leases that one ``probe_many`` gave, one for each address. Immutable; ``hits`` is as last known."""

    def __init__(self, client: Any, leases: Sequence[AsyncLease], refused: Sequence[RefusalInfo], desk: Desk) -> None:
        super().__init__(client, leases, refused)
        self._desk: Final = desk

    async def refresh(self) -> Self:
        """Ask the broker how all of them are now, at once. Gives the group itself."""
        await self._desk.refresh(self._leases)
        return self

    async def release(self) -> None:
        """Give all of them back at once. Doing it twice does nothing."""
        await self._desk.release(self._leases)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()
