"""Followed children under a fake tracer: every order of their events, and what cannot be given to them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import SlotsExhausted
from ubpx.core import events
from ubpx.core.probepoints import LeaseState
from ubpx.core.values import Follow, ProcessId, VirtAddr
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.core.conftest import World
    from ubpx.core.desk import TargetDesk
    from ubpx.testing import FakeMemory

TEXT, STACK, PID, CHILD, GRANDCHILD = 0x40_1000, 0x7FFE_0000, 100, 200, 300
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION = (TEXT + 32 * i for i in range(7))
ORIGINAL = {LEA: "48", PUSH: "55", NOP: "90"}


def ignore(_: Any) -> None:
    """A handler."""


def memory_of(world: World, pid: int) -> FakeMemory:
    return world.fake._processes[ProcessId(pid)].memory


def byte_at(world: World, pid: int, address: int) -> str:
    return memory_of(world, pid).read(VirtAddr(address), 1).hex()


def fresh_program(world: World) -> FakeMemory:
    """The same program in a memory of its own, without anything of ours."""
    process = world.fake._processes[ProcessId(PID)]
    memory = process.memory.copy(without=process.areas)
    for address, code in ORIGINAL.items():
        memory.patch(VirtAddr(address), bytes.fromhex(code))
    return memory


@pytest.fixture
def family(world: World) -> Iterator[World]:
    """Attached with "all"; what was followed is left at the end, as it was."""
    world.attach(follow=Follow.ALL)
    yield world
    for desk in world.nursery.desks:
        process = desk.process
        if process is not None and not process.silent and not process.ended.is_set():
            world.loop.run(partial(world.coordinator.detach, process))
    assert world.nursery.alive == 0
    for pid in (CHILD, GRANDCHILD):
        if ProcessId(pid) in world.fake._processes and world.fake._processes[ProcessId(pid)].threads:
            assert {address: byte_at(world, pid, address) for address in ORIGINAL} == ORIGINAL
            assert not world.fake._processes[ProcessId(pid)].areas


def child_of(world: World) -> TargetDesk:
    assert len(world.nursery.desks) == 1
    return world.nursery.desks[0]


@pytest.mark.parametrize("child_first", [False, True])
def test_a_forked_child_has_what_its_parent_has(family: World, child_first: bool) -> None:
    """Invariant: whichever is seen first, the child's traps and slots are its own, and so are its hits."""
    by_pid: Counter[int] = Counter()
    client = family.client("a", priority=3)
    leases = [client.probe(address, lambda hit: by_pid.update([hit.pid])) for address in (LEA, PUSH, NOP)]
    family.fake.fork(PID, CHILD, child_first=child_first)
    family.fake.idle()
    assert [byte_at(family, CHILD, address) for address in (LEA, PUSH, NOP)] == ["cc"] * 3
    desk = child_of(family)
    (heir,) = [each for each in desk.roster.living() if each.name == "a"]
    own = heir.leases
    assert [lease.address for lease in own] == [LEA, PUSH, NOP]
    assert heir.priority == 3
    for address in (LEA, NOP):
        family.arrive(CHILD, address)
    family.arrive(PID, NOP)
    assert by_pid == {CHILD: 2, PID: 1}
    assert ([lease.hits for lease in own], [lease.hits for lease in leases]) == ([1, 0, 1], [0, 0, 1])
    assert [lease.family_hits for lease in leases] == [1, 0, 2]
    assert own[0].probepoint is not None
    assert own[0].probepoint.slot in family.fake._processes[ProcessId(CHILD)].areas


def test_a_grandchild_has_it_too_and_what_was_given_back_it_has_not(family: World) -> None:
    """Invariant: what is inherited is what was there at the fork; a family counts together, over its ends too."""
    client = family.client("a")
    kept, gone = client.probe(LEA, ignore), client.probe(NOP, ignore)
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    heir = next(each for each in family.nursery.desks[0].roster.living() if each.name == "a")
    next(lease for lease in heir.leases if lease.address == NOP).release()
    family.fake.fork(CHILD, GRANDCHILD)
    family.fake.idle()
    assert [byte_at(family, GRANDCHILD, address) for address in (LEA, NOP)] == ["cc", "90"]
    family.arrive(GRANDCHILD, LEA)
    family.arrive(CHILD, LEA)
    family.fake.exit(GRANDCHILD, 0)
    family.fake.exit(CHILD, 0)
    family.fake.idle()
    assert (kept.hits, kept.family_hits) == (0, 2)
    family.arrive(PID, NOP)
    assert (gone.hits, gone.family_hits) == (1, 1)


