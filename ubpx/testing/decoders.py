"""``python -m ubpx.testing.decoders FILE...``: do iced and capstone agree, and with whom does ubpx side?

Compares the length of every instruction of a file and where it leads, and of whatever stands in the gaps
between its functions: by iced, by capstone, and by ubpx (``Architecture.analyze`` and ``flow``). Where they differ the
processor is asked for the length (``oracle.length``).
Exit status: 0 nobody is wrong on whom ubpx relies, 1 ubpx is, 2 usage.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import attrs

from ubpx._errors import InsnRefused, UsageError
from ubpx.core import ubp
from ubpx.core.ubp.decode import LONGEST_INSN
from ubpx.core.ubp.plans import Architecture
from ubpx.core.values import Insn, VirtAddr
from ubpx.testing.disagreements import Known, known
from ubpx.testing.file_tools import FileTool
from ubpx.testing.opinions import KNOWN_TO_BOTH, Disassembler, FlowKind, both_disassemblers
from ubpx.testing.oracle.length import Happened, LengthOracle, Measured, can_ask
from ubpx.testing.program_text import Piece, ProgramText, Specimen, take_census

SHOWN: Final = 50
NOT_TRIED: Final = "not tried"

_NEVER_BEHIND: Final = frozenset({FlowKind.JUMP, FlowKind.INDIRECT_JUMP, FlowKind.RETURN, FlowKind.NOWHERE})
_CALLS: Final = frozenset({FlowKind.CALL, FlowKind.INDIRECT_CALL})


@attrs.frozen
class Leads:
    """Where control goes from an instruction, in the terms of ``Architecture.flow``."""

    target: int | None = None
    falls_through: bool = True
    calls: bool = False

    def __str__(self) -> str:
        where = "" if self.target is None else f" {self.target:#x}"
        if self.calls:
            return f"calls{where}"
        then = "goes on" if self.falls_through else "does not go on"
        return f"leads to{where}, {then}" if where else then


@attrs.frozen
class Answer:
    """What somebody says of an instruction."""

    length: int | None
    """None: that it is none."""
    leads: Leads | None = None
    """None: nothing, as processors do not agree."""
    flow: FlowKind | None = None
    """In a disassembler's words."""
    refused: bool = False
    """By ubpx, which then runs no copy of it."""

    def __str__(self) -> str:
        if self.length is None:
            return "no instruction"
        words = [f"{self.length} bytes", str(self.flow or self.leads or "not followed")]
        return ", ".join([*words, "refused"] if self.refused else words)

    def agrees(self, other: "Answer") -> bool:
        """Whether both can be right."""
        return self.length == other.length and (None in {self.leads, other.leads} or self.leads == other.leads)


@attrs.frozen(kw_only=True)
class Disagreement:
    """One instruction on which not all are of one mind."""

    address: int
    """As linked; of the first such instruction."""
    in_gap: bool
    """Nobody vouches for its being an instruction at all."""
    code: bytes
    count: int
    iced: Answer
    capstone: Answer
    ours: Answer
    hardware: Measured | None
    """None: it was not asked."""
    known: Known | None
    wrong: bool
    """Whether ubpx sides with somebody who is wrong, or with nobody."""


@attrs.frozen(kw_only=True)
class Comparison:
    """What was found in one file."""

    text: ProgramText
    instructions: int
    distinct: int
    flows: Mapping[str, int]
    """By iced."""
    undecodable_bytes: int
    """That neither decodes."""
    disagreements: Sequence[Disagreement]
    seconds: float

    @property
    def wrong(self) -> int:
        """Disagreements that ubpx is on the wrong side of."""
        return sum(each.wrong for each in self.disagreements)


class Comparer:
    """Compares the instructions of one text. Owns nothing; the processor is its caller's."""

    def __init__(self, text: ProgramText, processor: LengthOracle | None) -> None:
        self._text = text
        self._iced, self._capstone = both_disassemblers(text.bits)
        self._architecture: Architecture = ubp.architecture(text.architecture)
        self._processor = processor

    def compare(self) -> Comparison:
        """Everything, once."""
        started = time.monotonic()
        flows: Counter[str] = Counter()
        found: list[Disagreement] = []
        instructions = distinct = undecodable = 0
        pieces: Sequence[Piece] = [*self._text.pieces, *self._text.gaps]
        while pieces:
            census = take_census(attrs.evolve(self._text, pieces=pieces), self._iced)
            instructions += census.instructions
            distinct += len(census.specimens)
            for specimen in census.specimens:
                iced = _said(self._iced, specimen.window, specimen.address)
                flows[iced.flow or FlowKind.NEXT] += specimen.count
                found += self._compared(specimen, iced)
            pieces = []
            for rest in census.undecodable:
                unknown = Specimen(raw=b"", address=rest.address, window=rest.code[:LONGEST_INSN], count=1)
                found += self._compared(unknown, Answer(None))
                length = _said(self._capstone, unknown.window, rest.address).length
                undecodable += length is None
                if (length or 1) < len(rest.code):  # go on behind what capstone takes for an instruction
                    pieces.append(Piece(VirtAddr(rest.address + (length or 1)), rest.code[length or 1 :]))
        return Comparison(
            text=self._text,
            instructions=instructions,
            distinct=distinct,
            flows=flows,
            undecodable_bytes=undecodable,
            disagreements=found,
            seconds=time.monotonic() - started,
        )

    def _compared(self, specimen: Specimen, iced: Answer) -> Iterator[Disagreement]:
        code = specimen.window
        capstone = _said(self._capstone, code, specimen.address)
        ours = _ours(self._architecture, specimen)
        if iced == capstone and iced.agrees(ours):
            return
        hardware = None if self._processor is None else self._processor.ask(code)
        explained = known(code, (iced.length, capstone.length))
        yield Disagreement(
            address=specimen.address - self._text.base,
            in_gap=self._text.in_gap(specimen.address),
            code=code[: max(each.length or 1 for each in (iced, capstone, ours))],
            count=specimen.count,
            iced=iced,
            capstone=capstone,
            ours=ours,
            hardware=hardware,
            known=explained,
            wrong=is_wrong(ours, (iced, capstone), hardware) and not (explained and explained.processors_differ),
        )


