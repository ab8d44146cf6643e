"""Slots: found within reach, retired, revived, and freed only when nobody can be in them."""

import pytest

from ubpx.core.slots import AREA_SIZE, SlotArea, SlotTable, choose_hole, page_within
from ubpx.core.ubp.plans import SlotCode
from ubpx.core.values import PAGE_SIZE, MappedRange, SlotUse, VirtAddr

LIMIT = 0x7FFF_FFFF_F000
AREA = VirtAddr(0x7000_0000)
SLOT_SIZE = 64
SLOT_REACH = 2**31
REACH = SLOT_REACH - AREA_SIZE  # a margin for an area is kept


def code_for(origin: int, slot: int) -> SlotCode:
    places = ((0, VirtAddr(origin)), (3, VirtAddr(origin + 3)))
    return SlotCode(origin=VirtAddr(origin), slot=VirtAddr(slot), code=b"\x90\x90\x90\xe9....", places=places)


def mapped(start: int, end: int, path: str = "") -> MappedRange:
    return MappedRange(
        start=VirtAddr(start), end=VirtAddr(end), permissions="rw-p", offset=0, device="00:00", inode=0, path=path
    )


@pytest.fixture
def table() -> SlotTable:
    """With one area of four slots."""
    made = SlotTable(SLOT_REACH)
    made.add_area(SlotArea(AREA, 4 * SLOT_SIZE, SLOT_SIZE))
    return made


def test_free_slots_are_handed_out_once(table: SlotTable) -> None:
    """Invariant: no slot is found free while something lies in it; a full area gives none."""
    found = []
    for number in range(4):
        slot = table.find_free([])
        assert slot is not None
        table.occupy(code_for(0x40_1000 + number, slot))
        found.append(slot)
    assert found == [AREA + number * SLOT_SIZE for number in range(4)]
    assert table.find_free([]) is None


def test_a_full_area_has_no_free_slot() -> None:
    """Invariant: an area says None exactly when something lies in each of its slots."""
    area = SlotArea(AREA, 2 * SLOT_SIZE, SLOT_SIZE)
    for number in range(2):
        assert (area.full, area.free()) == (False, AREA + number * SLOT_SIZE)
        area.used[VirtAddr(AREA + number * SLOT_SIZE)] = code_for(0x40_1000, AREA + number * SLOT_SIZE)
    assert (area.full, area.free()) == (True, None)
    area.vacate(AREA)
    assert (area.full, area.free()) == (False, AREA)


@pytest.mark.parametrize(
    ("reach", "found"),
    [
        ([], True),
        ([AREA], True),
        ([AREA + 4 * SLOT_SIZE - REACH], True),
        ([AREA + 4 * SLOT_SIZE - REACH - 1], False),
        ([AREA + REACH], True),
        ([AREA + REACH + 1], False),
        ([AREA, AREA + REACH + 1], False),
    ],
)
def test_a_slot_reaches_everything_it_must(table: SlotTable, reach: list[int], found: bool) -> None:
    """Invariant: a slot lies within a 32-bit displacement of all addresses that its copy refers to."""
    assert (table.find_free([VirtAddr(address) for address in reach]) is not None) is found


def test_a_nearer_area_serves_what_the_first_does_not_reach(table: SlotTable) -> None:
    far = VirtAddr(0x5555_0000_0000)
    assert table.find_free([far]) is None
    table.add_area(SlotArea(VirtAddr(far + PAGE_SIZE), SLOT_SIZE, SLOT_SIZE))
    assert table.find_free([far]) == far + PAGE_SIZE


def test_code_is_found_by_any_pc_in_its_slot(table: SlotTable) -> None:
    """Invariant: code_at answers for every byte of an occupied slot, leased or retired, and for no other."""
    code = code_for(0x40_1000, AREA + SLOT_SIZE)
    table.occupy(code)
    for retired in (False, True):
        if retired:
            table.retire(code)
        for pc in range(AREA - 1, AREA + 4 * SLOT_SIZE + 1):
            inside = AREA + SLOT_SIZE <= pc < AREA + 2 * SLOT_SIZE
            assert table.code_at(pc) is (code if inside else None)


def test_a_retired_slot_stays_as_it_is_until_revived(table: SlotTable) -> None:
    """Invariant: a retired slot is not handed out; arming the same instruction again finds and revives it."""
    code = code_for(0x40_1000, AREA)
    table.occupy(code)
    assert table.retired(code.origin) is None
    table.retire(code)
    assert table.find_free([]) != AREA
    assert table.retired(code.origin) is code
    table.revive(code)
    assert table.retired(code.origin) is None
    assert table.free_retired([]) == 0
    assert table.code_at(AREA) is code


