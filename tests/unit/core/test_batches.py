"""Many places at once: all or nothing, whatever fails, and a million of them are no trouble for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import (
    ClientQuarantined,
    ForeignTrap,
    InsnRefused,
    MemoryFault,
    NotAnInstruction,
    ProbepointBusy,
    SlotsExhausted,
    StrategyRefused,
    UnknownModule,
    UsageError,
)
from ubpx.core.probepoints import LeaseState
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx.testing import FakeMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.core.conftest import World

TEXT, PID = 0x40_1000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))
WIDE, APART, PAGES = 0x60_0000, 64, 3
PLACES = [WIDE + APART * number for number in range(PAGES * PAGE_SIZE // APART)]
INSN = bytes.fromhex("48 8d 47 01")  # lea 1(%rdi), %rax: needs a slot
SI_KERNEL = 0x80
SYSCALL = bytes.fromhex("0f 05")


def ignore(hit: Any) -> None:
    """A handler."""


@pytest.fixture
def wide(make_world: type[World]) -> Iterator[World]:
    """Attached, with three pages of places that need slots; left as it was."""
    world = make_world()
    world.memory.map(WIDE, INSN.ljust(APART, b"\x90") * len(PLACES), permissions="r-xp", path="/lib/wide")
    before = world.memory.image()
    world.attach(101, 102)
    yield world
    world.close()
    assert world.memory.image() == before


def standing(world: World) -> list[int]:
    """The places of PLACES where a trap stands."""
    return [place for place in PLACES if world.trap_stands(place)]


def failing_patch(memory: FakeMemory, fails: Callable[[int, int], bool]) -> Callable[[int, bytes], None]:
    """A ``patch`` that faults when ``fails`` says so of its number and address."""
    number, patch = -1, memory.patch

    def attempt(address: int, data: bytes) -> None:
        nonlocal number
        number += 1
        if fails(number, address):
            raise MemoryFault(VirtAddr(address), len(data), "patch")
        patch(address, data)

    return attempt


def recording_patch(memory: FakeMemory, sizes: dict[int, int]) -> Callable[[int, bytes], None]:
    """A ``patch`` that keeps the size of each write by its address."""
    patch = memory.patch

    def attempt(address: int, data: bytes) -> None:
        sizes[address] = len(data)
        patch(address, data)

    return attempt


# What it gives ------------------------------------------------------------------------------


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


def test_one_area_and_one_write_hold_all_slots(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a batch maps one area, writes its slots at once, and the traps of a page at once."""
    written: dict[int, int] = {}
    monkeypatch.setattr(wide.memory, "patch", recording_patch(wide.memory, written))
    group = wide.client("a").probe_many(PLACES, ignore)
    ((_, _, area, size),) = wide.fake.actions(None, "map_area")
    assert size >= len(PLACES) * 64
    assert list(written) == [area, *(WIDE + PAGE_SIZE * page for page in range(PAGES))]
    assert len({wide.slot_of(lease) for lease in group}) == len(PLACES)


def test_a_slot_holds_the_copy(wide: World) -> None:
    """Invariant: what a thread runs in a slot of a batch is what it would run in one of a single probe."""
    group = wide.client("a").probe_many(PLACES, ignore)
    architecture = wide.coordinator.architecture
    for lease in group:
        assert lease.probepoint is not None
        slot = VirtAddr(wide.slot_of(lease))
        code = architecture.slot_code(lease.probepoint.analysis, slot).code
        assert wide.memory.read(slot, len(code)) == code


def test_release_takes_all_back_at_once_and_twice_does_nothing(wide: World) -> None:
    client = wide.client("a")
    with client.probe_many(PLACES, ignore) as group:
        wide.arrive(PID, PLACES[3])
    group.release()
    assert standing(wide) == []
    assert {lease.state for lease in group} == {LeaseState.RELEASED}
    assert (group.hits, list(client.leases)) == (1, [])
    slots = {wide.slot_of(lease) for lease in group}
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


