"""Faults planted in the architecture layer on purpose: a tool that proves something must find each of them.

A plant wraps the architecture that ``ubpx.core.ubp.architecture`` makes, and breaks one of its
answers. Nothing else changes, so what the tool then reports is what that one bug would have done.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs

from ubpx._errors import UsageError
from ubpx.core import ubp
from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import Architecture, Emulator, InsnAnalysis, Outcome, SlotCode, StepPlan
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
        """As it is."""
        return self.sound.emulator(analysis)

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """As it is."""
        return self.sound.cancel_step(plan, regs)


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


@attrs.frozen(kw_only=True)
class Plant:
    """One fault that can be planted."""

    make: Callable[[Architecture], Any]
    tools: frozenset[str]
    """Those that must find it: ``differential``, ``torture``, ``coverage``, ``decoders``."""

    @property
    def what(self) -> str:
        """In words."""
        return (self.make.__doc__ or "").partition("\n")[0]


_ALL: Final = frozenset({"differential", "torture", "coverage"})
_RUN: Final = frozenset({"differential", "torture"})

PLANTS: Final[Mapping[str, Plant]] = {
    "slot-displacement": Plant(make=SlotDisplacement, tools=_ALL),
    "jump-back": Plant(make=JumpBack, tools=_ALL),
    "return-address": Plant(make=ReturnAddress, tools=frozenset({"differential"})),
    "fault-address": Plant(make=FaultAddress, tools=frozenset({"differential"})),
    "landing": Plant(make=Landing, tools=frozenset({"differential"})),
    "emulated-landing": Plant(make=EmulatedLanding, tools=_ALL),
    "reads-on": Plant(make=ReadsOn, tools=frozenset({"coverage"})),
    "length": Plant(make=Length, tools=frozenset({"coverage", "decoders"})),
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """While it lasts, every architecture that is made has the fault; None: no fault.

    Raises UsageError for a name that no plant has.
    """
    if name is None:
        yield
        return
    plant = PLANTS.get(name)
    if plant is None:
        raise UsageError(f"there is no fault {name!r} to plant; there is {', '.join(PLANTS)}")
    sound = dict(ubp.ARCHITECTURES)
    ubp.ARCHITECTURES.update({key: _breaking(make, plant) for key, make in sound.items()})
    try:
        yield
    finally:
        ubp.ARCHITECTURES.update(sound)


def _breaking(make: Callable[[], Architecture], plant: Plant) -> Callable[[], Architecture]:
    return lambda: plant.make(make())
