"""What the kernel tells in an order that is seldom seen: found by the simulated schedules, kept here by name."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import MemoryFault, PtraceFailed
from ubpx.core import events
from ubpx.core.events import Verdict
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.testing.script import FakeProcess, FakeThread

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.testing import FakeMemory

TEXT, STACK, PID, CHILD = 0x40_1000, 0x7FFE_0000, 100, 200
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))


def ignore(hit: Any) -> None:
    """A handler."""


def fresh_program() -> FakeMemory:
    from tests.unit.core.conftest import program

    return program()


def conceive(world: World, *, shares_memory: bool) -> FakeThread:
    """A child of the process, which has a copy of its memory, or the same, and has not appeared yet."""
    parent = world.fake._processes[ProcessId(PID)]
    memory = parent.memory if shares_memory else parent.memory.copy(without=parent.areas)
    world.fake._processes[ProcessId(CHILD)] = FakeProcess(ProcessId(CHILD), memory, parent.entry)
    return FakeThread(ThreadId(CHILD), ProcessId(CHILD))


def announce(world: World, tid: int) -> None:
    """The thread says that it has made the child, and no more."""
    thread = world.fake.thread(tid)
    world.fake._tell(tid, "fork", lambda: world.fake._event(thread, events.TaskCreated(thread, ThreadId(CHILD), False)))
    world.fake.idle()


def appear(world: World, child: FakeThread, *, shares_memory: bool) -> None:
    """The child is seen now."""

    def job() -> None:
        world.fake._appear(child, ProcessId(PID), shares_memory=shares_memory)

    world.loop.run(job)
    world.fake.idle()


def text_of_child(world: World) -> bytes:
    return world.fake._processes[ProcessId(CHILD)].memory.read(VirtAddr(TEXT), 0x100)


@pytest.mark.parametrize(("shares_memory", "announced"), [(False, False), (False, True), (True, True)])
def test_a_child_that_appears_after_an_exec_is_cleaned_of_the_old_programs_traps(
    world: World, shares_memory: bool, announced: bool
) -> None:
    """Invariant: another thread execs between a birth's two halves: the child meets no trap, and is let go."""
    world.attach(101).client("a").probe(NOP, ignore)
    child = conceive(world, shares_memory=shares_memory)
    if announced:
        announce(world, 101)
    world.fake.exec(PID, fresh_program(), entry=FUNCTION)
    world.fake.idle()
    appear(world, child, shares_memory=shares_memory)
    assert not child.traced
    assert child.condition == "RUNNING"
    assert b"\xcc" not in text_of_child(world)


@pytest.mark.parametrize("shares_memory", [False, True])
def test_a_child_that_appears_after_its_parents_end_is_cleaned(world: World, shares_memory: bool) -> None:
    """Invariant: a parent killed before it could tell of its child leaves it no trap."""
    world.attach(101).client("a").probe(NOP, ignore)
    child = conceive(world, shares_memory=shares_memory)
    world.fake.kill(PID)
    world.fake.idle()
    assert world.process.ended.is_set()
    appear(world, child, shares_memory=shares_memory)
    assert not child.traced
    assert child.condition == "RUNNING"
    assert b"\xcc" not in text_of_child(world)


def test_a_trap_set_where_a_thread_is_to_step_ends_the_step(world: World) -> None:
    """Invariant: a thread that arrives instead of ending its step in place is stepping no more, and can be stopped."""
    world.attach(101, slots_allowed=False)
    client = world.client("a")
    first = client.probe(NOP, lambda _: first.release(), strategy="INLINE")
    again: list[Any] = []
    guard = world.client("guard").probe(LONG_NOP, lambda _: again.append(client.probe(NOP, ignore)))
    with world.fake.together():
        world.fake.arrive(101, NOP)
        world.fake.arrive(PID, LONG_NOP)
        world.fake.arrive(101, NOP, in_step=True)
    world.fake.idle()
    assert guard.hits == 1
    hold = client.hold(101)
    assert world.fake.thread(101).condition == "STOPPED"
    hold.release()


def test_a_thread_steps_in_place_in_the_middle_of_anothers_hit(world: World) -> None:
    """Invariant: a handler lets go who owes a step in place: its own thread stands still, and is not waited for."""
    world.attach(101, slots_allowed=False)
    holder, other = world.client("holder"), world.client("other")
    holder.probe(LEA, lambda _: Verdict.HOLD, strategy="INLINE")
    lease = other.probe(LEA, ignore)
    other.probe(NOP, lambda _: holder.close())
    world.arrive(PID, LEA)
    assert world.fake.thread(PID).condition == "STOPPED"
    world.arrive(101, NOP)
    assert world.holds() == []
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"RUNNING"}
    assert world.fake.thread(PID)["rip"] == LEA + 4
    assert world.trap_stands(LEA)
    assert lease.hits == 1


