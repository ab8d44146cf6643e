"""Merging of what clients want."""

from itertools import permutations, product

import pytest

from ubpx.core.events import Verdict
from ubpx.core.verdicts import RegisterCollision, merge_verdicts, merge_writes

FROM_LEAST_PERMISSIVE = [Verdict.HOLD_PROCESS, Verdict.HOLD, Verdict.STEP, Verdict.RESUME]


@pytest.mark.parametrize("given", list(product(Verdict, repeat=3)))
@pytest.mark.contract("verdict-5")
def test_least_permissive_wins(given: tuple[Verdict, ...]) -> None:
    """Invariant: HOLD_PROCESS before HOLD before STEP before RESUME, in any order of handlers."""
    wanted = next(each for each in FROM_LEAST_PERMISSIVE if each in given)
    assert {merge_verdicts(order) for order in permutations(given)} == {wanted}


@pytest.mark.contract("verdict-1")
def test_a_thread_that_nobody_wants_anything_of_goes_on() -> None:
    assert merge_verdicts([]) is Verdict.RESUME


def test_writes_to_different_registers_unite() -> None:
    merged = merge_writes([("a", {"rax": 1}), ("b", {"rdi": 2, "rsi": 3})])
    assert dict(merged.registers) == {"rax": 1, "rdi": 2, "rsi": 3}
    assert merged.collisions == ()


def test_nothing_written_is_nothing_merged() -> None:
    merged = merge_writes([])
    assert (dict(merged.registers), merged.collisions) == ({}, ())


def test_equal_values_are_no_collision() -> None:
    merged = merge_writes([("a", {"rax": 7}), ("b", {"rax": 7})])
    assert (dict(merged.registers), merged.collisions) == ({"rax": 7}, ())


def test_the_earlier_writer_stands_and_every_overruled_one_is_named() -> None:
    """Invariant: at a collision the first value stands; winner and loser are named for each."""
    merged = merge_writes([("a", {"rax": 1}), ("b", {"rax": 2, "rdi": 5}), ("c", {"rdi": 6, "rax": 3})])
    assert dict(merged.registers) == {"rax": 1, "rdi": 5}
    assert set(merged.collisions) == {
        RegisterCollision("rax", "a", "b"),
        RegisterCollision("rdi", "b", "c"),
        RegisterCollision("rax", "a", "c"),
    }
