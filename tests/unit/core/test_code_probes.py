"""Code that is probed as a whole: dormant probepoints, what wakes them, and what must never meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.many_places import (
    APART,
    FUNCTION,
    INSN,
    NOP,
    PAGES,
    PID,
    PLACES,
    WIDE,
    failing_patch,
    ignore,
    recording_patch,
)
from ubpx._errors import MemoryFault, NotExecutable, UsageError
from ubpx.core import sleepers
from ubpx.core.probepoints import LeaseState
from ubpx.core.sites import TombSite
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.core.clients import Client
    from ubpx.core.sleepers import CodeProbe

CHILD = 200
CODE = INSN.ljust(APART, b"\x90") * len(PLACES)
ALL = range(WIDE, WIDE + PAGES * PAGE_SIZE)
STARTS = [at for place in PLACES for at in (place, *range(place + len(INSN), place + APART))]


def probe(
    world: World, ranges: list[range], handler: Any = None, *, client: Client | None = None, first: int | None = None
) -> CodeProbe:
    """Probe the ranges as a whole."""
    return world.desk.probe_code(client or world.client("code"), ranges, handler, first_hits=first, priority=0)


def standing(world: World) -> list[int]:
    """Where in ALL a trap stands."""
    raw = world.memory.read(VirtAddr(WIDE), len(ALL))
    return [WIDE + at for at, byte in enumerate(raw) if byte == 0xCC]


def test_a_trap_stands_on_each_instruction_and_nothing_else_is_made(wide: World) -> None:
    found = probe(wide, [ALL])
    assert standing(wide) == STARTS
    assert (found.instructions, found.probed, found.hits, found.reached) == (len(STARTS), len(STARTS), 0, 0)
    assert len(wide.process.space.registry) == 0
    assert [client.leases for client in wide.desk.roster.living() if client.name == "code"] == [()]
    assert wide.coordinator.has_probes


def test_clients_never_see_the_traps_and_cannot_write_over_them(wide: World) -> None:
    probe(wide, [ALL])
    memory = wide.process.memory
    assert memory.read(VirtAddr(WIDE), len(ALL)) == CODE
    assert [memory.read(VirtAddr(at), 3) for at in range(WIDE, WIDE + 70)] == [CODE[at : at + 3] for at in range(70)]
    for at in (PLACES[3], PLACES[3] - 2):
        with pytest.raises(UsageError, match="a probe stands at"):
            memory.patch(VirtAddr(at), b"\x90\x90\x90")
    memory.patch(VirtAddr(PLACES[3] + 1), b"\x8d\x47\x01")


def test_an_arrival_makes_the_probepoint_and_counts(wide: World) -> None:
    """Invariant: the first arrival is no other than the second: counted, handled, past the trap, in its slot."""
    seen: list[tuple[int, int]] = []
    found = probe(wide, [ALL], lambda hit: seen.append((hit.tid, hit.address)))
    thread = wide.arrive(PID, PLACES[5])
    probepoint = wide.process.space.registry.at(VirtAddr(PLACES[5]))
    assert probepoint is not None
    assert thread["rip"] == probepoint.slot
    assert wide.memory.read(VirtAddr(thread["rip"]), len(INSN)) == INSN
    wide.arrive(101, PLACES[5])
    wide.arrive(102, PLACES[5] + 4)
    assert wide.fake.thread(102)["rip"] == PLACES[5] + 5
    assert seen == [(PID, PLACES[5]), (101, PLACES[5]), (102, PLACES[5] + 4)]
    assert (found.hits, found.reached, dict(found.strategies)) == (3, 2, {"BOOST": 1, "EMULATE": 1})
    assert standing(wide) == STARTS
    assert wide.process.memory.read(VirtAddr(WIDE), len(ALL)) == CODE


def test_a_probe_ends_after_its_first_hits(wide: World) -> None:
    """Invariant: exactly so many are counted at each place, also if threads come at once; the others stay."""
    found = probe(wide, [ALL], first=2)
    with wide.fake.together():
        for tid in (PID, 101, 102):
            wide.fake.arrive(tid, PLACES[7])
    wide.fake.idle()
    assert found.hits == 2
    assert standing(wide) == [at for at in STARTS if at != PLACES[7]]
    wide.arrive(PID, PLACES[8])
    assert found.hits == 3


def test_what_cannot_be_probed_is_counted_by_its_reason(wide: World) -> None:
    """Invariant: every instruction is probed or refused; what is none, and what follows it, is neither."""
    start, code = WIDE - PAGE_SIZE, bytes.fromhex("90f4 fa 90 0f05 cd80 90 06 9090")
    wide.memory.map(start, code.ljust(PAGE_SIZE), permissions="r-xp")
    found = probe(wide, [range(start, start + 12)])
    assert (found.instructions, found.probed, found.undecoded) == (7, 4, 3)
    assert sum(found.refused.values()) == 3
    assert "only the kernel may execute it" in found.refused
    raw = wide.memory.read(VirtAddr(start), 12)
    assert raw == bytes.fromhex("cc f4 fa cc cc05 cd80 cc 06 9090")
    wide.desk.release_code(found)
    wide.memory.unmap(start, PAGE_SIZE)


def test_release_takes_all_out(wide: World) -> None:
    """Invariant: what sleeps, what was woken and what has ended: the program's bytes are its own, leases are over."""
    client = wide.client("code")
    found = probe(wide, [ALL], client=client, first=2)
    wide.arrive(PID, PLACES[1])
    wide.arrive(PID, PLACES[2])
    wide.arrive(101, PLACES[2])
    (lease,) = client.leases
    wide.desk.release_code(found)
    wide.desk.release_code(found)
    assert wide.memory.read(VirtAddr(WIDE), len(ALL)) == CODE
    assert (lease.state, found.state, client.leases) == (LeaseState.RELEASED, LeaseState.RELEASED, ())
    assert found.hits == 3
    assert wide.process.space.dormant.count == 0
    assert not wide.coordinator.has_probes


