"""Rounds of several peers in turn, and what they come to."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.peers import Missing, Peer, Run, run_peer
from harness.programs import BenchError

MICROSECOND = 1000
LEAST_CALLS = 20
YARDSTICK = "c_one_stop"
"""What all are compared with."""
Tell = Callable[[str], None]


def tell(text: str) -> None:
    """What goes on, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Row:
    """All rounds of one peer. Owned by ``rounds`` until it returns."""

    peer: Peer
    runs: list[Run] = field(default_factory=list)
    missing: str = ""
    """Why it has no figure: it cannot be had here."""
    invalid: str = ""
    """Why it has none: it was there, and its figure would not be true."""
    yardstick: Row | None = None
    """What it is compared with: of the same rounds."""

    @property
    def spans(self) -> Sequence[float]:
        """Microseconds a hit in each round; nothing where a figure would not be one."""
        return () if self.missing or self.invalid else [run.nanoseconds / MICROSECOND for run in self.runs]

    @property
    def median(self) -> float | None:
        """Microseconds a hit."""
        return statistics.median(self.spans) if self.spans else None

    def note(self, name: str) -> float:
        """The median of something that the peer has measured beside."""
        return statistics.median(float(run.notes[name]) for run in self.runs)


Rows = Mapping[str, Row]


def rounds(
    peers: Sequence[Peer], count: int, *, scale: float = 1.0, function: str = "bench_lea", telling: Tell = tell
) -> Rows:
    """So many rounds of each, by name; the order is another one in each round. What is missing, or wrong, is not tried
    again.
    """
    rows = {peer.name: Row(peer) for peer in peers}
    for row in rows.values():
        row.yardstick = rows.get(YARDSTICK)
    for turn in range(count):
        telling(f"round {turn + 1} of {count}: {len(peers)} ways to take a hit")
        shift = turn % len(peers) if peers else 0
        order = [*peers[shift:], *peers[:shift]]
        for peer in order if turn % 2 else reversed(order):
            row = rows[peer.name]
            if row.missing or row.invalid:
                continue
            try:
                row.runs.append(run_peer(peer, calls=max(int(peer.calls * scale), LEAST_CALLS), function=function))
            except Missing as reason:
                row.missing = str(reason)
                telling(f"{peer.title} is missing: {reason}")
            except BenchError as error:
                row.invalid = str(error)
                telling(f"{error}")
    return rows


@dataclass(frozen=True)
class Ratio:
    """One way's cost as a multiple of another's: the median of what each round says."""

    value: float
    low: float
    high: float


def ratio(row: Row, base: Row | None) -> Ratio | None:
    """None where either has no figure. Rounds are compared with each other: what slows the machine slows both."""
    pairs = list(zip(row.spans, base.spans, strict=False)) if base is not None else []
    found = sorted(above / below for above, below in pairs)
    return Ratio(statistics.median(found), found[0], found[-1]) if found else None
