"""aarch64, instruction by instruction: what is allowed, what is refused and why, what emulation and slots do."""

from __future__ import annotations

import struct

import pytest

from tests.unit.ubp.conftest import DictMemory
from ubpx._errors import InsnRefused, MemoryFault, UsageError
from ubpx.core.ubp import Architecture, InsnAnalysis, Strategy, architecture
from ubpx.core.ubp.aarch64_insns import BRANCH_TYPE, CARRY, NEGATIVE, OVERFLOW, ZERO, InsnClass, insn_class
from ubpx.core.values import VirtAddr

AT = VirtAddr(0xAAAA_0000_1004)
SLOT = VirtAddr(0xAAAA_0100_0000)
NOP, RET, ADD, SVC, LDXR, STXR = 0xD503_201F, 0xD65F_03C0, 0x9100_0400, 0xD400_0001, 0xC85F_7C20, 0xC802_7C20
LDR_W, LDR_X, LDRSW, LDR_Q, PRFM = 0x1800_0040, 0x5800_0040, 0x9800_0040, 0x9C00_0040, 0xD800_0040
NOTHING = DictMemory({})

arch: Architecture = architecture("aarch64")


def analyze(word: int, address: int = AT) -> InsnAnalysis:
    return arch.analyze(struct.pack("<I", word), VirtAddr(address))


def refused(word: int) -> str:
    with pytest.raises(InsnRefused) as caught:
        analyze(word)
    return caught.value.reason


def emulate(word: int, memory: DictMemory = NOTHING, **registers: int) -> dict[str, int]:
    """What the instruction changes."""
    outcome = arch.emulate(analyze(word), {"pc": AT, "pstate": 0, **registers}, memory)
    assert (outcome.writes, outcome.finished) == ((), True)
    return dict(outcome.registers)


# What is allowed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "strategies"),
    [
        (ADD, "BOOST STEP INLINE"),
        (0xD503_233F, "BOOST STEP INLINE"),  # paciasp
        (0xD503_245F, "BOOST STEP INLINE"),  # bti c
        (0xD53B_D040, "BOOST STEP INLINE"),  # mrs x0, tpidr_el0
        (0xD51B_4420, "BOOST STEP INLINE"),  # msr fpsr, x0
        (0xD538_0000, "BOOST STEP INLINE"),  # mrs x0, midr_el1, which the kernel answers
        (0xD50B_7420, "BOOST STEP INLINE"),  # dc zva, x0
        (0x4820_7C82, "BOOST STEP INLINE"),  # casp x0, x1, x2, x3, [x4]: no exclusive
        (NOP, "EMULATE BOOST STEP INLINE"),
        (RET, "EMULATE BOOST STEP INLINE"),
        (0xD61F_0200, "EMULATE BOOST STEP INLINE"),  # br x16
        *((word, "EMULATE INLINE") for word in (0x1400_0002, 0x9400_0002, 0x5400_0080, 0x5400_0090, 0xB400_0040)),
        *((word, "EMULATE INLINE") for word in (0x3618_0040, 0x1000_0020, 0xB000_0000, 0xD63F_0200, PRFM)),
        *((word, "EMULATE INLINE") for word in (LDR_W, LDR_X, LDRSW)),
        (LDR_Q, "INLINE"),
        (LDXR, "BOOST"),
    ],
)
def test_what_is_allowed(word: int, strategies: str) -> None:
    """Invariant: what names something relative to itself has no copy; each strategy is allowed or has its reason."""
    found = analyze(word)
    assert " ".join(found.strategies) == strategies
    assert set(found.strategies) | set(found.refusals) == set(Strategy)
    assert found.reach == (
        (AT + 4,) if Strategy.BOOST in found.strategies and insn_class(word).name != "LEAVES" else ()
    )


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (SVC, "whether a signal ends it or begins it again"),
        (0xD400_0002, "it calls the hypervisor"),
        (0xD400_0003, "it calls the secure monitor"),
        (0xD420_0000, "it is a breakpoint already"),
        (0xD440_0000, "it halts for an external debugger"),
        (0x0000_0000, "it is there to fault"),
        (0xD69F_03E0, "it returns from an exception"),
        (0xD6BF_03E0, "it returns from an exception, or from a debugger"),
        (0xD4A0_0001, "only the kernel may execute it"),
        (0xD503_42DF, "the processor's state that is the kernel's"),  # msr daifset, #2
        (0xD53B_4220, "the kernel lets no program have that system register"),  # mrs x0, daif
        (0xD518_1000, "the kernel lets no program have that system register"),  # msr sctlr_el1, x0
        (0xD53B_4500, "the kernel lets no program have that system register"),  # mrs x0, dspsr_el0
        (0xD508_871F, "only the kernel may execute it"),  # tlbi vmalle1
        (0xD503_205F, "a hint that waits"),  # wfe
        (0xD503_207F, "a hint that waits"),  # wfi
        (0xD503_203F, "a hint that waits, or that is not known here"),  # yield
        (0xD65F_0BFF, "checks a pointer's signature"),  # retaa
        (0xD71F_0801, "checks a pointer's signature"),  # braa x0, x1
        (0xD63F_081F, "checks a pointer's signature"),  # blraaz x0
        (STXR, "a trap clears the exclusive monitor"),
        (0xC822_7C61, "a trap clears the exclusive monitor"),  # stxp w2, x1, xzr, [x3]
        (0x1901_0440, "come three in a row"),  # cpyfp [x0]!, [x1]!, x2!
        (0x1941_0440, "come three in a row"),  # cpyfm
        (0x1981_0440, "come three in a row"),  # cpyfe
        (0x19C1_0440, "come three in a row"),  # setp [x0]!, x2!, x1
        (0xFFFF_FFFF, "no instruction that is known begins there"),
    ],
)
def test_what_is_refused(word: int, reason: str) -> None:
    """Invariant: each refusal says why, whether the disassembler knows the instruction or not."""
    assert reason in refused(word)


