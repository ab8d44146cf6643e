"""Many places at once: all or nothing, whatever fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.many_places import (
    APART,
    FUNCTION,
    INSN,
    LEA,
    NOP,
    PAGES,
    PID,
    PLACES,
    REFUSED,
    SI_KERNEL,
    WIDE,
    failing_patch,
    ignore,
    standing,
)
from ubpx._errors import (
    ForeignTrap,
    InsnRefused,
    MemoryFault,
    NotAnInstruction,
    ProbepointBusy,
    SlotsExhausted,
    UnknownModule,
    UsageError,
)
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("either_way", ["awake"], indirect=True)
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


@pytest.mark.parametrize("either_way", ["awake"], indirect=True)
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
    wide.memory.patch(PLACES[-1], REFUSED)
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
    wide.memory.patch(PLACES[3], REFUSED)
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
    wide.memory.patch(PLACES[1], REFUSED)
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
    world.loop.run(lambda: world.coordinator.armory.set_entry_trap(space, VirtAddr(FUNCTION), guarded=True))
    with pytest.raises(ForeignTrap):
        client.probe_many([LEA, FUNCTION], ignore)
    assert not world.trap_stands(LEA)
    world.loop.run(lambda: world.coordinator.armory.remove_entry_trap(space))
    assert len(client.probe_many([LEA, FUNCTION], ignore)) == 2
