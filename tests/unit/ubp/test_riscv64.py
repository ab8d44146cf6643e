"""riscv64, instruction by instruction: what is allowed, what is refused and why, what emulation and slots do.

Instructions stand as disassemblers print them: the number, the lowest byte last.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

import pytest

from tests.unit.ubp.conftest import DictMemory
from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ubp import Architecture, InsnAnalysis, Strategy, architecture
from ubpx.core.ubp.decode import RiscvDecoder
from ubpx.core.ubp.riscv64_encoding import jal, parse
from ubpx.core.ubp.riscv64_insns import InsnClass, insn_class
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from collections.abc import Hashable

AT = VirtAddr(0x2A_AAAA_1002)
NEAR, FAR = VirtAddr(0x2A_AAAA_8000), VirtAddr(0x2A_ABBB_0000)
LD, C_LDSP, RET, C_NOP = "00813503", "6522", "00008067", "0001"
NOTHING = DictMemory({})

arch: Architecture = architecture("riscv64")


def code(number: str) -> bytes:
    """The bytes of an instruction."""
    return int(number, 16).to_bytes(len(number) // 2, "little")


def analyze(number: str, address: VirtAddr = AT) -> InsnAnalysis:
    return arch.analyze(code(number), address)


def emulate(number: str, **registers: int) -> dict[str, int]:
    """What the instruction changes."""
    outcome = arch.emulate(analyze(number), {"pc": AT, **registers}, NOTHING)
    assert (outcome.writes, outcome.finished) == ((), True)
    return dict(outcome.registers)


# What is allowed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        "001000ef",  # jal ra, .+0x800
        "010080e7",  # jalr ra, 16(ra)
        RET,
        "04b50063",  # beq a0, a1, .+64
        "12345517",  # auipc a0, 0x12345
        *("a041", "8082", "9082", "c121", "f161"),  # c.j, c.jr ra, c.jalr ra, c.beqz a0, c.bnez a0
    ],
)
def test_what_depends_on_its_place_is_emulated_alone(number: str) -> None:
    """Invariant: no slot ever holds a copy of it."""
    found = analyze(number)
    assert found.strategies == (Strategy.EMULATE,)
    assert found.reach == ()
    assert set(found.refusals) == set(Strategy) - {Strategy.EMULATE}
    with pytest.raises(UsageError, match="cannot run in a slot"):
        arch.slot_code(found, NEAR)


@pytest.mark.parametrize(
    "number",
    [
        C_NOP,
        "00000013",  # nop
        "00550013",  # addi x0, a0, 5
        "00200033",  # add x0, x0, sp: a hint for the access that follows
        "0100000f",  # pause
        "00000017",  # auipc x0, 0: a landing pad
        "802e",  # c.mv x0, a1
        "1012",  # c.slli x0, 36
    ],
)
def test_what_does_nothing_lands_behind_itself(number: str) -> None:
    """Invariant: nops, and the hints that are written as arithmetic to x0."""
    found = analyze(number)
    assert found.strategies == (Strategy.EMULATE, Strategy.BOOST, Strategy.STEP)
    assert found.landing == AT + len(number) // 2
    assert emulate(number) == {"pc": found.landing}


@pytest.mark.parametrize(
    "number",
    [
        *(LD, "00a13423", "00150513", "12345537"),  # ld, sd, addi, lui
        *("00b6352f", "02c5853b", "02c5f553", "68c5f543"),  # amoadd.d, mulw, fadd.d, fmadd.s
        *("00102573", "00251073", "00302573"),  # frflags, fsrm, frcsr
        *("c0002573", "c0102573"),  # rdcycle, rdtime
        *("0505", "4515", "852e", C_LDSP, "e42a", "2508", "7139"),  # c.addi, c.li, c.mv, c.ldsp, c.sdsp, c.fld, ...
    ],
)
def test_what_runs_anywhere_has_a_copy(number: str) -> None:
    """Invariant: BOOST before STEP, a slot near its end, and nothing in place."""
    found = analyze(number)
    assert found.strategies == (Strategy.BOOST, Strategy.STEP)
    assert found.reach == (found.insn.end,)
    assert "single step" in found.refusals[Strategy.INLINE]
    with pytest.raises(UsageError, match="cannot be emulated; use BOOST or STEP"):
        arch.emulate(found, {"pc": AT}, NOTHING)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("00000073", "system call"),
        ("00100073", "breakpoint"),
        ("9002", "breakpoint"),
        *((number, "fence") for number in ("0ff0000f", "8330000f", "0000100f")),  # fence, fence.tso, fence.i
        *((number, "load-reserved") for number in ("1005a52f", "1605b52f", "18c5a52f", "1ac5b52f")),  # lr, sc
        *((number, "control register") for number in ("10002573", "c0051073")),  # csrr sstatus, csrw cycle
        *((number, "system instruction") for number in ("10200073", "10500073", "30200073")),  # sret, wfi, mret
        ("c0001073", "unimp"),
        *((number, "vector") for number in ("0d007057", "02050407")),  # vsetvli, vle8.v
        ("0000", "all bits are zero"),
        ("00000000", "all bits are zero"),
        ("2000013f", "more than 32 bits"),
        ("ffffffff", "more than 32 bits"),
        *((number, "reserved, or of an extension") for number in ("8002", "6001", "2001", "4002", "9c41")),
        ("20b52533", "reserved, or of an extension"),  # sh1add
        ("02c5d553", "reserved, or of an extension"),  # fadd.d with a rounding mode that is none
        ("04c5f553", "reserved, or of an extension"),  # fadd.h
    ],
)
def test_what_is_refused_says_why(number: str, reason: str) -> None:
    """Invariant: each has its reason, and the bytes where it is no instruction."""
    with pytest.raises(InsnRefused) as refused:
        analyze(number)
    assert reason in refused.value.reason
    assert refused.value.address == AT


def test_neither_odd_addresses_nor_torn_words() -> None:
    """Invariant: what cannot be a whole instruction is refused for that."""
    with pytest.raises(InsnRefused, match="no instruction begins at an odd address"):
        arch.analyze(code(C_NOP), VirtAddr(AT + 1))
    with pytest.raises(InsnRefused, match="nothing is readable there"):
        arch.analyze(b"", AT)
    with pytest.raises(InsnRefused, match="does not end in the 1 bytes"):
        arch.analyze(code(C_NOP)[:1], AT)
    for size in (2, 3):
        with pytest.raises(InsnRefused, match=f"does not end in the {size} bytes"):
            arch.analyze(code(LD)[:size], AT)


def test_what_follows_does_not_matter() -> None:
    """Invariant: the two bytes of a short instruction are all that is looked at."""
    assert arch.analyze(code(C_LDSP) + b"\xff\xff", AT) == analyze(C_LDSP)


def test_the_disassembler_agrees_on_every_short_instruction() -> None:
    """Invariant: but for HINTs, which capstone does not know, and for what is reserved."""
    disassembler, hints, reserved = RiscvDecoder(), 0, 0
    for number in range(1 << 16):
        raw = number.to_bytes(2, "little")
        if number & 3 == 3:
            continue
        text, encoding = disassembler.text(raw, AT), parse(raw)
        if text is None and encoding is not None:
            assert encoding.rd == 0 or encoding.word >> 20 == 0, raw.hex()  # or a shift by 0
            hints += 1
        elif text is not None and encoding is None:
            assert raw == b"\0\0" or text.startswith("c.lui"), text  # without an immediate
            reserved += 1
    assert hints > 0
    assert reserved > 0


# Emulation ----------------------------------------------------------------------------------


def test_jumps_keep_the_address_behind_them() -> None:
    """Invariant: behind the instruction as long as it is, and none in x0."""
    assert emulate("001000ef") == {"ra": AT + 4, "pc": AT + 0x800}
    assert emulate("800ff06f") == {"pc": AT - 0x1000}  # j
    assert emulate("a041") == {"pc": AT + 0x80}  # c.j
    assert emulate(RET, ra=0x1235) == {"pc": 0x1234}
    assert emulate("9502", a0=0x4000) == {"ra": AT + 2, "pc": 0x4000}  # c.jalr a0


@pytest.mark.parametrize(("number", "size"), [("010080e7", 4), ("9082", 2)])
def test_a_call_through_its_own_link_register(number: str, size: int) -> None:
    """Invariant: jalr reads the target before it writes the return address (others have jumped behind themselves)."""
    added = 16 if size == 4 else 0
    assert emulate(number, ra=0x5000) == {"ra": AT + size, "pc": 0x5000 + added}


def test_an_indirect_jump_wraps_and_is_even() -> None:
    """Invariant: the sum is of 64 bits, its lowest bit clear."""
    assert emulate("fff58567", a1=0) == {"a0": AT + 4, "pc": 2**64 - 2}  # jalr a0, -1(a1)


@pytest.mark.parametrize(
    ("number", "one", "other", "distance"),
    [
        ("04b50063", 7, 7, 64),  # beq
        ("04b50063", 7, 8, 4),
        ("00b54463", 2**64 - 1, 0, 8),  # blt: -1 < 0
        ("00b54463", 0, 2**64 - 1, 4),
        ("00b57463", 2**64 - 1, 0, 8),  # bgeu
        ("00b57463", 0, 2**64 - 1, 4),
        ("c121", 0, 9, 64),  # c.beqz a0
        ("c121", 9, 0, 2),
        ("f161", 9, 0, -64),  # c.bnez a0
        ("f161", 0, 9, 2),
    ],
)
def test_branches_compare_as_they_say(number: str, one: int, other: int, distance: int) -> None:
    """Invariant: a0 against a1 or x0, with or without signs; untaken, the address behind."""
    assert emulate(number, a0=one, a1=other) == {"pc": AT + distance}


def test_auipc_adds_to_its_own_address() -> None:
    """Invariant: the immediate has a sign."""
    assert emulate("12345517") == {"a0": AT + 0x1234_5000, "pc": AT + 4}
    assert emulate("fffff417") == {"s0": AT - 0x1000, "pc": AT + 4}


# Traps and slots ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [LD, C_LDSP])
@pytest.mark.parametrize("address", [0x1000, 0x1002])
def test_a_trap_never_tears_an_instruction(number: str, address: int) -> None:
    """Invariant: in one aligned word, as long as the instruction if that is in one; the PC stays."""
    patch = arch.trap(analyze(number, VirtAddr(address)))
    size = 2 if address % 4 else len(code(number))
    assert patch.trap in arch.trap_forms
    assert (len(patch.trap), patch.original) == (size, code(number)[:size])
    assert patch.address // 4 == (patch.address + len(patch.trap) - 1) // 4
    assert insn_class(parse(patch.trap) or pytest.fail("no instruction")) is InsnClass.BREAKPOINT
    assert patch.reported_pc == patch.address + arch.trap_advance == address


@pytest.mark.parametrize("number", [LD, C_LDSP, C_NOP])
def test_a_slot_in_reach_serves_both(number: str) -> None:
    """Invariant: the copy and the way back, then the copy and a trap; each boundary has its address."""
    found = analyze(number)
    raw, end = code(number), found.insn.end
    slot = arch.slot_code(found, NEAR)
    back = jal(0, end - (NEAR + len(raw)))
    assert back is not None
    assert slot.code == raw + back + raw + arch.trap_bytes
    assert slot.serves == (Strategy.BOOST, Strategy.STEP)
    assert slot.stop == 2 * len(raw) + 4
    assert [slot.to_origin(VirtAddr(NEAR + at)) for at, _ in slot.places] == [AT, end, AT, end]
    assert slot.to_slot(AT) == NEAR
    (jump,) = arch.flow(back, VirtAddr(NEAR + len(raw)))
    assert jump.target == end
    assert len(slot.code) <= arch.slot_size - 8  # whose it is stands behind


def test_a_slot_out_of_reach_serves_steps_alone() -> None:
    """Invariant: jal reaches 1 MiB, not a byte more."""
    found = analyze(LD)
    slot = arch.slot_code(found, FAR)
    assert slot.code == code(LD) + arch.trap_bytes
    assert (slot.stop, slot.serves) == (4, (Strategy.STEP,))
    assert slot.places == ((0, AT), (4, found.insn.end))
    furthest = VirtAddr(found.insn.end + (1 << 20) - 4)
    assert Strategy.BOOST in arch.slot_code(found, furthest).serves
    assert Strategy.BOOST not in arch.slot_code(found, VirtAddr(furthest + 2)).serves


@pytest.mark.parametrize("slot", [NEAR, FAR])
def test_a_step_ends_at_the_trap_behind_its_copy(slot: VirtAddr) -> None:
    """Invariant: before it the instruction has not run, at the trap it has, and the program sees its own addresses."""
    found = analyze(LD)
    made = arch.slot_code(found, slot)
    plan = arch.before_step(found, slot, {"pc": AT})
    assert made.stop is not None
    assert plan.slot_end == slot + made.stop
    assert made.code[plan.slot - slot :] == code(LD) + arch.trap_bytes
    assert not plan.in_place
    assert not arch.after_step(plan, {"pc": plan.slot}).finished
    done = arch.after_step(plan, {"pc": plan.slot_end})
    assert (done.finished, done.registers) == (True, {"pc": found.insn.end})
    assert arch.cancel_step(plan, {"pc": plan.slot}).registers == {"pc": AT}
    assert arch.cancel_step(plan, {"pc": plan.slot_end}).registers == {"pc": found.insn.end}
    assert arch.after_step(plan, {"pc": 0x7777}).registers == {}


def test_a_copy_that_faults_in_its_boosted_half_is_taken_back_too() -> None:
    """Invariant: both copies are of the one instruction."""
    found = analyze(LD)
    plan = arch.before_step(found, NEAR, {"pc": NEAR})
    assert plan.slot != NEAR
    assert arch.cancel_step(plan, {"pc": NEAR}).registers == {"pc": AT}


def test_leaving_a_slot_anywhere() -> None:
    """Invariant: before the instruction or behind it, never in the slot."""
    found = analyze(C_LDSP)
    made = arch.slot_code(found, NEAR)
    expected = {0: AT, 2: found.insn.end, 6: AT, 8: found.insn.end}
    assert {at: arch.leave_slot(made, {"pc": NEAR + at}).registers["pc"] for at in expected} == expected


def test_nothing_is_stepped_in_place() -> None:
    """Invariant: what stands behind the instruction is no trap."""
    with pytest.raises(UsageError, match="cannot be stepped in place"):
        arch.before_step(analyze(LD), AT, {"pc": AT})
    assert not arch.has_single_step


def test_there_are_no_jumps() -> None:
    """Invariant: none is made, and none is recognised."""
    found = analyze(LD)
    assert (arch.jump_size, arch.jump_target(code("001000ef"), AT)) == (0, None)
    with pytest.raises(InsnRefused, match="1 MiB"):
        arch.jump_targets(found, b"")
    with pytest.raises(InsnRefused, match="1 MiB"):
        arch.jump(found, NEAR, b"")


# Code, calls, frames ------------------------------------------------------------------------


def test_where_control_goes() -> None:
    """Invariant: calls return, jumps and breakpoints do not; a linear walk ends at what is none."""
    numbers = ["001000ef", "a041", RET, "010080e7", "04b50063", C_LDSP, "00100073", "0000"]
    flows = list(arch.flow(b"".join(map(code, numbers)), AT))
    seen = [(each.target, each.falls_through, each.calls) for each in flows]
    starts = [each.start for each in flows]
    assert seen == [
        (AT + 0x800, True, True),
        (starts[1] + 0x80, False, False),
        (None, False, False),
        (None, True, True),
        (starts[4] + 64, True, False),
        (None, True, False),
        (None, False, False),
    ]
    text = b"".join(map(code, numbers))
    assert list(arch.instruction_starts(text, AT)) == starts
    walked = list(arch.walk(text, AT))
    assert [length for length, _ in walked] == [each.end - each.start for each in flows]
    assert list(arch.kinds(text, [start - AT for start in starts])) == walked
    assert list(arch.kinds(text, [len(text) - 2])) == [(0, None)]


def verdict(raw: bytes) -> object:
    """Whether it is refused, and if not, what it can do."""
    try:
        return arch.analyze(raw, AT).strategies
    except InsnRefused as refused:
        return refused.reason.partition(" [")[0]


def test_instructions_of_one_kind_have_one_verdict() -> None:
    """Invariant: each major opcode with whatever tells instructions apart, and short ones; none of a kind alone."""
    tellers = itertools.product(range(3, 1 << 7, 4), range(8), range(0, 1 << 7, 3))
    long_ones = [opcode | 10 << 7 | funct3 << 12 | 11 << 15 | funct7 << 25 for opcode, funct3, funct7 in tellers]
    codes = [word.to_bytes(4, "little") for word in long_ones]
    codes += [word.to_bytes(2, "little") for word in range(0, 1 << 16, 7)]
    verdicts: dict[Hashable, object] = {}
    for raw in codes:
        for length, kind in arch.walk(raw, AT):
            assert verdicts.setdefault(kind, verdict(raw[:length])) == verdict(raw[:length]), raw.hex()
    assert len(verdicts) > 100


def test_arguments_are_in_eight_registers_and_on_the_stack() -> None:
    """Invariant: the ninth lies where the stack pointer points, at a function's entry."""
    regs = {f"a{number}": 100 + number for number in range(8)} | {"sp": 0x8000}
    memory = DictMemory({0x8000: struct.pack("<2Q", 108, 109)})
    assert [arch.argument(index, regs, memory) for index in range(10)] == list(range(100, 110))


