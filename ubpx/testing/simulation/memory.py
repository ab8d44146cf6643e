"""A memory that says when it is touched."""

from collections.abc import Callable, Container

from ubpx._errors import MemoryFault
from ubpx.testing.memory import FakeMemory


class SeededMemory(FakeMemory):
    """As FakeMemory; before each access of the core's something may come between."""

    touched: Callable[[str], None] = staticmethod(lambda _operation: None)
    is_gone = False
    """Nobody lives in it any more: every access of the core's fails."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises MemoryFault."""
        if self.is_gone:
            raise MemoryFault(address, size, "read")
        for piece in self._pieces:
            if piece.start <= address and address + size <= piece.start + len(piece.data):
                at = address - piece.start
                return bytes(piece.data[at : at + size])
        return super().read(address, size)

    def patch(self, address: int, data: bytes) -> None:
        """Write through permissions; raises MemoryFault, and then wrote nothing."""
        self.touched("insert" if 0xCC in data else "patch")
        if self.is_gone:
            raise MemoryFault(address, len(data), "patch")
        super().patch(address, data)

    def write(self, address: int, data: bytes) -> None:
        """Write where the program could; raises MemoryFault, and then wrote nothing."""
        if self.is_gone:
            raise MemoryFault(address, len(data), "write")
        super().write(address, data)

    def copy(self, *, without: Container[int] = ()) -> "SeededMemory":
        """What a forked child has, which may be touched as this one is."""
        child = type(self)()
        child.touched = self.touched
        for piece in self._pieces:
            if piece.start not in without:
                child.map(piece.start, bytes(piece.data), permissions=piece.permissions, path=piece.path)
        return child
