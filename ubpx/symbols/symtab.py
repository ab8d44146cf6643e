"""One symbol table of an ELF file, .dynsym or .symtab.

A table stays in its raw bytes; one pass keeps the rows that are code, as plain tuples, and a
Symbol is made only of what is asked for. Names are compared in place, never copied: a file
whose names overlap cannot make them larger than its string table.
Source: gABI 4.1, chapter 4, "Symbol Table"; gnu-gabi for STT_GNU_IFUNC.
"""

import enum
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import attrs

from ubpx.symbols.elf import ElfHeaders, string_at
from ubpx.symbols.versions import Versions

Row = tuple[int, int, int, int, int]
"""address, size, offset of the name, st_info, number in the table; a tuple because there may be millions."""

MAX_NAME: Final = 1 << 16
MAX_NAMES: Final = 500_000
"""Names that are searched for one like a wrong one; with the next cap, a bound on the memory that takes."""
MAX_NAME_SHOWN: Final = 512
"""Bytes."""

_NOTYPE, _OBJECT, _FUNC, _FILE, _COMMON, _IFUNC = 0, 1, 2, 4, 5, 10
_UNDEFINED, _ABSOLUTE, _COMMON_SECTION = 0, 0xFFF1, 0xFFF2
_NOT_HERE: Final = frozenset((_UNDEFINED, _ABSOLUTE, _COMMON_SECTION))
_CODE: Final = frozenset((_FUNC, _IFUNC))
_DATA: Final = frozenset((_NOTYPE, _OBJECT, _COMMON))


class SymbolKind(enum.Enum):
    """What stands at a symbol's address."""

    FUNCTION = "function"
    IFUNC = "resolver of a function with several implementations"
    LABEL = "label in code, without a type"
    DATA = "data"


class Scope(enum.IntEnum):
    """Who sees the symbol; the wider, the smaller."""

    GLOBAL = 0
    WEAK = 1
    LOCAL = 2


_SCOPES: Final = {0: Scope.LOCAL, 1: Scope.GLOBAL, 2: Scope.WEAK, 10: Scope.GLOBAL}
_KINDS: Final = {_FUNC: SymbolKind.FUNCTION, _IFUNC: SymbolKind.IFUNC}


@attrs.frozen(kw_only=True)
class Symbol:
    """One name of one place in the file; ``address`` is as linked."""

    name: str
    """Without its version."""
    address: int
    size: int
    """In bytes; 0 where the file does not say."""
    kind: SymbolKind
    scope: Scope
    version: str | None
    hidden: bool
    """Its version is not the name's default: ``name@VERSION``, not ``name@@VERSION``."""
    source: str | None = None
    """The source file of a local symbol, where the file says."""

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}{'@' if self.hidden else '@@'}{self.version}"


