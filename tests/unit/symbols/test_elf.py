"""Reading ELF files: what is found, and that nothing of a spoilt file but our own errors comes out."""

import functools
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubpx._errors import SpecError, UnreadableModule
from ubpx.core.values import parse_maps
from ubpx.symbols import elf as elf_module
from ubpx.symbols.code import read_code_map
from ubpx.symbols.elf import ImageReader, Machine, read_headers
from ubpx.symbols.lookup import Symbols, read_symbols
from ubpx.symbols.relocations import read_relocations
from ubpx.symbols.symtab import Scope, SymbolKind
from ubpx.symbols.unwind import read_unwind_table

BASE = 0x401000


def symbols_of(data: bytes) -> Symbols:
    reader = ImageReader(io.BytesIO(data), "made")
    return read_symbols(reader, read_headers(reader))


def read_everything(data: bytes) -> None:
    reader = ImageReader(io.BytesIO(data), "spoilt")
    headers = read_headers(reader)
    symbols = read_symbols(reader, headers)
    names = list(symbols.names())
    for name in [*names[:20], "write"]:
        for symbol in symbols.named(name):
            symbols.end_of(symbol)
            symbols.with_source(symbol)
            symbols.aliases(symbol.address)
        symbols.data_named(name)
    for address in (0, BASE, BASE + 0x20, 2**64 - 1):
        symbols.enclosing(address)
        symbols.next_start(address)
    list(read_relocations(reader, headers).words_for({name: frozenset((None,)) for name in names[:5]}))
    unwind = read_unwind_table(reader, headers)
    for name in names[:20]:
        for symbol in symbols.named(name):
            unwind.end_of(symbol.address)
            unwind.around(symbol.address)
    found = read_code_map(reader, headers)
    assert all(each.start < each.end for each in found.ranges)
    assert all(each.start < each.end for each in found.gaps)


@pytest.fixture(scope="module")
def made(elf_maker: Any, entry: Any) -> bytes:
    data: bytes = elf_maker.make(
        [
            entry(name="first", value=BASE, size=16),
            entry(name="second@@V2", value=BASE + 16, size=16),
            entry(name="second@V1", value=BASE + 32, size=16),
            entry(name="label", value=BASE + 48, type=0),
            entry(name="datum", value=0x8000, type=1, section=4),
        ]
    )
    return data


@pytest.mark.parametrize("bits", [32, 64])
def test_a_symbol_is_found_by_name_and_by_address(elf_maker: Any, entry: Any, bits: int) -> None:
    """Invariant: both classes of file give the same symbols, with size, kind and scope."""
    data = elf_maker.make(
        [
            entry(name="one", value=BASE, size=8),
            entry(name="two", value=BASE + 8, size=8, type=10, scope=2),
            entry(name="three", value=BASE + 16, type=0, scope=0),
        ],
        bits=bits,
    )
    symbols = symbols_of(data)
    (one,), (two,), (three,) = (symbols.named(name) for name in ("one", "two", "three"))
    assert (one.kind, two.kind, three.kind) == (SymbolKind.FUNCTION, SymbolKind.IFUNC, SymbolKind.LABEL)
    assert (one.scope, two.scope, three.scope) == (Scope.GLOBAL, Scope.WEAK, Scope.LOCAL)
    assert symbols.enclosing(BASE + 7) == one
    assert symbols.enclosing(BASE + 8) == two
    assert symbols.enclosing(BASE - 1) is None


def test_headers_say_class_and_machine(elf_maker: Any) -> None:
    """Invariant: class and machine are those of the file's header."""
    found = []
    for bits in (32, 64):
        headers = read_headers(ImageReader(io.BytesIO(elf_maker.make([], bits=bits)), "made"))
        found.append((headers.bits, headers.machine, headers.word_bytes))
    assert found == [(32, Machine.I386, 4), (64, Machine.X86_64, 8)]


def test_a_name_is_not_found_by_its_tail_or_head(elf_maker: Any, entry: Any) -> None:
    """Invariant: only the whole name matches."""
    symbols = symbols_of(elf_maker.make([entry(name="fwrite64", value=BASE, size=8)]))
    assert not any(symbols.named(name) for name in ("fwrite", "write64", "write", "fwrite644"))


def test_a_symbol_without_size_ends_at_the_next_or_with_its_section(elf_maker: Any, entry: Any) -> None:
    """Invariant: a size of 0 extends to the next symbol's start, never behind the section."""
    made = elf_maker.make(
        [entry(name="a", value=BASE), entry(name="b", value=BASE + 0x20), entry(name="c", value=BASE + 0x30, size=4)],
        text_size=0x100,
    )
    symbols = symbols_of(made)
    assert symbols.end_of(symbols.named("a")[0]) == BASE + 0x20
    assert symbols.end_of(symbols.named("b")[0]) == BASE + 0x30
    around = symbols.enclosing(BASE + 0x1F)
    assert around is not None
    assert around.name == "a"
    assert symbols.enclosing(BASE + 0x34) is None
    alone = symbols_of(elf_maker.make([entry(name="a", value=BASE)], text_size=0x100))
    assert alone.end_of(alone.named("a")[0]) == BASE + 0x100
    assert alone.enclosing(BASE + 0x100) is None


