"""Many places at once: what a client gets, and what others notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.core.many_places import (
    APART,
    FUNCTION,
    INSN,
    LEA,
    LOAD,
    NOP,
    PAGES,
    PID,
    PLACES,
    PUSH,
    WIDE,
    ignore,
    recording_patch,
    standing,
)
from ubpx._errors import (
    ClientQuarantined,
    StrategyRefused,
)
from ubpx.core.probepoints import LeaseState
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

pytestmark = pytest.mark.usefixtures("either_way")


def test_all_stand_and_count_each_for_itself(wide: World) -> None:
    """Invariant: one lease for each place, in the list's order, and each counts its own arrivals."""
    order = [*PLACES[100:], *PLACES[:100]]
    group = wide.client("a").probe_many(order, ignore)
    assert [lease.address for lease in group] == order
    assert {lease.state for lease in group} == {LeaseState.ARMED}
    assert standing(wide) == PLACES
    for tid, place in ((PID, PLACES[0]), (101, PLACES[7]), (102, PLACES[7])):
        wide.arrive(tid, place)
    assert (group.hits, group[92].hits, group[99].hits) == (3, 1, 2)
    assert (len(group), len(group[:5]), group.refused) == (len(PLACES), 5, ())
    assert repr(group) == f"<{len(PLACES)} leases of 'a': 3 hits>"


