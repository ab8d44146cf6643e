"""Proof that an instruction starts at an address: decoding from its symbol's start arrives there."""

from collections.abc import Iterable, Mapping

from ubpx._errors import NotAnInstruction
from ubpx.core.spaces import AddressSpace
from ubpx.core.values import Place, VirtAddr


def unproved(space: AddressSpace, places: Iterable[Place]) -> Mapping[VirtAddr, NotAnInstruction]:
    """The places at which no instruction is proved to start, by address, and what to raise for each.

    Each symbol is decoded once, however many places are in it. Raises MemoryFault.
    """
    refused: dict[VirtAddr, NotAnInstruction] = {}
    inside: dict[tuple[VirtAddr, VirtAddr], list[Place]] = {}
    for place in places:
        start, end = place.symbol_start, place.symbol_end
        if start is None or end is None:
            refused[place.address] = NotAnInstruction(
                place.address,
                "it lies outside any symbol",
                "pass assume_boundary=True if you know that one starts there",
            )
        elif start != place.address:
            inside.setdefault((start, end), []).append(place)
    for (start, end), several in inside.items():
        starts = _starts(space, start, end, last=max(place.address for place in several))
        for place in several:
            if place.address not in starts:
                refused[place.address] = NotAnInstruction(
                    place.address,
                    f"it is inside an instruction of {place.name}",
                    "probe that instruction's start",
                )
    return refused


def _starts(space: AddressSpace, start: VirtAddr, end: VirtAddr, *, last: VirtAddr) -> set[VirtAddr]:
    """Where instructions start in the symbol, up to ``last``."""
    code = space.memory.read(start, min(end, last + space.architecture.longest_insn) - start)
    found = set()
    for address in space.architecture.instruction_starts(code, start):
        if address > last:
            break
        found.add(address)
    return found
