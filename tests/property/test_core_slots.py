"""Where areas of slots go, for any layout of a process's memory."""

from hypothesis import given
from hypothesis import strategies as st

from ubpx.core.slots import AREA_SIZE, choose_hole
from ubpx.core.values import PAGE_SIZE, MappedRange, VirtAddr

GROWTH = 64 << 20
LOWEST, HIGHEST = 0x10000, 0x7FFF_FFFF_0000
LIMIT = 0x7FFF_FFFF_F000
SLOT_REACH = 2**31
REACH = SLOT_REACH - AREA_SIZE  # a margin for an area is kept
PATHS = ["", "/bin/program", "[heap]", "[stack]"]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[MappedRange], list[VirtAddr]]:
    """Ascending mappings around one address, and what must be within reach."""
    at = draw(st.integers(LOWEST // PAGE_SIZE, 2**46 // PAGE_SIZE)) * PAGE_SIZE
    mappings = []
    for _ in range(draw(st.integers(0, 6))):
        start = at + draw(st.sampled_from([0, 1, 8, 15, 16, 17, 1000, GROWTH // PAGE_SIZE, 2**19])) * PAGE_SIZE
        at = start + draw(st.sampled_from([1, 16, 5000, 2**18])) * PAGE_SIZE
        mappings.append(
            MappedRange(
                start=VirtAddr(start),
                end=VirtAddr(at),
                permissions="r-xp",
                offset=0,
                device="00:00",
                inode=0,
                path=draw(st.sampled_from(PATHS)),
            )
        )
    near = st.sampled_from(mappings).map(lambda each: each.start) if mappings else st.just(VirtAddr(at))
    offsets = st.integers(-(2**30), 2**30)
    reach = draw(st.lists(st.builds(lambda base, off: VirtAddr(max(base + off, LOWEST)), near, offsets), max_size=2))
    return mappings, reach


def overlaps(place: int, mappings: list[MappedRange]) -> bool:
    return any(each.start < place + AREA_SIZE and place < each.end for each in mappings)


def within_reach(place: int, reach: list[VirtAddr]) -> bool:
    return all(abs(place - each) <= REACH and abs(place + AREA_SIZE - each) <= REACH for each in reach)


def in_the_way(place: int, mappings: list[MappedRange]) -> bool:
    """Whether an area there limits a heap below it or a stack above it that could grow freely."""
    below = max((each for each in mappings if each.end <= place), key=lambda each: each.end, default=None)
    above = min((each for each in mappings if each.start > place), key=lambda each: each.start, default=None)
    after_heap = below is not None and below.path == "[heap]" and place < below.end + GROWTH
    before_stack = above is not None and above.path.startswith("[stack") and place + AREA_SIZE > above.start - GROWTH
    return after_heap or before_stack


@given(layouts())
def test_a_chosen_place_is_aligned_free_and_within_reach(layout: tuple[list[MappedRange], list[VirtAddr]]) -> None:
    """Invariant: what choose_hole gives can be mapped as it is, and reaches everything."""
    mappings, reach = layout
    place = choose_hole(mappings, reach, AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
    if place is None:
        return
    assert place % PAGE_SIZE == 0
    assert LOWEST <= place <= HIGHEST - AREA_SIZE
    assert not overlaps(place, mappings)
    assert within_reach(place, reach)


@given(layouts(), st.integers(-(REACH // PAGE_SIZE), REACH // PAGE_SIZE))
def test_a_place_is_found_if_there_is_any(layout: tuple[list[MappedRange], list[VirtAddr]], pages: int) -> None:
    """Invariant: None means that no place whatever would do, and a place in the way that none out of it would."""
    mappings, reach = layout
    other = (mappings[0].start if mappings else 2**40) + pages * PAGE_SIZE
    fits = LOWEST <= other <= HIGHEST - AREA_SIZE and not overlaps(other, mappings) and within_reach(other, reach)
    if not fits:
        return
    place = choose_hole(mappings, reach, AREA_SIZE, limit=LIMIT, slot_reach=SLOT_REACH)
    assert place is not None
    if not in_the_way(other, mappings):
        assert not in_the_way(place, mappings)
