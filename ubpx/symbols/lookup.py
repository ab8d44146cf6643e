"""The symbols of one ELF file, of .dynsym and .symtab together: by name and by address."""

import bisect
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ubpx.symbols.elf import MAX_STRING_BYTES, CodeSections, ElfHeaders, ImageReader, Section
from ubpx.symbols.symtab import Row, Scope, Symbol, SymbolKind, SymbolTable
from ubpx.symbols.versions import Versions, read_versions

_LABEL_TYPE: Final = 0
_IFUNC_TYPE: Final = 10
MOST_NAMES: Final = 4096
"""Whose symbols are remembered: a thousand clients may ask for one name, which takes a look at each symbol."""


class AddressIndex:
    """Which symbol is around an address. Immutable once made."""

    def __init__(self, tables: Sequence[SymbolTable], code: CodeSections) -> None:
        self._code = code
        self._rows: list[tuple[Row, SymbolTable]] = sorted(
            ((row, table) for table in tables for row in table.code), key=lambda entry: entry[0]
        )
        self._starts = [row[0] for row, _ in self._rows]
        self._ends = self._all_ends()
        self._reach = self._all_reaches()

    def next_start(self, address: int) -> int:
        """Where the next symbol or the end of the section limits what starts at ``address``."""
        at = bisect.bisect_right(self._starts, address)
        following = self._starts[at] if at < len(self._starts) else None
        section = self._code.around(address)
        section_end = None if section is None else section.end
        limits = [limit for limit in (following, section_end) if limit is not None]
        return min(limits, default=address + 1)

    def enclosing(self, address: int) -> Symbol | None:
        """The symbol around the address, by its best name; a function before a label inside it."""
        label = None
        at = bisect.bisect_right(self._starts, address) - 1
        while at >= 0 and self._reach[at] > address:
            if self._ends[at] > address:
                if self._rows[at][0][3] & 15 != _LABEL_TYPE:
                    return self._best_name(self._starts[at], address)
                label = self._starts[at] if label is None else label
            at -= 1
        return None if label is None else self._best_name(label, address)

    def function_around(self, address: int) -> tuple[int, int] | None:
        """Start and end of the outermost function with a size around the address."""
        found = None
        at = bisect.bisect_right(self._starts, address) - 1
        while at >= 0 and self._reach[at] > address:
            row = self._rows[at][0]
            if row[3] & 15 != _LABEL_TYPE and row[0] + row[1] > address:
                found = (row[0], max(row[0] + row[1], found[1] if found and found[0] == row[0] else 0))
            at -= 1
        return found

    def functions_between(self, start: int, end: int) -> list[int]:
        """Where functions start behind ``start`` and before ``end``; a place may come twice."""
        first, last = bisect.bisect_right(self._starts, start), bisect.bisect_left(self._starts, end)
        return [row[0] for row, _ in self._rows[first:last] if row[3] & 15 != _LABEL_TYPE]

    def function_beside(self, address: int, step: int) -> Symbol | None:
        """The next function behind the address (``step`` 1), or the last that starts at it or before (-1)."""
        at = bisect.bisect_right(self._starts, address) - (step < 0)
        while 0 <= at < len(self._rows):
            if self._rows[at][0][3] & 15 != _LABEL_TYPE:
                return self._rows[at][1].symbol(self._rows[at][0])
            at += step
        return None

    def _best_name(self, start: int, address: int) -> Symbol | None:
        first, last = bisect.bisect_left(self._starts, start), bisect.bisect_right(self._starts, start)
        names = (table.symbol(row) for row, table in self._rows[first:last] if self._covers(row, address))
        return min(names, key=_name_rank, default=None)

    def _covers(self, row: Row, address: int) -> bool:
        return row[0] + row[1] > address or not row[1]

    def _all_ends(self) -> list[int]:
        """The end of each row; one without a size reaches to the next start, in its section."""
        return [row[0] + row[1] if row[1] else self.next_start(row[0]) for row, _ in self._rows]

    def _all_reaches(self) -> list[int]:
        """For each row the greatest end up to it: behind it nothing earlier covers anything."""
        reaches, furthest = [], 0
        for end in self._ends:
            furthest = max(furthest, end)
            reaches.append(furthest)
        return reaches


def _name_rank(symbol: Symbol) -> tuple[bool, bool, bool, int, int, str]:
    """The name that a person would use comes first: of ``write``, ``__write``, ``__GI___write`` the first."""
    underscores = len(symbol.name) - len(symbol.name.lstrip("_"))
    return (
        symbol.kind is SymbolKind.LABEL, symbol.scope is Scope.LOCAL, symbol.hidden,
        underscores, len(symbol.name), symbol.name,
    )  # fmt: skip


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ascending spans, those that overlap made one."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


