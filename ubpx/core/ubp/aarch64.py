"""The aarch64 architecture: 64-bit little-endian Arm.

Instructions that name something relative to themselves are emulated, all others run in a slot as they are. Three
features of newer processors are not followed. Guarded control stacks: a call that is emulated leaves that stack
wrong, so a process that has one enabled must not be probed at calls and returns. Branch target identification: slots
are not guarded, and an emulated branch is none that its target could refuse; a trap in the place of a ``bti`` is
allowed there (DDI 0487, D8.4.6), and the copy is the same ``bti``. Hints of the transactional extension are refused.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import ClassVar, Final

import attrs

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp.aarch64_emulation import make_emulator
from ubpx.core.ubp.aarch64_flow import flow, walk
from ubpx.core.ubp.aarch64_frames import PC_IN_FRAME, innermost
from ubpx.core.ubp.aarch64_insns import (
    INSN_SIZE,
    NEVER_FALLS_THROUGH,
    NOP,
    TRAP,
    InsnClass,
    insn_class,
    named,
)
from ubpx.core.ubp.aarch64_refusals import NOT_AN_INSTRUCTION, refusal
from ubpx.core.ubp.aarch64_sequences import LONGEST_SEQUENCE, in_sequence
from ubpx.core.ubp.aarch64_slots import SLOT_REACH, finish_step, make_slot, plan_step
from ubpx.core.ubp.decode import CapstoneAarch64
from ubpx.core.ubp.jumpless import Jumpless
from ubpx.core.ubp.plans import Emulator, Flow, InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy, TrapPatch
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr

_ONLY_EMULATED: Final = (Strategy.EMULATE, Strategy.INLINE)
_COPIED: Final = (Strategy.BOOST, Strategy.STEP, Strategy.INLINE)
_STRATEGIES: Final[Mapping[InsnClass, tuple[Strategy, ...]]] = {
    **dict.fromkeys(InsnClass, _ONLY_EMULATED),
    **dict.fromkeys((InsnClass.NOP, InsnClass.LEAVES), (Strategy.EMULATE, *_COPIED)),
    InsnClass.PLAIN: _COPIED,
    InsnClass.VECTOR_LITERAL: (Strategy.INLINE,),
    InsnClass.EXCLUSIVE_LOAD: (Strategy.BOOST,),
}
_REASONS: Final[Mapping[Strategy, str]] = {
    Strategy.EMULATE: "ubpx does not emulate this instruction",
    Strategy.JUMP: "ubpx makes no jumps on aarch64",
    Strategy.BOOST: "it names something relative to itself, or its own address, which a copy would get wrong",
    Strategy.STEP: "it names something relative to itself, or its own address, which a copy would get wrong",
}
_MONITOR: Final = "the stop behind it clears the exclusive monitor, so that its store never succeeds"
_VECTOR_COPY: Final = "a slot that held its literal too would miss what the program writes there later"
_CLASS_REASONS: Final[Mapping[InsnClass, Mapping[Strategy, str]]] = {
    InsnClass.EXCLUSIVE_LOAD: {Strategy.STEP: _MONITOR, Strategy.INLINE: _MONITOR},
    InsnClass.VECTOR_LITERAL: {
        Strategy.EMULATE: "it loads a vector register, which is none of those that are emulated on",
        Strategy.BOOST: _VECTOR_COPY,
        Strategy.STEP: _VECTOR_COPY,
    },
}
_REFUSALS: Final[Mapping[InsnClass, Mapping[Strategy, str]]] = {
    kind: {
        strategy: {**_REASONS, **_CLASS_REASONS.get(kind, {})}[strategy]
        for strategy in Strategy
        if strategy not in allowed
    }
    for kind, allowed in _STRATEGIES.items()
}
"""Of each class, why the strategies that it does not allow are not allowed; made once, because analyses are many."""
_ARGUMENT_REGISTERS: Final = 8


@attrs.frozen
class Aarch64(Jumpless):
    """See Architecture."""

    decoder: CapstoneAarch64 = attrs.field(factory=CapstoneAarch64)

    name: ClassVar[str] = "aarch64"
    register_names: ClassVar[tuple[str, ...]] = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
    """As struct user_pt_regs has them (arch/arm64/include/uapi/asm/ptrace.h)."""
    pc_name: ClassVar[str] = "pc"
    sp_name: ClassVar[str] = "sp"
    own_trap_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    """A program cannot step itself: MDSCR_EL1.SS is the kernel's."""
    moved_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    transient_registers: ClassVar[frozenset[str]] = frozenset({"pstate"})
    outside_call: ClassVar[Mapping[str, int]] = {}
    """The kernel asks no general register whether a thread is in a system call, but a word that NT_ARM_SYSTEM_CALL
    alone shows (arch/arm64/kernel/ptrace.c)."""
    sigreturn_calls: ClassVar[frozenset[int]] = frozenset({139})
    word_size: ClassVar[int] = 8
    address_limit: ClassVar[int] = 1 << 48
    trap_bytes: ClassVar[bytes] = TRAP
    trap_forms: ClassVar[tuple[bytes, ...]] = (TRAP,)
    trap_advance: ClassVar[int] = 0
    nop_bytes: ClassVar[bytes] = NOP
    longest_insn: ClassVar[int] = INSN_SIZE
    slot_size: ClassVar[int] = 16
    slot_reach: ClassVar[int] = SLOT_REACH
    has_single_step: ClassVar[bool] = True
    longest_sequence: ClassVar[int] = LONGEST_SEQUENCE
    no_jump: ClassVar[str] = _REASONS[Strategy.JUMP]

    def mistakable(self, memory: Memory, landing: VirtAddr) -> bool:  # noqa: ARG002 - the protocol's
        """See Architecture. A trap moves no PC, and one of ours may stand anywhere."""
        return True

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """See Architecture."""
        word = self._word(code, address)
        decoded = self.decoder.decode(code, address)
        insn = None if decoded is None else Insn(address, code[:INSN_SIZE], decoded.text)
        kind = insn_class(word)
        reason = refusal(word, kind)
        if insn is None or reason is not None:
            shown = f"{reason or NOT_AN_INSTRUCTION} [{code[:INSN_SIZE].hex(' ')}]" if insn is None else str(reason)
            raise InsnRefused(address, insn, shown)
        landing = None
        if kind in (InsnClass.NOP, InsnClass.PREFETCH):
            landing = insn.end
        elif kind is InsnClass.JUMP:
            landing = VirtAddr(named(word, kind, address) or 0)
        copied = Strategy.BOOST in _STRATEGIES[kind]
        return InsnAnalysis(
            insn=insn,
            strategies=_STRATEGIES[kind],
            refusals=_REFUSALS[kind],
            reach=(insn.end,) if copied and kind not in NEVER_FALLS_THROUGH else (),
            landing=landing,
        )

    def _word(self, code: bytes, address: VirtAddr) -> int:
        if address % INSN_SIZE:
            reason = (
                f"aarch64 instructions begin at multiples of {INSN_SIZE} bytes, and code of 32-bit Arm is not handled"
            )
            raise InsnRefused(address, None, reason)
        if len(code) < INSN_SIZE:
            reason = "nothing is readable there"
            if code:
                reason = (
                    f"the instruction does not end in the {len(code)} bytes that are readable there [{code.hex(' ')}]"
                )
            raise InsnRefused(address, None, reason)
        return int.from_bytes(code[:INSN_SIZE], "little")

    def in_sequence(self, code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
        """See Architecture."""
        return in_sequence(code, start, address)

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """A ``brk #0``; a thread that ran into it shows its own address."""
        insn = analysis.insn
        return TrapPatch(address=insn.address, trap=TRAP, original=insn.raw, reported_pc=insn.address)

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """See Architecture. Raises UsageError for what no slot can hold."""
        return make_slot(analysis, insn_class(_word_of(analysis)), slot)

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:  # noqa: ARG002
        """See Architecture. Raises UsageError for what no slot can hold."""
        return plan_step(analysis, slot)

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return finish_step(plan, regs)

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture. If the copy ran after all, the same as ``after_step``."""
        return Outcome(registers={"pc": plan.origin}) if regs["pc"] == plan.slot else self.after_step(plan, regs)

    def leave_slot(self, code: SlotCode, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return Outcome(registers={"pc": code.program_pc(VirtAddr(regs["pc"]))})

    def hide_step(self, regs: ReadableRegisters) -> Outcome:  # noqa: ARG002 - the protocol's
        """See Architecture. There is nothing to be seen of a step."""
        return Outcome(registers={})

    def restarted(self, regs: ReadableRegisters) -> Mapping[str, int] | None:  # noqa: ARG002 - the protocol's
        """See Architecture. Where a signal stops a thread the kernel has put x0 and the PC back already, before the
        svc (do_signal, arch/arm64/kernel/signal.c): nothing is left to be done again.
        """
        return None

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        """See Architecture."""
        return VirtAddr(int.from_bytes(memory.read(VirtAddr(regs["sp"] + PC_IN_FRAME), 8), "little"))

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        """See Architecture."""
        return innermost(stack)

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """See Architecture."""
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """See Architecture."""
        word = _word_of(analysis)
        emulate = make_emulator(word, insn_class(word), analysis.insn.address)
        if emulate is None:
            raise UsageError(f"'{analysis.insn}' cannot be emulated; use {' or '.join(analysis.strategies)}")
        return emulate

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        """See Architecture."""
        return (each.start for each in self.flow(code, address))

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """See Architecture."""
        return flow(self.decoder, code, address)

    def walk(
        self, code: bytes, address: VirtAddr, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """See Architecture. Each encoding is a kind of its own."""
        return walk(self.decoder, code, address, named, near)

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """See Architecture."""
        return (next(self.walk(code[at : at + INSN_SIZE], VirtAddr(0)), (0, None)) for at in places)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """See Architecture. Source: Procedure Call Standard for the Arm 64-bit Architecture, section 6.8.2."""
        if index < _ARGUMENT_REGISTERS:
            return regs[f"x{index}"]
        address = VirtAddr(regs["sp"] + 8 * (index - _ARGUMENT_REGISTERS))
        return int.from_bytes(memory.read(address, 8), "little")


def _word_of(analysis: InsnAnalysis) -> int:
    return int.from_bytes(analysis.insn.raw, "little")
