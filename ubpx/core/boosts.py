"""Copies in place of emulation: what is emulated and cannot jump has its copy run in a slot, once it is hot.

To emulate is to read and to write the program's memory at each hit; to send a thread to a slot is one request. But a
slot lies in memory that the program must map, so a place that is seldom met has none.
"""

from collections.abc import Sequence
from typing import Final

from ubpx._errors import InsnRefused, SlotsExhausted
from ubpx.core.arming import Armory
from ubpx.core.keeper import Keeper
from ubpx.core.probepoints import Probepoint
from ubpx.core.sites import Reception, probe_site
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp.plans import Strategy


class Boosts:
    """Changes how threads get past the traps of probepoints, in any of a session's spaces. Owned by Jumps."""

    def __init__(self, keeper: Keeper, armory: Armory, reception: Reception) -> None:
        self._keeper: Final = keeper
        self._armory: Final = armory
        self._reception: Final = reception

    def make(self, space: AddressSpace, probepoints: Sequence[Probepoint]) -> None:
        """Have these emulated no longer, as far as there are slots. Raises TargetGone."""
        if not probepoints:
            return
        with self._keeper.quiet(space):
            for each in probepoints:
                if space.registry.at(each.address) is each and each.leases and each.jump is None:
                    self._make(space, each)

    def _make(self, space: AddressSpace, probepoint: Probepoint) -> None:
        try:
            if probepoint.slot_code is None:
                probepoint.slot_code = self._armory.occupy_slot(space, probepoint.analysis, space.pid)
        except (InsnRefused, SlotsExhausted) as error:
            probepoint.why = f"threads come by often, but no {Strategy.BOOST}: {error.reason}"
            return
        self._change(space, probepoint, Strategy.BOOST)
        probepoint.why = f"threads come by often, and no {Strategy.JUMP}: {probepoint.jumpless}"

    def take_back(self, space: AddressSpace, probepoint: Probepoint) -> None:
        """Have it emulated, for somebody who insists on that; not if somebody insists on what it is now."""
        emulated = Strategy.EMULATE in probepoint.analysis.strategies
        if emulated and probepoint.armed_by is Strategy.BOOST and not any(each.forced for each in probepoint.leases):
            with self._keeper.quiet(space):
                self._change(space, probepoint, Strategy.EMULATE)
                probepoint.why = "asked for by the client"

    def _change(self, space: AddressSpace, probepoint: Probepoint, strategy: Strategy) -> None:
        probepoint.armed_by = strategy
        site = probe_site(probepoint, space, self._reception)
        site.leases = probepoint.leases
        space.sites[probepoint.patch.reported_pc] = site


def gains(space: AddressSpace, probepoint: Probepoint) -> bool:
    """Whether a slot is the faster way: not where it is known beforehand where a thread goes on."""
    analysis, ground = probepoint.analysis, space.grounds.of(probepoint.address)
    emulated = probepoint.armed_by is Strategy.EMULATE and analysis.landing is None
    return emulated and Strategy.BOOST in analysis.strategies and ground is not None and not ground.rewritable
