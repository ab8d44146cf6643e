"""A client of ours in a broker, with the face of ``ubpx.Client``."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from ubpx import ClientQuarantined, UbpxError
from ubpx.core.ports import ProcessView
from ubpx_froggy.client.conversation import Decode, nothing
from ubpx_froggy.client.desk import RemoteDesk
from ubpx_froggy.client.facts import SWEPT
from ubpx_froggy.client.holds import RemoteHold
from ubpx_froggy.client.hooks import ATTACHED
from ubpx_froggy.client.known import KnownClient, read_group, read_hold
from ubpx_froggy.client.leases import Handler, RemoteLease, RemoteLeaseGroup, parted
from ubpx_froggy.client.standing import ClientState, read_clients
from ubpx_froggy.messages import (
    Call,
    Clients,
    CloseClient,
    GroupInfo,
    HoldInfo,
    LeaseInfo,
    Leases,
)


class RemoteClient(KnownClient[RemoteLease, RemoteDesk]):
    """One client of one target of a broker. Made by ``target.client``.

    Usable as a context manager: leaving closes it. Handlers and hooks of all clients of one connection run one at
    a time. Every call may raise BrokerGone, or ClientQuarantined when the broker has thrown us out.
    """

    # Leases -------------------------------------------------------------------------------

    def probe(
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
    ) -> RemoteLease:
        """Lease the probepoint at ``place`` (a spec, or an address) and run ``handler(hit)`` at each arrival.

        With ``mode="sync"`` the thread waits for the handler, as in one's own process; with ``"notify"`` it goes on
        at once, and the handler is told later, in order; with ``"count"`` nobody is told, and ``handler`` is None. A
        ``persistent`` lease stays when the client goes, and only counts; a later client of the same name and user
        that probes the same place so gets it again. The other options are ``ubpx.Client.probe``'s.

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
        self._be_ready(mode)
        lease: RemoteLease = self._ask(call, self._granting(handler))
        return lease

    def probe_many(
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
    ) -> RemoteLeaseGroup:
        """Lease many probepoints at once: all of ``places``, or none and an error that names the place.

        ``mode`` is ``probe``'s, everything else ``ubpx.Client.probe_many``'s. Raises as ``probe`` does.
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
        self._be_ready(mode)
        group: RemoteLeaseGroup = self._ask(call, lambda raw: self._grant_many(read_group(raw), handler))
        return group

    def watch(
        self,
        address: int,
        handler: Handler | None = None,
        *,
        mode: str = "sync",
        size: int = 8,
        access: str = "WRITE",
        priority: int | None = None,
    ) -> RemoteLease:
        """Lease one of the process's four hardware debug registers and run ``handler(hit)`` at each access.

        ``mode`` is ``probe``'s, everything else ``ubpx.Client.watch``'s.
        Raises DebugRegistersBusy, ClientQuarantined, TargetGone, UsageError, PermissionRefused, BrokerGone.
        """
        call = self._watch(address, handler, mode=mode, size=size, access=access, priority=priority)
        self._be_ready(mode)
        lease: RemoteLease = self._ask(call, self._granting(handler, watches=True))
        return lease

    def _be_ready(self, mode: str) -> None:
        """For hits: they may come before the reply."""
        if mode == "sync":
            self._desk.link.open_channel()

    def _make_lease(self, info: LeaseInfo, handler: Handler | None, *, watches: bool) -> RemoteLease:
        return RemoteLease(self, info, handler, self._desk, watches=watches)

    def _grant_many(self, info: GroupInfo, handler: Handler | None) -> RemoteLeaseGroup:
        return RemoteLeaseGroup(self, [self._grant(each, handler) for each in info.leases], info.refused, self._desk)

    @property
    def leases(self) -> Sequence[RemoteLease]:
        """Its leases that are armed or pending, the oldest first; what a former client of the name has left is there
        too, without a handler until it is probed again.
        """
        if self._has_none:
            return ()
        found: Sequence[RemoteLease] = self._ask(Leases(self._opened()), self._read_leases)
        return found

    def release(self, lease: RemoteLease) -> None:
        """Give a lease back; the same as ``lease.release()``."""
        self._desk.release((lease,))

    def release_all(self, leases: Sequence[RemoteLease]) -> None:
        """Give many leases back at once; the same as ``group.release()``."""
        self._desk.release(leases)

    # Holds, steps and what is caught --------------------------------------------------------

    def hold(self, thread: int | None = None) -> RemoteHold:
        """Keep one thread (by tid), or the whole process, stopped until the hold is released.

        Raises UsageError for a tid that is not the target's, ClientQuarantined, TargetGone, PermissionRefused,
        BrokerGone.
        """
        info: HoldInfo = self._ask(self._take_hold(thread), read_hold)
        return self._desk.hold(info)

    def step(self, thread: int, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """Let a thread that this client holds run one instruction; then it is held again, and told as stepped.

        ``registers`` and ``signal`` as in ``hold.release``. While others hold it too, it waits for them.
        Raises UsageError if the client does not hold the thread or it has not stopped yet, BrokerGone.
        """
        self._ask(self._step(thread, registers, signal))

    def catch_signals(self, signals: Iterable[int] | None) -> None:
        """Have ``ubpx_signal`` called for these signals alone; None: for all, as it is at first.

        Raises UsageError for what is no signal, and for a client without that hook; BrokerGone.
        """
        self._ask(self._catch_signals(signals))

    def catch_syscalls(self, calls: Iterable[int | str] | None) -> None:
        """Have ``ubpx_syscall_entered`` and ``_exited`` called for these alone, by number or name; None: for all.

        Raises UsageError for a name that is no system call's, and for a client without those hooks; BrokerGone.
        """
        self._ask(self._catch_syscalls(calls))

    # Its life -------------------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """Whether it may act; the broker is asked."""
        self._ask_standing()
        return self._standing.state

    @property
    def reason(self) -> str:
        """Why it is quarantined; the broker is asked."""
        self._ask_standing()
        return self._standing.reason

    def _ask_standing(self) -> None:
        if self._standing.look():
            with contextlib.suppress(UbpxError):
                self._desk.link.request(Clients(self._desk.target), self._read_standing)

    def _read_standing(self, value: msgspec.Raw) -> None:
        self._standing.take(read_clients(value))

    def close(self) -> None:
        """Give back every lease and hold, and leave; persistent leases stay. Again: does nothing."""
        if self._standing.state is ClientState.CLOSED:
            return
        staying, going = parted(self._mine())
        self._desk.release(going)
        self._desk.refresh(staying)
        with contextlib.suppress(*SWEPT):
            self._ask(CloseClient(self._opened()))
        self._desk.forget(staying)
        self._is_closed(self._desk.clients)

    def _ask(self, call: Call, decode: Decode = nothing) -> Any:
        try:
            return self._desk.link.request(call, decode, client=self.name)
        except ClientQuarantined as error:
            self._standing.refused(error)
            raise

    # What the target and the handlers' thread need --------------------------------------------

    @property
    def process(self) -> ProcessView:
        """What its hooks are told of."""
        return self._desk.process

    def open(self) -> None:
        """Join; when this returns ``ubpx_process_attached`` has been called. Raises what ``target.client`` does."""
        if self.hooks:
            self._desk.link.open_channel()
        try:
            self._desk.link.request(self._open(), self._read_opened, client=self.name, subject=self)
        except BaseException:
            if self.handle is not None:  # a hook came first
                self._desk.link.roster.forget_client(self.handle)
            raise
        self._desk.clients[self.name] = self
        if ATTACHED not in self.hooks:
            return
        # The broker has called it, and if it runs now we wait for it here; unless we are in a handler, or this is a
        # client that has come back. An exception was logged.
        with self._desk.handling.running_here(), contextlib.suppress(Exception, SystemExit):
            self._desk.handling.call(self, ATTACHED, {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
