"""Faults planted in the architecture layer on purpose: a tool that proves something must find each of them.

A plant wraps the architecture that ``ubpx.core.ubp.architecture`` makes, and breaks one of its
answers. Nothing else changes, so what the tool then reports is what that one bug would have done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs

from ubpx._errors import UsageError
from ubpx.core import ubp
from ubpx.core.ports import Memory
from ubpx.core.ubp.encoding import Encoding, parse
from ubpx.core.ubp.plans import (
    Architecture,
    Emulator,
    FixUp,
    Flow,
    InsnAnalysis,
    MemoryWrite,
    Outcome,
    SlotCode,
    StepPlan,
    Strategy,
)
from ubpx.core.ubp.x86 import CARRY, OVERFLOW, SIGN, TRAP_FLAG, ZERO, InsnClass, branch_target, insn_class
from ubpx.core.values import ReadableRegisters, VirtAddr


class Planted:
    """An architecture that answers as the one it wraps does; a plant overrides one method."""

    def __init__(self, sound: Architecture) -> None:
        self.sound: Final = sound

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sound, name)

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """By way of ``emulator``, so that a plant breaks both at once."""
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """That of the one it wraps."""
        return self.sound.emulator(analysis)

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """What the one it wraps says of it."""
        return self.sound.cancel_step(plan, regs)

    def _parsed(self, analysis: InsnAnalysis) -> Encoding:
        """The parts of an x86 instruction; ``sound`` is an x86."""
        return parse(analysis.insn.raw, 8 * self.sound.word_size)


class SlotDisplacement(Planted):
    """The displacement of a copy is one byte off."""

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """The first fix-up, wherever it lies, misses by one."""
        made = self.sound.slot_code(analysis, slot)
        size = analysis.insn.length
        copy, rest = made.code[:size], made.code[size:]
        changed = next((at for at in range(min(len(copy), size)) if copy[at] != analysis.insn.raw[at]), None)
        if changed is None:
            return made
        broken = copy[:changed] + bytes((copy[changed] + 1 & 0xFF,)) + copy[changed + 1 :]
        return attrs.evolve(made, code=broken + rest)


class JumpBack(Planted):
    """The jump back from a slot lands one byte too far."""

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """The last displacement is one more."""
        made = self.sound.slot_code(analysis, slot)
        if len(made.places) < 2:  # it never falls through
            return made
        distance = int.from_bytes(made.code[-4:], "little") + 1 & 0xFFFF_FFFF
        return attrs.evolve(made, code=made.code[:-4] + distance.to_bytes(4, "little"))


class ReturnAddress(Planted):
    """A call that was stepped in a slot leaves the slot's address on the program's stack."""

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """Without the writes."""
        return attrs.evolve(self.sound.after_step(plan, regs), writes=())


class FaultAddress(Planted):
    """A fault in a slot shows the program the slot's address."""

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:  # noqa: ARG002 - the protocol's
        """Nothing is put right."""
        return Outcome(registers={})


class Landing(Planted):
    """A thread whose copy was stepped stays in the slot."""

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """The program counter is not moved back."""
        outcome = self.sound.after_step(plan, regs)
        kept = {name: value for name, value in outcome.registers.items() if name != self.sound.pc_name}
        return attrs.evolve(outcome, registers=kept)


