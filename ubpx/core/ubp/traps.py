"""Insertion and removal of traps, each with a look at what stands there first.

Exactly the trap's bytes are written. Which traps in a program are ours is for the caller to know:
here, every trap that stands at the address already is somebody's.
"""

from enum import Enum

from ubpx._errors import ForeignTrap, NotAnInstruction
from ubpx.core.ports import Memory
from ubpx.core.ubp.plans import TrapPatch


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
    found = memory.read(patch.address, len(patch.trap))
    if found == patch.trap:
        raise ForeignTrap(patch.address, found)
    if found != patch.original:
        raise NotAnInstruction(
            patch.address,
            f"its bytes were {patch.original.hex(' ')} when they were analysed and are {found.hex(' ')} now",
            "analyse it again",
        )
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
