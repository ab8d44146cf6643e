"""Symbol versions of one ELF file: which version each dynamic symbol has.

Source: Linux Standard Base Core 5.0, chapter 10.7 (symbol versioning).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from ubpx.symbols.elf import MAX_STRING_BYTES, ElfHeaders, ImageReader, Section, string_at

MAX_VERSIONS: Final = 0x8000

_HIDDEN, _INDEX = 0x8000, 0x7FFF
_FIRST_NAMED = 2
"""Index 0 is a local symbol, 1 a global one without a version."""
_BASE = 1
"""VER_FLG_BASE: the file's own name, no version."""


@attrs.frozen(kw_only=True)
class Versions:
    """The version of each symbol in .dynsym, by the symbol's number."""

    numbers: tuple[int, ...] = ()
    names: Mapping[int, str] = attrs.field(factory=dict)

    def of(self, symbol_index: int) -> tuple[str | None, bool]:
        """The version's name, if there is one, and whether it is hidden (``@``, not the default ``@@``)."""
        if symbol_index >= len(self.numbers):
            return None, False
        number = self.numbers[symbol_index]
        name = self.names.get(number & _INDEX) if number & _INDEX >= _FIRST_NAMED else None
        return name, name is not None and bool(number & _HIDDEN)


def read_versions(reader: ImageReader, headers: ElfHeaders) -> Versions:
    """The versions that the file defines and needs. Raises UnreadableModule."""
    numbers = headers.sections_of("SHT_GNU_versym")
    if not numbers:
        return Versions()
    data = reader.section(numbers[0])
    names: dict[int, str] = {}
    for section in headers.sections_of("SHT_GNU_verdef")[:1]:
        names |= _defined(reader, headers, section)
    for section in headers.sections_of("SHT_GNU_verneed")[:1]:
        names |= _needed(reader, headers, section)
    return Versions(numbers=struct.unpack(f"{headers.order}{len(data) // 2}H", data[: len(data) // 2 * 2]), names=names)


def _defined(reader: ImageReader, headers: ElfHeaders, section: Section) -> dict[int, str]:
    definition, auxiliary = struct.Struct(headers.order + "HHHHIII"), struct.Struct(headers.order + "II")
    names = {}
    strings = _strings(reader, headers, section)
    data = reader.section(section)
    for at, (_, flags, index, _, _, first, _) in _chain(reader, definition, data, 0, section.info):
        name, _ = reader.unpack(auxiliary, data, at + first, "version definitions")
        if not flags & _BASE:
            names[index & _INDEX] = string_at(strings, name)
    return names


def _needed(reader: ImageReader, headers: ElfHeaders, section: Section) -> dict[int, str]:
    file, auxiliary = struct.Struct(headers.order + "HHIII"), struct.Struct(headers.order + "IHHII")
    names: dict[int, str] = {}
    strings = _strings(reader, headers, section)
    data = reader.section(section)
    left = MAX_VERSIONS
    for at, (_, count, _, first, _) in _chain(reader, file, data, 0, section.info):
        for _, (_, _, index, name, _) in _chain(reader, auxiliary, data, at + first, min(count, left)):
            names[index & _INDEX] = string_at(strings, name)
            left -= 1
    return names


def _chain(
    reader: ImageReader, layout: struct.Struct, data: bytes, at: int, count: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The entries of a linked list, whose last field is the distance to the next, and where each stands."""
    for _ in range(min(count, MAX_VERSIONS)):
        entry = reader.unpack(layout, data, at, "version table")
        yield at, entry
        if not entry[-1]:
            return
        at += entry[-1]


def _strings(reader: ImageReader, headers: ElfHeaders, section: Section) -> bytes:
    if section.link >= len(headers.sections):
        raise reader.refused(f"section {section.name or section.index} names no table of strings")
    return reader.section(headers.sections[section.link], limit=MAX_STRING_BYTES)
