"""Dormant probepoints: traps that stand by the million, of which nothing else is made before a thread gets there.

Kept are the program's own bytes, and for each byte whose trap it is. All of one byte's trap size: an
architecture with longer traps arms its probepoints one by one.
"""

# Rule 1: a trap of ours stands at an address exactly if a sleeper owns it here, or space.patches has it.
# Rule 2: who wakes a probepoint puts it into space.patches first and takes it from here then: readers never miss it.
# Rule 3: what was written once stays known until its mapping is gone: a child forked meanwhile may have it, and a
#         thread may have run into it.

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Final, Protocol

from ubpx._errors import MemoryFault, NotAnInstruction, UsageError
from ubpx.core.ports import Memory, Site
from ubpx.core.values import PAGE_SIZE, VirtAddr

BLOCK_SIZE: Final = 16 * PAGE_SIZE
"""Bytes of the program that are kept together."""
_MOST_SLEEPERS: Final = 255
_DENSE: Final = 16
"""Where more than one byte in so many gets a trap all are blended at once; fewer are sooner written one by one."""
_MARKED: Final = re.compile(rb"[^\0]", re.DOTALL)
_ONES: Final = b"\x00" + b"\xff" * 255
"""Translates a byte for each address, 0 for none, into a mask."""


class Sleeper(Protocol):
    """Whose traps they are: makes the rest of a probepoint when that is needed."""

    def wake(self, address: VirtAddr) -> None:
        """Somebody asks about the address. The program may be served meanwhile."""
        ...

    def meet(self, address: VirtAddr) -> Site | None:
        """What a thread meets that has run into the trap; the program is not served. None: nothing of ours."""
        ...


class _Block:
    """BLOCK_SIZE bytes of the program, from an address that is a multiple of that. Owned by its DormantTraps."""

    __slots__ = ("_fallen", "original", "standing", "start")

    def __init__(self, start: int) -> None:
        self.start: Final = start
        self.original: Final = bytearray(BLOCK_SIZE)
        """The program's own bytes, where a trap stands or has stood."""
        self.standing: Final = bytearray(BLOCK_SIZE)
        """By address: whose dormant trap stands there, as a number; 0: none."""
        self._fallen: bytearray | None = None
        """255: a trap of ours has stood there; None: nowhere yet."""

    def knows(self, inside: int) -> bool:
        """Whether a trap of ours stands or has stood at that byte of it."""
        return self.standing[inside] != 0 or (self._fallen is not None and self._fallen[inside] != 0)

    def fall(self, marks: bytes, inside: slice = slice(BLOCK_SIZE)) -> None:
        """Where ``marks`` has 255 traps stood that stand no more."""
        if self._fallen is None:
            self._fallen = bytearray(BLOCK_SIZE)
        self._fallen[inside] = blended(bytes(self._fallen[inside]), marks, marks)
        self.standing[inside] = blended(bytes(self.standing[inside]), bytes(len(marks)), marks)

    @property
    def written(self) -> bytearray:
        """A mask of where traps of ours stand or have stood."""
        mask = self.standing.translate(_ONES)
        return (
            mask if self._fallen is None else bytearray(blended(bytes(mask), bytes(self._fallen), bytes(self._fallen)))
        )

    def forget(self, inside: slice) -> None:
        """What was mapped there is gone."""
        nothing = bytes(inside.stop - inside.start)
        self.standing[inside] = nothing
        if self._fallen is not None:
            self._fallen[inside] = nothing

    def pages(self, marks: bytearray) -> Iterator[slice]:
        """The runs of pages in which there are marks, each from its first mark to behind its last."""
        start = None
        for page in range(0, BLOCK_SIZE + PAGE_SIZE, PAGE_SIZE):
            marked = page < BLOCK_SIZE and marks.find(b"\xff", page, page + PAGE_SIZE) >= 0
            if marked and start is None:
                start = page
            elif not marked and start is not None:
                yield slice(marks.find(b"\xff", start), marks.rfind(b"\xff", start, page) + 1)
                start = None


@cache
def _mask_of(trap: bytes) -> bytes:
    """Translates bytes of the program into a mask of what may be traps."""
    return bytes(255 if bytes((each,)) == trap else 0 for each in range(256))


@cache
def _numbered(number: int) -> bytes:
    """Translates a byte for each address, 0 for none, into the number of whose trap stands there."""
    return b"\x00" + bytes((number,)) * 255


@cache
def _chosen(number: int) -> bytes:
    """Translates a byte for each address, whose trap stands there, into a mask of one sleeper's."""
    return bytes(255 if each == number else 0 for each in range(256))