def test_a_function_comes_before_the_label_inside_it(elf_maker: Any, entry: Any) -> None:
    """Invariant: the enclosing symbol is the innermost function; a label only where no function is."""
    symbols = symbols_of(
        elf_maker.make(
            [
                entry(name="outer", value=BASE, size=0x40),
                entry(name="inner", value=BASE + 0x10, size=0x10),
                entry(name="loop", value=BASE + 0x18, type=0, scope=0),
                entry(name="alone", value=BASE + 0x80, type=0, scope=0),
            ]
        )
    )
    around = {offset: symbols.enclosing(BASE + offset) for offset in (0x8, 0x18, 0x1C, 0x20, 0x3F, 0x40, 0x88)}
    names = {offset: symbol and symbol.name for offset, symbol in around.items()}
    assert names == {
        0x8: "outer",
        0x18: "inner",
        0x1C: "inner",
        0x20: "outer",
        0x3F: "outer",
        0x40: "loop",
        0x88: "alone",
    }


def test_the_outermost_function_is_around_an_address(elf_maker: Any, entry: Any) -> None:
    """Invariant: only functions with a size are; those inside another are told as starts in it."""
    symbols = symbols_of(
        elf_maker.make(
            [
                entry(name="outer", value=BASE, size=32),
                entry(name="alias", value=BASE, size=16),
                entry(name="inner", value=BASE + 8, size=8),
                entry(name="unsized", value=BASE + 12),
                entry(name="label", value=BASE + 16, type=0),
                entry(name="next", value=BASE + 32, size=4),
                entry(name="late", value=BASE + 40),
            ]
        )
    )
    assert symbols.function_around(BASE + 12) == (BASE, BASE + 32)
    assert symbols.function_around(BASE + 31) == (BASE, BASE + 32)
    assert symbols.function_around(BASE + 32) == (BASE + 32, BASE + 36)
    assert symbols.function_around(BASE + 36) is None
    assert symbols.function_around(BASE + 40) is None
    assert list(symbols.functions_between(BASE, BASE + 32)) == [BASE + 8, BASE + 12]
    before, after = symbols.function_before(BASE + 37), symbols.function_after(BASE + 37)
    assert before is not None
    assert after is not None
    assert (before.name, after.name) == ("next", "late")
    assert symbols.function_after(BASE + 40) is None
    assert symbols.function_before(BASE - 1) is None


def test_data_amid_code_is_known_by_its_symbols(elf_maker: Any, entry: Any) -> None:
    """Invariant: objects with a size in sections with code; those that overlap are one span."""
    symbols = symbols_of(
        elf_maker.make(
            [
                entry(name="late", value=BASE + 48, size=8, type=1),
                entry(name="first", value=BASE + 8, size=8, type=1),
                entry(name="more", value=BASE + 12, size=8, type=1),
                entry(name="unsized", value=BASE + 30, type=1),
                entry(name="elsewhere", value=BASE + 40, size=4, type=1, section=4),
            ]
        )
    )
    assert symbols.data_between(BASE, BASE + 64) == [(BASE + 8, BASE + 20), (BASE + 48, BASE + 56)]
    assert symbols.data_between(BASE + 20, BASE + 48) == []
    assert symbols.data_between(BASE + 19, BASE + 49) == [(BASE + 8, BASE + 20), (BASE + 48, BASE + 56)]


def test_an_alias_is_named_as_a_person_would(elf_maker: Any, entry: Any) -> None:
    """Invariant: of several names of one place, the public one with fewest underscores is shown."""
    names = [("__GI___write", 0), ("__write", 1), ("write", 2), ("__libc_write", 1)]
    symbols = symbols_of(elf_maker.make([entry(name=name, value=BASE, size=8, scope=scope) for name, scope in names]))
    around = symbols.enclosing(BASE + 4)
    assert around is not None
    assert around.name == "write"
    assert {symbol.name for symbol in symbols.aliases(BASE)} == {name for name, _ in names}


def test_symbols_that_are_not_code_here_are_left_out(elf_maker: Any, entry: Any) -> None:
    """Invariant: imported and absolute symbols, marks of the assembler and data are no code."""
    symbols = symbols_of(
        elf_maker.make(
            [
                entry(name="imported", value=0, section=0),
                entry(name="absolute", value=BASE, section=0xFFF1),
                entry(name="$x", value=BASE, type=0, scope=0),
                entry(name="etext", value=BASE + 0x1000, type=0),
                entry(name="datum", value=0x5000, type=1, section=4),
            ]
        )
    )
    assert list(symbols.names()) == []
    assert [symbol.kind for symbol in symbols.data_named("datum")] == [SymbolKind.DATA]