def test_a_client_outlives_no_target_between_it_and_its_heirs(family: World) -> None:
    """Invariant: the end of a client is that of its heir in a grandchild, though the child between has ended."""
    client = family.client("a")
    client.probe(NOP, ignore)
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    family.fake.fork(CHILD, GRANDCHILD)
    family.fake.idle()
    family.fake.exit(CHILD, 0)
    family.fake.idle()
    assert byte_at(family, GRANDCHILD, NOP) == "cc"
    (heir,) = client.heirs
    client.close()
    assert byte_at(family, GRANDCHILD, NOP) == "90"
    family.fake.exit(GRANDCHILD, 0)
    family.fake.idle()
    assert (client.heirs, heir.heirs) == (set(), set())


def test_a_parent_execs_before_its_child_is_seen(family: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: the child is given what its memory's traps were, though its parent has another memory by then."""
    lease = family.client("a").probe(LEA, ignore)
    delay_children(family, monkeypatch)
    with family.fake.together():
        family.fake.fork(PID, CHILD)
        family.fake.exec(PID, fresh_program(family), entry=FUNCTION)
    family.fake.idle()
    family.arrive(CHILD, LEA)
    assert lease.state == LeaseState.LOST
    assert (lease.hits, lease.family_hits) == (0, 1)


@pytest.mark.parametrize("follow", [Follow.NONE, Follow.EXEC])
def test_a_child_that_is_let_go_is_clean_although_its_parent_has_gone_on(
    world: World, monkeypatch: pytest.MonkeyPatch, follow: Follow
) -> None:
    """Invariant: a parent that execs, or is left, before its forked child is seen leaves no trap in that."""
    world.attach(follow=follow).client("a").probe(LEA, ignore)
    delay_children(world, monkeypatch)
    fresh = fresh_program(world)
    with world.fake.together():
        world.fake.fork(PID, CHILD)
        world.fake.exec(PID, fresh, entry=FUNCTION)
    world.fake.idle()
    assert byte_at(world, CHILD, LEA) == ORIGINAL[LEA]
    assert world.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]


