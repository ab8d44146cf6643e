"""What is known of the code around an address: the function, by symbol or unwind data, or else the gap.

What vouches for an address, the best first: a function symbol with a size; a section of linker-made stubs; the
unwind table; a symbol without a size, as far as nothing else begins; an abort handler of a restartable sequence.
"""

from collections.abc import Sequence
from typing import Final

import attrs

from ubpx._errors import UnreadableModule
from ubpx.core.values import Place, VirtAddr
from ubpx.symbols.loaded import LoadedModule, LoadedModules
from ubpx.symbols.names import printable
from ubpx.symbols.rseq import RestartableSequence
from ubpx.symbols.symtab import Symbol, SymbolKind

_LONGEST_INSN: Final = 15
"""Bytes, on any processor."""
_Span = tuple[int, int]


@attrs.frozen(kw_only=True)
class Surroundings:
    """What is known around an address. Addresses are the process's."""

    symbol: str | None = None
    """The nearest name, ``libc.so.6:write``; None where no symbol is near."""
    symbol_start: int = 0
    start: VirtAddr | None = None
    """Of the function, like the next three as in Place."""
    end: VirtAddr | None = None
    entries: tuple[VirtAddr, ...] = ()
    data: tuple[tuple[VirtAddr, VirtAddr], ...] = ()
    gap: str | None = None
    atomic: tuple[VirtAddr, VirtAddr] | None = None

    def place(self, address: VirtAddr, name: str) -> Place:
        """The address with all that is known of it."""
        return Place(
            address=address,
            name=name,
            symbol_start=self.start,
            symbol_end=self.end,
            entries=self.entries,
            data=self.data,
            gap=self.gap,
            atomic=self.atomic,
        )


def surroundings(modules: LoadedModules, address: VirtAddr, *, named: bool = True) -> Surroundings:
    """What the module at the address says; a gap too where there is none that can be read.

    Unless ``named``, the symbol need not be told: its name costs more than all the rest.
    """
    loaded = modules.around(address)
    if loaded is None:
        mapped = modules.range_at(address)
        where = printable(mapped.path) if mapped is not None and mapped.path else "anonymous memory"
        return Surroundings(gap=f"it lies in {where}, of which no file says where instructions start")
    try:
        return _in_module(modules, loaded, address, named=named)
    except UnreadableModule as error:
        return Surroundings(gap=f"it lies outside any symbol that can be read ({error.reason})")


def label_of(loaded: LoadedModule, symbol: Symbol) -> str:
    """The symbol as a place's name has it."""
    label = f"{symbol.name}@{symbol.version}" if symbol.hidden else symbol.name
    label += "[resolver]" if symbol.kind is SymbolKind.IFUNC else ""
    return f"{loaded.name}:{printable(label)}"


def _in_module(modules: LoadedModules, loaded: LoadedModule, address: VirtAddr, *, named: bool) -> Surroundings:
    linked, symbols = loaded.as_linked(address), modules.symbols(loaded)
    sequences = modules.sequences(loaded)
    span = _sure_function(modules, loaded, linked)
    symbol = symbols.enclosing(linked) if named or span is None else None
    if span is None and symbol is not None:
        span = _around_label(modules, loaded, linked, symbol)
    gap = None
    if span is None:
        low, high, gap = _gap(modules, loaded, linked)
        aborts = (loaded.as_linked(each.abort) for each in sequences)
        handlers = [abort for abort in aborts if low <= abort <= linked < high]
        span = (max(handlers), high) if handlers else None
    name = None if symbol is None else label_of(loaded, symbol)
    symbol_start = 0 if symbol is None else loaded.in_memory(symbol.address)
    atomic = _atomic(sequences, address) if sequences else None
    if span is None:
        return Surroundings(symbol=name, symbol_start=symbol_start, gap=gap, atomic=atomic)
    inside = modules.inside(loaded, *span)
    if gap is None and modules.symbols(loaded).function_around(linked) is None and symbols.enclosing(linked) is None:
        gap = (
            f"it lies outside any symbol, in a function without a name from {loaded.in_memory(span[0]):#x} "
            f"to {loaded.in_memory(span[1]):#x}"
        )
    return Surroundings(
        symbol=name,
        symbol_start=symbol_start,
        start=loaded.in_memory(span[0]),
        end=loaded.in_memory(span[1]),
        entries=inside.entries,
        data=inside.data,
        gap=gap,
        atomic=atomic,
    )


def _sure_function(modules: LoadedModules, loaded: LoadedModule, linked: int) -> _Span | None:
    """Where the function around starts and ends, as linked, if a sized symbol, stubs or unwind data say so."""
    by_size = modules.symbols(loaded).function_around(linked)
    if by_size is not None:
        return by_size
    for section in modules.stubs(loaded):
        if linked in section:
            return section.address, section.end
    return modules.unwind(loaded).around(linked)


def _around_label(modules: LoadedModules, loaded: LoadedModule, linked: int, symbol: Symbol) -> _Span | None:
    """As far as a symbol without a size, or without a type, reaches."""
    end = modules.symbols(loaded).end_of(symbol)
    if not symbol.size:
        end = modules.unwind(loaded).end_of(symbol.address) or end
    return (symbol.address, end) if linked < end else None


def _gap(modules: LoadedModules, loaded: LoadedModule, linked: int) -> tuple[int, int, str]:
    """From where to where nobody vouches for anything, as linked, and that in words."""
    symbols, unwind = modules.symbols(loaded), modules.unwind(loaded)
    section = symbols.section_around(linked)
    if section is None:
        return 0, 0, f"it lies outside any symbol and outside the code sections of {loaded.name}"
    low, before = section.address, f"the start of {printable(section.name)}"
    high, after = section.end, f"the end of {printable(section.name)}"
    previous, following = symbols.function_before(linked), symbols.function_after(linked)
    if previous is not None and low < (end := symbols.end_of(previous) if previous.size else 0) <= linked:
        low, before = end, f"the end of {label_of(loaded, previous)}"
    if following is not None and following.address < high:
        high, after = following.address, f"the start of {label_of(loaded, following)}"
    nameless_end, nameless_start = unwind.end_before(linked), unwind.start_after(linked)
    if nameless_end is not None and low < nameless_end <= linked:
        low, before = nameless_end, "the end of a function without a name"
    if nameless_start is not None and nameless_start < high:
        high, after = nameless_start, "the start of a function without a name"
    return low, high, (
        f"it lies outside any symbol and any function with unwind data, in the gap from {loaded.in_memory(low):#x} "
        f"({before}) to {loaded.in_memory(high):#x} ({after}), which may be padding or data"
    )  # fmt: skip


def _atomic(sequences: Sequence[RestartableSequence], address: VirtAddr) -> tuple[VirtAddr, VirtAddr] | None:
    """The sequence around the address, or else the one that begins so near that the instruction may lead into it."""
    near = [each for each in sequences if each.start - _LONGEST_INSN <= address < each.end]
    near.sort(key=lambda each: not each.start <= address)
    return (VirtAddr(near[0].start), VirtAddr(near[0].end)) if near else None
