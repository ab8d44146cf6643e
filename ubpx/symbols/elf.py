"""The headers of one ELF file: what is loaded where, and where its tables are.

The file belongs to the target, which may be hostile: every size has a cap, every offset is
checked, and whatever is wrong becomes UnreadableModule.
Source: System V ABI, gABI 4.1, chapters 4 (object files) and 5 (program loading).
"""

import bisect
import enum
import io
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs

from ubpx._errors import UnreadableModule
from ubpx.symbols.names import printable

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAX_SECTIONS: Final = 8192
MAX_SEGMENTS: Final = 256
MAX_TABLE_BYTES: Final = 128 << 20
"""Of one symbol or relocation section: five million symbols. Chromium with symbols has two."""
MAX_STRING_BYTES: Final = 512 << 20
MAX_NAME_BYTES: Final = 4096
"""Of a module's or a section's name."""

_PF_X, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_DT_NULL, _DT_STRTAB, _DT_SONAME, _DT_FLAGS_1 = 0, 5, 14, 0x6FFFFFFB
_DF_1_PIE = 0x08000000


class Machine(enum.Enum):
    """The processor that the file is for, by the ABI's name."""

    X86_64 = "EM_X86_64"
    I386 = "EM_386"
    AARCH64 = "EM_AARCH64"
    RISCV = "EM_RISCV"
    OTHER = "other"


class Linkage(enum.Enum):
    """How the file comes to its addresses."""

    FIXED = "an executable with fixed addresses"
    PIE = "a position-independent executable"
    STATIC = "an executable with fixed addresses that needs no dynamic linker"
    STATIC_PIE = "a position-independent executable that needs no dynamic linker"
    LIBRARY = "a shared object"


@attrs.frozen(kw_only=True)
class Section:
    """One section header. ``kind`` is the ABI's name (``SHT_SYMTAB``); addresses are as linked."""

    name: str
    kind: str
    index: int
    allocated: bool
    executable: bool
    address: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def end(self) -> int:
        """The address behind the section."""
        return self.address + self.size

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.address <= address < self.end


class CodeSections:
    """The sections with instructions of one file, to be asked by address. Immutable once made."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self._sections = sorted(sections, key=lambda section: section.address)
        self._starts = [section.address for section in self._sections]
        self.indices = frozenset(section.index for section in self._sections)

    def around(self, address: int) -> Section | None:
        """The section that holds the address (as linked)."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._sections[at] if at >= 0 and address in self._sections[at] else None


