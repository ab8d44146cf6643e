"""Jumps over one instruction's own bytes: where they can lead, what they are, and where there must be none."""

from collections.abc import Callable

import pytest

from ubpx._errors import InsnRefused
from ubpx.core.ubp.plans import InsnAnalysis
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]
FOLLOWING = bytes.fromhex("11 22 33 44")


def led_to(x86: X86_64, analysis: InsnAnalysis, target: int, following: bytes) -> int:
    """Where the processor goes from what stands there with the jump written over it."""
    patch = x86.jump(analysis, VirtAddr(target), following)
    there = (patch.trap + following)[:5]
    assert patch.original == analysis.insn.raw[: len(patch.trap)]
    assert len(patch.trap) == min(analysis.insn.length, 5)
    found = x86.jump_target(there, analysis.insn.address)
    assert found is not None
    assert patch.reported_pc == found + 1
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [("c3", 1), ("41 54", 1 << 8), ("48 89 e5", 1 << 16), ("48 8d 47 01", 1 << 24), ("48 8d 87 01 00 00 00", 1 << 32)],
)
def test_short_instructions_reach_few_targets(x86: X86_64, analyze: Analyze, text: str, count: int) -> None:
    """Invariant: each free byte is a factor of 256, and both ends of what can be reached are reached."""
    analysis = analyze(text)
    targets = x86.jump_targets(analysis, FOLLOWING)
    assert len(targets) == count
    for target in (targets[0], targets[-1]):
        assert led_to(x86, analysis, target, FOLLOWING) == target


def test_displacements_are_signed(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: what follows may make the jump one backwards."""
    targets = x86.jump_targets(analyze("48 8d 47 01"), bytes.fromhex("ff"))
    assert targets == range(origin + 5 - (1 << 24), origin + 5)
    assert x86.jump_targets(analyze("48 8d 47 01"), bytes.fromhex("00")) == range(origin + 5, origin + 5 + (1 << 24))


def test_a_target_out_of_reach_is_refused(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: no jump is made that the bytes behind the instruction lead elsewhere."""
    analysis = analyze("48 89 e5")
    targets = x86.jump_targets(analysis, FOLLOWING)
    for target in (targets.start - 1, targets.stop):
        with pytest.raises(InsnRefused, match="no jump made of its own bytes"):
            x86.jump(analysis, VirtAddr(target), FOLLOWING)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f3 0f 1e fa", "indirect branches may lead to"),
        ("f0 48 ff 05 00 00 00 00", "a branch may skip its prefix"),
        ("64 8b 04 25 28 00 00 00", "a branch may skip its prefix"),
        ("f3 48 a5", "its copy must be gone to from a trap"),
        ("0f 05", "its copy must be gone to from a trap"),
        ("e8 00 00 00 00", "its copy must be gone to from a trap"),
        ("9d", "its copy must be gone to from a trap"),
        ("d9 e8", "its copy must be gone to from a trap"),
    ],
)
def test_some_instructions_have_no_jump(x86: X86_64, analyze: Analyze, text: str, reason: str) -> None:
    """Invariant: a place that must stay as it is, or whose copy cannot be run into, has a reason of its own."""
    with pytest.raises(InsnRefused, match=reason):
        x86.jump_targets(analyze(text), FOLLOWING)


def test_what_cannot_be_read_is_no_end_of_a_jump(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: at the end of a mapping there is no jump for a short instruction."""
    with pytest.raises(InsnRefused, match="cannot be read"):
        x86.jump_targets(analyze("48 89 e5"), b"\x11")


@pytest.mark.parametrize("text", ["48 8d 47 01", "c3", "55", "74 10", "eb 10", "e9 10 00 00 00", "0f 1f 40 00", "9c"])
def test_a_slot_has_an_entry_that_leads_to_its_copy(x86: X86_64, analyze: Analyze, origin: VirtAddr, text: str) -> None:
    """Invariant: behind the copy's way back stands a trap, and behind that a jump to the copy."""
    code = x86.slot_code(analyze(text), VirtAddr(origin + 0x1000))
    assert code.entry is not None
    assert code.entered == code.slot + code.entry + 1
    assert code.entry_code[:2] == b"\xcc\xeb"
    displacement = int.from_bytes(code.entry_code[2:], "little", signed=True)
    assert code.entry + 3 + displacement == 0
    assert len(code.code) == code.entry
    assert code.program_pc(VirtAddr(code.slot + code.entry)) == code.program_pc(code.entered) == origin


@pytest.mark.parametrize("text", ["f3 48 a5", "0f 05", "d9 e8", "8e d0"])
def test_a_slot_that_is_only_gone_to_has_no_entry(x86: X86_64, analyze: Analyze, origin: VirtAddr, text: str) -> None:
    """Invariant: no jump can lead to it."""
    code = x86.slot_code(analyze(text), VirtAddr(origin + 0x1000))
    assert (code.entry, code.entered) == (None, None)


def test_other_code_is_no_jump_of_ours(x86: X86_64, origin: VirtAddr) -> None:
    """Invariant: only a whole near jump has a target."""
    assert x86.jump_target(bytes.fromhex("e8 00 00 00 00"), origin) is None
    assert x86.jump_target(bytes.fromhex("e9 00 00 00"), origin) is None
