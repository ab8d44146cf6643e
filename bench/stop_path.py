"""What one hit costs, call by call; what many threads and a stop of all of them cost (docs/explanation/stop-path.md).

Run by ``.venv/bin/python bench/stop_path.py [--json] [--rounds N]``. Each call of the tracer's fast lane is made over
and over at one real stop of the measured program; beside them stands the floor: what a tracer in C takes that does
nothing but wait and continue. Figures are medians over the rounds, ratios those of things measured in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from run import HEADLINE, BenchError, MeasuredProgram, build, time_c, time_ubpx

import ubpx

CALLS: Final = 500
"""So often each call is made at a time."""
TIMES: Final = 9
"""Of so many times the best counts: what others do on the machine makes none quicker."""
HITS: Final = 5_000
THREADS: Final = 32
SPAN_MS: Final = 300
SLEEPERS: Final = 1_000
QUIESCES: Final = 5


def nanoseconds(call: Callable[[], object]) -> float:
    """For each call, the loop's own time taken off."""
    return min(_span(call) for _ in range(TIMES)) - min(_span(None) for _ in range(TIMES))


def _span(call: Callable[[], object] | None) -> float:
    began = time.perf_counter_ns()
    if call is None:
        for _ in range(CALLS):
            pass
    else:
        for _ in range(CALLS):
            call()
    return (time.perf_counter_ns() - began) / CALLS


def time_calls(program: MeasuredProgram) -> dict[str, float]:
    """Nanoseconds of each call at a stop, by name. The thread stands at a trap that nobody has consumed."""
    from ubpx_ptracepp import requests as r
    from ubpx_ptracepp.abi import RIP, RegisterBuffer

    tid = program.pid
    registers, answers = RegisterBuffer(), r.Answers()
    fetch = r.PTRACE_GETREGS, tid, 0, ctypes.byref(registers)
    r.request(r.PTRACE_SEIZE, tid, 0, 0)
    r.request(r.PTRACE_INTERRUPT, tid)
    os.waitid(os.P_ALL, 0, r.PEEK)
    found = {
        "peek": nanoseconds(lambda: os.waitid(os.P_ALL, 0, r.PEEK)),
        "GETREGS": nanoseconds(lambda: r.quick(*fetch)),
    }
    place, word = ctypes.c_long.from_param(RIP * 8), ctypes.c_ulong.from_param(registers[RIP])
    found["POKEUSER"] = nanoseconds(lambda: r.quick(r.PTRACE_POKEUSER, tid, place, word))
    if r.reap(tid, answers) is None:
        raise BenchError("the program did not stop")
    found["consume"] = nanoseconds(lambda: r.reap(tid, answers))
    found["look for others"] = nanoseconds(lambda: r.peek(answers))
    found["CONT, refused"] = nanoseconds(lambda: r.quick(r.PTRACE_CONT, os.getpid(), 0, 0))
    r.request(r.PTRACE_DETACH, tid)
    return found


def time_arrival(program: MeasuredProgram) -> dict[str, float]:
    """Nanoseconds of what Python does between the calls: look-up, arrival and handler."""
    function = program.functions[HEADLINE]
    count = 0

    def counts(_: ubpx.Hit) -> None:
        nonlocal count
        count += 1

    def reads(hit: ubpx.Hit) -> None:
        counts(hit)
        hit.regs.rdi  # noqa: B018 - reading is what is measured
        hit.regs.rsi  # noqa: B018

    with ubpx.attach(program.pid) as target:
        lease: Any = target.client("bench").probe(function.address, counts, strategy="BOOST")
        thread: Any = next(iter(target._process.living())).port  # noqa: SLF001 - the tracer's own view
        site = thread.sites[function.address + 1]

        def job() -> dict[str, float]:
            found = {
                "look-up": nanoseconds(lambda: thread.sites[function.address + 1]),
                "handler": nanoseconds(lambda: counts(None)),  # type: ignore[arg-type]
                "arrive, handler included": nanoseconds(lambda: site.arrive(thread)),
            }
            lease.handler = reads
            found["arrive, two registers read"] = nanoseconds(lambda: site.arrive(thread))
            return found

        return target._session._loop.run(job)  # noqa: SLF001 - arrivals are the tracer thread's


