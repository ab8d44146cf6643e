"""Static proofs where copies are the instruction's own bytes: aarch64, riscv64. See ``slot_proofs`` for x86.

Nothing is run. Where a branch leads is read from capstone's words, which know nothing of our own tables.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.slots import ORIGIN_SIZE
from ubpx.core.ubp.decode import CapstoneAarch64, RiscvDecoder
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, SlotCode, Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing.program_text import Specimen

_COPIED: Final = frozenset({Strategy.BOOST, Strategy.STEP})
_REGISTER: Final = 0x800
"""In every register, for emulations of which only the direction is of interest."""
_NUMBER: Final = re.compile(r"(?:^|[ ,#])(-?0x[0-9a-f]+|-?[0-9]+)$")
"""What ends the words of a direct branch: where it leads."""


class _Tongue:
    """How long instructions are by their first bytes, and how capstone writes where they lead."""

    def __init__(self, length: Callable[[bytes], int], text: Callable[[bytes, int], str | None], *, relative: bool):
        self.length, self.text, self._relative = length, text, relative

    def target(self, raw: bytes, address: int) -> int | None:
        """Of a direct branch; None where capstone says no number."""
        found = _NUMBER.search(self.text(raw, address) or "")
        if found is None:
            return None
        number = int(found[1], 0)
        return (address + number if self._relative else number) & 2**64 - 1


def _aarch64() -> _Tongue:
    decoder = CapstoneAarch64()

    def text(raw: bytes, address: int) -> str | None:
        decoded = decoder.decode(raw, address)
        return None if decoded is None else decoded.text

    return _Tongue(lambda _code: 4, text, relative=False)


def _riscv64() -> _Tongue:
    """Source: RISC-V unprivileged ISA manual, section 1.5: what does not end in two ones has two bytes."""
    return _Tongue(lambda code: 4 if code[0] & 3 == 3 else 2, RiscvDecoder().text, relative=True)


_TONGUES: Final[Mapping[str, Callable[[], _Tongue]]] = {"aarch64": _aarch64, "riscv64": _riscv64}


class PlainReader:
    """Tells instructions apart, as ``opinions.Iced`` does for x86. Raises UsageError for what it cannot read."""

    name = "capstone"
    reads_gaps = True

    def __init__(self, architecture: Architecture) -> None:
        make = _TONGUES.get(architecture.name)
        if make is None:
            raise UsageError(f"nothing here reads code for {architecture.name}; there is {', '.join(_TONGUES)}")
        self.tongue: Final = make()

    def lengths(self, code: bytes, _address: int) -> Iterator[int]:
        """Length after length; what is no instruction has one, too."""
        at = 0
        while at < len(code):
            length = self.tongue.length(code[at:])
            if at + length > len(code):
                return
            yield length
            at += length

    def without_distance(self, code: bytes, _address: int) -> bytes:
        """The instruction itself: each is proved."""
        return code

    def bare(self, code: bytes, address: int) -> object:
        """Disassemble and say nothing, to measure against."""
        return self.tongue.text(code, address)


class PlainProver:
    """Says what is wrong with the architecture's answers. Keeps nothing between two questions."""

    def __init__(self, architecture: Architecture, reader: PlainReader) -> None:
        self._architecture: Final = architecture
        self._tongue: Final = reader.tongue
        self._regs: Final = dict.fromkeys(architecture.register_names, _REGISTER)

    def faults(self, specimen: Specimen, analysis: InsnAnalysis) -> Iterator[str]:
        """Everything that is wrong at this instruction, in words; nothing where all is well."""
        try:
            yield from self._faults(specimen, analysis)
        except Exception as error:  # noqa: BLE001  (whatever the layer raises here is a finding)
            yield f"{type(error).__name__}: {error}"

    def _faults(self, specimen: Specimen, analysis: InsnAnalysis) -> Iterator[str]:
        insn = analysis.insn
        length = self._tongue.length(specimen.raw)
        if insn.length != length:
            yield f"the analysis says that it has {insn.length} bytes, its first bits {length}"
        trap = self._architecture.trap(analysis)
        if trap.address != insn.address or not insn.raw.startswith(trap.original):
            yield f"the trap would be put at {trap.address:#x} in the place of {trap.original.hex()}"
        if set(analysis.strategies) | set(analysis.refusals) != set(Strategy):
            yield "a strategy is neither allowed, nor is there a reason"
        yield from self._wrong_directions(analysis)
        if _COPIED & set(analysis.strategies):
            yield from self._wrong_copies(analysis)

    def _wrong_directions(self, analysis: InsnAnalysis) -> Iterator[str]:
        insn = analysis.insn
        flow = next(self._architecture.flow(insn.raw, insn.address))
        if flow.target is not None:
            said = self._tongue.target(insn.raw, insn.address)
            if said != flow.target:
                yield f"it leads to {flow.target:#x}, by capstone to {_hex(said)}"
        always = insn.end if flow.target is None else flow.target
        if analysis.landing not in {None, always}:
            yield f"it lands at {_hex(analysis.landing)}, and leads to {always:#x}"
        if Strategy.EMULATE not in analysis.strategies:
            return
        found = self._architecture.emulate(analysis, self._regs, _Zeros()).registers[self._architecture.pc_name]
        ways = {flow.target} if flow.target is not None else set()
        if flow.falls_through and not (flow.calls and ways):
            ways |= {insn.end}
        leaves = flow.target is None and (flow.calls or not flow.falls_through)
        if not leaves and found not in ways:
            yield f"emulation leads to {found:#x} instead of {' or '.join(sorted(map(_hex, ways)))}"

    def _wrong_copies(self, analysis: InsnAnalysis) -> Iterator[str]:
        reach = self._architecture.slot_reach // 2
        for distance in (reach, -reach):
            slot = VirtAddr(analysis.insn.address + distance & -self._architecture.slot_size)
            try:
                made = self._architecture.slot_code(analysis, slot)
            except InsnRefused as error:
                yield f"the slot at {slot:#x} can hold no copy: {error.reason}"
                continue
            for wrong in self._wrong_copy(analysis, made):
                yield f"copy {made.code.hex()} at {made.slot:#x}: {wrong}"

    def _wrong_copy(self, analysis: InsnAnalysis, made: SlotCode) -> Iterator[str]:
        insn = analysis.insn
        if len(made.code) + ORIGIN_SIZE > self._architecture.slot_size:
            yield f"with its address it needs more than the slot's {self._architecture.slot_size} bytes"
        missing = _COPIED & set(analysis.strategies) - set(made.serves)
        if missing:
            yield f"it does not serve {' and '.join(sorted(missing))}, and lies within reach"
        if Strategy.STEP in analysis.strategies:
            plan = self._architecture.before_step(analysis, made.slot, self._regs)
            if made.to_origin(plan.slot) != insn.address or plan.slot_end - plan.slot != insn.length:
                yield f"a step of it goes from {plan.slot:#x} to {plan.slot_end:#x}"
        yield from self._wrong_places(analysis, made)

    def _wrong_places(self, analysis: InsnAnalysis, made: SlotCode) -> Iterator[str]:
        """At each stands the instruction, a way back behind it or a trap, and nothing between."""
        insn, at = analysis.insn, 0
        if made.places[0] != (0, insn.address):
            yield f"its start stands for {made.places[0]}"
        for offset, origin in made.places:
            if offset != at:
                yield f"{made.code[at:offset].hex()} stands between the places {made.places}"
            rest, place = made.code[offset:], VirtAddr(made.slot + offset)
            if origin == insn.address:
                at = offset + insn.length
                if not rest.startswith(insn.raw):
                    yield f"at {place:#x} stands something else than the instruction"
            elif offset == made.stop:
                at = offset + len(self._architecture.trap_bytes)
                if not rest.startswith(self._architecture.trap_bytes):
                    yield f"no trap ends the step at {place:#x}"
            else:
                at = offset + self._tongue.length(rest)
                target = self._tongue.target(rest[: at - offset], place)
                if origin != insn.end or target != insn.end:
                    yield f"at {place:#x} it leads back to {_hex(target)} instead of {insn.end:#x}"
        if at != len(made.code):
            yield f"{made.code[at:].hex()} stands behind all places"


class _Zeros:
    """Memory with zeros everywhere."""

    def read(self, _address: int, size: int) -> bytes:
        """See ports.Memory."""
        return bytes(size)

    def write(self, address: int, data: bytes) -> None:
        """Never called: emulation returns what is to be written."""

    patch = write


def _hex(address: int | None) -> str:
    return "nowhere" if address is None else f"{address:#x}"
