"""From a probe specification to a place in a process: our implementation of ``ubpx_resolve_spec``."""

import contextlib
import re
from collections.abc import Container, Sequence
from typing import Final

import attrs

from ubpx._errors import (
    AmbiguousSymbol,
    NotExecutable,
    SpecError,
    UnboundIfunc,
    UnknownSymbol,
    UnreadableModule,
    UsageError,
)
from ubpx.core.ports import FunctionPlaces, ProcessView, Refusal
from ubpx.core.values import Place, VirtAddr
from ubpx.symbols import globs
from ubpx.symbols.around import surroundings
from ubpx.symbols.cache import ElfCache
from ubpx.symbols.ifunc import implementation, prefetch
from ubpx.symbols.loaded import LoadedModule, LoadedModules
from ubpx.symbols.modules import ADDRESS_MASK
from ubpx.symbols.names import nearest_names, printable
from ubpx.symbols.specs import AddressSpec, GlobSpec, Spec, SymbolSpec, check_address, parse_glob, parse_spec
from ubpx.symbols.symtab import Symbol, SymbolKind

_LOADERS: Final = ("ld-", "ld.so", "ld64.so", "libc.musl")
_LOADER_STOP: Final = "_dl_debug_state"
MAX_LISTED: Final = 16
"""Addresses that one AmbiguousSymbol lists."""
MAX_SUGGESTIONS: Final = 3
"""Unknown names of one list for which a similar one is looked for, which takes milliseconds."""


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

    def loader_stop(self, process: ProcessView) -> Place | None:
        """Glibc's and musl's loaders have one; a static program has none."""
        return _loader_stop(LoadedModules(process, self._cache))

    def resolve(self, spec: str | int, process: ProcessView) -> Place:
        """The place that ``spec`` (text as in ``specs``, or an address) means in the process now.

        Raises UsageError for text that is no specification; UnknownModule, UnknownSymbol,
        AmbiguousSymbol, UnboundIfunc or UnreadableModule where it leads to no one place;
        NotExecutable where the place holds no code.
        """
        asked = AddressSpec(check_address(spec)) if isinstance(spec, int) else parse_spec(spec)
        modules = LoadedModules(process, self._cache)
        return _place_of(modules, asked)

    def resolve_many(self, specs: str | Sequence[str | int], process: ProcessView) -> Sequence[Place | Refusal] | None:
        """The places of many specifications and addresses, or of all functions that a glob names."""
        modules = LoadedModules(process, self._cache)
        glob = parse_glob(specs) if isinstance(specs, str) else None
        if glob is not None:
            return _functions_of_glob(modules, glob)
        return _places_of_all(modules, [specs] if isinstance(specs, str) else specs)


def _place_of(modules: LoadedModules, asked: Spec, *, suggest: bool = True) -> Place:
    if isinstance(asked, AddressSpec):
        return _place_of_address(modules, asked.address)
    return _place_of_symbol(modules, asked, suggest=suggest)


def _places_of_all(modules: LoadedModules, specs: Sequence[str | int]) -> list[Place | Refusal]:
    """One answer for each; the names of each module are looked up in one pass."""
    asked = [_parsed(spec) for spec in specs]
    wanted: dict[str | None, set[str]] = {}
    for each in asked:
        if isinstance(each, SymbolSpec):
            wanted.setdefault(each.module, set()).add(each.symbol)
    for module, names in wanted.items():
        with contextlib.suppress(SpecError):  # which those that ask for it will be told
            for loaded in modules.search(module):
                modules.prefetch(loaded, frozenset(names))
    answers: list[Place | Refusal] = []
    refusals = 0
    for spec, each in zip(specs, asked, strict=True):
        try:
            if isinstance(each, UsageError):
                raise each
            answers.append(_place_of(modules, each, suggest=refusals < MAX_SUGGESTIONS))
        except (UsageError, SpecError, NotExecutable) as error:
            refusals += 1
            answers.append(Refusal(printable(spec) if isinstance(spec, str) else f"{spec:#x}", error))
    return answers


def _parsed(spec: str | int) -> Spec | UsageError:
    try:
        return AddressSpec(check_address(spec)) if isinstance(spec, int) else parse_spec(spec)
    except UsageError as error:
        return error


def _functions_of_glob(modules: LoadedModules, glob: GlobSpec) -> Sequence[Place | Refusal]:
    """The functions of the module whose names the pattern accepts; of an IFUNC what it stands for."""
    searched = modules.search(glob.module)
    matches = globs.in_strings(glob.pattern)
    if matches is None or len(searched) > 1:
        accepts = globs.accepts(glob.pattern)
        found = [(loaded, symbol) for loaded in searched for symbol in modules.symbols(loaded).functions(accepts)]
        _check_any(modules, glob, searched, found)
        places, refused = _places_of_functions(modules, found, but_for=())
        return [*(places[address] for address in sorted(places)), *refused]
    loaded = searched[0]
    matching = modules.symbols(loaded).functions_matching(matches[0])
    plain = globs.PlainFunctions(modules, loaded, matching)
    found = [(loaded, matching.symbol(address)) for address in plain.special()]
    _check_any(modules, glob, searched, plain.starts or found)
    places, refused = _places_of_functions(modules, found, but_for=plain)
    others: list[Place | Refusal] = [*(places[address] for address in sorted(places)), *refused]
    return FunctionPlaces(plain.starts, plain.describe, others)


