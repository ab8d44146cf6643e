"""Many probepoints at once in real programs: exact, harmless, and gone without a trace."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import changed_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

pytestmark = pytest.mark.over_both

THREADS, CALLS = 4, 2_000


def named(group: ubpx.LeaseGroup, symbol: str) -> ubpx.Lease:
    """The lease of the main program's function."""
    (found,) = (lease for lease in group if str(lease.spec).endswith(f":{symbol}"))
    return found


@pytest.mark.parametrize("symbol", ["probed_lea", "probed_push", "probed_nop", "probed_call"])
def test_with_all_functions_probed_every_count_is_exact(target_program: StartProgram, symbol: str) -> None:
    """Invariant: a glob over the whole program misses nothing of what 4 threads call, and changes no result."""
    program = target_program("hot_calls", symbol, THREADS, CALLS, "late")
    own: Counter[int] = Counter()

    def count(hit: ubpx.Hit) -> None:
        own[hit.address] += 1

    with ubpx.attach(program.pid) as target:
        group = target.client("many").probe_many("*", count)
        single = target.client("single").probe(symbol, lambda _: None)
        assert {"main", "caller", "_start", "probed_jmp"} <= {str(lease.spec).rpartition(":")[2] for lease in group}
        refused = {name.rpartition(":")[2]: error for name, error in group.refused}
        assert isinstance(refused["refused_hlt"], ubpx.InsnRefused)
        assert len(target.probepoints()) == len(group)
        made = program.tell("g").number("calls", timeout=55)
        assert named(group, symbol).hits == single.hits == made == THREADS * CALLS
        assert named(group, "caller").hits == THREADS
        group.release()
        assert len(target.probepoints()) == 1
        assert {lease.address: lease.hits for lease in group if lease.hits} == dict(own)
        assert group.hits == sum(own.values())
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("symbol", ["probed_lea", "probed_push"])
def test_once_is_once_for_each_function_under_four_threads(
    target_program: StartProgram, eventually: Callable[..., bool], symbol: str
) -> None:
    """Invariant: each handler runs exactly once, whichever thread is first; then its trap is gone, others' stay."""
    program = target_program("hot_calls", symbol, THREADS, CALLS, "late")
    own: Counter[int] = Counter()

    def count(hit: ubpx.Hit) -> None:
        own[hit.address] += 1

    with ubpx.attach(program.pid) as target:
        steady = target.client("steady").probe("caller", lambda _: None)
        group = target.client("once").probe_many("*", count, once=True)
        made = program.tell("g").number("calls", timeout=55)
        assert made == THREADS * CALLS
        assert (named(group, symbol).hits, named(group, "caller").hits, steady.hits) == (1, 1, THREADS)

        def standing() -> bool:  # the program goes on a little after it has told its count
            armed = {lease.address for lease in group if lease.state == "ARMED"}
            return {probepoint.address for probepoint in target.probepoints()} == armed | {steady.address}

        assert eventually(standing)
        assert len(own) < len(group), "some are never called, and stay"
    assert dict(own) == {lease.address: 1 for lease in group if lease.hits}
    assert {lease.hits for lease in group} == {0, 1}
    assert program.tell("q").wait() == 0


@pytest.mark.contract("lease-9")
@pytest.mark.parametrize("symbol", ["probed_lea", "probed_push", "probed_nop", "probed_call"])
def test_one_probe_once_tells_one_of_four_threads(
    target_program: StartProgram, eventually: Callable[..., bool], symbol: str
) -> None:
    """Invariant: exactly one of the threads that arrive together is told; the trap is gone, the lease RELEASED."""
    program = target_program("hot_calls", symbol, THREADS, CALLS, "late")
    told: list[int] = []
    with ubpx.attach(program.pid) as target:
        client = target.client("once")
        lease = client.probe(symbol, lambda hit: told.append(hit.tid), once=True)
        others = target.client("steady").probe("caller", lambda _: None)
        made = program.tell("g").number("calls", timeout=55)
        assert (made, len(told), lease.hits) == (THREADS * CALLS, 1, 1)
        assert eventually(lambda: lease.state == "RELEASED")
        assert others.hits == THREADS
        assert {each.address for each in target.probepoints()} == {others.address}
        assert list(client.leases) == []
    assert changed_text(program.pid) == []
    assert program.tell("q").wait() == 0


