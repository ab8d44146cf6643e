"""Static proofs about one instruction: is its copy the same instruction, and does it lead back?

Nothing is run. Both disassemblers read the original and the copy that the architecture made of it
for a slot; what they say of the two must be equal, distance for distance.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from ubpx._errors import InsnRefused
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, SlotCode, Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing.disagreements import known
from ubpx.testing.memory import FakeMemory
from ubpx.testing.opinions import DIRECT, Disassembler, FlowKind, Opinion
from ubpx.testing.program_text import Specimen

_COPIED: Final = frozenset({Strategy.BOOST, Strategy.STEP})
_ALWAYS_LEAVES: Final = frozenset(
    {FlowKind.JUMP, FlowKind.CALL, FlowKind.INDIRECT_JUMP, FlowKind.INDIRECT_CALL, FlowKind.RETURN}
)
_SLOT_DISTANCES: Final = (1 << 30, -(1 << 30), 1 << 24, -(1 << 24))
"""Where a slot is tried, from the instruction on: near enough for operands up to 1 GiB away."""


_STACK: Final = 0x800
"""In every general register, for emulations of which only the direction is of interest."""
_ORDINARY: Final = {"eflags": 0x202, "cs": 0x33, "ss": 0x2B}
"""As in a program that has done nothing special, so that what may be emulated is emulated."""


class Prover:
    """Says what is wrong with the architecture's answers. Keeps nothing between two questions."""

    def __init__(self, architecture: Architecture, disassemblers: Sequence[Disassembler]) -> None:
        self._architecture = architecture
        self._disassemblers = disassemblers
        self._regs: Mapping[str, int] = dict.fromkeys(architecture.register_names, _STACK) | _ORDINARY
        self._memory = FakeMemory({0: bytes(2 * _STACK)})

    def faults(self, specimen: Specimen, analysis: InsnAnalysis) -> Iterator[str]:
        """Everything that is wrong at this instruction, in words; nothing where all is well."""
        try:
            yield from self._faults(specimen, analysis)
        except Exception as error:  # noqa: BLE001  (whatever the layer raises here is a finding)
            yield f"{type(error).__name__}: {error}"

    def _faults(self, specimen: Specimen, analysis: InsnAnalysis) -> Iterator[str]:
        insn = analysis.insn
        opinions = [(each, each.opinion(specimen.window, insn.address)) for each in self._disassemblers]
        right = [(each, said) for each, said in opinions if said is not None and said.length == insn.length]
        lengths = [None if said is None else said.length for _, said in opinions]
        if not right or known(specimen.window, lengths) is None:  # else one of them is known not to know it
            yield from _wrong_lengths(opinions, insn.length)
        for disassembler, original in right:
            yield from self._wrong_directions(analysis, original, disassembler.name)
        trap = self._architecture.trap(analysis)
        if trap.address != insn.address or not insn.raw.startswith(trap.original):
            yield f"the trap would be put at {trap.address:#x} in the place of {trap.original.hex()}"
        if _COPIED & set(analysis.strategies):
            yield from self._wrong_copies(analysis, right)

    def _wrong_directions(self, analysis: InsnAnalysis, original: Opinion, name: str) -> Iterator[str]:
        """Against what the disassembler says of where the instruction leads."""
        end = analysis.insn.end
        expected = original.target if original.flow is FlowKind.JUMP else end
        if analysis.landing not in {None, expected}:
            yield f"it lands at {_hex(analysis.landing)}, by {name} at {_hex(expected)}"
        if Strategy.EMULATE not in analysis.strategies or original.flow not in DIRECT | {FlowKind.NEXT}:
            return
        outcome = self._architecture.emulate(analysis, self._regs, self._memory)
        allowed = {
            FlowKind.NEXT: (end,),
            FlowKind.CONDITIONAL: (end, original.target),
        }.get(original.flow, (original.target,))
        found = outcome.registers[self._architecture.pc_name]
        if found not in allowed:
            yield f"emulation leads to {_hex(found)}, by {name} to {' or '.join(map(_hex, allowed))}"

    def _wrong_copies(self, analysis: InsnAnalysis, originals: Iterable[tuple[Disassembler, Opinion]]) -> Iterator[str]:
        made = self._copy(analysis)
        if made is None:
            yield "no slot within 1 GiB can hold a copy"
            return
        if len(made.code) > self._architecture.slot_size:
            yield f"the copy has {len(made.code)} bytes, more than a slot"
        for disassembler, original in originals:
            for wrong in self._wrong_copy(analysis, made, original, disassembler):
                yield f"copy {made.code.hex()} at {made.slot:#x}: {wrong} ({disassembler.name})"

    def _copy(self, analysis: InsnAnalysis) -> SlotCode | None:
        for distance in _SLOT_DISTANCES:
            slot = analysis.insn.address + distance & -self._architecture.slot_size
            try:
                return self._architecture.slot_code(analysis, VirtAddr(slot))
            except InsnRefused:  # out of reach there
                continue
        return None

    def _wrong_copy(
        self, analysis: InsnAnalysis, made: SlotCode, original: Opinion, disassembler: Disassembler
    ) -> Iterator[str]:
        insn = analysis.insn
        copy = disassembler.opinion(made.code, made.slot)
        if copy is None:
            yield "no instruction"
            return
        unused = analysis.landing == insn.end and made.code.startswith(insn.raw)  # a nop's operand, whatever it is
        if copy.text != original.text and not unused:
            yield f"{copy.text!r} instead of {original.text!r}"
        if copy.flow is not original.flow:
            yield f"its flow is {copy.flow} instead of {original.flow}"
        if (copy.target, copy.operand) != (original.target, original.operand) and not unused:
            found, wanted = copy.target or copy.operand, original.target or original.operand
            yield f"it reaches {_hex(found)} instead of {_hex(wanted)}"
        if made.places[0] != (0, insn.address):
            yield f"its start stands for {made.places[0]}"
        if original.flow not in _ALWAYS_LEAVES and not original.text.startswith("sysenter"):
            yield from self._wrong_end(analysis, made, copy.length, disassembler)
        plan = self._architecture.before_step(analysis, made.slot, self._regs)
        if (plan.slot_end, plan.origin_end) != (made.slot + copy.length, insn.end):
            yield f"a step of it ends at {plan.slot_end:#x} for {plan.origin_end:#x}"

    def _wrong_end(
        self, analysis: InsnAnalysis, made: SlotCode, length: int, disassembler: Disassembler
    ) -> Iterator[str]:
        """A copy that falls through must jump back behind the original."""
        end = analysis.insn.end
        behind = dict(made.places[1:])
        if length not in behind or set(behind.values()) != {end}:
            yield f"its end is not among the places {made.places}"
            return
        last = max(behind)
        yield from _wrong_filler(made, made.code[length:last], length, disassembler)
        back = disassembler.opinion(made.code[last:], made.slot + last)
        if back is None or back.flow is not FlowKind.JUMP or back.target != end:
            yield f"behind it stands {None if back is None else back.text} instead of a jump to {end:#x}"
        elif last + back.length != len(made.code):
            yield f"the slot holds more than a copy and the way back: {made.code.hex()}"


