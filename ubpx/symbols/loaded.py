"""The modules of one process, as they are during one look-up."""

import bisect
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from ubpx._errors import MemoryFault, SpecError, TargetGone, UnknownModule, UnreadableModule
from ubpx.core.ports import ProcessView
from ubpx.core.values import MappedRange, VirtAddr
from ubpx.symbols.cache import ElfCache
from ubpx.symbols.elf import ElfHeaders, Section
from ubpx.symbols.files import is_same_file
from ubpx.symbols.lookup import Symbols
from ubpx.symbols.modules import ADDRESS_MASK, VDSO, Module, answers_to, load_biases, modules_of, vdso_biases
from ubpx.symbols.names import nearest_names, printable
from ubpx.symbols.relocations import Relocations
from ubpx.symbols.rseq import RestartableSequence, sections_with_sequences, sequences_in_memory
from ubpx.symbols.symtab import Symbol
from ubpx.symbols.unwind import UnwindTable


@attrs.frozen(kw_only=True)
class LoadedModule:
    """A module at one place in the process's memory; dlmopen loads one file several times."""

    module: Module
    headers: ElfHeaders
    bias: int
    """What to add to a linked address, modulo 2**64."""

    @property
    def name(self) -> str:
        """For people, and good in a specification: the soname, or else the file's base name."""
        return printable(self.headers.soname or self.module.name)

    def in_memory(self, linked: int) -> VirtAddr:
        """The address in the process."""
        return VirtAddr((linked + self.bias) & ADDRESS_MASK)

    def as_linked(self, address: int) -> int:
        """The address in the file's own terms."""
        return (address - self.bias) & ADDRESS_MASK

    def holds_code_at(self, address: int) -> bool:
        """Whether this copy of the module has code there."""
        linked = self.as_linked(address)
        inside = any(s.executable and s.address <= linked < s.address + s.memory_size for s in self.headers.segments)
        return inside and self.module.holds_code_at(address)


@attrs.frozen(kw_only=True)
class Inside:
    """What symbols and descriptors say of a stretch of code. Addresses are the process's."""

    entries: tuple[VirtAddr, ...]
    """Where functions and abort handlers start behind its own start; ascending."""
    data: tuple[tuple[VirtAddr, VirtAddr], ...]


