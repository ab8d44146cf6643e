"""Which class each instruction falls into, and what follows from that."""

from collections.abc import Callable

import pytest

from ubpx._errors import InsnRefused
from ubpx.core.ubp.plans import FixUp, InsnAnalysis, Strategy
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]

EMULATE, BOOST, STEP, INLINE = Strategy.EMULATE, Strategy.BOOST, Strategy.STEP, Strategy.INLINE

EMULATED_OR_COPIED = {
    "nop": "90",
    "66 nop": "66 90",
    "rex.w nop": "48 90",
    "repne nop": "f2 90",
    "nop 3": "0f 1f 00",
    "nop 4": "0f 1f 40 00",
    "nop 5": "0f 1f 44 00 00",
    "nop 6": "66 0f 1f 44 00 00",
    "nop 7": "0f 1f 80 00 00 00 00",
    "nop 8": "0f 1f 84 00 00 00 00 00",
    "nop 9": "66 0f 1f 84 00 00 00 00 00",
    "cs nop": "2e 66 0f 1f 84 00 00 00 00 00",
    "66 cs nop 11": "66 66 2e 0f 1f 84 00 00 00 00 00",
    "nop of a register": "0f 1f c0",
    "nop with eip-relative operand": "67 0f 1f 05 00 00 00 00",
    "endbr64": "f3 0f 1e fa",
    "endbr32": "f3 0f 1e fb",
    "jmp rel8": "eb 10",
    "jmp rel32": "e9 00 01 00 00",
    "notrack jmp": "3e eb 10",
    "bnd jmp": "f2 e9 00 01 00 00",
    "data16 rex.w jmp": "66 48 e9 00 01 00 00",
    "jcc rel8": "74 10",
    "jcc rel32": "0f 85 00 01 00 00",
    "jcc with a hint": "2e 74 10",
    "push reg": "55",
    "push r15": "41 57",
    "push rsp": "54",
    "rex.w push": "66 48 50",
    "push imm8": "6a ff",
    "push imm32": "68 44 33 22 11",
    "pop reg": "5d",
    "pop r12": "41 5c",
    "leave": "c9",
}
COPIED = {
    "pause": "f3 90",
    "xchg r8": "49 90",
    "xchg r8d": "41 90",
    "mov": "48 89 e5",
    "lock inc": "f0 ff 00",
    "lock cmpxchg16b": "f0 48 0f c7 0e",
    "fs load": "64 48 8b 04 25 28 00 00 00",
    "gs load": "65 48 8b 04 25 00 00 00 00",
    "es and ds": "26 8b 00",
    "ss load": "36 8b 00",
    "movabs": "48 a1 11 22 33 44 55 66 77 88",
    "rep movs": "f3 a4",
    "repne scas": "f2 ae",
    "ret": "c3",
    "ret imm": "c2 04 00",
    "rep ret": "f3 c3",
    "bnd ret": "f2 c3",
    "jmp reg": "ff e0",
    "notrack jmp reg": "3e ff e0",
    "jmp table": "ff 24 c5 00 10 40 00",
    "push word": "66 50",
    "push imm16": "66 68 22 11",
    "pop word": "66 58",
    "leave word": "66 c9",
    "push r/m": "ff 30",
    "pop r/m": "8f 00",
    "push fs": "0f a0",
    "pop gs": "0f a9",
    "mov ds": "8e d8",
    "mov from ss": "8c d0",
    "enter": "c8 10 00 00",
    "ud2": "0f 0b",
    "rdtsc": "0f 31",
    "rdpmc": "0f 33",
    "cpuid": "0f a2",
    "xgetbv": "0f 01 d0",
    "wrpkru": "0f 01 ef",
    "rdtscp": "0f 01 f9",
    "xtest": "0f 01 d6",
    "rdsspq": "f3 48 0f 1e c8",
    "incsspq": "f3 48 0f ae e8",
    "saveprevssp": "f3 0f 01 ea",
    "rstorssp": "f3 0f 01 28",
    "cmpxchg8b": "0f c7 0e",
    "rdrand": "48 0f c7 f0",
    "mfence": "0f ae f0",
    "xsave": "0f ae 20",
    "extrq": "66 0f 78 c0 01 02",
    "fwait": "9b",
    "x87 control": "d9 28",
    "fnstenv": "d9 30",
    "fnstsw": "df e0",
    "fninit": "db e3",
    "3DNow!": "0f 0f c1 bf",
    "SSE2": "66 0f 6f 00",
    "SSE4.2": "f2 48 0f 38 f1 c1",
    "AES": "66 0f 3a df c1 01",
    "adcx": "66 0f 38 f6 c1",
    "VEX": "c5 f8 77",
    "VEX 3": "c4 e2 e3 f6 c1",
    "EVEX": "62 f1 fe 48 6f 00",
    "XOP map 8": "8f e8 78 a2 c1 00",
    "XOP map 9": "8f e9 78 12 c0",
    "XOP map 10": "8f ea 78 10 c1 04 00 00 00",
}
REFUSED = {
    "int3": ("cc", "breakpoint already"),
    "int n": ("cd 80", "software interrupt"),
    "int1": ("f1", "breakpoint already"),
    "hlt": ("f4", "kernel"),
    "cli": ("fa", "interrupts"),
    "sti": ("fb", "interrupts"),
    "in": ("e4 10", "I/O port"),
    "out": ("ef", "I/O port"),
    "ins": ("6c", "I/O port"),
    "rep outs": ("f3 6f", "I/O port"),
    "iret": ("cf", "interrupt"),
    "iretq": ("48 cf", "interrupt"),
    "ret far": ("cb", "far"),
    "ret far imm": ("ca 08 00", "far"),
    "call far": ("ff 18", "far"),
    "jmp far": ("ff 28", "far"),
    "sysenter": ("0f 34", "64-bit mode"),
    "sysret": ("0f 07", "kernel"),
    "sysexit": ("0f 35", "kernel"),
    "xabort": ("c6 f8 01", "transaction"),
    "xend": ("0f 01 d5", "transaction"),
    "enclu": ("0f 01 d7", "enclave"),
    "monitor": ("0f 01 c8", "kernel"),
    "lgdt": ("0f 01 10", "kernel"),
    "invlpg": ("0f 01 38", "kernel"),
    "swapgs": ("0f 01 f8", "kernel"),
    "setssbsy": ("f3 0f 01 e8", "kernel"),
    "clrssbsy": ("f3 0f ae 30", "kernel"),
    "ltr": ("0f 00 d8", "kernel"),
    "mov cr": ("0f 20 c0", "kernel"),
    "mov to dr": ("0f 23 f8", "kernel"),
    "rdmsr": ("0f 32", "kernel"),
    "wbinvd": ("0f 09", "kernel"),
    "getsec": ("0f 37", "mode"),
    "vmread": ("0f 78 c1", "kernel"),
    "invpcid": ("66 0f 38 82 00", "kernel"),
    "wruss": ("66 0f 38 f5 08", "kernel"),
    "xsaves": ("0f c7 28", "kernel"),
    "vmptrld": ("0f c7 30", "kernel"),
    "ud0": ("0f ff c0", "length"),
    "ud1": ("0f b9 c0", "length"),
    "66 call": ("66 e8 00 00 00 00", "Intel's and AMD's"),
    "66 jmp": ("66 eb 10", "Intel's and AMD's"),
    "66 jcc": ("66 74 10", "Intel's and AMD's"),
    "66 loop": ("66 e2 10", "Intel's and AMD's"),
    "66 ret": ("66 c3", "Intel's and AMD's"),
    "66 rex.w ret imm": ("66 48 c2 08 00 90 90", "disassemblers disagree"),
    "66 call reg": ("66 ff d0", "Intel's and AMD's"),
    "66 jmp mem": ("66 ff 20", "Intel's and AMD's"),
    "lock nop": ("f0 90", "no valid instruction"),
    "lock ret": ("f0 c3", "no valid instruction"),
    "prefixed VEX": ("66 c5 f8 58 c1", "no valid instruction"),
    "undefined opcode": ("0f 0a", "no valid instruction"),
    "APX": ("d5 00 90", "APX"),
}


