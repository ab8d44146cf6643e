"""Figures with what is demanded of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.rounds import Ratio


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a figure must be."""

    most: float | None = None
    least: float | None = None
    aim: float | None = None
    """Better than it must be; for information."""

    def __str__(self) -> str:
        limit = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        return f"{limit} (aim {self.aim:g})" if self.aim is not None else limit

    def met_by(self, value: float) -> bool:
        """Whether a value is within it."""
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the second table."""

    name: str
    """In JSON."""
    title: str
    value: float | None
    """None where it could not be measured; ``missing`` says why."""
    unit: str = "x"
    demand: Demand | None = None
    low: float | None = None
    high: float | None = None
    missing: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of."""

    @property
    def verdict(self) -> str:
        """Met, missed, not measured; nothing where nothing is demanded."""
        if self.value is None:
            return "not measured"
        if self.demand is None:
            return ""
        return "met" if self.demand.met_by(self.value) else "MISSED"

    def as_json(self) -> dict[str, Any]:
        """The object in the result's file."""
        demand = self.demand and {key: value for key, value in vars(self.demand).items() if value is not None}
        return {**vars(self), "demand": demand, "verdict": self.verdict.lower(), "details": dict(self.details)}


def of_ratio(name: str, title: str, found: Ratio | None, demand: Demand | None, *, why: str = "") -> Figure:
    """A figure that is a ratio of rounds; ``why`` says why there is none."""
    if found is None:
        return Figure(name=name, title=title, value=None, demand=demand, missing=why)
    return Figure(name=name, title=title, value=found.value, low=found.low, high=found.high, demand=demand)


def of_values(
    name: str,
    title: str,
    values: Iterable[float],
    demand: Demand | None,
    *,
    unit: str = "x",
    details: Mapping[str, Any] | None = None,
) -> Figure:
    """A figure that each round has given one value of: the median, and between which it lies."""
    found = sorted(values)
    return Figure(
        name=name, title=title, value=statistics.median(found), low=found[0], high=found[-1],
        unit=unit, demand=demand, details=details or {},
    )  # fmt: skip


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """Those that do not reach what is demanded; one that was not measured has not reached it."""
    return [each for each in figures if each.demand is not None and each.verdict != "met"]
