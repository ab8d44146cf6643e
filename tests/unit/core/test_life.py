"""Threads and processes come and go under the core's hands: clone, fork, vfork, exec, exit, detach."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import TargetGone
from ubpx.core import departure
from ubpx.core.clients import Client
from ubpx.core.probepoints import LeaseState
from ubpx.core.values import ProcessId, VirtAddr
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.testing import FakeMemory

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))
CHILD = 200


def ignore(hit: Any) -> None:
    """A handler."""


def memory_of(world: World, pid: int) -> FakeMemory:
    return world.fake._processes[ProcessId(pid)].memory


@pytest.mark.parametrize("child_first", [False, True])
def test_a_new_thread_is_traced_from_its_first_instruction(world: World, child_first: bool) -> None:
    """Invariant: whichever of the two is seen first, maker and thread go on and the thread's hits count."""
    lease = world.attach().client("a").probe(NOP, ignore)
    world.fake.clone(PID, 101, child_first=child_first)
    world.fake.idle()
    world.arrive(101, NOP)
    world.arrive(PID, NOP)
    assert lease.hits == 2
    assert world.recorder.named("ubpx_thread_started") == [(101,)]
    assert world.process.announced == set()


def test_a_thread_exits(world: World) -> None:
    world.attach(101)
    world.fake.exit(101, 7)
    world.fake.idle()
    assert world.recorder.named("ubpx_thread_exited") == [(101, 7)]
    assert [thread.tid for thread in world.process.living()] == [PID]
    assert not world.process.ended.is_set()


@pytest.mark.parametrize("leader_first", [False, True])
def test_a_process_ends_with_its_last_thread(world: World, leader_first: bool) -> None:
    """Invariant: a leader that exits before the others does not end the process; its own status is the process's."""
    lease = world.attach(101).client("a").probe(NOP, ignore)
    first, last = (PID, 101) if leader_first else (101, PID)
    world.fake.exit(first, 3)
    world.fake.idle()
    assert not world.process.ended.is_set()
    world.arrive(last, NOP)
    world.fake.exit(last, 3)
    world.fake.idle()
    assert world.process.ended.is_set()
    assert world.process.status == 3
    assert world.recorder.named("ubpx_process_exited") == [(3,)]
    assert (lease.hits, lease.state) == (1, LeaseState.RELEASED)
    with pytest.raises(TargetGone, match="exited with status 3"):
        world.client("b")


@pytest.mark.contract("child-1")
def test_our_own_child_is_left_to_its_parent(world: World) -> None:
    """Invariant: the embedding program's own child is detached at its exit event, its status unread."""
    world.attach(own_child=True)
    world.fake.exit(PID, 5)
    world.fake.idle()
    assert world.process.status == 5
    assert world.fake.actions(PID, "detach") == [("detach", PID, 0)]


@pytest.mark.parametrize("strategy", ["STEP", "BOOST"])
def test_killed_in_the_middle(world: World, strategy: str) -> None:
    """Invariant: SIGKILL between any two requests ends in the process's end, and in nothing else."""
    lease = world.attach(101).client("a").probe(LEA, lambda _: world.fake.kill(PID), strategy=strategy)
    world.arrive(PID, LEA)
    assert world.process.ended.is_set()
    assert (world.process.status, lease.hits) == (-signal.SIGKILL, 1)


def test_killed_while_a_slot_is_wanted(world: World) -> None:
    """Invariant: a probe that waits for a thread to stop ends with TargetGone when there is none left."""
    world.attach()
    client = world.client("a")
    with world.fake.together():
        waiter = world.loop.post(lambda: world.desk.probe(client, LEA, ignore, options()))
        world.fake.kill(PID)
    with pytest.raises(TargetGone):
        waiter.result(10)


def options() -> dict[str, Any]:
    return {"strategy": None, "exclusive": False, "priority": 0, "assume_boundary": False, "defer": True}


@pytest.mark.parametrize("child_first", [False, True])
@pytest.mark.contract("life-19")
def test_a_forked_child_is_cleaned_and_let_go(world: World, child_first: bool) -> None:
    """Invariant: before its first instruction a child has no trap of ours, of those removed meanwhile neither."""
    client = world.attach().client("a")
    client.probe(LEA, ignore)
    gone = client.probe(PUSH, ignore)
    clean = {address: bytes.fromhex(code) for address, code in ((LEA, "48"), (PUSH, "55"))}
    with world.fake.together():
        world.fake.fork(PID, CHILD, child_first=child_first)
        waiter = world.loop.post(gone.release)
    waiter.result(10)
    world.fake.idle()
    child = memory_of(world, CHILD)
    assert {address: child.read(VirtAddr(address), 1) for address in clean} == clean
    assert world.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]
    assert world.recorder.named("ubpx_process_forked") == [(CHILD,)]
    assert world.trap_stands(LEA)


