"""What x86_64 and i386 have in common: how a probe gets past an instruction, decided and done on values.

Two features of newer processors are not followed here. Indirect branch tracking: a trap that
replaces an endbr64 is no endbr64, but mainline kernels do not turn the tracking on for user space.
Shadow stacks: a call that is emulated or stepped leaves the program's stack right and the shadow
stack wrong, so a process with one (``x86_Thread_features: shstk`` in /proc/PID/status) must not be
probed at calls.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import ClassVar, Final

import attrs

from ubpx._errors import InsnRefused, MemoryFault, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import LONGEST_INSN, Decoder
from ubpx.core.ubp.encoding import Encoding, parse
from ubpx.core.ubp.flow import flow
from ubpx.core.ubp.plans import (
    Emulator,
    FixUp,
    Flow,
    InsnAnalysis,
    Outcome,
    SlotCode,
    StepPlan,
    Strategy,
    TrapPatch,
)
from ubpx.core.ubp.x86 import RESUME_FLAG, TRAP, TRAP_FLAG, InsnClass, branch_target, insn_class, is_repeated_string
from ubpx.core.ubp.x86_emulation import make_emulator
from ubpx.core.ubp.x86_jumps import JUMP_SIZE, jump, jump_target, targets
from ubpx.core.ubp.x86_operands import Mode, operand_address
from ubpx.core.ubp.x86_refusals import refusal, undecodable
from ubpx.core.ubp.x86_slots import COUNTED_REFUSAL, make_slot, reach
from ubpx.core.ubp.x86_steps import finish_step, hide, leave, plan_step, restarted, unfinished
from ubpx.core.values import PAGE_SIZE, Insn, ReadableRegisters, VirtAddr

_COPIED: Final = (Strategy.BOOST, Strategy.STEP, Strategy.INLINE)
_STRATEGIES: Final[Mapping[InsnClass, tuple[Strategy, ...]]] = {
    **dict.fromkeys(InsnClass, (Strategy.EMULATE, *_COPIED)),
    **dict.fromkeys((InsnClass.PLAIN, InsnClass.LEAVES, InsnClass.PUSH_FLAGS), _COPIED),
    **dict.fromkeys(
        (
            InsnClass.STACK_SEGMENT,
            InsnClass.SYSTEM_CALL,
            InsnClass.SYSENTER,
            InsnClass.TRANSACTION,
            InsnClass.KERNEL_EMULATED,
        ),
        (Strategy.BOOST,),
    ),
    **dict.fromkeys(
        (InsnClass.CALL, InsnClass.INDIRECT_CALL, InsnClass.POP_FLAGS),
        (Strategy.EMULATE, Strategy.STEP, Strategy.INLINE),
    ),
    InsnClass.COUNTED_BRANCH: (Strategy.EMULATE, Strategy.INLINE),
    InsnClass.X87: (Strategy.STEP, Strategy.INLINE),
}

_REFUSALS: Final[Mapping[Strategy, str]] = {
    Strategy.EMULATE: "ubpx does not emulate this instruction",
    Strategy.JUMP: "only a place that threads come by often has a jump, later",
}
_CALL_REFUSAL: Final = "a call in a slot pushes the slot's address, which only a step can put right"
_WAITS_REFUSAL: Final = "it may wait in the kernel, for a thread that is held meanwhile or for a signal kept back"
_AS_ONE_REFUSAL: Final = "the processor runs it and the next instruction as one, so that it cannot be stepped alone"
_UMIP_REFUSAL: Final = "where the kernel does it instead of the processor, a step runs the next instruction too"
_ABORT_REFUSAL: Final = "a step aborts the transaction at once"
_CLASS_REFUSALS: Final[Mapping[InsnClass, Mapping[Strategy, str]]] = {
    InsnClass.COUNTED_BRANCH: {Strategy.BOOST: COUNTED_REFUSAL, Strategy.STEP: COUNTED_REFUSAL},
    InsnClass.CALL: {Strategy.BOOST: _CALL_REFUSAL},
    InsnClass.INDIRECT_CALL: {Strategy.BOOST: _CALL_REFUSAL},
    InsnClass.POP_FLAGS: {Strategy.BOOST: "the slot's jump back would meet a trap flag that it sets"},
    InsnClass.SYSTEM_CALL: {Strategy.STEP: _WAITS_REFUSAL, Strategy.INLINE: _WAITS_REFUSAL},
    InsnClass.SYSENTER: {Strategy.STEP: _WAITS_REFUSAL, Strategy.INLINE: _WAITS_REFUSAL},
    InsnClass.STACK_SEGMENT: {Strategy.STEP: _AS_ONE_REFUSAL, Strategy.INLINE: _AS_ONE_REFUSAL},
    InsnClass.TRANSACTION: {Strategy.STEP: _ABORT_REFUSAL, Strategy.INLINE: _ABORT_REFUSAL},
    InsnClass.KERNEL_EMULATED: {Strategy.STEP: _UMIP_REFUSAL, Strategy.INLINE: _UMIP_REFUSAL},
    InsnClass.X87: {Strategy.BOOST: "the slot's address would stay in the floating-point unit (FIP)"},
}

_REASONS: Final[Mapping[InsnClass, Mapping[Strategy, str]]] = {
    kind: {
        strategy: ({**_REFUSALS, **_CLASS_REFUSALS.get(kind, {})})[strategy]
        for strategy in Strategy
        if strategy not in _STRATEGIES[kind]
    }
    for kind in InsnClass
}
"""Of each class, why the strategies that it does not allow are not allowed; made once, because analyses are many."""

_STEPPED_CALL: Final = (Strategy.STEP, Strategy.INLINE)
_STEPPED_CALL_REASONS: Final[Mapping[Strategy, str]] = {
    **_REASONS[InsnClass.INDIRECT_CALL],
    Strategy.EMULATE: "the segment or the form of its operand is not followed here",
}

_FIX_UPS: Final[Mapping[InsnClass, frozenset[FixUp]]] = {
    InsnClass.CALL: frozenset({FixUp.RETURN_ADDRESS}),
    InsnClass.INDIRECT_CALL: frozenset({FixUp.RETURN_ADDRESS}),
    InsnClass.PUSH_FLAGS: frozenset({FixUp.PUSHED_TRAP_FLAG}),
    InsnClass.SYSTEM_CALL: frozenset({FixUp.LINK_REGISTERS}),
    InsnClass.X87: frozenset({FixUp.X87_POINTER}),
}
_NO_FIX_UP: Final[frozenset[FixUp]] = frozenset()
_WAITING: Final = frozenset({InsnClass.SYSTEM_CALL, InsnClass.SYSENTER})
_FACTS: Final = {
    kind: (_STRATEGIES[kind], _REASONS[kind], _FIX_UPS.get(kind, _NO_FIX_UP), kind in _WAITING) for kind in InsnClass
}
_ONE_BYTE: Final = frozenset({0xC3, 0xC9, 0xCB, 0xCC, 0xCE, 0xCF, 0xD7, 0xF1, 0xF5, 0xF8, 0xF9, 0xFC, 0xFD}).union(
    range(0x40, 0x62), range(0x6C, 0x70), range(0x90, 0xA0), range(0xA4, 0xA8), range(0xAA, 0xB0),
    (0x27, 0x2F, 0x37, 0x3F),
)  # fmt: skip
"""Opcodes that are a whole instruction, in either mode, and can be executed by a program."""
_LANDING: Final = frozenset({InsnClass.JUMP, InsnClass.NOP})
_COMPLETIONS: Final = (b"\x00", b"\x58")  # after most beginnings one of them is a valid rest; 58 is a vector's add


@attrs.frozen
class X86:
    """See Architecture; what is different between the modes is in the subclasses."""

    decoder: Decoder

    mode: ClassVar[Mode]
    trap_bytes: ClassVar[bytes] = TRAP
    trap_forms: ClassVar[tuple[bytes, ...]] = (TRAP,)
    trap_advance: ClassVar[int] = len(TRAP)
    nop_bytes: ClassVar[bytes] = b"\x90"
    longest_insn: ClassVar[int] = LONGEST_INSN
    slot_size: ClassVar[int] = 64
    slot_reach: ClassVar[int] = 2**31
    has_single_step: ClassVar[bool] = True
    longest_sequence: ClassVar[int] = 0
    jump_size: ClassVar[int] = JUMP_SIZE
    own_trap_flag: ClassVar[tuple[str, int]] = ("eflags", TRAP_FLAG)
    moved_flag: ClassVar[tuple[str, int]] = ("eflags", RESUME_FLAG)

    def mistakable(self, memory: Memory, landing: VirtAddr) -> bool:
        """See Architecture."""
        if landing % PAGE_SIZE == 0:
            return True
        try:
            return memory.read(landing - 1, 1)[0] in _ONE_BYTE
        except MemoryFault:
            return True

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """See Architecture."""
        decoded = self.decoder.decode(code, address)
        if decoded is None:
            raise InsnRefused(address, None, self._why_undecodable(code, address))
        insn = Insn(address, code[: decoded.length], decoded.text)
        encoding = parse(insn.raw, self.mode.bits)
        kind = insn_class(encoding)
        reason = refusal(encoding, kind)
        if reason is not None:
            raise InsnRefused(address, insn, reason)
        strategies, refusals, fix_ups, waits = _FACTS[kind]
        if kind is InsnClass.INDIRECT_CALL and not self._can_emulate(encoding, insn.end):
            strategies, refusals = _STEPPED_CALL, _STEPPED_CALL_REASONS
        return InsnAnalysis(
            insn=insn,
            strategies=strategies,
            refusals=refusals,
            reach=reach(encoding, kind, insn),
            landing=_landing(encoding, kind, insn) if kind in _LANDING else None,
            fix_ups=fix_ups,
            restarts=kind is InsnClass.SYSTEM_CALL or is_repeated_string(encoding),
            waits=waits,
        )

    def _can_emulate(self, call: Encoding, end: VirtAddr) -> bool:
        return call.on_register or operand_address(call, self.mode, end) is not None

    def _why_undecodable(self, code: bytes, address: VirtAddr) -> str:
        if not code:
            return "nothing is readable there"
        longer = (code.ljust(LONGEST_INSN, padding) for padding in _COMPLETIONS)
        if any(self.decoder.decode(attempt, address) is not None for attempt in longer):
            return f"the instruction does not end in the {len(code)} bytes that are readable there [{code.hex(' ')}]"
        return f"{undecodable(code, self.mode.bits)} [{code[:LONGEST_INSN].hex(' ')}]"

    def in_sequence(self, code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:  # noqa: ARG002 - the protocol's
        """See Architecture. A transaction's instructions cannot be told from others, nor where it begins."""
        return None

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """An int3; a thread that ran into it shows the address behind it."""
        insn = analysis.insn
        return TrapPatch(
            address=insn.address,
            trap=TRAP,
            original=insn.raw[: len(TRAP)],
            reported_pc=VirtAddr(insn.address + self.trap_advance),
        )

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """See Architecture. Raises UsageError for what no slot can hold (loop, jrcxz)."""
        return make_slot(parse(analysis.insn.raw, self.mode.bits), analysis.insn, slot)

    def jump_target(self, code: bytes, address: VirtAddr) -> VirtAddr | None:
        """See Architecture."""
        return jump_target(code, address, self.mode.bits)

    def jump_targets(self, analysis: InsnAnalysis, following: bytes) -> range:
        """See Architecture."""
        return targets(parse(analysis.insn.raw, self.mode.bits), analysis.insn, following)

    def jump(self, analysis: InsnAnalysis, target: VirtAddr, following: bytes) -> TrapPatch:
        """See Architecture."""
        return jump(analysis.insn, target, following)

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
        """See Architecture. Raises UsageError for what no slot can hold (loop, jrcxz)."""
        return plan_step(parse(analysis.insn.raw, self.mode.bits), analysis, slot, regs)

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return finish_step(plan, regs, self.mode)

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture. If the copy ran after all, the same as ``after_step``."""
        return unfinished(plan, regs, self.mode) if regs[self.mode.pc] == plan.slot else self.after_step(plan, regs)

    def leave_slot(self, code: SlotCode, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return leave(code, regs, self.mode)

    def hide_step(self, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return hide(regs, self.mode)

    def restarted(self, regs: ReadableRegisters) -> Mapping[str, int] | None:
        """See Architecture."""
        return restarted(regs, self.mode)

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """See Architecture."""
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """See Architecture."""
        emulate = make_emulator(parse(analysis.insn.raw, self.mode.bits), analysis.insn.end, self.mode)
        if emulate is None:
            raise UsageError(f"'{analysis.insn}' cannot be emulated; use {' or '.join(analysis.strategies)}")
        return emulate

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        """See Architecture."""
        start = address
        for length, _ in self.decoder.walk(code, address):
            yield start
            start = VirtAddr(start + length)

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """See Architecture."""
        return flow(self.decoder, self.mode.bits, code, address)

    def walk(
        self, code: bytes, address: VirtAddr, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """See Architecture."""
        return self.decoder.walk(code, address, named=named, near=near)

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """See Architecture."""
        return self.decoder.kinds(code, places)


def _landing(encoding: Encoding, kind: InsnClass, insn: Insn) -> VirtAddr:
    return VirtAddr(branch_target(encoding, insn.end)) if kind is InsnClass.JUMP else insn.end
