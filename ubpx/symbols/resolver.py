"""From a probe specification to a place in a process: our implementation of ``ubpx_resolve_spec``."""

from collections.abc import Sequence
from typing import Final

import attrs

from ubpx._errors import AmbiguousSymbol, NotExecutable, UnknownSymbol
from ubpx.core.ports import ProcessView
from ubpx.core.values import Place, VirtAddr
from ubpx.symbols._marker import hookimpl
from ubpx.symbols.cache import ElfCache
from ubpx.symbols.errors import UnreadableModule
from ubpx.symbols.ifunc import implementation
from ubpx.symbols.loaded import LoadedModule, LoadedModules
from ubpx.symbols.modules import ADDRESS_MASK
from ubpx.symbols.names import nearest_names, printable
from ubpx.symbols.specs import AddressSpec, SymbolSpec, check_address, parse_spec
from ubpx.symbols.symtab import Symbol, SymbolKind

_LOADERS: Final = ("ld-", "ld.so", "ld64.so", "libc.musl")
_LOADER_STOP: Final = "_dl_debug_state"
MAX_LISTED: Final = 16
"""Addresses that one AmbiguousSymbol lists."""


@attrs.frozen(kw_only=True)
class _Function:
    """A symbol of a module, or what an IFUNC stands for, in the process's addresses."""

    name: str
    start: VirtAddr
    end: VirtAddr


class SymbolResolver:
    """Resolves specifications by the ELF symbols of what is mapped. Owns the cache of files read."""

    def __init__(self) -> None:
        self._cache = ElfCache()

    @hookimpl
    def ubpx_find_loader_stop(self, process: ProcessView) -> Place | None:
        """Glibc's and musl's loaders have one; a static program has none."""
        return _loader_stop(LoadedModules(process, self._cache))

    @hookimpl
    def ubpx_resolve_spec(self, spec: str | int, process: ProcessView) -> Place | None:
        """The place that ``spec`` (text as in ``specs``, or an address) means in the process now.

        Raises UsageError for text that is no specification; UnknownModule, UnknownSymbol,
        AmbiguousSymbol, UnboundIfunc or UnreadableModule where it leads to no one place;
        NotExecutable where the place holds no code.
        """
        asked = AddressSpec(check_address(spec)) if isinstance(spec, int) else parse_spec(spec)
        modules = LoadedModules(process, self._cache)
        if isinstance(asked, AddressSpec):
            return _place_of_address(modules, asked.address)
        return _place_of_symbol(modules, asked)


def _loader_stop(modules: LoadedModules) -> Place | None:
    """The function that a dynamic loader calls for debuggers' sake (r_brk of its struct r_debug; link.h)."""
    for loaded in modules.every():
        if loaded.name.startswith(_LOADERS) or loaded.module.name.startswith(_LOADERS):
            for symbol in modules.symbols(loaded).named(_LOADER_STOP):
                start, end = symbol.address, modules.symbols(loaded).end_of(symbol)
                return Place(
                    address=loaded.in_memory(start),
                    name=f"{loaded.name}:{_LOADER_STOP}",
                    symbol_start=loaded.in_memory(start),
                    symbol_end=loaded.in_memory(end),
                )
    return None


def _place_of_address(modules: LoadedModules, address: VirtAddr) -> Place:
    _check_executable(modules, address)
    around = _enclosing(modules, address)
    if around is None:
        return Place(address=address, name=f"{address:#x}", symbol_start=None, symbol_end=None)
    name = around.name + _plus(address - around.start)
    return Place(address=address, name=name, symbol_start=around.start, symbol_end=around.end)


def _place_of_symbol(modules: LoadedModules, spec: SymbolSpec) -> Place:
    loaded, symbol = _the_only(modules, _matches(modules, spec), spec)
    if symbol.kind is SymbolKind.IFUNC:
        function = _bound(modules, loaded, symbol, spec)
    else:
        start, end = symbol.address, modules.symbols(loaded).end_of(symbol)
        function = _Function(name=_name(loaded, symbol, spec), start=loaded.in_memory(start), end=loaded.in_memory(end))
    address = VirtAddr((function.start + spec.offset) & ADDRESS_MASK)
    _check_executable(modules, address)
    name = function.name + _plus(spec.offset)
    if address != function.start and not function.start <= address < function.end:
        around = _enclosing(modules, address)
        start_end = (None, None) if around is None else (around.start, around.end)
        return Place(address=address, name=name, symbol_start=start_end[0], symbol_end=start_end[1])
    return Place(address=address, name=name, symbol_start=function.start, symbol_end=function.end)


def _matches(modules: LoadedModules, spec: SymbolSpec) -> list[tuple[LoadedModule, Symbol]]:
    """The symbols that the specification means, in every module that it means. Raises if there is none."""
    if spec.module is None:
        searched = modules.main()
    else:
        searched = modules.by_path(spec.module) if spec.is_path else modules.by_name(spec.module)
    found = []
    for loaded in searched:
        named = modules.symbols(loaded).named(spec.symbol)
        found += [(loaded, symbol) for symbol in _in_version(named, spec)]
    if not found:
        _refuse_data(modules, searched, spec)
        raise UnknownSymbol(str(spec), _nearest(modules, searched, spec))
    return found


