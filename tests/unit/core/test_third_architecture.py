"""A processor that nobody makes, registered by this test alone: what the core needs of one is in ``core/ubp``.

Every instruction is four bytes: an operation, two registers, an operand. It can be stepped in place and nothing else,
as S5 has it of architectures without out-of-line support. A trap is four bytes long, and the PC stands behind it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import ClassVar

import attrs
import pytest

from tests.unit.core.conftest import PID, STACK, TEXT, World
from ubpx._errors import InsnRefused, StrategyRefused, UsageError
from ubpx.core.events import Verdict
from ubpx.core.hits import Hit
from ubpx.core.ports import Memory
from ubpx.core.probepoints import LeaseState
from ubpx.core.ubp import ARCHITECTURES, architecture
from ubpx.core.ubp.plans import (
    Emulator,
    Flow,
    InsnAnalysis,
    Outcome,
    SlotCode,
    StepPlan,
    Strategy,
    TrapPatch,
)
from ubpx.core.values import Insn, ReadableRegisters, ThreadId, VirtAddr
from ubpx.testing import FakeMemory

SIZE = 4
HALT, ADD, LOAD, BRANCH = b"\0", b"\1", b"\2", b"\3"
NAMES: Mapping[bytes, str] = {ADD: "add", LOAD: "load", BRANCH: "branch"}
NO_SLOTS = "this processor's instructions run nowhere but where they stand"


@attrs.frozen
class Tetra:
    """See Architecture."""

    name: ClassVar[str] = "tetra"
    register_names: ClassVar[tuple[str, ...]] = ("pc", "a", "b", "c", "sp")
    pc_name: ClassVar[str] = "pc"
    sp_name: ClassVar[str] = "sp"
    own_trap_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    moved_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    transient_registers: ClassVar[frozenset[str]] = frozenset()
    outside_call: ClassVar[Mapping[str, int]] = {}
    sigreturn_calls: ClassVar[frozenset[int]] = frozenset()
    word_size: ClassVar[int] = 8
    address_limit: ClassVar[int] = 1 << 40
    trap_bytes: ClassVar[bytes] = b"\xff" * SIZE
    trap_forms: ClassVar[tuple[bytes, ...]] = (trap_bytes,)
    trap_advance: ClassVar[int] = SIZE
    nop_bytes: ClassVar[bytes] = ADD + bytes(3)
    longest_insn: ClassVar[int] = SIZE
    slot_size: ClassVar[int] = 32
    slot_reach: ClassVar[int] = 1 << 20
    has_single_step: ClassVar[bool] = True
    longest_sequence: ClassVar[int] = 0
    jump_size: ClassVar[int] = 0

    def mistakable(self, memory: Memory, landing: VirtAddr) -> bool:
        return True

    def in_sequence(self, code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
        return None

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        raw = code[:SIZE]
        if len(raw) < SIZE or raw[:1] not in NAMES:
            raise InsnRefused(address, None, f"no instruction of tetra [{raw.hex(' ')}]")
        return InsnAnalysis(
            insn=Insn(address, raw, NAMES[raw[:1]]),
            strategies=(Strategy.INLINE,),
            refusals={each: NO_SLOTS for each in Strategy if each is not Strategy.INLINE},
        )

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        insn = analysis.insn
        return TrapPatch(address=insn.address, trap=self.trap_bytes, original=insn.raw, reported_pc=insn.end)

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        raise UsageError(NO_SLOTS)

    def jump_target(self, code: bytes, address: VirtAddr) -> VirtAddr | None:
        return None

    def jump_targets(self, analysis: InsnAnalysis, following: bytes) -> range:
        raise InsnRefused(analysis.insn.address, analysis.insn, NO_SLOTS)

    def jump(self, analysis: InsnAnalysis, target: VirtAddr, following: bytes) -> TrapPatch:
        raise InsnRefused(analysis.insn.address, analysis.insn, NO_SLOTS)

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
        insn = analysis.insn
        return StepPlan(
            origin=insn.address,
            slot=slot,
            origin_end=insn.end,
            slot_end=insn.end,
            repeats=False,
            fix_ups=frozenset(),
        )

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        return Outcome(registers={})

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        return Outcome(registers={})

    def leave_slot(self, code: SlotCode, regs: ReadableRegisters) -> Outcome:
        return Outcome(registers={})

    def hide_step(self, regs: ReadableRegisters) -> Outcome:
        return Outcome(registers={})

    def restarted(self, regs: ReadableRegisters) -> Mapping[str, int] | None:
        return None

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        return VirtAddr(int.from_bytes(memory.read(VirtAddr(regs["sp"]), 8), "little"))

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        return None

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        raise UsageError("tetra is not emulated")

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        return (each.start for each in self.flow(code, address))

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        for at in range(0, len(code) - SIZE + 1, SIZE):
            if code[at : at + 1] not in NAMES:
                return
            start = VirtAddr(address + at)
            target = VirtAddr(start + code[at + 3]) if code[at : at + 1] == BRANCH else None
            yield Flow(start, VirtAddr(start + SIZE), target=target)

    def walk(
        self, code: bytes, address: VirtAddr, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        return ((SIZE, code[each.start - address]) for each in self.flow(code, address))

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        return (next(self.walk(code[at : at + SIZE], VirtAddr(0)), (0, None)) for at in places)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        return regs["abc"[index]]


FIRST, SECOND, THIRD = TEXT, TEXT + SIZE, TEXT + 2 * SIZE
CODE = ADD + b"\1\2\7" + LOAD + b"\1\2\0" + BRANCH + b"\0\0\x08" + HALT * SIZE + ADD * SIZE


@pytest.fixture
def tetra(make_world: type[World], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A program for it, attached, with two threads; it is left as it was."""
    monkeypatch.setitem(ARCHITECTURES, "tetra", Tetra)  # all that there is to adding one
    memory = _program()
    before = memory.image()
    made = make_world("tetra", memory)
    yield made.attach(101)
    made.close()
    assert memory.image() == before


