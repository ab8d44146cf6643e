"""A small ELF file made by hand, so that each of its bytes is known and may be spoilt."""

import struct

import attrs
import pytest

TEXT_ADDRESS = 0x401000
FUNC, IFUNC, OBJECT, NOTYPE, FILE = 2, 10, 1, 0, 4
LOCAL, GLOBAL, WEAK = 0, 1, 2
TEXT_SECTION = 1


@attrs.frozen(kw_only=True)
class Entry:
    """One symbol to be written."""

    name: str
    value: int
    size: int = 0
    type: int = FUNC
    scope: int = GLOBAL
    section: int = TEXT_SECTION


class ElfMaker:
    """Writes ELF files of one code section, a symbol table and its strings, 32 or 64 bits."""

    def make(self, entries: list[Entry], *, bits: int = 64, text_size: int = 0x1000) -> bytes:
        strings, rows = b"\0", [self._row(Entry(name="", value=0, type=NOTYPE, scope=LOCAL, section=0), 0, bits)]
        for entry in entries:
            rows.append(self._row(entry, len(strings), bits))
            strings += entry.name.encode() + b"\0"
        section_names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
        header_size, program_size, section_size = (64, 56, 64) if bits == 64 else (52, 32, 40)
        table = b"".join(rows)
        table_at = header_size + program_size
        strings_at = table_at + len(table)
        names_at = strings_at + len(strings)
        sections = [
            self._section(bits),
            self._section(bits, name=1, kind=1, flags=6, address=TEXT_ADDRESS, size=text_size),
            self._section(bits, name=7, kind=2, offset=table_at, size=len(table), link=3, entry=len(rows[0])),
            self._section(bits, name=15, kind=3, offset=strings_at, size=len(strings)),
            self._section(bits, name=23, kind=3, offset=names_at, size=len(section_names)),
        ]
        sections_at = names_at + len(section_names)
        sizes = (header_size, program_size, 1, section_size, len(sections), len(sections) - 1)
        identity = b"\x7fELF" + bytes((2 if bits == 64 else 1, 1, 1)) + bytes(9)
        word = "Q" if bits == 64 else "I"
        machine = 62 if bits == 64 else 3
        header = struct.pack(f"<HHI3{word}I6H", 2, machine, 1, TEXT_ADDRESS, header_size, sections_at, 0, *sizes)
        if bits == 64:
            program = struct.pack("<II6Q", 1, 5, 0, TEXT_ADDRESS, TEXT_ADDRESS, text_size, text_size, 4096)
        else:
            program = struct.pack("<8I", 1, 0, TEXT_ADDRESS, TEXT_ADDRESS, text_size, text_size, 5, 4096)
        return identity + header + program + table + strings + section_names + b"".join(sections)

    def _row(self, entry: Entry, name: int, bits: int) -> bytes:
        info = entry.scope << 4 | entry.type
        if bits == 64:
            return struct.pack("<IBBHQQ", name, info, 0, entry.section, entry.value, entry.size)
        return struct.pack("<IIIBBH", name, entry.value, entry.size, info, 0, entry.section)

    def _section(self, bits: int, **fields: int) -> bytes:
        order = ("name", "kind", "flags", "address", "offset", "size", "link", "info", "align", "entry")
        layout = "<IIQQQQIIQQ" if bits == 64 else "<10I"
        return struct.pack(layout, *(fields.get(field, 0) for field in order))


@pytest.fixture(scope="session")
def elf_maker() -> ElfMaker:
    """Makes ELF files; see the class."""
    return ElfMaker()


@pytest.fixture(scope="session")
def entry() -> type[Entry]:
    """What the maker's files consist of."""
    return Entry
