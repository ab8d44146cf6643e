"""Insertion and removal of traps, each with a look at what stands there first.

Exactly the trap's bytes are written. Which traps in a program are ours is for the caller to know:
here, every trap that stands at the address already is somebody's.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import groupby

from ubpx._errors import ForeignTrap, MemoryFault, NotAnInstruction
from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.values import PAGE_SIZE, VirtAddr

Span = Sequence[TrapPatch]
"""Traps that are written at once, ascending, together with what stands between them."""


def stands(memory: Memory, address: VirtAddr, forms: Sequence[bytes]) -> bool:
    """Whether a trap of one of these forms is there, whosever; the shortest comes first. Raises MemoryFault."""
    if memory.read(address, len(forms[0])) == forms[0]:
        return True
    with contextlib.suppress(MemoryFault):  # no longer one ends the mapping
        return any(memory.read(address, len(form)) == form for form in forms[1:])
    return False


class Removal(Enum):
    """What ``remove`` found, and so did."""

    RESTORED = "our trap stood there; the original bytes are back"
    ALREADY_ORIGINAL = "the original bytes stood there; nothing was written"
    OVERWRITTEN = "somebody wrote other bytes over our trap; nothing was written"


def insert(memory: Memory, patch: TrapPatch) -> None:
    """Write the trap. The caller keeps ``patch`` for ``remove``.

    Raises ForeignTrap if a trap stands there, NotAnInstruction if the bytes are not those that were
    analysed, MemoryFault if nothing is mapped. Nothing was written then.
    """
    _image_with_traps(memory, (patch,))
    memory.patch(patch.address, patch.trap)


def remove(memory: Memory, patch: TrapPatch) -> Removal:
    """Put the original bytes back if our trap still stands there, and say what was found.

    Raises MemoryFault if nothing is mapped there any more.
    """
    found = memory.read(patch.address, len(patch.trap))
    if found == patch.trap:
        memory.patch(patch.address, patch.original)
        return Removal.RESTORED
    return Removal.ALREADY_ORIGINAL if found == patch.original else Removal.OVERWRITTEN


def spans(patches: Iterable[TrapPatch], *, apart: Callable[[VirtAddr], bool]) -> Iterator[Span]:
    """Group traps so that each group can be written at once: those of one page, ascending.

    ``apart`` says of a page, by its address, that somebody else may write there meanwhile: a trap in it
    is a group of its own, so that not a byte beside it is written.
    """
    for page, group in groupby(sorted(patches, key=_address), key=_page):
        several = list(group)
        if apart(page):
            yield from ((patch,) for patch in several)
            continue
        last = several[-1]
        if last.address + len(last.trap) > page + PAGE_SIZE:
            yield (several.pop(),)
        if several:
            yield several


def insert_all(memory: Memory, groups: Sequence[Span]) -> None:
    """Write all traps of all groups, or none. The caller keeps the groups for ``remove_all``.

    Each group is looked at before anything is written, and again right before it is written.
    Raises as ``insert`` does; what had been written by then was taken back, and a thread may have
    run into it meanwhile.
    """
    for group in groups:
        _image_with_traps(memory, group)
    written: list[Span] = []
    try:
        for group in groups:
            image = _image_with_traps(memory, group)
            memory.patch(group[0].address, image)
            written.append(group)
    except BaseException:
        remove_all(memory, written)
        raise


def remove_all(memory: Memory, groups: Iterable[Span]) -> list[TrapPatch]:
    """Put the original bytes back wherever our traps still stand; those that were gone.

    A trap is gone if somebody wrote other bytes over it (they stay), or if nothing is mapped there.
    """
    gone: list[TrapPatch] = []
    for group in groups:
        try:
            gone += _restore(memory, group)
        except MemoryFault:
            gone += group
    return gone


def _address(patch: TrapPatch) -> int:
    return patch.address


def _page(patch: TrapPatch) -> VirtAddr:
    return VirtAddr(patch.address - patch.address % PAGE_SIZE)


def _read(memory: Memory, group: Span) -> bytes:
    start, last = group[0].address, group[-1]
    return memory.read(start, last.address + len(last.trap) - start)


def _image_with_traps(memory: Memory, group: Span) -> bytes:
    """What to write over the group: its bytes as they are now, with its traps; raises as ``insert`` does."""
    found = _read(memory, group)
    start, image = group[0].address, bytearray(found)
    for patch in group:
        at, trap = patch.address - start, patch.trap
        there = found[at : at + len(trap)]
        if there != patch.original or there == trap:
            raise _refusal(patch, there)
        image[at : at + len(trap)] = trap
    return bytes(image)


def _refusal(patch: TrapPatch, found: bytes) -> ForeignTrap | NotAnInstruction:
    if found == patch.trap:
        return ForeignTrap(patch.address, found)
    return NotAnInstruction(
        patch.address,
        f"its bytes were {patch.original.hex(' ')} when they were analysed and are {found.hex(' ')} now",
        "analyse it again",
    )


def _restore(memory: Memory, group: Span) -> list[TrapPatch]:
    """Write the group's original bytes; those of its traps that others wrote over. Raises MemoryFault."""
    found = _read(memory, group)
    start, image = group[0].address, bytearray(found)
    gone = []
    for patch in group:
        at, original = patch.address - start, patch.original
        there = found[at : at + len(original)]
        if there == patch.trap:
            image[at : at + len(original)] = original
        elif there != original:
            gone.append(patch)
    if image != found:
        memory.patch(start, bytes(image))
    return gone
