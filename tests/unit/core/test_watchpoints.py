"""Watchpoints: leased debug registers, and what comes of their hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import DebugRegistersBusy
from ubpx.core.events import Verdict
from ubpx.core.probepoints import LeaseState
from ubpx.core.values import ProcessId

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
DATA = STACK + 0x40


def ignore(_: object) -> None:
    """Wants nothing."""


def watches(world: World, tid: int = PID) -> list[int]:
    """The addresses that the thread's debug registers hold."""
    return [each.address for each in world.fake.thread(tid).watched if each]


def access(world: World, tid: int = PID, address: int = DATA) -> None:
    world.fake.access(tid, address)
    world.fake.idle()


def test_every_thread_watches_and_new_ones_too(world: World) -> None:
    """Invariant: a watchpoint is in every thread's debug registers, a new one's too, and gone at the end."""
    lease = world.attach(101).client("a").watch(DATA, ignore)
    world.fake.clone(PID, 102)
    world.fake.idle()
    assert [watches(world, tid) for tid in (PID, 101, 102)] == [[DATA]] * 3
    for tid in (PID, 101, 102):
        access(world, tid)
    assert lease.hits == 3
    world.detach()
    assert [watches(world, tid) for tid in (PID, 101, 102)] == [[]] * 3
    assert lease.state is LeaseState.RELEASED


def test_handlers_run_in_order_and_verdicts_merge(world: World) -> None:
    """Invariant: a hit of a watchpoint is a hit like any other: order, isolation, verdicts, register writes."""
    order: list[str] = []

    def write(hit: Any) -> Verdict:
        order.append("a")
        hit.regs.rdi = 5
        return Verdict.HOLD

    def fail(hit: Any) -> None:
        order.append("b")
        hit.regs.rdi = 6
        raise ValueError

    a = world.attach().client("a", priority=1).watch(DATA, write)
    b = world.client("b").watch(DATA, fail)
    access(world)
    assert order == ["a", "b"]
    assert (a.hits, a.errors, b.hits, b.errors) == (1, 0, 1, 1)
    assert world.fake.thread(PID)["rdi"] == 5
    assert world.fake.thread(PID).condition == "STOPPED"
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert world.fake.thread(PID).condition == "RUNNING"


def test_two_writers_of_a_register_collide(world: World) -> None:
    """Invariant: the earlier handler's value stands."""
    world.attach()
    world.client("a").watch(DATA, lambda hit: setattr(hit.regs, "rdi", 1))
    world.client("b").watch(DATA, lambda hit: setattr(hit.regs, "rdi", 2))
    access(world)
    assert world.fake.thread(PID)["rdi"] == 1


def test_three_failures_quarantine(world: World) -> None:
    """Invariant: a client that fails at watchpoints is swept like any other."""
    client = world.attach().client("a")

    def fail(_: object) -> None:
        raise ValueError

    lease = client.watch(DATA, fail)
    for _ in range(3):
        access(world)
    assert lease.state is LeaseState.QUARANTINED
    assert watches(world) == []
    assert world.recorder.named("ubpx_client_quarantined")[0][0] == "a"


def test_four_and_no_more(world: World) -> None:
    """Invariant: a client that gets none has changed nothing; a released register can be had again."""
    client = world.attach().client("a")
    leases = [client.watch(DATA + 8 * each, ignore) for each in range(4)]
    with pytest.raises(DebugRegistersBusy, match="held by 'a'"):
        client.watch(DATA + 64, ignore)
    assert client.leases == tuple(leases)
    leases[1].release()
    leases[1].release()
    assert client.watch(DATA + 64, ignore).address == DATA + 64
    assert sorted(watches(world)) == [DATA, DATA + 16, DATA + 24, DATA + 64]


def test_an_exec_loses_them(world: World) -> None:
    """Invariant: a new program has nothing watched, and its registers can all be had."""
    client = world.attach().client("a")
    lease = client.watch(DATA, ignore)
    world.memory = fresh = world.fake._processes[ProcessId(PID)].memory.copy()
    world.fake.exec(PID, fresh, entry=TEXT + 0x700)
    world.fake.idle()
    world.arrive(PID, TEXT + 0x700)
    assert (lease.state, client.leases) == (LeaseState.LOST, ())
    again = client.watch(DATA, ignore)
    access(world)
    assert (lease.hits, again.hits) == (0, 1)


def test_a_handler_may_watch_and_release(world: World) -> None:
    """Invariant: from a handler a watch takes effect for this thread at once, and a release after the hit."""
    client = world.attach(101).client("a")
    second: list[Any] = []

    def more(_: object) -> None:
        second.append(client.watch(DATA + 8, ignore))
        first.release()

    first = client.watch(DATA, more)
    access(world)
    assert first.state is LeaseState.RELEASED
    assert [watches(world, tid) for tid in (PID, 101)] == [[DATA + 8]] * 2
    access(world, 101, DATA + 8)
    assert second[0].hits == 1
