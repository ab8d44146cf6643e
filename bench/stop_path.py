"""What one hit costs, call by call (docs/explanation/stop-path.md).

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
from collections.abc import Callable
from typing import Any, Final

import ubpx
from harness.programs import BenchError, MeasuredProgram, build

CALLS: Final = 500
"""So often each call is made at a time."""
TIMES: Final = 9
"""Of so many times the best counts: what others do on the machine makes none quicker."""
HITS: Final = 5_000
HEADLINE: Final = "bench_lea"


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
        taken = program.run(HEADLINE, HITS).nanoseconds
        if tracer.wait(timeout=20):
            raise BenchError("the floor's tracer missed hits")
    return taken


def time_hits(program: MeasuredProgram) -> dict[str, float]:
    """Nanoseconds a hit, all included; beside other tracers it is in ``make bench``."""
    own = program.run(HEADLINE, HITS).nanoseconds
    floor = time_floor(program) - own
    with ubpx.attach(program.pid) as target:
        lease = target.client("bench").probe(program.functions[HEADLINE].address, lambda _: None, strategy="BOOST")
        ours = program.run(HEADLINE, HITS).nanoseconds - own
        if lease.hits != HITS:
            raise BenchError(f"{lease.hits} hits of {HITS} calls")
    return {"floor: C, wait and CONT alone": floor, "ubpx, a handler that does nothing": ours}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """All of it, on one processor."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        with MeasuredProgram(build("target")) as program:
            return {
                "the kernel's calls, ns": medians([time_calls(program) for _ in range(rounds)]),
                "what Python does, ns": medians([time_arrival(program) for _ in range(rounds)]),
                "one hit, ns": medians([time_hits(program) for _ in range(rounds)]),
            }
    finally:
        os.sched_setaffinity(0, everywhere)


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