class Symbols:
    """All code symbols of one file.

    Immutable but for what is made when first asked for. Owned by the
    ElfCache that made it.
    """

    def __init__(self, headers: ElfHeaders, tables: Sequence[SymbolTable]) -> None:
        self._code, self._tables = headers.code(), tuple(tables)
        self._index: AddressIndex | None = None
        self._data: list[tuple[int, int]] | None = None
        self._nested: frozenset[int] | None = None
        self._named: Final[dict[str, tuple[Symbol, ...]]] = {}

    def named(self, name: str) -> tuple[Symbol, ...]:
        """The code symbols of this name, in any version; each place in each version once."""
        known = self._named.get(name)
        if known is None:
            known = self._find(name)
            if len(self._named) < MOST_NAMES:
                self._named[name] = known
        return known

    def _find(self, name: str) -> tuple[Symbol, ...]:
        found: dict[tuple[int, str | None], Symbol] = {}
        for table in self._tables:
            for symbol in table.code_named(name):
                found.setdefault((symbol.address, symbol.version), symbol)
        return tuple(found.values())

    def named_any(self, names: frozenset[str]) -> Mapping[str, tuple[Symbol, ...]]:
        """As ``named``, for many names in one pass; each of them is in the answer."""
        found: dict[str, dict[tuple[int, str | None], Symbol]] = {name: {} for name in names}
        for table in self._tables:
            for symbol in table.code_named_any(names):
                found[symbol.name].setdefault((symbol.address, symbol.version), symbol)
        return {name: tuple(symbols.values()) for name, symbols in found.items()}

    def functions(self, accepts: Callable[[str], object]) -> Iterator[Symbol]:
        """The functions with an accepted name, each address once, by the best of its accepted names; ascending."""
        found: dict[int, Symbol] = {}
        for table in self._tables:
            for row, name in table.functions(accepts):
                known = found.get(row[0])
                if known is None:
                    found[row[0]] = table.symbol(row)
                elif known.name != name:  # else .symtab repeats .dynsym
                    found[row[0]] = min(known, table.symbol(row), key=_name_rank)
        return (found[address] for address in sorted(found))

    def functions_matching(self, matches: Callable[[bytes, int], object] | None) -> "MatchingFunctions":
        """As ``functions``, of which nothing is made yet; see ``SymbolTable.functions_matching``."""
        return MatchingFunctions([(table, table.functions_matching(matches)) for table in self._tables])

    def nested(self) -> frozenset[int]:
        """Where functions start inside others."""
        if self._nested is None:
            sizes: dict[int, int] = {}
            for table in self._tables:
                rows = [row for row in table.code if row[3] & 15]
                own = {row[0]: row[1] for row in rows}
                if len(own) < len(rows):  # aliases: the longest counts
                    for row in rows:
                        own[row[0]] = max(own[row[0]], row[1])
                if sizes:
                    own |= {start: max(own[start], sizes[start]) for start in own.keys() & sizes.keys()}
                sizes |= own
            starts = sorted(sizes)
            ends = [start + sizes[start] for start in starts]
            found: list[int] = []
            if any(map(operator.gt, ends, starts[1:])):  # mostly there are none
                reaches = itertools.accumulate(ends, max)
                found = [start for start, reach in zip(starts[1:], reaches, strict=False) if start < reach]
            self._nested = frozenset(found)
        return self._nested

    def data_named(self, name: str) -> tuple[Symbol, ...]:
        """The data symbols of this name."""
        return tuple(symbol for table in self._tables for symbol in table.data_named(name))

    def names(self) -> Iterator[str]:
        """The names of the code symbols, without versions, repetitions included, for suggestions."""
        return itertools.chain.from_iterable(table.names() for table in self._tables)

    def aliases(self, address: int) -> tuple[Symbol, ...]:
        """Everything that is called this address."""
        return tuple(table.symbol(row) for table in self._tables for row in table.code if row[0] == address)

    def with_source(self, symbol: Symbol) -> Symbol:
        """The symbol with its source file, if it is local and the file says."""
        if symbol.scope is not Scope.LOCAL:
            return symbol
        found = (table.with_source(symbol) for table in self._tables)
        return next((known for known in found if known.source), symbol)

    def end_of(self, symbol: Symbol) -> int:
        """The address behind the symbol's last byte; without a size, where the next symbol or the section ends it."""
        return symbol.address + symbol.size if symbol.size else self.next_start(symbol.address)

    def next_start(self, address: int) -> int:
        """Where the next symbol or the end of the section limits what starts at ``address``."""
        return self._addresses().next_start(address)

    def enclosing(self, address: int) -> Symbol | None:
        """The symbol around the address, by its best name; a function before a label inside it."""
        return self._addresses().enclosing(address)

    def function_around(self, address: int) -> tuple[int, int] | None:
        """Start and end of the outermost function with a size around the address."""
        return self._addresses().function_around(address)

    def functions_between(self, start: int, end: int) -> Sequence[int]:
        """Where functions start behind ``start`` and before ``end``; a place may come twice."""
        return self._addresses().functions_between(start, end)

    def function_before(self, address: int) -> Symbol | None:
        """The last function that starts at the address or before."""
        return self._addresses().function_beside(address, -1)

    def function_after(self, address: int) -> Symbol | None:
        """The next function that starts behind the address."""
        return self._addresses().function_beside(address, 1)

    def section_around(self, address: int) -> Section | None:
        """The section with code that holds the address."""
        return self._code.around(address)

    def data_between(self, start: int, end: int) -> list[tuple[int, int]]:
        """What symbols with a size call data there, amid code; ascending, each with its end."""
        if self._data is None:
            self._data = _joined(sorted({span for table in self._tables for span in table.data_in_code()}))
        first = bisect.bisect_right(self._data, start, key=lambda span: span[1])
        last = bisect.bisect_left(self._data, end, key=lambda span: span[0])
        return self._data[first:last]

    def _addresses(self) -> AddressIndex:
        if self._index is None:
            self._index = AddressIndex(self._tables, self._code)
        return self._index