class LoadedModules:
    """What is mapped in the process; made for one look-up and dropped, because programs map and unmap."""

    def __init__(self, process: ProcessView, cache: ElfCache) -> None:
        self._process, self._cache = process, cache
        self._mappings = tuple(process.mappings())
        self._starts = [mapped.start for mapped in self._mappings]
        self._modules = modules_of(self._mappings)
        # What has been found out, so that many specifications cost little more than one. A module is one of
        # self._modules, which live as long as this: its identity is its key.
        self._copies_of: dict[int, Sequence[LoadedModule]] = {}
        self._symbols_of: dict[int, Symbols] = {}
        self._named: dict[int, Mapping[str, tuple[Symbol, ...]]] = {}
        self._relocations_of: dict[int, Relocations] = {}
        self._numbered: dict[int, Mapping[int, Symbol]] = {}
        self._unwind_of: dict[int, UnwindTable] = {}
        self._stubs_of: dict[int, Sequence[Section]] = {}
        self._sequences_of: dict[tuple[int, int], Sequence[RestartableSequence]] = {}
        self._inside: dict[tuple[int, int, int, int], Inside] = {}
        self._searched: dict[str | None, Sequence[LoadedModule] | SpecError] = {}
        self._owners = {
            mapped.start: module for module in self._modules for mapped in module.ranges if mapped.executable
        }

    def range_at(self, address: int) -> MappedRange | None:
        """The mapping that holds the address."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._mappings[at] if at >= 0 and address in self._mappings[at] else None

    def search(self, module: str | None) -> Sequence[LoadedModule]:
        """What a specification's MODULE means: the program itself, the file of a path, or the files of a name."""
        found = self._searched.get(module)
        if found is None:
            by = self.by_name if module is None or "/" not in module else self.by_path
            try:
                found = self.main() if module is None else by(module)
            except SpecError as error:
                found = error
            self._searched[module] = found
        if isinstance(found, SpecError):
            raise found
        return found

    def named(self, loaded: LoadedModule, name: str) -> tuple[Symbol, ...]:
        """The module's code symbols of this name, in any version."""
        known = self._named.get(id(loaded.module), {})
        return known[name] if name in known else self.symbols(loaded).named(name)

    def prefetch(self, loaded: LoadedModule, names: frozenset[str]) -> None:
        """Look many names up in one pass, for ``named``."""
        known = self._named.get(id(loaded.module), {})
        self._named[id(loaded.module)] = {**known, **self.symbols(loaded).named_any(names)}

    def main(self) -> Sequence[LoadedModule]:
        """The program itself: the file of /proc/PID/exe."""
        program = f"{self._process.proc}/exe"
        try:
            status = Path(program).stat()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGone(self._process.pid, None) from error
        except OSError as error:
            raise UnreadableModule(program, f"it may not be read ({error.strerror})") from error
        modules = [module for module in self._modules if is_same_file(status, module.ranges[0])]
        return self._loaded(modules, wanted="the main program")

    def by_path(self, path: str) -> Sequence[LoadedModule]:
        """The file at this path, in our root or in the process's. Raises UnknownModule if it is not mapped."""
        for candidate in (path, f"{self._process.proc}/root/{path.lstrip('/')}"):
            with contextlib.suppress(OSError, ValueError):
                status = Path(candidate).stat()
                modules = [module for module in self._modules if is_same_file(status, module.ranges[0])]
                if modules:
                    return self._loaded(modules, wanted=path)
        raise self._unknown(path, Path(path).name)

    def by_name(self, wanted: str) -> Sequence[LoadedModule]:
        """The modules that ``wanted`` names: in full if there is one, else without its version.

        Raises UnknownModule.
        """
        ranks = {module: answers_to(module, None, wanted) for module in self._modules}
        if not any(ranks.values()):  # only now, because sonames are in the files
            ranks = {module: answers_to(module, self._soname(module), wanted) for module in self._modules}
        best = max(ranks.values(), default=0)
        if not best:
            raise self._unknown(wanted, wanted)
        return self._loaded([module for module, rank in ranks.items() if rank == best], wanted=wanted)

    def every(self) -> Iterator[LoadedModule]:
        """All that can be read."""
        for module in self._modules:
            yield from self._copies(module)

    def around(self, address: int) -> LoadedModule | None:
        """The readable module with code at the address."""
        mapped = self.range_at(address)
        module = self._owners.get(mapped.start) if mapped is not None else None
        if module is None:
            return None
        return next((copy for copy in self._copies(module) if copy.holds_code_at(address)), None)

    def executable(self, loaded: LoadedModule) -> list[tuple[VirtAddr, VirtAddr]]:
        """Where the module has code that may run, as far as this copy of it is there; ascending."""
        ranges = (mapped for mapped in loaded.module.ranges if mapped.executable)
        return sorted((each.start, each.end) for each in ranges if loaded.holds_code_at(each.start))

    def symbols(self, loaded: LoadedModule) -> Symbols:
        """Raises UnreadableModule, like the others."""
        known = self._symbols_of.get(id(loaded.module))
        if known is None:
            known = self._symbols_of[id(loaded.module)] = self._cache.symbols(self._process, loaded.module)
        return known

    def relocations(self, loaded: LoadedModule) -> Relocations:
        """The module's GOT words."""
        known = self._relocations_of.get(id(loaded.module))
        if known is None:
            known = self._relocations_of[id(loaded.module)] = self._cache.relocations(self._process, loaded.module)
        return known

    def words_for(self, loaded: LoadedModule, names: Mapping[str, frozenset[str | None]]) -> Iterator[int]:
        """The module's GOT words for one of the names, in one of its versions."""
        return self.relocations(loaded).words_for(names, self._numbered.get(id(loaded.module)))

    def prefetch_words(self, names: frozenset[str]) -> None:
        """Look the symbols of many names up in one pass, for ``words_for``: of these names alone from now on."""
        for loaded in self.every():
            with contextlib.suppress(UnreadableModule):
                self._numbered[id(loaded.module)] = self.relocations(loaded).numbered(names)

    def unwind(self, loaded: LoadedModule) -> UnwindTable:
        """Where the module's functions start and end."""
        known = self._unwind_of.get(id(loaded.module))
        if known is None:
            known = self._unwind_of[id(loaded.module)] = self._cache.unwind(self._process, loaded.module)
        return known

    def stubs(self, loaded: LoadedModule) -> Sequence[Section]:
        """The module's sections that hold the linker's stubs and nothing else, as linked."""
        known = self._stubs_of.get(id(loaded.module))
        if known is None:
            known = self._stubs_of[id(loaded.module)] = self._cache.stubs(self._process, loaded.module)
        return known

    def sequences(self, loaded: LoadedModule) -> Sequence[RestartableSequence]:
        """The module's restartable sequences, in memory; ascending. Raises UnreadableModule."""
        key = id(loaded.module), loaded.bias
        known = self._sequences_of.get(key)
        if known is None:
            known = self._sequences_of[key] = self._read_sequences(loaded)
        return known

    def _read_sequences(self, loaded: LoadedModule) -> Sequence[RestartableSequence]:
        arrays = [(each, loaded.in_memory(each.address)) for each in sections_with_sequences(loaded.headers)]
        if not arrays:
            return ()
        linked = self._cache.sequences(self._process, loaded.module)
        found = {each.moved(loaded.bias, ADDRESS_MASK) for each in linked}
        return sorted(found | set(sequences_in_memory(self._process.memory, loaded.headers, arrays)))

    def inside(self, loaded: LoadedModule, start: int, end: int) -> Inside:
        """What is known of the code between two addresses (as linked), in memory; the same object each time."""
        key = id(loaded.module), loaded.bias, start, end
        known = self._inside.get(key)
        if known is None:
            symbols = self.symbols(loaded)
            entries = {loaded.in_memory(each) for each in symbols.functions_between(start, end)}
            aborts = (VirtAddr(each.abort) for each in self.sequences(loaded))
            entries |= {abort for abort in aborts if start < loaded.as_linked(abort) < end}
            data = symbols.data_between(start, end)
            known = self._inside[key] = Inside(
                entries=tuple(sorted(entries)),
                data=tuple((loaded.in_memory(first), loaded.in_memory(last)) for first, last in data),
            )
        return known

    def word_at(self, loaded: LoadedModule, linked: int) -> VirtAddr | None:
        """The address that the program's memory holds there; None if nothing is mapped."""
        address, size = loaded.in_memory(linked), loaded.headers.word_bytes
        mapped = self.range_at(address)
        if mapped is None or address + size > mapped.end:
            return None
        try:
            data = self._process.memory.read(address, size)
        except MemoryFault:
            return None
        return VirtAddr(int.from_bytes(data, "little" if loaded.headers.order == "<" else "big"))

    def _copies(self, module: Module) -> Sequence[LoadedModule]:
        try:
            return self._copies_or_raise(module)
        except UnreadableModule:
            return ()

    def _copies_or_raise(self, module: Module) -> Sequence[LoadedModule]:
        known = self._copies_of.get(id(module))
        if known is None:
            headers = self._cache.headers(self._process, module)
            biases = vdso_biases(module, headers) if module.path == VDSO else load_biases(module, headers)
            known = [LoadedModule(module=module, headers=headers, bias=bias) for bias in biases]
            self._copies_of[id(module)] = known
        return known

    def _loaded(self, modules: Sequence[Module], *, wanted: str) -> Sequence[LoadedModule]:
        copies = [copy for module in modules for copy in self._copies_or_raise(module)]
        if not copies:
            raise self._unknown(wanted, wanted)
        return copies

    def _soname(self, module: Module) -> str | None:
        try:
            return self._cache.headers(self._process, module).soname
        except UnreadableModule:
            return None

    def _unknown(self, wanted: str, base_name: str) -> UnknownModule:
        by_stem = {module.name.partition(".so")[0]: printable(module.name) for module in self._modules}
        near = nearest_names(base_name.partition(".so")[0], by_stem)
        return UnknownModule(wanted, [by_stem[stem] for stem in near if stem in by_stem] or [*by_stem.values()][:3])
