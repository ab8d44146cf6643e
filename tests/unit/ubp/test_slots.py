"""Out-of-line copies: what they contain, and which address each place of them stands for."""

from collections.abc import Callable

import pytest

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ubp.plans import InsnAnalysis
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]
DISTANCE = 0x10000


@pytest.fixture
def slot(origin: VirtAddr) -> VirtAddr:
    """A slot well within reach of the tests' instructions."""
    return VirtAddr(origin - DISTANCE)


def copied(x86: X86_64, analysis: InsnAnalysis, slot: VirtAddr) -> tuple[bytes, bytes]:
    """The copy, and what follows it, which must be a jump to the next instruction or nothing."""
    found = x86.slot_code(analysis, slot)
    assert len(found.code) <= x86.slot_size
    assert (found.origin, found.slot) == (analysis.insn.address, slot)
    last_offset = found.places[-1][0]
    if len(found.places) == 1:
        return found.code, b""
    return found.code[:last_offset], found.code[last_offset:]


def disp32(distance: int) -> str:
    return (distance & 2**32 - 1).to_bytes(4, "little").hex()


@pytest.mark.parametrize(
    "text", ["48 89 e5", "f0 ff 00", "90", "9c", "55", "0f 1f 05 10 00 00 00", "67 8b 00", "ff d0"]
)
def test_plain_copy_is_followed_by_a_jump_back(x86: X86_64, analyze: Analyze, slot: VirtAddr, text: str) -> None:
    """Invariant: behind a copy that falls through stands a jump to the program's next instruction.

    Behind a call too: one that is stepped over returns there if its tracer was killed before that was put right.
    """
    copy, rest = copied(x86, analyze(text), slot)
    assert copy == bytes.fromhex(text)
    assert rest.hex() == "e9" + disp32(DISTANCE - 5)


@pytest.mark.parametrize("text", ["c3", "c2 04 00", "f3 c3", "ff e0", "ff 24 c5 00 10 40 00"])
def test_what_never_falls_through_has_no_jump_back(x86: X86_64, analyze: Analyze, slot: VirtAddr, text: str) -> None:
    """Invariant: a slot holds nothing that cannot run, and so may lie anywhere."""
    assert copied(x86, analyze(text), slot) == (bytes.fromhex(text), b"")
    assert copied(x86, analyze(text), VirtAddr(0x1000))[0] == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("48 8b 05", ""),
        ("8b 0d", ""),
        ("64 8b 05", ""),
        ("ff 25", ""),
        ("ff 15", ""),
        ("8f 05", ""),
        ("c7 05", "44 33 22 11"),
        ("66 c7 05", "22 11"),
        ("80 3d", "7f"),
        ("0f 0f 05", "bf"),
        ("0f ba 25", "05"),
        ("66 0f 3a 22 05", "01"),
        ("c5 f8 10 05", ""),
        ("c4 e3 7d 18 05", "01"),
        ("8f e8 78 a2 05", "10"),
    ],
)
def test_rip_relative_displacement_is_rewritten_and_nothing_else(
    x86: X86_64, analyze: Analyze, slot: VirtAddr, before: str, behind: str
) -> None:
    """Invariant: the copy reaches the same operand; opcode and immediate stay."""
    copy, _ = copied(x86, analyze(f"{before} 10 20 00 00 {behind}"), slot)
    assert copy.hex() == (before + disp32(0x2010 + DISTANCE) + behind).replace(" ", "")


# Bugs that others had.


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("vmovups, EVEX", "62 f1 7c 48 10 05"),
        ("vaddss with a compressed displacement elsewhere, EVEX", "62 f1 56 08 58 05"),
        ("andn, where VEX.vvvv is a scratch candidate", "c4 e2 f8 f2 05"),
        ("mulx, which has an implicit rdx", "c4 e2 fb f6 05"),
        ("shl %cl", "d3 25"),
        ("cmpxchg16b", "48 0f c7 0d"),
    ],
)
def test_rip_relative_operand_needs_no_scratch_register(
    x86: X86_64, analyze: Analyze, slot: VirtAddr, name: str, before: str
) -> None:
    """Invariant: a copy uses the registers of the original and no others."""
    copy, _ = copied(x86, analyze(f"{before} 10 20 00 00"), slot)
    assert copy.hex() == (before + disp32(0x2010 + DISTANCE)).replace(" ", ""), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eb 10", ("e9", 0x12)),
        ("eb f0", ("e9", -0xE)),
        ("3e e9 f0 ff ff ff", ("e9", -0xA)),
        ("74 10", ("0f84", 0x12)),
        ("7e 80", ("0f8e", -0x7E)),
        ("2e 0f 8f 00 01 00 00", ("0f8f", 0x107)),
        ("e8 00 01 00 00", ("e8", 0x105)),
        ("66 66 48 e8 00 01 00 00", ("e8", 0x108)),
    ],
)
def test_relative_branch_is_copied_in_its_long_form(
    x86: X86_64, analyze: Analyze, slot: VirtAddr, text: str, expected: tuple[str, int]
) -> None:
    """Invariant: a relative branch in a slot leads where the original leads, however far; rel8 is signed."""
    opcode, target = expected
    copy, rest = copied(x86, analyze(text), slot)
    assert copy.hex() == opcode + disp32(target + DISTANCE - len(copy))
    assert bool(rest) == (opcode != "e9")


