"""Signals and faults reach the program as if nobody were there."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

pytestmark = pytest.mark.over_both

EVERY = [
    ("probed_lea", ubpx.Strategy.BOOST),
    ("probed_lea", ubpx.Strategy.STEP),
    ("probed_push", ubpx.Strategy.EMULATE),
    ("probed_push", ubpx.Strategy.BOOST),
    ("probed_indirect", ubpx.Strategy.STEP),
    ("probed_lea", ubpx.Strategy.INLINE),
]


@pytest.mark.parametrize(("symbol", "strategy"), EVERY)
def test_signals_under_load(target_program: StartProgram, symbol: str, strategy: ubpx.Strategy) -> None:
    """Invariant: no signal is lost, doubled, overtaken or shown at an address of ours, and no hit counts twice."""
    program = target_program("signals", 4, 1_500 if strategy == ubpx.Strategy.INLINE else 5_000, symbol)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(symbol, lambda _: None, strategy=strategy)
        assert lease.probepoint is not None
        assert lease.probepoint.strategy == strategy
        assert program.tell("g").number("signals", timeout=50) > 20
        assert program.number("timers") > 5
        assert program.number("calls") == lease.hits
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", ["load", "store", "divide"])
@pytest.mark.parametrize(
    "strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
)
def test_fault_is_the_programs_own(target_program: StartProgram, sort: str, strategy: ubpx.Strategy) -> None:
    """Invariant: a probed instruction that faults shows its own address and registers, and may run again."""
    program = target_program("faults", sort, 200)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(f"probed_fault_{sort}", lambda _: None, strategy=strategy)
        assert program.tell("g").number("arrivals") == lease.hits == 400
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("symbol", ["probed_guard_push", "probed_guard_call"])
@pytest.mark.parametrize("strategy", [None, *ubpx.Strategy])
def test_push_on_a_guard_page_faults(target_program: StartProgram, symbol: str, strategy: ubpx.Strategy | None) -> None:
    """Invariant: an emulated or copied push with a bad stack faults at its own address and writes nothing."""
    program = target_program("guard_push", 60)
    with ubpx.attach(program.pid) as target:
        try:
            lease = target.client("one").probe(symbol, lambda _: None, strategy=strategy)
        except ubpx.StrategyRefused:
            assert strategy is not None
            assert not (symbol == "probed_guard_push" and strategy in {"EMULATE", "BOOST", "STEP"})
            return
        assert program.tell("g").number("pushes") == lease.hits == 60
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.STEP])
@pytest.mark.parametrize("symbol", ["probed_rep_movs", "probed_rep_stos", "probed_rep_cmps"])
def test_repeated_string_instruction_is_one_hit(
    target_program: StartProgram, symbol: str, strategy: ubpx.Strategy | None
) -> None:
    """Invariant: one arrival at a rep instruction is one hit, and all its rounds are done."""
    program = target_program("rep_movs", 300)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(symbol, lambda _: None, strategy=strategy)
        assert program.tell("g").number("calls") == lease.hits == 300
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("callers", [2, 0])
@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP])
def test_programs_own_traps(target_program: StartProgram, strategy: ubpx.Strategy | None, callers: int) -> None:
    """Invariant: the program's own int3, raise(SIGTRAP) and trap flag reach its own handler, ours do not; what it
    steps over itself is one step and one hit, for a thread alone, too.
    """
    program = target_program("own_trap", 300, callers)
    with ubpx.attach(program.pid) as target:
        client, seen = target.client("one"), set[int]()
        beside = client.probe("probed_beside", lambda _: None, strategy=strategy)
        flagged = client.probe("probed_flagged", lambda hit: seen.add(hit.regs.rip), strategy=strategy)
        assert program.tell("g").number("traps") == 6 * 300
        assert program.number("calls") == beside.hits
        assert (flagged.hits, seen) == (300, {flagged.address})
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", ["blocked", "alone", "ignored"])
@pytest.mark.parametrize("strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP])
def test_blocked_and_ignored_sigtrap_stay_so(target_program: StartProgram, sort: str, strategy: ubpx.Strategy) -> None:
    """Invariant: a thread that blocks or ignores SIGTRAP does so afterwards, and its handler is still its own.

    The kernel unblocks SIGTRAP and drops its action at any int3 in such a thread.
    """
    program = target_program("block_sigtrap", sort, 3, 500)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_lea", lambda _: None, strategy=strategy)
        assert program.tell("g").number("calls") == lease.hits == 1_500
    assert program.tell("q").wait() == 0


def test_handler_runs_in_the_program(target_program: StartProgram) -> None:
    """Invariant: a signal without a handler of the program's still kills it, probed or not."""
    for number in (signal.SIGUSR1, signal.SIGSEGV, signal.SIGTRAP):
        program = target_program("echo", 2)
        with ubpx.attach(program.pid) as target:
            target.client("one").probe("busy", lambda _: None)
            os.kill(program.pid, number)
            assert target.wait(timeout=10) == -number
        assert program.wait() == -number