def test_code_may_be_probed_again_and_again(wide: World) -> None:
    """Invariant: what met a trap that was taken out, of whichever sort, does not answer for the one that stands now."""
    client = wide.client("code")
    client.probe(PLACES[3], ignore).release()
    for turn in range(3):
        found = probe(wide, [ALL], client=client, first=1)
        wide.arrive(PID, PLACES[2 * turn])
        wide.arrive(PID, PLACES[1])
        wide.arrive(PID, PLACES[3])
        assert found.hits == 3
        wide.desk.release_code(found)
    single = client.probe(PLACES[1], ignore)
    wide.arrive(PID, PLACES[1])
    assert single.hits == 1


@pytest.mark.parametrize("way", ["close", "quarantine"])
def test_who_goes_leaves_no_trap(wide: World, way: str) -> None:
    client = wide.client("code")

    def fail(hit: Any) -> None:
        raise ValueError("as the test said")

    found = probe(wide, [ALL], fail, client=client)
    for place in PLACES[:3] if way == "quarantine" else ():
        wide.arrive(PID, place)
    if way == "close":
        client.close()
    assert found.state is (LeaseState.RELEASED if way == "close" else LeaseState.QUARANTINED)
    assert wide.memory.read(VirtAddr(WIDE), len(ALL)) == CODE


def test_a_thread_that_ran_into_a_trap_before_it_was_taken_out_is_sent_back(wide: World) -> None:
    """Invariant: the program never sees a SIGTRAP of ours, whether anybody had arrived there before or not."""
    found = probe(wide, [ALL])
    wide.arrive(PID, PLACES[4])
    wide.desk.release_code(found)
    sites = wide.process.space.sites
    for place in PLACES[4:6]:
        site = wide.loop.run(lambda place=place: sites[place + 1])  # type: ignore[misc]
        assert isinstance(site, TombSite)
        assert site.address == place
    with pytest.raises(KeyError):
        wide.loop.run(lambda: sites[ALL.stop + 1])


