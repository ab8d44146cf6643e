"""Tracers that come and go by the thousand under hot probes, while threads are born and die."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import ubpx
from tests.real.conftest import changed_text, stopped_or_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

CALLERS: Final = 4
SHORT_THREADS: Final = 650


def code_of(pid: int) -> set[str]:
    """The executable lines of /proc/PID/maps: stacks of short threads come and go in the others."""
    return {line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "x" in line.split()[1]}


def visit(program: Program, chance: random.Random, eventually: Callable[..., bool]) -> int:
    """Attach, probe, see some hits, and leave at any moment; how many hits there were."""
    with ubpx.attach(program.pid) as target:
        one, two = target.client("one"), target.client("two")
        leases = [one.probe("mayfly_lea", lambda _: None), two.probe("mayfly_push", lambda _: None)]
        if chance.random() < 0.5:
            leases.append(two.probe("mayfly_lea", lambda _: None))
        wanted = chance.randrange(30)
        assert eventually(lambda: leases[0].hits >= wanted)
        if chance.random() < 0.3:
            leases[chance.randrange(len(leases))].release()
    assert {lease.state for lease in leases} == {ubpx.LeaseState.RELEASED}
    return sum(lease.hits for lease in leases)


def come_and_go(
    target_program: StartProgram, eventually: Callable[..., bool], *, visits: int, threads: int, seconds: int
) -> None:
    """So many visits; after each the text is its file's, and no thread is stopped or traced."""
    program = target_program("mayflies", CALLERS, seconds)
    chance = random.Random(visits)
    code = code_of(program.pid)
    hits = 0
    for turn in range(visits):
        hits += visit(program, chance, eventually)
        assert changed_text(program.pid) == [], turn
        assert code_of(program.pid) == code, turn
        assert stopped_or_traced(program.pid) == {}, turn
    before = program.tell("p").number("progress")
    assert eventually(lambda: program.tell("p").number("progress") > before), "each of the callers goes on"
    assert hits > visits
    made = program.tell("q").number("made")
    assert made >= threads
    assert program.wait() == 0
    sys.stdout.write(f"{visits} visits, {hits} hits, {made} short threads\n")


def test_visits_while_threads_come_and_go(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: after each attach and detach under hot probes the program is as it was, threads born meanwhile too."""
    come_and_go(target_program, eventually, visits=12, threads=12, seconds=55)


@pytest.mark.torture
def test_a_thousand_visits(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: as above a thousand times, with many hundred short threads."""
    come_and_go(target_program, eventually, visits=1_000, threads=SHORT_THREADS, seconds=1_100)
