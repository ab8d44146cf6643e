"""Many places at once: what comes between, and leases that end at their first hit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.many_places import (
    INSN,
    NOP,
    PID,
    PLACES,
    ignore,
    standing,
)
from ubpx.core.probepoints import LeaseState

if TYPE_CHECKING:
    from tests.unit.core.conftest import World


# What comes between -------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("either_way")


def test_a_place_that_a_handler_probes_meanwhile_is_shared(wide: World) -> None:
    """Invariant: while the program is served for an area a handler may probe one of the places: both have it."""
    other, client = wide.client("other"), wide.client("a")
    between: list[Any] = []

    def handler(hit: Any) -> None:
        between.append(other.probe(PLACES[2], ignore, strategy="STEP"))

    other.probe(NOP, handler)

    def job() -> Any:
        wide.fake.arrive(101, NOP)
        return client.probe_many(PLACES, ignore)

    group = wide.loop.run(job)
    wide.fake.idle()
    assert len(between) == 1
    assert len(group) == len(PLACES)
    assert standing(wide) == PLACES
    assert group[2].probepoint is between[0].probepoint
    wide.arrive(PID, PLACES[2])
    wide.fake.end_step(PID)
    assert (group[2].hits, between[0].hits) == (1, 1)


def test_one_place_that_a_handler_probes_meanwhile_is_shared(wide: World) -> None:
    """Invariant: the same for a single place: the second finds the first's probepoint, and both count."""
    other, client = wide.client("other"), wide.client("a")
    between: list[Any] = []
    other.probe(NOP, lambda _: between.append(other.probe(PLACES[2], ignore, strategy="STEP")))

    def job() -> Any:
        wide.fake.arrive(101, NOP)
        return client.probe(PLACES[2], ignore)

    lease = wide.loop.run(job)
    wide.fake.idle()
    assert len(between) == 1
    assert lease.probepoint is between[0].probepoint
    wide.arrive(PID, PLACES[2])
    wide.fake.end_step(PID)
    assert (lease.hits, between[0].hits) == (1, 1)


