"""The instructions of one ELF file, for the tools that go through all of them: ``coverage`` and ``decoders``."""

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs

from ubpx._errors import UnreadableModule, UsageError
from ubpx.core.ubp import ARCHITECTURES
from ubpx.core.ubp.decode import LONGEST_INSN
from ubpx.core.values import VirtAddr
from ubpx.symbols.code import CodeGap, CodeRange, read_code_map
from ubpx.symbols.elf import ElfHeaders, ImageReader, Linkage, Machine, read_headers

BITS: Final = {"x86_64": 64, "i386": 32, "aarch64": 64, "riscv64": 64}
_MACHINES: Final = {
    (Machine.X86_64, 64): "x86_64",
    (Machine.I386, 32): "i386",
    (Machine.AARCH64, 64): "aarch64",
    (Machine.RISCV, 64): "riscv64",
}
_LOADED_AT: Final = {
    "x86_64": 0x5555_5555_4000,
    "i386": 0x5655_5000,
    "aarch64": 0xAAAA_AAAA_A000,
    "riscv64": 0x2A_AAAA_A000,
}
"""Where the kernel puts a position-independent program without randomisation."""


@attrs.frozen
class Piece:
    """One function: its bytes, and the address that it would have in a process."""

    address: VirtAddr
    code: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ProgramText:
    """All code of one file that symbols, unwind entries or stubs vouch for."""

    path: str
    architecture: str
    bits: int
    base: int
    """What was added to the file's own addresses."""
    pieces: Sequence[Piece] = attrs.field(repr=False)
    gaps: Sequence[Piece] = attrs.field(repr=False)
    """What nobody vouches for of executable sections: padding, start-up code, data."""

    @property
    def gap_bytes(self) -> int:
        """In all gaps."""
        return sum(len(gap.code) for gap in self.gaps)

    def in_gap(self, address: int) -> bool:
        """Whether nobody vouches for what stands there."""
        at = bisect.bisect_right(self.gaps, address, key=lambda gap: gap.address) - 1
        return at >= 0 and address < self.gaps[at].address + len(self.gaps[at].code)


@attrs.frozen(kw_only=True)
class Specimen:
    """One sequence of instruction bytes, where it was met first, and how often it occurs."""

    raw: bytes
    address: VirtAddr
    window: bytes
    """What stands there, up to the longest instruction or the function's end."""
    count: int


@attrs.frozen(kw_only=True)
class Census:
    """Every instruction of a text, equal ones counted together."""

    specimens: Sequence[Specimen] = attrs.field(repr=False)
    last: Sequence[Specimen] = attrs.field(repr=False)
    """Those that end a function: behind them nothing may be read."""
    instructions: int
    undecodable: Sequence[Piece]
    """Rests of functions that begin with what the reader takes for no instruction."""

    @property
    def undecodable_bytes(self) -> int:
        """In all these rests."""
        return sum(len(piece.code) for piece in self.undecodable)


def read_text(path: str, architecture: str | None = None) -> ProgramText:
    """The file's code, to be analysed for its own machine, or for ``architecture``.

    Raises UsageError if it cannot be read, or ubpx has no architecture for it.
    """
    try:
        with Path(path).open("rb") as stream:
            return _text_of(ImageReader(stream, path), architecture)
    except OSError as error:
        raise UsageError(f"cannot open {path!r}: {error.strerror}; name an ELF file") from error
    except UnreadableModule as error:
        raise UsageError(f"cannot read {path!r}: {error.reason}; name an ELF file") from error


def _text_of(reader: ImageReader, architecture: str | None) -> ProgramText:
    headers = read_headers(reader)
    if headers.order != "<":
        raise UsageError(f"{reader.path}: it is big-endian; ubpx analyses code of little-endian programs alone")
    name = architecture or _architecture_of(headers)
    if name not in ARCHITECTURES or name not in BITS:
        known = ", ".join(sorted(BITS.keys() & ARCHITECTURES.keys()))
        raise UsageError(f"{reader.path}: ubpx cannot analyse code for {name}; it can for {known}")
    code = read_code_map(reader, headers)
    base = 0 if headers.linkage in {Linkage.FIXED, Linkage.STATIC} else _LOADED_AT[name]
    pieces = list(_pieces(reader, headers, code.ranges, base))
    if not pieces:
        raise UsageError(
            f"{reader.path!r} has no code that is loaded and that a symbol or an unwind entry vouches for; "
            "name a program or a shared library"
        )
    return ProgramText(
        path=reader.path,
        architecture=name,
        bits=BITS[name],
        base=base,
        pieces=pieces,
        gaps=list(_pieces(reader, headers, code.gaps, base)),
    )


def _pieces(
    reader: ImageReader, headers: ElfHeaders, parts: Sequence[CodeRange | CodeGap], base: int
) -> Iterator[Piece]:
    for each in parts:
        offset = headers.file_offset(each.start)
        if offset is not None:
            yield Piece(VirtAddr(base + each.start), reader.read(offset, each.end - each.start, "code"))


def _architecture_of(headers: ElfHeaders) -> str:
    known = _MACHINES.get((headers.machine, headers.bits))
    return known or f"{headers.machine.value} with {headers.bits} bits"


class Reader(Protocol):
    """Who tells one instruction from the next: ``opinions.Iced``, or ``plain_proofs.PlainReader``."""

    name: str
    reads_gaps: bool
    """Whether what nobody vouches for can be read as well: instructions tell their lengths, whatever they are."""

    def lengths(self, code: bytes, address: int, /) -> Iterator[int]:
        """Length after length from the start of ``code`` on; ends at what is no instruction."""
        ...

    def without_distance(self, code: bytes, address: int, /) -> bytes:
        """The instruction's bytes, equal for its equals elsewhere."""
        ...

    def bare(self, code: bytes, address: int, /) -> object:
        """Decode and say nothing: the least that any analysis must do, to measure against."""
        ...


def take_census(text: ProgramText, reader: Reader) -> Census:
    """Decode everything once, linearly from each function's start."""
    counts: Counter[bytes] = Counter()
    first: dict[bytes, tuple[Piece, int]] = {}
    last: dict[bytes, tuple[Piece, int]] = {}
    rests = []
    for piece in text.pieces:
        at, before, code = 0, -1, piece.code
        for length in reader.lengths(code, piece.address):
            raw = code[at : at + length]
            if raw not in first:
                first[raw] = piece, at
            counts[raw] += 1
            before, at = at, at + length
        if at < len(code):
            rests.append(Piece(VirtAddr(piece.address + at), code[at:]))
        elif before >= 0:
            last.setdefault(code[before:], (piece, before))
    return Census(
        specimens=list(_specimens(first, counts)),
        last=list(_specimens(last, counts)),
        instructions=counts.total(),
        undecodable=rests,
    )


def _specimens(where: dict[bytes, tuple[Piece, int]], counts: Counter[bytes]) -> Iterator[Specimen]:
    for raw, (piece, at) in where.items():
        yield Specimen(
            raw=raw,
            address=VirtAddr(piece.address + at),
            window=piece.code[at : at + LONGEST_INSN],
            count=counts[raw],
        )
