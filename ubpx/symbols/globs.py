"""Functions by a pattern of their names, by the ten thousand: of most nothing is made but where they start."""

import fnmatch
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from ubpx.core.values import Place, VirtAddr
from ubpx.symbols.around import label_of
from ubpx.symbols.loaded import LoadedModule, LoadedModules
from ubpx.symbols.lookup import MatchingFunctions
from ubpx.symbols.modules import ADDRESS_MASK

_IN_NAME: Final = rb"[^\0@]{0,4096}"
"""Bytes of one name, its version not included, as far as names are looked at."""

Matches = Callable[[bytes, int], object]
"""Whether a name is wanted, by the strings of its table and where it starts there."""


def in_strings(pattern: str) -> tuple[Matches | None] | None:
    """What finds a glob's names in a table's own bytes; (None,): it accepts every name; None: only text will do."""
    if not pattern.isascii() or any(letter in pattern for letter in "?[@\0"):
        return None
    first, *rest = (re.escape(part.encode()) for part in re.sub(r"\*+", "*", pattern).split("*"))
    middle = b"".join(b"(?>%b?%b)" % (_IN_NAME, part) for part in rest[:-1])
    last = rest[-1] if rest else b""
    if not rest or last:
        last = (_IN_NAME if rest else b"") + last + rb"(?=[\0@]|\Z)"
    wanted = first + middle + last
    return (re.compile(wanted, re.DOTALL).match if wanted else None,)


def accepts(pattern: str) -> Callable[[str], object]:
    """The same for names as text, any pattern."""
    return re.compile(fnmatch.translate(pattern)).match


class PlainFunctions:
    """The functions of a module that a pattern has found, and of which name and start are all that is to be said."""

    def __init__(self, modules: LoadedModules, loaded: LoadedModule, found: MatchingFunctions) -> None:
        self._loaded: Final = loaded
        self._found: Final = found
        self._sizes: Final = found.plain()
        for address in modules.symbols(loaded).nested() & self._sizes.keys():
            del self._sizes[address]
        if modules.sequences(loaded):  # then each has to be looked at
            self._sizes.clear()
        bias = loaded.bias
        starts = sorted([(linked + bias) & ADDRESS_MASK for linked in self._sizes])
        self.starts: Final = cast(list[VirtAddr], list(_among(starts, modules.executable(loaded))))
        """In memory, ascending."""

    def __contains__(self, address: object) -> bool:
        at = bisect_right(self.starts, address) - 1 if isinstance(address, int) else -1
        return at >= 0 and self.starts[at] == address

    def special(self) -> list[int]:
        """All others that were found, as linked; ascending."""
        plain = set(map(self._loaded.as_linked, self.starts)) if len(self.starts) < len(self._sizes) else self._sizes
        return sorted(self._found.addresses().difference(plain))

    def describe(self, address: VirtAddr) -> Place:
        """The place of one."""
        linked = self._loaded.as_linked(address)
        return Place(
            address=address,
            name=label_of(self._loaded, self._found.symbol(linked)),
            symbol_start=address,
            symbol_end=VirtAddr(address + self._sizes[linked]),
        )


def _among(starts: Sequence[int], ranges: Iterable[tuple[int, int]]) -> Iterable[int]:
    """Those of the ascending addresses that lie in one of the ascending ranges."""
    for start, end in ranges:
        yield from starts[bisect_left(starts, start) : bisect_left(starts, end)]
