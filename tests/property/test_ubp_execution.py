"""Instructions run by an emulated processor: in place, boosted, stepped, and emulated by us, with equal results."""

from typing import Any

import attrs
import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const

from ubpx.core.ubp.plans import Outcome, StepPlan, Strategy
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

CODE, SLOTS, DATA, STACK, SIZE = 0x400000, 0x500000, 0x600000, 0x700000, 0x10000
ORIGIN, SLOT, TARGET = VirtAddr(CODE + 0x800), VirtAddr(SLOTS + 0x40), CODE + 0x1000
OPERAND, SP = DATA + 0x100, STACK + 0x200
WINDOW = 0x400
TRAP_FLAG = 0x100

X86 = X86_64()
GENERAL = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
NAMES = [*GENERAL, "rip", "eflags"]
IDS = [getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in NAMES]
VECTORS = [getattr(x86_const, f"UC_X86_REG_XMM{n}") for n in range(4)]


@attrs.define
class State:
    """Everything that an instruction of these tests can read or change."""

    regs: dict[str, int]
    vectors: tuple[int, ...]
    data: bytes
    stack: bytes

    def apply(self, outcome: Outcome) -> None:
        """Writes first, then registers, as a tracer does it."""
        for write in outcome.writes:
            at = write.address - STACK
            self.stack = self.stack[:at] + write.data + self.stack[at + len(write.data) :]
        self.regs |= outcome.registers

    def read(self, address: int, size: int) -> bytes:
        """As a Memory; emulation reads the stack, and where a call's target is."""
        return self.stack[address - STACK :][:size] if address >= STACK else self.data[address - DATA :][:size]

    def write(self, address: int, data: bytes) -> None:
        """Never called: emulation returns what is to be written."""
        raise AssertionError(f"emulation wrote {data!r} at {address:#x}")

    patch = write


class Processor:
    """One x86_64 thread in unicorn; its owner is the test that runs."""

    def __init__(self) -> None:
        self.uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        for start in (CODE, SLOTS, DATA, STACK):
            self.uc.mem_map(start, SIZE)
            self.uc.mem_write(start, b"\x90" * SIZE)

    def load(self, state: State, code: bytes, address: int) -> None:
        self.uc.mem_write(address, code)
        self.uc.ctl_flush_tb()
        self.uc.mem_write(DATA, state.data)
        self.uc.mem_write(STACK, state.stack)
        for number, name in zip(IDS, NAMES, strict=True):
            self.uc.reg_write(number, state.regs[name])
        for number, value in zip(VECTORS, state.vectors, strict=True):
            self.uc.reg_write(number, value)

    def state(self) -> State:
        return State(
            regs={name: self.uc.reg_read(number) for number, name in zip(IDS, NAMES, strict=True)},
            vectors=tuple(self.uc.reg_read(number) for number in VECTORS),
            data=bytes(self.uc.mem_read(DATA, WINDOW)),
            stack=bytes(self.uc.mem_read(STACK, WINDOW)),
        )

    def step(self) -> int:
        """One instruction, or one iteration of a repeated one; the new rip."""
        self.uc.emu_start(self.uc.reg_read(x86_const.UC_X86_REG_RIP), 0, count=1)
        rip: int = self.uc.reg_read(x86_const.UC_X86_REG_RIP)
        return rip


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor()


def near(address: int, end_of_disp: int, behind: int = 0) -> bytes:
    """The disp32 of an instruction at ORIGIN whose disp32 ends after ``end_of_disp`` bytes."""
    return (address - (ORIGIN + end_of_disp + behind)).to_bytes(4, "little", signed=True)


def on_operand(before: str, behind: str = "", address: int = OPERAND) -> bytes:
    """An instruction with a rip-relative operand, around its displacement."""
    head, tail = bytes.fromhex(before), bytes.fromhex(behind)
    return head + near(address, len(head) + 4, len(tail)) + tail


