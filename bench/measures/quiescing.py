"""Stopping all of a thousand sleeping threads, beside a loop in C that does the same."""

from __future__ import annotations

import statistics

from harness.figures import Demand, Figure
from harness.programs import Talk, build
from harness.settings import Settings, job, output

THREADS = 1000
STOPS = 7
"""In each round."""


def measure(settings: Settings) -> list[Figure]:
    """Until all have stopped; and until all have been let go."""
    ratios: dict[str, list[float]] = {"stopped": [], "went": []}
    spans: dict[str, list[float]] = {"ubpx": [], "c": []}
    with Talk([build("threads"), str(THREADS)]) as program:
        while program.hear() != "ready":
            pass
        for number in range(settings.rounds):
            settings.telling(f"stopping {THREADS:,} threads: round {number + 1} of {settings.rounds}")
            in_c = medians(output([build("quiesce"), program.pid, STOPS]))
            ours = medians(job("holding", program.pid, STOPS))
            for index, name in enumerate(ratios):
                ratios[name].append(ours[index] / in_c[index])
            spans["ubpx"].append(ours[0] / 1e6)
            spans["c"].append(in_c[0] / 1e6)
        program.end()
    details = {f"{name}_ms": statistics.median(each) for name, each in spans.items()}
    return [
        figure(
            "quiescing_over_c", "stopping 1,000 threads / the same in C", ratios["stopped"], Demand(most=2), details
        ),
        figure("stop_and_go_over_c", "stopping them and letting them go / in C", ratios["went"], None, {}),
    ]


def medians(text: str) -> tuple[float, float]:
    """Nanoseconds until all had stopped, and until all had been let go."""
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)


def figure(name: str, title: str, values: list[float], demand: Demand | None, details: dict[str, float]) -> Figure:
    """One of them."""
    ordered = sorted(values)
    return Figure(
        name=name,
        title=title,
        value=statistics.median(ordered),
        low=ordered[0],
        high=ordered[-1],
        demand=demand,
        details=details,
    )
