"""Dormant traps of one memory, against what would be known if each were kept by itself."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ubpx.core.dormant import BLOCK_SIZE, DormantTraps
from ubpx.core.ports import Site
from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx.testing import FakeMemory

SIZE = 96
START = 5 * BLOCK_SIZE - SIZE // 2
"""Across the border of two blocks."""
CODE = bytes(1 + (7 * at) % 0xC0 for at in range(SIZE))
TRAP = b"\xcc"
places = st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=12)


class Nobody:
    """A sleeper that is never asked."""

    def wake(self, address: VirtAddr) -> None:
        raise AssertionError(address)

    def meet(self, address: VirtAddr) -> Site | None:
        raise AssertionError(address)


class Traps(RuleBasedStateMachine):
    """Invariant: what stands, what is hidden and what a copy is cleaned of is what was put in and not taken out."""

    def __init__(self) -> None:
        super().__init__()
        around = bytes(PAGE_SIZE - SIZE // 2)  # memory is mapped in pages
        self.memory = FakeMemory({5 * BLOCK_SIZE - PAGE_SIZE: around + CODE + around})
        self.traps = DormantTraps(TRAP)
        self.sleepers = (Nobody(), Nobody(), Nobody())
        self.owner: dict[int, Nobody] = {}
        self.others: set[int] = set()
        """Traps that were woken: somebody else's."""
        self.written: set[int] = set()

    @rule(chosen=places, number=st.integers(0, 2))
    def insert(self, chosen: set[int], number: int) -> None:
        fresh = chosen - self.owner.keys() - self.others
        marks = bytearray(SIZE)
        for at in fresh:
            marks[at] = 255
        self.traps.insert(self.memory, START, CODE, marks, self.sleepers[number])
        self.owner.update(dict.fromkeys(fresh, self.sleepers[number]))
        self.written |= fresh

    @precondition(lambda self: self.owner)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.owner)))
        self.traps.settle(START + at)
        del self.owner[at]
        self.others.add(at)

    @precondition(lambda self: self.others)
    @rule(data=st.data())
    def end_what_was_woken(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.others)))
        self.memory.patch(START + at, CODE[at : at + 1])
        self.others.remove(at)

    @rule(number=st.integers(0, 2))
    def take_out(self, number: int) -> None:
        self.traps.take_out(self.memory, self.sleepers[number])
        self.owner = {at: sleeper for at, sleeper in self.owner.items() if sleeper is not self.sleepers[number]}

    @rule(first=st.integers(0, SIZE - 1), size=st.integers(1, SIZE))
    def drop(self, first: int, size: int) -> None:
        """The range is unmapped, and mapped anew."""
        size = min(size, SIZE - first)
        gone = set(range(first, first + size))
        self.traps.drop(range(START + first, START + first + size))
        self.memory.patch(START + first, CODE[first : first + size])
        self.owner = {at: sleeper for at, sleeper in self.owner.items() if at not in gone}
        self.others -= gone
        self.written -= gone

    @invariant()
    def stands_what_should(self) -> None:
        standing = self.owner.keys() | self.others
        raw = bytes(0xCC if at in standing else byte for at, byte in enumerate(CODE))
        assert self.memory.read(START, SIZE) == raw
        assert [at for at in range(SIZE) if START + at in self.traps] == sorted(self.owner)
        assert [at - START for at in self.traps.among(range(START, START + SIZE))] == sorted(self.owner)
        assert [at for at in range(SIZE) if self.traps.knows(START + at)] == sorted(self.written)
        assert self.traps.count == len(self.owner)
        assert all(self.traps.sleeper_at(START + at) is self.owner.get(at) for at in range(SIZE))

    @invariant()
    def hidden_is_what_stands(self) -> None:
        for first, size in ((0, SIZE), (SIZE // 2 - 3, 6), (SIZE // 2, 5), (1, 15)):
            cover = self.traps.cover(START + first, size)
            inside = [at for at in range(first, first + size) if at in self.owner]
            assert (cover is None) == (not inside)
            if cover is not None:
                assert [at for at in range(size) if cover[1][at]] == [at - first for at in inside]
                assert all(cover[0][at - first] == CODE[at] for at in inside)

    @invariant()
    def a_copy_is_cleaned(self) -> None:
        child = self.memory.copy()
        self.traps.clean(child)
        mine = bytes(0xCC if at in self.others - self.written else byte for at, byte in enumerate(CODE))
        assert child.read(START, SIZE) == mine


TestTraps = Traps.TestCase
TestTraps.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
