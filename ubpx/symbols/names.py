"""Names of symbols for people: what is near a wrong one, and what may go to a terminal."""

import difflib
import heapq
from collections.abc import Iterable
from typing import Final

MAX_SHOWN: Final = 200
"""Characters of one name in a message."""

MAX_COMPARED: Final = 3000
"""Names that difflib is asked about; most are dismissed in 10 us."""
MAX_FAR_COMPARED: Final = 300
"""As above when none may be dismissed, which takes ten times as long."""


def printable(name: str) -> str:
    """``name`` without anything that a terminal would obey: the target chose it."""
    if not name.isprintable():
        name = name.encode("unicode_escape").decode("ascii")
    return name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..."


def nearest_names(wanted: str, names: Iterable[str], *, count: int = 3) -> tuple[str, ...]:
    """The ``count`` of ``names`` nearest to ``wanted``, the most similar first.

    Among equals a public name (fewer leading underscores) comes first.
    """
    every = set(names)
    close = _close(wanted, [name for name in every if _lengths_agree(wanted, name)], count=count, compared=MAX_COMPARED)
    if len(close) < count:  # better a far one than none: it shows what names look like here
        close = _close(wanted, list(every), count=count, compared=MAX_FAR_COMPARED, cutoff=0.0)
    matcher = difflib.SequenceMatcher(b=wanted)

    def rank(name: str) -> tuple[float, int, str]:
        matcher.set_seq1(name)
        return -matcher.ratio(), _underscores(name), name

    return tuple(printable(name) for name in sorted(close, key=rank)[:count])


def _close(wanted: str, names: list[str], *, count: int, compared: int, cutoff: float = 0.6) -> list[str]:
    if len(names) > compared:
        names = heapq.nsmallest(compared, names, key=lambda name: (-_shared_letters(wanted, name), name))
    return difflib.get_close_matches(wanted, names, n=count * 4, cutoff=cutoff)


def _lengths_agree(wanted: str, name: str) -> bool:
    # A ratio of 0.6 is out of reach for lengths further apart than this.
    return 0.4 * len(wanted) < len(name) < 2.4 * len(wanted)


def _shared_letters(wanted: str, name: str) -> int:
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)}
    return sum(pair in name for pair in pairs) * 4 - abs(len(wanted) - len(name))


def _underscores(name: str) -> int:
    return len(name) - len(name.lstrip("_"))
