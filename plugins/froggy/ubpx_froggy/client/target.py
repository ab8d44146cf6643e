"""A target of a broker, with the face of ``ubpx.Target``."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from ubpx import UbpxError, UsageError
from ubpx.core.ports import Memory
from ubpx.core.values import ThreadId
from ubpx_froggy.client import checks
from ubpx_froggy.client.clients import RemoteClient
from ubpx_froggy.client.conversation import decoder
from ubpx_froggy.client.desk import RemoteDesk
from ubpx_froggy.client.handling import Handling
from ubpx_froggy.client.hits import Surroundings
from ubpx_froggy.client.holds import RemoteHold
from ubpx_froggy.client.hooks import DETACHED, EXITED, given_hooks
from ubpx_froggy.client.link import Link
from ubpx_froggy.client.probepoints import RemoteProbepoint
from ubpx_froggy.client.process import RemoteMemory, RemoteProcess
from ubpx_froggy.client.standing import ClientState, ForeignClient, foreign, read_clients
from ubpx_froggy.messages import (
    Clients,
    Leave,
    NamedClient,
    ReadRegisters,
    Registers,
    Resume,
    Stops,
    TargetInfo,
    Threads,
    Wait,
)

_number: Final = decoder(int)
_status: Final = decoder(int | None)
_tids: Final = decoder(list[int])
_registers: Final = decoder(Registers)


class RemoteTarget:
    """One process that a broker traces. Leaving the ``with`` detaches: the broker and its other clients go on.

    Every call may raise BrokerGone, PermissionRefused where the broker does not allow it, and after a detach
    UsageError.
    """

    def __init__(self, link: Link, info: TargetInfo) -> None:
        memory = RemoteMemory(link, info.target)
        around = Surroundings(info, memory)
        self._link: Final = link
        self._info: Final = info
        self._memory: Final = memory
        self._handling: Final = Handling(around, info.deadline_s)
        process = RemoteProcess(link, info.target, info.pid, memory)
        self._desk: Final = RemoteDesk(link, info.target, process=process, handling=self._handling)
        self._leaving: Final = threading.Lock()
        self._leaver: threading.Thread | None = None
        """Who detaches, where a handler has asked for it."""
        self._maker: Final = os.getpid()
        link.serve(self._handling)

    @property
    def broker(self) -> str:
        """The path of the broker's socket."""
        return self._link.broker

    @property
    def architecture(self) -> str:
        """What the program was made for that it ran when it was joined: ``x86_64`` or ``i386``."""
        return self._info.architecture

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._info.pid

    @property
    def stops(self) -> int:
        """How often threads of the process have stopped for the tracer so far."""
        stops: int = self._link.request(Stops(self._info.target), _number)
        return stops

    @property
    def memory(self) -> Memory:
        """The program's memory; no trap of ubpx is ever seen in it."""
        return self._memory

    @property
    def popen(self) -> "subprocess.Popen[Any] | None":
        """None: if anybody has spawned the program, it was the broker."""
        return None

    # Clients and what they have -------------------------------------------------------------

    def client(self, name: str, *, priority: int = 0, hooks: object = None) -> RemoteClient:
        """A new client; ``hooks`` is an object whose hooks (see ubpx.hookspecs) are called here.

        Raises UsageError if a living client has the name, PluginFailed for hooks that are not as specified,
        TargetGone, QuotaExceeded, BrokerGone; PermissionRefused also if another user's client has left
        persistent leases under the name.
        """
        self._link.check()
        checks.check_name(name)
        checks.check_order(priority)
        implemented = given_hooks(hooks, name)
        client = RemoteClient(name, priority=priority, target=self, desk=self._desk, hooks=implemented)
        client.open()
        return client

    def clients(self) -> tuple[RemoteClient | ForeignClient, ...]:
        """The living ones, in the order of joining; those of other connections can only be looked at."""
        return () if self._link.ending is not None else tuple(self._all_clients())

    def _all_clients(self) -> Iterator[RemoteClient | ForeignClient]:
        infos: list[NamedClient] = self._link.request(Clients(self._info.target), read_clients)
        for each in infos:
            ours: RemoteClient | None = self._desk.clients.get(each.name)
            yield ours or foreign(each)

    def probepoints(self) -> tuple[RemoteProbepoint, ...]:
        """All probepoints that anybody leases, by address."""
        return () if self._link.ending is not None else self._desk.probepoints()

    # Its threads ----------------------------------------------------------------------------

    def threads(self) -> tuple[ThreadId, ...]:
        """The tids of the process's threads; none once it has ended."""
        tids: list[int] = self._link.request(Threads(self._info.target), _tids)
        return tuple(ThreadId(tid) for tid in tids)

    def registers(self, thread: int) -> Mapping[str, int]:
        """The registers of a stopped thread, by name, as the program would see them.

        Raises UsageError if it runs or is not the target's, TargetGone, BrokerGone.
        """
        self._link.check()
        checks.check_tid(thread)
        found: Registers = self._link.request(ReadRegisters(self._info.target, thread), _registers)
        return MappingProxyType(found)

    def holds(self) -> tuple[RemoteHold, ...]:
        """Who keeps what stopped; what a handler asked for before this call is in it."""
        return tuple(self._desk.hold(info) for info in self._desk.hold_infos())

    def resume(self) -> None:
        """Start a program that the broker has spawned. Once it runs: does nothing."""
        self._link.request(Resume(self._info.target))

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the process has ended: its exit status, or minus the signal that killed it.

        None if ``timeout`` seconds were not enough. A program that the broker has spawned is started, unless we
        connected to read only. Raises UsageError from a handler, and after a detach; BrokerGone.
        """
        if timeout is not None:
            checks.check_seconds("timeout", timeout)
        if self._handling.is_here:
            raise UsageError("target.wait() from a handler would wait for itself; return a verdict instead")
        status: int | None = self._link.request(Wait(self._info.target, timeout), _status)
        return status

    # The end --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Give back all that we have there, and leave the target to the broker's other clients.

        From a handler or hook: after it. Again: does nothing.
        """
        if os.getpid() != self._maker:  # a forked copy of the program has no part in the connection
            return
        if not self._handling.is_here:
            self._leave()
        elif self._leaver is None:
            self._handling.silent = True  # until we have left nothing may come to a handler again
            self._leaver = threading.Thread(target=self._leave_later, name=f"ubpx-leaver-{self.pid}", daemon=True)
            self._leaver.start()

    def _leave_later(self) -> None:
        with self._handling.turn:  # the handler that has asked for it ends first
            pass
        self._leave()

    def _leave(self) -> None:
        with self._leaving:
            if self._link.ending is None:
                with contextlib.suppress(UbpxError):
                    self._take_leave()
            self._link.close(f"target {self.pid} is detached; connect again")

    def _take_leave(self) -> None:
        """Last words of hooks, last counts of leases; then the broker sweeps what is left."""
        clients = tuple(self._desk.clients.values())
        listening = [each for each in clients if DETACHED in each.hooks and EXITED not in each.told]
        if listening and self.threads():  # else the process has ended, and was not left
            with self._handling.running_here():
                for client in listening:
                    if client.state is ClientState.LIVE:
                        with contextlib.suppress(Exception, SystemExit):  # it was logged
                            self._handling.call(client, DETACHED, {})
        leases = tuple(self._link.leases.values())
        self._desk.refresh([lease for lease in leases if lease.persistent])
        self._desk.release([lease for lease in leases if not lease.persistent])
        self._handling.silent = True
        self._link.request(Leave(self._info.target))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<target {self.pid} of the broker at {self.broker}>"
