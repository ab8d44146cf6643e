"""A target of a broker, with the face of ``ubpx.Target``."""

import contextlib
import subprocess
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from ubpx import UbpxError
from ubpx.core.ports import Memory
from ubpx.core.values import SlotUse, ThreadId
from ubpx_froggy.client.clients import RemoteClient
from ubpx_froggy.client.desk import RemoteDesk
from ubpx_froggy.client.facts import (
    KnownTarget,
    read_number,
    read_registers,
    read_slots,
    read_status,
    read_tids,
    slot_use,
)
from ubpx_froggy.client.handling import Handling
from ubpx_froggy.client.hits import Surroundings
from ubpx_froggy.client.holds import RemoteHold
from ubpx_froggy.client.hooks import DETACHED
from ubpx_froggy.client.leases import parted
from ubpx_froggy.client.link import Link
from ubpx_froggy.client.probepoints import RemoteProbepoint
from ubpx_froggy.client.process import RemoteMemory, RemoteProcess
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


class RemoteTarget(KnownTarget[Link]):
    """One process that a broker traces. Leaving the ``with`` detaches: the broker and its other clients go on.

    Every call may raise BrokerGone, PermissionRefused where the broker does not allow it, and after a detach
    UsageError.
    """

    def __init__(self, link: Link, info: TargetInfo) -> None:
        memory = RemoteMemory(link, info.target)
        around = Surroundings(info, memory)
        super().__init__(link, info)
        self._memory: Final = memory
        self._handling: Final = Handling(around, info.deadline_s)
        process = RemoteProcess(link, info.target, info.pid, memory)
        self._desk: Final = RemoteDesk(link, info.target, process=process, handling=self._handling)
        self._leaving: Final = threading.Lock()
        self._leaver: threading.Thread | None = None
        """Who detaches, where a handler has asked for it."""
        link.serve(self._handling)

    @property
    def stops(self) -> int:
        """How often threads of the process have stopped for the tracer so far."""
        stops: int = self._link.request(Stops(self._info.target), read_number)
        return stops

    @property
    def slots(self) -> SlotUse:
        """How many out-of-line slots of the program are leased, retired, and free."""
        return slot_use(self._link.request(Slots(self._info.target), read_slots))

    @property
    def memory(self) -> Memory:
        """The program's memory; no trap of ubpx is ever seen in it."""
        return self._memory

    @property
    def family(self) -> "tuple[RemoteTarget, ...]":
        """None: over a broker the hits of followed children come to the leases of the target itself."""
        return ()

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
        implemented = self._joining(name, priority, hooks)
        client = RemoteClient(name, priority=priority, target=self, desk=self._desk, hooks=implemented)
        client.open()
        return client

    def clients(self) -> tuple[RemoteClient | ForeignClient, ...]:
        """The living ones, in the order of joining; those of other connections can only be looked at."""
        if self._link.ending is not None:
            return ()
        infos: list[NamedClient] = self._link.request(Clients(self._info.target), read_clients)
        return tuple(map(self._desk.client, infos))

    def probepoints(self) -> tuple[RemoteProbepoint, ...]:
        """All probepoints that anybody leases, by address."""
        return () if self._link.ending is not None else self._desk.probepoints()

    # Its threads ----------------------------------------------------------------------------

    def threads(self) -> tuple[ThreadId, ...]:
        """The tids of the process's threads; none once it has ended."""
        tids: list[int] = self._link.request(Threads(self._info.target), read_tids)
        return tuple(ThreadId(tid) for tid in tids)

    def registers(self, thread: int) -> Mapping[str, int]:
        """The registers of a stopped thread, by name, as the program would see them.

        Raises UsageError if it runs or is not the target's, TargetGone, BrokerGone.
        """
        found: Registers = self._link.request(self._registers_of(thread), read_registers)
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
        self._check_wait(timeout, self._handling)
        status: int | None = self._link.request(Wait(self._info.target, timeout), read_status)
        return status

    # The end --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Give back all that we have there, and leave the target to the broker's other clients.

        From a handler or hook: after it. Again: does nothing.
        """
        if self._is_copy:
            return
        if not self._handling.is_here:
            self._leave()
        elif self._leaver is None:
            self._handling.silent = True  # until we have left nothing may come to a handler again
            answered, name = self._link.when_answered(), f"ubpx-leaver-{self.pid}"
            self._leaver = threading.Thread(target=self._leave_later, args=(answered,), name=name, daemon=True)
            self._leaver.start()

    def _leave_later(self, answered: threading.Event) -> None:
        answered.wait()
        with self._handling.turn:  # the handler that has asked for it ends first, also where nobody waits for it
            pass
        self._leave()

    def _leave(self) -> None:
        with self._leaving:
            if self._link.ending is None:
                with contextlib.suppress(UbpxError):
                    self._take_leave()
            self._link.close(self._farewell())

    def _take_leave(self) -> None:
        """Last words of hooks, last counts of leases; then the broker sweeps what is left."""
        listening = self._desk.listening()
        if listening and self.threads():  # else the process has ended, and was not left
            with self._handling.running_here():
                for client in listening:
                    if client.state is ClientState.LIVE:
                        with contextlib.suppress(Exception, SystemExit):  # it was logged
                            self._handling.call(client, DETACHED, {})
        staying, going = parted(tuple(self._link.leases.values()))
        self._desk.refresh(staying)
        self._desk.release(going)
        self._handling.silent = True
        self._link.request(Leave(self._info.target))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()
