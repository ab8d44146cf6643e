"""No hit is missed or counted twice, whatever the threads do, by one stop or by two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

BOTH = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP]
FORCED = [*BOTH, ubpx.Strategy.INLINE]
STOPS_PER_HIT = {
    ubpx.Strategy.EMULATE: 1,
    ubpx.Strategy.BOOST: 1,
    ubpx.Strategy.JUMP: 1,
    ubpx.Strategy.STEP: 2,
    ubpx.Strategy.INLINE: 2,
}


def assert_exact(
    target_program: StartProgram,
    symbol: str,
    strategy: ubpx.Strategy | None,
    *,
    threads: int,
    calls: int,
    late: bool = False,
    flags: tuple[str, ...] = (),
) -> None:
    """Two clients at one address each count what the program counts, for the stops that the strategy costs."""
    program = target_program("hot_calls", symbol, threads, calls, *(["late"] if late else []), flags=flags)
    maps = program.maps()
    own = 0

    def count(_: ubpx.Hit) -> None:
        nonlocal own
        own += 1

    with ubpx.attach(program.pid) as target:
        first = target.client("first").probe(symbol, count, strategy=strategy)
        second = target.client("second").probe(symbol, lambda _: None, strategy=strategy)
        assert first.probepoint is not None
        assert second.probepoint is not None
        assert first.probepoint.clients == ("first", "second")
        assert first.probepoint.slot == second.probepoint.slot
        used = first.probepoint.strategy
        assert strategy is None or used == second.probepoint.strategy == strategy
        stops_before = target.stops
        made = program.tell("g").number("calls", timeout=55)
        stops = target.stops - stops_before
        assert made == threads * calls
        assert (first.hits, second.hits, own) == (made, made, made)
        assert (first.errors, second.errors) == (0, 0)
        least = STOPS_PER_HIT[used] * made
        if used == ubpx.Strategy.INLINE:  # the others are stopped at each hit
            assert least <= stops <= (least + made * threads) + 6 * threads + 50
        else:
            assert least <= stops < least + 6 * threads + 50, f"{stops} stops for {made} hits by {used}"
        first.release()
        second.release()
    if not late:  # the program itself maps stacks for late threads
        program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize(("threads", "calls"), [(4, 10_000), (32, 2_500)])
@pytest.mark.contract("lease-8")
def test_two_clients_count_every_call(
    target_program: StartProgram, threads: int, calls: int, strategy: ubpx.Strategy
) -> None:
    """Invariant: of THREADS x CALLS calls without a lock each of two clients sees every one, once."""
    assert_exact(target_program, "probed_lea", strategy, threads=threads, calls=calls)


@pytest.mark.parametrize("symbol", ["probed_lea", "probed_rip", "probed_load"])
def test_two_clients_count_every_call_in_place(target_program: StartProgram, symbol: str) -> None:
    """Invariant: INLINE takes the trap out at each hit, and yet of 4 x 500 calls two clients see every one."""
    assert_exact(target_program, symbol, ubpx.Strategy.INLINE, threads=4, calls=500)


@pytest.mark.parametrize("strategy", [ubpx.Strategy.BOOST, ubpx.Strategy.STEP])
def test_rip_relative_instruction_runs_once_per_hit(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: an instruction that counts itself in the program's memory ran exactly as often as it was hit."""
    assert_exact(target_program, "probed_rip", strategy, threads=4, calls=5_000)


@pytest.mark.parametrize(
    "symbol",
    [
        "probed_push", "probed_nop", "probed_endbr", "probed_lea", "probed_rip", "probed_load", "probed_call",
        "probed_indirect", "probed_jcc", "probed_jmp", "probed_pushf", "probed_redzone",
    ],
)  # fmt: skip
def test_default_strategy_is_exact_and_changes_nothing(target_program: StartProgram, symbol: str) -> None:
    """Invariant: by its best strategy every sort of instruction gives its own result, flags and registers."""
    assert_exact(target_program, symbol, None, threads=4, calls=500)


@pytest.mark.parametrize("strategy", FORCED)
@pytest.mark.parametrize(
    "symbol",
    [
        "probed_push", "probed_nop", "probed_lea", "probed_rip", "probed_load", "probed_call", "probed_indirect",
        "probed_jcc", "probed_jmp", "probed_pushf", "probed_redzone",
    ],
)  # fmt: skip
@pytest.mark.contract("lease-6")
def test_forced_strategy_is_exact_or_refused(
    target_program: StartProgram, symbol: str, strategy: ubpx.Strategy
) -> None:
    """Invariant: a forced strategy either is refused by name or is as exact as the default one."""
    try:
        assert_exact(target_program, symbol, strategy, threads=2, calls=300)
    except ubpx.StrategyRefused as refusal:
        refused = refusal
    else:
        return
    assert refused.strategy == strategy
    assert strategy not in refused.allowed
    prefixed = set() if strategy is ubpx.Strategy.JUMP else {"probed_rip"}  # a branch may skip the prefix
    assert symbol not in {"probed_lea", "probed_load", "probed_redzone"} | prefixed, refused


