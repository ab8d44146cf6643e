"""The x86_64 architecture: decides how a probe gets past an instruction, and does it on values.

Two features of newer processors are not followed here. Indirect branch tracking: a trap that
replaces an endbr64 is no endbr64, but mainline kernels do not turn the tracking on for user space.
Shadow stacks: a call that is emulated or stepped leaves the program's stack right and the shadow
stack wrong, so a process with one (``x86_Thread_features: shstk`` in /proc/PID/status) must not be
probed at calls.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

import attrs

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import LONGEST_INSN, Decoder, default_decoder, instruction_lengths
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, parse
from ubpx.core.ubp.plans import (
    Emulator,
    FixUp,
    InsnAnalysis,
    MemoryWrite,
    Outcome,
    SlotCode,
    StepPlan,
    Strategy,
    TrapPatch,
)
from ubpx.core.ubp.x86 import (
    TRAP,
    TRAP_FLAG,
    InsnClass,
    branch_target,
    insn_class,
    is_repeated_string,
    refusal,
    relative,
    undecodable,
)
from ubpx.core.ubp.x86_64_emulation import EMULATORS
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr

_COPIED: Final = (Strategy.BOOST, Strategy.STEP, Strategy.INLINE)
_STRATEGIES: Final[Mapping[InsnClass, tuple[Strategy, ...]]] = {
    **dict.fromkeys(InsnClass, (Strategy.EMULATE, *_COPIED)),
    **dict.fromkeys((InsnClass.PLAIN, InsnClass.LEAVES, InsnClass.PUSH_FLAGS), _COPIED),
    InsnClass.COUNTED_BRANCH: (Strategy.EMULATE, Strategy.INLINE),
    InsnClass.CALL: (Strategy.EMULATE, Strategy.STEP, Strategy.INLINE),
    InsnClass.INDIRECT_CALL: (Strategy.STEP, Strategy.INLINE),
}

_REFUSALS: Final[Mapping[Strategy, str]] = {
    Strategy.EMULATE: "ubpx does not emulate this instruction",
    Strategy.JUMP: "compiled stubs are not part of this version",
}
_EIP_REFUSAL: Final = "its operand is relative to eip, which cannot be had from a slot"
_EIP_REFUSALS: Final = dict.fromkeys((Strategy.EMULATE, Strategy.BOOST, Strategy.STEP), _EIP_REFUSAL)
_CALL_REFUSAL: Final = "a call in a slot pushes the slot's address, which only a step can put right"
_COUNTED_REFUSAL: Final = "its 8-bit displacement does not reach the program from a slot"
_CLASS_REFUSALS: Final[Mapping[InsnClass, Mapping[Strategy, str]]] = {
    InsnClass.COUNTED_BRANCH: {Strategy.BOOST: _COUNTED_REFUSAL, Strategy.STEP: _COUNTED_REFUSAL},
    InsnClass.CALL: {Strategy.BOOST: _CALL_REFUSAL},
    InsnClass.INDIRECT_CALL: {Strategy.BOOST: _CALL_REFUSAL},
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

_FIX_UPS: Final[Mapping[InsnClass, frozenset[FixUp]]] = {
    InsnClass.CALL: frozenset({FixUp.RETURN_ADDRESS}),
    InsnClass.INDIRECT_CALL: frozenset({FixUp.RETURN_ADDRESS}),
    InsnClass.PUSH_FLAGS: frozenset({FixUp.PUSHED_TRAP_FLAG}),
}

_RELATIVE: Final = frozenset({InsnClass.JUMP, InsnClass.BRANCH, InsnClass.CALL})
_NEVER_FALLS_THROUGH: Final = frozenset(
    {InsnClass.JUMP, InsnClass.CALL, InsnClass.INDIRECT_CALL, InsnClass.LEAVES}
)  # fmt: skip
_COMPLETIONS: Final = (b"\x00", b"\x58")  # after most beginnings one of them is a valid rest; 58 is a vector's add
_ARGUMENT_REGISTERS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


@attrs.frozen
class X86_64:  # noqa: N801  (the processor's own name)
    """See Architecture."""

    decoder: Decoder = attrs.field(factory=default_decoder)

    name: ClassVar[str] = "x86_64"
    register_names: ClassVar[tuple[str, ...]] = (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    """As struct user_regs_struct has them."""
    pc_name: ClassVar[str] = "rip"
    trap_bytes: ClassVar[bytes] = TRAP
    longest_insn: ClassVar[int] = LONGEST_INSN
    slot_size: ClassVar[int] = 64

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """See Architecture."""
        decoded = self.decoder.decode(code, address)
        if decoded is None:
            raise InsnRefused(address, None, self._why_undecodable(code, address))
        insn = Insn(address, code[: decoded.length], decoded.text)
        encoding = parse(insn.raw)
        reason = refusal(encoding)
        if reason is not None:
            raise InsnRefused(address, insn, reason)
        kind = insn_class(encoding)
        operand = _operand_address(encoding, kind, insn)
        strategies, refusals = _STRATEGIES[kind], _REASONS[kind]
        if operand is not None and ADDRESS_SIZE in encoding.prefixes:
            strategies, operand = (Strategy.INLINE,), None
            refusals = {**refusals, **_EIP_REFUSALS}
        return InsnAnalysis(
            insn=insn,
            strategies=strategies,
            refusals=refusals,
            reach=() if Strategy.STEP not in strategies else _reach(encoding, kind, insn, operand),
            landing=_landing(encoding, kind, insn),
            fix_ups=_FIX_UPS.get(kind, frozenset()),
        )

    def _why_undecodable(self, code: bytes, address: VirtAddr) -> str:
        if not code:
            return "nothing is readable there"
        longer = (code.ljust(LONGEST_INSN, padding) for padding in _COMPLETIONS)
        if any(self.decoder.decode(attempt, address) is not None for attempt in longer):
            return f"the instruction does not end in the {len(code)} bytes that are readable there"
        return undecodable(code)

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """An int3; a thread that ran into it shows the address behind it."""
        insn = analysis.insn
        return TrapPatch(
            address=insn.address,
            trap=TRAP,
            original=insn.raw[: len(TRAP)],
            reported_pc=VirtAddr(insn.address + len(TRAP)),
        )

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """See Architecture. Raises UsageError for what no slot can hold (loop, jrcxz)."""
        encoding, kind = _slot_class(analysis)
        insn = analysis.insn
        if kind in _RELATIVE:
            opcode = _long_form(encoding, kind)
            code = opcode + _reaching(insn, slot, branch_target(encoding, insn.end), slot + len(opcode) + 4)
        else:
            code = insn.raw
            operand, at = _operand_address(encoding, kind, insn), encoding.displacement_at
            if operand is not None and at is not None:
                code = code[:at] + _reaching(insn, slot, operand, slot + len(code)) + code[at + 4 :]
        places = [(0, insn.address)]
        if kind not in _NEVER_FALLS_THROUGH:
            places.append((len(code), insn.end))
            code += b"\xe9" + _reaching(insn, slot, insn.end, slot + len(code) + 5)
        return SlotCode(origin=insn.address, slot=slot, code=code, places=tuple(places))

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
        """See Architecture. Raises UsageError for what no slot can hold (loop, jrcxz)."""
        insn, size, fix_ups = analysis.insn, analysis.insn.length, analysis.fix_ups
        if slot == insn.address:
            encoding = parse(insn.raw)
            fix_ups -= {FixUp.RETURN_ADDRESS}
        else:
            encoding, kind = _slot_class(analysis)
            size = len(_long_form(encoding, kind)) + 4 if kind in _RELATIVE else size
        if regs["eflags"] & TRAP_FLAG:  # the program steps itself, and a pushf of its own would store TF too
            fix_ups -= {FixUp.PUSHED_TRAP_FLAG}
        return StepPlan(
            origin=insn.address,
            slot=slot,
            origin_end=insn.end,
            slot_end=VirtAddr(slot + size),
            repeats=is_repeated_string(encoding),
            fix_ups=fix_ups,
        )

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture. A rep that is still at its start has not finished; in place, a jump to itself has."""
        if regs["rip"] == plan.slot and (plan.repeats or not plan.in_place):
            return Outcome(registers={}, finished=False)
        writes = []
        sp = regs["rsp"]
        if FixUp.RETURN_ADDRESS in plan.fix_ups:
            writes.append(MemoryWrite(VirtAddr(sp), plan.origin_end.to_bytes(8, "little")))
        if FixUp.PUSHED_TRAP_FLAG in plan.fix_ups:
            # pushf changes no flag: what it should have stored is what the thread still has.
            second_byte = (regs["eflags"] & ~TRAP_FLAG) >> 8 & 0xFF
            writes.append(MemoryWrite(VirtAddr(sp + 1), bytes((second_byte,))))
        registers = {"rip": plan.origin_end} if regs["rip"] == plan.slot_end else {}
        return Outcome(registers=registers, writes=tuple(writes))

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture. If the copy ran after all, the same as ``after_step``."""
        if regs["rip"] == plan.slot:
            return Outcome(registers={"rip": plan.origin})
        return self.after_step(plan, regs)

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """See Architecture."""
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """See Architecture."""
        encoding = parse(analysis.insn.raw)
        make = EMULATORS.get(insn_class(encoding))
        if make is None:
            raise UsageError(f"'{analysis.insn}' cannot be emulated; use {' or '.join(analysis.strategies)}")
        return make(encoding, analysis.insn.end)

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        """See Architecture."""
        start = address
        for length in instruction_lengths(self.decoder, code, address):
            yield start
            start = VirtAddr(start + length)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """See Architecture. Source: System V ABI, AMD64 supplement, section 3.2.3."""
        if index < len(_ARGUMENT_REGISTERS):
            return regs[_ARGUMENT_REGISTERS[index]]
        behind_return_address = 1 + index - len(_ARGUMENT_REGISTERS)
        return int.from_bytes(memory.read(VirtAddr(regs["rsp"] + 8 * behind_return_address), 8), "little")


def _slot_class(analysis: InsnAnalysis) -> tuple[Encoding, InsnClass]:
    encoding = parse(analysis.insn.raw)
    kind = insn_class(encoding)
    if kind is InsnClass.COUNTED_BRANCH:
        raise UsageError(f"'{analysis.insn}' cannot run in a slot: {_COUNTED_REFUSAL}; emulate it")
    return encoding, kind


def _long_form(encoding: Encoding, kind: InsnClass) -> bytes:
    """The opcode of a relative branch that takes a disp32; its prefixes say nothing."""
    if kind is InsnClass.BRANCH:
        return bytes((0x0F, 0x80 | encoding.opcode & 0x0F))
    return b"\xe8" if kind is InsnClass.CALL else b"\xe9"


def _reaching(insn: Insn, slot: VirtAddr, target: int, end: int) -> bytes:
    displacement = relative(target, end)
    if displacement is None:
        raise InsnRefused(insn.address, insn, f"the slot at {slot:#x} is more than 2 GiB away from {target:#x}")
    return displacement


def _operand_address(encoding: Encoding, kind: InsnClass, insn: Insn) -> int | None:
    """Where a rip-relative operand is; None without one. A nop's is never used."""
    return None if kind is InsnClass.NOP else encoding.operand_address(insn.end)


def _reach(encoding: Encoding, kind: InsnClass, insn: Insn, operand: int | None) -> tuple[VirtAddr, ...]:
    reach = [] if operand is None else [VirtAddr(operand)]
    if kind in _RELATIVE:
        reach.append(VirtAddr(branch_target(encoding, insn.end)))
    if kind not in _NEVER_FALLS_THROUGH:
        reach.append(insn.end)
    return tuple(reach)


def _landing(encoding: Encoding, kind: InsnClass, insn: Insn) -> VirtAddr | None:
    if kind is InsnClass.JUMP:
        return VirtAddr(branch_target(encoding, insn.end))
    return insn.end if kind is InsnClass.NOP else None