@pytest.mark.parametrize("text", EMULATED_OR_COPIED.values(), ids=EMULATED_OR_COPIED)
def test_what_is_emulated_can_also_run_in_a_slot(analyze: Analyze, text: str) -> None:
    """Invariant: an emulated instruction whose write faults has a slot to fault in."""
    analysis = analyze(text)
    assert analysis.strategies == (EMULATE, BOOST, STEP, INLINE)
    assert analysis.insn.raw == bytes.fromhex(text)


@pytest.mark.parametrize("text", COPIED.values(), ids=COPIED)
def test_what_runs_anywhere_is_copied(analyze: Analyze, text: str) -> None:
    """Invariant: an instruction that is position-independent is boosted or stepped, with its whole length."""
    analysis = analyze(text)
    assert analysis.strategies == (BOOST, STEP, INLINE)
    assert analysis.insn.raw == bytes.fromhex(text)
    assert analysis.landing is None


@pytest.mark.parametrize("text", ["e0 fe", "e1 fe", "e2 fe", "e3 fe", "67 e3 fe", "67 e2 10"])
def test_counted_branches_never_get_a_slot(analyze: Analyze, text: str) -> None:
    """Invariant: what has a rel8 and no longer form is emulated or stepped in place."""
    analysis = analyze(text)
    assert analysis.strategies == (EMULATE, INLINE)
    assert analysis.reach == ()
    assert "8-bit" in analysis.refusals[BOOST]
    assert "8-bit" in analysis.refusals[STEP]