class SymbolTable:
    """One symbol section with its strings. Immutable once made."""

    def __init__(self, headers: ElfHeaders, data: bytes, strings: bytes, versions: Versions) -> None:
        self._data, self._strings, self._versions = data, strings, versions
        self._wide = headers.bits == 64
        self._layout = struct.Struct(headers.order + ("IBBHQQ" if self._wide else "IIIBBH"))
        self._code_sections = headers.code()
        self.code = self._code_rows()

    def _code_rows(self) -> list[Row]:
        """Functions, and labels in executable sections."""
        # One comprehension for each class: libpython's 14,679 symbols take 5 ms, through a generator the double.
        rows = self._layout.iter_unpack(self._data)
        here = self._code_sections.indices
        if self._wide:
            found = [
                (value, size, name, info, number)
                for number, (name, info, _, index, value, size) in enumerate(rows)
                if name and ((info & 15 in _CODE and index not in _NOT_HERE) or (not info & 15 and index in here))
            ]
        else:
            found = [
                (value, size, name, info, number)
                for number, (name, value, size, info, _, index) in enumerate(rows)
                if name and ((info & 15 in _CODE and index not in _NOT_HERE) or (not info & 15 and index in here))
            ]
        return [row for row in found if row[3] & 15 or self._is_label(row)]

    def _is_label(self, row: Row) -> bool:
        # "$x" and "$d" mark code and data for disassemblers; etext and the like stand behind their section.
        if self._strings.startswith(b"$", row[2]):
            return False
        return self._code_sections.around(row[0]) is not None

    def all_rows(self) -> Iterator[tuple[Row, int]]:
        """Every symbol with its section's number, imported and nameless ones included."""
        for number, fields in enumerate(self._layout.iter_unpack(self._data)):
            if self._wide:
                name, info, _, index, value, size = fields
            else:
                name, value, size, info, _, index = fields
            yield (value, size, name, info, number), index

    def code_named(self, name: str) -> Iterator[Symbol]:
        """The code symbols of that name, in any version."""
        wanted = name.encode("utf-8", "replace")
        starts, length, strings = self._strings.startswith, len(wanted), self._strings
        for row in self.code:
            if starts(wanted, row[2]) and strings[row[2] + length : row[2] + length + 1] in (b"\0", b"@"):
                yield self.symbol(row)

    def code_named_any(self, names: frozenset[str]) -> Iterator[Symbol]:
        """The code symbols of these names, in any version, in one pass."""
        wanted = {name.encode("utf-8", "replace") for name in names}
        longest = max(map(len, wanted), default=0) + 1
        strings = self._strings
        for row in self.code:
            found, end, _ = strings[row[2] : row[2] + longest].partition(b"\0")
            name, at, _ = found.partition(b"@")
            if name in wanted and (end or at):
                yield self.symbol(row)

    def functions(self, accepts: Callable[[str], object]) -> Iterator[tuple[Row, str]]:
        """The functions whose names, without versions, are accepted; with these names."""
        for row in self.code:
            if row[3] & 15:
                name, _, _ = string_at(self._strings, row[2]).partition("@")
                if accepts(name):
                    yield row, name

    def functions_matching(self, matches: Callable[[bytes, int], object] | None) -> list[Row]:
        """The rows of the functions at whose names' offsets in the strings ``matches`` finds something; None: all."""
        if matches is None:
            return [row for row in self.code if row[3] & 15]
        strings = self._strings
        return [row for row in self.code if row[3] & 15 and matches(strings, row[2])]

    def data_named(self, name: str) -> Iterator[Symbol]:
        """The data symbols of that name."""
        wanted = name.encode("utf-8", "replace") + b"\0"
        for row, index in self.all_rows():
            here = index not in _NOT_HERE and row[3] & 15 in _DATA and index not in self._code_sections.indices
            if here and self._strings.startswith(wanted, row[2]):
                yield attrs.evolve(self.symbol(row), kind=SymbolKind.DATA)

    def data_in_code(self) -> Iterator[tuple[int, int]]:
        """Start and end of what is data by its symbol's type, in a section with instructions."""
        for row, index in self.all_rows():
            if row[3] & 15 == _OBJECT and row[1] and index in self._code_sections.indices:
                yield row[0], row[0] + row[1]

    def numbered(self, names: frozenset[str]) -> Mapping[int, Symbol]:
        """All symbols of these names, imported ones too, by their numbers."""
        wanted = tuple(name.encode("utf-8", "replace") + b"\0" for name in names)
        starts = self._strings.startswith
        return {row[4]: self.symbol(row) for row, _ in self.all_rows() if row[2] and starts(wanted, row[2])}

    def names(self) -> Iterator[str]:
        """The names of the code symbols, without versions, cut where no person would read on."""
        for row in itertools.islice(self.code, MAX_NAMES):
            yield string_at(self._strings, row[2], limit=MAX_NAME_SHOWN).partition("@")[0]

    def symbol(self, row: Row) -> Symbol:
        """The row with its name and version."""
        address, size, name_at, info, number = row
        name, at, suffix = string_at(self._strings, name_at, limit=MAX_NAME).partition("@")
        version, hidden = self._versions.of(number)
        if at:  # the linker's way to write versions in .symtab: name@VERSION, name@@VERSION
            version, hidden = suffix.lstrip("@"), not suffix.startswith("@")
        return Symbol(
            name=name,
            address=address,
            size=size,
            kind=_KINDS.get(info & 15, SymbolKind.LABEL),
            scope=_SCOPES.get(info >> 4, Scope.LOCAL),
            version=version or None,
            hidden=hidden,
        )

    def with_source(self, symbol: Symbol) -> Symbol:
        """The local symbol with its source file, from the STT_FILE row before it."""
        source = None
        for row, _ in self.all_rows():
            if row[3] & 15 == _FILE:
                source = string_at(self._strings, row[2]) or None
            elif row[0] == symbol.address and self.symbol(row) == symbol:
                return attrs.evolve(symbol, source=source)
        return symbol
