"""Where a probe may stand: proof that an instruction starts there, and what no proof helps against."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Final

from ubpx._errors import InsnRefused, MemoryFault, NotAnInstruction
from ubpx.core.proofs import Function, Proof, prove
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import InsnAnalysis
from ubpx.core.values import PAGE_SIZE, Insn, Place, VirtAddr

LARGEST_FUNCTION: Final = 4 << 20
"""Bytes. Decoding takes 5 us for each instruction, and the target, which may be hostile, says how many there are."""
_NEAR_START: Final = 1 << 16
"""Bytes: from a function's start no further away instructions are told for sure, whatever their sizes."""
_ASSUME: Final = "pass assume_boundary=True if you know that one starts there"


def unproved(space: AddressSpace, places: Iterable[Place]) -> Mapping[VirtAddr, NotAnInstruction]:
    """The places at which no instruction is proved to start, by address, and what to raise for each.

    A function's own start needs no proof. Each function is decoded once, however many places are in it.
    Raises MemoryFault.
    """
    refused: dict[VirtAddr, NotAnInstruction] = {}
    inside: dict[tuple[VirtAddr, VirtAddr], list[Place]] = {}
    for place in places:
        start, end = place.symbol_start, place.symbol_end
        if start is None or end is None:
            reason = place.gap or "it lies outside any symbol"
            refused[place.address] = NotAnInstruction(place.address, reason, _ASSUME)
        elif start != place.address or place.gap is not None:
            inside.setdefault((start, end), []).append(place)
    for (start, end), several in inside.items():
        if end - start > LARGEST_FUNCTION:
            reason = f"its function, from {start:#x} to {end:#x}, is larger than the {LARGEST_FUNCTION} bytes decoded"
            refused |= {place.address: NotAnInstruction(place.address, reason, _ASSUME) for place in several}
            continue
        proof = _proof(space, start, end, several)
        for place in several:
            objection = proof.objection(place.address)
            if place.gap is not None:  # a function without a name, which only its caller can vouch for
                found = objection.reason if objection else "decoding from that function's start arrives there"
                refused[place.address] = NotAnInstruction(place.address, f"{place.gap}; {found}", _ASSUME)
            elif objection is not None:
                reason = f"{objection.reason}, in {place.name}"
                refused[place.address] = NotAnInstruction(place.address, reason, objection.remedy)
    return refused


def _proof(space: AddressSpace, start: VirtAddr, end: VirtAddr, places: Iterable[Place]) -> Proof:
    """What the function's bytes prove now; a proof that has been made is used again while they are the same."""
    places = tuple(places)
    try:
        code = space.memory.read(start, end - start)
    except MemoryFault:  # it claims more than is mapped
        last = max(place.address for place in places)
        code = space.memory.read(start, min(end, last + space.architecture.longest_insn) - start)
    # Places of one function mostly share what is known of it, which may be much.
    entries = sorted(set().union(*{id(place.entries): place.entries for place in places}.values()))
    data = sorted(set().union(*{id(place.data): place.data for place in places}.values()))
    function = Function(code=code, start=start, entries=tuple(entries), data=tuple(data))
    known = space.proofs.get(start)
    if known is None or known.function != function:
        known = prove(space.architecture, function)
        space.proofs.keep(start, known)
    return known


_ATOMIC: Final = (
    "it is in a restartable sequence (rseq): each trap makes the kernel start the sequence anew, so that the program "
    "would never get past it, and a copy elsewhere would not be atomic"
)
_ANNOUNCES: Final = (
    "a restartable sequence (rseq) begins right behind it, and must be announced to the kernel there: a copy elsewhere "
    "would lose the announcement, and a stop makes the kernel start the sequence anew for ever"
)


def check_interruptible(space: AddressSpace, place: Place, analysis: InsnAnalysis) -> None:
    """Raises InsnRefused where a stop, or a copy elsewhere, would keep the program from getting any further."""
    if space.architecture.longest_sequence:
        _check_sequence(space, place, analysis)
    if place.atomic is not None:
        _check_restartable(space, place.atomic, analysis)


def _check_sequence(space: AddressSpace, place: Place, analysis: InsnAnalysis) -> None:
    """What the architecture says of the instructions around it (exclusive loads and stores, say)."""
    insn = analysis.insn
    start, code = _surroundings(space, place, insn)
    reason = space.architecture.in_sequence(code, start, insn.address)
    if reason is not None:
        raise InsnRefused(insn.address, insn, reason)


def _surroundings(space: AddressSpace, place: Place, insn: Insn) -> tuple[VirtAddr, bytes]:
    """What is readable around the instruction, and where that begins: with the function, unless that is far away."""
    before = space.architecture.longest_sequence
    start, known = VirtAddr(max(insn.address - before, 0)), place.symbol_start
    if known is not None and 0 < insn.address - known <= _NEAR_START:
        start = known
    end = insn.end + before
    if place.symbol_end is not None:
        end = max(min(end, place.symbol_end), insn.end)
    page = VirtAddr(insn.address // PAGE_SIZE * PAGE_SIZE)
    page_end = min(end, (insn.end + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE)
    for first, last in itertools.product((start, max(start, page)), (end, page_end)):
        try:
            return first, space.memory.read(first, last - first)
        except MemoryFault:  # the mapping begins or ends there
            continue
    return insn.address, insn.raw


def _check_restartable(space: AddressSpace, atomic: tuple[VirtAddr, VirtAddr], analysis: InsnAnalysis) -> None:
    """Raises InsnRefused in a restartable sequence, and at the instruction that leads into one.

    Source: Linux, kernel/rseq.c: a thread that was stopped with its pc in the sequence is sent to the abort handler
    when it goes on; one whose pc is elsewhere (in a slot, say) loses its announcement.
    """
    start, end = atomic
    insn = analysis.insn
    if start <= insn.address < end:
        raise InsnRefused(insn.address, insn, f"{_ATOMIC} ({start:#x} to {end:#x})")
    leads_in = any(flow.falls_through for flow in space.architecture.flow(insn.raw, insn.address))
    if insn.address < start <= insn.end and leads_in:
        raise InsnRefused(insn.address, insn, f"{_ANNOUNCES} ({start:#x} to {end:#x})")