def test_a_function_of_many_that_is_hot_has_a_jump(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: where a thread has woken a dormant probepoint and comes by often it jumps, as at any other."""
    program = target_program("crowd")
    with ubpx.attach(program.pid) as target:
        wanted = ["hot", *(f"work_{number}" for number in range(0, 100_000, 100))]
        group = target.client("many").probe_many(wanted, lambda _: None)
        lease, calls = group[0], 0

        def jumps() -> bool:
            nonlocal calls
            calls += 1_000
            program.tell("hot 1000\n").number("ns")
            return lease.probepoint is not None and lease.probepoint.strategy == ubpx.Strategy.JUMP

        assert eventually(jumps)
        assert (len(group), lease.hits, group.hits) == (len(wanted), calls, calls)
    assert changed_text(program.pid) == []
    assert program.tell("q\n").wait() == 0


def test_a_whole_library_is_probed_while_the_program_runs(target_program: StartProgram) -> None:
    """Invariant: libc with every function probed that can be works on; what cannot is listed with its reason."""
    program = target_program("echo", 2)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("many")
        for _ in range(2):
            with client.probe_many("libc.so.6:*", lambda _: None) as group:
                assert len(group) > 1_000
                assert {type(error).__name__ for _, error in group.refused} <= {"UnboundIfunc", "InsnRefused"}
                assert len({lease.address for lease in group}) == len(group)
                assert [program.answer(value) for value in range(20)] == list(range(1, 21))
                assert group.hits > 0
            assert list(target.probepoints()) == []
        client.probe_many("libc.so.6:mem*", lambda _: None)
        assert program.answer(5) == 6
    program.assert_untouched(maps)


def test_a_list_finds_what_its_specs_find_singly(target_program: StartProgram) -> None:
    """Invariant: specs, versions, IFUNCs and addresses in one list lead where each of them leads alone."""
    program = target_program("echo", 2)
    specs = ["answer", "libc.so.6:write", "libc:read", "libc.so.6:memcpy", "main+4"]
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        singly = []
        for spec in specs:
            with client.probe(spec, lambda _: None) as lease:
                singly.append(lease.address)
        group = client.probe_many([*specs, *(address for address in singly if address)], lambda _: None)
        assert [lease.address for lease in group] == singly
        assert [lease.spec for lease in group] == specs
        assert program.answer(1) == 2
        assert group[0].hits == 1


@pytest.mark.attach_alone("a hundred hot threads, a broker and a client take a minute on two processors")
def test_arming_and_releasing_under_load_harms_nobody(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: traps are written in spans under the feet of a hundred threads, and none of them notices."""
    program = target_program("hundred")
    maps = program.maps()
    for turn in range(5):
        with ubpx.attach(program.pid) as target:
            client = target.client("many")
            client.probe_many("*", lambda _: None, once=True)
            group = client.probe_many("*", lambda _: None)
            assert eventually(lambda group=group: named(group, "hot").hits > 100)
            if turn % 2:
                group.release()
    program.assert_untouched(maps)
    program.tell("q").expect("done")
    assert program.wait() == 0


def test_bad_input_arms_nothing(target_program: StartProgram) -> None:
    """Invariant: each sort of bad input is its own error, and nothing is armed."""
    program = target_program("hot_calls", "probed_lea", 2, 10)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("clumsy")
        with pytest.raises(ubpx.UnknownSymbol) as unknown:
            client.probe_many("probed_lae*", lambda _: None)
        assert any(name.endswith("probed_lea") for name in unknown.value.nearest)
        with pytest.raises(ubpx.UnknownModule):
            client.probe_many("libnothing.so:*", lambda _: None)
        with pytest.raises(ubpx.UnknownModule):
            client.probe_many(["probed_lea", "libnothing.so:f"], lambda _: None)
        with pytest.raises(ubpx.UsageError, match="empty"):
            client.probe_many([], lambda _: None)
        with pytest.raises(ubpx.InsnRefused) as refused:
            client.probe_many(["probed_lea", "probed_nop", "refused_hlt", "main"], lambda _: None)
        assert refused.value.insn is not None
        with target.client("owner").probe("probed_nop", lambda _: None, exclusive=True) as owned:
            with pytest.raises(ubpx.ProbepointBusy) as busy:
                client.probe_many("*", lambda _: None)
            assert busy.value.address == owned.address
        assert list(target.probepoints()) == []
    program.assert_untouched(maps)


def test_a_target_that_was_killed_is_said_to_be_gone(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    program = target_program("echo", 2)
    with ubpx.attach(program.pid) as target:
        client = target.client("late")
        group = client.probe_many("*", lambda _: None)
        os.kill(program.pid, signal.SIGKILL)
        assert target.wait(timeout=20) == -signal.SIGKILL
        assert eventually(lambda: {lease.state for lease in group} == {ubpx.LeaseState.RELEASED})
        group.release()
        with pytest.raises(ubpx.TargetGone):
            client.probe_many("*", lambda _: None)
