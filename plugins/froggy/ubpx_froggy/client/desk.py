"""Where the requests about one target of a broker go, and what there is one object of for each thing."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from ubpx import BrokerGone, ClientQuarantined, TargetGone, UbpxError, UsageError
from ubpx.core.ports import ProcessView
from ubpx_froggy.client.conversation import Ending, decoder
from ubpx_froggy.client.handling import Handling
from ubpx_froggy.client.holds import RemoteHold
from ubpx_froggy.client.inventory import Inventory
from ubpx_froggy.client.leases import RemoteLease, questions_about
from ubpx_froggy.client.link import Link
from ubpx_froggy.client.probepoints import RemoteProbepoint, RemoteWatchpoint
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
    WatchpointInfo,
)

SWEPT: Final = (BrokerGone, ClientQuarantined, TargetGone, UsageError)
"""What giving something back may raise when it has been taken back already."""

ENDED: Final = (BrokerGone, ClientQuarantined, TargetGone)
"""What ending a hold may raise when there is nothing left to end."""

read_probepoints: Final = decoder(list[ProbepointInfo])
read_holds: Final = decoder(list[HoldInfo])


class RemoteDesk:
    """The desk of one target. Owned by the target, used by its clients and what they have."""

    def __init__(self, link: Link, target: Handle, *, process: ProcessView, handling: Handling) -> None:
        self.link: Final = link
        self.target: Final = target
        self.process: Final = process
        self.handling: Final = handling
        self.clients: Final[dict[str, Any]] = {}
        """Those of this connection that have not closed, by name."""
        self._inventory: Final = Inventory(lambda info: RemoteHold(info, self), self._make_probepoint)

    @property
    def ending(self) -> Ending | None:
        """How the connection has ended; None while it has not."""
        return self.link.ending

    # Leases -------------------------------------------------------------------------------

    def refresh(self, leases: Sequence[RemoteLease]) -> None:
        """Ask how these are, at once; what cannot be found out stays as it was last known."""
        with contextlib.suppress(UbpxError):
            self._ask_about([lease for lease in leases if not lease.is_over], ReadLeases)

    def release(self, leases: Sequence[RemoteLease]) -> None:
        """Give these back at once. Again: does nothing."""
        going = [lease for lease in leases if not lease.is_over]
        with contextlib.suppress(*SWEPT):
            self._ask_about(going, Release)
        self.forget(going)

    def forget(self, leases: Sequence[RemoteLease]) -> None:
        """These have ended: let handlers have the hits of before that, and no others."""
        for lease in leases:
            lease.end()
        if any(lease.mode == "notify" for lease in leases):
            self.link.flush()
        during = self.handling.served if self.handling.is_here else None  # then they end after the hit
        self.link.roster.forget(((lease.handle, lease) for lease in leases), during=during)

    def _ask_about(self, leases: Sequence[RemoteLease], call: Callable[[list[Handle]], Call]) -> None:
        try:
            for question, take in questions_about(leases, call):
                self.link.request(question, take)
        except UsageError:  # one of them is known there no more; the others are
            if len(leases) == 1:
                raise
            for lease in leases:
                with contextlib.suppress(UsageError):
                    self._ask_about([lease], call)

    def dropped(self, lease: Handle) -> tuple[int, int]:
        """How many hits of it were left out, by the broker as far as it has told, and here."""
        return self.link.roster.dropped(lease)

    # Probepoints and holds ----------------------------------------------------------------

    def probepoint(self, address: int) -> RemoteProbepoint:
        """The one at this address."""
        probepoint = self._inventory.probepoint(address)
        if probepoint.known is None:
            probepoint.refresh()
        return probepoint

    def watchpoint(self, info: WatchpointInfo) -> RemoteWatchpoint:
        """The one that watches this."""
        return self._inventory.watchpoint(info)

    def probepoints(self) -> tuple[RemoteProbepoint, ...]:
        """All of them, by address; raises what requests raise."""
        return self._inventory.probepoints(self.link.request(Probepoints(self.target), read_probepoints))

    def _make_probepoint(self, address: int) -> RemoteProbepoint:
        return RemoteProbepoint(address, self._read_probepoint)

    def _read_probepoint(self, address: int) -> ProbepointInfo | None:
        infos: list[ProbepointInfo] = self.link.request(Probepoints(self.target, address), read_probepoints)
        return next((info for info in infos if info.address == address), None)

    def hold(self, info: HoldInfo) -> RemoteHold:
        """The one that the broker tells of."""
        return self._inventory.hold(info)

    def hold_infos(self) -> list[HoldInfo]:
        """Everybody's; raises what requests raise."""
        infos: list[HoldInfo] = self.link.request(Holds(self.target), read_holds)
        return infos

    def release_hold(self, parting: ReleaseHold) -> None:
        """See ``RemoteHold.release``; raises what the broker answers, and nothing if there is nothing left to end."""
        with contextlib.suppress(*ENDED):
            self.link.request(parting)