def test_somebody_elses_trap_is_the_programs_own_affair(wide: World) -> None:
    """Invariant: a trap that stands where ours stood once, and is not ours, is delivered."""
    found = probe(wide, [ALL])
    wide.desk.release_code(found)
    wide.memory.patch(VirtAddr(PLACES[4]), b"\xcc")
    wide.arrive(101, PLACES[4])
    assert wide.fake.actions(101, "resume")[-1] == ("resume", 101, 5)
    wide.memory.patch(VirtAddr(PLACES[4]), INSN[:1])


def test_another_client_shares_what_sleeps(wide: World) -> None:
    """Invariant: who probes where a dormant trap stands shares its probepoint; either goes without the other."""
    found = probe(wide, [ALL])
    other = wide.client("other")
    single = other.probe(PLACES[3], ignore)
    many = other.probe_many([PLACES[4], NOP], ignore)
    assert single.probepoint is not None
    assert single.probepoint.clients == ("code", "other")
    wide.arrive(PID, PLACES[3])
    wide.arrive(PID, PLACES[4])
    assert (single.hits, many.hits, found.hits) == (1, 1, 2)
    single.release()
    wide.arrive(PID, PLACES[3])
    assert found.hits == 3
    wide.desk.release_code(found)
    assert standing(wide) == [PLACES[4]]


def test_leases_that_were_there_are_shared_and_exclusive_ones_respected(wide: World) -> None:
    other = wide.client("other")
    shared = other.probe(PLACES[3], ignore)
    other.probe(PLACES[4], ignore, exclusive=True)
    found = probe(wide, [ALL])
    assert dict(found.refused) == {"client 'other' has it for itself": 1}
    assert found.probed == len(STARTS) - 1
    wide.arrive(PID, PLACES[3])
    wide.arrive(PID, PLACES[4])
    assert (shared.hits, found.hits) == (1, 1)
    other.close()
    assert standing(wide) == [at for at in STARTS if at != PLACES[4]]


@pytest.mark.parametrize(
    "ranges",
    [
        [range(WIDE, WIDE + 64, 2)],
        [ALL, range(WIDE, WIDE)],
        [range(WIDE + 64, WIDE, -1)],
        [(WIDE, WIDE + 64)],
        ALL,
        None,
        WIDE,
    ],
)
def test_what_is_no_range_of_code_is_refused(wide: World, ranges: Any) -> None:
    """Invariant: usage is checked before anything is armed."""
    with pytest.raises(UsageError, match=r"ranges of code are range\(start, end\), not empty, step 1"):
        probe(wide, ranges)
    assert standing(wide) == []


def test_two_clients_may_probe_the_same_code(wide: World) -> None:
    first, second = probe(wide, [range(WIDE, PLACES[2])]), wide.client("second")
    again = probe(wide, [range(WIDE, PLACES[4])], client=second)
    wide.arrive(PID, PLACES[1])
    wide.arrive(PID, PLACES[3])
    assert (first.hits, again.hits) == (1, 2)
    wide.desk.release_code(first)
    wide.arrive(PID, PLACES[1])
    assert (first.hits, again.hits) == (1, 3)
    wide.desk.release_code(again)
    assert standing(wide) == []


def test_whoever_asks_for_all_probepoints_gets_them(wide: World) -> None:
    probe(wide, [range(PLACES[0], PLACES[2])])
    asked = wide.desk.probepoints()
    assert [each.address for each in asked] == [at for at in STARTS if at < PLACES[2]]
    assert {each.clients for each in asked} == {("code",)}
    assert standing(wide) == [at for at in STARTS if at < PLACES[2]]


