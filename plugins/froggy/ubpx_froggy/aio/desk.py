"""Where the requests about one target of a broker go, and what there is one object of for each thing."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ubpx import UbpxError
from ubpx_froggy.aio.holds import AsyncHold
from ubpx_froggy.aio.leases import AsyncLease
from ubpx_froggy.aio.line import Request
from ubpx_froggy.aio.link import AsyncLink
from ubpx_froggy.aio.probepoints import AsyncProbepoint
from ubpx_froggy.aio.process import AsyncProcess
from ubpx_froggy.aio.stage import Stage
from ubpx_froggy.aio.turns import current
from ubpx_froggy.client.facts import ENDED, SWEPT, AnyDesk, read_holds, read_probepoints, standing_at
from ubpx_froggy.client.leases import questions_about
from ubpx_froggy.client.link import FLUSH_S
from ubpx_froggy.messages import (
    Call,
    Handle,
    HoldInfo,
    Holds,
    ProbepointInfo,
    Probepoints,
    ReadLeases,
    Release,
    ReleaseHold,
)


class AsyncDesk(AnyDesk[AsyncLink, AsyncHold, AsyncProbepoint]):
    """The desk of one target. Owned by the target, used by its clients and what they have."""

    def __init__(self, link: AsyncLink, target: Handle, *, process: AsyncProcess, stage: Stage) -> None:
        super().__init__(link, target)
        self.process: Final = process
        self.stage: Final = stage

    # Leases -------------------------------------------------------------------------------

    async def refresh(self, leases: Sequence[AsyncLease]) -> None:
        """Ask how these are, at once; what cannot be found out stays as it was last known."""
        with contextlib.suppress(UbpxError):
            await _all(self._begin_about([lease for lease in leases if not lease.is_over], ReadLeases))

    async def release(self, leases: Sequence[AsyncLease]) -> None:
        """Give these back at once, also if the caller is cancelled. Again: does nothing."""
        going = [lease for lease in leases if not lease.is_over]
        forgotten = None
        try:
            with contextlib.suppress(*SWEPT):
                await _all(self._begin_about(going, Release))
        finally:
            forgotten = self._forget(going)
        await self._flushed(going, forgotten)

    async def forget(self, leases: Sequence[AsyncLease]) -> None:
        """These have ended: let handlers have the hits of before that, and no others."""
        await self._flushed(leases, self._forget(leases))

    def _forget(self, leases: Sequence[AsyncLease]) -> "asyncio.Future[None] | None":
        """Done at once, or in the order of hits in mode ``notify``, and so later."""
        for lease in leases:
            lease.end()
        turn = current(self.stage.handling)
        if turn is None and any(lease.mode == "notify" for lease in leases):
            return self.stage.after_notices(partial(self._drop, leases))
        self._drop(leases, during=None if turn is None else turn.hit)  # with a hit they end after it
        return None

    async def _flushed(self, leases: Sequence[AsyncLease], forgotten: "asyncio.Future[None] | None") -> None:
        if forgotten is not None:
            done, _ = await asyncio.wait([forgotten], timeout=FLUSH_S)
            if not done:  # not for ever
                self._drop(leases)

    def _drop(self, leases: Sequence[AsyncLease], during: Any = None) -> None:
        self.link.roster.forget(((lease.handle, lease) for lease in leases), during=during)

    def give_back(self, leases: Sequence[AsyncLease]) -> None:
        """Nobody has waited for these: release them, without waiting. A persistent one stays, without a handler."""
        for lease in leases:
            lease.handler = None
        going = [lease for lease in leases if not lease.persistent and not lease.is_over]
        for lease in going:
            lease.end()
        self._drop(going)
        for call, _ in questions_about(going, Release):
            self.link.tell(call)

    def _begin_about(self, leases: Sequence[AsyncLease], call: Callable[[list[Handle]], Call]) -> list[Request]:
        """Asked all at once: who is cancelled has asked."""
        return [self.link.begin(question, take) for question, take in questions_about(leases, call)]

    # Probepoints and holds ----------------------------------------------------------------

    async def probepoint(self, address: int) -> AsyncProbepoint:
        """The one at this address, as it is now."""
        return await self._inventory.probepoint(address).refresh()

    async def probepoints(self) -> tuple[AsyncProbepoint, ...]:
        """All of them, by address; raises what requests raise."""
        return self._inventory.probepoints(await self.link.request(Probepoints(self.target), read_probepoints))

    def _make_probepoint(self, address: int) -> AsyncProbepoint:
        return AsyncProbepoint(address, self._read_probepoint)

    async def _read_probepoint(self, address: int) -> ProbepointInfo | None:
        infos: list[ProbepointInfo] = await self.link.request(Probepoints(self.target, address), read_probepoints)
        return standing_at(address, infos)

    def _make_hold(self, info: HoldInfo) -> AsyncHold:
        return AsyncHold(info, self)

    async def hold_infos(self) -> list[HoldInfo]:
        """Everybody's; raises what requests raise."""
        infos: list[HoldInfo] = await self.link.request(Holds(self.target), read_holds)
        return infos

    async def release_hold(self, parting: ReleaseHold) -> None:
        """See ``AsyncHold.release``; raises what the broker answers, and nothing if there is nothing left to end."""
        with contextlib.suppress(*ENDED):
            await self.link.request(parting)


async def _all(requests: Sequence[Request]) -> None:
    for request in requests:
        await request.answer()