def test_slot_outlives_its_last_lease_while_a_thread_is_inside(table: SlotTable) -> None:
    """Invariant: a slot is freed only when no lease holds it and no thread is in it."""
    leased, busy, idle = (code_for(0x40_1000 + 16 * i, AREA + SLOT_SIZE * i) for i in range(3))
    for code in (leased, busy, idle):
        table.occupy(code)
    table.retire(busy)
    table.retire(idle)
    assert table.free_retired([busy.slot + 3, 0x40_1000]) == 1
    assert table.code_at(leased.slot) is leased
    assert table.code_at(busy.slot) is busy
    assert table.code_at(idle.slot) is None
    assert table.retired(idle.origin) is None
    assert table.find_free([]) == idle.slot
    assert table.free_retired([]) == 1
    assert table.code_at(busy.slot) is None
    assert table.code_at(leased.slot) is leased


def test_the_use_of_slots_adds_up(table: SlotTable) -> None:
    """Invariant: each slot of an area is leased, retired or free, and is one of them alone."""
    codes = [code_for(0x40_1000 + 16 * number, AREA + SLOT_SIZE * number) for number in range(3)]
    for code in codes:
        table.occupy(code)
    assert table.use == SlotUse(leased=3, retired=0, free=1)
    table.retire(codes[0])
    table.retire(codes[1])
    assert table.use == SlotUse(leased=1, retired=2, free=1)
    table.revive(codes[0])
    assert table.use == SlotUse(leased=2, retired=1, free=1)
    assert table.free_retired([]) == 1
    assert table.use == SlotUse(leased=2, retired=0, free=2)


def test_two_retired_copies_of_one_instruction_are_both_freed(table: SlotTable) -> None:
    """Invariant: retiring never makes a slot leak, also when one origin has had two slots."""
    first, second = code_for(0x40_1000, AREA), code_for(0x40_1000, AREA + SLOT_SIZE)
    for code in (first, second):
        table.occupy(code)
        table.retire(code)
    assert table.free_retired([]) == 2
    assert table.code_at(AREA) is None


