"""Names of symbols for people: what is near a wrong one, and what may go to a terminal."""

import difflib
from collections.abc import Iterable
from typing import Final

MAX_SHOWN: Final = 200
"""Characters of one name in a message."""

MAX_COMPARED: Final = 3000
"""Names that difflib is asked about; it takes about 0.1 ms each."""


def printable(name: str) -> str:
    """``name`` without anything that a terminal would obey: the target chose it."""
    if not name.isprintable():
        name = name.encode("unicode_escape").decode("ascii")
    return name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..."


def nearest_names(wanted: str, names: Iterable[str], *, count: int = 3) -> tuple[str, ...]:
    """At most ``count`` of ``names`` that resemble ``wanted``, the most similar first.

    Among equals a public name (fewer leading underscores) comes first.
    """
    near = [name for name in set(names) if _lengths_agree(wanted, name)]
    if len(near) > MAX_COMPARED:
        near.sort(key=lambda name: (-_shared_letters(wanted, name), name))
        del near[MAX_COMPARED:]
    close = difflib.get_close_matches(wanted, near, n=count * 4, cutoff=0.6)
    matcher = difflib.SequenceMatcher(b=wanted)

    def rank(name: str) -> tuple[float, int, str]:
        matcher.set_seq1(name)
        return -matcher.ratio(), _underscores(name), name

    return tuple(printable(name) for name in sorted(close, key=rank)[:count])


def _lengths_agree(wanted: str, name: str) -> bool:
    # A ratio of 0.6 is out of reach for lengths further apart than this.
    return 0.4 * len(wanted) < len(name) < 2.4 * len(wanted)


def _shared_letters(wanted: str, name: str) -> int:
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)}
    return sum(pair in name for pair in pairs) * 4 - abs(len(wanted) - len(name))


def _underscores(name: str) -> int:
    return len(name) - len(name.lstrip("_"))
