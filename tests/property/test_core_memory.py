"""What clients read of a program's memory, for any traps that stand in it."""

from hypothesis import given
from hypothesis import strategies as st

from ubpx.core.dormant import DormantTraps
from ubpx.core.hiding import HidingMemory, StandingTraps
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.values import VirtAddr
from ubpx.testing import FakeMemory

START, SIZE = 0x7000, 96
traps = st.dictionaries(st.integers(0, 11), st.integers(1, 8), max_size=12)


@given(st.binary(min_size=SIZE, max_size=SIZE), traps, st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_reads_never_show_a_trap(original: bytes, sizes: dict[int, int], offset: int, size: int) -> None:
    """Invariant: a read gives the program's bytes, whatever traps of whatever sizes it overlaps."""
    raw, patches = FakeMemory({START: original}), StandingTraps()
    for place, length in sizes.items():
        address = VirtAddr(START + 8 * place)
        trap = bytes(byte ^ 0xFF for byte in raw.read(address, length))
        patches[address] = TrapPatch(
            address=address, trap=trap, original=raw.read(address, length), reported_pc=VirtAddr(address + length)
        )
        raw.patch(address, trap)
    size = min(size, SIZE - offset)
    shown = HidingMemory(raw, patches, DormantTraps(b"\xcc")).read(VirtAddr(START + offset), size)
    assert shown == original[offset : offset + size]
