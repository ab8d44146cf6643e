"""Emulated instructions against independent formulations."""

from collections.abc import Callable, Mapping
from itertools import combinations

import pytest

from ubpx._errors import MemoryFault, NotEmulated, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import InsnAnalysis, MemoryWrite, Outcome
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]
MakeMemory = Callable[[Mapping[int, bytes]], Memory]

SP = 0x7FFE1000
NAMES = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
REGS = {name: 0x1111_0000_0000_0000 * (i + 1) % 2**64 + i for i, name in enumerate(NAMES)} | {
    "rsp": SP,
    "rbp": SP + 0x100,
    "eflags": 0x246,
}

# The 16 conditions as assembly programmers say them, over the letters of the flags that are set.
CONDITIONS: dict[str, Callable[[str], bool]] = {
    "o": lambda flags: "o" in flags,
    "no": lambda flags: "o" not in flags,
    "b": lambda flags: "c" in flags,
    "ae": lambda flags: "c" not in flags,
    "e": lambda flags: "z" in flags,
    "ne": lambda flags: "z" not in flags,
    "be": lambda flags: "c" in flags or "z" in flags,
    "a": lambda flags: "c" not in flags and "z" not in flags,
    "s": lambda flags: "s" in flags,
    "ns": lambda flags: "s" not in flags,
    "p": lambda flags: "p" in flags,
    "np": lambda flags: "p" not in flags,
    "l": lambda flags: ("s" in flags) != ("o" in flags),
    "ge": lambda flags: ("s" in flags) == ("o" in flags),
    "le": lambda flags: "z" in flags or ("s" in flags) != ("o" in flags),
    "g": lambda flags: "z" not in flags and ("s" in flags) == ("o" in flags),
}
FLAG_BITS = {"c": 0, "p": 2, "a": 4, "z": 6, "s": 7, "o": 11}


@pytest.fixture
def emulate(x86: X86_64, analyze: Analyze, memory: MakeMemory) -> Callable[..., Outcome]:
    """Emulate bytes in hexadecimal, with some registers changed and some memory mapped."""

    def run(text: str, mapped: Mapping[int, bytes] | None = None, **regs: int) -> Outcome:
        return x86.emulate(analyze(text), REGS | regs, memory(mapped or {}))

    return run


@pytest.mark.parametrize(("number", "condition"), list(enumerate(CONDITIONS)), ids=CONDITIONS)
def test_every_condition_under_every_combination_of_flags(
    emulate: Callable[..., Outcome], origin: VirtAddr, number: int, condition: str
) -> None:
    """Invariant: jcc goes where the condition's own words say (jng, jnle: OR, not AND)."""
    for size in range(len(FLAG_BITS) + 1):
        for flags in combinations(FLAG_BITS, size):
            eflags = 0x202 | sum(1 << FLAG_BITS[flag] for flag in flags)
            taken = CONDITIONS[condition]("".join(flags))
            short = emulate(f"{0x70 + number:02x} 10", eflags=eflags)
            long = emulate(f"0f {0x80 + number:02x} 00 f0 ff ff", eflags=eflags)
            assert short == Outcome(registers={"rip": origin + (0x12 if taken else 2)})
            assert long == Outcome(registers={"rip": origin + (6 - 0x1000 if taken else 6)})


@pytest.mark.parametrize(("rel8", "distance"), [("7f", 0x81), ("80", -0x7E), ("ff", 1), ("00", 2), ("fe", 0)])
def test_rel8_is_signed(emulate: Callable[..., Outcome], origin: VirtAddr, rel8: str, distance: int) -> None:
    """Invariant: a short jump goes back as well as on."""
    assert emulate(f"eb {rel8}").registers == {"rip": origin + distance}
    assert emulate(f"74 {rel8}", eflags=0x40).registers == {"rip": origin + distance}


@pytest.mark.parametrize("text", ["90", "66 90", "f3 0f 1e fa", "2e 66 0f 1f 84 00 00 00 00 00"])
def test_nop_moves_the_pc_alone(emulate: Callable[..., Outcome], analyze: Analyze, text: str) -> None:
    """Invariant: a nop changes rip and nothing else."""
    assert emulate(text) == Outcome(registers={"rip": analyze(text).insn.end})


@pytest.mark.parametrize("text", ["90", "eb 10", "e9 00 10 00 00", "f3 0f 1e fa", "67 0f 1f 05 00 00 00 00"])
def test_landing_is_what_emulation_says(emulate: Callable[..., Outcome], analyze: Analyze, text: str) -> None:
    """Invariant: the fast lane's landing and the emulation never differ."""
    assert emulate(text).registers == {"rip": analyze(text).landing}


