"""Children by the ten thousand while the probes that they inherit or share are hot."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import pytest

import ubpx
from tests.real.conftest import eventually

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

THREADS: Final = 8
SORTS: Final = 3
STRATEGIES: Final = {
    "brood_boost": ubpx.Strategy.BOOST,
    "brood_step": ubpx.Strategy.STEP,
    "brood_emulate": ubpx.Strategy.EMULATE,
}


def raise_broods(target_program: StartProgram, each: int, seconds: int) -> None:
    """So many children of each sort: none dies of an inherited trap, and no hit of the parent's is missed.

    The program checks each child's status itself, and counts its own calls.
    """
    program = target_program("broods", THREADS, each, seconds)
    maps = program.maps()
    began = time.monotonic()
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        leases = [client.probe(symbol, lambda _: None, strategy=how) for symbol, how in STRATEGIES.items()]
        assert program.tell("g").number("children", timeout=seconds) == SORTS * each
        calls = program.number("calls")
        assert calls == 8 * SORTS * each
        assert [lease.hits for lease in leases] == [calls] * len(leases)
        assert eventually(lambda: target.threads() == (program.pid,)), "the last threads may still be on their way out"
    sys.stdout.write(f"{SORTS * each} children, {len(leases) * calls} hits in {time.monotonic() - began:.1f} s\n")
    assert {line for line in program.maps() - maps if "r-x" in line} == set()
    assert program.tell("q").wait() == 0


def test_broods(target_program: StartProgram) -> None:
    """Invariant: forked, vforked and spawned children among hot probes live; the parent's counts are exact."""
    raise_broods(target_program, 120, 55)


@pytest.mark.torture
def test_ten_thousand_children_of_each_sort(target_program: StartProgram) -> None:
    """Invariant: as above, thirty thousand times."""
    raise_broods(target_program, 10_000, 1_100)
