"""Stepping in place: one thread at a time, and none slips past meanwhile."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from ubpx.core.events import Verdict
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import ProcessId

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.core.probepoints import Lease

TEXT, PID = 0x40_1000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION, REP = (TEXT + 32 * i for i in range(8))


def ignore(_: object) -> None:
    """Wants nothing."""


def in_place(world: World, *tids: int) -> Lease:
    """A lease of a client ``a`` at LEA, by INLINE, in a process with these other threads."""
    lease = world.attach(*tids).client("a").probe(LEA, ignore, strategy="INLINE")
    assert lease.probepoint is not None
    assert lease.probepoint.strategy is Strategy.INLINE
    return lease


def trap_during_steps(world: World) -> list[bool]:
    """Whether the trap stands, looked at from each step of any thread from now on."""
    seen: list[bool] = []
    step = world.fake.step

    def looking(thread: object, signal: int = 0) -> None:
        seen.append(world.trap_stands(LEA))
        step(thread, signal)

    world.fake.step = looking  # type: ignore[method-assign]
    return seen


def test_others_are_stopped_while_the_trap_is_out(world: World) -> None:
    """Invariant: the trap is out for one thread's one step only, and every other thread is stopped then."""
    lease = in_place(world, 101, 102)
    seen = trap_during_steps(world)
    thread = world.arrive(PID, LEA)
    log = [(action, tid) for action, tid, *_ in world.fake.actions(None, "interrupt", "step", "resume")]
    stepped = log.index(("step", PID))
    for other in (101, 102):
        assert ("interrupt", other) in log[:stepped]
        assert ("resume", other) in log[stepped:]
        assert ("resume", other) not in log[log.index(("interrupt", other)) : stepped]
    assert seen == [False]
    assert world.trap_stands(LEA)
    assert (lease.hits, thread["rip"]) == (1, LEA + 4)


def test_two_arrivals_at_once_take_turns(world: World) -> None:
    """Invariant: a thread that arrives while another steps in place is counted, and steps after it."""
    lease = in_place(world, 101)
    seen = trap_during_steps(world)
    with world.fake.together():
        world.fake.arrive(PID, LEA)
        world.fake.arrive(101, LEA)
    world.fake.idle()
    assert lease.hits == 2
    assert not any(seen)
    steps = [tid for _, tid, *_ in world.fake.actions(None, "step")]
    assert sorted(steps, key=[PID, 101].index) == steps  # one after the other, whatever interrupts one of them
    assert [world.fake.thread(tid)["rip"] for tid in (PID, 101)] == [LEA + 4] * 2


def test_a_held_arrival_steps_when_it_is_released(world: World) -> None:
    """Invariant: HOLD at a probe in place parks the thread before its instruction, which then runs once."""
    client = world.attach(101).client("a")
    lease = client.probe(LEA, lambda _: Verdict.HOLD, strategy="INLINE")
    world.arrive(PID, LEA)
    assert world.fake.actions(None, "step") == []
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert len(world.fake.actions(PID, "step")) == 1
    assert (lease.hits, world.fake.thread(PID)["rip"]) == (1, LEA + 4)
    assert world.fake.thread(PID).condition == "RUNNING"


def test_a_release_that_moves_the_pc_takes_the_step_back(world: World) -> None:
    """Invariant: a thread sent elsewhere at its release runs nothing of the probed instruction."""
    client = world.attach().client("a")
    client.probe(LEA, lambda _: Verdict.HOLD, strategy="INLINE")
    world.arrive(PID, LEA)
    (hold,) = world.holds()
    hold.release({"rip": FUNCTION})
    world.fake.idle()
    assert world.fake.actions(PID, "step") == []
    assert world.fake.thread(PID)["rip"] == FUNCTION


def test_a_signal_waits_for_the_step_and_a_fault_does_not(world: World) -> None:
    """Invariant: a signal sent meanwhile is delivered after the step; one that the instruction raises, at once."""
    in_place(world, 101)
    world.fake.signal(PID, signal.SIGUSR1, in_step=True)
    world.arrive(PID, LEA)
    assert world.fake.thread(PID)["rip"] == LEA + 4
    assert ("resume", PID, signal.SIGUSR1) in [entry[:3] for entry in world.fake.actions(PID, "resume")]
    world.fake.signal(PID, signal.SIGSEGV, code=1, address=0, in_step=True)
    thread = world.arrive(PID, LEA)
    assert thread["rip"] == LEA
    assert ("resume", PID, signal.SIGSEGV) in [entry[:3] for entry in world.fake.actions(PID, "resume")]
    assert world.trap_stands(LEA)


