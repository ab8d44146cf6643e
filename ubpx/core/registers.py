"""Registers by name over the words that a tracer fetched."""

import struct
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from operator import itemgetter
from typing import Any, Final

_WORD: Final = 8
"""Bytes of what a tracer fetches for one register."""
_LOWER_HALF: Final = 0xFFFF_FFFF


class RegisterLayout:
    """Which word holds which register.

    A word of 64 bits may hold a register of 32: its upper half says nothing then, and is not shown.
    """

    def __init__(self, architecture: str, words: Sequence[str], pc_name: str, *, word_size: int = _WORD) -> None:
        """``words`` are the names by position, "" for a word that is no register; ``word_size`` is a register's."""
        self.architecture: Final = architecture
        self.index: Final[Mapping[str, int]] = {name: position for position, name in enumerate(words) if name}
        self.names: Final = tuple(self.index)
        self.mask: Final = (1 << 8 * word_size) - 1
        """What a register can hold."""
        self.plain: Final = len(self.names) == len(words) and word_size == _WORD
        """Whether every word is a register, and all of it."""
        self.pc: Final = self.index[pc_name]
        self.pc_name: Final = pc_name
        self.view: Any = None
        """For ``hits`` alone: the class of what it shows of registers that lie so, once somebody has looked."""
        self._format: Final = f"<{len(self.names)}Q"
        self._lower_halves: Final = itemgetter(*(2 * position for position in self.index.values()))

    def values(self, words: Sequence[int]) -> dict[str, int]:
        """The registers by name."""
        mask = self.mask
        return {name: words[position] & mask for name, position in self.index.items()}

    def packed(self, words: Any) -> bytes:
        """The registers in the order of ``names``, each as 64 bits, little-endian."""
        if self.plain and type(words) is memoryview:
            return bytes(words)
        if self.mask == _LOWER_HALF and type(words) is memoryview:  # hits travel by this: a third of the time
            return struct.pack(self._format, *self._lower_halves(words.cast("B").cast("I")))
        return struct.pack(self._format, *self.values(words).values())


class WordRegisters(Mapping[str, int]):
    """The words as a mapping by register name; what the stateless layer reads."""

    __slots__ = ("_index", "_mask", "_words")

    def __init__(self, words: MutableSequence[int], layout: RegisterLayout) -> None:
        self._words = words
        self._index = layout.index
        self._mask = layout.mask

    def __getitem__(self, name: str) -> int:
        return self._words[self._index[name]] & self._mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def put(words: MutableSequence[int], layout: RegisterLayout, changes: Mapping[str, int]) -> None:
    """Write ``changes`` into ``words``."""
    for name, value in changes.items():
        words[layout.index[name]] = value
