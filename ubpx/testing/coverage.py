"""``python -m ubpx.testing.coverage FILE...``: what ubpx can do at each instruction of a file, and is it right?

Goes through every instruction that a symbol, an unwind entry or the linker's stubs vouch for, and on
aarch64 and riscv64, where instructions tell their own lengths, through the gaps between them, too.
Counts by the best strategy, and proves of every distinct one that its copy is right (``slot_proofs``,
``plain_proofs``).
Exit status: 0 all is well, 1 something is wrong, 2 usage.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from ubpx._errors import InsnRefused
from ubpx.core import ubp
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, Strategy
from ubpx.testing.file_tools import FileTool
from ubpx.testing.opinions import KNOWN_TO_BOTH, both_disassemblers
from ubpx.testing.plain_proofs import PlainProver, PlainReader
from ubpx.testing.program_text import Census, ProgramText, Reader, Specimen, take_census
from ubpx.testing.slot_proofs import Prover, overreads

SHOWN_DIFFERENCES: Final = 50
_WITHOUT_STEP: Final = frozenset({Strategy.EMULATE, Strategy.JUMP, Strategy.BOOST})
_SAMPLE: Final = 4000
_ROUNDS: Final = 3


@attrs.frozen(kw_only=True)
class Difference:
    """Something that is not as it must be at one instruction."""

    address: int
    """As linked."""
    raw: bytes
    what: str


@attrs.frozen(kw_only=True)
class Cost:
    """Of analysing one instruction, measured in turns with a disassembler's bare decoding of the same bytes."""

    us: float
    bare_us: float
    by: str
    """Whose: iced's, or capstone's where iced knows nothing of the architecture."""

    @property
    def multiple(self) -> float:
        """How many times the disassembler's."""
        return self.us / self.bare_us if self.bare_us else 0.0


@attrs.frozen(kw_only=True)
class Coverage:
    """What was found in one file."""

    text: ProgramText
    census: Census
    by_strategy: Mapping[str, int]
    refused: Mapping[str, int]
    differences: Sequence[Difference]
    cost: Cost
    seconds: float

    @property
    def without_step(self) -> int:
        """Instructions that a thread passes without a single step."""
        return sum(self.by_strategy.get(strategy, 0) for strategy in _WITHOUT_STEP)


def cover(text: ProgramText) -> Coverage:
    """Analyse and prove everything in the text."""
    started = time.monotonic()
    architecture = ubp.architecture(text.architecture)
    reader, prover = _means(text, architecture)
    vouched = [*text.pieces, *text.gaps] if reader.reads_gaps else text.pieces
    census = take_census(attrs.evolve(text, pieces=vouched), reader)
    by_strategy: Counter[str] = Counter(dict.fromkeys(Strategy, 0))
    refused: Counter[str] = Counter()
    wrong: list[tuple[Specimen, str]] = []
    proved = set()
    for specimen in census.specimens:
        try:
            analysis = architecture.analyze(specimen.window, specimen.address)
        except InsnRefused as error:
            refused[error.reason] += specimen.count
            continue
        by_strategy[analysis.strategies[0]] += specimen.count
        kind = reader.without_distance(specimen.raw, specimen.address)
        if kind not in proved:  # equal ones elsewhere differ by a distance alone
            proved.add(kind)
            wrong += [(specimen, what) for what in _wrong(prover, specimen, analysis)]
    wrong += [(specimen, what) for specimen in census.last for what in overreads(architecture, specimen)]
    differences = [
        Difference(address=specimen.address - text.base, raw=specimen.raw, what=what) for specimen, what in wrong
    ]
    counted = by_strategy.total() + refused.total()
    if counted != census.instructions:
        what = f"{counted} instructions analysed or refused, of {census.instructions}"
        differences.append(Difference(address=0, raw=b"", what=what))
    return Coverage(
        text=text,
        census=census,
        by_strategy=by_strategy,
        refused=dict(refused.most_common()),
        differences=differences,
        cost=_cost(architecture, reader, census),
        seconds=time.monotonic() - started,
    )


def _means(text: ProgramText, architecture: Architecture) -> tuple[Reader, Prover | PlainProver]:
    """Who reads the text, and who proves: two disassemblers, or one and the bytes."""
    if text.architecture in KNOWN_TO_BOTH:
        iced, capstone = both_disassemblers(text.bits)
        return iced, Prover(architecture, (iced, capstone))
    reader = PlainReader(architecture)
    return reader, PlainProver(architecture, reader)


