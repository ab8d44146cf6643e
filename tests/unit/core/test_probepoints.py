"""The registry: who shares which place, in which order, and who is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ubpx._errors import ProbepointBusy, StrategyRefused
from ubpx.core.probepoints import LeaseState, Registry
from ubpx.core.ubp.plans import SlotCode, Strategy
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import Makers

HERE = VirtAddr(0x40_1000)


def test_handlers_run_by_priority_then_by_age(make: Makers) -> None:
    """Invariant: higher priority first, then the older lease, whatever the order of granting."""
    registry, place = Registry(), make.probepoint(HERE)
    registry.add(place)
    old, high, young, low = (
        make.lease(name, priority=priority) for name, priority in [("old", 0), ("high", 5), ("young", 0), ("low", -1)]
    )
    for lease in (low, young, high, old):
        registry.grant(lease, place)
    assert place.clients == ("high", "old", "young", "low")
    assert place.leases == (high, old, young, low)


def test_refcount_is_the_number_of_leases(make: Makers) -> None:
    """Invariant: only the withdrawal of the last lease says so; the same one twice does nothing."""
    registry, place = Registry(), make.probepoint(HERE)
    registry.add(place)
    first, second = make.lease("first"), make.lease("second")
    assert {first.state, second.state} == {LeaseState.PENDING}
    for lease in (first, second):
        registry.grant(lease, place)
        assert (lease.state, lease.address, lease.probepoint) == (LeaseState.ARMED, HERE, place)
    assert not registry.withdraw(first, LeaseState.RELEASED)
    assert not registry.withdraw(first, LeaseState.LOST)
    assert first.state is LeaseState.RELEASED
    assert place.leases == (second,)
    assert registry.withdraw(second, LeaseState.QUARANTINED)
    assert not registry.withdraw(second, LeaseState.RELEASED)
    assert second.state is LeaseState.QUARANTINED
    assert second.address == HERE, "where it was stays readable"


def test_withdrawing_what_was_never_granted_does_nothing(make: Makers) -> None:
    lease = make.lease()
    assert not Registry().withdraw(lease, LeaseState.RELEASED)
    assert lease.state is LeaseState.PENDING


def test_registry_knows_its_probepoints(make: Makers) -> None:
    registry = Registry()
    places = [make.probepoint(HERE), make.probepoint(HERE + 16)]
    for place in places:
        registry.add(place)
    assert len(registry) == 2
    for place in registry:  # a copy: they may go meanwhile
        assert registry.at(place.address) is place
        registry.remove(place)
    assert list(registry) == []
    assert registry.at(HERE) is None


def test_exclusive_use_collides_naming_the_holder(make: Makers) -> None:
    """Invariant: an exclusive lease refuses others, and is refused where others are (S9)."""
    registry, shared, alone = Registry(), make.probepoint(HERE), make.probepoint(HERE + 16)
    registry.add(shared)
    registry.add(alone)
    registry.grant(make.lease("sharer"), shared)
    registry.grant(make.lease("loner", exclusive=True), alone)
    registry.check(shared.address, exclusive=False, strategy=None)
    with pytest.raises(ProbepointBusy, match="held by client 'sharer'") as busy:
        registry.check(shared.address, exclusive=True, strategy=None)
    assert (busy.value.address, busy.value.holder) == (HERE, "sharer")
    with pytest.raises(ProbepointBusy, match="held by client 'loner'"):
        registry.check(alone.address, exclusive=False, strategy=None)
    registry.check(VirtAddr(HERE + 32), exclusive=True, strategy=Strategy.STEP)


def test_a_shared_probepoint_has_one_strategy(make: Makers) -> None:
    """Invariant: who insists on another strategy than the standing one is told who shares it by which."""
    registry, place = Registry(), make.probepoint(HERE, strategy=Strategy.BOOST)
    registry.add(place)
    registry.grant(make.lease("first"), place)
    registry.check(HERE, exclusive=False, strategy=Strategy.BOOST)
    with pytest.raises(StrategyRefused, match="shared with first by BOOST"):
        registry.check(HERE, exclusive=False, strategy=Strategy.STEP)


def test_owned_and_relied_on_bytes_are_looked_up_apart(make: Makers) -> None:
    """Invariant: owned are exactly the trap's bytes; relied on is what the probepoint says."""
    registry = Registry()
    jump = make.probepoint(HERE, trap=b"\xe9\0\0", relied_on=range(HERE + 3, HERE + 5))
    registry.add(jump)
    assert list(jump.owned) == [HERE, HERE + 1, HERE + 2]
    owning = [bool(registry.owning(range(HERE + i, HERE + i + 1))) for i in range(-1, 6)]
    assert owning == [False, True, True, True, False, False, False]
    relying = [bool(registry.relying_on(range(HERE + i, HERE + i + 1))) for i in range(-1, 6)]
    assert relying == [False, False, False, False, True, True, False]


