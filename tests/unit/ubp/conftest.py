"""Both decoders, an architecture upon each, and a memory without a process."""

from collections.abc import Callable, Mapping

import pytest

from ubpx._errors import MemoryFault
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder
from ubpx.core.ubp.plans import InsnAnalysis
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

ORIGIN = VirtAddr(0x7F0000401000)


class DictMemory:
    """A Memory over single bytes; what is not in it is not mapped. Keeps what ``patch`` was told."""

    def __init__(self, parts: Mapping[int, bytes]) -> None:
        self.bytes = {start + i: byte for start, data in parts.items() for i, byte in enumerate(data)}
        self.patches: list[tuple[int, bytes]] = []

    def read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self.bytes[address + i] for i in range(size))
        except KeyError:
            raise MemoryFault(VirtAddr(address), size, "read") from None

    def write(self, address: int, data: bytes) -> None:
        self.read(address, len(data))
        self.bytes.update({address + i: byte for i, byte in enumerate(data)})

    def patch(self, address: int, data: bytes) -> None:
        self.patches.append((address, data))
        self.write(address, data)


@pytest.fixture(scope="session", params=[IcedDecoder, CapstoneDecoder])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    made: Decoder = request.param()
    return made


@pytest.fixture(scope="session")
def x86(decoder: Decoder) -> X86_64:
    return X86_64(decoder)


@pytest.fixture(scope="session")
def origin() -> VirtAddr:
    """Where the tests' instructions stand: far from address 0, so that a lost base shows."""
    return ORIGIN


@pytest.fixture(scope="session")
def analyze(x86: X86_64) -> Callable[[str], InsnAnalysis]:
    """Analyse bytes given in hexadecimal, at ``origin``."""
    return lambda text: x86.analyze(bytes.fromhex(text), ORIGIN)


@pytest.fixture
def memory() -> Callable[[Mapping[int, bytes]], DictMemory]:
    """Make a memory of some mapped parts."""
    return DictMemory
