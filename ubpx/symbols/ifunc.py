"""Which implementation a program uses of a function that chooses one at run time (STT_GNU_IFUNC).

The symbol's own address is a resolver, which the dynamic linker calls once for each GOT word
that needs the answer. So the answer stands in GOT words: first in the module's own, relocated
by IRELATIVE against the resolver, then in any module's that names the function.
Source: gnu-gabi, "STT_GNU_IFUNC"; glibc 2.36, elf/dl-irel.h.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from ubpx._errors import UnboundIfunc, UnreadableModule
from ubpx.core.values import VirtAddr
from ubpx.symbols.loaded import LoadedModule, LoadedModules
from ubpx.symbols.modules import VDSO
from ubpx.symbols.names import printable
from ubpx.symbols.symtab import Symbol, SymbolKind

MAX_CANDIDATES: Final = 8
MAX_ALIASES: Final = 32


def implementation(
    modules: LoadedModules, defining: LoadedModule, symbol: Symbol, spec: str, *, suggest: bool = True
) -> VirtAddr:
    """Where calls of the function go in this process.

    With ``suggest`` the error lists functions that may have been meant, which takes a look at every name.
    Raises UnboundIfunc if no GOT word has the answer yet.
    """
    for loaded, word in _words(modules, defining, symbol):
        value = modules.word_at(loaded, word)
        if value is not None and _is_implementation(modules, defining, symbol, value):
            return value
    raise UnboundIfunc(spec, _candidates(modules, defining, symbol) if suggest else ())


def _words(modules: LoadedModules, defining: LoadedModule, symbol: Symbol) -> Iterator[tuple[LoadedModule, int]]:
    own = modules.relocations(defining)
    for word in own.by_resolver.get(symbol.address, ()):
        yield defining, word
    versions = _versions(modules, defining, symbol)
    for loaded in modules.every():
        with contextlib.suppress(UnreadableModule):
            for word in modules.words_for(loaded, versions):
                yield loaded, word


def _versions(modules: LoadedModules, defining: LoadedModule, symbol: Symbol) -> dict[str, frozenset[str | None]]:
    """Of each name of the function, the versions."""
    versions: dict[str, frozenset[str | None]] = {}
    for alias in modules.symbols(defining).aliases(symbol.address)[:MAX_ALIASES]:
        versions[alias.name] = versions.get(alias.name, frozenset()) | {alias.version}
    return versions


def prefetch(modules: LoadedModules, functions: Iterable[tuple[LoadedModule, Symbol]]) -> None:
    """Prepare for ``implementation`` of exactly these functions, each in its module."""
    names = {name for defining, symbol in functions for name in _versions(modules, defining, symbol)}
    modules.prefetch_words(frozenset(names))


def _is_implementation(modules: LoadedModules, defining: LoadedModule, symbol: Symbol, value: VirtAddr) -> bool:
    """Not the resolver, not the PLT (what a lazy slot holds before the first call), and not somebody else's code."""
    mapped = modules.range_at(value)
    if mapped is None or not mapped.executable:
        return False
    if mapped.path == VDSO:  # glibc binds time() and gettimeofday() to the kernel's own functions
        return True
    linked = defining.as_linked(value)
    stubs = (section for section in defining.headers.sections if section.name.startswith((".plt", ".iplt")))
    return (
        defining.holds_code_at(value) and linked != symbol.address and not any(linked in section for section in stubs)
    )


def _candidates(modules: LoadedModules, defining: LoadedModule, symbol: Symbol) -> list[str]:
    """Functions named after this one: ``__strlen_avx2`` of ``strlen``."""
    symbols, stem = modules.symbols(defining), symbol.name.strip("_")
    related = []
    for name in sorted({name for name in symbols.names() if stem in name}):
        after = name.strip("_").startswith(stem + "_") or name.endswith("_" + stem)
        if after and all(_may_be_chosen(one, symbol) for one in symbols.named(name)):
            related.append(f"{defining.name}:{printable(name)}")
    return related[:MAX_CANDIDATES]


def _may_be_chosen(function: Symbol, ifunc: Symbol) -> bool:
    return function.kind is SymbolKind.FUNCTION and function.address != ifunc.address
