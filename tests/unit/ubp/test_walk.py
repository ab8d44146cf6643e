"""Going over code in bulk: what it says of millions of instructions must be what analysis says of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ubpx._errors import InsnRefused
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder
from ubpx.core.ubp.plans import Strategy
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr, parse_maps
from ubpx.symbols.code import function_ranges

if TYPE_CHECKING:
    from collections.abc import Hashable

ORIGIN = VirtAddr(0x40_1000)
BOTH = pytest.mark.parametrize("decoder", [IcedDecoder(), CapstoneDecoder()], ids=["iced", "capstone"])
SLOTLESS = {Strategy.EMULATE, Strategy.INLINE}


def verdict(architecture: X86_64, code: bytes, address: int) -> str:
    """Whether it is refused, and if not, whether it can do without a slot."""
    try:
        analysis = architecture.analyze(code, VirtAddr(address))
    except InsnRefused as refused:
        return refused.reason
    return "slotless" if SLOTLESS & set(analysis.strategies) else "slot needed"


@BOTH
def test_instructions_of_one_kind_have_one_verdict(decoder: Decoder) -> None:
    """Invariant: over the C library's own code, and with prefixes, whatever the operands are."""
    path = next(each.path for each in parse_maps(Path("/proc/self/maps").read_text()) if "libc.so" in each.path)
    text, architecture, checked = Path(path).read_bytes(), X86_64(decoder), 0
    verdicts: dict[Hashable, str] = {}
    for each in function_ranges(path)[:400]:
        at, code = each.start, text[each.start : each.end]  # the C library is linked to where it lies in the file
        for length, kind in architecture.walk(code, VirtAddr(at)):
            part = code[at - each.start :][:15]
            expected = verdict(architecture, part, at)
            decoded = decoder.decode(part, at)
            assert decoded is not None
            assert decoded.length == length
            assert verdicts.setdefault(kind, expected) == expected, part.hex(" ")
            at, checked = at + length, checked + 1
    assert checked > 10_000


@BOTH
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8e d0", "8e d8"),  # mov ss, ds
        ("e8 00000000", "66 e8 00000000"),  # a near branch with an operand-size prefix
        ("87 03", "f0 87 03"),
        ("0f 01 d0", "0f 01 d1"),  # xgetbv, xsetbv
        ("90", "f0 90"),
        ("48 8e d0", "48 8e d8"),
    ],
)
def test_what_is_not_alike_is_of_two_kinds(decoder: Decoder, one: str, other: str) -> None:
    kinds = [next(decoder.walk(bytes.fromhex(code), ORIGIN), (0, None))[1] for code in (one, other)]
    assert kinds[0] != kinds[1]


@BOTH
def test_it_ends_at_what_is_no_instruction_or_not_whole(decoder: Decoder) -> None:
    for code, lengths in (("90 06 90", [1]), ("90 48 8d 47", [1]), ("", []), ("f3 90 c3", [2, 1])):
        assert [length for length, _ in decoder.walk(bytes.fromhex(code), ORIGIN)] == lengths


@BOTH
def test_places_near_the_code_are_named(decoder: Decoder) -> None:
    code = bytes.fromhex("8b05 04000000 488d05 00100000 8b04 25 00104000 c3")
    named: list[int] = []
    list(decoder.walk(code, ORIGIN, named=named, near=range(ORIGIN, ORIGIN + len(code))))
    assert named == [ORIGIN + 10]


@BOTH
def test_single_places_have_the_kinds_that_a_walk_finds(decoder: Decoder) -> None:
    """Invariant: in any order, with prefixes, and where nothing whole stands."""
    path = next(each.path for each in parse_maps(Path("/proc/self/maps").read_text()) if "libc.so" in each.path)
    text, checked = Path(path).read_bytes(), 0
    for each in function_ranges(path)[:120]:
        code, at = text[each.start : each.end], 0
        walked: dict[int, tuple[int, Hashable]] = {}
        for length, kind in decoder.walk(code, each.start):
            walked[at] = length, kind
            at += length
        places = sorted(walked, reverse=True)
        assert list(decoder.kinds(code, places)) == [walked[place] for place in places]
        checked += len(places)
    assert checked > 1_000
    code = bytes.fromhex("f0 87 03 8e d0 90 06 48 8d 47")
    assert [length for length, _ in decoder.kinds(code, (0, 1, 3, 5, 6, 7))] == [3, 2, 2, 1, 0, 0]
