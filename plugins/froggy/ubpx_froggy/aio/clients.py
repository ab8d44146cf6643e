"""A client of ours in a broker, with the face of ``ubpx.Client``: what asks the broker is awaited."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from ubpx import ClientQuarantined, UbpxError
from ubpx_froggy.aio.desk import AsyncDesk
from ubpx_froggy.aio.holds import AsyncHold
from ubpx_froggy.aio.leases import AsyncLease, AsyncLeaseGroup
from ubpx_froggy.aio.process import AsyncProcess
from ubpx_froggy.client.conversation import Decode, nothing
from ubpx_froggy.client.facts import SWEPT
from ubpx_froggy.client.hooks import ATTACHED
from ubpx_froggy.client.known import KnownClient, read_group, read_hold
from ubpx_froggy.client.leases import Handler, parted
from ubpx_froggy.client.standing import ClientState, read_clients
from ubpx_froggy.messages import (
    Call,
    Clients,
    CloseClient,
    GroupInfo,
    HoldInfo,
    LeaseInfo,
    Leases,
    ReleaseHold,
)


class AsyncClient(KnownClient[AsyncLease, AsyncDesk]):
    """One client of one target of a broker. Made by ``target.client``.

    Usable as an asynchronous context manager: leaving closes it. Handlers and hooks of all clients of one connection
    run one at a time, in the event loop: plain functions, and coroutine functions, whose hit waits until they are
    done. Every call may raise BrokerGone, or ClientQuarantined when the broker has thrown us out. Whoever is cancelled
    while a call of it is awaited gets nothing: what the broker grants later is given back.
    """

    # Leases -------------------------------------------------------------------------------

    async def probe(
        self,
        place: str | int,
        handler: Handler | None = None,
        *,
        mode: str = "sync",
        persistent: bool = False,
        strategy: str | None = None,
        exclusive: bool = False,
        priority: int | None = None,
        assume_boundary: bool = False,
        defer: bool = True,
        once: bool = False,
    ) -> AsyncLease:
        """Lease the probepoint at ``place`` (a spec, or an address) and run ``handler(hit)`` at each arrival.

        ``handler`` is a plain function or a coroutine function, and gets an ``AsyncHit``. With ``mode="sync"`` the
        thread waits for it; with ``"notify"`` it goes on at once, and the handler is told later, in order; with
        ``"count"`` nobody is told, and ``handler`` is None. A ``persistent`` lease stays when the client goes, and
        only counts; a later client of the same name and user that probes the same place so gets it again. The other
        options are ``ubpx.Client.probe``'s.

        Raises what that raises, and PermissionRefused, QuotaExceeded, BrokerGone.
        """
        call = self._probe(
            place,
            handler,
            mode=mode,
            persistent=persistent,
            strategy=strategy,
            exclusive=exclusive,
            priority=priority,
            assume_boundary=assume_boundary,
            defer=defer,
            once=once,
        )
        await self._be_ready(mode)
        lease: AsyncLease = await self._ask(call, self._granting(handler), undo=self._undo)
        return lease

    async def probe_many(
        self,
        places: Iterable[str | int] | str,
        handler: Handler | None = None,
        *,
        mode: str = "sync",
        once: bool = False,
        strategy: str | None = None,
        exclusive: bool = False,
        priority: int | None = None,
        assume_boundary: bool = False,
        skip_refused: bool | None = None,
    ) -> AsyncLeaseGroup:
        """Lease many probepoints at once: all of ``places``, or none and an error that names the place.

        ``handler`` and ``mode`` are ``probe``'s, everything else ``ubpx.Client.probe_many``'s. Raises as ``probe``
        does.
        """
        call = self._probe_many(
            places,
            handler,
            mode=mode,
            once=once,
            strategy=strategy,
            exclusive=exclusive,
            priority=priority,
            assume_boundary=assume_boundary,
            skip_refused=skip_refused,
        )
        await self._be_ready(mode)
        group: AsyncLeaseGroup = await self._ask(
            call, lambda raw: self._grant_many(read_group(raw), handler), undo=self._desk.give_back
        )
        return group

    async def watch(
        self,
        address: int,
        handler: Handler | None = None,
        *,
        mode: str = "sync",
        size: int = 8,
        access: str = "WRITE",
        priority: int | None = None,
    ) -> AsyncLease:
        """Lease one of the process's four hardware debug registers and run ``handler(hit)`` at each access.

        ``handler`` and ``mode`` are ``probe``'s, everything else ``ubpx.Client.watch``'s.
        Raises DebugRegistersBusy, ClientQuarantined, TargetGone, UsageError, PermissionRefused, BrokerGone.
        """
        call = self._watch(address, handler, mode=mode, size=size, access=access, priority=priority)
        await self._be_ready(mode)
        lease: AsyncLease = await self._ask(call, self._granting(handler, watches=True), undo=self._undo)
        return lease

    async def _be_ready(self, mode: str) -> None:
        """For hits: they may come before the reply."""
        if mode == "sync":
            await self._desk.link.open_channel()

    def _make_lease(self, info: LeaseInfo, handler: Handler | None, *, watches: bool) -> AsyncLease:
        return AsyncLease(self, info, handler, self._desk, watches=watches)

    def _grant_many(self, info: GroupInfo, handler: Handler | None) -> AsyncLeaseGroup:
        return AsyncLeaseGroup(self, [self._grant(each, handler) for each in info.leases], info.refused, self._desk)

    def _undo(self, lease: AsyncLease) -> None:
        self._desk.give_back([lease])

    async def leases(self) -> Sequence[AsyncLease]:
        """Its leases that are armed or pending, the oldest first; what a former client of the name has left is there
        too, without a handler until it is probed again.
        """
        if self._has_none:
            return ()
        found: Sequence[AsyncLease] = await self._ask(Leases(self._opened()), self._read_leases)
        return found

    async def release(self, lease: AsyncLease) -> None:
        """Give a lease back; the same as ``lease.release()``."""
        await self._desk.release((lease,))

    async def release_all(self, leases: Sequence[AsyncLease]) -> None:
        """Give many leases back at once; the same as ``group.release()``."""
        await self._desk.release(leases)

    # Holds, steps and what is caught --------------------------------------------------------

    async def hold(self, thread: int | None = None) -> AsyncHold:
        """Keep one thread (by tid), or the whole process, stopped until the hold is released.

        Raises UsageError for a tid that is not the target's, ClientQuarantined, TargetGone, PermissionRefused,
        BrokerGone.
        """
        info: HoldInfo = await self._ask(self._take_hold(thread), read_hold, undo=self._undo_hold)
        return self._desk.hold(info)

    def _undo_hold(self, info: HoldInfo) -> None:
        if info.hold is not None:
            self._desk.link.tell(ReleaseHold(info.hold))

    async def step(self, thread: int, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """Let a thread that this client holds run one instruction; then it is held again, and told as stepped.

        ``registers`` and ``signal`` as in ``hold.release``. While others hold it too, it waits for them.
        Raises UsageError if the client does not hold the thread or it has not stopped yet, BrokerGone.
        """
        await self._ask(self._step(thread, registers, signal))

    async def catch_signals(self, signals: Iterable[int] | None) -> None:
        """Have ``ubpx_signal`` called for these signals alone; None: for all, as it is at first.

        Raises UsageError for what is no signal, and for a client without that hook; BrokerGone.
        """
        await self._ask(self._catch_signals(signals))

    async def catch_syscalls(self, calls: Iterable[int | str] | None) -> None:
        """Have ``ubpx_syscall_entered`` and ``_exited`` called for these alone, by number or name; None: for all.

        Raises UsageError for a name that is no system call's, and for a client without those hooks; BrokerGone.
        """
        await self._ask(self._catch_syscalls(calls))

    # Its life -------------------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """Whether it may act, as far as we know."""
        self._standing.look()
        return self._standing.state

    @property
    def reason(self) -> str:
        """Why it is quarantined, as far as we know."""
        self._standing.look()
        return self._standing.reason

    async def refresh(self) -> Self:
        """Ask the broker how it stands; when it cannot be asked, all stays as it was. Gives the client itself."""
        if self._standing.look():
            with contextlib.suppress(UbpxError):
                self._standing.take(await self._desk.link.request(Clients(self._desk.target), read_clients))
        return self

    async def close(self) -> None:
        """Give back every lease and hold, and leave; persistent leases stay. Again: does nothing."""
        if self._standing.state is ClientState.CLOSED:
            return
        staying, going = parted(self._mine())
        await self._desk.release(going)
        await self._desk.refresh(staying)
        with contextlib.suppress(*SWEPT):
            await self._ask(CloseClient(self._opened()))
        await self._desk.forget(staying)
        self._is_closed(self._desk.clients)

    async def _ask(self, call: Call, decode: Decode = nothing, **options: Any) -> Any:
        try:
            return await self._desk.link.request(call, decode, client=self.name, **options)
        except ClientQuarantined as error:
            self._standing.refused(error)
            raise

    # What the target and the handlers need ----------------------------------------------------

    @property
    def process(self) -> AsyncProcess:
        """What its hooks are told of."""
        return self._desk.process

    async def open(self) -> None:
        """Join; when this returns ``ubpx_process_attached`` has been called. Raises what ``target.client`` does."""
        link = self._desk.link
        if self.hooks:
            await link.open_channel()
        try:
            await link.request(self._open(), self._read_opened, client=self.name, subject=self, undo=self._withdraw)
        except BaseException:
            self.hooks = {}  # nobody has this client
            if self.handle is not None:  # a hook came first
                link.roster.forget_client(self.handle)
            raise
        self._desk.clients[self.name] = self
        if ATTACHED not in self.hooks:
            return
        try:  # the broker has called it, and where it runs now we wait for it; unless this client has come back
            await self._desk.stage.call_hook(self, ATTACHED)
        except BaseException:
            self._withdraw()
            raise

    def _withdraw(self, _: object = None) -> None:
        """Nobody has waited for it: close it without waiting."""
        self.hooks = {}
        self._desk.give_back(self._mine())
        self._desk.link.tell(CloseClient(self._opened()))
        self._is_closed(self._desk.clients)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
