"""Where all decisions of a schedule come from: a seed, or whoever wants to make them."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

Pick = Callable[[int], int]
"""From n to one of 0 to n-1. 0 is the tamest, as far as there is one: whoever shrinks a schedule goes there."""


def seeded(seed: int) -> Pick:
    """Decisions that follow from ``seed`` alone: neither from the time nor from any hash."""
    random = Random(seed).random  # noqa: S311 - to be had again is the point
    return lambda n: int(random() * n)


def one_of(pick: Pick, several: Sequence[T]) -> T:
    """One of these, of which there is at least one."""
    return several[pick(len(several))]
