"""What differs between two ends of one instruction."""

from collections.abc import Iterator, Mapping
from typing import Final

from ubpx.core.registers import RegisterLayout
from ubpx.testing.oracle.routes import End
from ubpx.testing.oracle.vectors import HEADER, SOFTWARE

Differences = Mapping[str, tuple[str, str]]
"""Expected and found, by the name of what differs; empty if nothing does."""

_PARTS: Final = (
    ("x87", 0, 8), ("x87 instruction pointer", 8, 16), ("x87 operand pointer", 16, 24), ("mxcsr", 24, 32),
)  # fmt: skip


def compare(expected: End, found: End, registers: RegisterLayout, *, vectors: bool = True) -> Differences:
    """All that a program could see; ``vectors`` (and x87) only if asked for."""
    if (
        expected[:3] == found[:3]
        and expected.memory == found.memory
        and (not vectors or expected.xstate == found.xstate)
    ):
        return {}
    return {
        **dict(_stops(expected, found)),
        **dict(_registers(expected, found, registers)),
        **dict(_bytes("memory", expected.memory, found.memory)),
        **(dict(_vectors(expected.xstate, found.xstate)) if vectors else {}),
    }


def _stops(expected: End, found: End) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in ("signal", "code", "address"):
        pair = getattr(expected.stop, name), getattr(found.stop, name)
        if pair[0] != pair[1]:
            yield f"fault {name}", (f"{pair[0]:#x}", f"{pair[1]:#x}")


def _registers(expected: End, found: End, registers: RegisterLayout) -> Iterator[tuple[str, tuple[str, str]]]:
    after = registers.values(found.words)
    for name, right in registers.values(expected.words).items():
        if right != after[name]:
            yield name, (f"{right:#x}", f"{after[name]:#x}")


def _vectors(expected: bytes, found: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    """By eight bytes; which parts are in use is not compared."""
    if len(expected) != len(found):
        yield "vector state size", (str(len(expected)), str(len(found)))
        return
    for name, start, end in _PARTS:
        if expected[start:end] != found[start:end]:
            yield name, (expected[start:end].hex(), found[start:end].hex())
    for start, end in ((_PARTS[-1][2], SOFTWARE.start), (HEADER.stop, len(expected))):
        yield from _bytes("vectors", expected[start:end], found[start:end], start)


def _bytes(name: str, expected: bytes, found: bytes, start: int = 0) -> Iterator[tuple[str, tuple[str, str]]]:
    if expected == found:
        return
    for at in range(0, len(expected), 8):
        if expected[at : at + 8] != found[at : at + 8]:
            yield f"{name}+{start + at:#x}", (expected[at : at + 8].hex(), found[at : at + 8].hex())
