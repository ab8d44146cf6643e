"""Probe specifications and ELF look-up: the plugin that answers ``ubpx_resolve_spec``.

pyelftools is loaded when the first file is read.
"""

from ubpx._errors import UnboundIfunc, UnreadableModule
from ubpx.symbols._marker import hookimpl
from ubpx.symbols.resolver import SymbolResolver
from ubpx.symbols.specs import AddressSpec, Spec, SymbolSpec, parse_spec

__all__ = [
    "AddressSpec",
    "Spec",
    "SymbolResolver",
    "SymbolSpec",
    "UnboundIfunc",
    "UnreadableModule",
    "hookimpl",
    "parse_spec",
]
