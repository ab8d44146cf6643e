"""Instructions that only get done together: from an exclusive load to its store.

Source: DDI 0487, section B2.17: an exception's return clears the monitor that the load has set, so that a store behind
a stop never succeeds, and a loop around both never ends. Between them a program may use 128 bytes (B2.17.5).
"""

import struct
from collections.abc import Iterator
from typing import Final

from ubpx.core.ubp.aarch64_insns import (
    DIRECT,
    INSN_SIZE,
    NEVER_FALLS_THROUGH,
    InsnClass,
    always_leaves,
    calls,
    insn_class,
    named,
)
from ubpx.core.values import VirtAddr

LONGEST_SEQUENCE: Final = 128
_EXCLUSIVE_LOADS, _EXCLUSIVE_LOADS_MASK = 0x0840_0000, 0x3FC0_0000
"""What all of them match, and casp too, which is none."""
_CLEAR: Final = 0xD503_305F
"""clrex, whatever its CRm."""
_CLEAR_MASK: Final = 0xFFFF_F0FF
_REASON: Final = (
    "it lies between an exclusive load, at {load:#x}, and its store, at {store:#x}: a trap there clears the exclusive "
    "monitor, so that the store never succeeds; probe the load, or the instruction behind the store"
)


def in_sequence(code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
    """See ``Architecture.in_sequence``.

    An instruction is in one if control can come to it from an exclusive load, and from it to an exclusive store, by
    fall-through and direct branches, and meets no other load, no store and no clrex on the way. At the load itself a
    thread may be stopped: the monitor is not set yet. At the store it may not; ``refusal`` says so wherever it stands.
    """
    words = _words(code, start, address)
    loads = [at for at, word in words.items() if word & _EXCLUSIVE_LOADS_MASK == _EXCLUSIVE_LOADS]
    if not loads or address not in words or _ends(words[address]):
        return None
    store = next((at for at in _behind(words, address) if _is_store(words[at])), None)
    if store is None:
        return None
    load = next((at for at in loads if _is_load(words[at]) and address in _behind(words, at)), None)
    return None if load is None else _REASON.format(load=load, store=store)


def _words(code: bytes, start: VirtAddr, address: VirtAddr) -> dict[int, int]:
    """Those near the address, by their own; none for an address at which no instruction begins."""
    first = max(start + -start % INSN_SIZE, address - LONGEST_SEQUENCE)
    end = min(start + len(code), address + LONGEST_SEQUENCE + INSN_SIZE)
    places = range(first, end - INSN_SIZE + 1, INSN_SIZE)
    if address % INSN_SIZE or not places:
        return {}
    found = struct.unpack_from(f"<{len(places)}I", code, first - start)
    return dict(zip(places, found, strict=True))


def _behind(words: dict[int, int], first: int) -> list[int]:
    """What control can come to from ``first`` without leaving the sequence, ends included."""
    found: dict[int, None] = {}
    work = list(_next(words[first], first))
    while work:
        at = work.pop()
        if at in words and at not in found:
            found[at] = None
            if not _ends(words[at]):
                work += _next(words[at], at)
    return list(found)


def _next(word: int, at: int) -> Iterator[int]:
    kind = insn_class(word)
    if calls(word) or always_leaves(word):
        return
    if kind in DIRECT:
        target = named(word, kind, at)
        if target is not None:
            yield target
    if kind not in NEVER_FALLS_THROUGH:
        yield at + INSN_SIZE


def _ends(word: int) -> bool:
    """Whether the monitor is set anew behind it, or not set."""
    exclusive = insn_class(word) in (InsnClass.EXCLUSIVE_LOAD, InsnClass.EXCLUSIVE_STORE)
    return exclusive or word & _CLEAR_MASK == _CLEAR


def _is_load(word: int) -> bool:
    return insn_class(word) is InsnClass.EXCLUSIVE_LOAD


def _is_store(word: int) -> bool:
    return insn_class(word) is InsnClass.EXCLUSIVE_STORE
