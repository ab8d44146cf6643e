"""Which files a process has mapped, what they are called, and how far from their linked addresses they lie."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from ubpx.core.values import MappedRange, VirtAddr
from ubpx.symbols.elf import ElfHeaders, Segment

VDSO: Final = "[vdso]"
ADDRESS_MASK: Final = (1 << 64) - 1
MAX_CODE_SEGMENTS: Final = 8
"""That are looked at in one file; linkers make one, rarely two."""

_DELETED = " (deleted)"
_LIBRARY_SUFFIX = re.compile(r"(-[0-9][0-9.]*)?\.so(\.[0-9]+)*")
_MORE_VERSION = re.compile(r"(\.[0-9]+)+")


@attrs.frozen(kw_only=True)
class Module:
    """One file of which the process has mapped code, or the vdso."""

    path: str
    """As /proc/PID/maps has it, without its mark for deleted files."""
    ranges: tuple[MappedRange, ...]
    """All of the file's, ascending."""

    @property
    def name(self) -> str:
        """The file's base name."""
        return self.path.rpartition("/")[2] or self.path

    def holds_code_at(self, address: int) -> bool:
        """Whether the address is in an executable range of the file."""
        return any(mapped.executable and address in mapped for mapped in self.ranges)


def modules_of(mappings: Iterable[MappedRange]) -> tuple[Module, ...]:
    """The files with code in the process, in the order of their first range, and the vdso."""
    groups: dict[tuple[str, int, str], list[MappedRange]] = {}
    for mapped in mappings:
        if mapped.inode:
            groups.setdefault((mapped.device, mapped.inode, ""), []).append(mapped)
        elif mapped.path == VDSO:
            groups.setdefault(("", 0, VDSO), []).append(mapped)
    return tuple(
        Module(path=ranges[0].path.removesuffix(_DELETED), ranges=tuple(ranges))
        for ranges in groups.values()
        if any(mapped.executable for mapped in ranges)
    )


def load_biases(module: Module, headers: ElfHeaders) -> tuple[int, ...]:
    """What to add to linked addresses, once for each time the file is loaded; empty if it is not loaded as code.

    A bias is believed only if every executable segment begins where it says.
    """
    code = [segment for segment in headers.segments if segment.executable and segment.file_size][:MAX_CODE_SEGMENTS]
    biases: dict[int, None] = {}
    for mapped in module.ranges:
        if mapped.executable:
            for segment in code:
                if _holds(segment, mapped.offset):
                    bias = mapped.start - mapped.offset + segment.offset - segment.address
                    if all(_begins_at(module.ranges, other, bias) for other in code):
                        biases[bias & ADDRESS_MASK] = None
    return tuple(biases)


def vdso_biases(module: Module, headers: ElfHeaders) -> tuple[int, ...]:
    """As ``load_biases``, for the vdso: it has no file, and its image is mapped in one piece."""
    first = min((segment.address - segment.offset for segment in headers.segments), default=0)
    return ((module.ranges[0].start - first) & ADDRESS_MASK,)


def answers_to(module: Module, soname: str | None, wanted: str) -> int:
    """How well ``wanted`` names the module: 2 in full, 1 without the version of its library, 0 not at all."""
    names = [name for name in (module.name, soname) if name]
    if wanted in names or (module.path == VDSO and wanted == VDSO.strip("[]")):
        return 2
    return int(any(_is_stem(wanted, name) for name in names))


def _is_stem(wanted: str, name: str) -> bool:
    """``libc`` of libc.so.6 and libc-2.31.so, ``libz.so`` of libz.so.1; not ``libc`` of libcrypt.so."""
    if not name.startswith(wanted):
        return False
    rest = name[len(wanted) :]
    if _LIBRARY_SUFFIX.fullmatch(rest):
        return True
    return bool(re.search(r"\.so(\.[0-9]+)*$", wanted) and _MORE_VERSION.fullmatch(rest))


def _page_start(offset: int) -> int:
    return offset - offset % os.sysconf("SC_PAGE_SIZE")


def _holds(segment: Segment, offset: int) -> bool:
    return _page_start(segment.offset) <= offset < segment.offset + segment.file_size


def _begins_at(ranges: Sequence[MappedRange], segment: Segment, bias: int) -> bool:
    """Whether the file's page of the segment's start is mapped, executable, where the bias puts it."""
    start = (segment.address + bias) & ADDRESS_MASK
    for mapped in ranges:
        if mapped.executable and start in mapped:
            return mapped.offset + (VirtAddr(start) - mapped.start) == segment.offset
    return False
