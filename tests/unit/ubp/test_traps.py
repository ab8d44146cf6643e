"""Traps in a memory: nothing is written without a look."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ubpx._errors import ForeignTrap, MemoryFault, NotAnInstruction
from ubpx.core.ubp import Removal, TrapPatch, insert, remove
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