def test_several_may_rely_on_one_byte(make: Makers) -> None:
    """Invariant: a byte is relied on as long as anybody relies on it."""
    registry = Registry()
    jumps = [make.probepoint(HERE + 8 * number, relied_on=range(HERE + 20, HERE + 22)) for number in range(2)]
    for jump in jumps:
        registry.add(jump)
    assert registry.relying_on(range(HERE + 20, HERE + 21)) == tuple(jumps)
    registry.remove(jumps[0])
    assert registry.relying_on(range(HERE, HERE + 100)) == (jumps[1],)
    registry.remove(jumps[1])
    assert registry.relying_on(range(HERE, HERE + 100)) == ()


def test_bytes_that_another_relies_on_are_refused_naming_the_holder(make: Makers) -> None:
    """Invariant: nobody probes into bytes that a probepoint needs as they are."""
    registry, jump = Registry(), make.probepoint(HERE, relied_on=range(HERE + 1, HERE + 5))
    registry.add(jump)
    registry.grant(make.lease("jumper"), jump)
    with pytest.raises(ProbepointBusy, match="held by client 'jumper'"):
        registry.check(VirtAddr(HERE + 4), exclusive=False, strategy=None)
    registry.check(VirtAddr(HERE + 5), exclusive=False, strategy=None)


def test_bytes_that_another_owns_are_refused_naming_the_holder(make: Makers) -> None:
    """Invariant: nobody probes into the middle of another probepoint's trap."""
    registry, jump = Registry(), make.probepoint(HERE, trap=b"\xe9\0\0\0\0")
    registry.add(jump)
    registry.grant(make.lease("jumper"), jump)
    with pytest.raises(ProbepointBusy, match="held by client 'jumper'"):
        registry.check(VirtAddr(HERE + 2), exclusive=False, strategy=None)


def test_a_lease_releases_through_its_client(make: Makers) -> None:
    """Invariant: release and leaving the with are the same request to the client."""
    lease = make.lease("a")
    with lease:
        pass
    lease.release()
    assert lease.client.released == [lease, lease]  # type: ignore[attr-defined]


def test_what_people_read(make: Makers) -> None:
    registry, place = Registry(), make.probepoint(HERE)
    assert repr(place) == "<probepoint 0x401000 BOOST: nobody>"
    registry.add(place)
    by_address, by_spec = make.lease("a"), make.lease("b", spec="libc:write")
    assert repr(by_address) == "<lease of 'a' at nowhere: PENDING, 0 hits>"
    registry.grant(by_address, place)
    registry.grant(by_spec, place)
    assert repr(by_address) == "<lease of 'a' at 0x401000: ARMED, 0 hits>"
    assert repr(by_spec) == "<lease of 'b' at libc:write: ARMED, 0 hits>"
    assert repr(place) == "<probepoint 0x401000 BOOST: a, b>"


def test_slot_is_where_the_copy_lies(make: Makers) -> None:
    place = make.probepoint(HERE)
    assert place.slot is None
    place.slot_code = SlotCode(origin=HERE, slot=VirtAddr(0x5000), code=b"\x90", places=((0, HERE),))
    assert place.slot == 0x5000