def _wrong(prover: Prover | PlainProver, specimen: Specimen, analysis: InsnAnalysis) -> Iterator[str]:
    if analysis.insn.raw != specimen.raw:
        yield f"the analysis takes {analysis.insn.raw.hex()} for the instruction"
    yield from prover.faults(specimen, analysis)


def _cost(architecture: Architecture, reader: Reader, census: Census) -> Cost:
    """The least of several rounds for each part of a sample, so that noise of the machine falls out of both."""
    every = census.specimens[:: max(1, len(census.specimens) // _SAMPLE)]
    parts = [every[at : at + 200] for at in range(0, len(every), 200)]
    ours = theirs = 0.0
    for part in parts:
        rounds = [(_time(architecture, part), _time_bare(reader, part)) for _ in range(_ROUNDS)]
        ours += min(mine for mine, _ in rounds)
        theirs += min(bare for _, bare in rounds)
    count = max(1, len(every))
    return Cost(us=ours / count * 1e6, bare_us=theirs / count * 1e6, by=reader.name)


def _time(architecture: Architecture, part: Sequence[Specimen]) -> float:
    analyze = architecture.analyze
    started = time.perf_counter()
    for specimen in part:
        try:
            analyze(specimen.window, specimen.address)
        except InsnRefused:
            continue
    return time.perf_counter() - started


def _time_bare(reader: Reader, part: Sequence[Specimen]) -> float:
    decode = reader.bare
    started = time.perf_counter()
    for specimen in part:
        decode(specimen.window, specimen.address)
    return time.perf_counter() - started


def as_data(found: Coverage) -> dict[str, Any]:
    """For JSON."""
    total = max(1, found.census.instructions)
    return {
        "file": found.text.path,
        "arch": found.text.architecture,
        "instructions": found.census.instructions,
        "by_strategy": dict(found.by_strategy),
        "refused": dict(found.refused),
        "refused_share": round(sum(found.refused.values()) / total, 6),
        "no_step_share": round(found.without_step / total, 6),
        "distinct": len(found.census.specimens),
        "functions": len(found.text.pieces),
        "gap_bytes": found.text.gap_bytes,
        "undecodable_bytes": found.census.undecodable_bytes,
        "differences": len(found.differences),
        "samples": [
            {"address": f"{each.address:#x}", "bytes": each.raw.hex(), "what": each.what}
            for each in found.differences[:SHOWN_DIFFERENCES]
        ],
        "analysis": {
            "us": round(found.cost.us, 3),
            f"{found.cost.by}_us": round(found.cost.bare_us, 3),
            "multiple": round(found.cost.multiple, 2),
        },
        "seconds": round(found.seconds, 2),
    }


def as_words(found: Coverage) -> Iterator[str]:
    """For people."""
    total = max(1, found.census.instructions)
    yield f"{found.text.path} ({found.text.architecture}): {found.census.instructions:,} instructions"
    for strategy, count in found.by_strategy.items():
        if count:
            yield f"  {strategy:<10} {count:>10,}  {count / total:8.3%}"
    refused = sum(found.refused.values())
    yield f"  {'refused':<10} {refused:>10,}  {refused / total:8.3%}"
    yield from (f"    {count:>8,}  {reason}" for reason, count in found.refused.items())
    yield f"  no single step needed: {found.without_step / total:.3%}"
    yield f"  nobody vouches for {found.text.gap_bytes:,} bytes; undecodable: {found.census.undecodable_bytes:,} bytes"
    cost = found.cost
    bare = f"{cost.multiple:.1f} times {cost.by}'s bare decoding"
    yield f"  analysis: {cost.us:.2f} us, {bare}; {found.seconds:.1f} s in all"
    yield f"  differences: {len(found.differences)}"
    for each in found.differences[:SHOWN_DIFFERENCES]:
        yield f"    {each.address:#x} [{each.raw.hex(' ')}]: {each.what}"


_TOOL: Final = FileTool(
    name="coverage",
    description="What ubpx can do at every instruction of an ELF file, and whether the copies are right.",
    arch_help="analyse for this one, whatever the file says",
    look=cover,
    is_wrong=lambda found: bool(found.differences),
    as_data=as_data,
    as_words=as_words,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    return _TOOL.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
