"""Faults to plant in architectures that unicorn plays, beside those that x86 has (see ``ubpx.testing.plants``).

Each is told by what an instruction does, so that it is one on every such architecture that has the instruction.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import Architecture, Emulator, Flow, InsnAnalysis, Outcome, SlotCode
from ubpx.core.values import ReadableRegisters, VirtAddr
from ubpx.testing.plants import FaultAddress, Landing, Plant, Planted

Change = Callable[[Outcome, ReadableRegisters, Memory], Outcome]


class _Emulation(Planted, ABC):
    """An architecture of which one emulation is wrong: what ``change`` makes of its outcome."""

    @abstractmethod
    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:
        """What becomes of the outcome; None for an instruction that does not show the fault."""

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """That of the one it wraps, and then the fault."""
        sound = self.sound.emulator(analysis)
        insn = analysis.insn
        change = self.change(analysis, next(self.sound.flow(insn.raw, insn.address)))
        if change is None:
            return sound
        return lambda regs, memory: change(sound(regs, memory), regs, memory)

    def _at(self, outcome: Outcome, pc: int) -> Outcome:
        return attrs.evolve(outcome, registers={**outcome.registers, self.sound.pc_name: pc})

    def _pc(self, outcome: Outcome) -> int:
        return outcome.registers[self.sound.pc_name]


class JumpBack(Planted):
    """The jump back from a slot lands one instruction too far."""

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """As made for a slot that lies before this one, so that each distance is as much too large."""
        made = self.sound.slot_code(analysis, slot)
        before = VirtAddr(slot - self.sound.longest_insn)
        size = analysis.insn.length
        if analysis.reach != (analysis.insn.end,):
            return made
        return attrs.evolve(made, code=made.code[:size] + self.sound.slot_code(analysis, before).code[size:])


class EmulatedLanding(_Emulation):
    """Emulation leaves the thread one instruction too far."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change:  # noqa: ARG002 - of every instruction
        """The program counter is as much more."""
        return lambda outcome, _regs, _memory: self._at(outcome, self._pc(outcome) + self.sound.longest_insn)


class Condition(_Emulation):
    """A conditional branch is taken when it is not, and the reverse."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:
        """The other one of its two ways."""
        target, end = flow.target, analysis.insn.end
        if target is None or not flow.falls_through or flow.calls:
            return None
        return lambda outcome, _regs, _memory: self._at(outcome, end if self._pc(outcome) == target else target)


class UnsignedDisplacement(_Emulation):
    """A branch backwards leads forwards."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:
        """As far as it should lead backwards."""
        target, address = flow.target, analysis.insn.address
        if target is None or target >= address:
            return None
        wrong = 2 * address - target
        return lambda outcome, _regs, _memory: self._at(outcome, wrong) if self._pc(outcome) == target else outcome


class LinkAddress(_Emulation):
    """A call links to the instruction behind the next one."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:
        """The register that holds the return address holds a later one."""
        end, later = analysis.insn.end, analysis.insn.end + self.sound.longest_insn
        if not flow.calls:
            return None

        def change(outcome: Outcome, _regs: ReadableRegisters, _memory: Memory) -> Outcome:
            link = _link(outcome, end, self.sound.pc_name)
            return outcome if link is None else attrs.evolve(outcome, registers={**outcome.registers, link: later})

        return change


class LinkFirst(_Emulation):
    """A call through the link register reads it after it has been written."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:
        """Whatever was in it, control comes to the next instruction."""
        end, address = analysis.insn.end, analysis.insn.address
        if flow.target is not None:
            return None

        def change(outcome: Outcome, regs: ReadableRegisters, memory: Memory) -> Outcome:
            link = _link(outcome, end, self.sound.pc_name)
            if link is None:
                return outcome
            again = self.sound.analyze(analysis.insn.raw, address)
            return self._at(outcome, self._pc(self.sound.emulate(again, _Linked(regs, link, end), memory)))

        return change


class ZeroExtension(_Emulation):
    """What should be extended by its sign is extended by zeros."""

    def change(self, analysis: InsnAnalysis, flow: Flow) -> Change | None:  # noqa: ARG002 - the flow says enough
        """Of a literal, and of what an instruction adds to its own address."""
        if flow.target is not None or flow.calls:
            return None
        pc = self.sound.pc_name

        def change(outcome: Outcome, _regs: ReadableRegisters, _memory: Memory) -> Outcome:
            changed = {name: value & 0xFFFF_FFFF for name, value in outcome.registers.items() if name != pc}
            return attrs.evolve(outcome, registers={**outcome.registers, **changed})

        return change


@attrs.frozen
class _Linked:
    """Registers, but for the one that holds the return address already."""

    regs: ReadableRegisters
    link: str
    end: int

    def __getitem__(self, name: str, /) -> int:
        return self.end if name == self.link else self.regs[name]


def _link(outcome: Outcome, end: int, pc_name: str) -> str | None:
    return next((name for name, value in outcome.registers.items() if name != pc_name and value == end), None)


def _differential(make: Callable[[Architecture], Any], only: str | None = None) -> Plant:
    return Plant(make=make, tools=frozenset({"differential"}), only=only)


PLANTS: Final[Mapping[str, Plant]] = {
    "jump-back": _differential(JumpBack, "aarch64"),
    "fault-address": _differential(FaultAddress),
    "landing": _differential(Landing),
    "emulated-landing": _differential(EmulatedLanding),
    "condition": _differential(Condition),
    "unsigned-displacement": _differential(UnsignedDisplacement),
    "link-address": _differential(LinkAddress),
    "link-first": _differential(LinkFirst),
    "zero-extension": _differential(ZeroExtension),
}