class DormantTraps:
    """All dormant traps of one memory. Changed in the tracer thread alone, read by any."""

    def __init__(self, trap: bytes) -> None:
        self._trap: Final = trap
        self._found: Final = _mask_of(trap)
        self._blocks: Final[dict[int, _Block]] = {}
        self._sleepers: Final[list[Sleeper | None]] = [None]
        self.tomb: Callable[[VirtAddr], Site | None] = lambda _: None
        """What a thread meets that has run into a trap before that was taken out; set by whoever inserts."""
        self.count = 0
        """How many traps stand."""

    # Asking -------------------------------------------------------------------------------

    def __contains__(self, address: int) -> bool:
        block = self._blocks.get(address // BLOCK_SIZE)
        return block is not None and block.standing[address % BLOCK_SIZE] != 0

    def knows(self, address: int) -> bool:
        """Whether such a trap stands there or has stood there."""
        block = self._blocks.get(address // BLOCK_SIZE)
        return block is not None and block.knows(address % BLOCK_SIZE)

    def sleeper_at(self, address: int) -> Sleeper | None:
        """Whose dormant trap stands there."""
        block = self._blocks.get(address // BLOCK_SIZE)
        return None if block is None else self._sleepers[block.standing[address % BLOCK_SIZE]]

    def meet(self, address: VirtAddr) -> Site | None:
        """What a thread meets that has run into a trap there, made now; None: the trap is not ours."""
        block = self._blocks.get(address // BLOCK_SIZE)
        if block is None or not block.knows(address % BLOCK_SIZE):
            return None
        sleeper = self._sleepers[block.standing[address % BLOCK_SIZE]]
        return self.tomb(address) if sleeper is None else sleeper.meet(address)

    def wake(self, address: VirtAddr) -> None:
        """Make what stands at the address a probepoint like any other; nothing if none is dormant there."""
        sleeper = self.sleeper_at(address) if self._blocks else None
        if sleeper is not None:
            sleeper.wake(address)

    def among(self, addresses: range) -> Iterator[VirtAddr]:
        """Where such traps stand in the range, ascending; it may change meanwhile."""
        for block, inside in self._within(addresses):
            marks = bytes(block.standing[inside])
            if marks.count(0) < len(marks):
                yield from (VirtAddr(block.start + inside.start + each.start()) for each in _MARKED.finditer(marks))

    def first_in(self, address: int, size: int) -> VirtAddr | None:
        """The lowest of those that stand in ``size`` bytes."""
        return next(self.among(range(address, address + size)), None)

    def cover(self, address: int, size: int) -> tuple[bytes, bytes] | None:
        """The program's own bytes and a mask of where they count; None where no such trap stands."""
        if not self._blocks:
            return None
        at = address % BLOCK_SIZE
        if 0 < size <= BLOCK_SIZE - at:  # nearly always
            block = self._blocks.get(address // BLOCK_SIZE)
            marks = b"" if block is None else bytes(block.standing[at : at + size])
            if block is None or marks.count(0) == size:
                return None
            return bytes(block.original[at : at + size]), marks.translate(_ONES)
        original, mask, covered = bytearray(size), bytearray(size), False
        for block, inside in self._within(range(address, address + size)):
            marks = bytes(block.standing[inside])
            if marks.count(0) < len(marks):
                at = block.start + inside.start - address
                original[at : at + len(marks)] = block.original[inside]
                mask[at : at + len(marks)] = marks.translate(_ONES)
                covered = True
        return (bytes(original), bytes(mask)) if covered else None

    def _within(self, addresses: range) -> Iterator[tuple[_Block, slice]]:
        """The blocks that hold some of the addresses, ascending, and which of their bytes."""
        if not addresses or not self._blocks:
            return
        numbers = range(addresses.start // BLOCK_SIZE, (addresses.stop - 1) // BLOCK_SIZE + 1)
        chosen: Iterable[int] = numbers
        if len(numbers) > len(self._blocks):
            chosen = sorted(each for each in tuple(self._blocks) if each in numbers)  # they may come and go meanwhile
        for number in chosen:
            block = self._blocks.get(number)
            if block is not None:
                first = max(addresses.start - block.start, 0)
                yield block, slice(first, min(addresses.stop - block.start, BLOCK_SIZE))

    # Putting in ---------------------------------------------------------------------------

    def _admit(self, sleeper: Sleeper) -> int:
        """The sleeper's number, by which its traps are marked. Raises UsageError if there are too many."""
        if sleeper in self._sleepers:
            return self._sleepers.index(sleeper)
        if len(self._sleepers) <= _MOST_SLEEPERS:
            self._sleepers.append(sleeper)
            return len(self._sleepers) - 1
        for number in range(1, _MOST_SLEEPERS + 1):
            if not any(block.standing.count(number) for block in self._blocks.values()):
                self._sleepers[number] = sleeper
                return number
        raise UsageError(f"{_MOST_SLEEPERS} pieces of code are probed as a whole already; release one first")

    def insert(self, memory: Memory, start: int, code: bytes, marks: bytearray, sleeper: Sleeper) -> None:
        """Let traps stand wherever ``marks`` is 255, not 0; ``code`` is the program's own, both from ``start`` on.

        No trap of ours may stand at a marked place yet. Raises MemoryFault, UsageError, NotAnInstruction where the
        program has changed its code meanwhile; then none stands.
        """
        number = self._admit(sleeper)
        done: list[range] = []
        try:
            for at in range(start - start % BLOCK_SIZE, start + len(code), BLOCK_SIZE):
                first, end = max(at, start), min(at + BLOCK_SIZE, start + len(code))
                part = slice(first - start, end - start)
                if marks.find(255, part.start, part.stop) >= 0:
                    done.append(range(first, end))
                    self._insert_in_block(memory, first, code[part], bytes(marks[part]), number)
        except BaseException:
            for addresses in done:
                self._take_out(memory, addresses, number)
            raise

    def _insert_in_block(self, memory: Memory, first: int, code: bytes, mask: bytes, number: int) -> None:
        number_of_block = first // BLOCK_SIZE
        block = self._blocks.get(number_of_block) or _Block(number_of_block * BLOCK_SIZE)
        inside = slice(first - block.start, first - block.start + len(code))
        found = memory.read(first, len(code))
        if found != code and blended(found, code, mask) != found:
            at = next(at for at, mark in enumerate(mask) if mark and found[at] != code[at])
            reason = f"its first byte was {code[at]:#x} when it was read and is {found[at]:#x} now"
            raise NotAnInstruction(VirtAddr(first + at), reason, "probe it again")
        # All is known before the first trap stands: whoever reads memory meanwhile never sees one.
        if number_of_block in self._blocks:
            block.original[inside] = blended(bytes(block.original[inside]), code, mask)
            block.standing[inside] = blended(bytes(block.standing[inside]), bytes((number,)) * len(code), mask)
        else:
            block.original[inside] = code
            block.standing[inside] = mask.translate(_numbered(number))
            self._blocks[number_of_block] = block
        traps = mask.count(255)
        self.count += traps
        marked = bytearray(BLOCK_SIZE)
        marked[inside] = mask
        dense = traps * _DENSE > len(mask)
        image = blended(found, self._trap * len(found), mask) if dense else _with_traps(found, self._trap, mask)
        for run in block.pages(marked):  # what has none stays the file's
            part = slice(run.start - inside.start, run.stop - inside.start)
            memory.patch(first + part.start, image[part])

    @property
    def full(self) -> bool:
        """Whether there are as many sleepers as there can be."""
        return len(self._sleepers) > _MOST_SLEEPERS and all(
            any(block.standing.count(number) for block in self._blocks.values())
            for number in range(1, _MOST_SLEEPERS + 1)
        )

    def unknown(self, addresses: Sequence[VirtAddr]) -> Sequence[VirtAddr]:
        """Those where no such trap stands or has stood; they lie in one block."""
        block = self._blocks.get(addresses[0] // BLOCK_SIZE) if addresses else None
        if block is None:
            return addresses
        return [address for address in addresses if not block.knows(address - block.start)]

    def of(self, sleeper: Sleeper) -> Iterator[VirtAddr]:
        """Where traps of the sleeper's stand, ascending; it may change meanwhile."""
        number = self._sleepers.index(sleeper) if sleeper in self._sleepers else 0
        for key in sorted(self._blocks) if number else ():
            block = self._blocks[key]
            marks = bytes(block.standing)
            at = marks.find(number)
            while at >= 0:
                yield VirtAddr(block.start + at)
                at = marks.find(number, at + 1)

    def missing(self, memory: Memory, sleeper: Sleeper) -> list[VirtAddr]:
        """The sleeper's traps that do not stand any more where they were written, ascending."""
        found: list[VirtAddr] = []
        number = self._sleepers.index(sleeper) if sleeper in self._sleepers else 0
        for key in sorted(self._blocks) if number else ():
            block = self._blocks[key]
            marks = block.standing.translate(_chosen(number))
            for run in block.pages(marks):
                mask = bytes(marks[run])
                try:
                    there = _both(mask, memory.read(block.start + run.start, len(mask)).translate(self._found))
                except MemoryFault:
                    there = bytes(len(mask))
                if there != mask:
                    start = block.start + run.start
                    found += [VirtAddr(start + at) for at in range(len(mask)) if mask[at] and not there[at]]
        return found

    def note(self, address: int, original: bytes) -> None:
        """Another trap is about to be written there: these are the program's own bytes now."""
        block = self._blocks.get(address // BLOCK_SIZE)
        if block is not None and block.knows(address % BLOCK_SIZE):
            block.original[address % BLOCK_SIZE] = original[0]

    # Taking out ---------------------------------------------------------------------------

    def settle(self, address: int) -> None:
        """The trap is somebody else's from now on (space.patches has it), or stands no more."""
        block = self._blocks.get(address // BLOCK_SIZE)
        if block is not None and block.standing[address % BLOCK_SIZE]:
            at = address % BLOCK_SIZE
            block.fall(b"\xff", slice(at, at + 1))
            self.count -= 1

    def take_out_some(self, memory: Memory, sleeper: Sleeper, addresses: Iterable[VirtAddr]) -> None:
        """The same for some of the sleeper's traps."""
        number = self._sleepers.index(sleeper) if sleeper in self._sleepers else 0
        marks: dict[int, bytearray] = {}
        for address in addresses:
            block = self._blocks.get(address // BLOCK_SIZE)
            if number and block is not None and block.standing[address % BLOCK_SIZE] == number:
                marks.setdefault(address // BLOCK_SIZE, bytearray(BLOCK_SIZE))[address % BLOCK_SIZE] = 255
        for key, marked in marks.items():
            self._clear(memory, self._blocks[key], marked)

    def take_out(self, memory: Memory, sleeper: Sleeper | None = None) -> None:
        """Put the program's own bytes back where traps of the sleeper (None: of anybody) still stand."""
        number = None if sleeper is None else self._sleepers.index(sleeper) if sleeper in self._sleepers else 0
        if number == 0:
            return
        for block in tuple(self._blocks.values()):
            self._take_out(memory, range(block.start, block.start + BLOCK_SIZE), number)

    def _take_out(self, memory: Memory, addresses: range, number: int | None) -> None:
        chosen = _ONES if number is None else _chosen(number)
        for block, inside in self._within(addresses):
            marks = bytearray(BLOCK_SIZE)
            marks[inside] = block.standing[inside].translate(chosen)
            if marks.count(0) < BLOCK_SIZE:
                self._clear(memory, block, marks)

    def _clear(self, memory: Memory, block: _Block, marks: bytearray) -> None:
        """Where ``marks`` has 255 a trap stands, and stands no more."""
        self._restore(memory, block, marks)
        block.fall(bytes(marks))
        self.count -= BLOCK_SIZE - marks.count(0)

    def _restore(self, memory: Memory, block: _Block, marks: bytearray) -> None:
        """``marks`` has 255 where a trap of ours may stand; what is not mapped any more is left out."""
        for run in block.pages(marks):
            try:
                self._restore_part(memory, block, run, bytes(marks[run]))
            except MemoryFault:
                for page in _each_page(run):
                    with contextlib.suppress(MemoryFault):
                        self._restore_part(memory, block, page, bytes(marks[page]))

    def _restore_part(self, memory: Memory, block: _Block, part: slice, mask: bytes) -> None:
        start = VirtAddr(block.start + part.start)
        found = memory.read(start, part.stop - part.start)
        ours = _both(mask, found.translate(self._found))
        image = blended(found, bytes(block.original[part]), ours)
        if image != found:
            memory.patch(start, image)

    def clean(self, memory: Memory) -> None:
        """Put the program's own bytes back wherever such a trap stands or stood, in a copy of this memory."""
        for block in tuple(self._blocks.values()):
            self._restore(memory, block, block.written)

    def end(self) -> None:
        """None stands any more: the program has left this memory, and it was cleaned."""
        for block in self._blocks.values():
            block.fall(bytes(block.standing.translate(_ONES)))
        self.count = 0

    def drop(self, addresses: range) -> None:
        """What was mapped there is gone."""
        for block, inside in tuple(self._within(addresses)):
            size = inside.stop - inside.start
            self.count -= size - block.standing[inside].count(0)
            block.forget(inside)
            if block.written.count(0) == BLOCK_SIZE:
                del self._blocks[block.start // BLOCK_SIZE]


def blended(under: bytes, over: bytes, mask: bytes) -> bytes:
    """``over`` where the mask has 255, ``under`` where it has 0; all three are of one length."""
    low, high = int.from_bytes(under, "little"), int.from_bytes(over, "little")
    return (low ^ (low ^ high) & int.from_bytes(mask, "little")).to_bytes(len(under), "little")


def _with_traps(code: bytes, trap: bytes, mask: bytes) -> bytes:
    """``code`` with the one-byte trap where the mask has 255, which is at few places."""
    image, at = bytearray(code), mask.find(255)
    while at >= 0:
        image[at] = trap[0]
        at = mask.find(255, at + 1)
    return bytes(image)


def _both(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") & int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _each_page(run: slice) -> Iterator[slice]:
    pages = range(run.start - run.start % PAGE_SIZE, run.stop, PAGE_SIZE)
    return (slice(max(page, run.start), min(page + PAGE_SIZE, run.stop)) for page in pages)
