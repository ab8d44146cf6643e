"""Whether a trap still stands as it was armed, over a scripted program."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from tests.unit.core.many_places import LEA, PID, PUSH, TEXT, ignore
from ubpx._errors import UsageError
from ubpx.core.patrol import Patrol
from ubpx.core.probepoints import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.core.conftest import World

JIT, ELSEWHERE, SIZE = 0x50_0000, 0x58_0000, 0x1000
CODE = bytes.fromhex("b8 01 00 00 00  48 01 f8  c3").ljust(32, b"\x90") + bytes.fromhex("55 48 89 e5 5d c3")
"""mov $1, %eax; add %rdi, %rax; ret, and at 32 push %rbp; mov %rsp, %rbp; pop; ret."""
MOV, ONE_BYTE = JIT, JIT + 32
OTHER = bytes.fromhex("cc c3 90 90 90 90 90 90")
"""A trap of the program's own, and other code."""


def look(world: World) -> None:
    world.loop.run(world.coordinator.look_at_text)


@pytest.fixture
def made_code(world: World) -> World:
    """Attached, with code that the program has made."""
    world.memory.map(JIT, CODE.ljust(SIZE, b"\x90"), permissions="rwxp")
    world.attach()
    return world


def end(world: World, at: int = JIT) -> None:
    world.memory.unmap(at, SIZE)


@pytest.mark.parametrize(
    ("address", "code", "state", "left"),
    [
        (MOV, "cc 05 00 00 00 48 01 f8", LeaseState.LOST, "b8"),  # another operand: our trap is taken out
        (MOV, "cc c3 90 90 90 90 90 90", LeaseState.LOST, "cc"),
        (MOV, "cc b8 01 00 00 00 48 01 f8", LeaseState.LOST, "cc"),  # the same code behind a trap of its own
        (MOV, "cc cc cc cc cc cc cc cc cc", LeaseState.LOST, "cc"),
        (MOV, "90", LeaseState.LOST, "90"),
        (MOV, "b8", LeaseState.LOST, "b8"),
        (MOV, "cc", LeaseState.ARMED, "cc"),
        (ONE_BYTE, "cc 48 89 e5 c3", LeaseState.ARMED, "cc"),
        (ONE_BYTE, "cc c3 c3 c3", LeaseState.LOST, "cc"),
        (ONE_BYTE, "cc cc cc cc", LeaseState.LOST, "cc"),
    ],
)
def test_what_stands_there_decides(made_code: World, address: int, code: str, state: LeaseState, left: str) -> None:
    """Invariant: our trap is known by what follows; what is lost is told once, and not ours is not written over."""
    lease = made_code.client("a").probe(address, ignore)
    made_code.memory.patch(address, bytes.fromhex(code))
    look(made_code)
    look(made_code)
    assert lease.state == state
    lost = [at for at, _ in made_code.recorder.named("ubpx_probepoint_lost")]
    assert lost == ([address] if state is LeaseState.LOST else [])
    assert made_code.memory.read(address, 1).hex() == left
    made_code.memory.patch(address, b"\xf4")
    lease.release()
    assert made_code.memory.read(address, 1) == b"\xf4"
    end(made_code)


def test_half_written_code_is_left_alone(made_code: World) -> None:
    """Invariant: what looks like a changed operand may be half of something else; it is looked at again before."""
    lease = made_code.client("a").probe(MOV, ignore)
    for half in ("cc 05 00 00 00", "cc 05 06 00 00", "cc 05 06 c3 90 90 90 90"):
        made_code.memory.patch(MOV, bytes.fromhex(half))
        look(made_code)
        assert made_code.trap_stands(MOV)
    assert lease.state is LeaseState.LOST
    assert made_code.trap_stands(MOV)
    end(made_code)


@pytest.mark.parametrize("address", [MOV, ONE_BYTE])
def test_moved_code_is_cleaned(made_code: World, address: int) -> None:
    """Invariant: what the program moves is found by what is around our traps; nothing else is written."""
    client = made_code.client("a")
    for each in (MOV, ONE_BYTE):
        client.probe(each, ignore)
    moved = made_code.memory.read(JIT, SIZE)
    end(made_code)
    made_code.memory.map(ELSEWHERE, moved, permissions="rwxp")
    made_code.memory.map(ELSEWHERE + SIZE, b"\xcc" * SIZE, permissions="rwxp")
    look(made_code)
    assert made_code.memory.read(ELSEWHERE, SIZE) == CODE.ljust(SIZE, b"\x90")
    assert made_code.memory.read(ELSEWHERE + SIZE, SIZE) == b"\xcc" * SIZE
    made_code.memory.unmap(ELSEWHERE + SIZE, SIZE)
    end(made_code, ELSEWHERE)


