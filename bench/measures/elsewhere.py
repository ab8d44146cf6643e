"""Probes that are armed and not hit: what they cost a hit at another, and a program that never comes by."""

from __future__ import annotations

import mmap
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
QUIET_TURNS = 80
QUIET_ROUNDS = 3
"""For each round of others: where a program's pages and addresses come to lie makes more than traps do."""


def measure(settings: Settings) -> list[Figure]:
    """Both."""
    quiet = never_hit(settings)  # first: the other one gives back many pages here and there
    return [beside_many(settings), *quiet]


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


def never_hit(settings: Settings) -> list[Figure]:
    """By how much a program is slower among 10,000 traps of which it meets none; and one whose pages were only copied.

    A trap's first write copies the page, and where the copies come to lie makes the program faster or slower: so there
    are many programs, and none ends before the last is measured, for a copy in pages that were given back here and
    there is slow.
    """
    slower: dict[str, list[float]] = {"among": [], "copied": []}
    rounds = settings.rounds * QUIET_ROUNDS
    with ExitStack() as all_of_them:
        programs = []
        for number in range(rounds):
            settings.telling(f"{MANY:,} armed, none hit: round {number + 1} of {rounds}")
            three = [all_of_them.enter_context(MeasuredProgram(program_of(MANY))) for _ in range(3)]
            for name, factor in zip(slower, slowed(three, settings, copied_first=number % 2 > 0), strict=True):
                slower[name].append((factor - 1) * 100)
            programs += three
        for program in programs:
            program.end()
    title = "a program among 10,000 traps that it does not meet is slower by"
    return [
        of_values("armed_not_hit_percent", title, slower["among"], Demand(most=1.0), unit="%"),
        of_values("copied_percent", "one of which each page was only copied, by", slower["copied"], None, unit="%"),
    ]


def slowed(programs: Sequence[MeasuredProgram], settings: Settings, *, copied_first: bool) -> tuple[float, float]:
    """By which factor traps slow the first, and copies the second; both beside the third, and beside before."""
    traced, written, _ = programs
    before = quiet_turns(programs, settings)
    with among(traced) as tracer:
        if copied_first:
            copy_text(written.pid)
        ask(tracer, "arm", f"armed {MANY}")
        if not copied_first:
            copy_text(written.pid)
        within = quiet_turns(programs, settings)
        ask(tracer, "release", "released 0")
        tracer.end()
    now_traced, now_written, now_free = (after / once for once, after in zip(before, within, strict=True))
    return now_traced / now_free, now_written / now_free


def quiet_turns(programs: Sequence[MeasuredProgram], settings: Settings) -> list[float]:
    """Of each a call's processor time in its quick turns, a tenth of all being quicker; they take turns.

    Turns are too short for the machine to change much; what disturbs only slows, and the very quickest is luck.
    """
    calls = settings.times(QUIET_CALLS, least=MANY)
    for program in programs:
        program.run("quiet", calls)  # the first turn has the pages' faults
    turns = [[program.run("quiet", calls).processor_ns for program in programs] for _ in range(QUIET_TURNS)]
    return [statistics.quantiles(own, n=10)[0] for own in zip(*turns, strict=True)]


def copy_text(pid: int) -> None:
    """Write to each page of the program's code, as a trap's first write does, what stands there."""
    with Path(f"/proc/{pid}/maps").open() as maps:
        (code,) = [line.split()[0].split("-") for line in maps if " r-xp " in line and line.endswith("/many\n")]
    start, end = (int(bound, 16) for bound in code)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for page in range(start, end, mmap.PAGESIZE):
            byte = os.pread(memory.fileno(), 1, page)
            os.pwrite(memory.fileno(), byte, page)