registers = st.integers(0, 7)
rex_w = st.integers(0x48, 0x4F)
alu = st.builds(
    lambda rex, operation, form, modrm: bytes((rex, operation << 3 | form, 0xC0 | modrm)),
    rex_w, registers, st.sampled_from([0, 1, 2, 3]), st.integers(0, 63),
)  # fmt: skip
alu_immediate = st.builds(
    lambda rex, operation, register, value: bytes((rex, 0x83, 0xC0 | operation << 3 | register, value)),
    rex_w, registers, registers, st.integers(0, 255),
)  # fmt: skip
alu_on_operand = st.builds(
    lambda rex, operation, form, register: on_operand(f"{rex:02x}{operation << 3 | form:02x}{register << 3 | 5:02x}"),
    rex_w, registers, st.sampled_from([0, 1, 2, 3]), registers,
)  # fmt: skip
other_on_operand = st.sampled_from([
    on_operand("48 8b 05"), on_operand("48 8d 15"), on_operand("c7 05", "44 33 22 11"), on_operand("66 c7 05", "22 11"),
    on_operand("80 3d", "7f"), on_operand("f0 48 ff 05"), on_operand("d3 25"), on_operand("48 d3 05"),
    on_operand("48 0f c7 0d"), on_operand("48 0f b1 0d"), on_operand("48 f7 25"), on_operand("48 69 0d", "10 00 00 00"),
    on_operand("0f ba 2d", "05"), on_operand("0f 10 05"), on_operand("0f 11 0d"), on_operand("66 0f 3a 22 05", "01"),
    on_operand("ff 35"), on_operand("8f 05"), on_operand("0f 94 05"), on_operand("66 0f 58 1d"),
])  # fmt: skip
stack_insns = st.one_of(
    st.builds(lambda rex, opcode: bytes((rex, opcode)), st.sampled_from([0x40, 0x41]), st.integers(0x50, 0x5F)),
    st.integers(0, 255).map(lambda value: bytes((0x6A, value))),
    st.binary(min_size=4, max_size=4).map(lambda value: b"\x68" + value),
    st.sampled_from([bytes.fromhex(text) for text in ("c9", "66 50", "66 68 22 11", "ff 34 24", "0f a0")]),
)
rel8 = st.integers(0, 255)
branches = st.one_of(
    st.builds(lambda number, rel: bytes((0x70 + number, rel)), st.integers(0, 15), rel8),
    st.builds(
        lambda number, rel: bytes((0x0F, 0x80 + number)) + rel.to_bytes(4, "little", signed=True),
        st.integers(0, 15), st.integers(-0x700, 0x700),
    ),
    st.builds(
        lambda prefix, opcode, rel: bytes((*prefix, opcode, rel)),
        st.sampled_from([(), (0x67,)]), st.integers(0xE0, 0xE3), rel8,
    ),
    st.builds(lambda rel: bytes((0xEB, rel)), rel8),
    st.builds(
        lambda prefix, opcode, rel: bytes((*prefix, opcode)) + rel.to_bytes(4, "little", signed=True),
        st.sampled_from([(), (0x66, 0x66, 0x48), (0x3E,)]), st.sampled_from([0xE8, 0xE9]), st.integers(-0x700, 0x700),
    ),
    st.sampled_from([bytes.fromhex(text) for text in ("c3", "c2 08 00", "f3 c3", "41 ff d3", "41 ff e3", "ff 14 24")]),
    st.sampled_from([on_operand("ff 15", address=OPERAND + 0x40), on_operand("ff 25", address=OPERAND + 0x40)]),
)  # fmt: skip
others = st.sampled_from([
    bytes.fromhex(text) for text in (
        "90", "66 90", "f3 0f 1e fa", "2e 66 0f 1f 84 00 00 00 00 00", "48 98", "48 99", "9b", "0f a2", "66 0f ef c1",
        "f2 48 0f 38 f1 c1", "48 0f c8", "9e", "f9", "fc", "d7",
    )
])  # fmt: skip
STRINGS = [bytes.fromhex(text) for text in ("f3 a4", "f3 48 ab", "f2 ae", "f3 a6", "48 a5")]
PUSHFS = [bytes.fromhex(text) for text in ("9c", "66 9c")]

instructions = st.one_of(
    alu,
    alu_immediate,
    alu_on_operand,
    other_on_operand,
    stack_insns,
    branches,
    others,
    st.sampled_from(STRINGS),
    st.sampled_from(PUSHFS),
)


