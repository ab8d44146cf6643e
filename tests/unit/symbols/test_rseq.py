"""Descriptors of restartable sequences, in files and in memory."""

import io
import struct
from typing import Any

import attrs
import pytest

from ubpx._errors import MemoryFault
from ubpx.core.values import VirtAddr
from ubpx.symbols.elf import ElfHeaders, ImageReader, Machine, Section, read_headers
from ubpx.symbols.rseq import RestartableSequence, read_sequences, sections_with_sequences, sequences_in_memory

START, LENGTH, ABORT = 0x401000, 0x20, 0x401040
GOOD = RestartableSequence(START, START + LENGTH, ABORT)


def descriptor(*, version: int = 0, start: int = START, length: int = LENGTH, abort: int = ABORT) -> bytes:
    return struct.pack("<IIQQQ", version, 0, start, length, abort)


class Stretch:
    """Memory with bytes at one place."""

    def __init__(self, **at: bytes) -> None:
        self._at = {int(name[1:], 16): data for name, data in at.items()}

    def read(self, address: int, size: int) -> bytes:
        for start, data in self._at.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise MemoryFault(address, size, "read")

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError("looking writes nothing")

    patch = write


def section(name: str, kind: str = "SHT_PROGBITS", **fields: Any) -> Section:
    given = {
        "index": 1,
        "allocated": True,
        "executable": False,
        "address": 0,
        "offset": 0,
        "size": 0,
        "link": 0,
        "info": 0,
    }
    return Section(name=name, kind=kind, **{**given, **fields})


@pytest.fixture
def headers(elf_maker: Any) -> ElfHeaders:
    return read_headers(ImageReader(io.BytesIO(elf_maker.make([])), "made"))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (descriptor(), [GOOD]),
        (descriptor() * 2, [GOOD]),
        (descriptor()[:-1], []),
        (descriptor(version=1), []),
        (descriptor(start=0), []),
        (descriptor(length=0), []),
        (descriptor(length=2**64 - START), []),
        (descriptor(abort=0), []),
        (descriptor(abort=START + 4), []),
        (descriptor(abort=START + LENGTH), [RestartableSequence(START, START + LENGTH, START + LENGTH)]),
        (bytes(32) + descriptor(), [GOOD]),
    ],
)
def test_descriptors_are_believed_that_the_kernel_would_take(
    headers: ElfHeaders, data: bytes, found: list[RestartableSequence]
) -> None:
    array = section("__rseq_cs", size=len(data))
    memory = Stretch(x7000=data)
    assert list(sequences_in_memory(memory, headers, [(array, VirtAddr(0x7000))])) == found


def test_pointers_lead_to_descriptors_anywhere_and_nowhere(headers: ElfHeaders) -> None:
    """Invariant: a pointer into nothing is left out."""
    pointers = struct.pack("<QQQ", 0x9000, 0, 0xDEAD0000)
    memory = Stretch(x7000=pointers, x9000=descriptor())
    array = section("__rseq_cs_ptr_array", size=len(pointers))
    assert sequences_in_memory(memory, headers, [(array, VirtAddr(0x7000))]) == (GOOD,)
    assert sequences_in_memory(Stretch(), headers, [(array, VirtAddr(0x7000))]) == ()


def test_what_is_not_relocated_yet_is_read_from_the_relocations(headers: ElfHeaders) -> None:
    """Invariant: a library is known while the loader has not relocated it: its file has zeros, and addends."""
    data = descriptor(start=0, abort=0)
    words = struct.pack("<QQq", 0x3008, 8, START) + struct.pack("<QQq", 0x3018, 8, ABORT)
    words += struct.pack("<QQq", 0x2FF8, 8, 1) + struct.pack("<QQq", 0x3008, 6, 1)  # elsewhere; of another type
    sections = (
        section("__rseq_cs", address=0x3000, offset=0, size=32),
        section(".rela.dyn", "SHT_RELA", address=0x2000, offset=32, size=len(words)),
    )
    reader = ImageReader(io.BytesIO(data + words), "made")
    assert read_sequences(reader, attrs.evolve(headers, sections=sections)) == (GOOD,)
    other = attrs.evolve(headers, sections=sections, machine=Machine.OTHER)
    assert read_sequences(reader, other) == ()


def test_sections_that_are_not_loaded_are_not_asked(headers: ElfHeaders) -> None:
    sections = (section("__rseq_cs", allocated=False), section("__rseq_cs_ptr_array"), section("__rseq_csx"))
    found = sections_with_sequences(attrs.evolve(headers, sections=sections))
    assert [each.name for each in found] == ["__rseq_cs_ptr_array"]


def test_a_sequence_moves_with_its_module() -> None:
    assert GOOD.moved(0x1000, 2**64 - 1) == RestartableSequence(START + 0x1000, START + LENGTH + 0x1000, ABORT + 0x1000)
    assert GOOD.moved(-START, 2**64 - 1).start == 0
