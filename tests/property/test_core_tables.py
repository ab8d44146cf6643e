"""The tables beneath many probepoints say what a look at everything would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ubpx.core.hiding import StandingTraps
from ubpx.core.probepoints import Probepoint, Registry
from ubpx.core.slots import SlotArea, SlotTable
from ubpx.core.ubp import insert, insert_all, remove, remove_all, spans
from ubpx.core.ubp.plans import InsnAnalysis, SlotCode, Strategy, TrapPatch
from ubpx.core.values import PAGE_SIZE, AddressSpaceId, Insn, VirtAddr
from ubpx.testing import FakeMemory

START = 0x10_0000
SLOT_SIZE = 64
SLOT_REACH = 2**31


def trap_at(address: int, size: int, original: bytes = b"") -> TrapPatch:
    return TrapPatch(
        address=VirtAddr(address),
        trap=b"\xcc" * size,
        original=original or b"\x90" * size,
        reported_pc=VirtAddr(address + 1),
    )


def probepoint_at(address: int, size: int, borrowed: int) -> Probepoint:
    patch = trap_at(address, size)
    analysis = InsnAnalysis(insn=Insn(patch.address, patch.original, "nop"), strategies=(Strategy.EMULATE,))
    relied_on = range(address + size, address + size + borrowed)
    return Probepoint(AddressSpaceId(1), analysis, patch, Strategy.EMULATE, why="a test", relied_on=relied_on)


def overlap(first: range, second: range) -> bool:
    return max(first.start, second.start) < min(first.stop, second.stop)


# Eight bytes apart: traps of up to five bytes that rely on up to three more.
points = st.dictionaries(st.integers(0, 40), st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=20)
ranges = st.tuples(st.integers(-10, 340), st.integers(0, 400)).map(lambda r: range(START + r[0], START + r[0] + r[1]))


@given(points, st.sets(st.integers(0, 40)), ranges)
def test_the_registry_finds_by_byte_what_a_scan_finds(
    wanted: dict[int, tuple[int, int]], removed: set[int], asked: range
) -> None:
    """Invariant: owning and relying_on equal the look at every probepoint, whatever came and went."""
    registry = Registry()
    made = {place: probepoint_at(START + 8 * place, *sizes) for place, sizes in wanted.items()}
    for probepoint in made.values():
        registry.add(probepoint)
    for place in removed & made.keys():
        registry.remove(made.pop(place))
    ascending = [made[place] for place in sorted(made)]
    assert list(registry.owning(asked)) == [each for each in ascending if overlap(each.owned, asked)]
    assert list(registry.relying_on(asked)) == [each for each in ascending if overlap(each.relied_on, asked)]


@given(st.dictionaries(st.integers(0, 60), st.integers(1, 8), max_size=20), st.sets(st.integers(0, 60)), ranges)
def test_standing_traps_are_found_by_page(sizes: dict[int, int], removed: set[int], asked: range) -> None:
    """Invariant: overlapping equals the look at every trap, also at those that cross a page."""
    base = START + PAGE_SIZE - 200
    traps = StandingTraps(trap_at(base + 8 * place, size) for place, size in sizes.items())
    for place in removed & sizes.keys():
        del traps[VirtAddr(base + 8 * place)]
    asked = range(asked.start + PAGE_SIZE - 200, asked.stop + PAGE_SIZE - 200)
    found = {trap.address for trap in traps.overlapping(VirtAddr(asked.start), len(asked))}
    scanned = {at for at, trap in traps.items() if overlap(range(at, at + len(trap.trap)), asked)}
    assert found == (scanned if asked else set())


@given(st.data())
def test_slots_never_overlap_and_none_is_lost(data: st.DataObject) -> None:
    """Invariant: a slot found free holds nothing; a table says full only when every slot holds something."""
    table = SlotTable(SLOT_REACH)
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    for number, count in enumerate(counts):
        table.add_area(SlotArea(VirtAddr(START + number * PAGE_SIZE), count * SLOT_SIZE, SLOT_SIZE))
    held: dict[int, SlotCode] = {}
    retired: list[SlotCode] = []
    for origin in range(data.draw(st.integers(0, 30))):
        act = data.draw(st.sampled_from(["occupy", "occupy", "retire", "revive", "vacate", "free retired"]))
        some = sorted(held) if act != "revive" else sorted(code.slot for code in retired)
        if act == "occupy":
            slot = table.find_free([])
            assert (slot is None) == (len(held) + len(retired) == sum(counts))
            if slot is not None:
                assert slot not in held
                assert slot not in {code.slot for code in retired}
                code = SlotCode(origin=VirtAddr(origin), slot=slot, code=b"\x90", places=())
                table.occupy(code)
                held[slot] = code
        elif act == "free retired":
            stays = retired[:1]
            assert table.free_retired([code.slot + 1 for code in stays]) == len(retired) - len(stays)
            retired = stays
        elif some:
            slot = VirtAddr(data.draw(st.sampled_from(some)))
            if act == "retire":
                retired.append(held.pop(slot))
                table.retire(retired[-1])
            elif act == "vacate":
                table.vacate(held.pop(slot))
            else:
                held[slot] = next(code for code in retired if code.slot == slot)
                retired.remove(held[slot])
                table.revive(held[slot])
    assert table.retired_count == len(retired)
    for code in (*held.values(), *retired):
        assert table.code_at(code.slot + SLOT_SIZE - 1) is code


# Code of three pages, the traps in it by offset, and which of its pages the program may write.
contents = st.binary(min_size=3 * 64, max_size=3 * 64).map(lambda data: data * (PAGE_SIZE // 64))
places = st.dictionaries(st.integers(0, 3 * PAGE_SIZE // 16 - 1), st.integers(1, 5), max_size=30)


@given(contents, places, st.sets(st.integers(0, 2)), st.sets(st.integers(0, 3 * PAGE_SIZE // 16 - 1), max_size=5))
def test_traps_written_in_spans_equal_traps_written_one_by_one(
    code: bytes, sizes: dict[int, int], writable: set[int], overwritten: set[int]
) -> None:
    """Invariant: inserted or removed at once or singly, the memory is the same, and so are those found gone."""
    together, singly = FakeMemory({START: code}), FakeMemory({START: code})
    patches = []
    for place, size in sizes.items():
        at = START + 16 * place + 11  # those of five bytes at a page's end reach its last byte; see the next test
        original = together.read(at, size)
        if original != b"\xcc" * size:
            patches.append(trap_at(at, size, original))
    groups = list(spans(patches, apart=lambda page: (page - START) // PAGE_SIZE in writable))
    assert sorted(patch.address for group in groups for patch in group) == sorted(patch.address for patch in patches)
    insert_all(together, groups)
    for patch in patches:
        insert(singly, patch)
    assert together.image() == singly.image()
    for place in overwritten:
        for memory in (together, singly):
            memory.patch(START + 16 * place + 11, b"\x55")
    gone = {patch.address for patch in remove_all(together, groups)}
    assert gone == {patch.address for patch in patches if remove(singly, patch).name == "OVERWRITTEN"}
    assert together.image() == singly.image()


@given(st.lists(st.integers(0, 2 * PAGE_SIZE - 9), unique_by=lambda at: at // 8), st.sets(st.integers(0, 2)))
def test_a_span_stays_in_its_page_and_alone_where_others_write(offsets: list[int], writable: set[int]) -> None:
    """Invariant: no write reaches into another page but a trap's own, and where others write each is alone."""
    patches = [trap_at(START + at, 1 + at % 8) for at in offsets]
    for group in spans(patches, apart=lambda page: (page - START) // PAGE_SIZE in writable):
        first, last = group[0].address, group[-1].address + len(group[-1].trap) - 1
        assert len(group) == 1 or first // PAGE_SIZE == last // PAGE_SIZE
        assert len(group) == 1 or (first - START) // PAGE_SIZE not in writable
        assert [patch.address for patch in group] == sorted(patch.address for patch in group)