# All or nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(PAGES + 1))
def test_a_write_that_fails_takes_all_back(wide: World, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: whichever write of a batch faults, nothing of it stays; without the fault it works again."""
    client = wide.client("a")
    before = wide.memory.read(VirtAddr(WIDE), PAGES * PAGE_SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(wide.memory, "patch", failing_patch(wide.memory, lambda nth, _: nth == number))
        with pytest.raises(MemoryFault):  # the slots are written first, then each page
            client.probe_many(PLACES, ignore)
    assert wide.memory.read(VirtAddr(WIDE), PAGES * PAGE_SIZE) == before
    assert (list(client.leases), wide.desk.probepoints()) == ([], ())
    group = client.probe_many(PLACES, ignore)
    assert wide.arrive(PID, PLACES[0])["rip"] == wide.slot_of(group[0])
    assert standing(wide) == PLACES


@pytest.mark.parametrize("seen", ["while it stood", "when it was gone"])
def test_a_thread_in_a_trap_that_was_taken_back_goes_on(
    wide: World, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a trap that stood for a moment kills nobody who ran into it then, whenever that is reported."""
    patch, thread = wide.memory.patch, wide.fake.thread(101)

    def report() -> None:
        thread["rip"] = PLACES[0] + 1
        wide.fake._trapped(thread, SI_KERNEL)

    def attempt(address: int, data: bytes) -> None:
        if address == WIDE + PAGE_SIZE:
            if seen == "while it stood":
                report()
            raise MemoryFault(VirtAddr(address), len(data), "patch")
        patch(address, data)

    with monkeypatch.context() as patched:
        patched.setattr(wide.memory, "patch", attempt)
        with pytest.raises(MemoryFault):
            wide.client("a").probe_many(PLACES, ignore)
    if seen == "when it was gone":
        wide.fake._tell(101, "report", report)
    wide.fake.idle()
    code = wide.process.space.slots.retired(VirtAddr(PLACES[0]))
    assert code is not None
    assert thread["rip"] == (code.slot if seen == "while it stood" else PLACES[0])
    assert (thread.condition, wide.fake.actions(101, "resume")) == ("RUNNING", [])


@pytest.mark.parametrize("last", [PLACES[-1], "nowhere"])
def test_one_that_is_refused_refuses_all_before_anything_is_written(
    wide: World, last: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: one bad place among many: no area, no write, and the error names the place."""
    wide.memory.patch(PLACES[-1], SYSCALL)
    monkeypatch.setattr(
        wide.memory, "patch", failing_patch(wide.memory, lambda *_: pytest.fail("something is written"))
    )
    client = wide.client("a")
    with pytest.raises((InsnRefused, UnknownModule)) as refused:
        client.probe_many([*PLACES[:-1], last], ignore)
    assert (f"{last:#x}" if isinstance(last, int) else last) in str(refused.value)
    assert wide.fake.actions(None, "map_area") == []
    assert (list(client.leases), wide.desk.probepoints()) == ([], ())
    monkeypatch.undo()
    wide.memory.patch(PLACES[-1], INSN[:2])


def test_what_is_refused_may_be_left_out(wide: World) -> None:
    """Invariant: with skip_refused exactly the refused ones are missing, and are listed by name with their errors."""
    wide.memory.patch(PLACES[3], SYSCALL)
    wide.memory.patch(PLACES[5], b"\xcc")
    wanted: list[str | int] = [*PLACES[:6], PLACES[0] + 1, "nowhere"]
    group = wide.client("a").probe_many(wanted, ignore, skip_refused=True)
    assert [lease.address for lease in group] == [PLACES[0], PLACES[1], PLACES[2], PLACES[4]]
    assert {name: type(error) for name, error in group.refused} == {
        str(PLACES[3]): InsnRefused,
        str(PLACES[5]): ForeignTrap,
        str(PLACES[0] + 1): NotAnInstruction,
        "nowhere": UnknownModule,
    }
    wide.memory.patch(PLACES[3], INSN[:2])
    wide.memory.patch(PLACES[5], INSN[:1])


def test_a_glob_leaves_out_what_cannot_be_probed_unless_told_otherwise(wide: World) -> None:
    wide.symbols = {"f_good": PLACES[0], "f_bad": PLACES[1], "g_bad": PLACES[1]}
    wide.memory.patch(PLACES[1], SYSCALL)
    client = wide.client("a")
    group = client.probe_many("f_*", ignore)
    assert [lease.spec for lease in group] == ["f_good"]
    assert [refusal.name for refusal in group.refused] == ["f_bad"]
    with pytest.raises(InsnRefused):
        client.probe_many("f_*", ignore, skip_refused=False)
    with pytest.raises(InsnRefused) as refused:
        client.probe_many("g_*", ignore)
    assert refused.value.address == PLACES[1], "where nothing is left, the refusal is the error"
    wide.memory.patch(PLACES[1], INSN[:2])


@pytest.mark.parametrize("skip", [False, True])
def test_what_another_client_holds_exclusively_is_an_error(wide: World, skip: bool) -> None:
    """Invariant: a conflict of clients is no property of the place: it is never left out silently."""
    wide.client("owner").probe(PLACES[7], ignore, exclusive=True)
    with pytest.raises(ProbepointBusy, match="held by client 'owner'") as busy:
        wide.client("a").probe_many(PLACES, ignore, skip_refused=skip)
    assert busy.value.address == PLACES[7]
    assert standing(wide) == [PLACES[7]]
    with pytest.raises(ProbepointBusy):
        wide.client("b").probe_many(PLACES[7:], ignore, exclusive=True)


def test_without_room_for_the_slots_it_insists_on_nothing_is_armed(wide: World) -> None:
    wide.fake._processes[ProcessId(PID)].can_map = False
    with pytest.raises(SlotsExhausted):
        wide.client("a").probe_many([NOP, *PLACES], ignore, strategy="BOOST", skip_refused=True)
    assert not wide.trap_stands(NOP)
    assert standing(wide) == []


def test_without_room_for_slots_the_rest_is_stepped_in_place(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: as with single probes; but a program that cannot map memory is not asked to for each."""
    asked: list[int] = []

    def refuse(thread: Any, address: VirtAddr, size: int) -> bool:
        asked.append(size)
        raise SlotsExhausted(ProcessId(PID), address, "as the test said")

    monkeypatch.setattr(wide.fake, "map_area", refuse)
    group = wide.client("a").probe_many([NOP, *PLACES], ignore)
    used = [lease.probepoint.strategy for lease in group if lease.probepoint]
    assert used == [Strategy.EMULATE] + [Strategy.INLINE] * len(PLACES)
    assert len(asked) <= 4
    assert group[1].probepoint is not None
    assert "no BOOST: " in group[1].probepoint.why


def test_an_area_for_one_serves_where_none_for_all_can_be_had(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a batch arms if its places could be armed one after the other."""
    map_area = wide.fake.map_area
    sizes: list[int] = []

    def small_ones_only(thread: Any, address: VirtAddr, size: int) -> bool:
        sizes.append(size)
        if size > 16 * PAGE_SIZE:
            raise SlotsExhausted(ProcessId(PID), address, "as the test said")
        return map_area(thread, address, size)

    monkeypatch.setattr(wide.fake, "map_area", small_ones_only)
    many = [WIDE + offset for offset in range(0, PAGES * PAGE_SIZE, 4) if offset % APART]
    group = wide.client("a").probe_many([*PLACES, *many], ignore, strategy="STEP", assume_boundary=True)
    assert sizes[0] > 16 * PAGE_SIZE
    assert set(sizes[1::2]) == {16 * PAGE_SIZE}
    assert len({wide.slot_of(lease) for lease in group}) == len(PLACES) + len(many)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([], "the list is empty"),
        (iter([]), "the list is empty"),
        (5, "is no list of places"),
        (b"libc:write", "is no list of places"),
        ([True], "a place is a spec or an address"),
        ([LEA, None], "a place is a spec or an address"),
    ],
)
def test_what_is_no_list_of_places_is_refused(world: World, places: Any, said: str) -> None:
    client = world.attach().client("a")
    with pytest.raises(UsageError, match=said):
        client.probe_many(places, ignore)
    assert not world.trap_stands(LEA)


def test_bad_options_are_refused(world: World) -> None:
    client = world.attach().client("a")
    with pytest.raises(UsageError, match="give a callable"):
        client.probe_many([LEA], None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is no strategy"):
        client.probe_many([LEA], ignore, strategy="FASTEST")
    with pytest.raises(UsageError, match="give an integer"):
        client.probe_many([LEA], ignore, priority="high")  # type: ignore[arg-type]
    client.close()
    with pytest.raises(UsageError, match="is closed"):
        client.probe_many([LEA], ignore)


def test_a_boundary_is_proved_for_each_place(world: World) -> None:
    """Invariant: an address inside an instruction is refused, several in one symbol are proved at once."""
    client = world.attach().client("a")
    with pytest.raises(NotAnInstruction) as refused:
        client.probe_many([LEA, LEA + 4, LEA + 2], ignore)
    assert refused.value.address == LEA + 2
    assert len(client.probe_many([LEA, LEA + 4, LEA + 5], ignore)) == 3


def test_the_temporary_trap_of_a_new_program_is_left_alone(world: World) -> None:
    """Invariant: while a program stands before its entry point, nobody probes that very place, in a batch either."""
    client = world.attach().client("a")
    space = world.process.space
    world.loop.run(lambda: world.coordinator.armory.set_entry_trap(space, VirtAddr(FUNCTION)))
    with pytest.raises(ForeignTrap):
        client.probe_many([LEA, FUNCTION], ignore)
    assert not world.trap_stands(LEA)
    world.loop.run(lambda: world.coordinator.armory.remove_entry_trap(space))
    assert len(client.probe_many([LEA, FUNCTION], ignore)) == 2


# What comes between -------------------------------------------------------------------------


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
