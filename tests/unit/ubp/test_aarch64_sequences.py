"""Exclusive load and store: what stands between them may not be stopped at."""

from __future__ import annotations

import struct

import pytest

from ubpx.core.ubp import Architecture, architecture
from ubpx.core.values import VirtAddr

START = VirtAddr(0x1_0000)
LDXR, STXR, CLREX = 0xC85F_7C20, 0xC802_7C20, 0xD503_3F5F
ADD, CMP_OUT, RETRY, RET, NOP = 0x9100_0400, 0x5400_0081, 0x35FF_FF82, 0xD65F_03C0, 0xD503_201F
"""add; b.ne .+16; cbnz w2, .-16; ret; nop."""

arch: Architecture = architecture("aarch64")


def refused(*words: int) -> list[int]:
    """Which of the instructions may not be stopped at, by their places."""
    code = struct.pack(f"<{len(words)}I", *words)
    return [at for at in range(len(words)) if arch.in_sequence(code, START, VirtAddr(START + 4 * at)) is not None]


def test_what_stands_between_is_refused() -> None:
    """Invariant: compare and swap: not what comes before, nor the way out, nor what tries again."""
    assert refused(NOP, LDXR, CMP_OUT, ADD, STXR, RETRY, NOP, RET) == [2, 3]


@pytest.mark.parametrize("load", [0x085F_7C20, 0x485F_FC20, 0x885F_7C20, 0xC85F_FC20, 0x887F_0820, 0xC87F_8820])
def test_every_form_of_the_load_is_known(load: int) -> None:
    """Invariant: of one to sixteen bytes, with acquire and without."""
    assert refused(load, ADD, STXR) == [1]


@pytest.mark.parametrize("load", [0xC8DF_FC20, 0xC8A0_7C41, 0xF940_0020, 0x4820_7C82])
def test_what_sets_no_monitor_begins_nothing(load: int) -> None:
    """Invariant: ldar, cas, ldr and casp are complete by themselves."""
    assert refused(load, ADD, STXR) == []


def test_branches_are_followed_both_ways() -> None:
    """Invariant: a store behind a jump, or before it, is the load's; what leads elsewhere is free."""
    assert refused(LDXR, 0x1400_0003, ADD, RET, STXR, RET) == [1]  # b .+12
    assert refused(0x1400_0004, ADD, STXR, RET, LDXR, 0x17FF_FFFC) == [1, 5]  # b .+16; b .-16


@pytest.mark.parametrize(
    "words",
    [(LDXR, ADD, RET, STXR), (ADD, STXR), (LDXR, ADD), (LDXR, ADD, CLREX, STXR), (LDXR, ADD, 0x9400_0040, STXR)],
)
def test_what_belongs_to_none_is_free(words: tuple[int, ...]) -> None:
    """Invariant: a load that no store can follow, a store without a load, a way that ends, a call on it."""
    assert refused(*words) == []


def test_what_is_too_far_away_is_free() -> None:
    """Invariant: the ends are looked for as far as the architecture says."""
    most = arch.longest_sequence // 4
    assert refused(LDXR, *[ADD] * most, STXR) == list(range(1, most + 1))
    assert 1 not in refused(LDXR, *[ADD] * (most + 1), STXR)


def test_a_part_of_the_function_is_enough() -> None:
    """Invariant: the bytes may begin in the middle of it, and end anywhere, as long as the sequence is in them."""
    code = struct.pack("<5I", ADD, ADD, LDXR, ADD, STXR)
    assert arch.in_sequence(code[4:] + b"\0\0", VirtAddr(START + 4), VirtAddr(START + 12)) is not None
    assert arch.in_sequence(b"\0\0" + code, VirtAddr(START - 2), VirtAddr(START + 12)) is not None
    for at in (START - 4, START + 1, START + 20):
        assert arch.in_sequence(code, START, VirtAddr(at)) is None
