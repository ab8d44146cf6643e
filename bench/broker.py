"""What a hit costs that a client in another process handles, beside one with a handler in the tracer's own process.

Run by ``.venv/bin/python bench/broker.py [--json] [--rounds N] [--hits N]``. All ways work on the same program, at
the same instruction, in turn; each is measured with every process on one CPU, and with all CPUs for all of them.
The program takes the time of its loop; its own time without a probe is taken off. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from run import HEADLINE, BenchError, Function, MeasuredProgram, time_ubpx

CLIENT: Final = Path(__file__).with_name("broker_client.py")
UBPX: Final = (sys.executable, "-c", "from ubpx.cli import main; main()")
WAYS: Final = ("in_process", "notify", "sync", "asyncio")
BOUNDS: Final = {"notify": 1.3, "sync": 4.0, "asyncio": 10.0}
"""What each may cost, as a multiple of the handler in the tracer's own process."""


@contextmanager
def broker(pid: int) -> Iterator[str]:
    """``ubpx serve -p PID``; the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="ubpx-bench-") as directory:
        path = f"{directory}/socket"
        command = [*UBPX, "serve", "-p", str(pid), "--socket", path]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
            try:
                if serving.stderr is None or not serving.stderr.readline().startswith("ubpx: serving"):
                    raise BenchError("the broker could not be started")
                yield path
            finally:
                serving.terminate()


def time_client(program: MeasuredProgram, function: Function, hits: int, way: str) -> float:
    """Nanoseconds a call with one client process; its handler counts, and must miss nothing."""
    with broker(program.pid) as path:
        command = [sys.executable, str(CLIENT), path, hex(function.address), way]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            if client.stdout is None or client.stdout.readline() != "ready\n":
                raise BenchError(f"the client ({way}) could not be started")
            program.time(function.name, hits // 10)
            taken: float = program.time(function.name, hits)
            said, _ = client.communicate(timeout=60)
            handled, dropped, counted = map(int, said.split())
            if not handled + dropped == counted == hits + hits // 10:
                raise BenchError(f"the client ({way}) handled {handled}, dropped {dropped}, {counted} of {hits} hits")
            if dropped:
                raise BenchError(f"the client ({way}) was told of {dropped} hits too few; its figure would say nothing")
    return taken


def ways(program: MeasuredProgram, function: Function, hits: int) -> dict[str, Callable[[], float]]:
    """How each is measured."""
    found: dict[str, Callable[[], float]] = {"in_process": lambda: time_ubpx(program, function, hits)}
    for name in WAYS[1:]:
        found[name] = lambda name=name: time_client(program, function, hits, name)  # type: ignore[misc]
    return found


def measure(program: MeasuredProgram, rounds: int, hits: int) -> dict[str, float]:
    """Microseconds a hit, by way; the order changes every round."""
    function = program.functions[HEADLINE]
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    measured = ways(program, function, hits)
    for turn in range(rounds):
        own = program.time(HEADLINE, hits)
        for way in WAYS if turn % 2 else reversed(WAYS):
            taken[way].append((measured[way]() - own) / 1000)
    return {way: statistics.median(spans) for way, spans in taken.items()}


def main() -> int:
    """Measure, and print; exit status 1 when the measurement is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="so many rounds of each way")
    parser.add_argument("--hits", type=int, default=20_000, help="so many hits in each round")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    everywhere = os.sched_getaffinity(0)
    results: dict[str, Any] = {}
    for name, cpus in (("one_cpu", {min(everywhere)}), ("all_cpus", everywhere)):
        os.sched_setaffinity(0, cpus)
        program = MeasuredProgram()
        try:
            results[name] = measure(program, arguments.rounds, arguments.hits)
            program.end()
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            program.kill()
    if arguments.json:
        print(json.dumps(results))
        return 0
    for name, figures in results.items():
        print(f"a hit by way of a broker, {name.replace('_', ' ')}: medians, us")
        for way, figure in figures.items():
            ratio = figure / figures["in_process"]
            bound = f"  (at most {BOUNDS[way]})" if way in BOUNDS else ""
            print(f"  {way:12} {figure:8.2f}   {ratio:5.2f}{bound}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
