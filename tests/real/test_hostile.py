"""A program that does its worst harms itself alone: not the tracer thread, nor another target of the session."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import changed_text, stopped_or_traced

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.real.conftest import Program, StartProgram

SYMBOLS = ("probed_lea", "probed_push", "probed_call", "probed_string", "probed_rep")
TELLING_SEEDS = (116, 135, 143)
"""With these something in the tracer thread went wrong once."""
STRATEGIES = (None, ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE, None)


def look_around(hit: ubpx.Hit) -> None:
    """A handler that looks at what the program may have made impossible."""
    assert all(hit.args[number] >= 0 for number in range(6))
    with contextlib.suppress(ubpx.MemoryFault):
        hit.memory.read(hit.regs.rsp, 8)


def areas_harmed(program: Program, timeout: float = 5.0) -> int | None:
    """How many areas of ours it has harmed when its misdeeds are over; None: it died. One that hangs is killed."""
    deadline = time.monotonic() + timeout
    said = b""
    os.set_blocking(program._stdout, False)
    while b"survived=" not in said:
        assert program.popen is not None
        if program.popen.poll() is not None:
            return None
        if time.monotonic() > deadline:
            program.popen.kill()
            return None
        with contextlib.suppress(BlockingIOError):
            said += os.read(program._stdout, 4096)
        time.sleep(0.002)
    return int(said.partition(b"areas=")[2].split()[0])


def harm_itself(session: ubpx.Session, target_program: StartProgram, seed: int, rounds: int) -> int:
    """Let one hostile program do what its seed says, probed; how many areas of ours it harmed, if it lived."""
    chance = random.Random(seed)
    program = target_program("hostile", seed, rounds)
    assert program.popen is not None
    with session.attach(program.pid) as target:
        client = target.client("one")
        for symbol in SYMBOLS:
            with contextlib.suppress(ubpx.StrategyRefused):
                client.probe(symbol, look_around, strategy=chance.choice(STRATEGIES))
        program.tell("g")
        harmed = areas_harmed(program)
        with contextlib.suppress(ubpx.UbpxError):  # it may not let itself be probed any more
            client.probe("probed_lea", lambda _: None, strategy=ubpx.Strategy.STEP)
        assert client.reason == "", "its handlers fail"
    if harmed is not None:
        with contextlib.suppress(BrokenPipeError):
            areas_harmed(program.tell("g"), timeout=1.0)  # left, it does the same, to nobody
    program.popen.kill()
    program.popen.wait(30)
    return harmed or 0


def check_others(
    target_program: StartProgram, caplog: pytest.LogCaptureFixture, seeds: Iterable[int], rounds: int
) -> None:
    """Each of them under one session with a program that minds its own business."""
    healthy = target_program("echo", 2)
    maps = healthy.maps()
    harmed = calls = 0
    with ubpx.Session() as session, session.attach(healthy.pid) as other:
        leases = [other.client(name).probe("answer", lambda _: None) for name in ("one", "two")]
        for seed in seeds:
            harmed += harm_itself(session, target_program, seed, rounds)
            for value in range(20):
                assert healthy.answer(value) == value + 1
                calls += 1
            assert [lease.hits for lease in leases] == [calls, calls], f"after seed {seed}"
            assert [record for record in caplog.records if record.levelno >= logging.ERROR] == [], f"seed {seed}"
    assert harmed > 0, "none of them found our slots"
    healthy.assert_untouched(maps)


def test_hostile_program_harms_itself_alone(target_program: StartProgram, caplog: pytest.LogCaptureFixture) -> None:
    """Invariant: counts of another target stay exact, no exception in the tracer thread, both can be left."""
    check_others(target_program, caplog, TELLING_SEEDS, 60)


@pytest.mark.parametrize("how", ["s", "f", "u", "o"])
def test_what_is_ours_is_taken_away(target_program: StartProgram, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """Invariant: who breaks, unmaps or maps over what is mapped for us is left all the same, with what it put there."""
    squatter, healthy = target_program("squatter"), target_program("echo", 2)
    maps = healthy.maps()
    with ubpx.Session() as session, session.attach(healthy.pid) as other:
        answers = other.client("one").probe("answer", lambda _: None)
        with session.attach(squatter.pid) as target:
            lease = target.client("one").probe("probed_lea", lambda _: None)
            assert squatter.tell("g").number("calls") == 10
            assert squatter.tell(how).number("harmed") >= 1
            assert healthy.answer(1) == 2
            if how in "uo":  # what stood in a slot is gone, and another one cannot be had without a look
                lease.release()
                target.client("two").probe("probed_lea", lambda _: None)
                assert squatter.tell("g").number("calls") == 20
        assert changed_text(squatter.pid) == []
        assert squatter.tell("g").number("calls") == (30 if how in "uo" else 20)
        assert healthy.answer(2) == 3
        assert answers.hits == 2
    healthy.assert_untouched(maps)
    assert squatter.tell("q").wait() == 0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP])
@pytest.mark.parametrize("signals", [2_000, pytest.param(50_000, marks=pytest.mark.torture)])
def test_flood_of_signals(target_program: StartProgram, strategy: ubpx.Strategy, signals: int) -> None:
    """Invariant: each signal comes, real-time ones in order; each call counts once, in the other target too."""
    flooded, healthy = target_program("flood", "probed_lea", signals), target_program("echo", 2)
    maps = healthy.maps()
    with ubpx.Session() as session, session.attach(flooded.pid) as target, session.attach(healthy.pid) as other:
        lease = target.client("one").probe("probed_lea", lambda _: None, strategy=strategy)
        answers = other.client("one").probe("answer", lambda _: None)
        flooded.tell("g")
        for value in range(100):
            assert healthy.answer(value) == value + 1
        assert flooded.number("queued", timeout=90) == 2 * signals
        assert (flooded.number("calls"), answers.hits) == (lease.hits, 100)
    assert (changed_text(flooded.pid), stopped_or_traced(flooded.pid)) == ([], {})
    healthy.assert_untouched(maps)
    assert flooded.tell("q").wait() == 0


@pytest.mark.torture
@pytest.mark.parametrize("first", range(100, 500, 40))
def test_hostile_programs_of_many_seeds(
    target_program: StartProgram, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """Invariant: the same, for long."""
    check_others(target_program, caplog, range(first, first + 40), 60)
