"""One run of one peer: started on a program of its own, warmed up, timed, and its hits checked."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.programs import BENCH, BUILD, BenchError, MeasuredProgram, Talk, build

PEERS: Final = BENCH / "peers"
JOBS: Final = BENCH / "jobs"
OWN_PYTHON: Final = BUILD / "venv" / "bin" / "python"
"""Of the virtual environment that has the peers from PyPI, and nothing of ours; tools/setup --bench makes it."""
START_S: Final = 60.0
WARM_UP: Final = 4
"""The warm-up is so much shorter than the round."""
PIECES: Final = 5
"""The loop is run in so many, and the median counts: what disturbs the machine for a moment disturbs one of them."""
AFTERWARDS: Final = 100
"""So many calls show that the program is unharmed."""


class Missing(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A script that speaks as bench/peers/interface.py says, and what its head says of it."""

    name: str
    title: str
    script: Path
    calls: int
    packages: tuple[str, ...] = ()
    stops: int | None = None
    """How many stops a hit is, where the peer cannot count; the kernel counts stops."""
    arguments: tuple[str, ...] = ()
    """Before the place's."""
    warm_up_s: float = 0.0
    """The warm-up lasts at least so long: what is asked for is a place that has been hot for a while."""
    program: tuple[str, ...] = ("target",)
    """What it is measured on, as ``build`` takes it."""

    def command(self) -> list[str]:
        """How it is started, but for the place. Raises Missing."""
        python = str(OWN_PYTHON) if self.packages else sys.executable
        if not Path(python).exists():
            raise Missing(f"{' and '.join(self.packages)} could not be installed (tools/setup --bench says why)")
        return [python, str(self.script), *self.arguments]


def read_peer(script: Path) -> Peer:
    """A peer by its file, which is read and not run: only its own interpreter may have what it imports."""
    heads: dict[str, Any] = {}
    for statement in ast.parse(script.read_text()).body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(name := statement.targets[0], ast.Name)
            and name.id.isupper()
        ):
            try:
                heads[name.id] = ast.literal_eval(statement.value)
            except ValueError:
                continue
    return Peer(
        name=script.stem,
        title=heads["TITLE"],
        script=script,
        calls=heads["CALLS"],
        packages=heads.get("PACKAGES", ()),
        stops=heads.get("STOPS"),
        warm_up_s=heads.get("WARM_UP_S", 0.0),
    )


def all_peers(directory: Path = PEERS) -> list[Peer]:
    """Each file of the directory but what they share."""
    return [read_peer(script) for script in sorted(directory.glob("*.py")) if script.stem != "interface"]


@dataclass(frozen=True)
class Run:
    """One round of one peer, checked."""

    nanoseconds: float
    """For each call, the program's own time taken off."""
    calls: int
    """The program's count, the warm-up's included."""
    hits: int
    counted_by: str
    """"peer", or "kernel" for one that cannot count."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What it has measured beside."""


def run_peer(peer: Peer, *, calls: int, function: str = "bench_lea") -> Run:
    """One round, on a program that nobody else sees.

    Raises Missing if the peer cannot be started, BenchError if it is there and then misses hits, breaks off, or
    harms the program.
    """
    try:
        return _run_peer(peer, calls, function)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:  # it answered nonsense, or nothing
        raise BenchError(f"{peer.title}: {error!r}") from error


def _run_peer(peer: Peer, calls: int, function: str) -> Run:
    warm_up = max(calls // WARM_UP, 1)
    environment = {"BENCH_TRACER": str(build("tracer")), "PYTHONPATH": str(PEERS)}
    with MeasuredProgram(build(*peer.program)) as program:
        place, over = program.functions[function], program.functions["bench_over"]
        words = [str(program.pid), *map(hex, (place.address, place.length, place.slot, place.stub, over.address))]
        own = pieces(program, function, calls)
        with started(peer, words, environment) as talk:
            first = warm(program, function, warm_up, peer.warm_up_s)
            timed = pieces(program, function, calls)
            talk_over(program, talk)
            answer = json.loads(talk.hear())
            talk.end()
        if program.run(function, AFTERWARDS).stops:
            raise BenchError(f"{peer.title}: it has ended, and the program is still stopped at calls")
        program.end()
    hits, by = answer.pop("hits"), "peer"
    made = first.calls + timed.calls
    if hits is None and peer.stops is not None:
        hits, by = (first.stops + timed.stops) // peer.stops, "kernel"
    if hits != made:
        raise BenchError(f"{peer.title}: {hits} hits, {made} calls")
    return Run(timed.nanoseconds - own.nanoseconds, made, hits, by, answer)


@dataclass(frozen=True)
class Pieces:
    """A loop that was run piece by piece."""

    nanoseconds: float
    """A call, in the piece that is the median."""
    stops: int
    calls: int


def warm(program: MeasuredProgram, function: str, calls: int, seconds: float) -> Pieces:
    """So many calls, and again until the time is over."""
    until = time.monotonic() + seconds
    loops = [program.run(function, calls)]
    while time.monotonic() < until:
        loops.append(program.run(function, calls))
    return Pieces(loops[-1].nanoseconds, sum(loop.stops for loop in loops), calls * len(loops))


def pieces(program: MeasuredProgram, function: str, calls: int) -> Pieces:
    """Run it so: about so many calls altogether."""
    each = max(calls // PIECES, 1)
    loops = [program.run(function, each) for _ in range(PIECES)]
    return Pieces(
        statistics.median(loop.nanoseconds for loop in loops), sum(loop.stops for loop in loops), each * PIECES
    )


def started(peer: Peer, words: list[str], environment: Mapping[str, str]) -> Talk:
    """The peer, armed. Raises Missing if it cannot be."""
    with ExitStack() as stack:
        talk = stack.enter_context(Talk([*peer.command(), *words], environment=environment))
        try:
            line = talk.hear(patience_s=START_S)
        except BenchError as error:
            raise Missing(str(error)) from None
        if line != "armed":
            raise Missing(json.loads(line)["missing"] if line.startswith('{"missing"') else f"it said {line!r}")
        stack.pop_all()
        return talk


def talk_over(program: MeasuredProgram, talk: Talk) -> None:
    """Let the peer end, by both of the signs that there are."""
    talk.hang_up()
    program.run("bench_over", 1)


def pinned() -> int:
    """Have all that is started from here on run on one processor; which."""
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu
