"""Holds over a scripted program: parked threads wait while the others go on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import TargetGone, UsageError
from ubpx.core.events import Verdict
from ubpx.core.values import Disturbance, VirtAddr
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))
EVERY = [(NOP, None), (PUSH, None), (LEA, "BOOST"), (LEA, "STEP")]


def ignore(hit: Any) -> None:
    """A handler."""


def hold_leader(hit: Any) -> Verdict | None:
    return Verdict.HOLD if hit.tid == PID else None


@pytest.mark.parametrize(("place", "strategy"), EVERY)
def test_a_held_thread_waits_while_others_hit(world: World, place: int, strategy: str | None) -> None:
    """Invariant: HOLD parks one thread until another thread of ours releases it; the others go on hitting."""
    lease = world.attach(101).client("debugger").probe(place, hold_leader, strategy=strategy)
    held = world.arrive(PID, place, rsp=STACK + 0x100)
    for _ in range(3):
        world.arrive(101, place, rsp=STACK + 0x200)
    assert lease.hits == 4
    assert (held.condition, world.fake.thread(101).condition) == ("STOPPED", "RUNNING")
    (hold,) = world.holds()
    assert (hold.owner, hold.thread) == ("debugger", PID)
    hold.release()
    hold.release()
    world.fake.idle()
    assert held.condition == "RUNNING"
    assert world.holds() == []
    behind = {NOP: NOP + 1, PUSH: PUSH + 1, LEA: LEA + 4}[place]
    assert held["rip"] == (world.slot_of(lease) if strategy == "BOOST" else behind)


@pytest.mark.parametrize(("place", "strategy"), EVERY)
def test_a_release_may_write_registers(world: World, place: int, strategy: str | None) -> None:
    """Invariant: who answers later writes as a handler would have: before the instruction, once."""
    world.attach().client("remote").probe(place, hold_leader, strategy=strategy)
    thread = world.arrive(PID, place, rsp=STACK + 0x100, rbp=1, rdi=1)
    (hold,) = world.holds()
    hold.release({"rdi": 7, "rbp": 9})
    world.fake.idle()
    assert (thread["rdi"], thread["rbp"], thread.condition) == (7, 9, "RUNNING")
    if place == PUSH:
        assert (thread["rip"], thread["rsp"]) == (PUSH + 1, STACK + 0xF8)
        assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == (9).to_bytes(8, "little")


@pytest.mark.parametrize(("place", "strategy"), EVERY)
@pytest.mark.parametrize("late_first", [False, True])
def test_the_earlier_handler_stands_whenever_it_answers(
    world: World, place: int, strategy: str | None, late_first: bool
) -> None:
    """Invariant: what is written with a release is merged as if all handlers had written at once."""
    world.attach().client("early", priority=1).probe(place, hold_leader, strategy=strategy)
    world.client("late").probe(place, hold_leader, strategy=strategy)
    thread = world.arrive(PID, place, rsp=STACK + 0x100, rdi=1, rsi=1, rdx=1)
    holds = {hold.owner: hold for hold in world.holds()}
    writes = {"early": {"rdi": 7, "rsi": 8}, "late": {"rdi": 70, "rdx": 9}}
    for owner in ("late", "early") if late_first else ("early", "late"):
        holds[owner].release(writes[owner])
    world.fake.idle()
    assert (thread["rdi"], thread["rsi"], thread["rdx"], thread.condition) == (7, 8, 9, "RUNNING")
    if place == PUSH:
        assert (thread["rip"], thread["rsp"]) == (PUSH + 1, STACK + 0xF8)


def test_a_handler_that_wrote_at_once_stands_against_a_later_release(world: World) -> None:
    """Invariant: handler order decides, not who answered first; both are told of the collision."""

    def write(hit: Any) -> None:
        hit.regs.rdi = 5
        hit.regs.rsi = 6

    told: list[tuple[str, str, str]] = []

    class Told:
        @hookimpl
        def ubpx_collision(self, client: Any, resource: str, winner: str, loser: str) -> None:
            told.append((client.name, winner, loser))
            assert resource == "rdi"

    world.attach()
    world.client("first", priority=2, hooks=Told()).probe(LEA, write)
    world.client("second", priority=1, hooks=Told()).probe(LEA, hold_leader)
    thread = world.arrive(PID, LEA, rdi=1, rsi=1, rdx=1)
    (hold,) = world.holds()
    hold.release({"rdi": 50, "rdx": 60})
    world.fake.idle()
    assert (thread["rdi"], thread["rsi"], thread["rdx"]) == (5, 6, 60)
    assert told == [("first", "first", "second"), ("second", "first", "second")]


def test_registers_need_a_held_stopped_thread(world: World) -> None:
    world.attach(101)
    client = world.client("a")
    with client.hold() as whole:
        with pytest.raises(UsageError, match="one thread's hold only"):
            whole.release({"rdi": 1})
        assert not whole.released
    with client.hold(101) as hold:
        with pytest.raises(UsageError, match="no register is named 'x0'"):
            hold.release({"x0": 1})
        hold.release({"rdi": 1})
    assert world.fake.thread(101)["rdi"] == 1


def test_holding_a_running_thread_stops_it(world: World) -> None:
    """Invariant: when client.hold returns, what is held has stopped, and nothing else has."""
    world.attach(101)
    hold = world.client("a").hold(101)
    assert world.fake.thread(101).condition == "STOPPED"
    assert world.fake.thread(PID).condition == "RUNNING"
    hold.release()
    world.fake.idle()
    assert world.fake.thread(101).condition == "RUNNING"


def test_a_whole_process_is_held_and_let_go(world: World) -> None:
    world.attach(101, 102)
    with world.client("a").hold():
        assert {world.fake.thread(tid).condition for tid in (PID, 101, 102)} == {"STOPPED"}
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101, 102)} == {"RUNNING"}


def test_hold_process_stops_threads_that_arrived_at_the_same_moment(world: World) -> None:
    """Invariant: a thread whose hit waits to be served is served, counted, and then stays."""
    lease = world.attach(101).client("a").probe(NOP, lambda hit: Verdict.HOLD_PROCESS if hit.tid == PID else None)
    with world.fake.together():
        world.fake.arrive(PID, NOP)
        world.fake.arrive(101, NOP)
    world.fake.idle()
    assert lease.hits == 2
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"STOPPED"}
    for hold in world.holds():
        hold.release()
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"RUNNING"}
    assert world.fake.thread(101)["rip"] == NOP + 1


def test_another_stop_instead_of_the_interrupt_parks_as_well(world: World) -> None:
    """Invariant: on Linux any stop clears a pending interrupt; the hold must not wait for it in vain."""
    lease = world.attach(101).client("a").probe(LEA, ignore)
    with world.fake.together():
        world.fake.arrive(101, LEA, overtakes=True)
        waiter = world.loop.post(lambda: world.desk._hold(world.client("b"), None))
    hold = waiter.result(10)
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"STOPPED"}
    hold.release()
    world.fake.idle()
    assert lease.hits == 1


def test_a_signal_for_a_held_thread_is_kept(world: World) -> None:
    """Invariant: a signal that comes instead of the interrupt is delivered at the release, once."""
    world.attach()
    with world.fake.together():
        world.fake.signal(PID, signal.SIGUSR1, overtakes=True)
        waiter = world.loop.post(lambda: world.desk._hold(world.client("b"), None))
    hold = waiter.result(10)
    assert world.fake.actions(PID, "resume") == []
    hold.release()
    world.fake.idle()
    assert [entry[2] for entry in world.fake.actions(PID, "resume") if entry[2]] == [signal.SIGUSR1]


def test_a_trap_that_was_run_into_is_reported_before_the_thread_parks(world: World) -> None:
    """Invariant: an interrupt that overtakes a hit does not park the thread with the hit unserved."""
    lease = world.attach().client("a").probe(PUSH, ignore)
    with world.fake.together():
        world.fake.arrive(PID, PUSH, late=True)
        waiter = world.loop.post(lambda: world.desk._hold(world.client("b"), None))
    hold = waiter.result(10)
    world.fake.idle()
    thread = world.fake.thread(PID)
    assert (lease.hits, thread.condition, thread["rip"]) == (1, "STOPPED", PUSH + 1)
    hold.release()


def test_a_handler_holds_another_thread_which_stops_soon(world: World) -> None:
    """Invariant: client.hold from a handler returns at once and never waits for itself."""
    world.attach(101)
    client = world.client("a")
    held: list[Any] = []
    client.probe(NOP, lambda _: held.append(client.hold(101)))
    world.arrive(PID, NOP)
    assert world.fake.thread(101).condition == "STOPPED"
    assert world.fake.thread(PID).condition == "RUNNING"


@pytest.mark.contract("hold-3", "hold-4")
def test_a_clients_end_ends_its_holds(world: World) -> None:
    """Invariant: what a closed client held runs again, unless another holds it too."""
    world.attach(101)
    first, second = world.client("first"), world.client("second")
    first.hold()
    kept = second.hold(101)
    first.close()
    world.fake.idle()
    assert world.fake.thread(PID).condition == "RUNNING"
    assert world.fake.thread(101).condition == "STOPPED"
    kept.release()


def test_a_new_thread_of_a_held_process_is_held(world: World) -> None:
    """Invariant: a hold of the whole process covers threads to come."""
    world.attach(101)
    with world.fake.together():
        world.fake.clone(PID, 102)
        waiter = world.loop.post(lambda: world.desk._hold(world.client("a"), None))
    hold = waiter.result(10)
    world.fake.idle()
    assert world.fake.thread(102).condition == "STOPPED"
    hold.release()
    world.fake.idle()
    assert world.fake.thread(102).condition == "RUNNING"


def test_a_group_stop_outlives_a_hold(world: World) -> None:
    """Invariant: a thread that was in a group-stop is in it again after the hold, and SIGCONT ends it."""
    world.attach(101)
    world.fake.signal(101, signal.SIGSTOP)
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"LISTENING"}
    client = world.client("a")
    hold = client.hold()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"STOPPED"}
    hold.release()
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"LISTENING"}
    world.fake.continue_process(PID)
    world.fake.idle()
    assert {world.fake.thread(tid).condition for tid in (PID, 101)} == {"RUNNING"}


def test_a_group_stop_ends_while_it_is_held(world: World) -> None:
    """Invariant: a SIGCONT during the hold is not forgotten."""
    world.attach()
    world.fake.signal(PID, signal.SIGSTOP)
    world.fake.idle()
    with world.client("a").hold():
        world.fake.continue_process(PID)
        world.fake.idle()
        assert world.fake.thread(PID).condition == "STOPPED"
    world.fake.idle()
    assert world.fake.thread(PID).condition == "RUNNING"


def test_holds_that_cannot_be(world: World) -> None:
    client = world.attach().client("a")
    with pytest.raises(UsageError, match="999 is no thread of process 100"):
        client.hold(999)
    world.fake.kill(PID)
    world.fake.idle()
    with pytest.raises(TargetGone):
        client.hold()


def test_a_held_thread_that_is_killed_takes_its_holds_along(world: World) -> None:
    world.attach().client("a").probe(NOP, hold_leader)
    world.arrive(PID, NOP)
    (hold,) = world.holds()
    world.fake.kill(PID)
    world.fake.idle()
    assert world.process.ended.is_set()
    assert (world.process.status, hold.released) == (-signal.SIGKILL, True)
    hold.release()


def test_a_trap_that_a_group_stop_overtook_is_answered_at_detach(world: World) -> None:
    """Invariant: no thread is left with a SIGTRAP of ours pending: the program would die of it."""
    lease = world.attach(101).client("a").probe(PUSH, ignore)
    with world.fake.together():
        world.fake.arrive(PID, PUSH, late=True)
        world.fake.signal(101, signal.SIGSTOP)
    world.fake.idle()
    assert world.fake.thread(PID).condition == "LISTENING"
    world.detach()
    assert lease.hits == 1
    assert world.fake.thread(PID)["rip"] == PUSH + 1


def test_a_thread_on_its_way_back_to_a_group_stop_runs_nothing(world: World) -> None:
    """Invariant: released into a group-stop, a thread is in it before it runs one instruction."""
    world.attach(101)
    client = world.client("a")
    first, second = client.probe(NOP, ignore), client.probe(LEA, ignore)
    with world.fake.together():
        world.fake.arrive(PID, NOP, late=True)
        world.fake.arrive(PID, LEA)
        world.fake.signal(101, signal.SIGSTOP)
    world.fake.idle()
    client.hold().release()
    world.fake.idle()
    assert (first.hits, second.hits) == (1, 0)
    assert world.fake.thread(PID).condition == "LISTENING"
    world.fake.continue_process(PID)
    world.fake.idle()
    assert second.hits == 1


@pytest.mark.parametrize(
    ("leader", "second", "third", "chosen"),
    [(0, 2, 1, PID), (2, 0, 0, 101), (2, 2, 1, 102), (1, 2, 2, PID), (2, 2, 2, PID)],
)
def test_who_is_borrowed_notices_least(world: World, leader: int, second: int, third: int, chosen: int) -> None:
    """Invariant: memory is mapped by a thread whose time-out does not begin anew because of it, if there is one."""
    world.attach(101, 102)
    for tid, disturbance in ((PID, leader), (101, second), (102, third)):
        world.fake.thread(tid).disturbance = Disturbance(disturbance)
    world.client("one").probe(LEA, ignore)
    assert [tid for _, tid, *_ in world.fake.actions(None, "map_area")] == [chosen]
    assert {tid for _, tid, *_ in world.fake.actions(None, "interrupt")} == {chosen}