def test_a_trap_that_moved_is_nobodys_signal(made_code: World) -> None:
    """Invariant: a thread that runs into our trap at its code's new place goes on there; its own trap it gets."""
    made_code.client("a").probe(MOV, ignore)
    moved = made_code.memory.read(JIT, SIZE)
    end(made_code)
    made_code.memory.map(ELSEWHERE, moved, permissions="rwxp")
    thread = made_code.arrive(PID, ELSEWHERE)
    assert thread["rip"] == ELSEWHERE
    assert made_code.fake.actions(PID, "resume")[-1] == ("resume", PID, 0)
    made_code.memory.patch(ELSEWHERE, b"\xcc")
    made_code.arrive(PID, ELSEWHERE)
    assert made_code.fake.actions(PID, "resume")[-1] == ("resume", PID, 5)
    end(made_code, ELSEWHERE)


@pytest.mark.contract("text-2")
def test_a_lost_place_given_by_a_spec_is_armed_again(made_code: World) -> None:
    """Invariant: what is given by a spec is armed again at once, where that leads now; hits go on."""
    made_code.symbols["f"] = PUSH
    lease = made_code.client("a").probe("f", ignore)
    made_code.arrive(PID, PUSH)
    made_code.memory.patch(PUSH, b"\x55")
    look(made_code)
    assert (lease.state, made_code.trap_stands(PUSH)) == (LeaseState.ARMED, True)
    made_code.arrive(PID, PUSH)
    assert lease.hits == 2
    assert len(made_code.recorder.named("ubpx_probepoint_lost")) == 1
    end(made_code)


def test_a_forked_child_keeps_traps_of_its_own(made_code: World) -> None:
    """Invariant: where the program has put a trap of its own in place of ours, its child has it too."""
    lease = made_code.client("a").probe(MOV, ignore)
    made_code.memory.patch(MOV, OTHER)
    look(made_code)
    assert lease.state is LeaseState.LOST
    made_code.fake.fork(PID, 200)
    made_code.fake.idle()
    child = made_code.fake._processes[200].memory  # type: ignore[index]
    assert child.read(MOV, len(OTHER)) == OTHER
    end(made_code)


def test_slots_that_the_program_unmapped_are_used_no_more(world: World) -> None:
    """Invariant: where something else is mapped in place of our slots, it is neither written nor unmapped."""
    world.attach()
    client = world.client("a")
    first = client.probe(LEA, ignore)
    slot = world.slot_of(first)
    (area,) = world.process.space.slots.areas
    world.memory.unmap(area.start, area.size)
    del world.fake._processes[PID].areas[int(area.start)]  # type: ignore[index]
    world.memory.map(area.start, b"\x11" * area.size, permissions="rw-p")
    second = client.probe(TEXT + 96, ignore)
    assert world.slot_of(second) not in area
    first.release()
    again = client.probe(LEA, ignore)
    assert world.slot_of(again) != slot
    world.detach()
    assert world.memory.read(area.start, area.size) == b"\x11" * area.size
    world.memory.unmap(area.start, area.size)


class Posts:
    """What a patrol posts, done at once or never."""

    def __init__(self, *, done: bool = True, closed: bool = False) -> None:
        self.count, self.done, self.closed = 0, done, closed

    def __call__(self, job: Callable[[], None]) -> Future[None]:
        if self.closed:
            raise UsageError("closed")
        self.count += 1
        future: Future[None] = Future()
        if self.done:
            job()
            future.set_result(None)
        return future


def patrolling(posts: Posts, look: Callable[[], None] = lambda: None) -> Patrol:
    patrol = Patrol(look, posts)
    patrol.period_s = 0.001
    return patrol


def test_a_patrol_looks_while_it_is_wanted() -> None:
    """Invariant: no thread before it is wanted, no look when it is not wanted any more."""
    posts, looked = Posts(), threading.Event()
    patrol = patrolling(posts, looked.set)
    patrol.want(wanted=False)
    assert [each.name for each in threading.enumerate() if each.name == "ubpx-patrol"] == []
    patrol.want(wanted=True)
    assert looked.wait(10)
    patrol.want(wanted=False)
    patrol.stop()
    before = posts.count
    time.sleep(0.01)
    assert posts.count == before


def test_a_patrol_waits_for_its_last_look() -> None:
    """Invariant: looks do not queue up while the tracer thread has other things to do."""
    posts = Posts(done=False)
    patrol = patrolling(posts)
    patrol.want(wanted=True)
    time.sleep(0.05)
    patrol.stop()
    assert posts.count == 1


def test_a_patrol_of_a_closed_session_ends() -> None:
    """Invariant: a session that was closed meanwhile is left."""
    patrol = patrolling(Posts(closed=True))
    patrol.want(wanted=True)
    assert patrol._thread is not None
    patrol._thread.join(10)
    assert not patrol._thread.is_alive()
    patrol.stop()


def test_dear_looks_are_rare() -> None:
    """Invariant: looking takes a hundredth of the time at most."""
    posts = Posts()
    patrol = patrolling(posts, lambda: time.sleep(0.05))
    patrol.want(wanted=True)
    time.sleep(0.5)
    patrol.stop()
    assert posts.count == 1