def _in_version(named: Sequence[Symbol], spec: SymbolSpec) -> Sequence[Symbol]:
    """Those of the version asked for; without one the default, else those without a version, else the hidden ones."""
    if spec.version is not None:
        wanted = [symbol for symbol in named if symbol.version == spec.version]
        return [symbol for symbol in wanted if not (spec.only_default and symbol.hidden)]
    default = [symbol for symbol in named if symbol.version is not None and not symbol.hidden]
    return default or [symbol for symbol in named if symbol.version is None] or named


def _the_only(
    modules: LoadedModules, found: Sequence[tuple[LoadedModule, Symbol]], spec: SymbolSpec
) -> tuple[LoadedModule, Symbol]:
    """The symbol at the one address that was found; aliases there are one. Raises AmbiguousSymbol."""
    by_address = {loaded.in_memory(symbol.address): (loaded, symbol) for loaded, symbol in reversed(found)}
    if len(by_address) > 1:
        raise AmbiguousSymbol(
            str(spec),
            [
                f"{address:#x} ({_origin(modules, loaded, symbol)})"
                for address, (loaded, symbol) in sorted(by_address.items())[:MAX_LISTED]
            ],
        )
    return found[0]


def _origin(modules: LoadedModules, loaded: LoadedModule, symbol: Symbol) -> str:
    source = modules.symbols(loaded).with_source(symbol).source
    parts = [f"{loaded.name}:{printable(str(symbol))}"] + ([f"of {printable(source)}"] if source else [])
    return " ".join(parts)


def _bound(modules: LoadedModules, loaded: LoadedModule, symbol: Symbol, spec: SymbolSpec) -> _Function:
    """The implementation of an IFUNC. Where no symbol tells its end, the unwind table or the next symbol does."""
    start = implementation(modules, loaded, symbol, str(spec))
    name = _name(loaded, symbol, spec)
    known = _enclosing(modules, start)
    if known is not None and known.start == start:
        return _Function(name=name, start=start, end=known.end)
    linked = loaded.as_linked(start)
    end = modules.unwind(loaded).end_of(linked) or modules.symbols(loaded).next_start(linked)
    return _Function(name=name, start=start, end=loaded.in_memory(end))


def _enclosing(modules: LoadedModules, address: VirtAddr) -> _Function | None:
    """The function around the address; None too where its module cannot be read."""
    loaded = modules.around(address)
    if loaded is None:
        return None
    try:
        symbols = modules.symbols(loaded)
    except UnreadableModule:
        return None
    symbol = symbols.enclosing(loaded.as_linked(address))
    if symbol is None:
        return None
    label = f"{symbol.name}@{symbol.version}" if symbol.hidden else symbol.name
    label += "[resolver]" if symbol.kind is SymbolKind.IFUNC else ""
    start, end = loaded.in_memory(symbol.address), loaded.in_memory(symbols.end_of(symbol))
    return _Function(name=f"{loaded.name}:{printable(label)}", start=start, end=end)


def _refuse_data(modules: LoadedModules, searched: Sequence[LoadedModule], spec: SymbolSpec) -> None:
    """Raises NotExecutable if the name is that of data."""
    for loaded in searched:
        for symbol in modules.symbols(loaded).data_named(spec.symbol):
            address = loaded.in_memory(symbol.address)
            raise NotExecutable(address, f"{printable(spec.symbol)} is data, not code", "name a function")


def _nearest(modules: LoadedModules, searched: Sequence[LoadedModule], spec: SymbolSpec) -> Sequence[str]:
    """What may have been meant: another version, the same name in another module, or a similar name."""
    versions = [printable(str(s)) for loaded in searched for s in modules.symbols(loaded).named(spec.symbol)]
    elsewhere = [] if spec.module is not None or versions else _elsewhere(modules, spec.symbol)
    names = (name for loaded in searched for name in modules.symbols(loaded).names())
    similar = nearest_names(spec.symbol, (name for name in names if name != spec.symbol))
    return tuple(dict.fromkeys([*versions, *elsewhere, *similar]))[:3]


def _elsewhere(modules: LoadedModules, name: str) -> list[str]:
    found = []
    for loaded in modules.every():
        try:
            if modules.symbols(loaded).named(name):
                found.append(f"{loaded.name}:{printable(name)}")
        except UnreadableModule:
            continue
    return found


def _check_executable(modules: LoadedModules, address: VirtAddr) -> None:
    mapped = modules.range_at(address)
    if mapped is None:
        raise NotExecutable(address, "nothing is mapped there", "look into /proc/PID/maps")
    if not mapped.executable:
        where = printable(mapped.path) or "anonymous memory"
        raise NotExecutable(address, f"{where} is mapped there as {mapped.permissions}", "choose an address with code")


def _name(loaded: LoadedModule, symbol: Symbol, spec: SymbolSpec) -> str:
    version = symbol.version if spec.version is not None or symbol.hidden else None
    shown = printable(symbol.name if version is None else f"{symbol.name}{'@' if symbol.hidden else '@@'}{version}")
    return f"{loaded.name}:{shown}"


def _plus(offset: int) -> str:
    return f"+{offset:#x}" if offset else ""
