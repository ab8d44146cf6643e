"""Where the dynamic linker stores the addresses that it has chosen: GOT words of one ELF file.

Sources: psABI x86-64 1.0 table 4.9, psABI i386 1.1 table 2.5, AAELF64 2024Q3 chapter 5.7,
RISC-V ELF psABI 1.0 chapter 8.4.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from ubpx.symbols.elf import MAX_TABLE_BYTES, ElfHeaders, ImageReader, Machine, Section
from ubpx.symbols.lookup import read_dynamic_table
from ubpx.symbols.symtab import Symbol, SymbolTable

MAX_WORDS: Final = 256
"""GOT words that are looked at for one function."""


@attrs.frozen(kw_only=True)
class RelocationTypes:
    """The numbers of the relocations that hold a function's address."""

    irelative: int
    """The word becomes what the resolver at the addend returns."""
    by_symbol: frozenset[int]
    """JUMP_SLOT, GLOB_DAT and the absolute one of an address's width: the word becomes the symbol's address."""


TYPES: Final[Mapping[Machine, RelocationTypes]] = {
    Machine.X86_64: RelocationTypes(irelative=37, by_symbol=frozenset((1, 6, 7))),
    Machine.I386: RelocationTypes(irelative=42, by_symbol=frozenset((1, 6, 7))),
    Machine.AARCH64: RelocationTypes(irelative=1032, by_symbol=frozenset((257, 1025, 1026))),
    Machine.RISCV: RelocationTypes(irelative=58, by_symbol=frozenset((1, 2, 5))),
}


NO_TYPES: Final = RelocationTypes(irelative=-1, by_symbol=frozenset())


@attrs.frozen(kw_only=True)
class Relocations:
    """The GOT words of one file. Addresses are as linked."""

    by_resolver: Mapping[int, tuple[int, ...]]
    """Words that hold what this resolver returned (IRELATIVE)."""
    by_symbol: tuple[tuple[int, int], ...]
    """A word, and the number in .dynsym of the symbol whose address it holds."""
    symbols: SymbolTable | None

    def numbered(self, names: frozenset[str]) -> Mapping[int, Symbol]:
        """The symbols of these names that the file defines or imports, by their numbers; for ``words_for``."""
        return {} if self.symbols is None else self.symbols.numbered(names)

    def words_for(
        self, names: Mapping[str, frozenset[str | None]], numbered: Mapping[int, Symbol] | None = None
    ) -> Iterator[int]:
        """The words that hold the address of one of the names, in one of its versions.

        A version of None, in the file or in ``names``, fits every other. ``numbered`` has the symbols of these
        names, and perhaps of others, if they have been looked up before.
        """
        if numbered is None:
            numbered = self.numbered(frozenset(names))
        numbers = {number for number, symbol in numbered.items() if _is_one_of(names, symbol)}
        words = (word for word, number in self.by_symbol if number in numbers)
        for _, word in zip(range(MAX_WORDS if numbers else 0), words, strict=False):
            yield word


def _is_one_of(names: Mapping[str, frozenset[str | None]], symbol: Symbol) -> bool:
    versions = names.get(symbol.name, frozenset())
    return bool(versions) and (symbol.version is None or None in versions or symbol.version in versions)


def read_relocations(reader: ImageReader, headers: ElfHeaders) -> Relocations:
    """The relocations of the loaded sections that hold functions' addresses. Raises UnreadableModule."""
    types = TYPES.get(headers.machine, NO_TYPES)
    by_resolver: dict[int, list[int]] = {}
    by_symbol: list[tuple[int, int]] = []
    sections = [s for s in headers.sections if s.allocated and s.kind in ("SHT_RELA", "SHT_REL")]
    if sum(section.size for section in sections) > MAX_TABLE_BYTES:
        raise reader.refused(f"it has more than {MAX_TABLE_BYTES} bytes of relocations")
    for section in sections:
        for kind, word, symbol, addend in _entries(reader, headers, section, types):
            if kind == types.irelative:
                resolver = _stored_word(reader, headers, word) if addend is None else addend
                by_resolver.setdefault(resolver, []).append(word)
            elif not addend:
                by_symbol.append((word, symbol))
    return Relocations(
        by_resolver={resolver: tuple(words[:MAX_WORDS]) for resolver, words in by_resolver.items()},
        by_symbol=tuple(by_symbol),
        symbols=read_dynamic_table(reader, headers),
    )


def _entries(
    reader: ImageReader, headers: ElfHeaders, section: Section, types: RelocationTypes
) -> Iterator[tuple[int, int, int, int | None]]:
    """Type, word, symbol and addend (None: it is in the word) of the relocations of these types."""
    wide, explicit = headers.bits == 64, section.kind == "SHT_RELA"
    layout = struct.Struct(headers.order + ("QQ" if wide else "II") + ("" if not explicit else "q" if wide else "i"))
    symbol_shift, type_mask = (32, 0xFFFFFFFF) if wide else (8, 0xFF)
    wanted = types.by_symbol | {types.irelative}
    data = reader.section(section)
    for word, info, *addend in layout.iter_unpack(data[: len(data) - len(data) % layout.size]):
        if info & type_mask in wanted:
            yield info & type_mask, word, info >> symbol_shift, addend[0] if explicit else None


def _stored_word(reader: ImageReader, headers: ElfHeaders, word: int) -> int:
    offset = headers.file_offset(word)
    if offset is None:
        raise reader.refused(f"a relocation is for {word:#x}, which it does not load")
    data = reader.read(offset, headers.word_bytes, "relocated word")
    return int.from_bytes(data, "little" if headers.order == "<" else "big")
