"""What is emulated and hot runs in a slot, where there is one to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import ProbepointBusy, SlotsExhausted
from ubpx.core.events import Verdict
from ubpx.core.jumps import HOT
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import ProcessId, VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.core.probepoints import Lease, Probepoint

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP = (TEXT + 32 * i for i in range(3))
SP = STACK + 0x100


def nothing(_hit: object) -> None:
    """A handler."""


def shared(lease: Lease) -> Probepoint:
    assert lease.probepoint is not None
    return lease.probepoint


def heat(world: World, place: int) -> None:
    """As many hits as are worth a look, and that look."""
    for _ in range(HOT):
        world.arrive(PID, place, rsp=SP)
    world.loop.run(world.coordinator.look_at_text)


def test_a_hot_push_is_no_longer_emulated(world: World) -> None:
    """Invariant: from then on a thread goes to the slot, and nothing is written to its stack for it."""
    lease = world.attach().client("a").probe(PUSH, nothing)
    heat(world, PUSH)
    assert (shared(lease).strategy, shared(lease).armed_by) == (Strategy.BOOST, Strategy.BOOST)
    assert shared(lease).why.startswith("threads come by often")
    world.memory.write(VirtAddr(SP - 8), bytes(8))
    thread = world.arrive(PID, PUSH, rsp=SP, rbp=0x1234)
    assert (lease.hits, thread["rip"], thread["rsp"]) == (HOT + 1, world.slot_of(lease), SP)
    assert world.memory.read(VirtAddr(SP - 8), 8) == bytes(8)


def test_what_has_one_place_to_go_on_stays_as_it_is(world: World) -> None:
    """Invariant: where emulation is nothing but going on elsewhere a slot is no gain."""
    lease = world.attach().client("a").probe(NOP, nothing)
    heat(world, NOP)
    assert (shared(lease).strategy, shared(lease).slot) == (Strategy.EMULATE, None)


def test_a_push_that_is_not_hot_has_no_slot(world: World) -> None:
    lease = world.attach().client("a").probe(PUSH, nothing)
    for _ in range(HOT - 1):
        world.arrive(PID, PUSH, rsp=SP)
    world.loop.run(world.coordinator.look_at_text)
    assert (shared(lease).strategy, shared(lease).slot) == (Strategy.EMULATE, None)


def test_emulation_that_somebody_insists_on_stays(world: World) -> None:
    lease = world.attach().client("a").probe(PUSH, nothing, strategy="EMULATE")
    world.client("b").probe(PUSH, nothing)
    heat(world, PUSH)
    assert shared(lease).strategy == Strategy.EMULATE


def test_without_room_for_a_slot_it_is_emulated_on(world: World) -> None:
    """Invariant: the probepoint says so, and works as before."""
    lease = world.attach().client("a").probe(PUSH, nothing)
    world.fake._processes[ProcessId(PID)].can_map = False
    heat(world, PUSH)
    assert (shared(lease).strategy, "no BOOST" in shared(lease).why) == (Strategy.EMULATE, True)
    assert world.arrive(PID, PUSH, rsp=SP)["rip"] == PUSH + 1


def test_a_thread_that_is_held_there_meanwhile_goes_on(world: World) -> None:
    """Invariant: what was emulated for it is done once, whatever comes after it is done otherwise."""
    client = world.attach(101).client("a")
    lease = client.probe(PUSH, lambda hit: Verdict.HOLD if hit.regs.rbp == 7 else None)
    held = world.fake.thread(101)
    held["rsp"], held["rbp"] = SP - 0x80, 7
    world.fake.arrive(101, PUSH)
    world.fake.idle()
    heat(world, PUSH)
    assert shared(lease).strategy == Strategy.BOOST
    (hold,) = world.holds()
    world.loop.run(hold.release)
    world.fake.idle()
    assert (held["rip"], held["rsp"]) == (PUSH + 1, SP - 0x88)
    assert world.memory.read(VirtAddr(SP - 0x88), 8) == (7).to_bytes(8, "little")


@pytest.mark.parametrize("where", ["outside", "in a handler"])
def test_emulation_can_be_had_again(world: World, where: str) -> None:
    """Invariant: for who insists; in a handler of that very hit, too, which is past the trap already."""
    insisting: list[Lease] = []

    def insist(_hit: object = None) -> None:
        if not insisting and lease.probepoint is not None and lease.probepoint.strategy == Strategy.BOOST:
            insisting.append(world.client("b").probe(PUSH, nothing, strategy="EMULATE"))

    lease = world.attach().client("a").probe(PUSH, insist if where == "in a handler" else nothing)
    heat(world, PUSH)
    assert shared(lease).strategy == Strategy.BOOST
    if where == "outside":
        insist()
    else:
        assert world.arrive(PID, PUSH, rsp=SP)["rip"] == world.slot_of(lease)
    assert [shared(each) for each in insisting] == [shared(lease)]
    assert shared(lease).strategy == Strategy.EMULATE
    assert world.arrive(PID, PUSH, rsp=SP)["rip"] == PUSH + 1


def test_nobody_is_stopped_for_a_slot_or_for_emulation(world: World) -> None:
    """Invariant: a thread that cannot stop, for a child that it waits for, is not waited for; others run on."""
    lease = world.attach(101).client("a").probe(PUSH, nothing)
    world.client("b").probe(LEA, nothing, strategy="BOOST")  # there is an area of slots
    heat(world, PUSH)
    before = world.fake.actions(None, "interrupt")
    world.client("c").probe(PUSH, nothing, strategy="EMULATE").release()
    heat(world, PUSH)
    assert shared(lease).strategy == Strategy.BOOST
    assert world.fake.actions(None, "interrupt") == before


def test_where_no_slot_can_be_had_it_is_not_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = world.attach().client("a").probe(PUSH, nothing)
    asked: list[int] = []

    def refuse(_space: object, analysis: Any, _pid: object) -> None:
        asked.append(analysis.insn.address)
        raise SlotsExhausted(ProcessId(PID), VirtAddr(PUSH), "as the test said")

    monkeypatch.setattr(world.coordinator.armory, "occupy_slot", refuse)
    for _ in range(3):
        heat(world, PUSH)
    assert (asked, shared(lease).strategy) == ([PUSH], Strategy.EMULATE)


def test_what_comes_while_a_slot_is_mapped_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: who insists on emulation meanwhile gets it, and a probepoint that is gone is left alone."""
    client = world.attach().client("a")
    lease = client.probe(PUSH, nothing)
    insisting: list[Lease] = []
    occupy = world.coordinator.armory.occupy_slot

    def occupied(*given: Any) -> Any:
        code = occupy(*given)
        if not insisting:
            insisting.append(world.client("b").probe(PUSH, nothing, strategy="EMULATE"))
        else:
            lease.release()
            insisting.append(client.probe(PUSH, nothing))
        return code

    monkeypatch.setattr(world.coordinator.armory, "occupy_slot", occupied)
    heat(world, PUSH)
    assert shared(lease).strategy == Strategy.EMULATE
    insisting[0].release()
    heat(world, PUSH)
    fresh = insisting[1]
    world.arrive(PID, PUSH, rsp=SP)
    assert (fresh.hits, shared(fresh).strategy) == (1, Strategy.EMULATE)


def test_a_lease_that_ends_before_a_pending_arrival_is_served_has_no_hit(world: World) -> None:
    """Invariant: a thread that ran into the trap while it was emulated is served as its leases are by then."""
    client = world.attach().client("a")
    client.probe(PUSH, nothing)
    other = world.client("b").probe(PUSH, nothing)
    former = world.process.space.sites[PUSH + 1]
    heat(world, PUSH)
    other.release()
    assert [each.client.name for each in former.leases] == ["a"]  # type: ignore[attr-defined]


def test_who_is_refused_changes_nothing(world: World) -> None:
    """Invariant: an exclusive place stays as it is, whatever strategy somebody else insists on."""
    lease = world.attach().client("a").probe(PUSH, nothing, exclusive=True)
    heat(world, PUSH)
    with pytest.raises(ProbepointBusy):
        world.client("b").probe(PUSH, nothing, strategy="EMULATE")
    assert shared(lease).strategy == Strategy.BOOST
