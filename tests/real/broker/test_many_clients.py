"""Many client processes at one place: every count is the program's own, and who is killed takes nothing with him."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.families import PATIENCE_S, ClientProcesses, held_by

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

PLACE: Final = "probed_lea"
DEADLINE_S: Final = 1.0


@pytest.fixture
def hot(target_program: StartProgram) -> Callable[..., Program]:
    """``hot(threads, calls)``: a program that calls PLACE when told to."""
    return lambda threads, calls: target_program("hot_calls", PLACE, threads, calls)


@pytest.fixture
def clients_of(start_broker: Any) -> Iterator[Callable[[Program], tuple[Any, ClientProcesses]]]:
    """``clients_of(program)``: a broker that traces it, and what forks clients of that."""
    families: list[ClientProcesses] = []

    def begin(program: Program) -> tuple[Any, ClientProcesses]:
        broker = start_broker("-p", str(program.pid), "--deadline", str(DEADLINE_S))
        families.append(ClientProcesses(broker.path, PLACE))
        return broker, families[-1]

    yield begin
    for family in families:
        family.end()


def processor_ticks(pid: int) -> int:
    """User and system time so far, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def exactness(
    target_program: StartProgram, clients_of: Callable[..., Any], kinds: dict[str, int], seconds: float
) -> int:
    """So many clients of each kind, for so long; each must count what the program counts. How much that was."""
    program = target_program("endless", PLACE, 4, 1200)
    _, clients = clients_of(program)
    names = {f"{kind}{number}": kind for kind, amount in kinds.items() for number in range(amount)}
    for name, kind in names.items():
        clients.begin(name, kind)
    for name in names:
        clients.hear(name, "ready")
    program.tell("g")
    time.sleep(seconds)
    program.tell("s")
    made = program.number("calls", timeout=60)
    assert made > 0
    for name, kind in names.items():
        handled, hits, dropped, _ = clients.count(name)
        assert hits == made, name
        assert handled + dropped == made, name
        assert kind == "notify" or dropped == 0, name
    assert program.tell("q").wait() == 0
    return made


def test_every_client_process_counts_what_the_program_counts(
    target_program: StartProgram, clients_of: Callable[..., Any]
) -> None:
    """Invariant: clients of every kind, each in its own process, share one hot probepoint and miss nothing."""
    exactness(target_program, clients_of, {"sync": 6, "notify": 3, "count": 1}, seconds=1)


@pytest.mark.torture
@pytest.mark.parametrize(
    "kinds", [{"sync": 100}, {"notify": 100}, {"sync": 40, "notify": 40, "count": 20}], ids=["sync", "notify", "mixed"]
)
def test_a_hundred_client_processes(
    target_program: StartProgram, clients_of: Callable[..., Any], kinds: dict[str, int]
) -> None:
    """Invariant: as above with a hundred of them, for a minute."""
    calls = exactness(target_program, clients_of, kinds, seconds=60)
    sys.stdout.write(f"a hundred clients ({kinds}) and the program counted {calls} calls each\n")


def kills(target_program: StartProgram, clients_of: Callable[..., Any], amount: int) -> float:
    """Kill so many clients amid their hits and holds; the longest pause that a survivor saw, in seconds."""
    chance = random.Random(7)
    program = target_program("endless", PLACE, 4, 1200)
    broker, clients = clients_of(program)
    for name, kind in (("steady", "sync"), ("listener", "notify")):
        clients.start(name, kind)
    kinds = ("sync", "notify", "hold", "hold_all", "clutch")
    before: dict[str, int] = {}
    program.tell("g")
    for turn in range(amount):
        kind = kinds[turn % len(kinds)]
        clients.start(f"victim{turn}", kind)
        clients.hear(f"victim{turn}", "busy")
        time.sleep(chance.random() * 0.01)
        clients.kill(f"victim{turn}")
        if turn == min(20, amount // 2):
            before = held_by(broker.pid)
    wait_until_swept(broker.path)
    after = held_by(broker.pid)
    assert after["descriptors"] <= before["descriptors"] + 2, (before, after)
    assert after["threads"] <= before["threads"] + 2, (before, after)
    assert after["rss_kb"] <= before["rss_kb"] + 16_384, (before, after)
    program.tell("s")
    made = program.number("calls", timeout=600)
    handled, hits, dropped, pause = clients.count("steady")
    assert (handled, hits, dropped) == (made, made, 0)
    handled, hits, dropped, _ = clients.count("listener")
    assert (handled + dropped, hits) == (made, made)
    assert program.tell("q").wait() == 0
    return float(pause)


def wait_until_swept(path: str) -> None:
    """Until nobody but the two is there, and nothing is held."""
    until = time.monotonic() + PATIENCE_S
    with ubpx.connect(path) as target:
        while {each.name for each in target.clients()} != {"steady", "listener"} or target.holds():
            assert time.monotonic() < until, (target.clients(), target.holds())
            time.sleep(0.01)


def test_clients_killed_amid_hits_and_holds_take_nothing_with_them(
    target_program: StartProgram, clients_of: Callable[..., Any]
) -> None:
    """Invariant: SIGKILL at any moment: the program goes on, the others stay exact, nothing leaks."""
    kills(target_program, clients_of, 25)


@pytest.mark.torture
def test_a_thousand_clients_are_killed(target_program: StartProgram, clients_of: Callable[..., Any]) -> None:
    """Invariant: as above a thousand times, and no pause is longer than the deadline."""
    pause = kills(target_program, clients_of, 1_000)
    sys.stdout.write(f"the longest pause between two hits of a survivor: {pause:.3f} s\n")
    assert pause < DEADLINE_S


def test_an_idle_broker_costs_nothing(hot: Callable[..., Program], clients_of: Callable[..., Any]) -> None:
    """Invariant: no processor time, at most 60 MB; clients that do nothing cost next to nothing more."""
    program = hot(2, 10)
    broker, clients = clients_of(program)
    for number in range(20):
        clients.begin(f"idle{number}", "idle")
    for number in range(20):
        clients.hear(f"idle{number}", "ready")
    time.sleep(0.5)
    began = processor_ticks(broker.pid)
    time.sleep(2.0)
    assert processor_ticks(broker.pid) - began <= 1
    assert held_by(broker.pid)["rss_kb"] <= 60 * 1024
    program.tell("g")
    assert program.number("calls") == 20
    assert program.tell("q").wait() == 0


@pytest.mark.torture
def test_a_thousand_idle_clients(hot: Callable[..., Program], start_broker: Any) -> None:
    """Invariant: a thousand connections, each with a client: still serving, at most 200 MB."""
    program = hot(2, 100)
    broker = start_broker("-p", str(program.pid))
    targets = [ubpx.connect(broker.path) for _ in range(1_000)]
    try:
        for number, target in enumerate(targets):
            target.client(f"idle{number}")
        hits: list[int] = []
        lease = targets[0].client("busy").probe(PLACE, lambda hit: hits.append(hit.tid))
        program.tell("g")
        assert program.number("calls") == lease.hits == len(hits) == 200
        rss_kb = held_by(broker.pid)["rss_kb"]
        sys.stdout.write(f"a broker with a thousand idle clients: {rss_kb} kB\n")
        assert rss_kb <= 200 * 1024
    finally:
        for target in targets:
            target.detach()
    assert program.tell("q").wait() == 0
