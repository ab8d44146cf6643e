"""Merging what several clients want at one hit. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from ubpx.core.events import Verdict


def merge_verdicts(verdicts: Iterable[Verdict]) -> Verdict:
    """The least permissive wins; with nobody asking for anything the thread goes on."""
    return max(verdicts, default=Verdict.RESUME)


@attrs.frozen
class RegisterCollision:
    """Two clients wrote different values to one register at one hit; the earlier stands."""

    register: str
    winner: str
    loser: str


@attrs.frozen
class MergedWrites:
    """What is written to the thread after all handlers have run, and who was overruled."""

    registers: Mapping[str, int]
    collisions: tuple[RegisterCollision, ...]


def merge_writes(writes: Sequence[tuple[str, Mapping[str, int]]]) -> MergedWrites:
    """Unite register writes, given as (client, values by register) in handler order.

    Equal values are no collision.
    """
    merged: dict[str, int] = {}
    writers: dict[str, str] = {}
    collisions = []
    for client, values in writes:
        for register, value in values.items():
            if register not in merged:
                merged[register], writers[register] = value, client
            elif merged[register] != value:
                collisions.append(RegisterCollision(register, writers[register], client))
    return MergedWrites(merged, tuple(collisions))
