"""Where functions start and end that no symbol describes: from the unwind table of one ELF file.

Stripped files keep it. The binary search table of .eh_frame_hdr is read in its usual form (every
linker writes it so), or made of .eh_frame where there is none; an entry in any other form than the
usual one counts as absent, and so no address is proved by it.
Source: LSB Core 5.0, chapters 10.5 and 10.6.
"""

import bisect
import struct
from typing import Final

import attrs

from ubpx.symbols.elf import ElfHeaders, ImageReader

_TABLE: Final = 0x3B
"""DW_EH_PE_datarel | DW_EH_PE_sdata4: 32-bit distances from the header's own start."""
_COUNT: Final = 0x03
"""DW_EH_PE_udata4."""
MAX_MADE: Final = 1 << 20
"""Functions of which a table is made where there is none; libLLVM has 100,000."""
_LONGER: Final = 0xFFFFFFF0
"""From here on a length has another meaning."""
_PCREL_4: Final = 0x1B
"""DW_EH_PE_pcrel | DW_EH_PE_sdata4: the form of the CIE's ``R`` that is read."""


@attrs.frozen(kw_only=True)
class UnwindTable:
    """The functions with unwind data. Addresses are as linked."""

    order: str
    header_address: int = 0
    table: bytes = attrs.field(default=b"", repr=False)
    """Pairs of a function's start and its entry's address, ascending, as distances from the header."""
    frames: bytes = attrs.field(default=b"", repr=False)
    frames_address: int = 0

    def end_of(self, start: int) -> int | None:
        """The address behind the function that starts exactly here, if the table has it."""
        count = len(self.table) // 8
        at = bisect.bisect_left(range(count), start, key=lambda number: self._pair(number)[0])
        if at == count or self._pair(at)[0] != start:
            return None
        return self._entry_end(self._pair(at)[1] - self.frames_address, start)

    def around(self, address: int) -> tuple[int, int] | None:
        """Start and end of the function that the table has around the address."""
        count = len(self.table) // 8
        at = bisect.bisect_right(range(count), address, key=lambda number: self._pair(number)[0]) - 1
        if at < 0:
            return None
        start, entry = self._pair(at)
        end = self._entry_end(entry - self.frames_address, start)
        return (start, end) if end is not None and address < end else None

    def end_before(self, address: int) -> int | None:
        """Where the last function ends that starts at the address or before."""
        at = bisect.bisect_right(range(len(self.table) // 8), address, key=lambda number: self._pair(number)[0]) - 1
        ends = (self._end_at(number) for number in range(at, -1, -1))
        return next((end for end in ends if end is not None), None)

    def start_after(self, address: int) -> int | None:
        """Where the first function starts behind the address."""
        count = len(self.table) // 8
        at = bisect.bisect_right(range(count), address, key=lambda number: self._pair(number)[0])
        usual = (number for number in range(at, count) if self._end_at(number) is not None)
        return next((self._pair(number)[0] for number in usual), None)

    def ranges(self) -> list[tuple[int, int]]:
        """Start and end of all functions that it has, in its order, which is ascending in a sound file."""
        found = []
        usual: dict[int, bool] = {}  # thousands of entries share one CIE
        last = len(self.frames) - 16
        fields = struct.Struct(self.order + "IIii").unpack_from
        for start, entry in struct.iter_unpack(self.order + "ii", self.table):
            start += self.header_address  # noqa: PLW2901  (as linked from here on)
            at = self.header_address + entry - self.frames_address
            if not 0 <= at <= last:
                continue
            _, to_cie, distance, size = fields(self.frames, at)
            cie = at + 4 - to_cie
            if cie not in usual:
                usual[cie] = self._encoding(cie) == _PCREL_4
            if usual[cie] and self.frames_address + at + 8 + distance == start and size > 0:
                found.append((start, start + size))
        return found

    def _pair(self, number: int) -> tuple[int, int]:
        start, entry = struct.unpack_from(self.order + "ii", self.table, number * 8)
        return self.header_address + start, self.header_address + entry

    def _end_at(self, number: int) -> int | None:
        start, entry = self._pair(number)
        return self._entry_end(entry - self.frames_address, start)

    def _entry_end(self, at: int, start: int) -> int | None:
        if not 0 <= at <= len(self.frames) - 16:
            return None
        _, to_cie, distance, size = struct.unpack_from(self.order + "IIii", self.frames, at)
        if self._encoding(at + 4 - to_cie) != _PCREL_4 or self.frames_address + at + 8 + distance != start:
            return None
        return start + size if size > 0 else None

    def _encoding(self, cie: int) -> int | None:
        """How the CIE's entries write addresses; None in any form but the usual ``zR``, ``zPLR`` with short fields."""
        if not 0 <= cie <= len(self.frames) - 32 or self.frames[cie + 8] != 1:
            return None
        augmentation, _, rest = self.frames[cie + 9 : cie + 64].partition(b"\0")
        if not augmentation.startswith(b"z") or len(rest) < 16:
            return None
        if b"S" in augmentation:  # a signal frame's entry starts a byte before its function (libc's __restore_rt)
            return None
        rest = rest[4:]  # code and data alignment, return address register, length of what follows: one byte each
        for letter in augmentation[1:]:
            if letter == ord("R"):
                return rest[0]
            if letter == ord("L"):
                rest = rest[1:]
            elif letter == ord("P"):
                rest = rest[1 + (8 if rest[0] & 7 in (0, 4) else 4) :]
            elif letter != ord("B"):
                return None
        return None


def read_unwind_table(reader: ImageReader, headers: ElfHeaders) -> UnwindTable:
    """The file's search table; an empty one where it has no unwind data of the usual form. Raises UnreadableModule."""
    named = {section.name: section for section in headers.sections}
    header, frames = named.get(".eh_frame_hdr"), named.get(".eh_frame")
    if frames is None:
        return UnwindTable(order=headers.order)
    found = UnwindTable(
        order=headers.order,
        header_address=frames.address,
        frames=reader.section(frames),
        frames_address=frames.address,
    )
    table = None if header is None else _search_table(headers.order, reader.section(header))
    if header is None or table is None:  # static programs have none
        return attrs.evolve(found, table=_made_table(found))
    return attrs.evolve(found, header_address=header.address, table=table)


def _search_table(order: str, data: bytes) -> bytes | None:
    """The pairs in the .eh_frame_hdr ``data``; None in any but the usual form."""
    if len(data) < 12 or data[0] != 1 or data[2] != _COUNT or data[3] != _TABLE:
        return None
    (count,) = struct.unpack_from(order + "I", data, 8)
    return data[12 : 12 + count * 8] if 12 + count * 8 <= len(data) else None


def _made_table(unwind: UnwindTable) -> bytes:
    """The pairs that a linker would have written for the frames, as distances from their own start."""
    pairs: list[tuple[int, int]] = []
    at = 0
    frames, order = unwind.frames, unwind.order
    while at <= len(frames) - 16 and len(pairs) < MAX_MADE:
        length, to_cie, distance = struct.unpack_from(order + "IIi", frames, at)
        if not 0 < length < _LONGER:
            break  # the end, or 64-bit DWARF, which nobody writes here
        if to_cie and -(2**31) <= at + 8 + distance < 2**31:
            pairs.append((at + 8 + distance, at))
        at += 4 + length
    pairs.sort()
    return struct.pack(f"{order}{2 * len(pairs)}i", *(number for pair in pairs for number in pair))
