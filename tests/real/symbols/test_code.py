"""Functions of real files: what a stripped copy's unwind table says is what the symbols said."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ubpx.symbols.code import ProvedBy, code_map, function_ranges, gaps
from ubpx.symbols.elf import ImageReader, read_headers
from ubpx.symbols.unwind import read_unwind_table

SOURCE = r"""
KEPT int add(int a, int b) { return a + b; }
KEPT static int twice(int a) { return add(a, a) + rand(); }
KEPT static int choose(int a) { return a == 1 ? puts("a") : a == 2 ? 7 : rand(); }
int main(void) { return twice(choose(rand())); }
"""


@pytest.mark.parametrize("flags", [(), ("-static",), ("-no-pie", "-fcf-protection=full"), ("-m32",)], ids=" ".join)
def test_a_stripped_copy_has_the_functions_of_the_original(
    build: Callable[..., Path], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Invariant: without symbols the same bytes are functions, start for start and end for end."""
    program = build("coded", {"coded.c": SOURCE}, *flags)
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-s", "-o", stripped, program], check=True)
    whole, bare = function_ranges(program), function_ranges(stripped)
    by_name = {each.name: each for each in whole}
    for name in ("add", "twice", "choose", "main"):
        assert by_name[name].proved_by is ProvedBy.SYMBOL
        there = [(each.start, each.end) for each in bare if each.proved_by is ProvedBy.UNWIND]
        assert (by_name[name].start, by_name[name].end) in there
    assert {each.name for each in bare if each.proved_by is ProvedBy.UNWIND} == {None}
    assert {each.start for each in bare} <= {each.start for each in whole}
    assert any(each.proved_by is ProvedBy.STUBS for each in bare)


def test_each_byte_of_the_c_library_is_in_one_range_or_one_gap() -> None:
    """Invariant: ranges and gaps together are the executable sections, as readelf lists them."""
    [libc] = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so.6" in line}
    everything = code_map(libc)
    pieces = [(each.start, each.end) for each in everything.ranges]
    pieces = sorted(pieces + [(each.start, each.end) for each in everything.gaps])
    listed = subprocess.run(["readelf", "-SW", libc], check=True, capture_output=True, text=True).stdout
    sections = []
    for line in listed.splitlines():
        fields = line[6:].split()  # behind the number
        if "PROGBITS" in fields and "AX" in fields:
            address, size = int(fields[2], 16), int(fields[4], 16)
            sections.append((address, address + size))
    joined = [pieces[0]]
    for start, end in pieces[1:]:
        assert start >= joined[-1][1]
        if start == joined[-1][1] and start not in {first for first, _ in sections}:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    assert joined == sections
    assert tuple(gaps(libc)) == everything.gaps


@pytest.mark.parametrize("flags", [(), ("-static",)], ids=["search table", "made table"])
def test_the_unwind_table_is_searched_as_it_is_listed(build: Callable[..., Path], flags: tuple[str, ...]) -> None:
    """Invariant: a search for any byte of a function finds the function that the whole table lists."""
    with build("coded", {"coded.c": SOURCE}, *flags).open("rb") as stream:
        reader = ImageReader(stream, "coded")
        unwind = read_unwind_table(reader, read_headers(reader))
    listed = unwind.ranges()
    assert listed == sorted(listed)
    assert len(listed) > 4
    for (start, end), (following, _) in zip(listed, [*listed[1:], (1 << 40, 0)], strict=True):
        assert unwind.end_of(start) == end
        assert {unwind.around(address) for address in (start, (start + end) // 2, end - 1)} == {(start, end)}
        if end < following:
            assert unwind.around(end) is None
            assert (unwind.end_before(end), unwind.start_after(end)) == (
                end,
                following if following < 1 << 40 else None,
            )
    assert unwind.around(listed[0][0] - 1) is None
    assert unwind.end_before(listed[0][0] - 1) is None
