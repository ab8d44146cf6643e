"""Jumps in place of traps: made when a place is hot, taken out when something is in their way, and exact all along."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

JUMP, BOOST = ubpx.Strategy.JUMP, ubpx.Strategy.BOOST
OFFSETS = (0, 4, 8, 11, 14, 17, 19, 23)
"""Of the instructions of ``chain``: four, four, three, three, three, two, four and one bytes long."""
NEAR_JUMP = 0xE9


def nothing(_hit: ubpx.Hit) -> None:
    return


def strategy_of(lease: ubpx.Lease) -> ubpx.Strategy:
    assert lease.probepoint is not None
    return lease.probepoint.strategy


def raw(program: Program, address: int, size: int) -> bytes:
    with open(f"/proc/{program.pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def test_a_hot_place_has_a_jump_before_long(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: what threads come by often jumps, without being asked for; no hit is lost by that."""
    program = target_program("neighbours", 2)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("chain", nothing)
        assert strategy_of(lease) == BOOST
        program.tell("g")
        assert eventually(lambda: raw(program, lease.address or 0, 1)[0] == NEAR_JUMP)
        assert strategy_of(lease) == JUMP
        assert target.memory.read(lease.address or 0, 4).hex() == "488d4701"
        hits = lease.hits
        assert eventually(lambda: lease.hits > hits + 1000)
        assert program.tell("s").number("calls") == lease.hits
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


def test_jumps_can_be_switched_off(target_program: StartProgram) -> None:
    """Invariant: a session without them leaves every trap where it is, however hot."""
    program = target_program("neighbours", 2)
    with ubpx.Session(jumps=False) as session:
        target = session.attach(program.pid)
        lease = target.client("one").probe("chain", nothing)
        program.tell("g")
        time.sleep(2.5)  # two looks of the patrol
        assert lease.hits > 1000
        assert strategy_of(lease) == BOOST
        assert program.tell("s").number("calls") == lease.hits
    assert program.tell("q").wait() == 0


def test_a_neighbour_takes_the_jump_out(target_program: StartProgram) -> None:
    """Invariant: what a jump borrows its last bytes from can be probed at any time; the jump makes way."""
    program = target_program("neighbours", 2)
    with ubpx.attach(program.pid) as target:
        one, two = target.client("one"), target.client("two")
        first = one.probe("chain", nothing, strategy=JUMP)
        assert first.probepoint is not None
        second = two.probe("chain+4", nothing)
        assert first.probepoint.strategy == BOOST
        assert "a neighbour is probed" in first.probepoint.why
        program.tell("g")
        assert program.tell("s").number("calls") == first.hits == second.hits
    assert program.tell("q").wait() == 0


def test_a_jump_that_cannot_be_is_refused_and_leaves_nothing(target_program: StartProgram) -> None:
    """Invariant: where a neighbour is probed already a forced jump is refused by name, and nothing is armed."""
    program = target_program("neighbours", 1)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        beside = client.probe("chain+4", nothing)
        with pytest.raises(ubpx.StrategyRefused, match=r"JUMP is not possible.*a neighbour is probed; use BOOST"):
            client.probe("chain", nothing, strategy=JUMP)
        assert [each.address for each in target.probepoints()] == [beside.address]
        beside.release()
        assert client.probe("chain", nothing, strategy=JUMP).state == ubpx.LeaseState.ARMED
    program.tell("g").tell("s").number("calls")
    assert program.tell("q").wait() == 0


def test_a_forced_strategy_shares_with_a_jump(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: whoever insists on the strategy that a hot place was armed with gets it, and the jump goes."""
    program = target_program("neighbours", 1)
    with ubpx.attach(program.pid) as target:
        jumping = target.client("one").probe("chain", nothing, strategy=JUMP)
        boosted = target.client("two").probe("chain", nothing, strategy=BOOST)
        assert jumping.probepoint is boosted.probepoint is not None
        assert boosted.probepoint.strategy == BOOST
        program.tell("g")
        assert eventually(lambda: boosted.hits > 0)
        boosted.release()
        assert eventually(lambda: strategy_of(jumping) == JUMP), "who asked for a jump has one again once it is hot"
        assert program.tell("s").number("calls") == jumping.hits
    assert program.tell("q").wait() == 0


def test_writing_behind_a_jump_takes_it_out(target_program: StartProgram) -> None:
    """Invariant: a client may write code that a jump borrows from; the program runs what was written."""
    program = target_program("neighbours", 1)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("chain", nothing, strategy=JUMP)
        behind = (lease.address or 0) + 4
        code = target.memory.read(behind, 4)
        target.memory.patch(behind, bytes.fromhex("4883c002"))  # add $2, %rax
        assert lease.probepoint is not None
        assert lease.probepoint.strategy == BOOST
        program.tell("g")
        assert program.tell("s").number("calls") == lease.hits
        target.memory.patch(behind, code)
    assert program.tell("q").wait() == 0


def test_a_released_jump_leaves_the_programs_own_bytes(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: the last release puts all of the instruction's bytes back, also from within a handler."""
    program = target_program("neighbours", 4)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("chain", nothing, strategy=JUMP)
        own = target.memory.read(lease.address or 0, 8)
        assert raw(program, lease.address or 0, 8) != own
        lease.release()
        assert raw(program, lease.address or 0, 8) == own

        def last(hit: ubpx.Hit) -> None:
            hit.lease.release()

        lease = client.probe("chain", last, strategy=JUMP)
        program.tell("g")
        assert eventually(lambda: lease.hits > 0)
        calls = program.tell("s").number("calls")
        assert raw(program, lease.address or 0, 8) == own
        assert 1 <= lease.hits <= min(calls, 4)
    assert program.tell("q").wait() == 0


def torture(target_program: StartProgram, seed: int, rounds: int) -> None:
    """Neighbours armed and released in every order around a place that stays; every call of it counts."""
    program = target_program("neighbours", 4)
    maps = program.maps()
    chance = random.Random(seed)
    with ubpx.attach(program.pid) as target:
        clients = [target.client(name) for name in ("one", "two")]
        stays = target.client("stays").probe("chain", nothing)
        armed: dict[int, list[ubpx.Lease]] = {offset: [] for offset in OFFSETS}
        jumped = 0
        program.tell("g")
        for _ in range(rounds):
            offset = chance.choice(OFFSETS)
            if armed[offset] and chance.random() < 0.8:
                armed[offset].pop(chance.randrange(len(armed[offset]))).release()
                continue
            strategy = chance.choice((None, JUMP, JUMP, BOOST))
            try:
                lease = chance.choice(clients).probe(f"chain+{offset}", nothing, strategy=strategy)
            except ubpx.StrategyRefused:
                continue
            armed[offset].append(lease)
            jumped += strategy is JUMP
        assert jumped >= rounds // 50
        assert program.tell("s").number("calls") == stays.hits
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_come_and_go_around_jumps(target_program: StartProgram, seed: int) -> None:
    """Invariant: whatever is armed and released around hot places, no call crashes, and every one is counted."""
    torture(target_program, seed, 200)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(100, 120))
def test_neighbours_come_and_go_for_long(target_program: StartProgram, seed: int) -> None:
    """Invariant: the same two thousand times."""
    torture(target_program, seed, 2000)