def _wrong_filler(made: SlotCode, filler: bytes, at: int, disassembler: Disassembler) -> Iterator[str]:
    """Between copy and jump stands nothing, or the one instruction that puts a register right or is a cushion."""
    if made.link is None and made.cushion is None:
        if filler:
            yield f"{filler.hex()} stands between the copy and the jump"
        return
    found = disassembler.opinion(filler, made.slot + at)
    if found is None or found.length != len(filler) or made.cushion not in {None, at}:
        yield f"{filler.hex()} stands behind the copy, where one instruction of ours should"
    elif made.link is None:
        if found.text != "nop":
            yield f"{found.text} stands behind the copy instead of a nop"
    elif made.link[0] != at or not found.text.startswith(f"lea {made.link[1]},") or found.operand != made.places[1][1]:
        yield f"behind the copy {made.link[1]} is put right by {found.text}"


def _wrong_lengths(opinions: Iterable[tuple[Disassembler, Opinion | None]], length: int) -> Iterator[str]:
    for disassembler, said in opinions:
        if said is None:
            yield f"{disassembler.name} knows no such instruction"
        elif said.length != length:
            yield f"{disassembler.name} says that it has {said.length} bytes, the analysis {length}"


def overreads(architecture: Architecture, specimen: Specimen) -> Iterator[str]:
    """What is wrong with the analysis of an instruction behind which nothing can be read.

    Whatever follows must not matter, and an instruction that is cut short must be refused.
    """
    alone = _answer(architecture, specimen.raw, specimen.address)
    for follower in (b"\0", b"\xff"):
        padded = specimen.raw.ljust(architecture.longest_insn, follower)
        if _answer(architecture, padded, specimen.address) != alone:
            yield f"the analysis depends on what follows ({follower.hex()})"
    short = _answer(architecture, specimen.raw[:-1], specimen.address)
    if not isinstance(short, str):
        yield "without its last byte it is analysed all the same"


def _answer(architecture: Architecture, code: bytes, address: VirtAddr) -> InsnAnalysis | str:
    try:
        return architecture.analyze(code, address)
    except InsnRefused as refused:
        return refused.reason.partition(" [")[0]  # the bytes that are shown may go on


def _hex(address: int | None) -> str:
    return "nowhere" if address is None else f"{address:#x}"
