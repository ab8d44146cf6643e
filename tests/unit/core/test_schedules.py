"""Whatever comes next, and whatever fails: the simulated schedules hold, and find what is broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ubpx.testing.schedules import quiet, run_all, run_share
from ubpx.testing.simulation.plants import PLANTS, planted
from ubpx.testing.simulation.schedule import run

IN_SHORT = 100_000
"""Schedules: about a minute of one processor."""
AT_ONCE = 10_000
PATIENCE_S = 55
FOUND_WITHIN = 20_000
"""Schedules that the rarest of the planted faults may need."""


def schedules(*options: str, status: int = 0) -> dict[str, Any]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "ubpx.testing.schedules", "--json", *options]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert outcome.returncode == status, outcome.stdout[-4000:] + outcome.stderr
    return json.loads(outcome.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(0, IN_SHORT, AT_ONCE))
def test_no_schedule_breaks_an_invariant(seed: int) -> None:
    """Invariant: traps = leases, hits = arrivals, no slot freed too soon, nothing left, in any order of events."""
    found = schedules("--seed", str(seed), "--count", str(AT_ONCE), "--jobs", "2")
    assert found["failures"] == 0, found["samples"]
    assert found["schedules"] == AT_ONCE
    assert found["hits"] > AT_ONCE / 2
    assert found["happenings"] > 10 * AT_ONCE


@pytest.mark.parametrize("seed", [1_041_511, 1_143_126, 1_308_059, 1_321_003, 1_580_849])
def test_what_a_million_schedules_found(seed: int) -> None:
    """Invariant: kept stopped for a program that has ended; in the memory that an exec has left; appeared while
    those were left who share the memory of one that has ended; a signal put off
    for a step that ended as an arrival; one that had arrived taken for one that waits for its vfork child.
    """
    assert run(seed).failure == ""


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(name: str) -> None:
    """Invariant: what was planted is seen, and it alone: the schedule that shows it holds without it."""
    with planted(name):
        tally = run_all(0, FOUND_WITHIN, stop_at_first=True)
    assert tally.failures > 0
    with quiet():
        assert run(tally.samples[0].seed).failure == ""


def test_a_failure_can_be_had_again() -> None:
    """Invariant: the seed alone shows it again, in another process with other hashes, happening by happening."""
    options = ("--plant", "hit-missed")
    first = schedules("--count", "1000", *options, status=1)["samples"][0]
    again = [
        schedules("--seed", str(first["seed"]), "--count", "1", *options, status=1)["samples"][0] for _ in range(2)
    ]
    assert again[0] == again[1]
    assert again[0]["failure"] == first["failure"]
    assert again[0]["happenings"] == first["happenings"]
    assert len(again[0]["story"]) > 5


def test_shares_run_the_same_schedules_as_one_alone() -> None:
    """Invariant: what happens follows from the seed, whoever runs it, and however often the architecture was asked."""
    alone, shared = run_all(7, 1200), run_all(7, 1200, jobs=2)
    assert (alone.hits, alone.happenings) == (shared.hits, shared.happenings)
    with quiet():
        slow = [run(seed) for seed in range(7, 107)]
    assert sum(each.happenings for each in slow) == run_share(range(7, 107)).happenings


def test_an_unknown_fault_is_refused() -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "ubpx.testing.schedules", "--plant", "nothing"], capture_output=True, check=False
    )
    assert outcome.returncode == 2
    assert b"slot-freed" in outcome.stderr
