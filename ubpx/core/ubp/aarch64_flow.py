"""Where control goes from each aarch64 instruction, and what it names next to the code: for proofs of boundaries."""

from collections.abc import Hashable, Iterator

from ubpx.core.ubp.aarch64_insns import (
    DIRECT,
    INSN_SIZE,
    LITERALS,
    NAMES_OPERAND,
    NEVER_FALLS_THROUGH,
    always_leaves,
    calls,
    insn_class,
    named,
)
from ubpx.core.ubp.decode import CapstoneAarch64
from ubpx.core.ubp.plans import Flow
from ubpx.core.values import VirtAddr


def flow(decoder: CapstoneAarch64, code: bytes, address: VirtAddr) -> Iterator[Flow]:
    """See ``Architecture.flow``."""
    for at in range(0, len(code) - INSN_SIZE + 1, INSN_SIZE):
        raw = code[at : at + INSN_SIZE]
        start = VirtAddr(address + at)
        if not decoder.is_insn(raw, start):
            return
        yield flow_of(int.from_bytes(raw, "little"), start)


def flow_of(word: int, start: VirtAddr) -> Flow:
    """Of one instruction."""
    kind = insn_class(word)
    found = named(word, kind, start)
    operand = VirtAddr(found) if found is not None and kind in NAMES_OPERAND else None
    return Flow(
        start,
        VirtAddr(start + INSN_SIZE),
        target=VirtAddr(found) if found is not None and kind in DIRECT else None,
        falls_through=kind not in NEVER_FALLS_THROUGH and not always_leaves(word),
        calls=calls(word),
        operand=operand,
        touches=kind in LITERALS,
    )


def walk(
    decoder: CapstoneAarch64, code: bytes, address: VirtAddr, names: list[int] | None, near: range
) -> Iterator[tuple[int, Hashable]]:
    """See ``Architecture.walk``."""
    for each in flow(decoder, code, address):
        if names is not None and each.operand is not None and each.operand in near:
            names.append(each.operand)
        at = each.start - address
        yield INSN_SIZE, code[at : at + INSN_SIZE]