@pytest.mark.parametrize("text", ["e8 00 00 00 00", "66 66 48 e8 11 11 11 11", "f2 e8 00 00 00 00"])
def test_direct_call_is_never_boosted(analyze: Analyze, text: str) -> None:
    """Invariant: no call runs in a slot without the return address being put right."""
    analysis = analyze(text)
    assert analysis.strategies == (EMULATE, STEP, INLINE)
    assert analysis.fix_ups == {FixUp.RETURN_ADDRESS}
    assert "slot's address" in analysis.refusals[BOOST]


@pytest.mark.parametrize("text", ["ff d0", "41 ff d3", "ff 15 00 00 00 00", "3e ff d0", "ff 54 24 08", "64 ff 10"])
def test_indirect_call_is_never_boosted(analyze: Analyze, text: str) -> None:
    """Invariant: no call runs in a slot without the return address being put right."""
    analysis = analyze(text)
    assert analysis.strategies == (EMULATE, STEP, INLINE)
    assert analysis.fix_ups == {FixUp.RETURN_ADDRESS}


def test_indirect_call_by_two_segments_is_not_emulated(analyze: Analyze) -> None:
    """Invariant: an operand whose address is not known here is left to the processor."""
    analysis = analyze("64 65 ff 10")
    assert analysis.strategies == (STEP, INLINE)
    assert "segment" in analysis.refusals[EMULATE]


@pytest.mark.parametrize("text", ["9d", "66 9d"])
def test_popf_never_meets_a_jump_back(analyze: Analyze, text: str) -> None:
    """Invariant: a trap flag that a program sets strikes behind the program's next instruction, not behind a slot's."""
    analysis = analyze(text)
    assert analysis.strategies == (EMULATE, STEP, INLINE)
    assert "trap flag" in analysis.refusals[BOOST]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8e d0", "as one"),
        ("0f b2 20", "as one"),
        ("0f 05", "wait"),
        ("c7 f8 00 00 00 00", "aborts"),
        ("0f 00 c8", "kernel does it"),
        ("0f 00 c0", "kernel does it"),
        ("66 41 0f 00 ca", "kernel does it"),
        ("0f 01 e0", "kernel does it"),
        ("0f 01 08", "kernel does it"),
        ("0f 01 00", "kernel does it"),
    ],
    ids=["mov ss", "lss", "syscall", "xbegin", "str", "sldt", "str r10w", "smsw", "sidt", "sgdt"],
)
def test_what_no_step_may_meet_is_boosted(analyze: Analyze, text: str, why: str) -> None:
    """Invariant: an instruction that a step would change, or wait for, runs in a slot unobserved."""
    analysis = analyze(text)
    assert analysis.strategies == (BOOST,)
    assert why in analysis.refusals[STEP]
    assert why in analysis.refusals[INLINE]


@pytest.mark.parametrize("text", ["d9 e8", "dc 05 10 00 00 00", "de c1", "db 28", "9b d9 e8"[3:]])
def test_floating_point_that_records_its_address_is_stepped(analyze: Analyze, text: str) -> None:
    """Invariant: the address of the last floating-point instruction is never a slot's."""
    analysis = analyze(text)
    assert analysis.strategies == (STEP, INLINE)
    assert analysis.fix_ups == {FixUp.X87_POINTER}