def quiet(lease: ubpx.Lease) -> bool:
    """Whether nobody arrives for a while in which a running program arrives many times."""
    hits = lease.hits
    time.sleep(0.05)
    return lease.hits == hits


def test_stopped_program_stays_stopped(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: SIGSTOP and SIGCONT work on a traced program; a stop outlives the detach and SIGCONT ends it."""
    program = target_program("echo", 2)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("busy", lambda _: None)
        for _ in range(5):
            hits = lease.hits
            assert eventually(lambda hits=hits: lease.hits > hits)
            os.kill(program.pid, signal.SIGSTOP)
            assert eventually(program.is_stopped)
            assert eventually(lambda: quiet(lease))  # who was in the trap already still counts
            assert quiet(lease)
            os.kill(program.pid, signal.SIGCONT)
        os.kill(program.pid, signal.SIGSTOP)
        assert eventually(program.is_stopped)
    assert eventually(program.is_stopped)
    time.sleep(0.05)
    assert program.is_stopped()
    os.kill(program.pid, signal.SIGCONT)
    assert program.answer(1) == 2
    program.assert_untouched(maps)


def test_stop_reaches_the_parent_after_the_detach(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: job control works on a program that was traced and let go."""
    program = target_program("echo", 2)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("busy", lambda _: None)
        assert eventually(lambda: lease.hits > 0)
    os.kill(program.pid, signal.SIGSTOP)
    _, status = os.waitpid(program.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(program.pid, signal.SIGCONT)
    assert program.answer(1) == 2


def test_attach_to_a_stopped_program(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: a program that was stopped before the attach stays so until SIGCONT, and can be probed meanwhile."""
    program = target_program("echo", 2)
    os.kill(program.pid, signal.SIGSTOP)
    assert eventually(program.is_stopped)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("busy", lambda _: None)
        time.sleep(0.05)
        assert lease.hits == 0
        os.kill(program.pid, signal.SIGCONT)
        assert eventually(lambda: lease.hits > 0)
        assert program.answer(1) == 2


@pytest.mark.parametrize(
    "strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
)
def test_a_fault_that_is_answered_by_siglongjmp(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: a handler that jumps out of a faulting copy leaves no step behind: each arrival counts once."""
    program = target_program("jumps", "fault", 200)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_jump_load", lambda _: None, strategy=strategy)
        calls, jumps = program.tell("g").number("calls"), program.number("jumps")
        assert (calls, jumps, lease.hits) == (200, 200, 400)
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE])
def test_a_timer_whose_handler_jumps(target_program: StartProgram, strategy: ubpx.Strategy | None) -> None:
    """Invariant: a siglongjmp out of a handler amid steps and slots loses no hit and brings none that was not."""
    program = target_program("jumps", "timer", 300)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        leases = [client.probe(f"probed_jump_{each}", lambda _: None, strategy=strategy) for each in ("lea", "push")]
        calls, jumps = program.tell("g").number("calls", timeout=50), program.number("jumps")
        assert jumps == 300
        for lease in leases:  # a call that was jumped out of may have arrived
            assert calls <= lease.hits <= calls + jumps
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0
