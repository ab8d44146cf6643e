"""Copies in place of emulation: what is emulated and cannot jump has its copy run in a slot, once it is hot.

To emulate is to read and to write the program's memory at each hit; to send a thread to a slot is one request. But a
slot lies in memory that the program must map, so a place that is seldom met has none.
"""

from typing import Final

from ubpx._errors import InsnRefused, SlotsExhausted
from ubpx.core.arming import Armory
from ubpx.core.probepoints import Probepoint
from ubpx.core.sites import ProbeSite, Reception, probe_site
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp.plans import Strategy


class Boosts:
    """Changes how threads get past the traps of probepoints, in any of a session's spaces. Owned by Jumps.

    Nobody is stopped for that: the traps stay as they are, and who has run into one goes on as it was then.
    """

    def __init__(self, armory: Armory, reception: Reception) -> None:
        self._armory: Final = armory
        self._reception: Final = reception

    def make(self, space: AddressSpace, probepoint: Probepoint) -> None:
        """Have it emulated no longer, if there is a slot; the program may be served meanwhile. Raises TargetGone."""
        try:
            code = probepoint.slot_code or self._armory.occupy_slot(space, probepoint.analysis, space.pid)
        except (InsnRefused, SlotsExhausted) as error:
            probepoint.slotless = error.reason
            probepoint.why = f"threads come by often, but no {Strategy.BOOST}: {error.reason}"
            return
        if space.registry.at(probepoint.address) is not probepoint or not gains(space, probepoint):
            if code is not probepoint.slot_code:
                space.slots.retire(code)
            return
        probepoint.slot_code = code
        self._change(space, probepoint, Strategy.BOOST)
        probepoint.why = f"threads come by often, and no {Strategy.JUMP}: {probepoint.jumpless}"

    def take_back(self, space: AddressSpace, probepoint: Probepoint) -> None:
        """Have it emulated, for somebody who insists on that; not if somebody insists on what it is now."""
        emulated = Strategy.EMULATE in probepoint.analysis.strategies
        if emulated and probepoint.armed_by is Strategy.BOOST and not any(each.forced for each in probepoint.leases):
            self._change(space, probepoint, Strategy.EMULATE)
            probepoint.why = "asked for by the client"

    def _change(self, space: AddressSpace, probepoint: Probepoint, strategy: Strategy) -> None:
        probepoint.armed_by = strategy
        site, former = probe_site(probepoint, space, self._reception), space.sites.get(probepoint.patch.reported_pc)
        site.leases = probepoint.leases
        if isinstance(former, ProbeSite):
            site.former, former.former = former, None
        space.sites[probepoint.patch.reported_pc] = site


def gains(space: AddressSpace, probepoint: Probepoint) -> bool:
    """Whether it is to have a slot instead of being emulated: not where a thread goes on at one place in any case."""
    analysis, ground = probepoint.analysis, space.grounds.of(probepoint.address)
    emulated = probepoint.armed_by is Strategy.EMULATE and probepoint.jump is None and analysis.landing is None
    free = bool(probepoint.leases) and not probepoint.is_forced and probepoint.slotless is None
    possible = Strategy.BOOST in analysis.strategies and ground is not None and not ground.rewritable
    return emulated and free and possible