def time_floor(program: MeasuredProgram) -> float:
    """Nanoseconds a hit of a tracer in C that waits and continues: two switches, and two calls."""
    function = program.functions[HEADLINE]
    command = [str(build("floor")), str(program.pid), hex(function.address), str(HITS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
        if tracer.stdout is None or tracer.stdout.readline() != "armed\n":
            raise BenchError("the floor's tracer could not attach")
        taken: float = program.time(HEADLINE, HITS)
        if tracer.wait(timeout=20):
            raise BenchError("the floor's tracer missed hits")
    return taken


def time_hits(program: MeasuredProgram) -> dict[str, float]:
    """Nanoseconds a hit, all included."""
    function = program.functions[HEADLINE]
    own = program.time(HEADLINE, HITS)
    return {
        "floor: C, wait and CONT alone": time_floor(program) - own,
        "C, one stop": time_c(program, function, HITS) - own,
        "ubpx, a handler that counts": time_ubpx(program, function, HITS) - own,
    }


class ManyThreads:
    """bench/threads.c, running."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen([build("threads")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._popen.pid
        self.address = int(self._read().split()[1], 16)

    def _pipe(self, stream: IO[str] | None) -> IO[str]:
        if stream is None:
            raise BenchError("the program has no pipe")
        return stream

    def _read(self) -> str:
        return self._pipe(self._popen.stdout).readline()

    def ask(self, line: str) -> list[str]:
        """Its answer."""
        pipe = self._pipe(self._popen.stdin)
        pipe.write(line + "\n")
        pipe.flush()
        return self._read().split()

    def run(self, threads: int) -> tuple[float, float]:
        """Hits a millisecond, and most over least hits of one thread."""
        taken, calls, least, most = map(int, self.ask(f"{threads} {SPAN_MS}"))
        return calls / taken * 1e6, most / max(least, 1)

    def kill(self) -> None:
        """End it."""
        self._popen.kill()
        self._popen.wait()


@contextmanager
def many_threads() -> Iterator[ManyThreads]:
    """Ended in any case."""
    program = ManyThreads()
    try:
        yield program
    finally:
        program.kill()


def time_threads() -> dict[str, float]:
    """One thread and 32 on one probe, in turn: throughput of many over that of one, and how even their shares are."""
    count = 0

    def counts(_: ubpx.Hit) -> None:
        nonlocal count
        count += 1

    with many_threads() as program, ubpx.attach(program.pid) as target:
        lease = target.client("bench").probe(program.address, counts)
        one, _ = program.run(1)
        many, uneven = program.run(THREADS)
        if count != lease.hits:
            raise BenchError(f"{count} of {lease.hits} hits were handled")
    return {"throughput over one thread's": many / one, "most over least": uneven}


def time_quiesce() -> dict[str, float]:
    """Milliseconds to stop a thousand sleeping threads, by a loop in C and by ubpx."""
    with many_threads() as program:
        if program.ask(f"sleep {SLEEPERS}") != ["ready"]:
            raise BenchError("the sleepers do not sleep")
        command = [str(build("quiesce")), str(program.pid), str(QUIESCES)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        spans = []
        with ubpx.attach(program.pid) as target:
            client = target.client("bench")
            for _ in range(QUIESCES):
                began = time.perf_counter_ns()
                hold = client.hold()
                spans.append(time.perf_counter_ns() - began)
                hold.release()
                time.sleep(0.02)
    c, ours = statistics.median(map(int, said.split())) / 1e6, statistics.median(spans) / 1e6
    return {"C, ms": c, "ubpx, ms": ours, "ratio": ours / c}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """All of it; the first four on one processor."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    program = MeasuredProgram()
    try:
        found = {
            "the kernel's calls, ns": medians([time_calls(program) for _ in range(rounds)]),
            "what Python does, ns": medians([time_arrival(program) for _ in range(rounds)]),
            "one hit, ns": medians([time_hits(program) for _ in range(rounds)]),
        }
    finally:
        program.kill()
    found[f"{THREADS} threads, one processor"] = medians([time_threads() for _ in range(rounds)])
    os.sched_setaffinity(0, everywhere)
    found[f"{THREADS} threads, all processors"] = medians([time_threads() for _ in range(rounds)])
    found[f"{SLEEPERS} threads are stopped"] = medians([time_quiesce() for _ in range(max(rounds // 3, 1))])
    return found


def main() -> int:
    """Measure, and print; exit status 1 when the measurement is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="so many rounds of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least one round")
    try:
        found = measure(arguments.rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(found))
        return 0
    for title, figures in found.items():
        print(title)
        for name, figure in figures.items():
            print(f"  {name:32} {figure:10.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
