"""Traps in a memory: nothing is written without a look."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ubpx._errors import ForeignTrap, MemoryFault, NotAnInstruction
from ubpx.core.ubp import Removal, TrapPatch, insert, insert_all, remove, remove_all, spans
from ubpx.core.values import VirtAddr

ADDRESS = VirtAddr(0x401000)
PATCH = TrapPatch(address=ADDRESS, trap=b"\xcc", original=b"\x55", reported_pc=VirtAddr(ADDRESS + 1))
MakeMemory = Callable[[Mapping[int, bytes]], Any]


def test_insert_then_remove_restores_exactly(memory: MakeMemory) -> None:
    """Invariant: exactly the trap's bytes are written, and afterwards the memory is as before."""
    code = memory({ADDRESS: b"\x55\x48\x89\xe5"})
    insert(code, PATCH)
    assert code.read(ADDRESS, 4) == b"\xcc\x48\x89\xe5"
    assert remove(code, PATCH) is Removal.RESTORED
    assert code.read(ADDRESS, 4) == b"\x55\x48\x89\xe5"
    assert code.patches == [(ADDRESS, b"\xcc"), (ADDRESS, b"\x55")]


def test_a_trap_that_stands_there_is_somebody_elses(memory: MakeMemory) -> None:
    """Invariant: a trap is never written over a trap."""
    code = memory({ADDRESS: b"\xcc"})
    with pytest.raises(ForeignTrap) as caught:
        insert(code, PATCH)
    assert (caught.value.address, caught.value.found) == (ADDRESS, b"\xcc")
    assert code.patches == []


def test_changed_code_is_refused(memory: MakeMemory) -> None:
    """Invariant: a trap is written over the analysed bytes or not at all."""
    code = memory({ADDRESS: b"\x90"})
    with pytest.raises(NotAnInstruction, match=r"bytes were 55 .* and are 90 now; analyse it again"):
        insert(code, PATCH)
    assert code.patches == []


@pytest.mark.parametrize(("found", "removal"), [(b"\x55", Removal.ALREADY_ORIGINAL), (b"\x90", Removal.OVERWRITTEN)])
def test_remove_writes_only_over_our_trap(memory: MakeMemory, found: bytes, removal: Removal) -> None:
    """Invariant: what somebody else wrote over our trap stays."""
    code = memory({ADDRESS: found})
    assert remove(code, PATCH) is removal
    assert code.patches == []


def test_unmapped_address_is_a_fault(memory: MakeMemory) -> None:
    """Invariant: a mapping that is gone is said to be gone."""
    with pytest.raises(MemoryFault):
        insert(memory({}), PATCH)
    with pytest.raises(MemoryFault):
        remove(memory({}), PATCH)


PAGE = VirtAddr(0x402000)


def long_trap(address: int, size: int) -> TrapPatch:
    return TrapPatch(
        address=VirtAddr(address), trap=b"\xcc" * size, original=b"\x90" * size, reported_pc=VirtAddr(address + 1)
    )


@pytest.mark.parametrize("alone", [False, True])
def test_a_trap_that_crosses_a_page_is_written_alone(memory: MakeMemory, alone: bool) -> None:
    """Invariant: a group never reaches into another page, with or without others in the trap's own."""
    crossing, beside, behind = long_trap(PAGE - 2, 5), long_trap(PAGE - 9, 2), long_trap(PAGE + 8, 1)
    patches = [crossing, behind] if alone else [behind, crossing, beside]
    groups = list(spans(patches, apart=lambda _: False))
    assert [[patch.address for patch in group] for group in groups] == [
        [PAGE - 2],
        *([] if alone else [[PAGE - 9]]),
        [PAGE + 8],
    ]
    code = memory({PAGE - 16: b"\x90" * 32})
    insert_all(code, groups)
    assert code.read(PAGE - 2, 5) == b"\xcc" * 5
    assert remove_all(code, groups) == []
    assert code.read(PAGE - 16, 32) == b"\x90" * 32


def test_one_changed_byte_refuses_all_groups(memory: MakeMemory) -> None:
    """Invariant: every group is looked at before the first is written."""
    code = memory({ADDRESS: b"\x55" + b"\x90" * 7, PAGE: b"\x90\xcc"})
    groups = [(PATCH,), (long_trap(PAGE, 1), long_trap(PAGE + 1, 1))]
    with pytest.raises(ForeignTrap) as caught:
        insert_all(code, groups)
    assert (caught.value.address, code.patches) == (PAGE + 1, [])


def test_what_is_gone_is_said_and_left_alone(memory: MakeMemory) -> None:
    """Invariant: of a group only our traps are taken out; of one that is not mapped any more nothing can be."""
    code = memory({ADDRESS: b"\xcc\x90\x50\x90\xcc"})
    here = [long_trap(ADDRESS + offset, 1) for offset in (0, 1, 2, 4)]
    there = [long_trap(PAGE, 1)]
    assert remove_all(code, [here, there]) == [here[2], there[0]]
    assert code.read(ADDRESS, 5) == b"\x90\x90\x50\x90\x90"