@st.composite
def arrivals(draw: st.DrawFn, strategy: Strategy) -> tuple[bytes, State]:
    """An instruction, and a thread before it: what it follows as a pointer is mapped, all else is anything."""
    code = draw(instructions.filter(lambda code: strategy in X86.analyze(code, ORIGIN).strategies))
    regs = dict(zip(GENERAL, draw(st.lists(st.integers(0, 2**64 - 1), min_size=16, max_size=16)), strict=True))
    regs |= {"rsp": SP, "rbp": SP + 0x100, "rsi": OPERAND + 0x100, "rdi": OPERAND + 0x200, "rbx": DATA, "r11": TARGET}
    regs |= {"rip": ORIGIN, "eflags": 0x202 | draw(st.integers(0, 2**12 - 1)) & 0x8D5}  # CF PF AF ZF SF OF
    if code in STRINGS:
        regs["rcx"] = draw(st.integers(0, 3))
    elif draw(st.booleans()):
        regs["rcx"] = draw(st.sampled_from([0, 1, 2, 2**32, 2**32 + 1]))
    pattern = draw(st.binary(min_size=64, max_size=64))
    data, stack = bytearray(pattern * (WINDOW // 64)), bytearray(pattern[::-1] * (WINDOW // 64))
    data[0x140:0x148] = stack[SP - STACK : SP + 8 - STACK] = TARGET.to_bytes(8, "little")
    vectors = tuple(int.from_bytes(pattern[i * 16 : i * 16 + 16], "little") for i in range(4))
    return code, State(regs=regs, vectors=vectors, data=bytes(data), stack=bytes(stack))


def run_in_place(processor: Processor, code: bytes, before: State) -> State:
    """What the hardware does at the program's own address."""
    processor.load(before, code, ORIGIN)
    while processor.step() == ORIGIN and code in STRINGS:
        pass
    return processor.state()


def stepped(processor: Processor, plan: StepPlan, code: bytes, before: State, *, shows_trap_flag: bool) -> State:
    """The thread after it has stepped ``code`` where the plan says, with all put right."""
    processor.load(attrs.evolve(before, regs=before.regs | {"rip": plan.slot}), code, plan.slot)
    while True:
        processor.step()
        after = processor.state()
        if shows_trap_flag:  # as a real step's pushf does: here no processor flag is set
            at = after.regs["rsp"] - STACK + 1
            after.stack = after.stack[:at] + bytes((after.stack[at] | TRAP_FLAG >> 8,)) + after.stack[at + 1 :]
        outcome = X86.after_step(plan, after.regs)
        after.apply(outcome)
        if outcome.finished:
            return after


@settings(deadline=None)  # a loaded machine is no failure
@given(arrival=arrivals(Strategy.BOOST))
def test_boosted_copy_does_what_the_original_does(processor: Processor, arrival: tuple[bytes, State]) -> None:
    """Invariant: registers, flags, vectors, data, stack and way on are the same out of line as in place."""
    code, before = arrival
    expected = run_in_place(processor, code, before)
    slot = X86.slot_code(X86.analyze(code, ORIGIN), SLOT)
    processor.load(attrs.evolve(before, regs=before.regs | {"rip": SLOT}), slot.code, SLOT)
    while SLOT <= processor.step() < SLOT + X86.slot_size:
        pass
    assert processor.state() == expected


@settings(deadline=None)  # a loaded machine is no failure
@given(arrival=arrivals(Strategy.STEP), shows_trap_flag=st.booleans())
def test_stepped_copy_does_what_the_original_does(
    processor: Processor, arrival: tuple[bytes, State], shows_trap_flag: bool
) -> None:
    """Invariant: after the fix-ups of a single step nothing shows that the instruction ran elsewhere."""
    code, before = arrival
    expected = run_in_place(processor, code, before)
    analysis = X86.analyze(code, ORIGIN)
    plan = X86.before_step(analysis, SLOT, before.regs)
    copy = X86.slot_code(analysis, SLOT).code
    assert stepped(processor, plan, copy, before, shows_trap_flag=shows_trap_flag and code in PUSHFS) == expected


@settings(deadline=None)  # a loaded machine is no failure
@given(arrival=arrivals(Strategy.INLINE), shows_trap_flag=st.booleans())
def test_step_in_place_does_what_the_original_does(
    processor: Processor, arrival: tuple[bytes, State], shows_trap_flag: bool
) -> None:
    """Invariant: after the fix-ups of a single step in place nothing shows that the instruction was stepped."""
    code, before = arrival
    expected = run_in_place(processor, code, before)
    plan = X86.before_step(X86.analyze(code, ORIGIN), ORIGIN, before.regs)
    assert stepped(processor, plan, code, before, shows_trap_flag=shows_trap_flag and code in PUSHFS) == expected


@settings(deadline=None)  # a loaded machine is no failure
@given(arrival=arrivals(Strategy.EMULATE))
def test_emulation_does_what_the_original_does(processor: Processor, arrival: tuple[bytes, State]) -> None:
    """Invariant: what we do instead of the processor is what the processor does."""
    code, before = arrival
    expected = run_in_place(processor, code, before)
    after = attrs.evolve(before, regs=dict(before.regs))
    after.apply(X86.emulate(X86.analyze(code, ORIGIN), before.regs, after))
    assert after == expected