def compare(text: ProgramText) -> Comparison:
    """Everything in the text; the processor is asked where it can be. Raises UsageError for what iced cannot read."""
    if text.architecture not in KNOWN_TO_BOTH:
        known = " and ".join(sorted(KNOWN_TO_BOTH))
        raise UsageError(f"{text.path}: iced reads {known} alone, and this is for {text.architecture}")
    with ExitStack() as stack:
        processor = stack.enter_context(LengthOracle()) if text.bits == 64 and can_ask() else None
        return Comparer(text, processor).compare()


def is_wrong(ours: Answer, theirs: Sequence[Answer], hardware: Measured | None) -> bool:
    """Whether our answer is one that nobody gives, or one that the processor has refuted.

    That we call something no instruction is no harm: it is refused. And an undefined opcode's length
    is no processor's promise: it may say so before it has seen the rest.
    """
    if ours.length is None:
        return False
    if not any(ours.agrees(each) for each in theirs):
        return True
    if ours.refused or hardware is None or hardware.happened not in {Happened.EXECUTED, Happened.FAULTED}:
        return False
    if ours.length != hardware.length:
        return True
    if ours.leads is None or hardware.falls_through is None:
        return False
    goes_on, elsewhere = ours.leads.falls_through, ours.leads.calls or ours.leads.target is not None
    return not goes_on and ours.leads.target is None if hardware.falls_through else goes_on and not elsewhere


def _said(disassembler: Disassembler, code: bytes, address: int) -> Answer:
    opinion = disassembler.opinion(code, address)
    if opinion is None:
        return Answer(None)
    flow = opinion.flow
    leads = Leads(opinion.target, falls_through=flow not in _NEVER_BEHIND, calls=flow in _CALLS)
    return Answer(opinion.length, leads, flow)


def _ours(architecture: Architecture, specimen: Specimen) -> Answer:
    refused = False
    try:
        insn: Insn | None = architecture.analyze(specimen.window, specimen.address).insn
    except InsnRefused as error:
        refused, insn = True, error.insn
    if insn is None:
        return Answer(None, refused=refused)
    flow = next(architecture.flow(specimen.window, specimen.address), None)
    leads = None if flow is None else Leads(flow.target, falls_through=flow.falls_through, calls=flow.calls)
    return Answer(insn.length, leads, refused=refused)


def as_data(found: Comparison) -> dict[str, Any]:
    """For JSON."""
    return {
        "file": found.text.path,
        "arch": found.text.architecture,
        "instructions": found.instructions,
        "distinct": found.distinct,
        "flows": dict(found.flows),
        "undecodable_bytes": found.undecodable_bytes,
        "disagreements": len(found.disagreements),
        "wrong": found.wrong,
        "samples": [_sample(each) for each in _worst_first(found.disagreements)],
        "seconds": round(found.seconds, 2),
    }


def _worst_first(disagreements: Sequence[Disagreement]) -> Sequence[Disagreement]:
    return sorted(disagreements, key=lambda each: not each.wrong)[:SHOWN]


def _sample(each: Disagreement) -> dict[str, Any]:
    return {
        "address": f"{each.address:#x}",
        "in_gap": each.in_gap,
        "bytes": each.code.hex(),
        "count": each.count,
        "iced": str(each.iced),
        "capstone": str(each.capstone),
        "ubpx": str(each.ours),
        "hardware": NOT_TRIED if each.hardware is None else str(each.hardware),
        "known": each.known.reason if each.known else None,
        "wrong": each.wrong,
    }


def as_words(found: Comparison) -> Iterator[str]:
    """For people."""
    yield f"{found.text.path} ({found.text.architecture}): {found.instructions:,} instructions"
    yield from (f"  {flow:<14} {count:>10,}" for flow, count in found.flows.items())
    yield f"  undecodable: {found.undecodable_bytes:,} bytes; {found.seconds:.1f} s"
    yield f"  disagreements: {len(found.disagreements)}, of which ubpx is on the wrong side in {found.wrong}"
    for each in _worst_first(found.disagreements):
        asked = NOT_TRIED if each.hardware is None else each.hardware
        where = f"{each.address:#x}{' (in a gap)' if each.in_gap else ''}"
        yield f"    {where} [{each.code.hex(' ')}] {each.count} times{': WRONG' if each.wrong else ''}"
        yield f"      iced: {each.iced}; capstone: {each.capstone}; ubpx: {each.ours}; hardware: {asked}"
        if each.known:
            yield f"      known: {each.known.what}; {each.known.reason}"


_TOOL: Final = FileTool(
    name="decoders",
    description="Where two disassemblers disagree about an ELF file's instructions, and what the processor says.",
    arch_help="decode for this one, whatever the file says",
    look=compare,
    is_wrong=lambda found: found.wrong > 0,
    as_data=as_data,
    as_words=as_words,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    return _TOOL.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
