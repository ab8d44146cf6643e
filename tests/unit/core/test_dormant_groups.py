"""Many places at once of which nothing is made but traps, before somebody arrives there or asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.many_places import APART, PAGES, PID, PLACES, WIDE, failing_patch, ignore, standing
from ubpx._errors import MemoryFault, NotAnInstruction, UsageError
from ubpx.core import wanted
from ubpx.core.dormancy import DormantGroup
from ubpx.core.ports import FunctionPlaces
from ubpx.core.probepoints import LeaseState
from ubpx.core.values import PAGE_SIZE, Place, VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

pytestmark = [pytest.mark.usefixtures("either_way"), pytest.mark.parametrize("either_way", ["asleep"], indirect=True)]


def dormant(world: World) -> DormantGroup:
    """All of PLACES, probed by a client of its own."""
    group = world.client("a").probe_many(PLACES, ignore)
    assert isinstance(group, DormantGroup)
    return group


def test_nothing_is_made_before_somebody_arrives(wide: World) -> None:
    """Invariant: all traps stand; a lease and a probepoint are made where a thread arrives, and nowhere else."""
    group = dormant(wide)
    assert standing(wide) == PLACES
    assert (len(wide.process.space.registry), group.known, group.hits) == (0, [], 0)
    wide.arrive(PID, PLACES[7])
    assert [(lease.address, lease.hits) for lease in group.known] == [(PLACES[7], 1)]
    assert len(wide.process.space.registry) == 1
    assert group[7] is group.known[0]


def test_a_lease_is_one_whoever_asks_first(wide: World) -> None:
    """Invariant: asking for a lease wakes nothing; asking for its probepoint wakes that alone."""
    group = dormant(wide)
    leases = list(group)
    assert len(wide.process.space.registry) == 0
    assert leases[3].probepoint is not None
    assert leases[3].probepoint.leases == (leases[3],)
    assert len(wide.process.space.registry) == 1
    assert list(wide.client("b").leases) == []
    assert leases[3].client.leases == tuple(leases)  # type: ignore[attr-defined]  # a Client has them


def test_some_are_given_back_without_being_woken(wide: World) -> None:
    """Invariant: leases that are released one by one, or some of them at once, end where they are dormant."""
    group = dormant(wide)
    wide.arrive(PID, PLACES[1])
    group[0].release()
    group.client.release_all(group[1:10])
    assert {lease.state for lease in group[:10]} == {LeaseState.RELEASED}
    assert (standing(wide), group.hits, len(wide.process.space.registry)) == (PLACES[10:], 1, 0)
    assert all(wide.process.space.slots.use.leased == 0 for _ in group)
    group.client.release_all(group)
    group[3].release()
    assert standing(wide) == []


@pytest.mark.parametrize("apart", [1, 2])
def test_a_write_that_fails_takes_all_back(wide: World, apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: whichever run of pages cannot be written, no trap stays; without the fault it works again."""
    client = wide.client("a")
    places = [each for each in PLACES if (each - WIDE) // PAGE_SIZE != 1] if apart == 2 else PLACES
    before = wide.memory.read(VirtAddr(WIDE), PAGES * PAGE_SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(wide.memory, "patch", failing_patch(wide.memory, lambda nth, _: nth == apart - 1))
        with pytest.raises(MemoryFault):
            client.probe_many(places, ignore)
    assert wide.memory.read(VirtAddr(WIDE), PAGES * PAGE_SIZE) == before
    assert (list(client.leases), wide.desk.probepoints()) == ([], ())
    group = client.probe_many(places, ignore)
    wide.arrive(PID, places[0])
    assert (group.hits, standing(wide)) == (1, places)


def test_code_that_changes_meanwhile_is_not_written_over(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: what was looked at must still stand there when traps are written; else none is."""
    read, others = wide.memory.read, b"\x55"

    def rewriting(address: int, size: int) -> bytes:
        data = read(address, size)
        wide.memory.patch(PLACES[9], others)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(wide.memory, "read", rewriting)
        with pytest.raises(NotAnInstruction, match="its first byte was 0x48"):
            wide.client("a").probe_many(PLACES, ignore)
    assert standing(wide) == []
    assert read(PLACES[9], 1) == others
    wide.memory.patch(PLACES[9], b"\x48")


def test_what_the_program_writes_over_is_lost_and_stays(wide: World) -> None:
    """Invariant: a dormant probepoint that the program writes over is LOST, and is not written over in turn."""
    group = dormant(wide)
    wide.memory.patch(PLACES[4], b"\x55")
    wide.loop.run(wide.coordinator.look_at_text)
    assert group[4].state is LeaseState.LOST
    assert [lease.state for lease in group].count(LeaseState.ARMED) == len(PLACES) - 1
    group.release()
    assert standing(wide) == []
    assert wide.memory.read(PLACES[4], 1) == b"\x55"
    wide.memory.patch(PLACES[4], b"\x48")


def test_a_thread_that_ran_into_a_trap_before_the_release_goes_on(wide: World) -> None:
    """Invariant: it is sent back to where the program's own byte stands again, and counted nowhere."""
    group = dormant(wide)
    thread = wide.fake.thread(101)
    thread["rip"] = PLACES[5] + 1
    group.release()
    wide.fake._tell(101, "report", lambda: wide.fake._trapped(thread, 0x80))
    wide.fake.idle()
    assert (thread["rip"], group.hits) == (PLACES[5], 0)
    assert group[5].state is LeaseState.RELEASED


def test_too_many_places_are_refused_with_what_to_do(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a glob of ten million functions arms none, makes nothing of any, and names the limit."""
    starts: Any = range(WIDE, WIDE + 16 * 10_000_000, 16)

    def describe(address: VirtAddr) -> Place:
        pytest.fail("one of ten million was asked for")

    answers = FunctionPlaces(starts, describe, ())
    monkeypatch.setattr(wide.desk._leasing, "_resolve_many", lambda *_: answers)
    with pytest.raises(UsageError, match=r"'f_\*' leads to 10000000 places, and one call arms 1000000 at most"):
        wide.client("a").probe_many("f_*", ignore)
    assert standing(wide) == []
    monkeypatch.setattr(wanted, "MOST_PLACES", len(PLACES) - 1)
    with pytest.raises(UsageError, match="the list leads to"):
        wide.client("b").probe_many(PLACES, ignore)


def test_a_glob_of_many_names_a_place_when_it_is_asked_for(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: of functions whose starts alone were told, a lease has the spec that finds its function again."""
    asked: list[int] = []

    def describe(address: VirtAddr) -> Place:
        asked.append(address)
        return Place(address=address, name=f"f_{address:x}", symbol_start=address, symbol_end=VirtAddr(address + APART))

    answers = FunctionPlaces([VirtAddr(each) for each in PLACES], describe, ())
    assert [answers[-1], *answers[:1]] == [describe(VirtAddr(PLACES[-1])), describe(VirtAddr(PLACES[0]))]
    asked.clear()
    monkeypatch.setattr(wide.desk._leasing, "_resolve_many", lambda *_: answers)
    group = wide.client("a").probe_many("f_*", ignore)
    assert group[2].spec == f"f_{PLACES[2]:x}"
    assert asked == [PLACES[2]]


def test_a_detach_ends_all(wide: World) -> None:
    """Invariant: leases that are first asked for when the process was left are RELEASED, and no thread is needed."""
    group = dormant(wide)
    wide.detach()
    wide.desk.process = None
    assert {lease.state for lease in group} == {LeaseState.RELEASED}
    group.release()


def test_a_place_that_was_lost_is_met_again(wide: World) -> None:
    """Invariant: what threads met where a trap was written over answers no more once one stands there again."""
    lease = wide.client("before").probe(PLACES[0], ignore)
    own = wide.process.space.memory.read(PLACES[0], 1)
    wide.memory.patch(PLACES[0], b"\x90")
    lease.release()
    assert PLACES[0] in wide.process.space.changes.lost
    wide.memory.patch(PLACES[0], own)
    group = dormant(wide)
    wide.arrive(PID, PLACES[0])
    assert (group.hits, group[0].hits) == (1, 1)
