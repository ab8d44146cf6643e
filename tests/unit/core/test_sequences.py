"""Instructions that only get done together: what the core asks the architecture of the code around a place."""

from __future__ import annotations

import struct

import pytest

from ubpx._errors import InsnRefused
from ubpx.core.arming import analyze
from ubpx.core.boundaries import check_interruptible
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import architecture
from ubpx.core.values import PAGE_SIZE, AddressSpaceId, Place, ProcessId, VirtAddr
from ubpx.testing import FakeMemory

PAGE = VirtAddr(0x40_0000)
LDXR, STXR, ADD, NOP, RET = 0xC85F_7C20, 0xC802_7C20, 0x9100_0400, 0xD503_201F, 0xD65F_03C0


def space_with(*words: int, at: int = PAGE) -> AddressSpace:
    """A program whose only page of code holds these words, and nops around them."""
    code = bytearray(struct.pack("<I", NOP) * (PAGE_SIZE // 4))
    code[at - PAGE : at - PAGE + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
    memory = FakeMemory({PAGE: bytes(code)})
    return AddressSpace(AddressSpaceId(1), ProcessId(7), memory, architecture("aarch64"), slots_allowed=True)


def check(space: AddressSpace, address: int, start: int | None = None, end: int | None = None) -> None:
    place = Place(
        address=VirtAddr(address),
        name="",
        symbol_start=None if start is None else VirtAddr(start),
        symbol_end=None if end is None else VirtAddr(end),
    )
    check_interruptible(space, place, analyze(space, place.address))


@pytest.mark.parametrize("known", [False, True], ids=["outside-any-symbol", "in-a-function"])
def test_a_place_within_a_sequence_is_refused(*, known: bool) -> None:
    """Invariant: where a trap makes an exclusive store fail for ever there is none; before and behind there may be."""
    space = space_with(ADD, LDXR, ADD, STXR, RET)
    span = (PAGE, PAGE + 20) if known else (None, None)
    with pytest.raises(InsnRefused, match="between an exclusive load, at 0x400004, and its store, at 0x40000c"):
        check(space, PAGE + 8, *span)
    for offset in (0, 4, 16):
        check(space, PAGE + offset, *span)


def test_code_at_the_ends_of_a_mapping_is_looked_at_as_far_as_it_goes() -> None:
    """Invariant: neither a function's first instruction nor the mapping's last one needs bytes that are not there."""
    last = PAGE + PAGE_SIZE - 12
    space = space_with(LDXR, ADD, STXR, at=last)
    check(space, PAGE)
    with pytest.raises(InsnRefused, match="between an exclusive load"):
        check(space, last + 4)
    with pytest.raises(InsnRefused, match="between an exclusive load"):
        check(space, last + 4, last, last + 4096)


def test_what_the_program_reads_is_looked_at_not_our_traps() -> None:
    """Invariant: a trap of ours at the load does not hide that it is one."""
    space = space_with(LDXR, ADD, STXR)
    load = analyze(space, PAGE)
    patch = space.architecture.trap(load)
    space.raw.patch(patch.address, patch.trap)
    space.patches[patch.address] = patch
    with pytest.raises(InsnRefused, match="between an exclusive load"):
        check(space, PAGE + 4)


def test_architectures_without_sequences_read_nothing() -> None:
    """Invariant: x86 pays nothing for it."""
    memory = FakeMemory({PAGE: b"\x90" * PAGE_SIZE})
    space = AddressSpace(AddressSpaceId(1), ProcessId(7), memory, architecture("x86_64"), slots_allowed=True)
    found = analyze(space, PAGE)
    memory.unmap(PAGE, PAGE_SIZE)
    check_interruptible(space, Place(address=PAGE, name="", symbol_start=None, symbol_end=None), found)
    assert space.architecture.in_sequence(b"\x90", PAGE, PAGE) is None
