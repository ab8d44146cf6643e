"""What has been read of ELF files, kept as long as the files are the same."""

import io
import os
from collections.abc import Callable
from typing import BinaryIO, Final, TypeVar

import attrs

from ubpx._errors import UnreadableModule
from ubpx.core.ports import ProcessView
from ubpx.symbols.code import read_stubs
from ubpx.symbols.elf import ElfHeaders, ImageReader, Section, read_headers
from ubpx.symbols.files import open_mapped
from ubpx.symbols.lookup import Symbols, read_symbols
from ubpx.symbols.modules import VDSO, Module
from ubpx.symbols.relocations import Relocations, read_relocations
from ubpx.symbols.rseq import RestartableSequence, read_sequences
from ubpx.symbols.unwind import UnwindTable, read_unwind_table

MAX_FILES: Final = 128
MAX_VDSO_BYTES: Final = 1 << 20

Part = TypeVar("Part")
Identity = tuple[int, int, int, int] | bytes


@attrs.define
class _KnownFile:
    """The parts of one file that have been read. Owned by its ElfCache."""

    headers: ElfHeaders
    symbols: Symbols | None = None
    relocations: Relocations | None = None
    unwind: UnwindTable | None = None
    sequences: tuple[RestartableSequence, ...] | None = None
    stubs: tuple[Section, ...] | None = None


class ElfCache:
    """Headers, symbols and relocations of files, each read at first use. Owned by one SymbolResolver.

    A file is known again by device, inode, modification time and size; the vdso by its bytes.
    Two threads that read one file at once do the work twice, nothing worse.
    """

    def __init__(self) -> None:
        self._known: dict[Identity, _KnownFile] = {}

    def headers(self, process: ProcessView, module: Module) -> ElfHeaders:
        """Raises UnreadableModule, like all others."""
        with _open(process, module) as stream:
            return self._file(stream, module).headers

    def symbols(self, process: ProcessView, module: Module) -> Symbols:
        """The symbols of both tables."""
        with _open(process, module) as stream:
            known = self._file(stream, module)
            if known.symbols is None:
                known.symbols = _read(read_symbols, stream, module, known)
            return known.symbols

    def relocations(self, process: ProcessView, module: Module) -> Relocations:
        """The relocations that hold functions' addresses."""
        with _open(process, module) as stream:
            known = self._file(stream, module)
            if known.relocations is None:
                known.relocations = _read(read_relocations, stream, module, known)
            return known.relocations

    def unwind(self, process: ProcessView, module: Module) -> UnwindTable:
        """Where functions without symbols end."""
        with _open(process, module) as stream:
            known = self._file(stream, module)
            if known.unwind is None:
                known.unwind = _read(read_unwind_table, stream, module, known)
            return known.unwind

    def sequences(self, process: ProcessView, module: Module) -> tuple[RestartableSequence, ...]:
        """The restartable sequences that the file describes, as linked."""
        with _open(process, module) as stream:
            known = self._file(stream, module)
            if known.sequences is None:
                known.sequences = _read(read_sequences, stream, module, known)
            return known.sequences

    def stubs(self, process: ProcessView, module: Module) -> tuple[Section, ...]:
        """The sections that hold the linker's stubs and nothing else."""
        with _open(process, module) as stream:
            known = self._file(stream, module)
            if known.stubs is None:
                known.stubs = _read(read_stubs, stream, module, known)
            return known.stubs

    def _file(self, stream: BinaryIO, module: Module) -> _KnownFile:
        identity = _identity(stream)
        known = self._known.pop(identity, None)
        if known is None:
            known = _KnownFile(headers=read_headers(ImageReader(stream, module.path)))
        self._known[identity] = known  # the last in the dictionary is the one used last
        while len(self._known) > MAX_FILES:
            self._known.pop(next(iter(self._known)), None)
        return known


def _read(
    reading: Callable[[ImageReader, ElfHeaders], Part], stream: BinaryIO, module: Module, known: _KnownFile
) -> Part:
    return reading(ImageReader(stream, module.path), known.headers)


def _open(process: ProcessView, module: Module) -> BinaryIO:
    if module.path != VDSO:
        return open_mapped(process.proc, module.ranges)
    start, end = module.ranges[0].start, module.ranges[-1].end
    if end - start > MAX_VDSO_BYTES:
        raise UnreadableModule(VDSO, f"it has {end - start} bytes, more than {MAX_VDSO_BYTES}")
    return io.BytesIO(process.memory.read(start, end - start))


def _identity(stream: BinaryIO) -> Identity:
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
