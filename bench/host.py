"""What ubpx costs the program that embeds it: a hit while the host computes, imports, the first attach.

Each figure is a ratio of things measured in turn in one run, or a time that has a bound of its own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ubpx

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_ATTACH = """
import sys, time
import ubpx
started = time.perf_counter()
with ubpx.attach(int(sys.argv[1])):
    print(time.perf_counter() - started)
"""


class Timed(Protocol):
    """The measured program, as far as it matters here."""

    @property
    def pid(self) -> int: ...  # noqa: D102 - see run.MeasuredProgram

    def time(self, name: str, calls: int) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class HostFigures:
    """What the embedding program pays."""

    busy_over_idle: float
    """A hit while another Python thread of the host computes, beside one while none does."""
    idle_us: float
    busy_us: float
    import_over_bare: float
    """``import ubpx`` beside ``python3 -c pass``, in processor time."""
    help_over_bare: float
    """``ubpx --help`` beside the same."""
    first_attach_ms: float


def time_beside(program: Timed, name: str, address: int, hits: int, *, busy: bool) -> float:
    """Nanoseconds a call, the host's other thread computing or not."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    with ubpx.attach(program.pid) as target:
        lease = target.client("bench").probe(address, lambda _: None)
        thread = threading.Thread(target=compute)
        if busy:
            thread.start()
        try:
            taken = program.time(name, hits)
        finally:
            over.set()
            if busy:
                thread.join()
        if lease.hits != hits:
            raise RuntimeError(f"{lease.hits} of {hits} hits were counted")
    return taken


def processor_time(command: Sequence[str]) -> float:
    """Seconds of processor time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_host(program: Timed, name: str, address: int, *, rounds: int, hits: int) -> HostFigures:
    """All of it; the order changes from round to round."""
    spans: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds):
        for busy in (False, True) if turn % 2 else (True, False):
            spans[busy].append(time_beside(program, name, address, hits, busy=busy))
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import ubpx"],
        "help": [str(Path(sys.executable).with_name("ubpx")), "--help"],
    }
    started: dict[str, list[float]] = {which: [] for which in commands}
    for _ in range(max(rounds, 9)):
        for which, command in commands.items():
            started[which].append(processor_time(command))
    medians = {which: statistics.median(times) for which, times in started.items()}
    attaches = [
        float(
            subprocess.run(
                [sys.executable, "-c", FIRST_ATTACH, str(program.pid)], check=True, capture_output=True
            ).stdout
        )
        for _ in range(max(rounds, 5))
    ]
    idle, beside = statistics.median(spans[False]), statistics.median(spans[True])
    return HostFigures(
        busy_over_idle=beside / idle,
        idle_us=idle / 1000,
        busy_us=beside / 1000,
        import_over_bare=medians["import"] / medians["bare"],
        help_over_bare=medians["help"] / medians["bare"],
        first_attach_ms=statistics.median(attaches) * 1000,
    )


def report_host(figures: HostFigures) -> None:
    """For people."""
    print("the embedding program")
    print(f"  a hit, host idle             {figures.idle_us:8.2f} us")
    print(f"  a hit, host computing        {figures.busy_us:8.2f} us")
    print(f"  the first attach             {figures.first_attach_ms:8.1f} ms")
    print(f"busy_over_idle: {figures.busy_over_idle:.1f}")
    print(f"import_over_bare: {figures.import_over_bare:.1f}")
    print(f"help_over_bare: {figures.help_over_bare:.1f}")
