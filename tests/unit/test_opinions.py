"""What the disassemblers are asked, and that they answer in one language."""

from __future__ import annotations

import sys

import pytest

from ubpx._errors import UsageError
from ubpx.testing.opinions import Disassembler, FlowKind, both_disassemblers

ADDRESS = 0x5655_5000
ICED, CAPSTONE = both_disassemblers(64)
BOTH = pytest.mark.parametrize("disassembler", [ICED, CAPSTONE], ids=["iced", "capstone"])

FLOWS = {
    "90": FlowKind.NEXT,
    "f4": FlowKind.NOWHERE,
    "0f0b": FlowKind.NOWHERE,
    "0faa": FlowKind.RETURN,
    "eb10": FlowKind.JUMP,
    "f2e910000000": FlowKind.JUMP,
    "7410": FlowKind.CONDITIONAL,
    "2e7410": FlowKind.CONDITIONAL,
    "e210": FlowKind.CONDITIONAL,
    "67e310": FlowKind.CONDITIONAL,
    "c7f810000000": FlowKind.CONDITIONAL,
    "e810000000": FlowKind.CALL,
    "ffe0": FlowKind.INDIRECT_JUMP,
    "3eff20": FlowKind.INDIRECT_JUMP,
    "ffd0": FlowKind.INDIRECT_CALL,
    "ff1510000000": FlowKind.INDIRECT_CALL,
    "f3c3": FlowKind.RETURN,
    "c20800": FlowKind.RETURN,
    "48cf": FlowKind.RETURN,
    "cc": FlowKind.INTERRUPT,
    "cd80": FlowKind.INTERRUPT,
    "0f05": FlowKind.INTERRUPT,
    "0f34": FlowKind.INTERRUPT,
}


@BOTH
def test_flow_is_told_in_the_same_words(disassembler: Disassembler) -> None:
    """Invariant: two libraries with different notions of control flow are made to speak alike."""
    found = {code: disassembler.opinion(bytes.fromhex(code), ADDRESS) for code in FLOWS}
    assert {code: each and each.flow for code, each in found.items()} == FLOWS
    assert all(each and each.length == len(code) // 2 for code, each in found.items())


@BOTH
@pytest.mark.parametrize(
    ("near", "far", "distance"),
    [
        ("eb10", "e98d000000", 0x80),  # from rel8 to rel32, which is 3 bytes longer
        ("7410", "0f848c000000", 0x80),
        ("f2e810000000", "e891000000", 0x80),
        ("488b0510000000", "488b0590000000", 0x80),
        ("67488b0510000000", "67488b0590000000", 0x80),
        ("803df0ffffff05", "803d7000000005", 0x80),  # a constant behind the displacement
    ],
)
def test_an_instruction_that_was_moved_is_still_the_same(
    disassembler: Disassembler, near: str, far: str, distance: int
) -> None:
    """Invariant: texts are equal for the same instruction elsewhere, and only for that."""
    original = disassembler.opinion(bytes.fromhex(near), ADDRESS)
    copy = disassembler.opinion(bytes.fromhex(far), ADDRESS - distance)
    assert original is not None
    assert copy is not None
    assert (copy.text, copy.target, copy.operand, copy.flow) == (
        original.text, original.target, original.operand, original.flow,
    )  # fmt: skip
    assert (original.target is None) != (original.operand is None)
    moved = disassembler.opinion(bytes.fromhex(far), ADDRESS - distance + 1)
    assert moved is not None
    assert moved.text != original.text


@BOTH
def test_what_is_none_is_none(disassembler: Disassembler) -> None:
    """Invariant: no opinion on bytes that are no instruction, or not whole."""
    assert [disassembler.opinion(code, ADDRESS) for code in (b"", b"\x06", b"\xe9\x00", b"\x66" * 15)] == [None] * 4


def test_distances_are_blanked() -> None:
    """Invariant: equal instructions with different distances are one kind, different ones are not."""
    kinds = {
        code: ICED.without_distance(bytes.fromhex(code), ADDRESS).hex()
        for code in ("eb10", "e810000000", "488b0510000000", "803d1000000005", "488b4010", "c7f810000000")
    }
    assert kinds == {
        "eb10": "eb00", "e810000000": "e800000000", "488b0510000000": "488b0500000000",
        "803d1000000005": "803d0000000005", "488b4010": "488b4010", "c7f810000000": "c7f800000000",
    }  # fmt: skip


def test_lengths_end_where_decoding_does() -> None:
    """Invariant: a walk is as good as one question after the other."""
    assert list(ICED.lengths(bytes.fromhex("90 e810000000 f3c3 06 90"), ADDRESS)) == [1, 5, 2]


def test_32_bit_code_is_another_language() -> None:
    """Invariant: the same bytes are read in the mode that was asked for."""
    for disassembler in both_disassemblers(32):
        pushed = disassembler.opinion(b"\x06", ADDRESS)
        assert pushed is not None
        assert pushed.length == 1
        back = disassembler.opinion(b"\xe9\xfa\xaf\xaa\xa9", ADDRESS)
        assert back is not None
        assert back.target == ADDRESS + 5 + 0xA9AA_AFFA - 2**32 * (ADDRESS + 5 + 0xA9AA_AFFA >= 2**32)


def test_comparing_needs_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: an error says what to install."""
    monkeypatch.setitem(sys.modules, "iced_x86", None)
    with pytest.raises(UsageError, match="pip install iced-x86 capstone"):
        both_disassemblers(64)
