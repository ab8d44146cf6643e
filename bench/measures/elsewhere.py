"""Probes that are armed and not hit: what they cost a hit at another, and a program that never comes by."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.figures import Demand, Figure, of_values
from harness.peers import JOBS, PEERS, warm
from harness.programs import BenchError, MeasuredProgram, Talk, build
from harness.settings import WARM_UP_S, Settings

MOST = 100_000
MANY = 10_000
GLOB = "work_*"
HITS = 1_000
"""In one turn of the first measure."""
HIT_TURNS = 9
ROUNDS = 5
"""At most so many of the first one: it is the arming that takes its time."""
QUIET_CALLS = 200_000
"""In one turn of the second: a few milliseconds."""
QUIET_TURNS = 60


def measure(settings: Settings) -> list[Figure]:
    """Both."""
    return [beside_many(settings), never_hit(settings)]


@contextmanager
def among(program: MeasuredProgram) -> Iterator[Talk]:
    """ubpx, with one probe in the program, ready to arm the others."""
    place = program.functions["bench_lea"]
    command: list[str | Path] = [sys.executable, JOBS / "among.py", str(program.pid), hex(place.address), GLOB]
    with Talk(command, environment={"PYTHONPATH": str(PEERS)}) as tracer:
        yield tracer


def ask(tracer: Talk, order: str, wanted: str) -> None:
    """Have it arm or release. Raises BenchError if it cannot do it with all."""
    tracer.say(order)
    if (answer := tracer.hear()) != wanted:
        raise BenchError(f"{answer!r} instead of {wanted!r}")


def program_of(functions: int) -> Path:
    """The program of so many."""
    return build("many", f"-DFUNCTIONS={functions}")


def beside_many(settings: Settings) -> Figure:
    """A hit while 100,000 probes are armed elsewhere, beside one before they are and after they were."""
    ratios, hits, calls = [], 0, 0
    for number in range(min(settings.rounds, ROUNDS)):
        settings.telling(f"{MOST:,} armed elsewhere: round {number + 1} of {min(settings.rounds, ROUNDS)}")
        with MeasuredProgram(program_of(MOST)) as program, among(program) as tracer:
            ask(tracer, "arm", f"armed {MOST}")
            ask(tracer, "release", "released 0")  # the first time the program's pages are copied, and ours too
            turns = [hit_turns(program, settings)]
            ask(tracer, "arm", f"armed {MOST}")
            turns.append(hit_turns(program, settings))
            ask(tracer, "release", "released 0")
            turns.append(hit_turns(program, settings))
            tracer.hang_up()
            hits += int(tracer.hear())
            tracer.end()
            program.end()
            calls += sum(made for _, made in turns)
            before, within, after = (span for span, _ in turns)
            ratios.append(within * 2 / (before + after))
    if hits != calls:
        raise BenchError(f"{hits} hits, {calls} calls")
    title = "a hit, 100,000 armed elsewhere / none"
    counts = {"hits": hits, "calls": calls}
    return of_values("armed_elsewhere_over_one", title, ratios, Demand(most=1.1), details=counts)


def hit_turns(program: MeasuredProgram, settings: Settings) -> tuple[float, int]:
    """Nanoseconds a hit in the turn that is the median, and how many calls were made, the warm-up's included."""
    calls = settings.times(HITS, least=20)
    first = warm(program, "bench_lea", calls, WARM_UP_S)
    spans = [program.run("bench_lea", calls).nanoseconds for _ in range(HIT_TURNS)]
    return statistics.median(spans), first.calls + calls * HIT_TURNS


def never_hit(settings: Settings) -> Figure:
    """By how much a program is slower that runs among 10,000 traps and meets none, beside one that nobody traces.

    Both run at once, in turns too short for the machine to change much; of each the quickest turn counts, in processor
    time, for what disturbs only slows.
    """
    slower = []
    for number in range(settings.rounds):
        settings.telling(f"{MANY:,} armed, none hit: round {number + 1} of {settings.rounds}")
        with MeasuredProgram(program_of(MANY)) as traced, MeasuredProgram(program_of(MANY)) as free:
            with among(traced) as tracer:
                ask(tracer, "arm", f"armed {MANY}")
                slower.append((quickest(traced, free, settings) - 1) * 100)
                ask(tracer, "release", "released 0")
                tracer.end()
            traced.end()
            free.end()
    title = "a program among 10,000 traps that it does not meet is slower by"
    return of_values("armed_not_hit_percent", title, slower, Demand(most=1.0), unit="%")


def quickest(traced: MeasuredProgram, free: MeasuredProgram, settings: Settings) -> float:
    """The traced program's quickest turn as a multiple of the free one's."""
    calls = settings.times(QUIET_CALLS, least=MANY)
    for program in (traced, free):
        program.run("quiet", calls)  # the first turn has the pages' faults
    turns = [[program.run("quiet", calls).processor_ns for program in (traced, free)] for _ in range(QUIET_TURNS)]
    return min(turn[0] for turn in turns) / min(turn[1] for turn in turns)