def test_a_hole_near_the_middle_of_the_reach_is_chosen() -> None:
    text = mapped(0x40_0000, 0x50_0000, "/bin/program")
    assert (
        choose_hole([text], [VirtAddr(0x40_1000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
        == 0x40_0000 - AREA_SIZE
    )
    heap = mapped(0x60_0000, 0x70_0000, "[heap]")
    assert choose_hole([text, heap], [VirtAddr(0x4F_F000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH) == 0x50_0000


def test_room_where_the_heap_will_begin_is_taken_last() -> None:
    """Invariant: a program that has no heap yet gets it where it would have it without us: right behind itself."""
    text, data = mapped(0x40_0000, 0x50_0000, "/bin/program"), mapped(0x60_0000, 0x61_0000)
    library = mapped(0x7FFF_F000_0000, 0x7FFF_F010_0000, "/lib/library")
    place = choose_hole(
        [text, data, library], [VirtAddr(0x4F_F000), VirtAddr(0x60_FFF0)], 8 << 20, limit=LIMIT, slot_reach=SLOT_REACH
    )
    assert place is not None
    assert place >= data.end + (1 << 30)


def test_room_where_the_kernel_maps_next_is_avoided() -> None:
    """Invariant: what the program maps later gets the addresses that it would have without us."""
    library = mapped(0x7FFF_F000_0000, 0x7FFF_F010_0000, "/lib/library")
    loader = mapped(0x7FFF_F020_0000, 0x7FFF_F021_0000, "/lib/loader")
    stack = mapped(0x7FFF_FF00_0000, 0x7FFF_FF10_0000, "[stack]")
    place = choose_hole(
        [library, loader, stack], [VirtAddr(library.start)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH
    )
    assert place == loader.end
    assert (
        choose_hole([library], [VirtAddr(library.start)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
        == library.start - AREA_SIZE
    ), "if it must be"


def test_without_a_reach_anywhere_will_do() -> None:
    assert choose_hole([], [], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH) is not None


def test_no_room_is_said() -> None:
    assert (
        choose_hole([mapped(0, 0x7FFF_FFFF_0000)], [VirtAddr(0x40_1000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
        is None
    )


def test_room_where_the_heap_grows_is_taken_last() -> None:
    """Invariant: an area blocks neither brk nor the stack while there is any other place within reach."""
    heap, text = mapped(0x60_0000, 0x70_0000, "[heap]"), mapped(0x1_0000, 0x60_0000, "/bin/program")
    place = choose_hole([text, heap], [VirtAddr(0x6F_F000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
    assert place is not None
    assert place >= 0x70_0000 + (64 << 20)
    wall = mapped(0x70_0000 + (32 << 20), 0x7FFF_FFFF_0000)
    assert (
        choose_hole([text, heap, wall], [VirtAddr(0x6F_F000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
        == 0x70_0000
    ), "the last resort"


def test_room_below_the_stack_is_taken_last() -> None:
    stack = mapped(0x7FFE_0000_0000, 0x7FFE_0010_0000, "[stack]")
    place = choose_hole([stack], [VirtAddr(0x7FFE_0000_0000)], AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
    assert place is not None
    assert place >= stack.end or place + AREA_SIZE <= stack.start - (64 << 20)


def test_a_slot_is_found_where_a_jump_can_lead(table: SlotTable) -> None:
    """Invariant: only a free slot that begins at one of the addresses is found, however few they are."""
    second = AREA + SLOT_SIZE
    assert table.find_free_within(range(AREA + 1, AREA + 0x1000), []) == second
    assert table.find_free_within(range(second, second + 1), []) == second
    assert table.find_free_within(range(second + 1, second + SLOT_SIZE), []) is None
    assert table.find_free_within(range(AREA - 0x1000, AREA), []) is None
    assert table.find_free_within(range(AREA - 0x1000, AREA + 1), []) == AREA
    assert table.find_free_within(range(AREA + 4 * SLOT_SIZE, AREA + 0x1000), []) is None
    assert table.find_free_within(range(AREA, AREA + 0x1000), [VirtAddr(AREA + 2 * REACH)]) is None
    table.occupy(code_for(0x40_1000, second))
    assert table.find_free_within(range(second, AREA + 0x1000), []) == AREA + 2 * SLOT_SIZE


def test_who_knows_of_a_slot_is_told_when_it_is_vacated() -> None:
    """Invariant: once for each, and not while it is only retired."""
    told: list[SlotCode] = []
    table = SlotTable(SLOT_REACH, told.append)
    table.add_area(SlotArea(AREA, 4 * SLOT_SIZE, SLOT_SIZE))
    code = code_for(0x40_1000, AREA)
    table.occupy(code)
    table.retire(code)
    assert told == []
    assert table.free_retired([AREA]) == 0
    assert told == []
    assert table.free_retired([]) == 1
    assert told == [code]


@pytest.mark.parametrize(
    ("starts", "page"),
    [
        (range(0x50_0000, 0x50_0100), 0x50_0000),
        (range(0x50_0FE0, 0x50_1000), None),
        (range(0x50_0FC0, 0x50_0FC1), 0x50_0000),
        (range(0x40_0100, 0x40_0200), None),
        (range(0x40_0100, 0x50_0000), 0x40_1000),
        (range(0x40_1000 - SLOT_SIZE, 0x40_1000), None),
    ],
)
def test_a_page_for_a_jump(starts: range, page: int | None) -> None:
    """Invariant: it is free, and holds a whole slot that begins where the jump can lead; else there is none."""
    mappings = [mapped(0x40_0000, 0x40_1000, "/bin/program"), mapped(0x60_0000, 0x60_1000, "/bin/program")]
    found = page_within(
        mappings, starts, [VirtAddr(0x40_0000)], slot_size=SLOT_SIZE, slot_reach=SLOT_REACH, limit=LIMIT
    )
    assert found == page
    if found is not None:
        slot = -(-max(found, starts.start) // SLOT_SIZE) * SLOT_SIZE
        assert slot in starts
        assert found <= slot <= found + PAGE_SIZE - SLOT_SIZE


def test_no_page_is_far_from_what_its_slot_must_reach() -> None:
    """Invariant: as for areas."""
    mappings = [mapped(0x40_0000, 0x40_1000)]
    assert (
        page_within(
            mappings, range(0x50_0000, 0x50_0100), [VirtAddr(1 << 40)], slot_size=64, slot_reach=SLOT_REACH, limit=LIMIT
        )
        is None
    )