def _program() -> FakeMemory:
    memory = FakeMemory()
    memory.map(TEXT, CODE + bytes(0x1000 - len(CODE)), permissions="r-xp", path="/bin/program")
    memory.map(STACK, bytes(0x1000), permissions="rw-p", path="[stack]")
    return memory


def code_at(world: World, address: int) -> bytes:
    return world.memory.read(VirtAddr(address), SIZE)


def test_a_trap_is_armed_met_and_taken_out(tetra: World) -> None:
    """Invariant: the handler sees the instruction's own address and its arguments; then the instruction has run."""
    seen: list[tuple[int, int, int]] = []

    def note(hit: Hit) -> None:
        seen.append((hit.address, hit.args[1], hit.tid))

    lease = tetra.client("a").probe(SECOND, note)
    assert lease.probepoint is not None
    assert lease.probepoint.strategy is Strategy.INLINE
    assert NO_SLOTS in lease.probepoint.why
    assert code_at(tetra, SECOND) == b"\xff" * SIZE
    assert tetra.process.memory.read(VirtAddr(SECOND), SIZE) == CODE[SIZE : 2 * SIZE]
    thread = tetra.arrive(PID, SECOND, b=42)
    assert seen == [(SECOND, 42, PID)]
    assert thread.at == THIRD
    assert tetra.trap_stands(SECOND)
    assert lease.hits == 1
    lease.release()
    assert code_at(tetra, SECOND) == CODE[SIZE : 2 * SIZE]
    assert lease.state is LeaseState.RELEASED


def test_the_others_are_held_while_one_steps_in_place(tetra: World) -> None:
    """Invariant: the instruction itself stands there then, and nobody can run past it unseen."""
    tetra.client("a").probe(FIRST, lambda _: None)
    standing: list[bytes] = []
    tetra.fake.end_step(PID, pc=SECOND)
    inner = tetra.fake.step

    def step(thread: object, signal: int = 0) -> None:
        standing.append(code_at(tetra, FIRST))
        inner(thread, signal)

    tetra.fake.step = step  # type: ignore[method-assign]  # a look at what stands there
    tetra.arrive(PID, FIRST)
    assert standing == [CODE[:SIZE]]
    assert tetra.trap_stands(FIRST)
    assert [action for action, *_ in tetra.fake.actions(101, "interrupt", "resume")] == ["interrupt", "resume"]


def test_a_thread_that_faults_in_place_sees_its_own_address(tetra: World) -> None:
    """Invariant: a signal that the instruction raises is the program's, and the trap stands again."""
    hits: list[int] = []
    tetra.client("a").probe(SECOND, lambda hit: hits.append(hit.address))
    tetra.fake.signal(PID, 11, code=1, address=0x10, in_step=True)
    thread = tetra.arrive(PID, SECOND)
    assert hits == [SECOND]
    assert thread.at == SECOND
    assert tetra.trap_stands(SECOND)
    assert tetra.fake.actions(PID, "resume")[-1][2] == 11


def test_clients_share_and_hold(tetra: World) -> None:
    """Invariant: verdicts, registers and steps of clients are what they are on any processor."""
    first = tetra.client("first").probe(FIRST, lambda _: Verdict.HOLD)
    second = tetra.client("second").probe(FIRST, lambda _: None)
    thread = tetra.arrive(PID, FIRST)
    (hold,) = tetra.holds()
    assert tetra.desk.registers(ThreadId(PID))["pc"] == FIRST
    hold.release({"c": 5})
    tetra.fake.idle()
    assert (thread["c"], thread.at) == (5, SECOND)
    assert (first.hits, second.hits) == (1, 1)
    first.release()
    assert tetra.trap_stands(FIRST)


@pytest.mark.parametrize("strategy", [each for each in Strategy if each is not Strategy.INLINE])
def test_other_strategies_are_refused_with_the_reason(tetra: World, strategy: Strategy) -> None:
    """Invariant: it is the architecture's own."""
    with pytest.raises(StrategyRefused, match=NO_SLOTS):
        tetra.client("a").probe(FIRST, lambda _: None, strategy=strategy)
    assert code_at(tetra, FIRST) == CODE[:SIZE]


@pytest.mark.parametrize(
    ("address", "error", "reason"),
    [
        (FIRST + 1, "NotAnInstruction", "inside the instruction"),
        (TEXT + 3 * SIZE, "NotAnInstruction", "no instruction that is known"),
    ],
)
def test_boundaries_are_proved_by_its_own_flow(tetra: World, address: int, error: str, reason: str) -> None:
    """Invariant: neither the middle of an instruction nor data can be probed."""
    with pytest.raises(Exception, match=reason) as refused:
        tetra.client("a").probe(address, lambda _: None)
    assert type(refused.value).__name__ == error


def test_it_is_gone_with_the_test() -> None:
    """Invariant: nobody else knows of it."""
    with pytest.raises(UsageError, match="no architecture 'tetra'"):
        architecture("tetra")