@pytest.mark.parametrize(
    ("symbol", "strategy"),
    [
        ("probed_push", ubpx.Strategy.EMULATE),
        ("probed_nop", ubpx.Strategy.EMULATE),
        ("probed_endbr", ubpx.Strategy.EMULATE),
        ("probed_call", ubpx.Strategy.EMULATE),
        ("probed_jcc", ubpx.Strategy.EMULATE),
        ("probed_jmp", ubpx.Strategy.EMULATE),
        ("probed_lea", ubpx.Strategy.BOOST),
        ("probed_rip", ubpx.Strategy.BOOST),
        ("probed_load", ubpx.Strategy.BOOST),
        ("probed_indirect", ubpx.Strategy.EMULATE),
        ("probed_popf_itself", ubpx.Strategy.EMULATE),
    ],
)
def test_default_strategy_is_the_best(target_program: StartProgram, symbol: str, strategy: ubpx.Strategy) -> None:
    """Invariant: left alone, ubpx chooses no step where the instruction needs none, and says what it chose."""
    program = target_program("hot_calls", symbol, 1, 1)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        lease = client.probe(symbol, lambda _: None)
        assert lease.probepoint is not None
        assert lease.probepoint.strategy == strategy


@pytest.mark.parametrize("strategy", FORCED)
def test_threads_that_start_later_hit_too(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: a thread created while probes are armed is traced before its first instruction."""
    assert_exact(target_program, "probed_lea", strategy, threads=24, calls=300, late=True)


@pytest.mark.parametrize("symbol", ["probed_rip", "probed_push", "probed_indirect"])
def test_program_at_a_fixed_address(target_program: StartProgram, symbol: str) -> None:
    """Invariant: it makes no difference whether the program is position-independent."""
    assert_exact(target_program, symbol, None, threads=4, calls=500, flags=("-no-pie", "-fno-pie"))


def test_several_probes_at_once(target_program: StartProgram) -> None:
    """Invariant: probes along one path of execution are each hit once per call, next to each other too."""
    program = target_program("hot_calls", "probed_redzone", 4, 1_000)
    symbols = ["call_observed", "redzone_entry", "redzone_entry+0x5", "probed_redzone", "probed_redzone+0x8"]
    with ubpx.attach(program.pid) as target, target.client("many") as client:
        leases = [client.probe(symbol, lambda _: None) for symbol in symbols]
        assert program.tell("g").number("calls") == 4_000
        assert [lease.hits for lease in leases] == [4_000] * len(symbols)
    assert program.tell("q").wait() == 0


def test_probes_come_and_go_under_load(target_program: StartProgram) -> None:
    """Invariant: while one client arms and releases without pause, the one that stays misses nothing."""
    program = target_program("hot_calls", "probed_lea", 8, 2_500)
    with ubpx.attach(program.pid) as target:
        stays = target.client("stays").probe("probed_lea", lambda _: None)
        beside = target.client("beside").probe("call_observed", lambda _: None)
        beside.release()
        program.tell("g")
        with target.client("comes and goes") as client:
            for turn in range(60):
                symbol = ("probed_lea", "call_observed", "probed_lea+0x4")[turn % 3]
                with client.probe(symbol, lambda _: None) as lease:
                    assert lease.state == ubpx.LeaseState.ARMED
        assert program.number("calls", timeout=55) == 20_000
        assert stays.hits == 20_000
    assert program.tell("q").wait() == 0


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(20))
@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("threads", [4, 32])
def test_two_clients_count_every_call_again_and_again(
    target_program: StartProgram, threads: int, strategy: ubpx.Strategy, turn: int
) -> None:
    """Invariant: exactness is no luck: twenty times the same."""
    symbol = "probed_rip" if turn % 2 else "probed_lea"
    assert_exact(target_program, symbol, strategy, threads=threads, calls=10_000)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(20))
def test_two_clients_count_every_call_in_place_again_and_again(target_program: StartProgram, turn: int) -> None:
    """Invariant: exactness in place is no luck either: twenty times the same."""
    symbol = "probed_rip" if turn % 2 else "probed_lea"
    assert_exact(target_program, symbol, ubpx.Strategy.INLINE, threads=4, calls=500)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(20))
@pytest.mark.parametrize("symbol", ["probed_push", "probed_call", "probed_jcc"])
def test_emulation_counts_every_call_again_and_again(target_program: StartProgram, symbol: str, turn: int) -> None:
    """Invariant: exactness by emulation is no luck either: twenty times the same."""
    assert_exact(target_program, symbol, ubpx.Strategy.EMULATE, threads=(4, 32)[turn % 2], calls=2_000)
