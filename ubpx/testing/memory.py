"""A Memory without a process: pieces of bytes at addresses, with permissions."""

from collections.abc import Container, Iterator, Mapping, Sequence

import attrs

from ubpx._errors import MemoryFault
from ubpx.core.values import MappedRange, VirtAddr


@attrs.define(kw_only=True)
class _Piece:
    """One mapped range. Owned by its FakeMemory."""

    start: int
    data: bytearray
    permissions: str
    path: str

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class FakeMemory:
    """One address space's bytes; what was never mapped cannot be read (see ``ports.Memory``).

    ``parts`` are bytes by address, mapped as ``permissions`` say.
    """

    def __init__(self, parts: Mapping[int, bytes] | None = None, *, permissions: str = "rwxp") -> None:
        self._pieces: list[_Piece] = []
        for address, data in (parts or {}).items():
            self.map(address, data, permissions=permissions)

    def map(self, address: int, data: bytes, *, permissions: str = "rw-p", path: str = "") -> None:
        """Map ``data`` at ``address``; AssertionError if something is mapped there."""
        if not self.is_free(address, len(data)):
            raise AssertionError(f"{len(data)} bytes at {address:#x} are mapped already")
        self._pieces.append(_Piece(start=address, data=bytearray(data), permissions=permissions, path=path))
        self._pieces.sort(key=lambda piece: piece.start)

    def unmap(self, address: int, size: int) -> None:
        """Unmap exactly one earlier ``map``; AssertionError if there was none such."""
        found = [piece for piece in self._pieces if (piece.start, piece.end) == (address, address + size)]
        if not found:
            raise AssertionError(f"no {size} bytes were mapped at {address:#x}")
        self._pieces.remove(found[0])

    def is_free(self, address: int, size: int) -> bool:
        """Whether nothing is mapped there."""
        return not any(piece.start < address + size and address < piece.end for piece in self._pieces)

    def copy(self, *, without: Container[int] = ()) -> "FakeMemory":
        """What a forked child has, ``without`` the pieces that start there."""
        child = FakeMemory()
        for piece in [each for each in self._pieces if each.start not in without]:
            child.map(piece.start, bytes(piece.data), permissions=piece.permissions, path=piece.path)
        return child

    def image(self) -> dict[int, bytes]:
        """All bytes by address, to compare before and after."""
        return {piece.start: bytes(piece.data) for piece in self._pieces}

    def mappings(self) -> Sequence[MappedRange]:
        """What is mapped, ascending."""
        return tuple(
            MappedRange(
                start=VirtAddr(piece.start),
                end=VirtAddr(piece.end),
                permissions=piece.permissions,
                offset=0,
                device="00:00",
                inode=1 if piece.path.startswith("/") else 0,
                path=piece.path,
            )
            for piece in self._pieces
        )

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises MemoryFault."""
        return b"".join(bytes(data[at]) for data, at, _ in self._parts(address, size, "read"))

    def write(self, address: int, data: bytes) -> None:
        """Write where the program could; raises MemoryFault, and then wrote nothing."""
        parts = tuple(self._parts(address, len(data), "write"))
        if not all("w" in permissions for _, _, permissions in parts):
            raise MemoryFault(address, len(data), "write")
        self._store(parts, data)

    def patch(self, address: int, data: bytes) -> None:
        """Write through permissions; raises MemoryFault, and then wrote nothing."""
        self._store(tuple(self._parts(address, len(data), "patch")), data)

    def _parts(self, address: int, size: int, operation: str) -> Iterator[tuple[bytearray, slice, str]]:
        at, end = int(address), address + size
        for piece in self._pieces:
            if piece.start <= at < piece.end and at < end:
                stop = min(end, piece.end)
                yield piece.data, slice(at - piece.start, stop - piece.start), piece.permissions
                at = stop
        if at < end:
            raise MemoryFault(address, size, operation)

    @staticmethod
    def _store(parts: Sequence[tuple[bytearray, slice, str]], data: bytes) -> None:
        for target, at, _ in parts:
            size = at.stop - at.start
            target[at], data = data[:size], data[size:]