@pytest.mark.parametrize("number", range(16), ids=NAMES)
def test_push_and_pop_of_every_register(emulate: Callable[..., Outcome], origin: VirtAddr, number: int) -> None:
    """Invariant: push stores the old value below the stack pointer, pop loads it; rsp itself included."""
    prefix, opcode = ("41 ", number - 8) if number >= 8 else ("", number)
    name, size = NAMES[number], 2 if prefix else 1
    pushed = emulate(f"{prefix}{0x50 + opcode:02x}")
    assert pushed == Outcome(
        registers={"rsp": SP - 8, "rip": origin + size},
        writes=(MemoryWrite(VirtAddr(SP - 8), REGS[name].to_bytes(8, "little")),),
    )
    popped = emulate(f"{prefix}{0x58 + opcode:02x}", {SP: bytes(range(1, 9))})
    assert popped == Outcome(registers={"rsp": SP + 8, "rip": origin + size} | {name: 0x0807060504030201})


@pytest.mark.parametrize(
    ("text", "value"),
    [("6a 7f", 0x7F), ("6a 80", 2**64 - 128), ("68 00 00 00 80", 2**64 - 2**31), ("68 44 33 22 11", 0x11223344)],
)
def test_pushed_immediate_is_sign_extended(emulate: Callable[..., Outcome], text: str, value: int) -> None:
    """Invariant: push imm stores eight bytes."""
    assert emulate(text).writes == (MemoryWrite(VirtAddr(SP - 8), value.to_bytes(8, "little")),)


@pytest.mark.parametrize(
    ("text", "target"), [("e8 00 10 00 00", 0x1005), ("e8 fb ff ff ff", 0), ("66 66 48 e8 10 00 00 00", 0x18)]
)
def test_call_pushes_the_next_address(
    emulate: Callable[..., Outcome], analyze: Analyze, origin: VirtAddr, text: str, target: int
) -> None:
    """Invariant: the callee returns behind the original call."""
    assert emulate(text) == Outcome(
        registers={"rsp": SP - 8, "rip": origin + target},
        writes=(MemoryWrite(VirtAddr(SP - 8), analyze(text).insn.end.to_bytes(8, "little")),),
    )


def test_leave_takes_the_frame_down(emulate: Callable[..., Outcome], origin: VirtAddr) -> None:
    """Invariant: leave is mov rsp, rbp; pop rbp."""
    outcome = emulate("c9", {SP + 0x100: (0x1234).to_bytes(8, "little")})
    assert outcome == Outcome(registers={"rsp": SP + 0x108, "rbp": 0x1234, "rip": origin + 1})


@pytest.mark.parametrize("text", ["58", "c9"])
def test_read_that_faults_changes_nothing(emulate: Callable[..., Outcome], text: str) -> None:
    """Invariant: what cannot be read is a MemoryFault, and the slot shows the program its own fault."""
    with pytest.raises(MemoryFault):
        emulate(text)


def test_stack_wraps_at_64_bits(emulate: Callable[..., Outcome]) -> None:
    """Invariant: every value fits its register."""
    assert emulate("50", rsp=4).registers["rsp"] == 2**64 - 4
    top = 2**64 - 8
    assert emulate("58", {top: bytes(8)}, rsp=top).registers["rsp"] == 0


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 2**32, 2**32 + 1, 2**64 - 1])
@pytest.mark.parametrize("narrow", [False, True], ids=["rcx", "ecx"])
def test_counted_branches(
    emulate: Callable[..., Outcome], origin: VirtAddr, zero: int, count: int, narrow: bool
) -> None:
    """Invariant: loop, loope, loopne count rcx (ecx under 67) down to zero; jrcxz only looks."""
    prefix, size, modulus = ("67 ", 3, 2**32) if narrow else ("", 2, 2**64)
    left = (count % modulus - 1) % modulus
    wanted = {"e0": left > 0 and not zero, "e1": left > 0 and bool(zero), "e2": left > 0}
    for opcode, taken in wanted.items():
        outcome = emulate(f"{prefix}{opcode} 10", rcx=count, eflags=0x202 | zero << 6)
        assert outcome == Outcome(registers={"rcx": left, "rip": origin + size + (0x10 if taken else 0)})
    looked = emulate(f"{prefix}e3 10", rcx=count)
    assert looked == Outcome(registers={"rip": origin + size + (0x10 if count % modulus == 0 else 0)})


