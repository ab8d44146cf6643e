"""``python -m ubpx.testing.decoders FILE...``: do iced and capstone agree, and with whom does ubpx side?

Compares the length and the control flow of every instruction of a file, and of whatever stands in the
gaps between its functions: by iced, by capstone and by ubpx's own analysis. Where they differ the
processor is asked for the length (``hardware``).
Exit status: 0 nobody is wrong on whom ubpx relies, 1 ubpx is, 2 usage.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import attrs

from ubpx._errors import InsnRefused, UbpxError
from ubpx.core import ubp
from ubpx.core.ubp.decode import LONGEST_INSN
from ubpx.core.ubp.encoding import parse
from ubpx.core.ubp.opinions import Disassembler, FlowKind, both_disassemblers
from ubpx.core.ubp.plans import Architecture
from ubpx.core.ubp.x86 import InsnClass, insn_class
from ubpx.core.values import VirtAddr
from ubpx.testing.disagreements import Known, known
from ubpx.testing.hardware import Happened, Processor, Verdict, can_ask
from ubpx.testing.plants import planted
from ubpx.testing.program_text import BITS, Piece, ProgramText, Specimen, read_text, take_census

SHOWN: Final = 50
NOT_TRIED: Final = "not tried"

_OUR_FLOWS: Final[Mapping[InsnClass, FlowKind]] = {
    InsnClass.JUMP: FlowKind.JUMP,
    InsnClass.BRANCH: FlowKind.CONDITIONAL,
    InsnClass.COUNTED_BRANCH: FlowKind.CONDITIONAL,
    InsnClass.CALL: FlowKind.CALL,
    InsnClass.INDIRECT_CALL: FlowKind.INDIRECT_CALL,
    InsnClass.SYSTEM_CALL: FlowKind.INTERRUPT,
    InsnClass.SYSENTER: FlowKind.INTERRUPT,
    InsnClass.TRANSACTION: FlowKind.CONDITIONAL,
}


@attrs.frozen
class Answer:
    """What somebody says of an instruction."""

    length: int | None
    """None: that it is none."""
    flow: FlowKind | None
    """None: nothing; ubpx does not ask itself where an instruction leads that it refuses."""

    def __str__(self) -> str:
        if self.length is None:
            return "no instruction"
        return f"{self.length} bytes, {self.flow or 'refused'}"

    def agrees(self, other: "Answer") -> bool:
        """Whether both can be right."""
        return self.length == other.length and (None in {self.flow, other.flow} or self.flow == other.flow)


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
    hardware: Verdict | None
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

    def __init__(self, text: ProgramText, processor: Processor | None) -> None:
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
                found += self._compared(unknown, Answer(None, None))
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
        ours = _ours(self._architecture, specimen, self._text.bits)
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
    """Everything in the text; the processor is asked where it can be."""
    with ExitStack() as stack:
        processor = stack.enter_context(Processor()) if text.bits == 64 and can_ask() else None
        return Comparer(text, processor).compare()


def is_wrong(ours: Answer, theirs: Sequence[Answer], hardware: Verdict | None) -> bool:
    """Whether our answer is one that nobody gives, or one that the processor has refuted.

    That we call something no instruction is no harm: it is refused. And an undefined opcode's length
    is no processor's promise: it may say so before it has seen the rest.
    """
    if ours.length is None:
        return False
    if not any(ours.agrees(each) for each in theirs):
        return True
    if ours.flow is None or hardware is None or hardware.happened not in {Happened.EXECUTED, Happened.FAULTED}:
        return False
    if ours.length != hardware.length:
        return True
    never_behind = {FlowKind.RETURN, FlowKind.INDIRECT_JUMP, FlowKind.INDIRECT_CALL}
    refuted = {True: never_behind, False: {FlowKind.NEXT}, None: set[FlowKind]()}[hardware.falls_through]
    return ours.flow in refuted


def _said(disassembler: Disassembler, code: bytes, address: int) -> Answer:
    opinion = disassembler.opinion(code, address)
    return Answer(None, None) if opinion is None else Answer(opinion.length, opinion.flow)


def _ours(architecture: Architecture, specimen: Specimen, bits: int) -> Answer:
    try:
        insn = architecture.analyze(specimen.window, specimen.address).insn
    except InsnRefused as refused:
        return Answer(None if refused.insn is None else refused.insn.length, None)
    return Answer(insn.length, own_flow(insn.raw, bits))


def own_flow(raw: bytes, bits: int) -> FlowKind:
    """What ubpx's class of an instruction that it does not refuse says of where it leads."""
    encoding = parse(raw, bits)
    kind = insn_class(encoding)
    if kind is not InsnClass.LEAVES:
        return _OUR_FLOWS.get(kind, FlowKind.NEXT)
    return FlowKind.RETURN if encoding.opcode in {0xC2, 0xC3} else FlowKind.INDIRECT_JUMP


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


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    parser = argparse.ArgumentParser(
        prog="python -m ubpx.testing.decoders",
        description="Where two disassemblers disagree about an ELF file's instructions, and what the processor says.",
        epilog="example: python -m ubpx.testing.decoders --json /usr/lib/x86_64-linux-gnu/libc.so.6",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--arch", choices=sorted(BITS), help="decode for this one, whatever the file says")
    parser.add_argument("--json", action="store_true", help="one object a line for each file")
    parser.add_argument("--plant", metavar="FAULT", help="break the architecture layer on purpose; it must be found")
    chosen = parser.parse_args(arguments)
    wrong = 0
    try:
        with planted(chosen.plant):
            for path in chosen.files:
                found = compare(read_text(path, chosen.arch))
                wrong += found.wrong
                lines = [json.dumps(as_data(found))] if chosen.json else as_words(found)
                sys.stdout.writelines(f"{line}\n" for line in lines)
                sys.stdout.flush()
    except UbpxError as error:
        sys.stderr.write(f"ubpx: {error}\n")
        return 2
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
