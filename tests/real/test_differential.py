"""Instructions out of line do what they do in place: the hardware says so, and finds what is planted."""

import contextlib
import functools
import itertools
import json
import subprocess
import sys
from typing import Any

import attrs
import pytest

from ubpx.testing.differential import Order, run, run_one
from ubpx.testing.oracle.campaign import Campaign
from ubpx.testing.oracle.processor import Watchdog
from ubpx.testing.plants import PLANTS, planted

ARCHITECTURES = ["x86_64", "i386"]
STRATEGIES = {"EMULATE", "BOOST", "STEP", "INLINE"}
RANDOM_AT_LENGTH = {"x86_64": 1_000_000, "i386": 200_000}


def differential(*options: str, status: int = 0, patience: float = 50) -> dict[str, Any]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--json", *options]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    assert outcome.returncode == status, outcome.stdout[-4000:] + outcome.stderr
    return json.loads(outcome.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_strategy_shows_that_the_instruction_ran_elsewhere(arch: str) -> None:
    """Invariant: registers, flags, vectors, x87, memory and faults are the same by every way, on this processor."""
    found = differential("--arch", arch, "--count", "2500", "--seed", "4")
    assert found["differences"] == 0, found["samples"]
    assert found["executed"] >= 2500
    assert found["cases"] >= found["executed"] + found["undefined_here"] + sum(found["refused"].values())
    assert found["forms"] > 1500
    assert {name for name, count in found["by_strategy"].items() if count > 500} == STRATEGIES
    assert found["did_not_end_in_place"] == 0
    assert found["unicorn"]["asked"] > 50


ANY = {(0, 0x50), (0, 0x03)}
PLANTED = [
    (arch, name)
    for name, plant in PLANTS.items()
    for arch in ARCHITECTURES
    if "differential" in plant.tools and plant.only in {None, arch}
]


@functools.cache
def differences_without_a_fault(order: Order) -> int:
    return run(order).differences


@pytest.mark.parametrize(("arch", "name"), PLANTED)
def test_a_planted_fault_is_found(arch: str, name: str) -> None:
    """Invariant: what was planted is seen, and it alone: the same cases differ in nothing without it."""
    order = Order(arch=arch, count=120, seed=1, jobs=1, known=None, aim=PLANTS[name].opcodes or frozenset(ANY))
    with planted(name):
        broken = run(order)
    assert broken.differences > 0
    assert differences_without_a_fault(order) == 0


def test_a_difference_ends_the_command_with_1_and_can_be_had_again() -> None:
    """Invariant: a sample holds all that is needed to see its difference once more."""
    options = ["--seed", "9", "--plant", "jump-back"]
    sample = differential("--count", "40", *options, status=1)["samples"][0]
    assert {"bytes", "registers", "seed", "origin", "strategy", "differences"} <= sample.keys()
    assert sample in differential("--only", sample["case"], *options, status=1)["samples"]
    sound = run_one(Order(arch="x86_64", count=0, seed=9, jobs=1, known=None), sample["case"])
    assert (sound.executed, sound.differences) == (1, 0)


def test_shares_make_the_same_cases_as_one_alone() -> None:
    """Invariant: what is run follows from seed and count, whoever runs it."""
    order = Order(arch="x86_64", count=300, seed=3, jobs=1, known=None, aim=frozenset({(0, 0x03), (0, 0xE8)}))
    alone, shared = run(order), run(Order(arch="x86_64", count=300, seed=3, jobs=2, known=None, aim=order.aim))
    assert alone.executed == 300
    assert shared.executed == 300
    assert len(alone.forms & shared.forms) > 0.9 * len(alone.forms)
    assert run_one(order, "17").forms <= alone.forms


def test_what_never_ends_is_ended_and_the_next_case_runs() -> None:
    """Invariant: a case that hangs in place costs its time, is counted, and harms no other."""
    campaign = Campaign("x86_64", 1, None, frozenset({(0, 0x03)}))
    with contextlib.closing(campaign), Watchdog(campaign.processor, patience=0.2):
        first = campaign.processor.pid
        case = campaign.cases.draw(0)
        assert not campaign.check(attrs.evolve(case, code=b"\xeb\xfe"))
        assert (campaign.tally.unsettled, campaign.tally.executed) == (1, 0)
        campaign.random(20, itertools.count(1))
        assert campaign.processor.pid != first
    assert (campaign.tally.executed, campaign.tally.differences) == (20, 0)


@pytest.mark.parametrize(
    ("opcode", "message"),
    [
        ("nop", "write the map, a colon, and the opcode in hex"),
        ("0:06", "there is no instruction"),
        ("0:f4", "only the kernel may execute it"),
    ],
)
def test_a_wrong_command_line_ends_with_2(opcode: str, message: str) -> None:
    """Invariant: what can never be executed is told, not tried for ever."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--opcode", opcode]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert outcome.returncode == 2, outcome.stderr
    assert message in outcome.stderr


def test_a_planted_fault_is_found_without_more_options() -> None:
    """Invariant: the tool itself draws what shows the fault, be it ever so rare."""
    found = differential("--count", "100", "--plant", "stack-segment", status=1)
    assert found["differences"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("reads-on",), "fault reads-on is found by coverage alone; differential finds slot-displacement, "),
        (("nosuch",), "there is no fault 'nosuch' to plant; there is slot-displacement, "),
        (("link-register", "--arch", "i386"), "fault link-register is one of x86_64 alone"),
    ],
)
def test_a_fault_that_it_cannot_find_is_said(options: tuple[str, ...], message: str) -> None:
    """Invariant: nobody waits for what cannot come."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--plant", *options]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert message in outcome.stderr


ALL_READ = pytest.param("form-99999999", marks=pytest.mark.torture)  # who says so must have seen every form


@pytest.mark.parametrize("name", ["zzz", "form-zz", ALL_READ, "-5", "", "form-", "9" * 5000])
def test_a_name_that_no_case_has_is_said(name: str) -> None:
    """Invariant: one line says what to give; nothing is run."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--only", name]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.endswith(f"Error: no case {name!r}; take the name that a sample gives\n")


@pytest.mark.torture
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_form_and_very_many_random_cases(arch: str) -> None:
    """Invariant: no form of any instruction differs, and no random case does."""
    count = RANDOM_AT_LENGTH[arch]
    found = differential("--arch", arch, "--count", str(count), "--seed", "1", "--jobs", "2", patience=1150)
    assert found["differences"] == 0, found["samples"]
    assert found["executed"] >= count
    assert found["forms"] > 30_000