@pytest.mark.parametrize("who", [101, 103])
def test_a_thread_that_dies_in_the_middle_frees_the_others(world: World, who: int) -> None:
    """Invariant: a thread killed during its step, or before it has stopped for another's, keeps nobody waiting."""
    in_place(world, 101, 103)
    world.fake.exit(who, in_step=who == 103)
    world.arrive(103, LEA)
    assert world.trap_stands(LEA)
    assert all(world.fake.thread(tid).condition == "RUNNING" for tid in {PID, 101, 103} - {who})


def test_a_group_stop_waits_for_the_turn(world: World) -> None:
    """Invariant: job control that comes with an arrival in place finds the step done, and the trap back."""
    lease = in_place(world, 101)
    with world.fake.together():
        world.fake.arrive(PID, LEA)
        world.fake.signal(101, signal.SIGSTOP)
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"LISTENING"}
    assert world.trap_stands(LEA)
    assert (lease.hits, world.fake.thread(PID)["rip"]) == (1, LEA + 4)
    world.fake.continue_process(PID)
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"RUNNING"}


def test_an_arrival_in_a_group_stop_steps_when_it_ends(world: World) -> None:
    """Invariant: a thread that job control stops before its step in place takes the step after SIGCONT."""
    lease = in_place(world, 101)
    with world.fake.together():
        world.fake.signal(101, signal.SIGSTOP)
        world.fake.arrive(PID, LEA, late=True)
    world.fake.idle()
    assert world.trap_stands(LEA)
    world.fake.continue_process(PID)
    world.fake.idle()
    assert (lease.hits, world.fake.thread(PID)["rip"]) == (1, LEA + 4)
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"RUNNING"}


def test_a_vforks_parent_is_not_waited_for(world: World) -> None:
    """Invariant: a thread that cannot run before its child has gone does not keep the others from their turns."""
    lease = in_place(world, 101)
    world.fake.fork(101, 200, vfork=True)
    world.fake.idle()
    world.arrive(PID, LEA)
    assert (lease.hits, world.fake.thread(PID)["rip"]) == (1, LEA + 4)
    world.fake.exit(200)


def test_a_child_that_shares_the_memory_gets_past(world: World) -> None:
    """Invariant: a vfork child's arrival in place is stepped over and not counted, its parent being unable to run."""
    lease = in_place(world, 101)
    world.fake.fork(101, 200, vfork=True)
    world.fake.idle()
    world.arrive(200, LEA)
    assert lease.hits == 0
    assert world.fake.thread(200)["rip"] == LEA + 4
    assert world.trap_stands(LEA)
    world.fake.exit(200)


def test_no_slot_to_be_had_means_in_place(world: World) -> None:
    """Invariant: a program that cannot map memory can be probed all the same, and the probepoint says why so."""
    world.attach()
    world.fake._processes[ProcessId(PID)].can_map = False
    lease = world.client("a").probe(LEA, ignore)
    assert lease.probepoint is not None
    assert lease.probepoint.strategy is Strategy.INLINE
    assert "no BOOST" in lease.probepoint.why
    assert "mmap failed" in lease.probepoint.why
    world.arrive(PID, LEA)
    assert lease.hits == 1


def test_a_push_that_faults_without_slots_faults_in_place(world: World) -> None:
    """Invariant: an emulated write that faults is the program's own fault, at its own address, without any slot."""
    client = world.attach(101, slots_allowed=False).client("a")
    lease = client.probe(PUSH, ignore)
    world.fake.signal(PID, signal.SIGSEGV, code=1, address=0x10, in_step=True)
    thread = world.arrive(PID, PUSH, rsp=0x10)
    assert (lease.hits, thread["rip"]) == (1, PUSH)
    assert ("resume", PID, signal.SIGSEGV) in [entry[:3] for entry in world.fake.actions(PID, "resume")]
    assert world.fake.actions(None, "map_area") == []
