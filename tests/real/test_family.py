"""Threads that all make children of every sort while all of them meet probes of every strategy."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

STRATEGIES = {
    "family_boost": ubpx.Strategy.BOOST,
    "family_step": ubpx.Strategy.STEP,
    "family_inline": ubpx.Strategy.INLINE,
    "family_emulate": ubpx.Strategy.EMULATE,
}


def probe_all(target: ubpx.Target) -> list[ubpx.Lease]:
    """One lease for each of the functions, by its strategy."""
    client = target.client("one")
    return [client.probe(symbol, lambda _: None, strategy=strategy) for symbol, strategy in STRATEGIES.items()]


def family(target_program: StartProgram, threads: int, rounds: int) -> None:
    """No child dies, every child's status is what it would be untraced, and the parent's counts are exact."""
    program = target_program("family", threads, rounds)
    with ubpx.attach(program.pid) as target:
        leases = probe_all(target)
        assert program.tell("g").number("children", timeout=58) == threads * rounds
        calls = program.number("calls")
        assert [lease.hits for lease in leases] == [calls] * len(leases)
    assert program.tell("q").wait() == 0


def test_family(target_program: StartProgram) -> None:
    """Invariant: children of every sort, made by eight threads among hot probes, live as if untraced."""
    family(target_program, 8, 14)


def test_family_is_killed_at_any_moment(target_program: StartProgram) -> None:
    """Invariant: SIGKILL in the midst of it hangs nobody, and leaves no child stopped or traced."""
    chance = random.Random(11)
    for _ in range(12):
        program = target_program("family", 8, 1000)
        with ubpx.attach(program.pid) as target:
            probe_all(target)
            program.tell("g")
            time.sleep(chance.random() * 0.2)
            os.kill(program.pid, signal.SIGKILL)
            assert target.wait(timeout=20) == -signal.SIGKILL
        assert program.wait() == -signal.SIGKILL


def test_family_while_tracers_come_and_go(target_program: StartProgram) -> None:
    """Invariant: an attach and a detach at any moment of a child's birth harm none."""
    program = target_program("family", 4, 60).tell("g")
    for _ in range(10):
        with ubpx.attach(program.pid) as target:
            probe_all(target)
    assert program.number("children", timeout=58) == 240
    program.number("calls")
    assert program.tell("q").wait() == 0


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(10))
def test_large_family(target_program: StartProgram, turn: int) -> None:
    """Invariant: the same, ten times, with more children."""
    assert turn >= 0
    family(target_program, 8, 56)