def test_bad_input_is_refused_in_words() -> None:
    """Invariant: an address between instructions, and what is cut short, are told from bad instructions."""
    for at in (1, 2, 3):
        with pytest.raises(InsnRefused, match="begin at multiples of 4 bytes, and code of 32-bit Arm"):
            analyze(ADD, AT + at)
        with pytest.raises(InsnRefused, match=f"does not end in the {at} bytes that are readable there"):
            arch.analyze(struct.pack("<I", ADD)[:at], AT)
    with pytest.raises(InsnRefused, match="nothing is readable there"):
        arch.analyze(b"", AT)
    for name, why in (
        ("aarch64_be", "programs that are big-endian"),
        ("armv8l", "32-bit Arm"),
        ("riscv32", "32-bit RISC"),
    ):
        with pytest.raises(UsageError, match=f"no architecture '{name}', for {why}"):
            architecture(name)


# Emulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        (NOP, {"pc": AT + 4}),
        (PRFM, {"pc": AT + 4}),
        (0x1400_0002, {"pc": AT + 8}),
        (0x17FF_FFFF, {"pc": AT - 4}),
        (0x9400_0002, {"pc": AT + 8, "x30": AT + 4}),
        (0xD61F_0200, {"pc": 0x1600}),
        (0xD63F_0200, {"pc": 0x1600, "x30": AT + 4}),
        (0xD63F_03C0, {"pc": 0x3000, "x30": AT + 4}),  # blr x30
        (RET, {"pc": 0x3000}),
        (0x1000_0020, {"pc": AT + 4, "x0": AT + 4}),
        (0x70FF_FFE0, {"pc": AT + 4, "x0": AT - 1}),  # adr x0, .-1
        (0xB000_0000, {"pc": AT + 4, "x0": 0xAAAA_0000_2000}),
        (0x90FF_FFE1, {"pc": AT + 4, "x1": 0xAAA9_FFFF_D000}),  # adrp x1, .-4 pages
        (0x1000_003F, {"pc": AT + 4}),  # adr xzr
    ],
)
def test_what_needs_no_condition(word: int, changes: dict[str, int]) -> None:
    """Invariant: the registers are those that the instruction leaves, and no others are named."""
    assert emulate(word, x16=0x1600, x30=0x3000) == changes


@pytest.mark.parametrize(
    ("word", "value", "taken"),
    [
        *((0xB400_0040, value, value == 0) for value in (0, 1, 1 << 40)),  # cbz x0
        *((0x3400_0040, value, not value & 0xFFFF_FFFF) for value in (0, 1, 1 << 40)),  # cbz w0
        *((0x3500_0040, value, bool(value & 0xFFFF_FFFF)) for value in (0, 1, 1 << 40)),  # cbnz w0
        *((0x3618_0040, value, not value & 8) for value in (0, 8, 1 << 35)),  # tbz w0, #3
        *((0xB718_0040, value, bool(value >> 35 & 1)) for value in (0, 8, 1 << 35)),  # tbnz x0, #35
        (0xB400_005F, 1, True),  # cbz xzr
    ],
)
def test_branches_by_a_register(word: int, value: int, *, taken: bool) -> None:
    """Invariant: the part of the register decides that the instruction names."""
    assert emulate(word, x0=value, pstate=0) == {"pc": AT + 8 if taken else AT + 4}


