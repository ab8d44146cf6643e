"""Probe specifications as text: ``MODULE:SYMBOL+OFFSET``, ``SYMBOL`` or ``0xADDRESS``.

The grammar:

- MODULE ends at the last ``:`` that is not part of a ``::``, so a path may hold colons,
  and so may a qualified name. A MODULE with a slash is a path.
- OFFSET stands behind the first ``+`` of what follows MODULE (``libstdc++:foo`` has none);
  decimal, or hexadecimal with ``0x``, in bytes.
- SYMBOL is a name as ``nm`` prints it: mangled, with its dots (``foo.part.0``). VERSION
  stands behind ``@`` (this version) or ``@@`` (this version, and only if it is the default).
- ``0xADDRESS`` stands alone: an address belongs to no module and takes no offset.

A glob is ``MODULE:PATTERN`` or ``PATTERN``: instead of SYMBOL, VERSION and OFFSET a pattern with
``*``, ``?`` or ``[seq]``, which is compared with the names of functions, case and all.
"""

import re
from typing import Final

import attrs

from ubpx._errors import UsageError
from ubpx.core.values import VirtAddr

MAX_SPEC_LENGTH: Final = 65_536
"""Characters; boost's longest mangled names stay below."""

ADDRESS_LIMIT: Final = 1 << 64

_MODULE_END = re.compile(r"(?<!:):(?!:)")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+", re.ASCII)
_ADDRESS = re.compile(r"0[xX].*")


@attrs.frozen
class AddressSpec:
    """An address in the process, as the user wrote it."""

    address: VirtAddr


@attrs.frozen(kw_only=True)
class SymbolSpec:
    """A symbol by name, and so many bytes behind its start."""

    module: str | None = None
    """None for the main program."""
    symbol: str
    version: str | None = None
    only_default: bool = False
    """Written with ``@@``: the version must be the symbol's default."""
    offset: int = 0
    text: str = attrs.field(default="", eq=False, repr=False)
    """As the user wrote it; "" for a specification made otherwise."""

    @property
    def is_path(self) -> bool:
        """Whether MODULE names one file, rather than any file of that name."""
        return self.module is not None and "/" in self.module

    def __str__(self) -> str:
        if self.text:
            return self.text
        module = f"{self.module}:" if self.module is not None else ""
        at = "" if self.version is None else f"{'@@' if self.only_default else '@'}{self.version}"
        return f"{module}{self.symbol}{at}{f'+{self.offset:#x}' if self.offset else ''}"


@attrs.frozen
class GlobSpec:
    """Functions by the pattern of their names."""

    module: str | None
    """None for the main program."""
    pattern: str
    text: str
    """As the user wrote it."""


Spec = AddressSpec | SymbolSpec


def parse_spec(text: str) -> Spec:
    """What ``text`` asks for; the module's docstring has the grammar.

    Raises UsageError for text that no program could satisfy.
    """
    _check_text(text)
    if _ADDRESS.fullmatch(text) and "+" not in text and ":" not in text:
        return AddressSpec(check_address(_number(text, text)))
    return _symbol_spec(text)


def parse_glob(text: str) -> GlobSpec | None:
    """The glob that ``text`` is; None if it has nothing of a pattern, and so is a specification.

    Raises UsageError as ``parse_spec`` does.
    """
    _check_text(text)
    module, pattern = _split_module(text)
    return GlobSpec(module, pattern, text) if any(letter in pattern for letter in "*?[") else None


def _check_text(text: str) -> None:
    if len(text) > MAX_SPEC_LENGTH:
        raise _refused(text[:60] + "...", f"it has {len(text)} characters", f"write at most {MAX_SPEC_LENGTH}")
    if not text.isprintable():
        raise _refused(
            text, "it holds a control character or bytes that are not UTF-8", "write the name as nm prints it"
        )


def check_address(address: int) -> VirtAddr:
    """``address`` itself. Raises UsageError if it does not fit into 64 bits."""
    if not 0 <= address < ADDRESS_LIMIT:
        raise UsageError(f"{address:#x} is not an address: it does not fit into 64 bits; take one from /proc/PID/maps")
    return VirtAddr(address)


def _symbol_spec(text: str) -> SymbolSpec:
    module, rest = _split_module(text)
    named, plus, offset_text = rest.partition("+")
    if plus and not offset_text:
        raise _refused(text, "nothing follows its '+'", "write SYMBOL+OFFSET, or leave the '+' out")
    offset = _number(text, offset_text) if plus else 0
    if offset >= ADDRESS_LIMIT:
        raise _refused(text, "its offset does not fit into 64 bits", "write a smaller one")
    name, version, only_default = _split_version(text, named)
    return SymbolSpec(module=module, symbol=name, version=version, only_default=only_default, offset=offset, text=text)


def _split_module(text: str) -> tuple[str | None, str]:
    ends = [match.start() for match in _MODULE_END.finditer(text)]
    if not ends:
        return None, text
    module, rest = text[: ends[-1]], text[ends[-1] + 1 :]
    if not module:
        raise _refused(text, "no module stands before its ':'", "write MODULE:SYMBOL, or SYMBOL for the main program")
    return module, rest


def _split_version(text: str, named: str) -> tuple[str, str | None, bool]:
    symbol, at, version = named.partition("@")
    only_default = version.startswith("@")
    version = version.removeprefix("@")
    if at and (not version or "@" in version):
        raise _refused(text, "its version is empty or has an '@'", "write SYMBOL@VERSION, or SYMBOL for the default")
    if not symbol:
        raise _refused(text, "it names no symbol", "write MODULE:SYMBOL, SYMBOL or 0xADDRESS")
    if _ADDRESS.fullmatch(symbol):
        raise _refused(text, f"{symbol} is an address, which stands alone", "write 0xADDRESS, or MODULE:SYMBOL+OFFSET")
    if any(character.isspace() or character in "()" for character in named):
        raise _refused(text, "its symbol looks demangled", "write the mangled name, as nm prints it")
    return symbol, version if at else None, only_default


def _number(text: str, digits: str) -> int:
    if not _NUMBER.fullmatch(digits):
        raise _refused(text, f"{digits!r} is not a number", "write decimal digits, or hexadecimal ones behind 0x")
    if len(digits) > 32:
        raise _refused(text, "its number does not fit into 64 bits", "write a smaller one")
    return int(digits, 16) if digits[:2] in ("0x", "0X") else int(digits)


def _refused(text: str, what: str, remedy: str) -> UsageError:
    return UsageError(f"{text!r} is not a probe specification: {what}; {remedy}")
