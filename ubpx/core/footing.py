"""Whether a trap still stands as it was armed, and where it has gone if the program moved its code."""

# Rule 1: a trap's bytes alone prove nothing: other code may have the same. A trap is ours if the instruction that was
#         analysed goes on behind it; where that has no more bytes, if what is mapped there is what was, and the next
#         instruction follows as far as that is known, which it is in code that the program may change at any moment.
# Rule 2: where the program has changed operands alone, and the next instruction follows, the trap is ours, and its copy
#         is stale.
# Rule 3: bytes that are not ours are never written over. In doubt they are not.

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

import attrs

from ubpx._errors import MemoryFault, UbpxError
from ubpx.core.grounds import Ground, Mapped
from ubpx.core.ports import Memory
from ubpx.core.probepoints import Probepoint
from ubpx.core.slots import SlotArea
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.values import PAGE_SIZE, MappedRange, VirtAddr

_CONTEXT: Final = 32
"""Bytes on either side of a trap in moved code that must be the same: there no file tells what it is."""
_ENOUGH: Final = 32
"""Mappings of which one can be read in a process that lives: a file may have been cut off, but not all of them."""
_MOST_PAGES: Final = 1 << 15
"""Of memory without a file: in so many moved code is looked for."""


class Footing(Enum):
    """What was found where a trap was armed; the values are for people."""

    STANDS = "our trap stands"
    DROPPED = "the program put its own bytes back, or had them read from the file again"
    AMENDED = "the program changed the instruction behind our trap"
    REPLACED = "the program wrote or mapped something else there"
    UNMAPPED = "the program unmapped it"


def footing(space: AddressSpace, probepoint: Probepoint, mapped: Mapped | None = None) -> Footing:
    """What stands there now; ``mapped``: where what is mapped is to be compared too."""
    insn, patch = probepoint.analysis.insn, probepoint.standing
    size = len(patch.trap)
    same = mapped is None or space.grounds.is_same(insn.address, mapped)
    there = _read(space.raw, insn.address, insn.length) or _read(space.raw, insn.address, size)
    if there is None:
        return Footing.UNMAPPED
    if there[:size] != patch.trap:
        if there[:size] != patch.original:
            return Footing.REPLACED
        return Footing.AMENDED if insn.address in space.changes.amended else Footing.DROPPED
    rest = insn.raw[size:]
    if there[size:] != rest:  # there may be traps of ours in it
        there = _read(space.memory, insn.address, insn.length) or there
    if there[size:] == rest:
        return Footing.STANDS if rest or (same and _goes_on(space, probepoint)) else Footing.REPLACED
    amended = same and _is_amended(space, probepoint, there[size:]) and _goes_on(space, probepoint)
    return Footing.AMENDED if amended else Footing.REPLACED


def _is_amended(space: AddressSpace, probepoint: Probepoint, rest: bytes) -> bool:
    """Whether the same instruction stands there with other operands."""
    insn, patch = probepoint.analysis.insn, probepoint.standing
    if len(rest) != insn.length - len(patch.trap):
        return True  # its end is not mapped any more
    return not _is_filler(space, rest) and _are_alike(space, insn.raw, patch.original + rest, insn.address)


def _goes_on(space: AddressSpace, probepoint: Probepoint) -> bool:
    """Whether the next instruction still follows, as far as that is known: in code that the program may change."""
    ground, end = space.grounds.of(probepoint.address), probepoint.analysis.insn.end
    inside = end % PAGE_SIZE
    was = ground.image[inside : inside + space.architecture.longest_insn] if ground is not None and inside else b""
    now = _read(space.memory, end, len(was)) if was else b""
    if now is None or now == was:
        return True
    return not _is_filler(space, now) and _are_alike(space, was, now, end)


def _is_filler(space: AddressSpace, code: bytes) -> bool:
    """Programs fill what they free with traps."""
    trap = space.architecture.trap_bytes
    return code == (trap * len(code))[: len(code)]


def _are_alike(space: AddressSpace, was: bytes, now: bytes, address: VirtAddr) -> bool:
    """Whether both are one instruction, but for its operands."""
    try:
        one, other = (space.architecture.analyze(code, address).insn for code in (was, now))
    except UbpxError:
        return False
    mnemonics = {each.text.split()[0] for each in (one, other)}
    return one.length == other.length and one.raw[0] == other.raw[0] and len(mnemonics) == 1


def changed(space: AddressSpace, mapped: Mapped) -> dict[Probepoint, Footing]:
    """The probepoints of which something else is true than that their traps stand.

    What looks amended must do so twice: the program may be in the midst of writing something else.
    """
    found = ((each, footing(space, each, mapped)) for each in space.registry)
    wrong: dict[Probepoint, Footing] = {each: what for each, what in found if what is not Footing.STANDS}
    if Footing.UNMAPPED in wrong.values() and is_dying(space, mapped):
        return {}  # its end says the rest
    former, space.changes.suspected = space.changes.suspected, {}
    for each in [each for each, what in wrong.items() if what is Footing.AMENDED]:
        there = _read(space.raw, each.address, each.analysis.insn.length) or b""
        if each.address not in space.changes.amended and former.get(each.address) != there:
            space.changes.suspected[each.address] = there
            del wrong[each]
    return wrong


def is_dying(space: AddressSpace, mapped: Mapped) -> bool:
    """Whether the process is being killed: its memory goes before it does, and nothing that is mapped can be read."""
    some = mapped.ranges[:_ENOUGH]
    return all(_read(space.raw, each.start, 1) is None for each in some if "r" in each.permissions)


