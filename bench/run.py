"""What a hit with one counting Python handler costs, beside a tracer in C; and what arming many places costs.

Run by ``.venv/bin/python bench/run.py [--json] [--rounds N] [--hits N]``. Both tracers work on the same
program, at the same instruction, on one CPU, in turn; the program itself takes the time of its loop, and
the loop's own time without a probe is taken off. The figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from host import measure_host, report_host

import ubpx

HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parent / "build" / "bench"
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror")
HEADLINE: Final = "bench_lea"
ALONE: Final = "bench_push"
NANOSECONDS: Final = 1000


class BenchError(Exception):
    """The measurement is not valid."""


def build(name: str) -> Path:
    """The compiled program; built anew when its source or the flags changed."""
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(repr(FLAGS).encode() + source.read_bytes()).hexdigest()[:16]
    program = BUILD / digest / name
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f"{name}.{os.getpid()}")
        subprocess.run(["gcc", *FLAGS, "-o", unfinished, source], check=True)
        unfinished.replace(program)
    return program


@dataclass(frozen=True)
class Function:
    """A function of the measured program, and its first instruction's copy there."""

    name: str
    address: int
    slot: int


class MeasuredProgram:
    """bench/target.c, running."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen([build("target")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.functions: dict[str, Function] = {}
        while (line := self._read()) != "ready":
            name, address, slot = line.split()
            self.functions[name] = Function(name, int(address, 16), int(slot, 16))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def _pipe(self, stream: IO[str] | None) -> IO[str]:
        if stream is None:
            raise BenchError("the program has no pipe")
        return stream

    def _read(self) -> str:
        line = self._pipe(self._popen.stdout).readline()
        if not line:
            raise BenchError(f"the measured program ended with status {self._popen.wait()}")
        return line.rstrip("\n")

    def time(self, name: str, calls: int) -> float:
        """Nanoseconds for each of so many calls, by the program's own clock."""
        pipe = self._pipe(self._popen.stdin)
        pipe.write(f"{name} {calls}\n")
        pipe.flush()
        return int(self._read()) / calls

    def end(self) -> None:
        """Let it end, and check that nobody has harmed it."""
        pipe = self._pipe(self._popen.stdin)
        pipe.write("\n")
        pipe.close()
        if self._popen.wait(timeout=10) != 0:
            raise BenchError(f"the measured program ended with status {self._popen.returncode}")

    def kill(self) -> None:
        """End it in any case."""
        self._popen.kill()
        self._popen.wait()