@attrs.frozen(kw_only=True)
class Segment:
    """One PT_LOAD program header; ``address`` is as linked."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    executable: bool


@attrs.frozen(kw_only=True)
class ElfHeaders:
    """What a file says of itself before its tables are read."""

    path: str
    bits: int
    """32 or 64."""
    order: str
    """As struct writes it: ``<`` or ``>``."""
    machine: Machine
    linkage: Linkage
    soname: str | None
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]

    @property
    def word_bytes(self) -> int:
        """Of an address."""
        return self.bits // 8

    def sections_of(self, kind: str) -> tuple[Section, ...]:
        """All sections of the kind, in the file's order."""
        return tuple(section for section in self.sections if section.kind == kind)

    def code(self) -> "CodeSections":
        """The loaded sections with instructions."""
        return CodeSections(section for section in self.sections if section.executable and section.allocated)

    def file_offset(self, address: int) -> int | None:
        """Where the file has the byte of this linked address, if anywhere."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.file_size:
                return segment.offset + (address - segment.address)
        return None


class ImageReader:
    """Bounds-checked reads of one ELF image. The stream belongs to whoever made the reader."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.stream, self.path = stream, path
        self.size = stream.seek(0, io.SEEK_END)

    def read(self, offset: int, size: int, what: str, *, limit: int = MAX_TABLE_BYTES) -> bytes:
        """Exactly ``size`` bytes of the file; ``what`` names them in the error."""
        if size > limit:
            raise self.refused(f"its {what} has {size} bytes, more than the {limit} that ubpx reads")
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.refused(f"its {what} lies outside the file")
        try:
            self.stream.seek(offset)
            data = self.stream.read(size)
        except OSError as error:
            raise self.refused(f"its {what} cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise self.refused(f"it shrank while its {what} was read")
        return data

    def section(self, section: Section, *, limit: int = MAX_TABLE_BYTES) -> bytes:
        """The section's bytes; b"" for one that the file does not store."""
        if section.kind == "SHT_NOBITS":
            return b""
        return self.read(section.offset, section.size, f"section {section.name or section.index}", limit=limit)

    def unpack(self, layout: struct.Struct, data: bytes, offset: int, what: str) -> tuple[int, ...]:
        """The fields at ``offset`` of ``data``, which ``what`` names."""
        if offset < 0 or offset + layout.size > len(data):
            raise self.refused(f"its {what} ends in the middle of an entry")
        return layout.unpack_from(data, offset)

    def refused(self, reason: str) -> UnreadableModule:
        """The error that says so of this file."""
        return UnreadableModule(self.path, printable(reason))


def string_at(strings: bytes, offset: int, *, limit: int = MAX_NAME_BYTES) -> str:
    """The string that starts at ``offset``, cut at ``limit`` bytes; "" outside the table."""
    end = strings.find(b"\0", offset, offset + limit)
    return strings[offset : end if end >= 0 else offset + limit].decode("utf-8", "backslashreplace")


def read_headers(reader: ImageReader) -> ElfHeaders:
    """Everything but the tables' contents. Raises UnreadableModule."""
    # pyelftools raises whatever its parsing stumbles over: ELFError, but AssertionError, KeyError and
    # OverflowError too. None of them may reach a user, and nothing of ours runs inside.
    try:
        headers, dynamic = _parse(reader)
    except UnreadableModule:
        raise
    except Exception as error:
        raise reader.refused(f"it is not a sound ELF file ({type(error).__name__}: {error})") from error
    return _with_dynamic(reader, headers, dynamic) if dynamic else headers


def _parse(reader: ImageReader) -> tuple[ElfHeaders, tuple[int, int] | None]:
    """The headers without what the dynamic section says, and the file offset and size of the dynamic section."""
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(reader.stream)
    segments, kinds, dynamic = _segments(reader, elf)
    headers = ElfHeaders(
        path=reader.path,
        bits=elf.elfclass,
        order="<" if elf.little_endian else ">",
        machine=next((machine for machine in Machine if machine.value == elf.header["e_machine"]), Machine.OTHER),
        linkage=_linkage(elf.header["e_type"], kinds),
        soname=None,
        segments=segments,
        sections=_sections(reader, elf),
    )
    return headers, dynamic


def _linkage(file_type: object, segment_kinds: frozenset[object]) -> Linkage:
    interpreted = "PT_INTERP" in segment_kinds
    if file_type == "ET_EXEC":
        return Linkage.FIXED if interpreted else Linkage.STATIC
    if interpreted:
        return Linkage.PIE
    return Linkage.LIBRARY  # or a static PIE, which its dynamic section tells


def _segments(
    reader: ImageReader, elf: "ELFFile"
) -> tuple[tuple[Segment, ...], frozenset[object], tuple[int, int] | None]:
    from elftools.common.utils import struct_parse

    count, size = elf.num_segments(), elf.header["e_phentsize"]
    if count > MAX_SEGMENTS:
        raise reader.refused(f"it has {count} program headers, more than {MAX_SEGMENTS}")
    loads, kinds, dynamic = [], set(), None
    for number in range(count):
        header = struct_parse(elf.structs.Elf_Phdr, reader.stream, elf.header["e_phoff"] + number * size)
        kinds.add(header["p_type"])
        if header["p_type"] == "PT_DYNAMIC":
            dynamic = (header["p_offset"], header["p_filesz"])
        if header["p_type"] == "PT_LOAD":
            loads.append(
                Segment(
                    address=header["p_vaddr"],
                    offset=header["p_offset"],
                    file_size=header["p_filesz"],
                    memory_size=header["p_memsz"],
                    executable=bool(header["p_flags"] & _PF_X),
                )
            )
    return tuple(loads), frozenset(kinds), dynamic


def _sections(reader: ImageReader, elf: "ELFFile") -> tuple[Section, ...]:
    from elftools.common.utils import struct_parse

    count, size = elf.num_sections(), elf.header["e_shentsize"]
    if count > MAX_SECTIONS:
        raise reader.refused(f"it has {count} sections, more than {MAX_SECTIONS}")
    raw = [
        struct_parse(elf.structs.Elf_Shdr, reader.stream, elf.header["e_shoff"] + number * size)
        for number in range(count)
    ]
    names_index = elf.get_shstrndx() if count else 0
    names = b""
    if 0 < names_index < count:
        header = raw[names_index]
        names = reader.read(header["sh_offset"], header["sh_size"], "table of section names")
    return tuple(
        Section(
            name=string_at(names, header["sh_name"]),
            kind=str(header["sh_type"]),
            index=index,
            allocated=bool(header["sh_flags"] & _SHF_ALLOC),
            executable=bool(header["sh_flags"] & _SHF_EXECINSTR),
            address=header["sh_addr"],
            offset=header["sh_offset"],
            size=header["sh_size"],
            link=header["sh_link"],
            info=header["sh_info"],
        )
        for index, header in enumerate(raw)
    )


def _with_dynamic(reader: ImageReader, headers: ElfHeaders, dynamic: tuple[int, int]) -> ElfHeaders:
    offset, size = dynamic
    pair = struct.Struct(headers.order + ("QQ" if headers.bits == 64 else "II"))
    data = reader.read(offset, size - size % pair.size, "dynamic section")
    found: dict[int, int] = {}
    for tag, value in pair.iter_unpack(data):
        if tag == _DT_NULL:
            break
        if tag in (_DT_SONAME, _DT_STRTAB, _DT_FLAGS_1):
            found[tag] = value
    static_pie = headers.linkage is Linkage.LIBRARY and found.get(_DT_FLAGS_1, 0) & _DF_1_PIE
    return attrs.evolve(
        headers,
        soname=_soname(reader, headers, found),
        linkage=Linkage.STATIC_PIE if static_pie else headers.linkage,
    )


def _soname(reader: ImageReader, headers: ElfHeaders, dynamic: Mapping[int, int]) -> str | None:
    if _DT_SONAME not in dynamic or _DT_STRTAB not in dynamic:
        return None
    strings = headers.file_offset(dynamic[_DT_STRTAB])
    if strings is None or strings + dynamic[_DT_SONAME] >= reader.size:
        return None
    start = strings + dynamic[_DT_SONAME]
    name = reader.read(start, min(MAX_NAME_BYTES, reader.size - start), "soname")
    return string_at(name, 0) or None
