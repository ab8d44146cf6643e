"""A target of a broker and its desk, as far as they are known here: what both forms of this side share. Sans-IO."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final, Generic, Protocol, TypeVar

from ubpx import BrokerGone, ClientQuarantined, TargetGone, UsageError
from ubpx.core.values import SlotUse
from ubpx_froggy.client import checks
from ubpx_froggy.client.conversation import Ending, decoder
from ubpx_froggy.client.handling import Handling
from ubpx_froggy.client.hooks import DETACHED, EXITED, Hooks, given_hooks
from ubpx_froggy.client.inventory import H, Inventory, P
from ubpx_froggy.client.probepoints import RemoteWatchpoint
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.client.standing import Facts, foreign
from ubpx_froggy.messages import (
    Handle,
    HoldInfo,
    NamedClient,
    ProbepointInfo,
    ReadRegisters,
    Registers,
    SlotUseInfo,
    TargetInfo,
    WatchpointInfo,
)

SWEPT: Final = (BrokerGone, ClientQuarantined, TargetGone, UsageError)
"""What giving something back may raise when it has been taken back already."""

ENDED: Final = (BrokerGone, ClientQuarantined, TargetGone)
"""What ending a hold may raise when there is nothing left to end."""

read_probepoints: Final = decoder(list[ProbepointInfo])
read_holds: Final = decoder(list[HoldInfo])
read_number: Final = decoder(int)
read_status: Final = decoder(int | None)
read_tids: Final = decoder(list[int])
read_registers: Final = decoder(Registers)
read_slots: Final = decoder(SlotUseInfo)


def slot_use(info: SlotUseInfo) -> SlotUse:
    """As ``ubpx.Target`` gives it."""
    return SlotUse(leased=info.leased, retired=info.retired, free=info.free, jump_pages=info.jump_pages)


class KnownLink(Facts, Protocol):
    """The connection."""

    @property
    def broker(self) -> str:
        """The path of the broker's socket."""
        ...

    @property
    def roster(self) -> Roster:
        """What it has of the broker."""
        ...


K = TypeVar("K", bound=KnownLink)


class AnyDesk(ABC, Generic[K, H, P]):
    """The desk of one target; what it has without asking."""

    def __init__(self, link: K, target: Handle) -> None:
        self.link: Final = link
        self.target: Final = target
        self.clients: Final[dict[str, Any]] = {}
        """Those of this connection that have not closed, by name."""
        self._inventory: Final = Inventory(self._make_hold, self._make_probepoint)

    @abstractmethod
    def _make_hold(self, info: HoldInfo) -> H: ...

    @abstractmethod
    def _make_probepoint(self, address: int) -> P: ...

    @property
    def ending(self) -> Ending | None:
        """How the connection has ended; None while it has not."""
        return self.link.ending

    def client(self, info: NamedClient) -> Any:
        """The one that the broker tells of: ours, or what it says of another connection's."""
        return self.clients.get(info.name) or foreign(info)

    def listening(self) -> list[Any]:
        """Our clients that are to be told of a detach."""
        return [each for each in tuple(self.clients.values()) if DETACHED in each.hooks and EXITED not in each.told]

    def dropped(self, lease: Handle) -> tuple[int, int]:
        """How many hits of it were left out, by the broker as far as it has told, and here."""
        return self.link.roster.dropped(lease)

    def watchpoint(self, info: WatchpointInfo) -> RemoteWatchpoint:
        """The one that watches this."""
        return self._inventory.watchpoint(info)

    def hold(self, info: HoldInfo) -> H:
        """The one that the broker tells of."""
        return self._inventory.hold(info)


def standing_at(address: int, infos: Iterable[ProbepointInfo]) -> ProbepointInfo | None:
    """Which of these stands there; None: nobody leases the place."""
    return next((info for info in infos if info.address == address), None)


class KnownTarget(Generic[K]):
    """A target of a broker, without asking; how its requests are checked."""

    def __init__(self, link: K, info: TargetInfo) -> None:
        self._link: Final = link
        self._info: Final = info
        self._maker: Final = os.getpid()

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

    def _joining(self, name: str, priority: int, hooks: object) -> Hooks:
        """The hooks of a client that is to be made; raises UsageError, PluginFailed, and what ``check`` does."""
        self._link.check()
        checks.check_name(name)
        checks.check_order(priority)
        return given_hooks(hooks, name)

    def _registers_of(self, thread: int) -> ReadRegisters:
        self._link.check()
        checks.check_tid(thread)
        return ReadRegisters(self._info.target, thread)

    def _check_wait(self, timeout: float | None, handling: Handling) -> None:
        if timeout is not None:
            checks.check_seconds("timeout", timeout)
        if handling.is_here:
            raise UsageError("target.wait() from a handler would wait for itself; return a verdict instead")

    @property
    def _is_copy(self) -> bool:
        """Whether this is a forked copy of the program, which has no part in the connection."""
        return os.getpid() != self._maker

    def _farewell(self) -> str:
        """Why calls are refused once we have detached."""
        return f"target {self.pid} is detached; connect again"

    def __repr__(self) -> str:
        return f"<target {self.pid} of the broker at {self.broker}>"
