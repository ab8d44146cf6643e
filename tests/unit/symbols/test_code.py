"""Which bytes of a file are functions: who vouches for them, and what nobody vouches for."""

import io
import struct
from pathlib import Path
from typing import Any

import pytest

from ubpx._errors import UnreadableModule
from ubpx.symbols.code import CodeMap, ProvedBy, code_map, holds_stubs_alone, read_code_map
from ubpx.symbols.elf import ImageReader, Machine, read_headers
from ubpx.symbols.unwind import UnwindTable

BASE = 0x401000


def map_of(data: bytes) -> CodeMap:
    reader = ImageReader(io.BytesIO(data), "made")
    return read_code_map(reader, read_headers(reader))


def test_functions_are_ascending_and_what_is_between_them_are_gaps(elf_maker: Any, entry: Any) -> None:
    """Invariant: each byte of an executable section is in one range or in one gap."""
    data = elf_maker.make(
        [
            entry(name="second", value=BASE + 0x30, size=0x10),
            entry(name="first", value=BASE + 0x10, size=0x18),
            entry(name="alias", value=BASE + 0x10, size=0x18),
            entry(name="unsized", value=BASE + 0x60),
            entry(name="label", value=BASE + 0x14, size=2, type=0),
            entry(name="datum", value=BASE + 0x70, size=8, type=1),
        ],
        text_size=0x100,
    )
    found = map_of(data)
    assert [(each.start - BASE, each.end - BASE, each.name) for each in found.ranges] == [
        (0x10, 0x28, "alias"), (0x30, 0x40, "second"),
    ]  # fmt: skip
    assert {each.proved_by for each in found.ranges} == {ProvedBy.SYMBOL}
    assert [(each.start - BASE, each.end - BASE, each.section) for each in found.gaps] == [
        (0, 0x10, ".text"), (0x28, 0x30, ".text"), (0x40, 0x100, ".text"),
    ]  # fmt: skip


def test_functions_that_overlap_are_cut_at_each_start(elf_maker: Any, entry: Any) -> None:
    """Invariant: no byte is in two ranges, and none that somebody vouches for is in a gap."""
    data = elf_maker.make(
        [
            entry(name="outer", value=BASE, size=0x40),
            entry(name="inner", value=BASE + 0x10, size=0x10),
            entry(name="straddling", value=BASE + 0x38, size=0x10),
            entry(name="beyond", value=BASE + 0xF0, size=0x40),
            entry(name="outside", value=BASE + 0x200, size=0x40),
        ],
        text_size=0x100,
    )
    found = map_of(data)
    assert [(each.start - BASE, each.end - BASE, each.name) for each in found.ranges] == [
        (0, 0x10, "outer"), (0x10, 0x38, "inner"), (0x38, 0x48, "straddling"), (0xF0, 0x100, "beyond"),
    ]  # fmt: skip
    assert [(each.start - BASE, each.end - BASE) for each in found.gaps] == [(0x48, 0xF0)]


LAZY = bytes.fromhex("ff3501000000 ff2502000000 0f1f4000") + bytes.fromhex("ff2503000000 6800000000 e9e0ffffff")
IBT = bytes.fromhex("f30f1efa f2ff2501000000 0f1f440000") * 2
I386 = bytes.fromhex("ffb304000000 ffa308000000 00000000") + bytes.fromhex("ffa30c000000 6800000000 e9e0ffffff")


@pytest.mark.parametrize(
    ("machine", "code", "alone"),
    [
        (Machine.X86_64, LAZY, True),
        (Machine.X86_64, IBT, True),
        (Machine.I386, I386, True),
        (Machine.X86_64, I386, False),
        (Machine.X86_64, LAZY + b"\x31", False),
        (Machine.X86_64, LAZY[:-1], False),
        (Machine.X86_64, b"", False),
        (Machine.AARCH64, LAZY, False),
    ],
)
def test_stubs_are_believed_where_a_section_holds_nothing_else(machine: Machine, code: bytes, alone: bool) -> None:
    assert holds_stubs_alone(machine, code) is alone


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("text").write_text("no ELF file")
    for path in (tmp_path / "text", tmp_path / "absent", tmp_path):
        with pytest.raises(UnreadableModule):
            code_map(path)


@pytest.mark.parametrize(("augmentation", "believed"), [(b"zR", True), (b"zRS", False)])
def test_a_signal_frames_unwind_entry_proves_nothing(augmentation: bytes, believed: bool) -> None:
    """Invariant: what may begin a byte before its function is no start of instructions (libc's __restore_rt)."""
    cie = struct.pack("<IIB", 28, 0, 1) + augmentation + bytes((0, 1, 0x78, 16, 1, 0x1B))
    frames = cie.ljust(32, b"\0") + struct.pack("<IIii", 20, 36, BASE - 40, 0x10).ljust(24, b"\0")
    table = UnwindTable(order="<", table=struct.pack("<ii", BASE, 32), frames=frames)
    expected = (BASE, BASE + 0x10) if believed else None
    assert table.ranges() == ([expected] if believed else [])
    assert table.around(BASE + 4) == expected
    assert table.end_of(BASE) == (BASE + 0x10 if believed else None)
