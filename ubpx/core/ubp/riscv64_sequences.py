"""What stands between a load-reserved and its store-conditional: nothing there may be stopped at.

Source: The RISC-V Instruction Set Manual, volume I, chapter 13.2 and 13.3: a trap may make the store fail, and Linux
makes it fail at each return to a program (arch/riscv/kernel/entry.S). The loop around them would never end.
"""

import re
from typing import Final

from ubpx.core.ubp.encoding import one_of
from ubpx.core.ubp.riscv64_encoding import LONGEST_INSN, PARCEL, parse
from ubpx.core.ubp.riscv64_insns import InsnClass, falls_through, insn_class, target_of
from ubpx.core.values import VirtAddr

_MOST_INSNS: Final = 32
"""From one to the other; a loop that must succeed in the end has 16 at most (chapter 13.3)."""
LONGEST_SEQUENCE: Final = _MOST_INSNS * LONGEST_INSN
"""Bytes on either side of an instruction in which the others of its sequence are."""
_RESERVES: Final = re.compile(
    b"(?="
    + one_of((0x2F, 0xAF))
    + one_of(byte for byte in range(0x100) if byte >> 4 & 7 in (2, 3))
    + one_of(range(0x10))
    + one_of((0x10, 0x12, 0x14, 0x16))
    + b")",
    re.DOTALL,
)
"""lr.w and lr.d, whatever their registers and their order."""


def in_sequence(code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
    """See ``Architecture.in_sequence``. Whatever looks like a load-reserved is taken for one, at even addresses."""
    for found in _RESERVES.finditer(code):
        at = found.start()
        if (start + at) % PARCEL == 0 and address - start in _between(code, at):
            return (
                f"it stands between the load-reserved (lr) at {start + at:#x} and its store-conditional (sc): a stop "
                "there makes the store fail, each time, so that the program would never get past it"
            )
    return None


def _between(code: bytes, first: int) -> set[int]:
    """Offsets of the instructions that come behind the load-reserved at ``first`` and lead to a store-conditional."""
    leads, ends = _ways(code, first)
    inside: set[int] = set()
    while True:
        more = {at for at, ways in leads.items() if at not in inside and not inside.union(ends).isdisjoint(ways)}
        if not more:
            return inside
        inside |= more


def _ways(code: bytes, first: int) -> tuple[dict[int, list[int]], set[int]]:
    """Where each instruction leads that is reached in time, by offset; and which store-conditionals are."""
    leads: dict[int, list[int]] = {}
    ends: set[int] = set()
    reached = [first + LONGEST_INSN]
    for _ in range(_MOST_INSNS):
        work, reached = reached, []
        for at in work:
            encoding = parse(code[at : at + LONGEST_INSN]) if 0 <= at < len(code) else None
            kind = insn_class(encoding) if encoding is not None else None
            if encoding is None or kind is None or at in leads:
                continue
            if kind is InsnClass.STORES_CONDITIONALLY:
                ends.add(at)
            elif kind is not InsnClass.RESERVES:  # which begins a sequence of its own, or the same one anew
                target = target_of(encoding, kind, at)
                leads[at] = [at + encoding.length] if falls_through(encoding, kind) else []
                leads[at] += [] if target is None else [int(target)]
                reached += leads[at]
    return leads, ends
