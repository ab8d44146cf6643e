"""The traps of dormant probepoints, byte by byte."""

import random

import pytest

from ubpx.core.dormant import BLOCK_SIZE, DormantTraps
from ubpx.core.ports import Site
from ubpx.core.values import VirtAddr
from ubpx.testing import FakeMemory

START = 3 * BLOCK_SIZE + 0x123
SIZE = 2 * BLOCK_SIZE
TRAP = b"\xcc"


class Owner:
    """Whose traps they are."""

    def wake(self, address: VirtAddr) -> None:
        """Nobody asks."""

    def meet(self, address: VirtAddr) -> Site | None:
        """Nobody comes."""


@pytest.mark.parametrize("each", [1, 3, 17, 1_000])
@pytest.mark.parametrize("again", [False, True])
def test_traps_stand_where_they_are_wanted_alone(each: int, *, again: bool) -> None:
    """Invariant: by ones or in crowds, beside others or alone: no byte but those is changed, and all come back."""
    chance = random.Random(each)
    code = chance.randbytes(SIZE).replace(TRAP, b"\x90")
    memory, traps = FakeMemory(), DormantTraps(TRAP)
    memory.map(VirtAddr(START), code)
    wanted = bytearray(code)
    if again:
        first = bytearray(SIZE)
        first[5::each] = b"\xff" * len(first[5::each])
        traps.insert(memory, START, code, first, Owner())
        wanted[5::each] = TRAP * len(wanted[5::each])
    marks = bytearray(SIZE)
    for at in range(0, SIZE, each):
        marks[at] = 255 * (wanted[at : at + 1] != TRAP)
    owner = Owner()
    traps.insert(memory, START, bytes(wanted), marks, owner)
    assert memory.read(VirtAddr(START), SIZE) == bytes(
        TRAP[0] if mark else byte for byte, mark in zip(wanted, marks, strict=True)
    )
    assert set(traps.of(owner)) == {START + at for at in range(SIZE) if marks[at]}
    traps.take_out(memory)
    assert memory.read(VirtAddr(START), SIZE) == code
    assert traps.count == 0