def test_a_leader_may_exit_twice(world: World) -> None:
    """Invariant: an exec takes the tid of a leader that has exited, and is killed before that exec is told."""
    world.attach(101)
    world.fake.exit(PID, 0)
    world.fake.idle()
    leader = world.fake.thread(PID)

    def job() -> None:
        world.fake._exiting(leader, -signal.SIGKILL)

    world.loop.run(job)
    world.fake.exit(101, -signal.SIGKILL)
    world.fake.idle()
    assert world.process.ended.is_set()
    assert world.process.status == -signal.SIGKILL


def test_a_process_killed_at_its_entry_point_is_an_end_like_any_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: its memory goes before the trap there is taken out: nothing is raised for that."""
    world.attach()
    memory = fresh_program()
    world.fake.exec(PID, memory, entry=FUNCTION)
    world.fake.idle()

    def gone(address: int, data: bytes) -> None:
        raise MemoryFault(address, len(data), "patch")

    monkeypatch.setattr(memory, "patch", gone)  # it goes while the thread arrives
    world.fake.arrive(PID, FUNCTION)
    world.fake.idle()
    assert world.recorder.named("ubpx_process_execed")
    world.fake.kill(PID)
    world.fake.idle()
    assert world.process.ended.is_set()


def test_a_thread_killed_while_it_is_served_has_not_arrived(world: World) -> None:
    """Invariant: what is done after a hit serves the program; that the thread exits meanwhile is no error."""
    client = world.attach(101).client("a")

    def leave(hit: Any) -> None:
        world.coordinator.reception.after_hit.append(die)

    def die() -> None:
        world.fake._exiting(world.fake.thread(101), -signal.SIGKILL)
        thread = world.process.threads[ThreadId(101)]
        world.coordinator.run_until(lambda: thread.state == "EXITING")

    lease = client.probe(LEA, leave)
    world.arrive(101, LEA)
    assert lease.hits == 1
    assert [thread.tid for thread in world.process.living()] == [PID]


def test_a_thread_that_owes_a_signal_may_vfork_as_it_takes_it(world: World) -> None:
    """Invariant: a detach that must stop a thread anew finds the child that it waits for by then."""
    world.attach().client("a").probe(LEA, ignore)
    with world.fake.together():
        world.fake.signal(PID, signal.SIGUSR1, overtakes=True)
        world.fake.fork(PID, CHILD, vfork=True, child_first=True)
        detached = world.loop.post(lambda: world.coordinator.detach(world.process))
        while not world.fake.actions(PID, "interrupt")[1:]:  # one was for the area
            time.sleep(0.001)
    detached.result(10)
    assert [entry[2] for entry in world.fake.actions(PID, "resume") if entry[2]] == [signal.SIGUSR1]
    assert not world.fake.thread(PID).traced
    assert not world.fake._processes[ProcessId(CHILD)].threads[ThreadId(CHILD)].traced


def test_a_failed_request_leaves_no_thread_wanted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: what is refused while a thread is stopped for a moment is told, and the thread runs on."""
    client = world.attach().client("a")

    def refused(thread: Any) -> bool:
        raise PtraceFailed("PTRACE_INTERRUPT", thread.tid, OSError(errno.EIO, os.strerror(errno.EIO)))

    with monkeypatch.context() as broken:
        broken.setattr(world.fake, "interrupt", refused)
        with pytest.raises(PtraceFailed):
            client.probe(LEA, ignore)
    world.arrive(PID, client.probe(NOP, ignore).address or 0)
    assert world.fake.thread(PID).condition == "RUNNING"
    assert not world.trap_stands(LEA)


def test_a_signal_that_waits_for_a_step_is_not_lost_by_a_detach(world: World) -> None:
    """Invariant: it reaches the program though its thread is left in a stop from which none can be delivered."""
    client = world.attach(101).client("a")
    client.hold(101)
    thread = world.fake.thread(101)
    thread["rip"] = LONG_NOP
    world.fake.signal(101, signal.SIGUSR1, in_step=True)
    world.fake.end_step(101)
    thread.steps[1] = thread.steps[1].__class__(
        what="wait", act=lambda: None, since=thread.steps[1].since, stepping=True, late=True
    )
    client.step(101)
    world.fake.idle()
    world.detach()
    assert [entry[2] for entry in world.fake.actions(101, "send_signal")] == [signal.SIGUSR1]