def test_a_forked_child_is_cleaned_of_all(wide: World) -> None:
    """Invariant: of what sleeps, of what was woken, and of what stood once."""
    client = wide.client("code")
    wide.desk.release_code(probe(wide, [range(WIDE, WIDE + PAGE_SIZE)], client=client))
    probe(wide, [range(WIDE + PAGE_SIZE // 2, WIDE + PAGES * PAGE_SIZE)], client=client, first=1)
    wide.arrive(PID, PLACES[60])
    wide.client("other").probe(PLACES[70], ignore)
    wide.fake.fork(PID, CHILD)
    wide.fake.idle()
    child = wide.fake._processes[ProcessId(CHILD)].memory
    assert child.read(VirtAddr(WIDE), len(ALL)) == CODE


def test_a_forked_child_keeps_what_the_program_has_written_itself(wide: World) -> None:
    """Invariant: cleaning puts an original byte back only where a trap of ours is."""
    probe(wide, [ALL])
    wide.memory.patch(VirtAddr(PLACES[9]), b"\x41")
    wide.fake.fork(PID, CHILD)
    wide.fake.idle()
    child = wide.fake._processes[ProcessId(CHILD)].memory
    assert child.read(VirtAddr(PLACES[9]), 1) == b"\x41"
    wide.memory.patch(VirtAddr(PLACES[9]), INSN[:1])


def test_a_child_that_shares_the_memory_is_not_counted(wide: World) -> None:
    found = probe(wide, [ALL])
    wide.fake.fork(PID, CHILD, vfork=True)
    wide.fake.idle()
    wide.arrive(CHILD, PLACES[6] + 4)
    assert wide.fake.thread(CHILD)["rip"] == PLACES[6] + 5
    wide.arrive(CHILD, PLACES[6])
    assert wide.fake.thread(CHILD)["rip"] != PLACES[6]
    wide.fake.exit(CHILD)
    wide.fake.idle()
    assert found.hits == 0
    wide.arrive(PID, PLACES[6])
    assert found.hits == 1


def test_an_exec_loses_all(make_world: type[World]) -> None:
    world = make_world()
    world.memory.map(WIDE, CODE, permissions="r-xp", path="/lib/wide")
    fresh = world.memory.copy()
    client = world.attach().client("code")
    found = probe(world, [ALL], client=client)
    world.arrive(PID, PLACES[0])
    world.fake.exec(PID, fresh, entry=FUNCTION)
    world.fake.idle()
    assert (found.state, client.leases) == (LeaseState.LOST, ())
    assert fresh.read(VirtAddr(WIDE), len(ALL)) == CODE
    again = probe(world, [ALL], client=client)
    world.arrive(PID, PLACES[0])
    assert (found.hits, again.hits) == (1, 1)
    world.close()
    assert fresh.read(VirtAddr(WIDE), len(ALL)) == CODE


def test_what_was_unmapped_is_forgotten(wide: World) -> None:
    """Invariant: nothing is written where a module was, whatever lies there now; the rest goes on."""
    found = probe(wide, [ALL])
    middle = WIDE + PAGE_SIZE
    wide.memory.patch(VirtAddr(middle), b"\xcc" * PAGE_SIZE)
    lost = range(middle, middle + PAGE_SIZE)
    wide.loop.run(lambda: wide.desk._leasing.lose(wide.process.space, lost, "it was unloaded"))
    assert wide.process.memory.read(VirtAddr(middle), PAGE_SIZE) == b"\xcc" * PAGE_SIZE
    wide.arrive(PID, PLACES[0])
    assert found.hits == 1
    wide.desk.release_code(found)
    assert wide.memory.read(VirtAddr(WIDE), len(ALL)) == CODE[:PAGE_SIZE] + b"\xcc" * PAGE_SIZE + CODE[2 * PAGE_SIZE :]
    wide.memory.patch(VirtAddr(middle), CODE[PAGE_SIZE : 2 * PAGE_SIZE])


def test_memory_that_somebody_may_write_has_its_traps_written_alone(
    wide: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: beside a trap not a byte is written that the program may be writing."""
    start = WIDE - PAGE_SIZE
    wide.memory.map(start, b"\x90" * PAGE_SIZE, permissions="rwxp")
    written: dict[int, int] = {}
    monkeypatch.setattr(wide.memory, "patch", recording_patch(wide.memory, written))
    found = probe(wide, [range(start, start + 3)])
    assert {at: written[at] for at in range(start, start + 3)} == dict.fromkeys(range(start, start + 3), 1)
    assert (found.probed, wide.process.space.dormant.count) == (3, 0)
    wide.arrive(PID, start + 1)
    assert found.hits == 1
    wide.desk.release_code(found)
    wide.memory.unmap(start, PAGE_SIZE)


# Slots --------------------------------------------------------------------------------------


def test_slots_are_there_before_they_run_out(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: no thread is sent back while there is somebody to map an area in time."""
    monkeypatch.setattr(sleepers, "_RESERVE_SIZE", 2 * PAGE_SIZE)
    found = probe(wide, [ALL])
    for place in PLACES[:150]:
        wide.arrive(PID, place)
    assert (found.hits, dict(found.strategies)) == (150, {"BOOST": 150})
    assert len(wide.fake.actions(None, "map_area")) > 1
    assert len([each for each in wide.fake.actions(PID) if each[0] == "safe"]) == 150, "each stopped once"


def test_a_thread_without_a_slot_is_sent_back_until_there_is_one(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: that is no arrival; each arrival counts once."""
    monkeypatch.setattr(sleepers, "_RESERVE_SIZE", PAGE_SIZE)
    monkeypatch.setattr(sleepers, "_FEW", 0)
    found = probe(wide, [ALL])
    for place in PLACES[:100]:
        thread = wide.arrive(PID, place)
        if thread["rip"] == place:
            assert place == PLACES[PAGE_SIZE // 64]
            wide.arrive(PID, place)
    assert (found.hits, dict(found.strategies)) == (100, {"BOOST": 100})


def test_where_no_area_can_be_had_it_goes_in_place(wide: World) -> None:
    wide.fake._processes[ProcessId(PID)].can_map = False
    found = probe(wide, [ALL])
    wide.arrive(PID, PLACES[0])
    wide.fake.end_step(PID)
    wide.fake.idle()
    assert (found.hits, dict(found.strategies)) == (1, {"INLINE": 1})
    assert standing(wide) == STARTS


def test_what_cannot_do_without_a_slot_gets_it_at_once(wide: World) -> None:
    """Invariant: a system call is never stepped in place, so its slot is there before anybody arrives."""
    start = WIDE - PAGE_SIZE
    wide.memory.map(start, bytes.fromhex("90 0f05 90").ljust(PAGE_SIZE, b"\x90"), permissions="r-xp")
    found = probe(wide, [range(start, start + 4)])
    probepoint = wide.process.space.registry.at(VirtAddr(start + 1))
    assert probepoint is not None
    assert (probepoint.strategy, probepoint.clients) == ("BOOST", ("code",))
    assert (found.probed, wide.process.space.dormant.count) == (3, 2)
    wide.desk.release_code(found)
    wide.memory.unmap(start, PAGE_SIZE)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ([range(WIDE - 16, WIDE + 16)], NotExecutable),
        ([range(ALL.stop - 16, ALL.stop + 1)], NotExecutable),
        ([range(WIDE, WIDE + 64), range(WIDE + 32, WIDE + 96)], UsageError),
    ],
)
def test_code_that_is_not_there_is_refused_and_nothing_is_armed(
    wide: World, ranges: list[range], error: type[Exception]
) -> None:
    with pytest.raises(error):
        probe(wide, ranges)
    assert standing(wide) == []


def test_a_write_that_fails_leaves_nothing(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide.memory, "patch", failing_patch(wide.memory, lambda number, address: address in ALL))
    with pytest.raises(MemoryFault):
        probe(wide, [ALL])
    monkeypatch.undo()
    assert standing(wide) == []
    assert wide.process.space.dormant.count == 0
