"""User-space breakpoints without memory of their own: analyse, trap, copy, put right (S1 to S3, S7).

Functions over values. A client that wants no registry uses this package alone and keeps what it
returns; a Memory is all that it needs of the world.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

from ubpx._errors import UsageError
from ubpx.core.ubp.aarch64 import Aarch64
from ubpx.core.ubp.i386 import I386
from ubpx.core.ubp.plans import (
    Architecture,
    FixUp,
    Flow,
    InsnAnalysis,
    MemoryWrite,
    Outcome,
    SlotCode,
    StepPlan,
    Strategy,
    TrapPatch,
    carry_out,
)
from ubpx.core.ubp.riscv64 import RISCV64
from ubpx.core.ubp.traps import Removal, Span, insert, insert_all, remove, remove_all, spans
from ubpx.core.ubp.x86_64 import X86_64

ARCHITECTURES: Final[MutableMapping[str, Callable[[], Architecture]]] = {
    "x86_64": X86_64,
    "i386": I386,
    "riscv64": RISCV64,
    "aarch64": Aarch64,
}
"""What makes each, by name; an architecture is registered here, and a test may put another in its place."""

_NOT_HANDLED: Final[Mapping[str, str]] = {
    "aarch64_be": ", for programs that are big-endian are not handled",
    **dict.fromkeys(("arm", "armv7l", "armv8l", "armv8b"), ", for 32-bit Arm is not handled"),
    "riscv32": ", for 32-bit RISC-V is not handled",
}


def architecture(name: str) -> Architecture:
    """The architecture that ``uname -m`` calls ``name``; loads a disassembler.

    Raises UsageError if it is not supported.
    """
    make = ARCHITECTURES.get(name)
    if make is None:
        why = _NOT_HANDLED.get(name, "")
        raise UsageError(f"no architecture {name!r}{why}; there is {', '.join(sorted(ARCHITECTURES))}")
    return make()


__all__ = [
    "ARCHITECTURES", "Architecture", "FixUp", "Flow", "InsnAnalysis", "MemoryWrite", "Outcome", "Removal", "SlotCode",
    "Span", "StepPlan", "Strategy", "TrapPatch", "architecture", "carry_out", "insert", "insert_all", "remove",
    "remove_all", "spans",
]  # fmt: skip