def foreign(space: AddressSpace, probepoints: Sequence[Probepoint], mapped: Mapped) -> frozenset[VirtAddr]:
    """The addresses at which something stands that is not ours, though it may look like our trap.

    Only looked at where that can be: in code that the program may change, and where something else is mapped.
    """
    pages = {each.address // PAGE_SIZE for each in probepoints}
    doubtful = {page for page in pages if _is_doubtful(space, page * PAGE_SIZE, mapped)}
    if not doubtful:
        return frozenset()
    suspects = (each for each in probepoints if each.address // PAGE_SIZE in doubtful)
    return frozenset(each.address for each in suspects if footing(space, each, mapped) is Footing.REPLACED)


def _is_doubtful(space: AddressSpace, page: int, mapped: Mapped) -> bool:
    ground = space.grounds.of(page)
    return ground is not None and (ground.rewritable or not space.grounds.is_same(page, mapped))


def looks_ours(memory: Memory, probepoint: Probepoint) -> bool:
    """Whether the trap stands in a copy of the memory, by the instruction's other bytes; False if it has none."""
    insn, patch = probepoint.analysis.insn, probepoint.standing
    rest = insn.raw[len(patch.trap) :]
    return bool(rest) and _read(memory, insn.address, insn.length) == patch.trap + rest


# Moved code -------------------------------------------------------------------------------


def take_out_moved(space: AddressSpace, probepoints: Iterable[Probepoint], mapped: Mapped) -> None:
    """Put the program's own bytes back where its moved code has traps of ours.

    ``probepoints`` are those that do not stand where they were armed; they are still in the registry.
    """
    for probepoint in probepoints:
        ground = space.grounds.of(probepoint.address)
        if ground is None:
            continue
        for at in _candidates(probepoint.address, ground, mapped):
            if _has_moved_to(space, probepoint, ground, at):
                reported_pc = VirtAddr(at + probepoint.standing.reported_pc - probepoint.address)
                patch = attrs.evolve(probepoint.standing, address=at, reported_pc=reported_pc)
                if _remove(space.raw, patch):
                    space.changes.moved.add(at)


def _candidates(address: VirtAddr, ground: Ground, mapped: Mapped) -> Iterator[VirtAddr]:
    inside = address % PAGE_SIZE
    pages = 0
    for each in mapped.ranges:
        if not _may_be_from(each, ground):
            continue
        if ground.inode:
            starts: Iterable[int] = [each.start + ground.offset - each.offset]
        else:
            starts = range(each.start, each.end, PAGE_SIZE)
            pages += len(starts)
            if pages > _MOST_PAGES:
                return
        yield from (VirtAddr(at + inside) for at in starts if at in each and at + inside != address)


def _may_be_from(mapped: MappedRange, ground: Ground) -> bool:
    same_file = (mapped.device, mapped.inode) == (ground.device, ground.inode)
    return same_file and mapped.permissions.endswith("p") and not mapped.path.startswith(("[stack", "[v"))


def _has_moved_to(space: AddressSpace, probepoint: Probepoint, ground: Ground, at: VirtAddr) -> bool:
    insn, patch = probepoint.analysis.insn, probepoint.standing
    if at in space.patches or at in space.dormant or _read(space.raw, at, len(patch.trap)) != patch.trap:
        return False
    if ground.inode:
        rest = insn.raw[len(patch.trap) :]
        return not rest or _read(space.memory, at, insn.length) == patch.trap + rest
    inside = at % PAGE_SIZE
    window = slice(max(inside - _CONTEXT, 0), min(inside + insn.length + _CONTEXT, PAGE_SIZE))
    page = at - inside
    found = bytearray(_read(space.memory, page + window.start, window.stop - window.start) or b"")
    moved = probepoint.address - at
    for other in space.patches.overlapping(page + window.start + moved, len(found)):
        place = other.address - moved - page - window.start
        if place >= 0 and found[place : place + len(other.trap)] == other.trap:
            found[place : place + len(other.trap)] = other.original
    return bool(found) and bytes(found) == ground.image[window]


# What the program has mapped for us ------------------------------------------------------


def is_intact(area: SlotArea, mapped: Mapped) -> bool:
    """Whether all of the area is mapped as it was."""
    return sum(len(each) for each in intact_parts(area, mapped)) == area.size


def intact_parts(area: SlotArea, mapped: Mapped) -> Iterator[range]:
    """Those parts of it that are mapped as it was; what the program has put in place of others is its own."""
    at, end = area.start, area.start + area.size
    for each in mapped.ranges:
        first, last = max(at, each.start), min(end, each.end)
        if first < last and each.permissions == "r-xp" and not each.inode:
            yield range(first, last)


def own_parts(space: AddressSpace, area: SlotArea, mapped: Mapped) -> list[range]:
    """The parts of it that may be unmapped: those that are mapped as it was, and hold what we wrote."""
    parts = []
    for part in intact_parts(area, mapped):
        codes = [code for slot, code in area.used.items() if slot in part]
        if not codes or any(_read(space.raw, code.slot, len(code.code)) == code.code for code in codes):
            parts.append(part)
    return parts


def _remove(memory: Memory, patch: TrapPatch) -> bool:
    try:
        return traps.remove(memory, patch) is traps.Removal.RESTORED
    except MemoryFault:
        return False


def _read(memory: Memory, address: int, size: int) -> bytes | None:
    try:
        return memory.read(address, size)
    except MemoryFault:
        return None
