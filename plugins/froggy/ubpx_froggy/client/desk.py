"""Where the requests about one target of a broker go, and what there is one object of for each thing."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from ubpx import UbpxError, UsageError
from ubpx.core.ports import ProcessView
from ubpx_froggy.client.facts import ENDED, SWEPT, AnyDesk, read_holds, read_probepoints, standing_at
from ubpx_froggy.client.handling import Handling
from ubpx_froggy.client.holds import RemoteHold
from ubpx_froggy.client.leases import RemoteLease, questions_about
from ubpx_froggy.client.link import Link
from ubpx_froggy.client.probepoints import RemoteProbepoint
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


class RemoteDesk(AnyDesk[Link, RemoteHold, RemoteProbepoint]):
    """The desk of one target. Owned by the target, used by its clients and what they have."""

    def __init__(self, link: Link, target: Handle, *, process: ProcessView, handling: Handling) -> None:
        super().__init__(link, target)
        self.process: Final = process
        self.handling: Final = handling

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

    # Probepoints and holds ----------------------------------------------------------------

    def probepoint(self, address: int) -> RemoteProbepoint:
        """The one at this address."""
        probepoint = self._inventory.probepoint(address)
        if probepoint.known is None:
            probepoint.refresh()
        return probepoint

    def probepoints(self) -> tuple[RemoteProbepoint, ...]:
        """All of them, by address; raises what requests raise."""
        return self._inventory.probepoints(self.link.request(Probepoints(self.target), read_probepoints))

    def _make_probepoint(self, address: int) -> RemoteProbepoint:
        return RemoteProbepoint(address, self._read_probepoint)

    def _read_probepoint(self, address: int) -> ProbepointInfo | None:
        infos: list[ProbepointInfo] = self.link.request(Probepoints(self.target, address), read_probepoints)
        return standing_at(address, infos)

    def _make_hold(self, info: HoldInfo) -> RemoteHold:
        return RemoteHold(info, self)

    def hold_infos(self) -> list[HoldInfo]:
        """Everybody's; raises what requests raise."""
        infos: list[HoldInfo] = self.link.request(Holds(self.target), read_holds)
        return infos

    def release_hold(self, parting: ReleaseHold) -> None:
        """See ``RemoteHold.release``; raises what the broker answers, and nothing if there is nothing left to end."""
        with contextlib.suppress(*ENDED):
            self.link.request(parting)