class EmulatedLanding(Planted):
    """Emulation leaves the thread one byte too far."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """The program counter is one more."""
        sound, name = self.sound.emulator(analysis), self.sound.pc_name

        def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
            outcome = sound(regs, memory)
            return attrs.evolve(outcome, registers={**outcome.registers, name: outcome.registers[name] + 1})

        return emulate


class ReadsOn(Planted):
    """An instruction that is cut short is completed by bytes that are not there."""

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """Zeros are what an over-read of a buffer may find."""
        return self.sound.analyze(code.ljust(self.sound.longest_insn, b"\0"), address)


class Length(Planted):
    """An instruction is taken to be one byte longer than it is, where a byte follows."""

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """The class and the strategies are right."""
        made = self.sound.analyze(code, address)
        longer = attrs.evolve(made.insn, raw=code[: made.insn.length + 1])
        return attrs.evolve(made, insn=longer)


class FlowTarget(Planted):
    """The direct branches that a proof follows lead one byte too far."""

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """Only ``target`` is wrong."""
        for each in self.sound.flow(code, address):
            yield each if each.target is None else each._replace(target=VirtAddr(each.target + 1))


class FallsThrough(Planted):
    """What stands behind a return or a jump is taken to be run."""

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """Everything falls through."""
        return (each._replace(falls_through=True) for each in self.sound.flow(code, address))


class Condition(Planted):
    """A conditional jump on two flags asks whether both hold, not whether one does (jbe, ja, jle, jg)."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """AND where the processor has OR."""
        sound, encoding = self.sound.emulator(analysis), self._parsed(analysis)
        if insn_class(encoding) is not InsnClass.BRANCH or encoding.opcode & 0x0E not in {0x6, 0xE}:
            return sound
        target, name = branch_target(encoding, analysis.insn.end), self.sound.pc_name

        def emulate(regs: ReadableRegisters, _memory: Memory) -> Outcome:
            flags = regs["eflags"]
            other = flags & CARRY if encoding.opcode & 8 == 0 else bool(flags & SIGN) != bool(flags & OVERFLOW)
            taken = bool(flags & ZERO and other) != bool(encoding.opcode & 1)
            return Outcome(registers={name: target if taken else analysis.insn.end})

        return emulate


class UnsignedDisplacement(Planted):
    """The 8-bit displacement of a jump is taken as unsigned."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """Backwards becomes forwards."""
        sound, encoding, name = self.sound.emulator(analysis), self._parsed(analysis), self.sound.pc_name
        backwards = encoding.opcode_map == 0 and encoding.opcode in _SHORT_JUMPS and analysis.insn.raw[-1] >= 0x80

        def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
            outcome = sound(regs, memory)
            pc = outcome.registers[name]
            return outcome if pc == analysis.insn.end else _with(outcome, name, pc + 0x100)

        return emulate if backwards else sound


class ScratchRegister(Planted):
    """The copy of an instruction with a rip-relative operand goes by way of rdx, which it may use itself (mulx)."""

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """A lea for rdx comes before the copy, whose operand is where that points to."""
        made = self.sound.slot_code(analysis, slot)
        encoding = self._parsed(analysis)
        at, size = encoding.displacement_at, analysis.insn.length
        if at is None or encoding.bits == 32 or len(made.places) < 2 or made.code[:size] == analysis.insn.raw:
            return made
        distance = int.from_bytes(made.code[at : at + 4], "little", signed=True) + size
        load = b"\x48\x8d\x15" + (distance - 7 & 0xFFFF_FFFF).to_bytes(4, "little")
        copy = made.code[: at - 1] + bytes((made.code[at - 1] & 0x38 | 2,)) + made.code[at + 4 : size]
        end = len(load) + len(copy)
        back = analysis.insn.end - slot - end - 5 & 0xFFFF_FFFF
        code = load + copy + b"\xe9" + back.to_bytes(4, "little")
        return attrs.evolve(made, code=code, places=((0, analysis.insn.address), (end, analysis.insn.end)))


class PushedTrapFlag(Planted):
    """A stepped pushf stores the trap flag that the step has set."""

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
        """Nobody puts it right."""
        plan = self.sound.before_step(analysis, slot, regs)
        return attrs.evolve(plan, fix_ups=plan.fix_ups - {FixUp.PUSHED_TRAP_FLAG})


class LinkRegister(Planted):
    """A system call leaves the slot's address in rcx."""

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """What would put it right does nothing."""
        made = self.sound.slot_code(analysis, slot)
        if made.link is None:
            return made
        at = made.link[0]
        return attrs.evolve(made, code=made.code[:at] + _LONG_NOP + made.code[at + len(_LONG_NOP) :])


