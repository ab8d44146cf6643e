"""Following: children that are traced from before their first instruction, and programs that are left at an exec."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

PLACE = "probed_family"
EVERY = [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
FORKED = {"tree": 3, "threads": 8, "daemon": 3}
"""Families in which nobody execs, and how large they are made."""
EXECED = {"exec": 4, "hop": 4, "chain": 6, "spawn": 4, "vfork": 4}
"""Families of which members exec."""


def follow(
    program: Program, whom: Any, *, strategy: ubpx.Strategy | None = None
) -> tuple[int, int, Counter[int], ubpx.Lease]:
    """What the family counted itself: calls and members; the hits by pid; and the lease."""
    by_pid: Counter[int] = Counter()
    with ubpx.attach(program.pid, follow=whom) as target:
        lease = target.client("one").probe(PLACE, lambda hit: by_pid.update([hit.pid]), strategy=strategy)
        calls, members = program.tell("g").number("calls", timeout=60), program.number("processes")
    assert program.tell("q").wait() == 0
    return calls, members, by_pid, lease


@pytest.mark.parametrize("whom", ["fork", "all"])
@pytest.mark.parametrize("sort", FORKED)
@pytest.mark.contract("follow-2", "follow-6", "follow-7", "follow-9")
def test_a_family_is_followed_from_its_first_instruction(target_program: StartProgram, sort: str, whom: str) -> None:
    """Invariant: no call of any member is missed, in fork trees, forks of many threads, daemons."""
    program = target_program("followed", sort, FORKED[sort], 5)
    calls, members, by_pid, lease = follow(program, whom)
    assert (by_pid.total(), len(by_pid)) == (calls, members)
    assert lease.family_hits == calls
    assert lease.hits == by_pid[program.pid]
    assert lease.errors == lease.family_errors == 0


@pytest.mark.parametrize("sort", EXECED)
@pytest.mark.contract("follow-4", "follow-8")
def test_a_family_is_followed_over_its_execs(target_program: StartProgram, sort: str) -> None:
    """Invariant: with "all" every call counts in children that exec, again and again, that are spawned or vforked.

    Calls of a vfork child before its exec are its parent's memory's, and count for nobody.
    """
    calls, members, by_pid, lease = follow(target_program("followed", sort, EXECED[sort], 5), "all")
    assert lease.family_hits == by_pid.total() == calls
    assert len(by_pid) == members


@pytest.mark.parametrize("strategy", EVERY)
def test_followed_children_by_every_strategy(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: a forced strategy is the child's too; a jump of its own it gets once it is hot itself."""
    used = set()
    program = target_program("followed", "tree", 2, 3)
    with ubpx.attach(program.pid, follow="fork") as target:
        see = lambda hit: used.add(hit.lease.probepoint.strategy)  # noqa: E731
        lease = target.client("one").probe(PLACE, see, strategy=strategy)
        assert program.tell("g").number("calls") == lease.family_hits
        program.number("processes")
    assert used == ({strategy, ubpx.Strategy.BOOST} if strategy is ubpx.Strategy.JUMP else {strategy})
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", ["exec", "spawn", "vfork", "chain"])
@pytest.mark.contract("follow-3")
def test_children_are_left_at_their_exec(target_program: StartProgram, sort: str) -> None:
    """Invariant: with "fork" a child counts until it execs and not from then on, and is harmed neither way."""
    program = target_program("followed", sort, 4, 5)
    calls, _, by_pid, lease = follow(program, "fork")
    before_exec = {"exec": 5 + 4 * 5, "spawn": 5, "vfork": 5, "chain": 5 + 3 * 5}[sort]
    assert lease.family_hits == by_pid.total() == before_exec < calls


@pytest.mark.parametrize(
    ("sort", "whom"),
    [("threads", "none"), ("exec", "none"), *((sort, "exec") for sort in ("threads", "daemon", "chain", "killed"))],
)
@pytest.mark.contract("follow-1", "follow-5")
def test_children_that_are_not_followed_are_harmless(target_program: StartProgram, sort: str, whom: str) -> None:
    """Invariant: what is not followed runs as if nobody were there: only the process's own calls count."""
    program = target_program("followed", sort, 8 if sort == "threads" else 4, 5)
    calls, _, by_pid, lease = follow(program, whom)
    assert set(by_pid) == {program.pid}
    assert lease.family_hits == lease.hits == by_pid.total() <= calls


