"""Many threads at one probe: what all of them get beside what one gets, and how fairly."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass

from harness.figures import Demand, Figure, of_values
from harness.peers import PEERS, Peer, started
from harness.programs import BenchError, Talk, build
from harness.settings import Settings

THREADS = 32
SPAN_MS = 600
WARM_UP_MS = 1300
"""By then the place jumps."""
COUNTING = Peer(name="threads", title="ubpx on many threads", script=PEERS / "ubpx_counts.py", calls=0)


@dataclass(frozen=True)
class Shares:
    """What the threads got in one run."""

    rate: float
    """Hits a second, all together."""
    spread: float
    """The most over the least hits of a thread."""
    hits: int
    calls: int


def run(threads: int, milliseconds: int) -> Shares:
    """One run with ubpx attached; the program's counts are compared with the lease's."""
    with Talk([build("threads"), str(threads)]) as program:
        address = program.hear().split()[1]
        program.hear()
        words = [str(program.pid), address, "0", "0", "0", "0"]
        with started(COUNTING, words, {"PYTHONPATH": str(PEERS)}) as tracer:
            first = turn(program, WARM_UP_MS)
            second = turn(program, milliseconds)
            tracer.hang_up()
            hits = json.loads(tracer.hear())["hits"]
            tracer.end()
        program.end()
    calls = sum(first[1:]) + sum(second[1:])
    if hits != calls:
        raise BenchError(f"{threads} threads made {calls} calls, and ubpx counted {hits}")
    nanoseconds, *shares = second
    return Shares(sum(shares) / nanoseconds * 1e9, max(shares) / max(min(shares), 1), hits, calls)


def turn(program: Talk, milliseconds: int) -> list[int]:
    """The loop's nanoseconds, then each thread's calls."""
    program.say(f"run {milliseconds}")
    return [int(word) for word in program.hear().split()]


def measure(settings: Settings) -> list[Figure]:
    """Pinned to one processor, tracer and program both; then with all for both."""
    figures = []
    for where, processors in (("pinned", {settings.cpu}), ("unpinned", settings.processors)):
        os.sched_setaffinity(0, processors)
        runs: dict[int, list[Shares]] = {1: [], THREADS: []}
        for number in range(settings.rounds):
            settings.telling(f"threads, {where}: round {number + 1} of {settings.rounds}")
            for threads in (1, THREADS) if number % 2 else (THREADS, 1):
                runs[threads].append(run(threads, settings.times(SPAN_MS, least=50)))
        figures += figures_of(where, runs[1], runs[THREADS])
    os.sched_setaffinity(0, {settings.cpu})
    return figures


def figures_of(where: str, alone: list[Shares], many: list[Shares]) -> list[Figure]:
    """Two of each affinity."""
    rates = [all_.rate / one.rate for all_, one in zip(many, alone, strict=True)]
    counts = {"hits": sum(each.hits for each in many), "calls": sum(each.calls for each in many)}
    return [
        of_values(
            f"threads_throughput_{where}",
            f"{THREADS} threads' throughput / one thread's, {where}",
            rates,
            Demand(least=0.8),
            details={"one_per_s": statistics.median(each.rate for each in alone), **counts},
        ),
        of_values(
            f"threads_spread_{where}",
            f"{THREADS} threads: most hits of a thread / least, {where}",
            (each.spread for each in many),
            Demand(most=1.5),
            details=counts,
        ),
    ]
