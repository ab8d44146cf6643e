"""Registers by name over the words that a tracer fetched."""

from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from typing import Final


class RegisterLayout:
    """Which word holds which register."""

    def __init__(self, architecture: str, names: Sequence[str], pc_name: str) -> None:
        self.architecture: Final = architecture
        self.names: Final = tuple(names)
        self.index: Final[Mapping[str, int]] = {name: position for position, name in enumerate(names)}
        self.pc: Final = self.index[pc_name]
        self.pc_name: Final = pc_name


class WordRegisters(Mapping[str, int]):
    """The words as a mapping by register name; what the stateless layer reads."""

    __slots__ = ("_index", "_words")

    def __init__(self, words: MutableSequence[int], layout: RegisterLayout) -> None:
        self._words = words
        self._index = layout.index

    def __getitem__(self, name: str) -> int:
        return self._words[self._index[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def put(words: MutableSequence[int], layout: RegisterLayout, changes: Mapping[str, int]) -> None:
    """Write ``changes`` into ``words``."""
    for name, value in changes.items():
        words[layout.index[name]] = value
