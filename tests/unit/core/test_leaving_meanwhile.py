"""A client leaves, or is thrown out, while the program is served for a request of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.many_places import NOP, PID, PLACES, ignore, standing
from ubpx._errors import MemoryFault, TargetGone, UsageError
from ubpx.core.probepoints import LeaseState

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

pytestmark = pytest.mark.usefixtures("either_way")


def test_a_lease_is_not_granted_to_a_client_that_has_left_meanwhile(wide: World) -> None:
    """Invariant: while an area is mapped for its probe the client closes: it is refused, and no trap stands."""
    client = wide.client("a")
    client.probe(NOP, lambda _: client.close())

    def job() -> None:
        wide.fake.arrive(101, NOP)
        with pytest.raises(UsageError, match="closed"):
            client.probe(PLACES[0], ignore)

    wide.loop.run(job)
    wide.fake.idle()
    assert standing(wide) == []
    assert not wide.trap_stands(NOP)


def test_a_group_is_not_granted_to_a_client_that_has_left_meanwhile(wide: World) -> None:
    """Invariant: the same for many places at once."""
    client = wide.client("a")
    client.probe(NOP, lambda _: client.close())

    def job() -> None:
        wide.fake.arrive(101, NOP)
        with pytest.raises(UsageError, match="closed"):
            client.probe_many(PLACES, ignore)

    wide.loop.run(job)
    wide.fake.idle()
    assert standing(wide) == []


def test_a_place_that_was_to_be_shared_is_armed_anew_if_its_last_lease_goes_meanwhile(wide: World) -> None:
    """Invariant: who asks for many places gets all of them, whoever else leaves one while an area is mapped."""
    other, client = wide.client("other"), wide.client("a")
    lease = other.probe(NOP, lambda _: other.close())

    def job() -> Any:
        wide.fake.arrive(101, NOP)
        return client.probe_many([NOP, *PLACES], ignore)

    group = wide.loop.run(job)
    wide.fake.idle()
    assert (lease.hits, lease.state) == (1, LeaseState.RELEASED)
    assert standing(wide) == PLACES
    wide.arrive(PID, NOP)
    assert [each.hits for each in group] == [1] + [0] * len(PLACES)


def test_nobody_waits_for_a_hold_that_its_owner_has_given_up(wide: World) -> None:
    """Invariant: the client closes while a thread of its is asked to stop: the call returns, and the thread runs."""
    client = wide.client("a")
    client.probe(NOP, lambda _: client.close())

    def job() -> Any:
        wide.fake.arrive(101, NOP, overtakes=True)
        return client.hold(101)

    hold = wide.loop.run(job)
    wide.fake.idle()
    assert hold.released
    assert wide.fake.thread(101).condition == "RUNNING"


def test_a_hold_counts_in_the_middle_of_its_owners_step(wide: World) -> None:
    """Invariant: a client that has a thread step, and holds it before the step is done, has it held: nobody hangs."""
    client = wide.client("a")
    client.hold(101)
    wide.fake.signal(101, 19)  # SIGSTOP: the step is not done while the process is stopped
    for hold in wide.holds():
        hold.release()
    wide.fake.idle()
    client.hold(101)
    client.step(101)
    wide.fake.idle()
    whole = client.hold()
    assert wide.fake.thread(101).condition == "STOPPED"
    whole.release()
    for hold in wide.holds():
        hold.release()
    wide.fake.continue_process(PID)
    wide.fake.idle()
    assert wide.fake.thread(101).condition == "RUNNING"


@pytest.mark.parametrize("either_way", ["awake"], indirect=True)
@pytest.mark.parametrize("many", [False, True])
def test_nothing_is_granted_in_a_memory_that_the_process_has_left_meanwhile(
    wide: World, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """Invariant: the process ends while the program is served, and a child that shares its memory lives on there."""
    client, arm = wide.client("a"), wide.coordinator.batches.arm

    def arm_and_end(*arguments: Any) -> bool:
        armed = arm(*arguments)
        wide.process.ended.set()
        return armed

    monkeypatch.setattr(wide.coordinator.batches, "arm", arm_and_end)
    with pytest.raises(TargetGone):
        client.probe_many(PLACES, ignore) if many else client.probe(PLACES[0], ignore)
    wide.process.ended.clear()
    assert standing(wide) == []
    assert client.leases == ()


def test_nothing_is_granted_in_a_memory_that_an_exec_has_replaced_meanwhile(
    wide: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: the old program's memory, where a child may live on, has no trap of a lease that it never got."""
    client, arm, old = wide.client("a"), wide.coordinator.batches.arm, wide.process.space
    stood: list[list[int]] = []

    def arm_and_exec(*arguments: Any) -> bool:
        armed = arm(*arguments)
        stood.append(standing(wide))
        wide.process.space = wide.coordinator._census.new_space(wide.process.pid, slots_allowed=True)
        return armed

    monkeypatch.setattr(wide.coordinator.batches, "arm", arm_and_exec)
    with pytest.raises(MemoryFault):
        client.probe(PLACES[0], ignore)
    wide.process.space = old
    assert stood == [PLACES[:1]]
    assert standing(wide) == []
    assert client.leases == ()