def test_a_trap_that_was_removed_after_the_fork_is_cleaned_too(world: World) -> None:
    """Invariant: the child's memory is that of the fork's moment; traps removed since then are still in it."""
    lease = world.attach().client("a").probe(PUSH, ignore)
    removed: list[bool] = []
    original = world.coordinator.handle

    def release_first(event: Any) -> None:
        if not removed:
            removed.append(True)
            lease.release()
        original(event)

    world.coordinator.handle = release_first  # type: ignore[method-assign]
    world.fake.fork(PID, CHILD)
    world.fake.idle()
    assert not world.trap_stands(PUSH)
    assert memory_of(world, CHILD).read(VirtAddr(PUSH), 1) == b"\x55"


@pytest.mark.contract("life-20")
def test_a_child_that_shares_memory_is_stepped_over_and_not_counted(world: World) -> None:
    """Invariant: a vfork child passes traps silently, until it execs; then it is let go and its parent runs."""
    lease = world.attach().client("a").probe(NOP, ignore)
    boosted = world.client("b").probe(LEA, ignore)
    world.fake.fork(PID, CHILD, vfork=True)
    world.fake.idle()
    assert world.fake.thread(PID).condition == "BLOCKED"
    world.arrive(CHILD, NOP)
    assert world.fake.thread(CHILD)["rip"] == NOP + 1
    world.arrive(CHILD, LEA)
    assert world.fake.thread(CHILD)["rip"] == world.slot_of(boosted)
    assert (lease.hits, boosted.hits) == (0, 0)
    world.fake.exec(CHILD, memory_of(world, PID).copy(), entry=FUNCTION)
    world.fake.idle()
    assert world.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]
    assert world.fake.thread(PID).condition == "RUNNING"
    world.arrive(PID, NOP)
    assert lease.hits == 1


@pytest.mark.contract("life-20")
def test_a_vfork_child_may_exit(world: World) -> None:
    world.attach()
    world.fake.fork(PID, CHILD, vfork=True)
    world.fake.idle()
    world.fake.exit(CHILD, 1)
    world.fake.idle()
    assert world.fake.thread(PID).condition == "RUNNING"
    assert not world.process.ended.is_set()
    assert list(world.coordinator.tracees.processes) == [PID]


def test_detach_during_a_vfork_waits_for_the_child(world: World) -> None:
    """Invariant: a parent in vfork cannot be stopped; its child must run on until it has gone."""
    world.attach().client("a").probe(NOP, ignore)
    world.fake.fork(PID, CHILD, vfork=True)
    world.fake.idle()
    with world.fake.together():
        waiter = world.loop.post(lambda: world.coordinator.detach(world.process))
        world.fake.arrive(CHILD, NOP)
        world.fake.exit(CHILD)
    waiter.result(10)
    assert not world.trap_stands(NOP)


def test_a_task_that_died_before_it_appeared(world: World) -> None:
    """Invariant: a child that was announced and never seen does not keep the process from ending."""
    world.attach()
    world.fake.fork(PID, CHILD, lost=True)
    world.fake.idle()
    assert world.process.announced == set()
    world.fake.exit(PID, 4)
    world.fake.idle()
    assert world.process.status == 4


@pytest.mark.parametrize("by_leader", [True, False])
@pytest.mark.contract("life-15", "life-16", "life-17")
def test_exec_makes_specs_pending_and_addresses_lost(world: World, by_leader: bool) -> None:
    """Invariant: leases given by a spec arm again at the new program's entry; hits go on; addresses are LOST."""
    world.symbols["program:nop"] = NOP
    world.attach(101)
    client = world.client("a")
    by_spec, by_address = client.probe("program:nop", ignore), client.probe(LEA, ignore)
    held = client.probe(PUSH, ignore)
    world.arrive(PID, NOP)
    fresh = memory_of(world, PID).copy(without=list(world.fake._processes[ProcessId(PID)].areas))
    for place, code in ((NOP, b"\x90"), (LEA, b"\x48"), (PUSH, b"\x55")):
        fresh.patch(VirtAddr(place), code)
    world.memory = fresh
    world.fake.exec(PID if by_leader else 101, fresh, entry=FUNCTION)
    world.fake.idle()
    assert (by_spec.state, by_address.state, held.state) == (LeaseState.PENDING, LeaseState.LOST, LeaseState.LOST)
    assert world.trap_stands(FUNCTION), "the entry point"
    assert sorted(address for address, _ in world.recorder.named("ubpx_probepoint_lost")) == [LEA, PUSH, NOP]
    assert len(world.recorder.named("ubpx_process_execed")) == 1
    world.arrive(PID, FUNCTION)
    assert not world.trap_stands(FUNCTION)
    assert world.fake.thread(PID)["rip"] == FUNCTION
    assert by_spec.state is LeaseState.ARMED
    world.arrive(PID, NOP)
    assert by_spec.hits == 2
    assert client.leases == (by_spec,)