class MatchingFunctions:
    """The functions that a pattern has found in one file: rows, of which a Symbol is made when somebody asks for it."""

    def __init__(self, found: Sequence[tuple[SymbolTable, Sequence[Row]]]) -> None:
        self._rows: Final[list[tuple[SymbolTable, dict[int, Row]]]] = []
        self._aliases: Final[list[tuple[SymbolTable, dict[int, list[Row]]]]] = []
        """By address, for each table, the rows beside the one in ``_rows``, in the table's order."""
        for table, rows in found:
            first = {row[0]: row for row in reversed(rows)}
            others: dict[int, list[Row]] = {}
            if len(first) < len(rows):
                for row in rows:
                    if first[row[0]] is not row:
                        others.setdefault(row[0], []).append(row)
            self._rows.append((table, first))
            self._aliases.append((table, others))

    def plain(self) -> dict[int, int]:
        """By address, as linked, the sizes of those that are functions and nothing else, and have a size."""
        plain: dict[int, int] = {}
        for _, rows in self._rows:
            plain |= {address: row[1] for address, row in rows.items() if row[1] and row[3] & 15 != _IFUNC_TYPE}
        for (_, rows), (_, aliases) in zip(self._rows, self._aliases, strict=True):
            for address in [address for address, row in rows.items() if row[3] & 15 == _IFUNC_TYPE]:
                plain.pop(address, None)
            for address, others in aliases.items():
                if any(row[3] & 15 == _IFUNC_TYPE for row in others):
                    plain.pop(address, None)
        return plain

    def addresses(self) -> set[int]:
        """All of them, as linked."""
        return set().union(*(rows for _, rows in self._rows))

    def symbol(self, address: int) -> Symbol:
        """What is at one of the addresses, by the best of its names that were found."""
        best: Symbol | None = None
        for (table, rows), (_, aliases) in zip(self._rows, self._aliases, strict=True):
            for row in [rows[address], *aliases.get(address, ())] if address in rows else ():
                symbol = table.symbol(row)
                if best is None or best.name != symbol.name:  # else .symtab repeats .dynsym
                    best = symbol if best is None else min(best, symbol, key=_name_rank)
        if best is None:
            raise KeyError(address)
        return best


def read_symbols(reader: ImageReader, headers: ElfHeaders) -> Symbols:
    """Both symbol tables of the file; none of them need be there. Raises UnreadableModule."""
    dynamic = read_dynamic_table(reader, headers)
    tables = [] if dynamic is None else [dynamic]
    tables += [_table(reader, headers, section, Versions()) for section in headers.sections_of("SHT_SYMTAB")[:1]]
    return Symbols(headers, tables)


def read_dynamic_table(reader: ImageReader, headers: ElfHeaders) -> SymbolTable | None:
    """.dynsym with its versions, if the file has one. Raises UnreadableModule."""
    sections = headers.sections_of("SHT_DYNSYM")
    return _table(reader, headers, sections[0], read_versions(reader, headers)) if sections else None


def _table(reader: ImageReader, headers: ElfHeaders, section: Section, versions: Versions) -> SymbolTable:
    if section.link >= len(headers.sections):
        raise reader.refused(f"section {section.name or section.index} names no table of strings")
    strings = reader.section(headers.sections[section.link], limit=MAX_STRING_BYTES)
    data = reader.section(section)
    entry = 24 if headers.bits == 64 else 16
    return SymbolTable(headers, data[: len(data) - len(data) % entry], strings, versions)
