"""Which bytes of one ELF file are functions, for tools: without a process, as linked.

Three witnesses: sized function symbols, the unwind table, which stripped files keep, and the
linker's own stubs (PLT), where a section holds nothing else. What none of them covers is a gap:
padding, start-up code without unwind data, data in text. Nobody vouches for an instruction there.
"""

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import attrs

from ubpx._errors import UnreadableModule
from ubpx.symbols.elf import ElfHeaders, ImageReader, Machine, Section, read_headers
from ubpx.symbols.lookup import read_symbols
from ubpx.symbols.names import printable
from ubpx.symbols.unwind import read_unwind_table


class ProvedBy(StrEnum):
    """Who says that a function starts there; the best witness first."""

    SYMBOL = "SYMBOL"
    STUBS = "STUBS"
    """The section of linker-made stubs begins there and holds nothing but such."""
    UNWIND = "UNWIND"


@attrs.frozen
class CodeRange:
    """Bytes that decode from ``start`` on. Addresses are as linked."""

    start: int
    end: int
    """Behind the last byte: where the function ends, or the next witness speaks."""
    name: str | None
    """Of the function, or of the section of stubs; None where the unwind table alone knows it."""
    proved_by: ProvedBy


@attrs.frozen
class CodeGap:
    """Bytes of an executable section for which nobody vouches. Addresses are as linked."""

    start: int
    end: int
    section: str


@attrs.frozen
class CodeMap:
    """All executable sections of one file, divided into functions and gaps; both ascending."""

    ranges: tuple[CodeRange, ...]
    gaps: tuple[CodeGap, ...]


def function_ranges(path: str | Path) -> Sequence[CodeRange]:
    """The functions of the file, ascending, never overlapping.

    Where witnesses overlap, each start begins a range: a function with another inside is cut in two.
    Raises UnreadableModule.
    """
    return code_map(path).ranges


def gaps(path: str | Path) -> Sequence[CodeGap]:
    """The bytes of executable sections that are in no range of ``function_ranges``. Raises UnreadableModule."""
    return code_map(path).gaps


def code_map(path: str | Path) -> CodeMap:
    """Both at once; reads the file once. Raises UnreadableModule."""
    try:
        stream = Path(path).open("rb")  # noqa: SIM115  (closed right below)
    except OSError as error:
        raise UnreadableModule(str(path), f"it cannot be opened ({error.strerror})") from error
    with stream:
        reader = ImageReader(stream, str(path))
        return read_code_map(reader, read_headers(reader))


def read_code_map(reader: ImageReader, headers: ElfHeaders) -> CodeMap:
    """As ``code_map``, of a file that is open. Raises UnreadableModule."""
    sections = sorted(
        (each for each in headers.sections if each.executable and each.allocated and each.size),
        key=lambda each: each.address,
    )
    ranges = _divided(_witnessed(reader, headers), sections)
    return CodeMap(tuple(ranges), tuple(_between(ranges, sections)))


def _witnessed(reader: ImageReader, headers: ElfHeaders) -> list[CodeRange]:
    """What each witness says, in any order."""
    symbols = read_symbols(reader, headers).functions(lambda name: True)  # noqa: ARG005  (all of them)
    said = [
        CodeRange(each.address, each.address + each.size, printable(each.name), ProvedBy.SYMBOL)
        for each in symbols
        if each.size
    ]
    said += [CodeRange(each.address, each.end, each.name, ProvedBy.STUBS) for each in read_stubs(reader, headers)]
    said += [CodeRange(start, end, None, ProvedBy.UNWIND) for start, end in read_unwind_table(reader, headers).ranges()]
    return said


_RANK: Final = {witness: rank for rank, witness in enumerate(ProvedBy)}


def _divided(said: Iterable[CodeRange], sections: Sequence[Section]) -> list[CodeRange]:
    """One range for each start that is in a section, up to the next one or to where nobody speaks any more."""
    starts = [section.address for section in sections]
    ranges: list[CodeRange] = []
    reach = 0
    for start, group in itertools.groupby(
        sorted(said, key=lambda each: (each.start, _RANK[each.proved_by])), key=lambda each: each.start
    ):
        several = list(group)
        at = bisect.bisect_right(starts, start) - 1
        if at < 0 or start not in sections[at]:
            continue
        if ranges and ranges[-1].end > start:
            ranges[-1] = attrs.evolve(ranges[-1], end=start)
        reach = min(max(reach, *(each.end for each in several)), sections[at].end)
        ranges.append(CodeRange(start, reach, several[0].name, several[0].proved_by))
    return ranges


def _between(ranges: Sequence[CodeRange], sections: Sequence[Section]) -> list[CodeGap]:
    found = []
    at = 0
    for section in sections:
        known = section.address
        while at < len(ranges) and ranges[at].start < section.end:
            if ranges[at].start > known:
                found.append(CodeGap(known, ranges[at].start, section.name))
            known = ranges[at].end
            at += 1
        if known < section.end:
            found.append(CodeGap(known, section.end, section.name))
    return found


_STUBS: Final = (".plt", ".iplt")
_STUB_INSNS: Final = (
    rb"\xf3\x0f\x1e[\xfa\xfb]"  # endbr64, endbr32
    rb"|\xf2?\xff[\x25\xa3].{4}"  # jmp through the GOT, relative to rip, absolute or relative to ebx
    rb"|\xff[\x35\xb3].{4}"  # push of a GOT word
    rb"|\x68.{4}"  # push of the relocation's number
    rb"|\xf2?\xe9.{4}"  # jmp to the first entry
    rb"|\x90|\x66\x90|\x0f\x1f\x00|\x0f\x1f\x40\x00|\x0f\x1f\x44\x00\x00"  # padding
    rb"|\x66\x0f\x1f\x44\x00\x00|\x0f\x1f\x80\x00{4}|\x66?\x2e?\x0f\x1f\x84\x00{5}|\xcc"
)
_ONLY_STUBS: Final = {
    Machine.X86_64: re.compile(rb"(?:" + _STUB_INSNS + rb")+", re.DOTALL),
    Machine.I386: re.compile(rb"(?:" + _STUB_INSNS + rb"|\x00{4})+", re.DOTALL),  # zeros pad the first entry
}


def read_stubs(reader: ImageReader, headers: ElfHeaders) -> tuple[Section, ...]:
    """The sections that hold the linker's stubs and nothing else. Raises UnreadableModule."""
    return tuple(
        each
        for each in headers.sections
        if each.executable and each.name.startswith(_STUBS) and holds_stubs_alone(headers.machine, reader.section(each))
    )


def holds_stubs_alone(machine: Machine, code: bytes) -> bool:
    """Whether the code is stubs from its first byte to its last.

    Source: System V ABI, AMD64 supplement, section 5.2; binutils, elf_x86_64 PLT layouts (lazy, IBT, BND).
    """
    layout = _ONLY_STUBS.get(machine)
    return layout is not None and layout.fullmatch(code) is not None