def time_c(program: MeasuredProgram, function: Function, hits: int) -> float:
    """Nanoseconds a call with the C tracer attached."""
    command = [str(build("tracer")), str(program.pid), hex(function.address), hex(function.slot)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as tracer:
        if tracer.stdout is None or tracer.stdout.readline() != "armed\n":
            raise BenchError("the C tracer could not attach")
        taken = program.time(function.name, hits)
        while True:  # a signal just before its waitpid does not wake it
            tracer.send_signal(signal.SIGUSR1)
            try:
                tracer.wait(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                continue
        if tracer.stdout.read() != f"hits={hits}\n":
            raise BenchError("the C tracer missed hits")
    return taken


def time_ubpx(program: MeasuredProgram, function: Function, hits: int) -> float:
    """Nanoseconds a call with ubpx attached and one handler that counts: public API, defaults."""
    count = 0

    def handler(hit: ubpx.Hit) -> None:  # noqa: ARG001 - a counter does not look at the hit
        nonlocal count
        count += 1

    with ubpx.attach(program.pid) as target:
        lease = target.client("bench").probe(function.address, handler)
        taken = program.time(function.name, hits)
        if not count == lease.hits == hits:
            raise BenchError(f"ubpx counted {count} and {lease.hits} of {hits} hits")
    return taken


@dataclass(frozen=True)
class Figures:
    """One instruction's figures, in microseconds a hit, the program's own time taken off."""

    function: str
    strategy: str
    c_us: float
    ubpx_us: float
    ratio: float
    ratio_low: float
    ratio_high: float


def strategy_of(program: MeasuredProgram, function: Function) -> str:
    """What ubpx chooses for it."""
    with ubpx.attach(program.pid) as target:
        probepoint = target.client("bench").probe(function.address, lambda _: None).probepoint
        return "?" if probepoint is None else str(probepoint.strategy)


def measure(program: MeasuredProgram, name: str, rounds: int, hits: int) -> Figures:
    """Rounds of the C tracer and ubpx in turn; the order changes every round."""
    function = program.functions[name]
    strategy = strategy_of(program, function)
    ways = [time_c, time_ubpx]
    taken: dict[object, list[float]] = {way: [] for way in ways}
    for way in ways:
        way(program, function, hits // 10)
    for turn in range(rounds):
        own = program.time(name, hits)
        for way in ways if turn % 2 else reversed(ways):
            taken[way].append(way(program, function, hits) - own)
    ratios = sorted(python / c for python, c in zip(taken[time_ubpx], taken[time_c], strict=True))
    c, python = statistics.median(taken[time_c]), statistics.median(taken[time_ubpx])
    return Figures(name, strategy, c / NANOSECONDS, python / NANOSECONDS, python / c, ratios[0], ratios[-1])


@dataclass(frozen=True)
class ManyFigures:
    """What probing all functions of a program at once costs: microseconds for each, medians over the rounds."""

    sites: int
    arm_us: float
    release_us: float
    detach_us: float


def measure_many(rounds: int) -> ManyFigures:
    """Arm, release, arm again and detach, with nothing known of the program before each round."""
    taken: dict[str, list[float]] = {"arm": [], "release": [], "detach": []}
    sites = 0
    command = [build("many")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        if program.stdout is None or program.stdout.readline() != "ready\n":
            raise BenchError("the program of many functions does not run")
        for _ in range(rounds):
            target = ubpx.attach(program.pid)
            client = target.client("bench")
            started = time.perf_counter()
            group = client.probe_many("work_*", lambda _: None)
            armed = time.perf_counter()
            group.release()
            released = time.perf_counter()
            sites = len(client.probe_many("work_*", lambda _: None))
            again = time.perf_counter()
            target.detach()
            detached = time.perf_counter()
            for name, span in (("arm", armed - started), ("release", released - armed), ("detach", detached - again)):
                taken[name].append(span / sites * 1e6)
    medians = {name: statistics.median(spans) for name, spans in taken.items()}
    return ManyFigures(sites, medians["arm"], medians["release"], medians["detach"])


def report_many(figures: ManyFigures) -> None:
    """For people."""
    print(f"probe_many, {figures.sites} functions: medians for each, us")
    print(f"  armed                        {figures.arm_us:8.2f}")
    print(f"  released                     {figures.release_us:8.2f}")
    print(f"  detached                     {figures.detach_us:8.2f}")


def report(figures: Figures) -> None:
    """One instruction's figures for people."""
    print(f"{figures.function} ({figures.strategy}): medians of one hit, us")
    print(f"  tracer in C, one stop        {figures.c_us:8.2f}")
    print(f"  ubpx, one Python handler     {figures.ubpx_us:8.2f}")
    print(f"  ratio {figures.ratio:.2f} (single rounds {figures.ratio_low:.2f} to {figures.ratio_high:.2f})")


def main() -> int:
    """Measure, and print; exit status 1 when the measurement is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="so many rounds of each tracer (at least 7)")
    parser.add_argument("--hits", type=int, default=20_000, help="so many hits in each round")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.hits < 10:
        parser.error("at least one round of ten hits")
    everywhere = os.sched_getaffinity(0)
    cpu = min(everywhere)
    os.sched_setaffinity(0, {cpu})  # all that we start from here on inherits it
    program = MeasuredProgram()
    try:
        headline = measure(program, HEADLINE, arguments.rounds, arguments.hits)
        alone = measure(program, ALONE, arguments.rounds, arguments.hits)
        address = program.functions[HEADLINE].address
        os.sched_setaffinity(program.pid, everywhere)
        os.sched_setaffinity(0, everywhere)  # where the host computes is another processor's affair
        host = measure_host(program, HEADLINE, address, rounds=arguments.rounds, hits=arguments.hits // 4)
        os.sched_setaffinity(0, {cpu})
        program.end()
        many = measure_many(arguments.rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        program.kill()
    if arguments.json:
        values = {figures.function: vars(figures) for figures in (headline, alone)}
        result = {"cpu": cpu, "rounds": arguments.rounds, "hits": arguments.hits, "functions": values}
        result |= {"host": vars(host)}
        result |= {"probe_many": vars(many), "probe_many_us_per_site": round(many.arm_us, 2)}
        print(json.dumps(result | {"python_handler_over_c_one_stop": round(headline.ratio, 3)}))
        return 0
    report(headline)
    report(alone)
    report_many(many)
    report_host(host)
    print(f"probe_many_us_per_site: {many.arm_us:.2f}")
    print(f"push_python_handler_over_c_one_stop: {alone.ratio:.2f}")
    print(f"python_handler_over_c_one_stop: {headline.ratio:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