@pytest.mark.parametrize("text", ["c3", "48 89 e5", "0f 05", "9c"])
def test_what_is_not_emulated_is_a_usage_error(emulate: Callable[..., Outcome], text: str) -> None:
    """Invariant: only what the analysis allows is emulated."""
    with pytest.raises(UsageError, match="cannot be emulated"):
        emulate(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ff 10", 0x5000),
        ("ff 55 f8", SP + 0x100 - 8),
        ("ff 54 24 08", SP + 8),
        ("ff 94 88 00 01 00 00", 0x5000 + 4 * 0x30 + 0x100),
        ("42 ff 14 fd 00 01 00 00", 8 * 0x700 + 0x100),
        ("43 ff 14 2e", 0x1234 + 0x7000),
        ("ff 14 25 00 60 00 00", 0x6000),
        ("67 ff 10", 0x5000),
        ("64 ff 14 25 10 00 00 00", 0x8_0000_0010),
        ("65 ff 50 10", 0x9_0000_0000 + 0x5010),
    ],
)
def test_indirect_call_finds_its_operand(
    emulate: Callable[..., Outcome], analyze: Analyze, text: str, address: int
) -> None:
    """Invariant: base, index, scale, displacement and segment are those of the instruction; rsp is that before it."""
    registers = {
        "rax": 0x5000, "rcx": 0x30, "r13": 0x7000, "r14": 0x1234, "r15": 0x700, "fs_base": 0x8_0000_0000,
        "gs_base": 0x9_0000_0000,
    }  # fmt: skip
    outcome = emulate(text, {address: (0x401234).to_bytes(8, "little")}, **registers)
    assert outcome.registers == {"rsp": SP - 8, "rip": 0x401234}
    assert outcome.writes == (MemoryWrite(VirtAddr(SP - 8), analyze(text).insn.end.to_bytes(8, "little")),)


def test_indirect_call_by_register(emulate: Callable[..., Outcome]) -> None:
    """Invariant: the register's value from before the push is the target, of rsp too."""
    assert emulate("ff d0", rax=0x5000).registers == {"rsp": SP - 8, "rip": 0x5000}
    assert emulate("41 ff d7", r15=0x7FFF_FFFF_FFFF).registers == {"rsp": SP - 8, "rip": 0x7FFF_FFFF_FFFF}
    assert emulate("ff d4").registers == {"rsp": SP - 8, "rip": SP}


@pytest.mark.parametrize("target", [0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0x1234_5678_9ABC_DEF0])
def test_call_to_what_is_no_address_faults_where_it_stands(emulate: Callable[..., Outcome], target: int) -> None:
    """Invariant: the processor does not leave a call whose target is not canonical."""
    with pytest.raises(NotEmulated, match="canonical"):
        emulate("ff d0", rax=target)
    with pytest.raises(NotEmulated, match="canonical"):
        emulate("ff 10", {0x5000: target.to_bytes(8, "little")}, rax=0x5000)


def test_popf_changes_what_a_program_may_change(emulate: Callable[..., Outcome], origin: VirtAddr) -> None:
    """Invariant: status, TF, DF, NT and AC come from the stack; IF and IOPL stay, reserved bits too."""
    outcome = emulate("9d", {SP: b"\xff" * 4 + bytes(4)}, eflags=0x200202)
    assert outcome.registers == {"rsp": SP + 8, "rip": origin + 1, "eflags": 0x244FD7 | 0x200202}
    assert emulate("9d", {SP: bytes(8)}, eflags=0xED7).registers["eflags"] == 0x202
    assert emulate("66 9d", {SP: b"\xff\xff"}, eflags=0x202).registers == {
        "rsp": SP + 2, "rip": origin + 2, "eflags": 0x4FD7,
    }  # fmt: skip


def test_what_only_the_instruction_itself_can_do_is_not_emulated(emulate: Callable[..., Outcome]) -> None:
    """Invariant: a program that steps itself, or toggles the ID flag, sees what the processor does."""
    for flags in (0x302, 0x40202):
        with pytest.raises(NotEmulated, match="steps itself"):
            emulate("55", eflags=flags)
    with pytest.raises(NotEmulated, match="ID flag"):
        emulate("9d", {SP: (0x200202).to_bytes(8, "little")}, eflags=0x202)


@pytest.mark.contract("hit-7")
def test_arguments_follow_the_calling_convention(x86: X86_64, memory: MakeMemory) -> None:
    """Invariant: six registers, then the stack behind the return address, unsigned."""
    stack = memory({SP: b"".join(n.to_bytes(8, "little") for n in (0xDEAD, 7, 2**64 - 1))})
    regs = REGS | {"rdi": 1, "rsi": 2, "rdx": 3, "rcx": 4, "r8": 5, "r9": 6}
    assert [x86.argument(i, regs, stack) for i in range(8)] == [1, 2, 3, 4, 5, 6, 7, 2**64 - 1]
    with pytest.raises(MemoryFault):
        x86.argument(8, regs, stack)


def test_instruction_starts_end_at_what_is_no_instruction(x86: X86_64, origin: VirtAddr) -> None:
    """Invariant: every start listed is proved by those before it."""
    code = bytes.fromhex("f3 0f 1e fa 55 48 89 e5 e8 00 00 00 00 c3 06 90")
    assert [start - origin for start in x86.instruction_starts(code, origin)] == [0, 4, 5, 8, 13]
    assert list(x86.instruction_starts(b"", origin)) == []