class FloatingPointPointer(Planted):
    """The floating-point unit says that its last instruction was the slot's."""

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """The pointer is left as it is."""
        return attrs.evolve(self.sound.after_step(plan, regs), x87_pointer=None)


class PassedFault(Planted):
    """An instruction that faulted in a slot is passed by, as if it had been done."""

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """The program counter is behind it."""
        outcome, name = self.sound.cancel_step(plan, regs), self.sound.pc_name
        return _with(outcome, name, plan.origin_end) if outcome.registers.get(name) == plan.origin else outcome


class OneIteration(Planted):
    """A repeated string instruction is taken for finished after its first iteration."""

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """Behind it, whatever the counter says."""
        outcome = self.sound.after_step(plan, regs)
        return outcome if outcome.finished else Outcome(registers={self.sound.pc_name: plan.origin_end})


class PoppedTrapFlag(Planted):
    """A popf by which the program sets its own trap flag does not set it."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """TF is dropped."""
        sound = self.sound.emulator(analysis)

        def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
            outcome = sound(regs, memory)
            flags = outcome.registers.get("eflags")
            return outcome if flags is None else _with(outcome, "eflags", flags & ~TRAP_FLAG)

        return emulate


class PushedStackPointer(Planted):
    """A push of the stack pointer stores what it is after the push."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """As an 8086 did."""
        sound, raw, size = self.sound.emulator(analysis), analysis.insn.raw, self.sound.word_size
        name = "rsp" if size == 8 else "esp"

        def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
            outcome = sound(regs, memory)
            sp = outcome.registers[name]
            return attrs.evolve(outcome, writes=(MemoryWrite(VirtAddr(sp), sp.to_bytes(size, "little")),))

        encoding = self._parsed(analysis)
        return (
            emulate
            if raw[-1] == 0x54 and insn_class(encoding) is InsnClass.PUSH_REGISTER and not encoding.extended
            else sound
        )


class LoopCounter(Planted):
    """A loop does not count."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """The counter stays as it is."""
        sound, name = self.sound.emulator(analysis), self.sound.pc_name
        if insn_class(self._parsed(analysis)) is not InsnClass.COUNTED_BRANCH:
            return sound

        def emulate(regs: ReadableRegisters, memory: Memory) -> Outcome:
            return Outcome(registers={name: sound(regs, memory).registers[name]})

        return emulate


class StackSegment(Planted):
    """A load of the stack segment is stepped in place, which runs the next instruction too."""

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """INLINE is allowed."""
        found = self.sound.analyze(code, address)
        if insn_class(self._parsed(found)) is not InsnClass.STACK_SEGMENT:
            return found
        return attrs.evolve(found, strategies=(Strategy.INLINE,))


def _with(outcome: Outcome, name: str, value: int) -> Outcome:
    return attrs.evolve(outcome, registers={**outcome.registers, name: value})


_SHORT_JUMPS: Final = frozenset({*range(0x70, 0x80), *range(0xE0, 0xE4), 0xEB})
_LONG_NOP: Final = bytes.fromhex("0f 1f 80 00 00 00 00")


@attrs.frozen(kw_only=True)
class Plant:
    """One fault that can be planted."""

    make: Callable[[Architecture], Any]
    tools: frozenset[str]
    """Those that must find it: ``differential``, ``torture``, ``coverage``, ``decoders``."""
    only: str | None = None
    """The one architecture where it is a fault; None: wherever there is one."""
    opcodes: frozenset[tuple[int, int]] = frozenset()
    """Those that show it, each with its map; none: any does. Drawn at random they may never come."""

    @property
    def what(self) -> str:
        """In words."""
        return (self.make.__doc__ or "").partition("\n")[0]


_ALL: Final = frozenset({"differential", "torture", "coverage"})
_FOLLOWED: Final = frozenset({"decoders"})


def _instruction(make: Callable[[Architecture], Any], *opcodes: tuple[int, int], only: str | None = None) -> Plant:
    """What is wrong when an instruction is executed, in a way that programs seldom ask for."""
    return Plant(make=make, tools=frozenset({"differential"}), only=only, opcodes=frozenset(opcodes))


PLANTS: Final[Mapping[str, Plant]] = {
    "slot-displacement": Plant(make=SlotDisplacement, tools=_ALL, opcodes=frozenset({(1, 0x84), (0, 0x74), (0, 0xE8)})),
    "jump-back": Plant(make=JumpBack, tools=_ALL),
    "return-address": _instruction(ReturnAddress, (0, 0xE8)),
    "fault-address": _instruction(FaultAddress),
    "landing": _instruction(Landing),
    "emulated-landing": Plant(make=EmulatedLanding, tools=_ALL),
    "reads-on": Plant(make=ReadsOn, tools=frozenset({"coverage"})),
    "length": Plant(make=Length, tools=frozenset({"coverage", "decoders"})),
    "flow-target": Plant(make=FlowTarget, tools=_FOLLOWED),
    "falls-through": Plant(make=FallsThrough, tools=_FOLLOWED),
    "condition": _instruction(Condition, (0, 0x76), (0, 0x77), (1, 0x8E), (1, 0x8F)),
    "unsigned-displacement": _instruction(UnsignedDisplacement, (0, 0x74), (0, 0xEB), (0, 0x7D)),
    "scratch-register": _instruction(ScratchRegister, (2, 0xF6), (0, 0x03), (1, 0xB1), only="x86_64"),
    "pushed-trap-flag": _instruction(PushedTrapFlag, (0, 0x9C)),
    "link-register": _instruction(LinkRegister, (1, 0x05), only="x86_64"),
    "x87-pointer": _instruction(FloatingPointPointer, (0, 0xD8)),
    "passed-fault": _instruction(PassedFault),
    "one-iteration": _instruction(OneIteration, (0, 0xA4), (0, 0xAB), (0, 0xA6)),
    "popped-trap-flag": _instruction(PoppedTrapFlag, (0, 0x9D)),
    "pushed-stack-pointer": _instruction(PushedStackPointer, (0, 0x54)),
    "loop-counter": _instruction(LoopCounter, (0, 0xE2), (0, 0xE0)),
    "stack-segment": _instruction(StackSegment, (0, 0x8E)),
}


def plants_of(tool: str, plants: Mapping[str, Plant] = PLANTS) -> Sequence[str]:
    """The names of those that a tool must find."""
    return [name for name, plant in plants.items() if tool in plant.tools]


@contextmanager
def planted(name: str | None, tool: str | None = None, plants: Mapping[str, Plant] = PLANTS) -> Iterator[None]:
    """While it lasts, every architecture that is made has the fault, one of ``plants``; None: no fault.

    Raises UsageError for a name that no plant has, or none that ``tool`` must find.
    """
    if name is None:
        yield
        return
    plant = plants.get(name)
    if plant is None:
        known = plants_of(tool, plants) if tool else plants
        raise UsageError(f"there is no fault {name!r} to plant; there is {', '.join(known)}")
    if tool is not None and tool not in plant.tools:
        finders = " and ".join(sorted(plant.tools))
        raise UsageError(f"fault {name} is found by {finders} alone; {tool} finds {', '.join(plants_of(tool, plants))}")
    sound = dict(ubp.ARCHITECTURES)
    ubp.ARCHITECTURES.update({key: _breaking(make, plant) for key, make in sound.items()})
    try:
        yield
    finally:
        ubp.ARCHITECTURES.update(sound)


def _breaking(make: Callable[[], Architecture], plant: Plant) -> Callable[[], Architecture]:
    return lambda: plant.make(make())
