"""Values and stand-ins for the core's tests: no process, no tracer of the kernel's."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from ubpx.core.probepoints import Lease, Probepoint
from ubpx.core.ubp.plans import InsnAnalysis, Strategy, TrapPatch
from ubpx.core.values import AddressSpaceId, Insn, VirtAddr

PLACE = 0x40_1000


@attrs.define
class Holder:
    """A client as far as leases need it; keeps what was given back to it."""

    name: str
    strikes: int = 0
    released: list[Lease] = attrs.field(factory=list)

    def release(self, lease: Lease) -> None:
        self.released.append(lease)


class Makers:
    """Makes leases and probepoints; each lease is younger than the one before."""

    def __init__(self) -> None:
        self._age = 0

    def lease(self, client: str = "a", *, priority: int = 0, exclusive: bool = False, spec: str | None = None) -> Lease:
        self._age += 1
        holder = Holder(client)
        return Lease(holder, lambda _: None, priority=priority, age=self._age, spec=spec, exclusive=exclusive)

    def probepoint(
        self,
        address: int = PLACE,
        *,
        trap: bytes = b"\xcc",
        strategy: Strategy = Strategy.BOOST,
        relied_on: range = range(0),
    ) -> Probepoint:
        insn = Insn(VirtAddr(address), b"\x90" * len(trap), "nop")
        patch = TrapPatch(address=insn.address, trap=trap, original=insn.raw, reported_pc=VirtAddr(address + len(trap)))
        analysis = InsnAnalysis(insn=insn, strategies=(strategy,))
        return Probepoint(AddressSpaceId(1), analysis, patch, strategy, why="a test", relied_on=relied_on)


@pytest.fixture
def make() -> Makers:
    """``make.lease(client, ...)`` and ``make.probepoint(address, ...)``."""
    return Makers()


@pytest.fixture
def holder() -> Callable[[str], Holder]:
    """Make a lease holder of that name."""
    return Holder
