"""The processors that this machine is not: unicorn says that no strategy differs, and finds what is planted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ubpx.testing.differential import Order, run, run_one
from ubpx.testing.emulated import PROCESSORS
from ubpx.testing.emulated.campaign import Campaign
from ubpx.testing.emulated.plants import PLANTS
from ubpx.testing.plants import planted

STRATEGIES = {"aarch64": {"EMULATE", "BOOST", "STEP", "INLINE"}, "riscv64": {"EMULATE", "BOOST", "STEP"}}
PLANTED = [
    (arch, name) for name, plant in PLANTS.items() for arch in PROCESSORS if plant.only in {None, arch}
]  # fmt: skip


def differential(*options: str, status: int = 0, patience: float = 50) -> dict[str, Any]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--json", *options]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    assert outcome.returncode == status, outcome.stdout[-4000:] + outcome.stderr
    return json.loads(outcome.stdout)  # type: ignore[no-any-return]


def order(arch: str, *, count: int = 400, seed: int = 1, jobs: int = 1) -> Order:
    return Order(arch=arch, count=count, seed=seed, jobs=jobs, known=None)


@pytest.mark.parametrize("arch", PROCESSORS)
def test_no_strategy_shows_that_the_instruction_ran_elsewhere(arch: str) -> None:
    """Invariant: registers, flags, vectors, memory and faults are the same by every way."""
    found = differential("--arch", arch, "--count", "1500", "--seed", "4")
    assert found["differences"] == 0, found["samples"]
    assert found["executed"] == 1500
    assert found["cases"] == found["executed"] + found["undefined_here"] + sum(found["refused"].values())
    assert found["forms"] > 500
    assert {name for name, count in found["by_strategy"].items() if count > 100} == STRATEGIES[arch]
    assert found["left_to_another_strategy"] < 150
    assert not found["varying"]


@pytest.mark.parametrize("arch", PROCESSORS)
def test_nothing_differs_without_a_fault(arch: str) -> None:
    """Invariant: what the planted faults show is theirs: the same cases differ in nothing without them."""
    assert run(order(arch)).differences == 0


@pytest.mark.parametrize(("arch", "name"), PLANTED)
def test_a_planted_fault_is_found(arch: str, name: str) -> None:
    """Invariant: what was planted is seen."""
    with planted(name, "differential", PLANTS):
        broken = run(order(arch))
    assert broken.differences > 0


@pytest.mark.parametrize("arch", PROCESSORS)
def test_there_are_enough_faults_to_plant(arch: str) -> None:
    """Invariant: each part of the layer has one that breaks it: slots, steps, faults, emulation."""
    names = {name for planted_on, name in PLANTED if planted_on == arch}
    assert {"landing", "emulated-landing", "condition", "unsigned-displacement", "link-first"} <= names


def test_a_difference_ends_the_command_with_1_and_can_be_had_again() -> None:
    """Invariant: a sample holds all that is needed to see its difference once more."""
    options = ["--arch", "aarch64", "--seed", "9", "--plant", "jump-back"]
    sample = differential("--count", "40", *options, status=1)["samples"][0]
    assert {"bytes", "registers", "seed", "origin", "strategy", "differences"} <= sample.keys()
    assert sample in differential("--only", sample["case"], *options, status=1)["samples"]
    sound = run_one(order("aarch64", seed=9), sample["case"])
    assert (sound.executed, sound.differences) == (1, 0)


@pytest.mark.parametrize("arch", PROCESSORS)
def test_shares_make_the_same_cases_as_one_alone(arch: str) -> None:
    """Invariant: what is run follows from seed and count, whoever runs it."""
    alone, shared = run(order(arch, count=200)), run(order(arch, count=200, jobs=2))
    assert (alone.executed, shared.executed) == (200, 200)
    assert len(alone.forms & shared.forms) > 0.8 * len(alone.forms)


@pytest.mark.parametrize("arch", PROCESSORS)
def test_a_form_can_be_had_again(arch: str) -> None:
    """Invariant: the name of a systematic case leads to it; one that no case has is said."""
    campaign = Campaign(arch, 1)
    number, form = next(
        (number, form)
        for number, form in enumerate(campaign.processor.forms())
        if campaign.check(campaign.of_form(4 * number, form)) and campaign.tally.executed
    )
    again = run_one(order(arch), f"form-{4 * number}")
    assert (again.executed, again.differences, again.forms) == (1, 0, {form})
    with_no_form = ["--arch", arch, "--only", "form-999999999"]
    command = [sys.executable, "-m", "ubpx.testing.differential", *with_no_form]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert outcome.returncode == 2
    assert "no case 'form-999999999'; take the name that a sample gives" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opcode", "0:9d"], "--opcode chooses opcodes of x86; aarch64 has none such"),
        (["--plant", "popped-trap-flag"], "there is no fault 'popped-trap-flag' to plant; there is jump-back, "),
    ],
)
def test_a_wrong_command_line_ends_with_2(options: list[str], message: str) -> None:
    """Invariant: what is x86's alone is said to be."""
    command = [sys.executable, "-m", "ubpx.testing.differential", "--arch", "aarch64", *options]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert message in outcome.stderr


@pytest.mark.torture
@pytest.mark.parametrize("arch", PROCESSORS)
def test_every_form_and_very_many_random_cases(arch: str) -> None:
    """Invariant: no form of any instruction that unicorn executes differs, and no random case does."""
    found = differential("--arch", arch, "--count", "200000", "--seed", "1", "--jobs", "2", patience=1150)
    assert found["differences"] == 0, found["samples"]
    assert found["executed"] >= 200_000
    assert found["forms"] > 20_000