@pytest.mark.parametrize("text", ["48 8b 05 10 00 00 00", "e9 00 00 00 00", "74 00", "48 89 e5"])
@pytest.mark.parametrize("side", [1, -1])
def test_slot_out_of_reach_is_refused(x86: X86_64, analyze: Analyze, origin: VirtAddr, text: str, side: int) -> None:
    """Invariant: no displacement is ever cut off."""
    near, far = VirtAddr(origin + side * (2**31 - 64)), VirtAddr(origin + side * (2**31 + 64))
    assert x86.slot_code(analyze(text), near).slot == near
    with pytest.raises(InsnRefused, match="2 GiB"):
        x86.slot_code(analyze(text), far)


def test_operand_may_lie_across_the_end_of_the_address_space(x86: X86_64) -> None:
    """Invariant: addresses wrap at 64 bits, as the processor's do."""
    analysis = x86.analyze(bytes.fromhex("48 8b 05 00 f0 ff ff"), VirtAddr(0x100))
    assert analysis.reach[0] == 2**64 - 0x1000 + 0x107
    assert x86.slot_code(analysis, VirtAddr(0x1100)).code[3:7].hex() == disp32(-0x2000)


def test_places_lead_both_ways(x86: X86_64, analyze: Analyze, slot: VirtAddr, origin: VirtAddr) -> None:
    """Invariant: to_slot and to_origin undo each other at every boundary, and know no other place."""
    found = x86.slot_code(analyze("48 8b 05 10 00 00 00"), slot)
    assert found.places == ((0, origin), (7, origin + 7))
    for offset, address in found.places:
        assert found.to_origin(VirtAddr(slot + offset)) == address
        assert found.to_slot(address) == slot + offset
    assert found.to_origin(VirtAddr(slot + 1)) is None
    assert found.to_slot(VirtAddr(origin + 1)) is None


def test_system_call_leaves_the_programs_address_in_rcx(
    x86: X86_64, analyze: Analyze, slot: VirtAddr, origin: VirtAddr
) -> None:
    """Invariant: rcx is put right behind a system call, no flag changed; for who is taken out before that, too."""
    found = x86.slot_code(analyze("0f 05"), slot)
    assert found.code[:5].hex() == "0f05488d0d"
    assert found.code[5:9].hex() == disp32(DISTANCE + 2 - 9)
    assert found.code[9:].hex() == "e9" + disp32(DISTANCE + 2 - 14)
    assert found.places == ((0, origin), (2, origin + 2), (9, origin + 2))
    behind = slot + 2
    assert x86.leave_slot(found, {"rip": behind, "rcx": behind}).registers == {"rip": origin + 2, "rcx": origin + 2}
    assert x86.leave_slot(found, {"rip": behind, "rcx": 7}).registers == {"rip": origin + 2}
    assert x86.leave_slot(found, {"rip": slot + 9, "rcx": origin + 2}).registers == {"rip": origin + 2}
    assert x86.leave_slot(found, {"rip": slot, "rcx": 1}).registers == {"rip": origin}


@pytest.mark.parametrize("text", ["8e d0", "0f b2 20", "0f 00 c8", "0f 01 e0"])
def test_where_the_processor_gives_no_trap_it_falls_on_a_cushion(
    x86: X86_64, analyze: Analyze, slot: VirtAddr, origin: VirtAddr, text: str
) -> None:
    """Invariant: a program that steps itself meets no trap between such an instruction and its own next one."""
    found, size = x86.slot_code(analyze(text), slot), len(bytes.fromhex(text))
    assert found.code[size : size + 2] == b"\x90\xe9"
    assert found.cushion == size
    assert found.places == ((0, origin), (size, origin + size), (size + 1, origin + size))
    assert x86.slot_code(analyze("0f 05"), slot).cushion == 2
    assert x86.slot_code(analyze("90"), slot).cushion is None


def test_transaction_keeps_its_abort_handler(x86: X86_64, analyze: Analyze, slot: VirtAddr) -> None:
    """Invariant: an aborted transaction goes where the program says."""
    copy, rest = copied(x86, analyze("c7 f8 00 01 00 00"), slot)
    assert copy.hex() == "c7f8" + disp32(0x106 + DISTANCE - 6)
    assert rest.hex() == "e9" + disp32(6 + DISTANCE - 11)


def test_eip_relative_operand_wraps(x86: X86_64, analyze: Analyze, slot: VirtAddr, origin: VirtAddr) -> None:
    """Invariant: under an address-size prefix the operand is reached by the lowest 32 bits alone."""
    copy, _ = copied(x86, analyze("67 8b 05 10 20 00 00"), slot)
    wanted = (origin + 7 + 0x2010) % 2**32
    assert (slot + 7 + int.from_bytes(copy[3:], "little")) % 2**32 == wanted


def test_place_behind_a_widened_branch(x86: X86_64, analyze: Analyze, slot: VirtAddr, origin: VirtAddr) -> None:
    """Invariant: the copy may be longer than the original, and the places say so."""
    assert x86.slot_code(analyze("74 10"), slot).places == ((0, origin), (6, origin + 2))


def test_counted_branch_has_no_slot(x86: X86_64, analyze: Analyze, slot: VirtAddr) -> None:
    """Invariant: asking for what is not allowed is a UsageError."""
    with pytest.raises(UsageError, match="cannot run in a slot"):
        x86.slot_code(analyze("e2 fe"), slot)
    with pytest.raises(UsageError, match="cannot run in a slot"):
        x86.before_step(analyze("e3 fe"), slot, {"eflags": 0x202})


def test_trap_is_one_byte_and_moves_the_pc(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: exactly the trap's bytes are written, and a hit is reported behind them."""
    patch = x86.trap(analyze("48 89 e5"))
    assert (patch.address, patch.trap, patch.original, patch.reported_pc) == (origin, b"\xcc", b"\x48", origin + 1)
    assert patch.trap == x86.trap_bytes
