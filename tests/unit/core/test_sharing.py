"""Clients that share: one trap, one slot, one stop, over a scripted program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import ForeignTrap, StrategyRefused
from ubpx.core.clients import ClientState
from ubpx.core.events import Verdict
from ubpx.core.probepoints import LeaseState
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))


def ignore(hit: Any) -> None:
    """A handler."""


def test_two_clients_share_one_trap_and_one_slot(world: World) -> None:
    """Invariant: the first lease arms, the last release disarms; in between there is one trap and one slot."""
    world.attach()
    first = world.client("first").probe(LEA, ignore)
    assert world.trap_stands(LEA)
    second = world.client("second", priority=1).probe(LEA, ignore)
    assert first.probepoint is second.probepoint
    assert first.probepoint is not None
    assert first.probepoint.clients == ("second", "first")
    assert len(world.fake.actions(None, "map_area")) == 1
    thread = world.arrive(PID, LEA)
    assert thread["rip"] == world.slot_of(first)
    assert (first.hits, second.hits) == (1, 1)
    first.release()
    assert world.trap_stands(LEA)
    world.arrive(PID, LEA)
    assert (first.hits, second.hits) == (1, 2)
    second.release()
    assert not world.trap_stands(LEA)
    assert world.recorder.named("ubpx_probepoint_armed") == [(LEA,)]
    assert world.recorder.named("ubpx_probepoint_disarmed") == [(LEA,)]


def test_releasing_twice_does_nothing(world: World) -> None:
    lease = world.attach().client("a").probe(LEA, ignore)
    other = world.client("b").probe(LEA, ignore)
    lease.release()
    lease.release()
    assert other.state is LeaseState.ARMED
    assert world.trap_stands(LEA)


def test_a_slot_is_used_again_by_the_same_instruction(world: World) -> None:
    """Invariant: a retired slot is revived, so that arming and disarming in a loop eats no memory."""
    client = world.attach().client("a")
    slots = set()
    for _ in range(3):
        with client.probe(LEA, ignore) as lease:
            slots.add(world.slot_of(lease))
    assert len(slots) == 1


@pytest.mark.parametrize("act", ["release", "close"])
def test_giving_back_in_a_handler_takes_effect_after_the_hit(world: World, act: str) -> None:
    """Invariant: release and close from a handler leave the trap until all handlers of the hit have run."""
    world.attach()
    client, seen = world.client("a", priority=1), list[Any]()

    def handler(hit: Any) -> None:
        (client.close if act == "close" else hit.lease.release)()
        seen.append((world.trap_stands(LEA), hit.lease.state))

    lease = client.probe(LEA, handler)
    later = world.client("b").probe(LEA, lambda hit: seen.append(world.trap_stands(LEA)))
    world.arrive(PID, LEA)
    assert seen == [(True, LeaseState.ARMED), True]
    assert lease.state is LeaseState.RELEASED
    assert (lease.hits, later.hits) == (1, 1)
    later.release()
    assert client.state is (ClientState.CLOSED if act == "close" else ClientState.LIVE)


def test_probing_in_a_handler_works_at_once(world: World) -> None:
    """Invariant: API calls from a handler run directly; the thread that arrived maps the area."""
    client = world.attach().client("a")
    made: list[Any] = []
    client.probe(NOP, lambda _: made.append(client.probe(LEA, ignore)))
    world.arrive(PID, NOP)
    assert world.trap_stands(LEA)
    assert made[0].state is LeaseState.ARMED
    assert world.fake.thread(PID)["rip"] == NOP + 1
    world.arrive(PID, LEA)
    assert made[0].hits == 1


@pytest.mark.contract("hit-5", "hit-6")
def test_writes_apply_once_and_the_earlier_wins(world: World) -> None:
    """Invariant: later handlers read the values at arrival; a collision is told to the two concerned."""
    world.attach()
    seen: list[int] = []

    def write(value: int) -> Any:
        def handler(hit: Any) -> None:
            seen.append(hit.regs.rdi)
            hit.regs.rdi = value

        return handler

    world.client("first", priority=2).probe(LEA, write(10))
    world.client("second", priority=1).probe(LEA, write(20))
    thread = world.arrive(PID, LEA, rdi=5)
    assert seen == [5, 5]
    assert thread["rdi"] == 10
    assert world.recorder.named("ubpx_collision") == [], "the recorder is not concerned"


def test_a_collision_is_told_to_those_concerned(world: World) -> None:
    plugin_client = next(each for each in world.attach().desk.roster.living() if each.name == "recorder")

    def write(value: int) -> Any:
        return lambda hit: setattr(hit.regs, "rax", value)

    plugin_client.probe(LEA, write(1), priority=1)
    world.client("other").probe(LEA, write(2))
    world.arrive(PID, LEA)
    assert world.recorder.named("ubpx_collision") == [(LEA, "rax", "recorder", "other")]


def test_writing_the_pc_sends_the_thread_elsewhere(world: World) -> None:
    """Invariant: who writes rip decides where the thread goes; the probed instruction does not run."""
    world.attach().client("a").probe(PUSH, lambda hit: setattr(hit.regs, "rip", FUNCTION))
    thread = world.arrive(PID, PUSH)
    assert thread["rip"] == FUNCTION


def test_an_instruction_that_a_handler_skips_has_not_run(world: World) -> None:
    """Invariant: with rip written, the stack is as it was at arrival."""
    world.attach().client("a").probe(PUSH, lambda hit: setattr(hit.regs, "rip", FUNCTION))
    world.arrive(PID, PUSH, rsp=STACK + 0x100, rbp=0x77)
    assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == bytes(8)


def test_three_exceptions_in_a_row_quarantine(world: World) -> None:
    """Invariant: the failing client's leases are swept after the hit; the others go on."""
    world.attach()
    failing, steady = world.client("failing"), world.client("steady")
    bad = failing.probe(LEA, lambda _: 1 // 0)
    good = steady.probe(LEA, ignore)
    for _ in range(4):
        world.arrive(PID, LEA)
    assert (bad.hits, bad.errors, bad.state) == (3, 3, LeaseState.QUARANTINED)
    assert (good.hits, good.state) == (4, LeaseState.ARMED)
    ((name, reason, held_s),) = world.recorder.named("ubpx_client_quarantined")
    assert (name, held_s >= 0) == ("failing", True)
    assert "ZeroDivisionError" in reason


def test_a_success_between_exceptions_resets(world: World) -> None:
    client = world.attach().client("a")

    def handler(hit: Any) -> None:
        if hit.regs.rdi % 3 == 0:
            raise KeyboardInterrupt

    lease = client.probe(LEA, handler)
    for rdi in range(9):
        world.arrive(PID, LEA, rdi=rdi)
    assert (lease.hits, lease.errors, client.state) == (9, 3, ClientState.LIVE)


def test_a_wrong_answer_counts_as_an_exception(world: World) -> None:
    """Invariant: what is neither None nor a Verdict is an error of that client, and the thread goes on."""
    lease = world.attach().client("a").probe(LEA, lambda _: "go on")
    world.arrive(PID, LEA)
    assert lease.errors == 1
    assert world.fake.thread(PID).condition == "RUNNING"


def test_wrong_answers_in_a_row_quarantine(world: World) -> None:
    """Invariant: three wrong answers in a row are three exceptions in a row."""
    client = world.attach().client("a")
    client.probe(LEA, lambda _: "go on")
    for _ in range(3):
        world.arrive(PID, LEA)
    assert client.state is ClientState.QUARANTINED


def test_foreign_traps_are_refused(world: World) -> None:
    """Invariant: a trap that we did not write is never ours: refused at probe, and passed on as SIGTRAP."""
    world.attach()
    world.memory.patch(VirtAddr(FUNCTION), b"\xcc")
    with pytest.raises(ForeignTrap):
        world.client("a").probe(FUNCTION, ignore)
    world.arrive(PID, FUNCTION)
    assert world.fake.actions(PID, "resume")[-1] == ("resume", PID, 5)
    world.memory.patch(VirtAddr(FUNCTION), b"\xc3")


def test_an_overwritten_trap_is_lost(world: World) -> None:
    """Invariant: bytes that somebody wrote over our trap stay; the loss is told."""
    lease = world.attach().client("a").probe(LEA, ignore)
    original = world.desk.process.space.patches[VirtAddr(LEA)].original  # type: ignore[union-attr]
    world.memory.patch(VirtAddr(LEA), b"\x50")
    lease.release()
    assert world.memory.read(VirtAddr(LEA), 1) == b"\x50"
    assert [address for address, _ in world.recorder.named("ubpx_probepoint_lost")] == [LEA]
    world.memory.patch(VirtAddr(LEA), original)


@pytest.mark.contract("slots-1", "slots-2")
def test_slots_may_be_forbidden(world: World) -> None:
    """Invariant: with slots="none" no memory is mapped, and only EMULATE and INLINE are left."""
    client = world.attach(slots_allowed=False).client("a")
    with pytest.raises(StrategyRefused, match="slots='none'"):
        client.probe(PUSH, ignore, strategy="STEP")
    emulated, in_place = client.probe(PUSH, ignore), client.probe(LEA, ignore)
    assert emulated.probepoint is not None
    assert emulated.probepoint.strategy is Strategy.EMULATE
    assert in_place.probepoint is not None
    assert (in_place.probepoint.strategy, in_place.probepoint.slot) == (Strategy.INLINE, None)
    world.arrive(PID, PUSH)
    world.arrive(PID, LEA)
    assert (emulated.hits, in_place.hits) == (1, 1)
    assert world.fake.actions(None, "map_area") == []


def test_a_handlers_verdicts_merge(world: World) -> None:
    """Invariant: of RESUME, STEP and HOLD the hold wins, and is owned by the one who asked for it."""
    world.attach()
    answers = {"a": Verdict.RESUME, "b": Verdict.HOLD, "c": Verdict.STEP}
    for name in answers:
        world.client(name).probe(LEA, lambda hit: answers[hit.lease.client.name])
    world.arrive(PID, LEA)
    assert [(hold.owner, hold.thread) for hold in world.holds()] == [("b", PID)]


def test_a_hit_in_which_somebody_asked_ends_the_long_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a tracer may go on at once only if nothing is another, whatever a hit within the hit has settled."""
    world.attach()
    reception = world.coordinator.reception
    concluded: list[object] = []
    monkeypatch.setattr(reception, "conclude", lambda *given: concluded.append(given))
    asks = world.client("a").probe(LEA, lambda _: world.loop.run(reception.after_hit.clear))
    world.client("b").probe(NOP, ignore)
    port, sites = world.fake.thread(PID), world.process.space.sites
    assert not world.loop.run(lambda: sites[LEA + 1].arrive(port))
    assert (len(concluded), asks.hits) == (1, 1)
    assert world.loop.run(lambda: sites[NOP + 1].arrive(port))
    assert len(concluded) == 1
