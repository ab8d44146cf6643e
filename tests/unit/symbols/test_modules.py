"""Which mapped file a name means, and how far it lies from its linked addresses."""

import io
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from ubpx._errors import UnreadableModule
from ubpx.core.values import MappedRange, ProcessId, VirtAddr, parse_maps
from ubpx.symbols.elf import ElfHeaders, ImageReader, Segment, read_headers
from ubpx.symbols.files import open_mapped
from ubpx.symbols.modules import Module, answers_to, load_biases, modules_of

MAPS = """\
555555554000-555555555000 r--p 00000000 fe:00 11                         /usr/bin/prog
555555555000-555555556000 r-xp 00001000 fe:00 11                         /usr/bin/prog
7ffff7d00000-7ffff7d26000 r--p 00000000 fe:00 12                         /lib/libc.so.6
7ffff7d26000-7ffff7e7c000 r-xp 00026000 fe:00 12                         /lib/libc.so.6 (deleted)
7ffff7f00000-7ffff7f01000 r--p 00000000 fe:00 13                         /usr/share/data
7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
"""


def test_modules_are_files_with_code_and_the_vdso() -> None:
    """Invariant: every file with an executable mapping is one module; data, stack and the like are none."""
    modules = modules_of(parse_maps(MAPS))
    assert [module.name for module in modules] == ["prog", "libc.so.6", "[vdso]"]
    assert [len(module.ranges) for module in modules] == [2, 2, 1]


@pytest.mark.parametrize(
    ("wanted", "name", "soname", "rank"),
    [
        ("libc", "libc.so.6", None, 1),
        ("libc.so.6", "libc.so.6", None, 2),
        ("libc.so", "libc.so.6", None, 1),
        ("libc", "libc-2.31.so", None, 1),
        ("libc.so.6", "libc-2.31.so", "libc.so.6", 2),
        ("libc", "libcrypt.so", None, 0),
        ("libc", "libc++.so.1", None, 0),
        ("libc", "libc_malloc_debug.so.0", None, 0),
        ("libstdc++", "libstdc++.so.6.0.30", None, 1),
        ("libstdc++.so.6", "libstdc++.so.6.0.30", None, 1),
        ("libpython3.11", "libpython3.11.so.1.0", None, 1),
        ("libpython3", "libpython3.11.so.1.0", None, 0),
        ("prog", "prog", None, 2),
        ("pro", "prog", None, 0),
        ("_json", "_json.cpython-311-x86_64-linux-gnu.so", None, 0),
        ("vdso", "[vdso]", None, 2),
        ("[vdso]", "[vdso]", "linux-vdso.so.1", 2),
        ("linux-vdso", "[vdso]", "linux-vdso.so.1", 1),
        ("", "libc.so.6", None, 0),
    ],
)
@pytest.mark.contract("spec-3")
def test_a_name_means_the_library_with_or_without_its_version(
    wanted: str, name: str, soname: str | None, rank: int
) -> None:
    """Invariant: base name or soname, in full or up to the library's version; never a mere beginning."""
    mapped = attrs.evolve(parse_maps(MAPS)[0], path=name)
    assert answers_to(Module(path=name, ranges=(mapped,)), soname, wanted) == rank


@pytest.fixture(scope="module")
def headers(elf_maker: Any) -> ElfHeaders:
    made = read_headers(ImageReader(io.BytesIO(elf_maker.make([])), "made"))
    code = Segment(address=0x2010, offset=0x1010, file_size=0x1FF0, memory_size=0x1FF0, executable=True)
    data = Segment(address=0x5000, offset=0x2F00, file_size=0x200, memory_size=0x800, executable=False)
    return attrs.evolve(made, segments=(code, data))


def ranges(*lines: tuple[int, int, str, int]) -> Module:
    made = [
        MappedRange(
            start=VirtAddr(start),
            end=VirtAddr(end),
            permissions=perms,
            offset=offset,
            device="fe:00",
            inode=9,
            path="/x",
        )
        for start, end, perms, offset in lines
    ]
    return Module(path="/x", ranges=tuple(made))


def test_the_bias_comes_from_the_executable_segment(headers: ElfHeaders) -> None:
    """Invariant: bias = mapped - linked, for a first mapping at any offset, and split ranges give one bias."""
    whole = ranges((0x10000, 0x12000, "r-xp", 0x1000), (0x13000, 0x14000, "rw-p", 0x2000))
    split = ranges(
        (0x10000, 0x11000, "r-xp", 0x1000), (0x11000, 0x12000, "rwxp", 0x2000), (0x13000, 0x14000, "rw-p", 0x2000)
    )
    assert load_biases(whole, headers) == load_biases(split, headers) == (0x10000 - 0x2000,)


def test_a_file_loaded_twice_has_two_biases_and_one_read_as_data_none(headers: ElfHeaders) -> None:
    """Invariant: each copy of the code counts once; mappings without code do not count."""
    twice = ranges(
        (0x10000, 0x12000, "r-xp", 0x1000), (0x50000, 0x52000, "r-xp", 0x1000), (0x80000, 0x84000, "r--p", 0)
    )
    assert load_biases(twice, headers) == (0x10000 - 0x2000, 0x50000 - 0x2000)
    assert load_biases(ranges((0x80000, 0x84000, "r--p", 0)), headers) == ()


def test_a_file_that_replaced_the_mapped_one_is_not_read(tmp_path: Path) -> None:
    """Invariant: device and inode decide; a path alone is not believed, and a pipe there is not opened."""
    file = tmp_path / "library.so"
    file.write_bytes(b"not it")
    status = file.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    mapped = MappedRange(
        start=VirtAddr(0x1000), end=VirtAddr(0x2000), permissions="r-xp", offset=0, device=device,
        inode=status.st_ino, path=str(file),
    )  # fmt: skip
    pid = ProcessId(os.getpid())
    with open_mapped(f"/proc/{pid}", (mapped,)) as stream:
        assert stream.read() == b"not it"
    with pytest.raises(UnreadableModule, match="not at its path"):
        open_mapped(f"/proc/{pid}", (attrs.evolve(mapped, inode=status.st_ino + 1),))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UnreadableModule):
        open_mapped(f"/proc/{pid}", (attrs.evolve(mapped, inode=file.stat().st_ino),))