def test_who_reads_while_a_trap_is_written_never_sees_it(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a client that reads memory at any moment of a probe sees the program's own bytes."""
    client, patch = wide.client("a"), wide.memory.patch
    read: list[bytes] = []

    def reading(address: int, data: bytes) -> None:
        patch(address, data)
        read.append(wide.process.memory.read(PLACES[0], 1))

    monkeypatch.setattr(wide.memory, "patch", reading)
    client.probe(PLACES[0], ignore).release()
    assert set(read) == {INSN[:1]}


def test_many_may_be_probed_and_released_in_a_handler(wide: World) -> None:
    client, groups = wide.client("a"), list[Any]()

    def handler(hit: Any) -> None:
        if groups:
            groups.pop().release()
        else:
            groups.append(client.probe_many(PLACES, ignore))

    client.probe(NOP, handler)
    wide.arrive(PID, NOP)
    assert standing(wide) == PLACES
    wide.arrive(PID, NOP)
    assert standing(wide) == []


# Once ---------------------------------------------------------------------------------------


def test_once_runs_each_handler_once_though_several_arrive_together(wide: World) -> None:
    """Invariant: of several threads in one trap the first is served, and the lease ends; the others pass."""
    seen: list[int] = []
    group = wide.client("a").probe_many(PLACES[:3], lambda hit: seen.append(hit.tid), once=True)
    with wide.fake.together():
        for tid in (101, PID, 102):
            wide.fake.arrive(tid, PLACES[1])
    wide.fake.idle()
    assert seen == [101]
    assert [lease.hits for lease in group] == [0, 1, 0]
    assert [lease.state for lease in group] == [LeaseState.ARMED, LeaseState.RELEASED, LeaseState.ARMED]
    assert standing(wide) == [PLACES[0], PLACES[2]]
    assert {wide.fake.thread(tid).condition for tid in (PID, 101, 102)} == {"RUNNING"}
    assert list(wide.desk.roster.living()[1].leases) == [group[0], group[2]]


@pytest.mark.parametrize("kind", ["one", "many"])
def test_once_needs_no_stop_but_that_of_its_hit(wide: World, kind: str) -> None:
    """Invariant: the trap is gone when the thread of the hit goes on; nobody is stopped, stepped or asked for it."""
    client = wide.client("a")
    many = kind == "many"
    lease = client.probe_many([PLACES[0]], ignore, once=True)[0] if many else client.probe(PLACES[0], ignore, once=True)
    seen: list[bool] = []
    wide.client("last").probe(NOP, ignore)
    resume = wide.fake.resume

    def going_on(*arguments: Any, **options: Any) -> Any:
        seen.append(wide.trap_stands(PLACES[0]))
        return resume(*arguments, **options)

    before = [wide.fake.actions(None, each) for each in ("map_area", "interrupt", "step")]
    wide.fake.resume = going_on  # type: ignore[method-assign]  # looks at the moment when the thread goes on
    wide.arrive(PID, PLACES[0])
    assert (lease.hits, lease.state) == (1, LeaseState.RELEASED)
    assert seen == [False]
    assert not wide.trap_stands(PLACES[0])
    assert [wide.fake.actions(None, each) for each in ("map_area", "interrupt", "step")] == before


@pytest.mark.parametrize("later", [False, True])
def test_one_probe_once_tells_exactly_one_thread(wide: World, later: bool) -> None:
    """Invariant: whether the others are seen in the same look or after it, one is told."""
    seen: list[int] = []
    client = wide.client("a")
    lease = client.probe(PLACES[1], lambda hit: seen.append(hit.tid), once=True)
    with wide.fake.together():
        for tid in (101, PID) if later else (101, PID, 102):
            wide.fake.arrive(tid, PLACES[1])
    wide.fake.idle()
    if later:  # it had run into the trap while that stood
        thread = wide.fake.thread(102)
        thread["rip"] = PLACES[1] + 1
        wide.fake._tell(102, "report", lambda: wide.fake._trapped(thread, 0x80))
        wide.fake.idle()
        assert thread["rip"] == PLACES[1]
    assert (seen, lease.hits, lease.state) == ([101], 1, LeaseState.RELEASED)
    assert (standing(wide), list(client.leases)) == ([], [])


def test_a_lease_that_waits_for_its_module_ends_once_it_was_hit(world: World) -> None:
    world.attach()
    lease = world.client("a").probe("m:late", ignore, once=True)
    assert lease.state is LeaseState.PENDING
    world.symbols = {"m:late": NOP}
    world.loop.run(lambda: world.desk._leasing.arm_waiting(world.process))
    for _ in range(2):
        world.arrive(PID, NOP) if world.trap_stands(NOP) else None
    assert (lease.hits, lease.state) == (1, LeaseState.RELEASED)


def test_once_leaves_others_leases(wide: World) -> None:
    steady = wide.client("steady").probe(PLACES[0], ignore)
    group = wide.client("a").probe_many([PLACES[0]], ignore, once=True)
    for _ in range(3):
        wide.arrive(PID, PLACES[0])
    assert (steady.hits, group.hits) == (3, 1)
    assert wide.trap_stands(PLACES[0])


def test_once_counts_a_handler_that_raises(wide: World) -> None:
    """Invariant: its one run is the one that raised."""
    group = wide.client("a").probe_many(PLACES[:2], lambda _: 1 // 0, once=True)
    for _ in range(2):
        wide.arrive(PID, PLACES[0]) if wide.trap_stands(PLACES[0]) else None
    assert (group[0].hits, group[0].errors, group[0].state) == (1, 1, LeaseState.RELEASED)
    assert standing(wide) == [PLACES[1]]


def test_a_place_may_be_probed_again_in_its_last_hit(wide: World) -> None:
    """Invariant: a probe in the very hit that ends a lease keeps the trap: nothing is missed after it."""
    client, again = wide.client("a"), list[Any]()
    client.probe_many([PLACES[0]], lambda hit: again.append(client.probe(PLACES[0], ignore)), once=True)
    wide.arrive(PID, PLACES[0])
    assert wide.trap_stands(PLACES[0])
    wide.arrive(PID, PLACES[0])
    assert again[0].hits == 1
    again[0].release()
    assert standing(wide) == []


def test_once_ends_even_if_a_hit_comes_within_the_hit(wide: World) -> None:
    """Invariant: when the program is served in the middle of a hit, an ended lease neither runs nor counts again."""
    client, other = wide.client("a"), wide.client("other", priority=1)
    seen: list[int] = []
    group = client.probe_many([PLACES[0]], lambda hit: seen.append(hit.tid), once=True)

    def handler(hit: Any) -> None:
        if hit.tid == PID:
            wide.fake.arrive(101, PLACES[0])
            wide.coordinator.run_until(lambda: bool(seen))
        else:
            wide.fake.ring()

    other.probe(PLACES[0], handler)
    wide.arrive(PID, PLACES[0])
    assert seen == [101]
    assert group.hits == 1