@pytest.mark.parametrize("either_way", ["awake"], indirect=True)
def test_one_area_and_one_write_hold_all_slots(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a batch maps one area, writes its slots at once, and the traps of a page at once."""
    written: dict[int, int] = {}
    monkeypatch.setattr(wide.memory, "patch", recording_patch(wide.memory, written))
    group = wide.client("a").probe_many(PLACES, ignore)
    ((_, _, area, size),) = wide.fake.actions(None, "map_area")
    assert size >= len(PLACES) * 64
    assert list(written) == [area, *(WIDE + PAGE_SIZE * page for page in range(PAGES))]
    assert len({wide.slot_of(lease) for lease in group}) == len(PLACES)


@pytest.mark.parametrize("either_way", ["awake"], indirect=True)
def test_a_slot_holds_the_copy(wide: World) -> None:
    """Invariant: what a thread runs in a slot of a batch is what it would run in one of a single probe."""
    group = wide.client("a").probe_many(PLACES, ignore)
    architecture = wide.process.space.architecture
    for lease in group:
        assert lease.probepoint is not None
        slot = VirtAddr(wide.slot_of(lease))
        code = architecture.slot_code(lease.probepoint.analysis, slot).code
        assert wide.memory.read(slot, len(code)) == code


def test_release_takes_all_back_at_once_and_twice_does_nothing(wide: World) -> None:
    client = wide.client("a")
    with client.probe_many(PLACES, ignore) as group:
        slots = {wide.slot_of(lease) for lease in group}
        wide.arrive(PID, PLACES[3])
    group.release()
    assert standing(wide) == []
    assert {lease.state for lease in group} == {LeaseState.RELEASED}
    assert (group.hits, list(client.leases)) == (1, [])
    again = client.probe_many(PLACES, ignore)
    assert {wide.slot_of(lease) for lease in again} == slots, "the slots are used again"
    assert len(wide.fake.actions(None, "map_area")) == 1


def test_one_lease_of_a_group_may_go_alone(wide: World) -> None:
    group = wide.client("a").probe_many(PLACES[:4], ignore)
    group[2].release()
    assert standing(wide) == [PLACES[0], PLACES[1], PLACES[3]]


def test_specs_and_addresses_may_be_mixed_and_aliases_are_one(world: World) -> None:
    """Invariant: an address that the list has twice, by whatever name, is one lease, where it comes first."""
    world.symbols = {"lea": LEA, "alias": LEA, "push": PUSH}
    world.attach()
    wanted: list[str | int] = ["push", LEA, "lea", "alias", NOP, NOP]
    group = world.client("a").probe_many(iter(wanted), ignore)
    assert [lease.address for lease in group] == [PUSH, LEA, NOP]
    assert [lease.spec for lease in group] == ["push", None, None]


def test_a_glob_gives_what_it_names(world: World) -> None:
    world.symbols = {"f_lea": LEA, "f_push": PUSH, "g": NOP}
    world.attach()
    group = world.client("a").probe_many("f_*", ignore)
    assert [(lease.address, lease.spec) for lease in group] == [(LEA, "f_lea"), (PUSH, "f_push")]


def test_others_leases_stay_and_are_shared(wide: World) -> None:
    """Invariant: a batch shares the probepoints that stand, in handler order, and its release leaves them."""
    seen: list[str] = []
    single = wide.client("single").probe(PLACES[5], lambda hit: seen.append("single"))
    many = wide.client("many")
    group = many.probe_many(PLACES, lambda hit: seen.append("many"), priority=1)
    wide.arrive(PID, PLACES[5])
    assert seen == ["many", "single"]
    group.release()
    assert standing(wide) == [PLACES[5]]
    assert single.state is LeaseState.ARMED


def test_a_strategy_may_be_forced_for_all(world: World) -> None:
    group = world.attach().client("a").probe_many([PUSH, LEA], ignore, strategy="STEP")
    assert {lease.probepoint.strategy for lease in group if lease.probepoint} == {Strategy.STEP}
    with pytest.raises(StrategyRefused, match="EMULATE is not possible"):
        world.client("b").probe_many([NOP, LOAD], ignore, strategy="EMULATE")
    assert not world.trap_stands(NOP)


def test_a_client_that_leaves_takes_its_batches_along(wide: World) -> None:
    client = wide.client("a")
    client.probe_many(PLACES[:50], ignore)
    client.probe_many(PLACES[40:], ignore)
    assert len(client.leases) == len(PLACES) + 10
    client.close()
    assert standing(wide) == []


def test_a_quarantined_client_loses_its_batches(wide: World) -> None:
    client = wide.client("a")
    group = client.probe_many(PLACES, lambda _: 1 // 0)
    for place in PLACES[:3]:
        wide.arrive(PID, place)
    assert {lease.state for lease in group} == {LeaseState.QUARANTINED}
    assert standing(wide) == []
    with pytest.raises(ClientQuarantined):
        client.probe_many(PLACES, ignore)


def test_plugins_are_not_told_of_each_place(wide: World) -> None:
    """Invariant: armed and disarmed are told of what was probed singly, and as often as each other."""
    many, single = wide.client("many"), wide.client("single")
    group = many.probe_many(PLACES[:9], ignore)
    shared = single.probe(PLACES[0], ignore)
    alone = single.probe(PLACES[10], ignore)
    with many.probe_many(PLACES[9:12], ignore):
        alone.release()
    group.release()
    shared.release()
    assert wide.recorder.named("ubpx_probepoint_armed") == [(PLACES[10],)]
    assert wide.recorder.named("ubpx_probepoint_disarmed") == [(PLACES[10],)]


def test_what_was_overwritten_stays_and_is_told(wide: World) -> None:
    """Invariant: at a batch's release each byte is looked at: only our traps are taken out."""
    group = wide.client("a").probe_many(PLACES, ignore)
    wide.memory.patch(PLACES[4], b"\x50")
    group.release()
    assert standing(wide) == []
    assert wide.memory.read(VirtAddr(PLACES[4]), 1) == b"\x50"
    assert [address for address, _ in wide.recorder.named("ubpx_probepoint_lost")] == [PLACES[4]]
    wide.memory.patch(PLACES[4], INSN[:1])


def test_text_that_the_program_may_write_is_written_byte_by_byte(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: where the program may write meanwhile, not a byte beside the traps is written."""
    start = WIDE + PAGES * PAGE_SIZE
    wide.memory.map(start, INSN.ljust(APART, b"\x90") * 4, permissions="rwxp")
    places = [start + APART * number for number in range(4)]
    sizes: dict[int, int] = {}
    monkeypatch.setattr(wide.memory, "patch", recording_patch(wide.memory, sizes))
    group = wide.client("a").probe_many([*places, *PLACES[:2]], ignore)
    assert [sizes[place] for place in (*places, PLACES[0])] == [1, 1, 1, 1, APART + 1]
    sizes.clear()
    group.release()
    assert [sizes[place] for place in (*places, PLACES[0])] == [1, 1, 1, 1, APART + 1]
    wide.memory.unmap(start, 4 * APART)


def test_a_forked_child_is_cleaned_of_all(wide: World) -> None:
    """Invariant: of traps that stand and of traps that stood."""
    client = wide.client("a")
    client.probe_many(PLACES[:100], ignore).release()
    client.probe_many(PLACES[50:], ignore)
    wide.fake.fork(PID, 200)
    wide.fake.idle()
    child = wide.fake._processes[ProcessId(200)].memory
    assert child.read(VirtAddr(WIDE), PAGES * PAGE_SIZE) == INSN.ljust(APART, b"\x90") * len(PLACES)


def test_after_an_exec_specs_arm_again_and_addresses_are_lost(world: World) -> None:
    """Invariant: leases of a batch live through an exec as single ones do, hits go on; nothing is told of each."""
    world.symbols = {"f_lea": LEA, "f_push": PUSH}
    world.attach()
    client = world.client("a")
    by_glob = client.probe_many("f_*", ignore)
    by_address = client.probe_many([NOP, LOAD], ignore)
    world.arrive(PID, LEA)
    del world.symbols["f_push"]
    fresh = world.memory.copy(without=list(world.fake._processes[ProcessId(PID)].areas))
    for lease in (*by_glob, *by_address):
        fresh.patch(
            lease.address or 0, bytes.fromhex({LEA: "48", PUSH: "55", NOP: "90", LOAD: "48"}[lease.address or 0])
        )
    world.memory = fresh
    world.fake.exec(PID, fresh, entry=FUNCTION)
    world.fake.idle()
    assert [lease.state for lease in by_address] == [LeaseState.LOST, LeaseState.LOST]
    world.fake.arrive(PID, FUNCTION)
    world.fake.idle()
    assert [lease.state for lease in by_glob] == [LeaseState.ARMED, LeaseState.PENDING]
    world.arrive(PID, LEA)
    assert by_glob.hits == 2
    assert world.recorder.named("ubpx_probepoint_lost") == []
    by_glob.release()
    assert {lease.state for lease in by_glob} == {LeaseState.RELEASED}