def _check_any(
    modules: LoadedModules, glob: GlobSpec, searched: Sequence[LoadedModule], found: Sequence[object]
) -> None:
    if not found:
        raise UnknownSymbol(glob.text, _nearest_to_glob(modules, searched, glob))


def _places_of_functions(
    modules: LoadedModules, found: list[tuple[LoadedModule, Symbol]], *, but_for: Container[int]
) -> tuple[dict[VirtAddr, Place], list[Refusal]]:
    """Where the functions are, each address once; not those ``but_for`` which that is known."""
    ifuncs = [each for each in found if each[1].kind is SymbolKind.IFUNC]
    if ifuncs:
        prefetch(modules, ifuncs)
        found.sort(key=lambda each: each[1].kind is SymbolKind.IFUNC)  # their implementations' own names come first
    places: dict[VirtAddr, Place] = {}
    refused: list[Refusal] = []
    for loaded, symbol in found:
        name = _name(loaded, symbol)
        try:
            function = _function(modules, loaded, symbol, name=name, asked=name, suggest=False)
            start = function.start
            _check_executable(modules, start)
        except (UnboundIfunc, NotExecutable) as error:
            refused.append(Refusal(name, error))
        else:
            if start not in places and start not in but_for:
                places[start] = _place(modules, function, start, name)
    return places, refused


def _nearest_to_glob(modules: LoadedModules, searched: Sequence[LoadedModule], glob: GlobSpec) -> Sequence[str]:
    names = (name for loaded in searched for name in modules.symbols(loaded).names())
    return nearest_names(re.sub(r"\[.*?\]|[*?]", "", glob.pattern), names)


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
    around = surroundings(modules, address)
    name = f"{address:#x}" if around.symbol is None else around.symbol + _plus(address - around.symbol_start)
    return around.place(address, name)


def _place_of_symbol(modules: LoadedModules, spec: SymbolSpec, *, suggest: bool) -> Place:
    loaded, symbol = _the_only(modules, _matches(modules, spec, suggest=suggest), spec)
    name = _name(loaded, symbol, versioned=spec.version is not None)
    function = _function(modules, loaded, symbol, name=name, asked=str(spec), suggest=suggest)
    address = VirtAddr((function.start + spec.offset) & ADDRESS_MASK)
    _check_executable(modules, address)
    return _place(modules, function, address, function.name + _plus(spec.offset))


def _place(modules: LoadedModules, function: _Function, address: VirtAddr, name: str) -> Place:
    """The address in, or near, a function that was asked for by name."""
    around = surroundings(modules, address, named=False)
    if function.start <= address < max(function.end, function.start + 1):  # its name vouches for it
        bounds = (function.start, function.end) if around.start is None else (around.start, around.end)
        around = attrs.evolve(around, start=bounds[0], end=bounds[1], gap=None)
    return around.place(address, name)


def _matches(modules: LoadedModules, spec: SymbolSpec, *, suggest: bool) -> list[tuple[LoadedModule, Symbol]]:
    """The symbols that the specification means, in every module that it means. Raises if there is none."""
    searched = modules.search(spec.module)
    found = []
    for loaded in searched:
        named = modules.named(loaded, spec.symbol)
        found += [(loaded, symbol) for symbol in _in_version(named, spec)]
    if not found and not suggest:
        raise UnknownSymbol(str(spec), ())
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


def _function(
    modules: LoadedModules, loaded: LoadedModule, symbol: Symbol, *, name: str, asked: str, suggest: bool
) -> _Function:
    """Where the symbol is in the process; of an IFUNC its implementation, as ``asked`` for. Raises UnboundIfunc."""
    if symbol.kind is not SymbolKind.IFUNC:
        linked_end = modules.symbols(loaded).end_of(symbol)
        return _Function(name=name, start=loaded.in_memory(symbol.address), end=loaded.in_memory(linked_end))
    # Where no symbol tells the implementation's end, the unwind table or the next symbol does.
    start = implementation(modules, loaded, symbol, asked, suggest=suggest)
    around = surroundings(modules, start, named=False)
    if around.end is not None and around.start == start:
        return _Function(name=name, start=start, end=around.end)
    return _Function(
        name=name, start=start, end=loaded.in_memory(modules.symbols(loaded).next_start(loaded.as_linked(start)))
    )


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


def _name(loaded: LoadedModule, symbol: Symbol, *, versioned: bool = False) -> str:
    version = symbol.version if versioned or symbol.hidden else None
    shown = printable(symbol.name if version is None else f"{symbol.name}{'@' if symbol.hidden else '@@'}{version}")
    return f"{loaded.name}:{shown}"


def _plus(offset: int) -> str:
    return f"+{offset:#x}" if offset else ""