@pytest.mark.parametrize("whom", ["all", "fork"])
def test_children_that_are_killed_at_once(target_program: StartProgram, whom: Any) -> None:
    """Invariant: a child that dies while it is being given its probes takes nothing along with it."""
    program = target_program("followed", "killed", 30, 5)
    with ubpx.attach(program.pid, follow=whom) as target:
        lease = target.client("one").probe(PLACE, lambda _: None)
        assert program.tell("g").number("calls", timeout=60) == lease.hits == 5
        program.number("processes")
        assert target.family == ()
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("whom", ["none", "fork"])
@pytest.mark.contract("follow-1", "follow-11")
def test_a_program_is_left_at_its_exec(target_program: StartProgram, whom: Any) -> None:
    """Invariant: without "exec" the process is left before its new program runs: that counts nothing, and lives."""
    told = []

    class Hooks:
        @hookimpl
        def ubpx_process_execed(self, path: str) -> None:
            told.append(("execed", path))

        @hookimpl
        def ubpx_process_detached(self) -> None:
            told.append(("detached", ""))

    program = target_program("self_exec", "other", 40)
    with ubpx.attach(program.pid, follow=whom) as target:
        lease = target.client("one", hooks=Hooks()).probe("probed_twice", lambda _: None)
        assert program.tell("g").number("calls") == 40
        program.tell("g").expect("again")
        with pytest.raises(ubpx.LeftAtExec) as left:
            target.wait()
        assert (left.value.pid, left.value.follow) == (program.pid, whom)
        assert program.tell("g").number("calls") == 40
        assert (lease.state, lease.hits) == (ubpx.LeaseState.RELEASED, 40)
        program.assert_untouched(program.maps())
        with pytest.raises(ubpx.UsageError, match="left there"):
            target.client("two")
    assert [kind for kind, _ in told] == ["execed", "detached"]
    assert told[0][1].endswith("self_exec")
    assert program.tell("q").wait() == 5


def test_a_started_program_is_not_left_at_its_first_exec(target_program: StartProgram) -> None:
    """Invariant: the exec by which ``spawn`` starts it is none of the program's."""
    target, program = target_program.spawned(ubpx.spawn, "self_exec", "other", 10, follow="none")
    with target:
        lease = target.client("one").probe("probed_twice", lambda _: None)
        target.resume()
        program.expect("ready")
        assert program.tell("g").number("calls") == lease.hits == 10
        program.tell("g").expect("again")
        with pytest.raises(ubpx.LeftAtExec):
            target.wait()
    assert target.popen is not None
    program.tell("g").number("calls")
    program.tell("q")
    assert target.popen.wait(10) == 5


def test_detach_amid_forks(target_program: StartProgram) -> None:
    """Invariant: whenever the family is left, all members live on to a clean end, none stopped or traced."""
    program = target_program("followed", "threads", 8, 50)
    program.tell("g")
    for _ in range(6):
        with ubpx.attach(program.pid, follow="all") as target:
            target.client("one").probe(PLACE, lambda _: None)
    calls = program.number("calls", timeout=60)
    assert calls == 50 * (1 + 8 * 10 * 2)
    program.number("processes")
    assert program.tell("q").wait() == 0


def test_a_failing_handler_is_quarantined_where_it_fails(target_program: StartProgram) -> None:
    """Invariant: exceptions count by target: a child's client is quarantined alone; the others miss nothing."""

    def fail(_: ubpx.Hit) -> None:
        raise ValueError

    program = target_program("followed", "threads", 1, 10)
    with ubpx.attach(program.pid, follow="fork") as target:
        good = target.client("good").probe(PLACE, lambda _: None)
        bad = target.client("bad").probe(PLACE, lambda hit: fail(hit) if hit.pid != program.pid else None)
        calls = program.tell("g").number("calls")
        program.number("processes")
        assert good.family_hits == calls
        assert bad.state == "ARMED"
        assert (bad.family_errors, bad.errors) == (3 * 10, 0)
    assert program.tell("q").wait() == 0


def test_once_is_once_in_each_process(target_program: StartProgram) -> None:
    """Invariant: a lease with ``once`` ends at the first hit of the process whose it is, not of the family's."""
    hits: Counter[int] = Counter()
    program = target_program("followed", "daemon", 3, 5)
    with ubpx.attach(program.pid, follow="fork") as target:
        client = target.client("one")
        idle = client.probe_many(["unprobed_by_parent"], lambda hit: hits.update([hit.pid]), once=True)
        calls = client.probe(PLACE, lambda _: None)
        assert program.tell("g").number("calls") == calls.family_hits
        program.number("processes")
        assert idle[0].state == "ARMED"
    assert sorted(hits.values()) == [1] * 3  # between parent and daemon; the daemons have none, for those had ended
    assert idle.family_hits == 3
    assert program.tell("q").wait() == 0


@pytest.mark.contract("follow-1")
def test_what_is_no_policy_is_refused() -> None:
    """Invariant: nothing is attached to for a word that means nothing."""
    with pytest.raises(ubpx.UsageError, match="'none', 'fork', 'exec', 'all'"):
        ubpx.attach(os.getppid(), follow="forks")  # type: ignore[arg-type]
