"""Probe specifications as text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubpx._errors import UsageError
from ubpx.core.values import VirtAddr
from ubpx.symbols.specs import AddressSpec, SymbolSpec, parse_spec

GOOD = {
    "main": SymbolSpec(symbol="main"),
    "main+4": SymbolSpec(symbol="main", offset=4),
    "main+0x1F": SymbolSpec(symbol="main", offset=0x1F),
    "libc.so.6:write": SymbolSpec(module="libc.so.6", symbol="write"),
    "libc.so.6:write+0x4": SymbolSpec(module="libc.so.6", symbol="write", offset=4),
    "libstdc++:_ZNSt6localeC1Ev+0": SymbolSpec(module="libstdc++", symbol="_ZNSt6localeC1Ev"),
    "libc:memcpy@GLIBC_2.2.5": SymbolSpec(module="libc", symbol="memcpy", version="GLIBC_2.2.5"),
    "libc:memcpy@@GLIBC_2.14+8": SymbolSpec(
        module="libc", symbol="memcpy", version="GLIBC_2.14", only_default=True, offset=8
    ),
    "foo.part.0": SymbolSpec(symbol="foo.part.0"),
    "/opt/a b/x.so:foo.cold": SymbolSpec(module="/opt/a b/x.so", symbol="foo.cold"),
    "/opt/a:b/x.so:foo": SymbolSpec(module="/opt/a:b/x.so", symbol="foo"),
    "/opt/a::b/x.so:foo": SymbolSpec(module="/opt/a::b/x.so", symbol="foo"),
    "prog:crate::function": SymbolSpec(module="prog", symbol="crate::function"),
    "crate::function": SymbolSpec(symbol="crate::function"),
    "./prog:main": SymbolSpec(module="./prog", symbol="main"),
    "[vdso]:clock_gettime": SymbolSpec(module="[vdso]", symbol="clock_gettime"),
    "0x401000": AddressSpec(VirtAddr(0x401000)),
    "0XfF": AddressSpec(VirtAddr(0xFF)),
    "0xffffffffffffffff": AddressSpec(VirtAddr(2**64 - 1)),
}

BAD = {
    "": "names no symbol",
    ":write": "no module",
    "libc:": "names no symbol",
    "libc:+4": "names no symbol",
    "libc:@VERSION": "names no symbol",
    "write+": "nothing follows",
    "write+four": "not a number",
    "write+-4": "not a number",
    "write+0x": "not a number",
    "write+4+4": "not a number",
    "write+1_0": "not a number",
    "write+٣": "not a number",
    "write+0x10000000000000000": "64 bits",
    "write+" + "9" * 5000: "64 bits",
    "write@": "version is empty",
    "write@@": "version is empty",
    "write@a@b": "has an '@'",
    "0x": "not a number",
    "0x10000000000000000": "64 bits",
    "0x401000+4": "stands alone",
    "libc:0x401000": "stands alone",
    "0xzz": "not a number",
    "std::vector<int>::push_back(int const&)": "demangled",
    "libc:write write": "demangled",
    "write\0": "control character",
    "write\x1b[31m": "control character",
    "caf\udce9": "not UTF-8",
    "a" * 70_000: "characters",
}


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.contract("spec-1")
def test_a_good_spec_means_what_the_grammar_says(text: str) -> None:
    """Invariant: each form of the grammar is parsed into its parts."""
    assert parse_spec(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text[:30]))
def test_a_bad_spec_is_refused_with_its_reason(text: str) -> None:
    """Invariant: text that no program can satisfy is a UsageError: what, where; what next."""
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert BAD[text] in message
    assert "; " in message
    assert message.isprintable()


def test_a_path_is_told_from_a_name() -> None:
    """Invariant: a module with a slash is a path, another one is not, and neither is no module."""
    paths = {text: spec.is_path for text, spec in GOOD.items() if isinstance(spec, SymbolSpec)}
    assert [text for text, is_path in paths.items() if is_path] == [text for text in GOOD if "/" in text]


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Invariant: the parser returns a spec or raises UsageError, whatever it is given."""
    with contextlib.suppress(UsageError):
        parse_spec(text)


@given(st.text(alphabet="ab/:@+0x1 .-_[]", max_size=30))
def test_text_of_the_grammars_own_letters_is_parsed_or_refused(text: str) -> None:
    """Invariant: as above, for text that looks like specs; and what was parsed is said again as it was written."""
    try:
        spec = parse_spec(text)
    except UsageError:
        return
    if isinstance(spec, SymbolSpec):
        assert str(spec) == text


PARTS = st.text(alphabet="abcXYZ_.019$", min_size=1).filter(lambda part: not part.startswith("0"))


@given(
    module=st.none() | st.text(alphabet="abc/._-+ 01", min_size=1),
    symbol=PARTS,
    version=st.none() | PARTS,
    offset=st.integers(0, 2**64 - 1),
)
def test_a_spec_survives_being_written_and_read(
    module: str | None, symbol: str, version: str | None, offset: int
) -> None:
    """Invariant: parse(str(spec)) == spec."""
    spec = SymbolSpec(module=module, symbol=symbol, version=version, offset=offset)
    assert parse_spec(str(spec)) == spec