N, Z, C, V = NEGATIVE, ZERO, CARRY, OVERFLOW
TAKEN = {
    0x0: {Z}, 0x2: {C}, 0x4: {N}, 0x6: {V}, 0x8: {C}, 0xA: {0, N | V}, 0xC: {0, N | V},
}  # fmt: skip
"""Flags with which each even condition holds: eq, cs, mi, vs, hi, ge, gt; all others of these do not."""
NOT_TAKEN = {
    0x0: {0, N},
    0x2: {0, Z},
    0x4: {0, V},
    0x6: {0, N},
    0x8: {0, C | Z},
    0xA: {N, V},
    0xC: {N, V, Z, N | V | Z},
}


@pytest.mark.parametrize("condition", range(16))
@pytest.mark.parametrize("consistent", [0, 0x10], ids=["b", "bc"])
def test_conditions(condition: int, consistent: int) -> None:
    """Invariant: an odd condition is the contrary of the even one before it; the last two always hold."""
    word = 0x5400_0080 | consistent | condition
    if condition >= 0xE:
        assert all(emulate(word, pstate=flags) == {"pc": AT + 16} for flags in (0, N | Z | C | V))
        return
    holds, fails = TAKEN[condition & ~1], NOT_TAKEN[condition & ~1]
    if condition & 1:
        holds, fails = fails, holds
    assert {emulate(word, pstate=flags)["pc"] for flags in holds} == {AT + 16}
    assert {emulate(word, pstate=flags)["pc"] for flags in fails} == {AT + 4}


def test_literals() -> None:
    """Invariant: a word is extended by zeros, ldrsw's by its sign; what cannot be read raises."""
    memory = DictMemory({AT + 8: bytes.fromhex("fdffffff 01020304")})
    assert emulate(LDR_W, memory)["x0"] == 0xFFFF_FFFD
    assert emulate(LDR_X, memory)["x0"] == 0x0403_0201_FFFF_FFFD
    assert emulate(LDRSW, memory)["x0"] == 2**64 - 3
    assert emulate(LDR_X | 31, memory) == {"pc": AT + 4}
    with pytest.raises(MemoryFault):
        emulate(LDR_X)


def test_an_emulated_instruction_forgets_how_it_was_branched_to() -> None:
    """Invariant: in guarded code the next instruction would else be taken for a target that is none."""
    assert emulate(0x1400_0002, pstate=BRANCH_TYPE | N) == {"pc": AT + 8, "pstate": N}


def test_what_is_not_emulated_says_so() -> None:
    """Invariant: there is no emulator where EMULATE is not allowed."""
    for word in (ADD, LDR_Q, LDXR):
        with pytest.raises(UsageError, match="cannot be emulated; use "):
            arch.emulator(analyze(word))


# Traps, slots, steps ------------------------------------------------------------------------


def test_the_trap_is_as_long_as_the_instruction_and_moves_no_pc() -> None:
    """Invariant: brk #0, little-endian; the thread stands at it."""
    patch = arch.trap(analyze(ADD))
    assert (patch.trap, patch.original, patch.reported_pc) == (b"\0\0\x20\xd4", struct.pack("<I", ADD), AT)
    assert arch.trap_advance == 0


@pytest.mark.parametrize("distance", [64, -64, 2**27 - 16, 16 - 2**27])
def test_a_slot_leads_back(distance: int) -> None:
    """Invariant: the copy is the instruction, and the branch behind it leads to the next one, forwards or backwards."""
    slot = VirtAddr(AT - 4 + distance)
    made = arch.slot_code(analyze(ADD), slot)
    assert made.code[:4] == struct.pack("<I", ADD)
    back = next(arch.flow(made.code[4:], VirtAddr(slot + 4)))
    assert (back.target, back.falls_through, len(made.code)) == (AT + 4, False, 8)
    assert made.places == ((0, AT), (4, AT + 4))
    assert len(made.code) + 8 <= arch.slot_size


def test_a_slot_out_of_reach_is_refused() -> None:
    """Invariant: no branch is made that leads elsewhere."""
    for slot in (AT + 2**27 + 64, AT - 2**27 - 64):
        with pytest.raises(InsnRefused, match="more than 128 MiB away"):
            arch.slot_code(analyze(ADD), VirtAddr(slot))


def test_what_leaves_by_itself_needs_no_way_back() -> None:
    """Invariant: a return's slot holds the return alone, and may lie anywhere."""
    made = arch.slot_code(analyze(RET), VirtAddr(0x1000))
    assert (made.code, made.places) == (struct.pack("<I", RET), ((0, AT),))


def test_what_has_no_copy_says_why() -> None:
    """Invariant: neither a slot nor a step in one is made of what a copy would get wrong; in place it is stepped."""
    for word in (0x9400_0002, LDR_Q):
        with pytest.raises(UsageError, match="cannot run in a slot"):
            arch.slot_code(analyze(word), SLOT)
        with pytest.raises(UsageError, match="cannot run in a slot"):
            arch.before_step(analyze(word), SLOT, {})
        assert arch.before_step(analyze(word), AT, {}).in_place


