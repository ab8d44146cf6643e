"""Ten clients come and go for half an hour (`make soak`; some seconds in `make test`): nothing grows.

UBPX_SOAK_SECONDS says for how long.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.conftest import changed_text, stopped_or_traced
from tests.real.families import ClientProcesses, held_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

SECONDS: Final = float(os.environ.get("UBPX_SOAK_SECONDS", "6"))
ROUND_S: Final = max(1.0, min(30.0, SECONDS / 6))
CLIENTS: Final = 10
SORTS: Final = ("lea", "push", "nop", "mov", "jmp")
PLACES: Final = [f"soak_{sort}_{tens}{ones}" for sort in SORTS for tens in range(5) for ones in range(4)]
STEADY: Final = PLACES[0]
NAMELESS: Final = 5
"""Fields of a line of /proc/PID/maps without a path."""
ALLOWED: Final = {
    "broker rss_kb": 8 * 1024,
    "broker mappings": 16,
    "broker threads": 8,
    "program rss_kb": 1024,
    "program mappings": 4,
    "program threads": 1,
}
"""What a process may have more at the end than at the beginning.

Allocators keep what they once needed, pools of threads what they once made, up to their sizes; the program has one
thread that lives briefly.
"""


def mapped(pid: int) -> dict[str, int]:
    """How many mappings the process has, and how much of it is code without a file: slots."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    spans = [fields[0].split("-") for fields in lines if "x" in fields[1] and len(fields) == NAMELESS]
    slots = sum(int(end, 16) - int(start, 16) for start, end in spans)
    return {"mappings": len(lines), "slot_bytes": slots}


def sample(broker: Any, program: Program) -> dict[str, int]:
    """What both hold while nobody comes or goes."""
    both = {"broker": broker.pid, "program": program.pid}
    return {f"{who} {what}": value for who, pid in both.items() for what, value in (held_by(pid) | mapped(pid)).items()}


def wander(clients: ClientProcesses, chance: random.Random, first: int) -> tuple[int, int]:
    """One round: ten that come and go, of which one is killed and replaced now and then.

    The number of the next of them, and how often they have come and gone.
    """
    until = time.monotonic() + ROUND_S
    number = first
    names: list[str] = []
    while time.monotonic() < until:
        while len(names) < CLIENTS:
            names.append(f"w{number}")
            clients.begin(names[-1], "wander")
            number += 1
        time.sleep(chance.random() * 0.5)
        clients.kill(names.pop(chance.randrange(len(names))))
    for name in names:
        clients.kill(name)
    return number, clients.visits(f"w{each}" for each in range(first, number))


def is_swept(watcher: Any) -> bool:
    """Whether the steady client alone is there, with its one probepoint, and nothing is held."""
    return (
        [each.name for each in watcher.clients()] == ["steady"]
        and [each.clients for each in watcher.probepoints()] == [("steady",)]
        and not watcher.holds()
    )


@pytest.mark.parametrize("seconds", [SECONDS])
def test_nothing_grows(
    target_program: StartProgram, start_broker: Any, eventually: Callable[..., bool], seconds: float
) -> None:
    """Invariant: descriptors, threads, memory, slots and mappings of broker and program are as many as before."""
    program = target_program("soak", 4, int(3 * seconds) + 100)
    assert mapped(program.pid)["slot_bytes"] == 0
    broker = start_broker("-p", str(program.pid), "--deadline", "10")
    clients = ClientProcesses(broker.path, ",".join(PLACES))
    samples: list[dict[str, int]] = []
    chance = random.Random(10)
    number, visits = 0, 0
    try:
        target: Any
        with ubpx.connect(broker.path) as target:
            steady = target.client("steady").probe(STEADY, mode="count")
            program.tell("g")
            until = time.monotonic() + seconds
            while time.monotonic() < until or len(samples) < 4:
                number, visited = wander(clients, chance, number)
                visits += visited
                assert eventually(lambda: is_swept(target))
                samples.append(sample(broker, program))
                sys.stdout.write(f"{number} processes, {visits} visits; {samples[-1]}\n")
            made = program.tell("s").number("calls")
            assert steady.hits == made > 0
            assert visits > 0
    finally:
        clients.end()
    check(samples)
    said = broker.end()
    assert "Traceback" not in said, said[-4000:]
    assert changed_text(program.pid) == []
    assert mapped(program.pid)["slot_bytes"] == 0
    assert stopped_or_traced(program.pid) == {}
    assert program.tell("q").wait() == 0


def check(samples: list[dict[str, int]]) -> None:
    """The last third against the first, without the very first: what is there once is loaded by then."""
    part = max(1, (len(samples) - 1) // 3)
    first, last = samples[1 : 1 + part], samples[-part:]
    for what in samples[0]:
        before, after = (statistics.median(each[what] for each in some) for some in (first, last))
        assert after <= before + ALLOWED.get(what, 0), (what, before, after)
