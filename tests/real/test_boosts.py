"""Slots in place of emulation: had where a hot place cannot jump, given up for who insists, and exact all along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

BOOST, EMULATE = ubpx.Strategy.BOOST, ubpx.Strategy.EMULATE
CHANGES = 4


pytestmark = pytest.mark.parametrize("threads", [1, 4])


@pytest.fixture
def pushing(target_program: StartProgram, threads: int) -> Program:
    """A program whose threads call a function that begins with ``push %rbx``."""
    return target_program("neighbours", threads, "pushing")


def shared(lease: ubpx.Lease) -> Any:
    assert lease.probepoint is not None
    return lease.probepoint


def strategy_of(lease: ubpx.Lease) -> ubpx.Strategy:
    strategy: ubpx.Strategy = shared(lease).strategy
    return strategy


def test_a_hot_push_has_a_slot_before_long(pushing: Program, threads: int, eventually: Callable[..., bool]) -> None:
    """Invariant: a one-byte instruction, which cannot jump, is emulated until it is hot; no hit is lost by that."""
    maps, stacks = pushing.maps(), set[int]()

    def handler(hit: Any) -> None:
        assert hit.regs.rip == hit.address == lease.address
        stacks.add(hit.regs.rsp)

    with ubpx.attach(pushing.pid) as target:
        lease = target.client("one").probe("pushing", handler)
        assert (strategy_of(lease), shared(lease).slot) == (EMULATE, None)
        pushing.tell("g")
        assert eventually(lambda: strategy_of(lease) == BOOST)
        assert "often" in shared(lease).why
        hits = lease.hits
        assert eventually(lambda: lease.hits > hits + 1000)
        assert pushing.tell("s").number("calls") == lease.hits
        assert lease.errors == 0
    assert len(stacks) == threads
    pushing.assert_untouched(maps)
    assert pushing.tell("q").wait() == 0


def test_who_insists_on_emulation_gets_it(pushing: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: threads in the slot and others go on unharmed, again and again; a slot that was asked for stays."""
    with ubpx.attach(pushing.pid) as target:
        lease = target.client("one").probe("pushing", lambda _: None)
        pushing.tell("g")
        two = target.client("two")
        for _ in range(CHANGES):
            assert eventually(lambda: strategy_of(lease) == BOOST)
            insists = two.probe("pushing", lambda _: None, strategy=EMULATE)
            assert insists.probepoint is lease.probepoint
            assert strategy_of(lease) == EMULATE
            assert eventually(lambda: insists.hits > 600)  # noqa: B023 - called at once
            insists.release()
        assert eventually(lambda: strategy_of(lease) == BOOST)
        target.client("three").probe("pushing", lambda _: None, strategy=BOOST)
        with pytest.raises(ubpx.StrategyRefused, match="BOOST"):
            two.probe("pushing", lambda _: None, strategy=EMULATE)
        assert pushing.tell("s").number("calls") == lease.hits
    assert pushing.tell("q").wait() == 0