@pytest.mark.parametrize(
    ("text", "restarts", "waits"), [("0f 05", True, True), ("f3 a4", True, False), ("a4", False, False)]
)
def test_what_may_begin_again_says_so(analyze: Analyze, text: str, restarts: bool, waits: bool) -> None:
    """Invariant: who delivers a signal knows whether the instruction goes on afterwards."""
    analysis = analyze(text)
    assert (analysis.restarts, analysis.waits) == (restarts, waits)


@pytest.mark.parametrize("text", ["9c", "66 9c"])
def test_step_of_pushf_needs_a_fix_up(analyze: Analyze, text: str) -> None:
    """Invariant: a program never sees a trap flag that the tracer set."""
    analysis = analyze(text)
    assert analysis.strategies == (BOOST, STEP, INLINE)
    assert analysis.fix_ups == {FixUp.PUSHED_TRAP_FLAG}


@pytest.mark.parametrize("text", ["67 48 8b 05 10 00 00 00", "67 c5 f8 58 05 10 00 00 00"])
def test_eip_relative_operand_is_reached_from_anywhere(analyze: Analyze, origin: VirtAddr, text: str) -> None:
    """Invariant: an address of 32 bits wraps, so that a slot need not be near it."""
    analysis = analyze(text)
    assert analysis.strategies == (BOOST, STEP, INLINE)
    assert analysis.reach == (analysis.insn.end,)


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusal_says_why(analyze: Analyze, text: str, reason: str) -> None:
    """Invariant: what cannot be probed is refused, and the reason names the cause."""
    with pytest.raises(InsnRefused) as caught:
        analyze(text)
    assert reason in caught.value.reason


@pytest.mark.parametrize("opcode", bytes.fromhex("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 82 9a ce d4 d6 ea"))
def test_opcodes_that_64_bit_mode_lacks_are_refused(analyze: Analyze, opcode: int) -> None:
    """Invariant: an opcode of 32-bit mode is never taken for an instruction of 64-bit mode."""
    with pytest.raises(InsnRefused, match=f"opcode {opcode:02x} does not exist in 64-bit mode"):
        analyze(f"{opcode:02x}" + " 00" * 14)


def test_every_strategy_is_allowed_or_refused_with_a_reason(analyze: Analyze) -> None:
    """Invariant: strategies and refusals together are all strategies, and never both."""
    for text in (
        "90",
        "55",
        "c3",
        "e8 00 00 00 00",
        "ff d0",
        "9c",
        "9d",
        "e2 fe",
        "48 89 e5",
        "0f 05",
        "8e d0",
        "d9 e8",
    ):
        analysis = analyze(text)
        assert set(analysis.strategies) | set(analysis.refusals) == set(Strategy)
        assert not set(analysis.strategies) & set(analysis.refusals)
        assert all(analysis.refusals.values())


@pytest.mark.parametrize(
    ("text", "distance"),
    [("90", 1), ("f3 0f 1e fa", 4), ("2e 0f 1f 44 00 00", 6), ("eb 10", 18), ("eb fe", 0), ("e9 f0 ff ff ff", -11)],
)
def test_landing_is_where_nops_and_jumps_always_go(
    analyze: Analyze, origin: VirtAddr, text: str, distance: int
) -> None:
    """Invariant: a landing is the address that the hardware would be at."""
    assert analyze(text).landing == origin + distance


@pytest.mark.parametrize("text", ["74 10", "e8 00 00 00 00", "55", "c3", "e3 10", "ff e0", "f3 90"])
def test_nothing_else_has_a_landing(analyze: Analyze, text: str) -> None:
    """Invariant: an instruction that does anything besides going on has no landing."""
    assert analyze(text).landing is None


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("c3", []),
        ("ff e0", []),
        ("48 89 e5", [3]),
        ("48 8b 05 10 00 00 00", [0x17, 7]),
        ("ff 25 10 00 00 00", [0x16]),
        ("ff 15 10 00 00 00", [0x16, 6]),
        ("e8 10 00 00 00", [0x15, 5]),
        ("eb 10", [0x12]),
        ("74 f0", [-14, 2]),
        ("c7 05 fc ff ff ff 01 00 00 00", [6, 10]),
        ("0f 1f 05 10 00 00 00", [7]),
    ],
)
def test_reach_names_operand_target_and_way_back(
    analyze: Analyze, origin: VirtAddr, text: str, reach: list[int]
) -> None:
    """Invariant: a slot within 2 GiB of every address in reach can hold the copy."""
    assert [address - origin for address in analyze(text).reach] == reach
