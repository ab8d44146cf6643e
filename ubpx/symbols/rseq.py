"""Restartable sequences (rseq): code that the kernel sends back to an abort handler when it has been interrupted.

A descriptor says where each is. By convention (the kernel's selftests, librseq, tcmalloc) descriptors stand in
the section __rseq_cs, and pointers to them in __rseq_cs_ptr_array. Both the file is read, for a library's descriptors
are not relocated yet when it is seen first, and the process's memory, where pointers may lead elsewhere.
A program that keeps its descriptors in neither place tells nobody but the kernel.
Source: Linux, include/uapi/linux/rseq.h (struct rseq_cs), since 4.18.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from ubpx._errors import MemoryFault
from ubpx.core.ports import Memory
from ubpx.core.values import VirtAddr
from ubpx.symbols.elf import ElfHeaders, ImageReader, Machine, Section

DESCRIPTORS: Final = "__rseq_cs"
POINTERS: Final = "__rseq_cs_ptr_array"
MAX_SEQUENCES: Final = 4096
"""That are looked at in one module; the kernel's selftests have a few dozen."""
_FIELDS: Final = "IIQQQ"
_SIZE: Final = 32
_RELATIVE: Final[Mapping[Machine, int]] = {Machine.X86_64: 8, Machine.AARCH64: 1027, Machine.RISCV: 3}
"""The relocation whose addend is an address as linked (R_X86_64_RELATIVE); others keep it in the word itself."""


@attrs.frozen(order=True)
class RestartableSequence:
    """One of them. Addresses as linked or in memory, as its maker says."""

    start: int
    end: int
    """Behind the instruction that commits."""
    abort: int
    """Where an interrupted thread goes on."""

    def moved(self, bias: int, mask: int) -> "RestartableSequence":
        """The same, ``bias`` bytes higher."""
        return RestartableSequence(*((each + bias) & mask for each in (self.start, self.end, self.abort)))


def sections_with_sequences(headers: ElfHeaders) -> tuple[Section, ...]:
    """Hardly any file has them."""
    return tuple(each for each in headers.sections if each.allocated and each.name in (DESCRIPTORS, POINTERS))


def read_sequences(reader: ImageReader, headers: ElfHeaders) -> tuple[RestartableSequence, ...]:
    """Those that the file describes, as linked. Raises UnreadableModule."""
    found: list[RestartableSequence] = []
    for section in sections_with_sequences(headers):
        if section.name == DESCRIPTORS:
            data = bytearray(reader.section(section)[: MAX_SEQUENCES * _SIZE])
            for word, addend in _relative(reader, headers, section.address, section.address + len(data)):
                struct.pack_into(headers.order + "Q", data, word - section.address, addend % (1 << 64))
            found += _sound(headers.order, data)
    return tuple(sorted(set(found)))


def sequences_in_memory(
    memory: Memory, headers: ElfHeaders, arrays: Sequence[tuple[Section, VirtAddr]]
) -> tuple[RestartableSequence, ...]:
    """Those that the process's memory describes, in its addresses; each section of ``arrays`` with its own.

    What cannot be read is left out.
    """
    found: list[RestartableSequence] = []
    pointers: set[int] = set()
    for section, address in arrays:
        if section.name == DESCRIPTORS:
            found += _sound(headers.order, _read(memory, address, min(section.size, MAX_SEQUENCES * _SIZE)))
        else:
            word = headers.word_bytes
            data = _read(memory, address, min(section.size, MAX_SEQUENCES * word))
            letter = "Q" if word == 8 else "I"
            pointers |= {each for (each,) in struct.iter_unpack(headers.order + letter, _whole(data, word))}
    for pointer in pointers:
        if not any(address <= pointer < address + section.size for section, address in arrays):
            found += _sound(headers.order, _read(memory, VirtAddr(pointer), _SIZE))
    return tuple(sorted(set(found)))


def _relative(reader: ImageReader, headers: ElfHeaders, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Of the relocated words in the span, the addresses as linked that the file has in its relocations."""
    layout = struct.Struct(headers.order + ("QQq" if headers.bits == 64 else "IIi"))
    kind = _RELATIVE.get(headers.machine)
    for section in headers.sections_of("SHT_RELA"):
        if section.allocated and kind is not None:
            for word, info, addend in layout.iter_unpack(_whole(reader.section(section), layout.size)):
                if info == kind and start <= word <= end - 8:
                    yield word, addend


def _sound(order: str, data: bytes | bytearray) -> Iterator[RestartableSequence]:
    """Those of the descriptors for which the kernel would not kill the program."""
    for version, _, start, length, abort in struct.iter_unpack(order + _FIELDS, _whole(data, _SIZE)):
        end = start + length
        if version == 0 and start and length and end < 1 << 64 and abort and not start <= abort < end:
            yield RestartableSequence(start, end, abort)


def _whole(data: bytes | bytearray, size: int) -> bytes | bytearray:
    return data[: len(data) - len(data) % size]


def _read(memory: Memory, address: VirtAddr, size: int) -> bytes:
    try:
        return memory.read(address, size)
    except MemoryFault:
        return b""