def delay_children(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a child's first stop be seen after its parent's exec event."""
    wait, kept, execs = world.fake.wait, list[Any](), list[Any]()

    def late() -> Any:
        if kept and execs:
            return kept.pop()
        event = wait()
        if isinstance(event, events.ThreadAppeared) and not execs:
            kept.append(event)
            return events.Doorbell()
        if isinstance(event, events.Execed):
            execs.append(event)
        return event

    monkeypatch.setattr(world.fake, "wait", late)


def test_a_vfork_child_is_followed_from_its_exec(family: World) -> None:
    """Invariant: its specs wait for the new program, its addresses are gone; its hits count from there on."""
    family.symbols["lea"] = LEA
    client = family.client("a")
    by_spec, by_address = client.probe("lea", ignore), client.probe(NOP, ignore)
    fresh = fresh_program(family)
    family.fake.fork(PID, CHILD, vfork=True)
    family.fake.idle()
    family.arrive(CHILD, LEA)
    (heir,) = (each for each in child_of(family).roster.living() if each.name == "a")
    assert [(lease.spec, lease.state) for lease in heir.leases] == [("lea", LeaseState.PENDING)]
    assert family.nursery.alive == 0
    family.fake.exec(CHILD, fresh, entry=FUNCTION)
    family.fake.idle()
    family.arrive(CHILD, FUNCTION)
    assert family.nursery.alive == 1
    (own,) = heir.leases
    assert own.state == LeaseState.ARMED
    family.arrive(CHILD, LEA)
    assert (by_spec.hits, own.hits, by_spec.family_hits, by_address.family_hits) == (0, 1, 1, 0)
    assert family.fake.thread(PID).condition == "RUNNING"


def test_a_vfork_child_that_exits_was_never_followed(family: World) -> None:
    """Invariant: nobody is told of it, and nothing of it is kept."""
    family.symbols["lea"] = LEA
    client = family.client("a")
    client.probe("lea", ignore)
    family.fake.fork(PID, CHILD, vfork=True)
    family.fake.idle()
    assert len(client.heirs) == 1
    family.fake.exit(CHILD, 3)
    family.fake.idle()
    assert client.heirs == set()
    assert family.nursery.alive == 0
    assert family.recorder.named("ubpx_process_exited") == []


def test_a_child_of_a_vfork_child_is_followed(family: World) -> None:
    """Invariant: a copy of shared memory has the owner's traps, and so the owner's clients."""
    lease = family.client("a").probe(LEA, ignore)
    family.fake.fork(PID, CHILD, vfork=True)
    family.fake.idle()
    family.fake.fork(CHILD, GRANDCHILD)
    family.fake.idle()
    family.arrive(GRANDCHILD, LEA)
    assert (lease.hits, lease.family_hits) == (0, 1)
    family.fake.exit(CHILD, 0)
    family.fake.idle()


def test_nobody_is_followed_once_the_session_ends(family: World) -> None:
    """Invariant: a child that comes while everything is being left is cleaned and let go."""
    family.client("a").probe(LEA, ignore)
    family.nursery.closed = True
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    assert byte_at(family, CHILD, LEA) == ORIGINAL[LEA]
    assert family.fake.actions(CHILD, "detach") == [("detach", CHILD, 0)]


def test_what_cannot_be_armed_in_a_child_is_lost_there_alone(family: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a child without room for slots runs on with the probes that need none; who listens is told."""
    client = family.client("a")
    client.probe(LEA, ignore, strategy="BOOST")
    client.probe(NOP, ignore)

    def refuse(thread: Any, address: Any, size: Any) -> bool:
        raise SlotsExhausted(thread.pid, address, "a test")

    monkeypatch.setattr(family.fake, "map_area", refuse)
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    (heir,) = (each for each in child_of(family).roster.living() if each.name == "a")
    assert [lease.address for lease in heir.leases] == [NOP]
    assert [byte_at(family, CHILD, address) for address in (LEA, NOP)] == [ORIGINAL[LEA], "cc"]
    assert [address for address, _ in family.recorder.named("ubpx_probepoint_lost")] == [LEA]
    family.arrive(CHILD, NOP)
    assert heir.leases[0].hits == 1


class ProbesWhatItHearsOf:
    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    @hookimpl
    def ubpx_process_attached(self, client: Any, process: Any) -> None:
        self.heard.append((process.pid, len(client.leases)))
        client.probe(LEA, ignore)


def test_what_a_hook_asks_for_anew_is_not_inherited(family: World) -> None:
    """Invariant: each process has one lease of the hook's, and the older first as in the parent."""
    hooks = ProbesWhatItHearsOf()
    client = family.client("a", hooks=hooks)
    client.probe(LEA, ignore)
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    family.arrive(CHILD, LEA)
    (heir,) = (each for each in child_of(family).roster.living() if each.name == "a")
    assert hooks.heard == [(PID, 0), (CHILD, 0)]
    assert [lease.hits for lease in heir.leases] == [1, 1]
    assert heir.leases[0].family is None


def test_a_watchpoint_is_inherited(family: World) -> None:
    """Invariant: the child's debug registers watch what its parent's do, for clients of its own."""
    lease = family.client("a").watch(STACK, ignore)
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    family.fake.access(CHILD, STACK)
    family.fake.idle()
    assert (lease.hits, lease.family_hits) == (0, 1)


def test_a_quarantined_client_has_no_heirs(family: World) -> None:
    """Invariant: who may not act any more does not act in children."""
    client = family.client("a")
    client.probe(LEA, ignore)
    client.expel("a test")
    family.fake.fork(PID, CHILD)
    family.fake.idle()
    assert [each.name for each in child_of(family).roster.living()] == ["recorder"]
    assert byte_at(family, CHILD, LEA) == ORIGINAL[LEA]