def test_steps() -> None:
    """Invariant: behind the copy is behind the instruction; before it the step is not done, or is given up."""
    plan = arch.before_step(analyze(ADD), SLOT, {})
    assert dict(arch.after_step(plan, {"pc": SLOT + 4}).registers) == {"pc": AT + 4}
    assert not arch.after_step(plan, {"pc": SLOT}).finished
    assert dict(arch.cancel_step(plan, {"pc": SLOT}).registers) == {"pc": AT}
    assert dict(arch.cancel_step(plan, {"pc": SLOT + 4}).registers) == {"pc": AT + 4}
    away = arch.before_step(analyze(RET), SLOT, {})
    assert dict(arch.after_step(away, {"pc": 0x3000}).registers) == {}
    loops = arch.before_step(analyze(0x1400_0000), AT, {})  # b .
    assert arch.after_step(loops, {"pc": AT}).finished
    code = arch.slot_code(analyze(ADD), SLOT)
    for pc, origin in ((SLOT, AT), (SLOT + 4, AT + 4)):
        assert dict(arch.leave_slot(code, {"pc": pc}).registers) == {"pc": origin}


def test_there_are_no_jumps() -> None:
    """Invariant: whoever asks for one is told, and no code is taken for one."""
    with pytest.raises(InsnRefused, match="makes no jumps on aarch64"):
        arch.jump_targets(analyze(ADD), b"")
    assert arch.jump_target(struct.pack("<I", 0x1400_0002), AT) is None


# Frames, arguments, flow --------------------------------------------------------------------


def test_arguments() -> None:
    """Invariant: eight in registers, the others on the stack."""
    regs = {f"x{number}": 100 + number for number in range(8)} | {"sp": 0x8000}
    memory = DictMemory({0x8000: struct.pack("<2Q", 108, 109)})
    assert [arch.argument(index, regs, memory) for index in range(10)] == list(range(100, 110))


def test_frames_of_signals() -> None:
    """Invariant: the innermost frame is found by its vector record, and tells where the thread goes on."""

    def frame(pc: int, sp: int, pstate: int) -> bytes:
        head = bytes(128 + 176 + 8) + bytes(31 * 8) + struct.pack("<3Q", sp, pc, pstate)
        return head.ljust(592, b"\0") + struct.pack("<2I", 0x4650_8001, 528) + bytes(520)

    stack = frame(0x1234, 0x9000, 0x6000_0000) + frame(0x5678, 0xA000, 0)
    assert arch.innermost_frame(stack) == (0x1234, 0x9000)
    assert arch.interrupted_pc({"sp": 0x7000}, DictMemory({0x7000: stack})) == 0x1234
    assert arch.innermost_frame(frame(0x1234, 0x9000, 0x10) + frame(0x5678, 0xA000, 0)) == (0x5678, 0xA000)
    assert arch.innermost_frame(bytes(4096)) is None


def test_where_control_goes() -> None:
    """Invariant: targets, ends, calls and literals are told apart; data ends the walk."""
    words = (ADD, 0x5400_0080, 0x9400_0002, LDR_X, 0xB000_0000, 0xD65F_0BFF, RET, 0)
    found = list(arch.flow(struct.pack(f"<{len(words)}I", *words), AT))
    assert [each.start - AT for each in found] == [0, 4, 8, 12, 16, 20, 24, 28][: len(found)]
    assert [each.falls_through for each in found[:7]] == [True, True, True, True, True, False, False]
    assert [each.target for each in found[:3]] == [None, AT + 4 + 16, AT + 8 + 8]
    assert [each.calls for each in found[:3]] == [False, False, True]
    assert (found[3].operand, found[3].touches) == (AT + 12 + 8, True)
    assert (found[4].operand, found[4].touches) == (0xAAAA_0000_2000, False)
    named: list[int] = []
    near = range(AT, AT + 64)
    kinds = list(arch.walk(struct.pack("<2I", LDR_X, RET), AT, named=named, near=near))
    assert ([length for length, _ in kinds], named) == ([4, 4], [AT + 8])


def test_every_class_is_met_here() -> None:
    """Invariant: a class that is new shows in the table of what is allowed."""
    words = [ADD, NOP, PRFM, 0x1400_0002, 0x5400_0080, 0xB400_0040, 0x3618_0040, 0x9400_0002, 0xD63F_0200, RET]
    words += (0x1000_0020, 0xB000_0000, LDR_X, LDR_Q, LDXR, STXR, SVC)
    assert {insn_class(word) for word in words} == set(InsnClass)