def frame(pc: int, sp: int, *, signal: int = 11, magic: int = 0, link: int = 0, fcsr: int = 0) -> bytes:
    """Struct rt_sigframe as the kernel fills it: siginfo, ucontext, the state of the floating-point unit."""
    siginfo = signal.to_bytes(4, "little").ljust(128, b"\x77")
    head = struct.pack("<QQQiiQ", 0, link, 0x1234, 2, 0, 0) + struct.pack("<Q", 5) + b"\x99" * 120 + bytes(8)
    head = head[:40] + head[48:176] + bytes(8)  # uc_flags, uc_link, uc_stack, then the mask, and up to 176
    state = b"\x55" * 256 + struct.pack("<I", fcsr) + b"\x66" * 256 + struct.pack("<III", 0, magic, 0)
    return siginfo + head.ljust(176, b"\0") + struct.pack("<32Q", pc, 7, sp, *range(29)) + state


@pytest.mark.parametrize("magic", [0, 0x5346_5457])
def test_the_innermost_frame_tells_where_a_thread_goes_on(magic: int) -> None:
    """Invariant: with vectors' state or without; the first of several."""
    stack = b"\x01" * 40 + frame(0x5000, 0x9000, magic=magic) + frame(0x6000, 0xA000)
    assert arch.innermost_frame(stack) == (0x5000, 0x9000)
    assert arch.interrupted_pc({"sp": 0x8000}, DictMemory({0x8000: frame(0x5000, 0x9000)})) == 0x5000


@pytest.mark.parametrize(
    "stack",
    [
        b"",
        bytes(4096),
        frame(0x5001, 0x9000),
        frame(0x5000, 0x9000, signal=65),
        frame(0x5000, 0x9000, link=1),
        frame(0x5000, 0x9000, magic=1),
        frame(0x5000, 0x9000, fcsr=0x100),
        frame(0x5000, 0x9000)[:-1],
        bytes(4) + frame(0x5000, 0x9000),
    ],
)
def test_what_is_no_frame_is_not_taken_for_one(stack: bytes) -> None:
    """Invariant: a number that is no signal, links, odd addresses, other states, and what is not on whole words."""
    assert arch.innermost_frame(stack) is None
