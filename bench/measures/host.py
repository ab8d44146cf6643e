"""What ubpx costs the program that embeds it, hits apart: importing it, its command line, the first attach."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from harness.figures import Figure
from harness.programs import MeasuredProgram, build
from harness.settings import Settings, output

FIRST_ATTACH = """
import sys, time
import ubpx
started = time.perf_counter()
with ubpx.attach(int(sys.argv[1])):
    print(time.perf_counter() - started)
"""


def processor_time(*command: object) -> float:
    """Seconds of processor time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(settings: Settings) -> list[Figure]:
    """Each in turn."""
    python = sys.executable
    with MeasuredProgram(build("target")) as program:
        ways: dict[str, Callable[[], float]] = {
            "bare": lambda: processor_time(python, "-c", "pass"),
            "import": lambda: processor_time(python, "-c", "import ubpx"),
            "help": lambda: processor_time(Path(python).with_name("ubpx"), "--help"),
            "attach": lambda: float(output([python, "-c", FIRST_ATTACH, program.pid])),
        }
        spans: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(settings.rounds):
            for name, way in ways.items():
                spans[name].append(way())
        program.end()
    medians = {name: statistics.median(each) for name, each in spans.items()}
    return [
        Figure(
            name="import_over_bare",
            title="python -c 'import ubpx' / python -c pass, processor time",
            value=medians["import"] / medians["bare"],
        ),
        Figure(
            name="help_over_bare",
            title="ubpx --help / python -c pass, processor time",
            value=medians["help"] / medians["bare"],
        ),
        Figure(
            name="first_attach_ms",
            title="attaching and detaching, the first time in a process",
            value=medians["attach"] * 1000,
            unit="ms",
        ),
    ]
