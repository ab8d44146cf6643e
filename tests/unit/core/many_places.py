"""Many places of a scripted program, and what the tests of batches share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ubpx._errors import MemoryFault
from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx.testing import FakeMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.core.conftest import World

TEXT, PID = 0x40_1000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))
WIDE, APART, PAGES = 0x60_0000, 64, 3
PLACES = [WIDE + APART * number for number in range(PAGES * PAGE_SIZE // APART)]
INSN = bytes.fromhex("48 8d 47 01")  # lea 1(%rdi), %rax: needs a slot
SI_KERNEL = 0x80
REFUSED = bytes.fromhex("cd 80")


def ignore(hit: Any) -> None:
    """A handler."""


def standing(world: World) -> list[int]:
    """The places of PLACES where a trap stands."""
    return [place for place in PLACES if world.trap_stands(place)]


def failing_patch(memory: FakeMemory, fails: Callable[[int, int], bool]) -> Callable[[int, bytes], None]:
    """A ``patch`` that faults when ``fails`` says so of its number and address."""
    number, patch = -1, memory.patch

    def attempt(address: int, data: bytes) -> None:
        nonlocal number
        number += 1
        if fails(number, address):
            raise MemoryFault(VirtAddr(address), len(data), "patch")
        patch(address, data)

    return attempt


def recording_patch(memory: FakeMemory, sizes: dict[int, int]) -> Callable[[int, bytes], None]:
    """A ``patch`` that keeps the size of each write by its address."""
    patch = memory.patch

    def attempt(address: int, data: bytes) -> None:
        sizes[address] = len(data)
        patch(address, data)

    return attempt
