"""Where functions end that no symbol describes: from the unwind table of one ELF file.

Stripped libraries keep it. Only the binary search table of .eh_frame_hdr in its usual form is
read (every linker writes it so); anything else counts as absent, for this is a second opinion.
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

    def _pair(self, number: int) -> tuple[int, int]:
        start, entry = struct.unpack_from(self.order + "ii", self.table, number * 8)
        return self.header_address + start, self.header_address + entry

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
        rest = rest[4:]  # code and data alignment, return address register, length of what follows: one byte each
        for letter in augmentation[1:]:
            if letter == ord("R"):
                return rest[0]
            if letter == ord("L"):
                rest = rest[1:]
            elif letter == ord("P"):
                rest = rest[1 + (8 if rest[0] & 7 in (0, 4) else 4) :]
            elif letter not in b"SB":
                return None
        return None


def read_unwind_table(reader: ImageReader, headers: ElfHeaders) -> UnwindTable:
    """The file's search table; an empty one where it has none of the usual form. Raises UnreadableModule."""
    nothing = UnwindTable(order=headers.order)
    named = {section.name: section for section in headers.sections}
    header, frames = named.get(".eh_frame_hdr"), named.get(".eh_frame")
    if header is None or frames is None:
        return nothing
    data = reader.section(header)
    if len(data) < 12 or data[0] != 1 or data[2] != _COUNT or data[3] != _TABLE:
        return nothing
    (count,) = struct.unpack_from(headers.order + "I", data, 8)
    if 12 + count * 8 > len(data):
        return nothing
    return UnwindTable(
        order=headers.order,
        header_address=header.address,
        table=data[12 : 12 + count * 8],
        frames=reader.section(frames),
        frames_address=frames.address,
    )