def test_a_spec_whose_module_is_gone_stays_pending(world: World) -> None:
    world.symbols["program:nop"] = NOP
    world.attach()
    lease = world.client("a").probe("program:nop", ignore)
    unmapped = world.client("a2").probe("plugin.so:f", ignore)
    assert unmapped.state is LeaseState.PENDING
    del world.symbols["program:nop"]
    world.memory = fresh = memory_of(world, PID).copy()
    fresh.patch(VirtAddr(NOP), b"\x90")
    world.fake.exec(PID, fresh, entry=FUNCTION)
    world.fake.idle()
    world.arrive(PID, FUNCTION)
    assert (lease.state, unmapped.state) == (LeaseState.PENDING, LeaseState.PENDING)
    lease.release()
    assert lease.state is LeaseState.RELEASED


def test_detach_restores_every_byte_and_unmaps(world: World) -> None:
    """Invariant: after detach no trap, no area, no traced or stopped thread is left; hits stay readable."""
    before = world.memory.image()
    client = world.attach(101).client("a")
    leases = [client.probe(place, ignore) for place in (LEA, PUSH, NOP, CALL)]
    world.arrive(PID, LEA)
    world.arrive(101, LEA)
    world.fake.pass_by(101, world.slot_of(leases[0]) + 4)
    world.fake.idle()
    world.detach()
    assert world.memory.image() == before
    assert (world.fake.thread(PID)["rip"], world.fake.thread(101)["rip"]) == (LEA, LEA + 4)
    assert [(each.traced, each.condition) for each in map(world.fake.thread, (PID, 101))] == [(False, "RUNNING")] * 2
    assert [lease.state for lease in leases] == [LeaseState.RELEASED] * 4
    assert leases[0].hits == 2
    assert world.process.ended.is_set()
    assert world.process.status is None
    world.detach()


def test_detach_sees_a_thread_that_leaves_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: nobody remains a zombie that only we could bury."""
    world.attach(101)
    leaving: list[Any] = []
    end = world.fake._exited
    monkeypatch.setattr(world.fake, "_exited", leaving.append)
    world.fake.exit(101)
    world.fake.idle()
    waiter = world.loop.post(lambda: world.coordinator.detach(world.process))
    with pytest.raises(TimeoutError):
        waiter.result(0.05)
    with world.fake._changed:
        end(*leaving)
        world.fake._changed.notify_all()
    waiter.result(10)
    assert not world.fake.thread(PID).traced


def test_detach_does_not_wait_for_ever_for_a_thread_that_leaves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: one that takes long in the kernel is left to its end."""
    world.attach(101)
    monkeypatch.setattr(departure, "_LEAVING_S", 0.1)
    monkeypatch.setattr(world.fake, "_exited", lambda _: None)
    world.fake.exit(101)
    world.fake.idle()
    world.loop.post(lambda: world.coordinator.detach(world.process)).result(10)
    assert not world.fake.thread(PID).traced


def test_detach_does_not_wait_for_a_leader_that_others_outlive(world: World) -> None:
    """Invariant: the end of such a leader is told after theirs alone."""
    world.attach(101)
    world.fake.exit(PID)
    world.fake.idle()
    world.loop.post(lambda: world.coordinator.detach(world.process)).result(10)
    assert not world.fake.thread(101).traced


@pytest.mark.parametrize("late", [False, True])
def test_detach_with_a_hit_pending(world: World, late: bool) -> None:
    """Invariant: a thread that has run into a trap when detach begins is answered; no SIGTRAP reaches the program."""
    lease = world.attach(101).client("a").probe(PUSH, ignore)
    with world.fake.together():
        world.fake.arrive(101, PUSH, late=late)
        waiter = world.loop.post(lambda: world.coordinator.detach(world.process))
    waiter.result(10)
    assert lease.hits == 1
    assert world.fake.thread(101)["rip"] == PUSH + 1
    assert [entry for entry in world.fake.actions(None, "resume", "detach") if entry[2]] == []


def test_a_hit_at_a_trap_that_is_just_being_removed(world: World) -> None:
    """Invariant: a thread that ran into a trap before it was taken out tries the original instruction again."""
    lease = world.attach(101).client("a").probe(PUSH, ignore)
    thread = world.fake.thread(101)
    thread["rip"] = PUSH
    with world.fake.together():
        world.fake.pass_by(101, PUSH + 1)
        world.fake.signal(101, signal.SIGTRAP, code=0x80, late=True)
        waiter = world.loop.post(lease.release)
    waiter.result(10)
    world.client("b").hold(101).release()
    world.fake.idle()
    assert lease.hits == 0
    assert thread["rip"] == PUSH
    assert [entry for entry in world.fake.actions(None, "resume") if entry[2]] == []


