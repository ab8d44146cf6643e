"""A target of a broker, with the face of ``ubpx.Target``: what asks the broker is awaited."""

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

from ubpx import UbpxError
from ubpx.core.values import SlotUse, ThreadId
from ubpx_froggy.aio.clients import AsyncClient
from ubpx_froggy.aio.desk import AsyncDesk
from ubpx_froggy.aio.hits import AsyncSurroundings
from ubpx_froggy.aio.holds import AsyncHold
from ubpx_froggy.aio.line import Request
from ubpx_froggy.aio.link import AsyncLink
from ubpx_froggy.aio.probepoints import AsyncProbepoint
from ubpx_froggy.aio.process import AsyncMemory, AsyncProcess
from ubpx_froggy.aio.turns import outside
from ubpx_froggy.client.facts import (
    KnownTarget,
    read_number,
    read_registers,
    read_slots,
    read_status,
    read_tids,
    slot_use,
)
from ubpx_froggy.client.hooks import DETACHED
from ubpx_froggy.client.leases import parted
from ubpx_froggy.client.standing import ClientState, ForeignClient, read_clients
from ubpx_froggy.messages import (
    Clients,
    Leave,
    NamedClient,
    Registers,
    Resume,
    Slots,
    Stops,
    TargetInfo,
    Threads,
    Wait,
)


class AsyncTarget(KnownTarget[AsyncLink]):
    """One process that a broker traces, in one event loop. Made by ``aio.connect``.

    Leaving the ``async with`` detaches: the broker and its other clients go on. Every call may raise BrokerGone,
    PermissionRefused where the broker does not allow it, and after a detach UsageError; also for whoever awaits a
    reply at that moment.
    """

    def __init__(self, link: AsyncLink, info: TargetInfo) -> None:
        memory = AsyncMemory(link, info.target)
        process = AsyncProcess(link, info.target, info.pid, memory)
        super().__init__(link, info)
        self.memory: Final = memory
        """The program's memory; no trap of ubpx is ever seen in it."""
        self._stage: Final = link.serve(AsyncSurroundings(info, memory), info.deadline_s)
        self._desk: Final = AsyncDesk(link, info.target, process=process, stage=self._stage)
        self._end_of_process: Request | None = None
        """What is answered when the process has ended."""
        self._leaving: Final = asyncio.Lock()
        self._leaver: asyncio.Task[None] | None = None
        """Who detaches, where a handler has asked for it."""

    async def stops(self) -> int:
        """How often threads of the process have stopped for the tracer so far."""
        stops: int = await self._link.request(Stops(self._info.target), read_number)
        return stops

    async def slots(self) -> SlotUse:
        """How many out-of-line slots of the program are leased, retired, and free."""
        return slot_use(await self._link.request(Slots(self._info.target), read_slots))

    # Clients and what they have -------------------------------------------------------------

    async def client(self, name: str, *, priority: int = 0, hooks: object = None) -> AsyncClient:
        """A new client; ``hooks`` is an object whose hooks (see ubpx.hookspecs) are called here, in the event loop.

        Hooks are plain functions or coroutine functions; what they get has this form: ``client`` is the AsyncClient,
        and methods of ``process`` are awaited.
        Raises UsageError if a living client has the name, PluginFailed for hooks that are not as specified,
        TargetGone, QuotaExceeded, BrokerGone; PermissionRefused also if another user's client has left
        persistent leases under the name.
        """
        implemented = self._joining(name, priority, hooks)
        client = AsyncClient(name, priority=priority, target=self, desk=self._desk, hooks=implemented)
        await client.open()
        return client

    async def clients(self) -> tuple[AsyncClient | ForeignClient, ...]:
        """The living ones, in the order of joining; those of other connections can only be looked at."""
        if self._link.ending is not None:
            return ()
        infos: list[NamedClient] = await self._link.request(Clients(self._info.target), read_clients)
        return tuple(map(self._desk.client, infos))

    async def probepoints(self) -> tuple[AsyncProbepoint, ...]:
        """All probepoints that anybody leases, by address."""
        return () if self._link.ending is not None else await self._desk.probepoints()

    # Its threads ----------------------------------------------------------------------------

    async def threads(self) -> tuple[ThreadId, ...]:
        """The tids of the process's threads; none once it has ended."""
        tids: list[int] = await self._link.request(Threads(self._info.target), read_tids)
        return tuple(ThreadId(tid) for tid in tids)

    async def registers(self, thread: int) -> Mapping[str, int]:
        """The registers of a stopped thread, by name, as the program would see them.

        Raises UsageError if it runs or is not the target's, TargetGone, BrokerGone.
        """
        found: Registers = await self._link.request(self._registers_of(thread), read_registers)
        return MappingProxyType(found)

    async def holds(self) -> tuple[AsyncHold, ...]:
        """Who keeps what stopped; what a handler asked for before this call is in it."""
        return tuple(self._desk.hold(info) for info in await self._desk.hold_infos())

    async def resume(self) -> None:
        """Start a program that the broker has spawned. Once it runs: does nothing."""
        await self._link.request(Resume(self._info.target))

    async def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the process has ended: its exit status, or minus the signal that killed it.

        None if ``timeout`` seconds were not enough. A program that the broker has spawned is started, unless we
        connected to read only. Raises UsageError from a handler, and after a detach; BrokerGone.
        """
        self._check_wait(timeout, self._stage.handling)
        if timeout is not None:
            request = self._link.begin_outside(Wait(self._info.target, timeout), read_status)
        else:  # one request, however often somebody waits and is cancelled: a broker lets few of them wait
            if self._end_of_process is None or self._end_of_process.is_answered:
                self._end_of_process = self._link.begin_outside(Wait(self._info.target), read_status)
            request = self._end_of_process
        status: int | None = await request.answer()
        return status

    # The end --------------------------------------------------------------------------------

    async def detach(self) -> None:
        """Give back all that we have there, and leave the target to the broker's other clients.

        From a handler or hook: after it. Cancelled: at once, and the broker gives back. Again: does nothing.
        """
        if self._is_copy:
            return
        if not self._stage.handling.is_here:
            await self._leave()
        elif self._leaver is None:
            self._stage.handling.silent = True  # until we have left nothing may come to a handler again
            loop = asyncio.get_running_loop()
            self._leaver = loop.create_task(self._leave_later(), name="ubpx-leaver", context=outside())

    async def _leave_later(self) -> None:
        try:
            await self._stage.until_idle()  # the handler that has asked for it ends first
        finally:
            await self._leave()

    async def _leave(self) -> None:
        async with self._leaving:
            try:
                if self._link.ending is None:
                    with contextlib.suppress(UbpxError):
                        await self._take_leave()
            finally:
                self._link.leave(self._farewell())
            await self._link.closed()

    async def _take_leave(self) -> None:
        """Last words of hooks, last counts of leases; then the broker sweeps what is left."""
        listening: list[AsyncClient] = self._desk.listening()
        if listening and await self.threads():  # else the process has ended, and was not left
            for client in listening:
                await client.refresh()
                if client.state is ClientState.LIVE:
                    await self._stage.call_hook(client, DETACHED)
        staying, going = parted(tuple(self._link.roster.leases.values()))
        await self._desk.refresh(staying)
        await self._desk.release(going)
        self._stage.handling.silent = True
        await self._link.request(Leave(self._info.target))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.detach()