def test_versions_in_names_are_told_apart(made: bytes) -> None:
    """Invariant: name@@V is the default version, name@V a hidden one, in .symtab too."""
    found = {(s.version, s.hidden, s.address) for s in symbols_of(made).named("second")}
    assert found == {("V2", False, BASE + 16), ("V1", True, BASE + 32)}


def test_the_source_file_of_a_local_symbol_is_known(elf_maker: Any, entry: Any) -> None:
    """Invariant: two static functions of one name are told apart by their files."""
    symbols = symbols_of(
        elf_maker.make(
            [
                entry(name="a.c", value=0, type=4, scope=0, section=0xFFF1),
                entry(name="helper", value=BASE, size=4, scope=0),
                entry(name="b.c", value=0, type=4, scope=0, section=0xFFF1),
                entry(name="helper", value=BASE + 4, size=4, scope=0),
            ]
        )
    )
    assert [symbols.with_source(symbol).source for symbol in symbols.named("helper")] == ["a.c", "b.c"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: b"", "not a sound ELF"),
        (lambda _: b"#!/bin/sh\n", "not a sound ELF"),
        (lambda data: data[:100], "not a sound ELF"),
        (lambda data: data[:60] + struct.pack("<H", 60000) + data[62:], "60000 sections"),
        (lambda data: data[:56] + struct.pack("<H", 60000) + data[58:], "60000 program headers"),
        (
            lambda data: data[: -320 + 128 + 24] + struct.pack("<Q", 1 << 62) + data[-320 + 128 + 32 :],
            "outside the file",
        ),
        (lambda data: data[: -320 + 128 + 32] + struct.pack("<Q", 1 << 62) + data[-320 + 128 + 40 :], "more than"),
        (lambda data: data[: -320 + 128 + 40] + struct.pack("<I", 99) + data[-320 + 128 + 44 :], "no table of strings"),
    ],
)
def test_a_spoilt_file_is_refused_with_its_reason(made: bytes, spoil: Callable[[bytes], bytes], reason: str) -> None:
    """Invariant: what is wrong with a file becomes UnreadableModule that says so."""
    with pytest.raises(UnreadableModule, match=reason):
        read_everything(spoil(made))


def test_a_long_name_neither_matches_nor_floods(elf_maker: Any, entry: Any) -> None:
    """Invariant: a name as long as the string table is read up to a cap, and found in full length."""
    name = "x" * 50_000
    symbols = symbols_of(elf_maker.make([entry(name=name, value=BASE, size=4)]))
    assert len(symbols.named(name)) == 1
    assert max(map(len, symbols.names())) < 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_garbled_file_raises_nothing_but_our_errors(made: bytes, data: st.DataObject) -> None:
    """Invariant: any bytes changed in a file, or any of its end missing, give symbols or a SpecError."""
    spoilt = bytearray(made)
    places = st.tuples(st.integers(0, len(spoilt) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=12)):
        spoilt[place] = value
    length = data.draw(st.integers(0, len(spoilt)) | st.just(len(spoilt)))
    try:
        read_everything(bytes(spoilt[:length]))
    except SpecError as error:
        assert str(error).isprintable()  # noqa: PT017 - a file may stay sound; then nothing is raised


@functools.cache
def smallest_library() -> bytes:
    """Of those in this very process: there is always one."""
    mapped = {Path(mapped.path) for mapped in parse_maps(Path("/proc/self/maps").read_text()) if ".so" in mapped.path}
    return min((path for path in mapped if path.exists()), key=lambda path: path.stat().st_size).read_bytes()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_garbled_library_raises_nothing_but_our_errors(data: st.DataObject) -> None:
    """Invariant: as above for a real library: versions, relocations and unwind table included.

    Changes are drawn to the headers and tables, where they matter.
    """
    sound = smallest_library()
    headers = read_headers(ImageReader(io.BytesIO(sound), "sound"))
    tables = [(0, 1024), (len(sound) - 4096, len(sound) - 1)]
    tables += [(s.offset, s.offset + s.size - 1) for s in headers.sections if s.kind != "SHT_NOBITS" and s.size]
    spoilt = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 8))):
        first, last = data.draw(st.sampled_from(tables))
        place = data.draw(st.integers(max(first, 0), min(last, len(sound) - 1)))
        spoilt[place] = data.draw(st.integers(0, 255))
    try:
        read_everything(bytes(spoilt))
    except SpecError as error:
        assert str(error).isprintable()  # noqa: PT017 - a file may stay sound; then nothing is raised


def test_a_table_above_the_cap_is_refused(made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: no table is read whose size exceeds the cap, even if the file is that long."""
    monkeypatch.setattr(elf_module, "MAX_SECTIONS", 2)
    with pytest.raises(UnreadableModule, match="5 sections, more than 2"):
        read_everything(made)