@pytest.mark.parametrize("overtaken", [False, True])
def test_detach_during_a_step(world: World, overtaken: bool) -> None:
    """Invariant: detach waits for a step's end: the thread is at home, unmasked, its signal delivered."""
    world.attach().client("a").probe(LEA, ignore, strategy="STEP")
    original, waiters = world.coordinator.handle, list[Any]()

    def detach_meanwhile(event: Any) -> None:
        original(event)
        if not waiters:  # the signal came, and the step goes on
            waiters.append(world.loop.post(lambda: world.coordinator.detach(world.process)))
            if overtaken:
                world.fake.interrupt(event.thread)
                event.thread.ready_since = event.thread.interrupt_since

    world.coordinator.handle = detach_meanwhile  # type: ignore[method-assign]
    world.fake.signal(PID, signal.SIGUSR1, in_step=True)
    thread = world.arrive(PID, LEA)
    waiters[0].result(10)
    assert thread["rip"] == LEA + 4
    assert thread.mask == 0
    assert [entry[2] for entry in world.fake.actions(PID, "resume", "detach") if entry[2]] == [signal.SIGUSR1]


def test_detach_delivers_what_a_held_thread_owes(world: World) -> None:
    """Invariant: a signal kept through a hold is delivered with the detach."""
    world.attach()
    with world.fake.together():
        world.fake.signal(PID, signal.SIGUSR1, overtakes=True)
        waiter = world.loop.post(lambda: world.desk._hold(world.client("b"), None))
    waiter.result(10)
    world.detach()
    assert world.fake.actions(PID, "detach") == [("detach", PID, signal.SIGUSR1)]


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_child_that_outlives_the_program_in_its_memory(world: World, how: str) -> None:
    """Invariant: before the end is told, children that live on in the program's memory are let go, no trap left."""
    world.attach(101).client("a").probe(NOP, ignore)
    memory = memory_of(world, PID)
    world.fake.fork(101, CHILD, vfork=True)
    world.fake.idle()
    if how == "kill":
        world.fake.kill(PID)
    else:
        world.fake.exit(PID, 4)
        world.fake.idle()
        world.fake.kill(PID, 4)
    world.fake.idle()
    assert world.process.status == (-signal.SIGKILL if how == "kill" else 4)
    assert world.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]
    assert memory.read(VirtAddr(NOP), 1) == b"\x90"
    assert not world.coordinator.tracees.processes


def test_a_child_that_stays_in_the_memory_of_before_an_exec(world: World) -> None:
    """Invariant: an exec leaves the old memory without traps to children that share it."""
    memory = memory_of(world, PID)
    program = memory.copy()
    world.attach(101).client("a").probe(NOP, ignore)
    world.fake.fork(101, CHILD, vfork=True)
    world.fake.idle()
    world.fake.exec(PID, program, entry=FUNCTION)
    world.fake.idle()
    assert world.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]
    assert memory.read(VirtAddr(NOP), 1) == b"\x90"
    assert list(world.coordinator.tracees.processes) == [PID]


def test_a_program_that_is_killed_before_its_child_appears(world: World) -> None:
    """Invariant: the end is told although the last that the program made shares its memory and comes later."""
    world.attach()
    with world.fake.together():
        world.fake.fork(PID, CHILD, vfork=True)
        world.fake.kill(PID)
    world.fake.idle()
    assert world.process.status == -signal.SIGKILL


def test_a_thread_that_is_born_into_a_group_stop(world: World) -> None:
    """Invariant: a thread made while its process is being stopped does not run before the stop ends."""
    world.attach()
    world.fake.clone(PID, 101, group_signal=signal.SIGSTOP)
    world.fake.idle()
    assert world.fake.thread(101).condition == "LISTENING"
    world.fake.continue_process(PID)
    world.fake.idle()
    assert world.fake.thread(101).condition == "RUNNING"


class HoldsMaker:
    """Holds the process's leader as soon as it hears of a child."""

    @hookimpl
    def ubpx_process_forked(self, client: Client) -> None:
        client.hold(PID)


def test_a_vforks_parent_can_be_borrowed_once_its_child_has_gone(world: World) -> None:
    """Invariant: a thread parked at its vfork maps and unmaps slots if the child has exec'd meanwhile."""
    world.attach().client("a", hooks=HoldsMaker())
    world.fake.fork(PID, CHILD, vfork=True, child_first=True)
    world.fake.idle()
    world.fake.exec(CHILD, memory_of(world, PID).copy(), entry=FUNCTION)
    world.fake.idle()
    lease = world.client("b").probe(LEA, ignore)
    assert lease.probepoint is not None
    assert lease.probepoint.slot is not None
    world.detach()
    assert world.fake.thread(PID).condition == "RUNNING"
