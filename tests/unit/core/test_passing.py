"""How a thread gets past a trap: by emulation, by a boosted copy, by a step; and what signals do to it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from ubpx.core.events import Verdict
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from tests.unit.core.conftest import World
    from ubpx.testing import FakeThread

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION, REP = (TEXT + 32 * i for i in range(8))
SEGV_MAPERR = 1


def ignore(hit: Any) -> None:
    """A handler."""


def delivered(world: World, tid: int = PID) -> list[int]:
    """The signals that reached the program, in order."""
    return [entry[2] for entry in world.fake.actions(tid, "resume", "detach") if entry[2]]


def fault_address(thread: FakeThread) -> int:
    return int.from_bytes(thread.siginfo[16:24], "little")


@pytest.mark.parametrize(("place", "behind"), [(NOP, NOP + 1), (LONG_NOP, LONG_NOP + 4)])
def test_a_landing_needs_no_slot_and_no_step(world: World, place: int, behind: int) -> None:
    """Invariant: safe before consumed, consumed before the handlers, one stop for a hit."""
    lease = world.attach().client("a").probe(place, ignore)
    thread = world.arrive(PID, place)
    assert (lease.hits, thread["rip"], thread.stops) == (1, behind, 1)
    order = [entry[0] for entry in world.fake.actions(PID, "safe", "consumed", "arrived", "step", "resume")]
    assert order == ["safe", "consumed", "arrived"]
    assert world.fake.actions(None, "map_area") == []


def test_an_emulated_push_writes_the_stack(world: World) -> None:
    """Invariant: the program sees what its own instruction would have done; the handler sees the time before."""
    seen: list[tuple[int, int]] = []
    world.attach().client("a").probe(PUSH, lambda hit: seen.append((hit.regs.rip, hit.regs.rsp)))
    thread = world.arrive(PID, PUSH, rsp=STACK + 0x100, rbp=0x1234)
    assert seen == [(PUSH, STACK + 0x100)]
    assert (thread["rip"], thread["rsp"]) == (PUSH + 1, STACK + 0xF8)
    assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == (0x1234).to_bytes(8, "little")


def test_a_write_of_a_pushed_register_is_what_is_pushed(world: World) -> None:
    """Invariant: register writes apply before the instruction, as if it ran after the handlers."""
    world.attach().client("a").probe(PUSH, lambda hit: setattr(hit.regs, "rbp", 0x77))
    thread = world.arrive(PID, PUSH, rsp=STACK + 0x100, rbp=0x1234)
    assert (thread["rip"], thread["rsp"], thread["rbp"]) == (PUSH + 1, STACK + 0xF8, 0x77)
    assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == (0x77).to_bytes(8, "little")


def test_an_emulated_push_that_faults_runs_from_a_slot_this_once(world: World) -> None:
    """Invariant: the program takes the fault itself, at its own address, and the next hit is emulated again."""
    lease = world.attach().client("a").probe(PUSH, ignore)
    thread = world.arrive(PID, PUSH, rsp=STACK, rbp=1)
    area = next(iter(world.fake._processes[thread.pid].areas))
    assert (lease.hits, thread["rip"], thread["rsp"]) == (1, area, STACK)
    world.fake.signal(PID, signal.SIGSEGV, code=SEGV_MAPERR, address=STACK - 8)
    world.fake.idle()
    assert delivered(world) == [signal.SIGSEGV]
    assert (thread["rip"], fault_address(thread)) == (PUSH, STACK - 8)
    world.arrive(PID, PUSH, rsp=STACK + 0x100)
    assert (lease.hits, thread["rip"]) == (2, PUSH + 1)


def test_what_an_earlier_hit_overwrote_is_not_put_back_later(world: World) -> None:
    """Invariant: a push that faults touches nothing, whatever the thread's former hits wrote elsewhere."""
    world.attach().client("a").probe(PUSH, ignore)
    world.arrive(PID, PUSH, rsp=STACK + 0x100)
    world.memory.write(VirtAddr(STACK + 0xF8), b"mine now")
    world.arrive(PID, PUSH, rsp=STACK)
    assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == b"mine now"


def test_a_push_onto_a_readable_page_faults_as_the_programs_own(world: World) -> None:
    """Invariant: a stack that can be read and not written is a fault of the instruction's, not of ours."""
    world.memory.map(STACK - 0x1000, bytes(0x1000), permissions="r--p")
    lease = world.attach().client("a").probe(PUSH, ignore)
    thread = world.arrive(PID, PUSH, rsp=STACK, rbp=1)
    area = next(iter(world.fake._processes[thread.pid].areas))
    assert (lease.hits, thread["rip"], thread.condition) == (1, area, "RUNNING")
    world.memory.unmap(STACK - 0x1000, 0x1000)


def test_a_trap_of_one_byte_asks_what_kind_of_stop_it_is(world: World) -> None:
    """Invariant: behind a one-byte instruction, a SIGTRAP that somebody sent is no hit."""
    lease = world.attach().client("a").probe(PUSH, ignore)
    world.fake.pass_by(PID, PUSH + 1)
    world.fake.signal(PID, signal.SIGTRAP, code=0)
    world.fake.idle()
    assert lease.hits == 0
    assert delivered(world) == [signal.SIGTRAP]
    assert world.fake.thread(PID)["rip"] == PUSH + 1


def test_a_boosted_copy_takes_one_stop(world: World) -> None:
    lease = world.attach().client("a").probe(LEA, ignore)
    before = world.fake.thread(PID).stops
    thread = world.arrive(PID, LEA)
    assert (thread["rip"], thread.stops) == (world.slot_of(lease), before + 1)
    copy = world.memory.read(VirtAddr(thread["rip"]), 5)
    assert copy == bytes.fromhex("48 8d 47 01 e9")
    assert world.fake.actions(PID, "step") == []


@pytest.mark.parametrize("place", [LEA, CALL])
def test_a_step_takes_two_stops_and_ends_at_home(world: World, place: int) -> None:
    """Invariant: after the step the thread stands behind its own instruction, or where that leads."""
    lease = world.attach().client("a").probe(place, ignore, strategy="STEP")
    if place == CALL:
        world.fake.end_step(PID, rip=FUNCTION, rsp=STACK + 0xF8)
    before = world.fake.thread(PID).stops
    thread = world.arrive(PID, place, rsp=STACK + 0x100)
    assert (lease.hits, thread.stops) == (1, before + 2)
    assert world.fake.actions(PID, "step") == [("step", PID, world.slot_of(lease))]
    if place == CALL:
        assert thread["rip"] == FUNCTION
        assert world.memory.read(VirtAddr(STACK + 0xF8), 8) == (CALL + 4).to_bytes(8, "little")
    else:
        assert thread["rip"] == LEA + 4


def test_a_repeated_instruction_is_stepped_until_it_is_done(world: World) -> None:
    """Invariant: a copy that is still to be repeated is stepped again, and nobody is told meanwhile."""
    lease = world.attach().client("a").probe(REP, lambda _: Verdict.STEP)
    slot = world.slot_of(lease)
    for _ in range(2):
        world.fake.end_step(PID, rip=slot)
    world.arrive(PID, REP)
    assert len(world.fake.actions(PID, "step")) == 3
    assert world.fake.thread(PID)["rip"] == REP + 2


@pytest.mark.parametrize("place", [LEA, NOP, CALL])
@pytest.mark.contract("verdict-2")
def test_verdict_step_tells_who_asked(world: World, place: int) -> None:
    """Invariant: STEP runs the one instruction, tells the asking client alone where the thread is, and goes on."""
    asking = next(each for each in world.attach().desk.roster.living() if each.name == "recorder")
    asking.probe(place, lambda _: Verdict.STEP)
    other = world.client("other").probe(place, ignore)
    if place == CALL:
        world.fake.end_step(PID, rip=FUNCTION)
    world.arrive(PID, place)
    wanted = {LEA: LEA + 4, NOP: NOP + 1, CALL: FUNCTION}[place]
    assert world.recorder.named("ubpx_thread_stepped") == [(PID, wanted)]
    assert other.hits == 1
    assert world.fake.thread(PID).condition == "RUNNING"


def test_a_signal_at_the_start_of_a_boosted_slot_waits_for_the_copy(world: World) -> None:
    """Invariant: the copy is stepped first, then the signal is delivered with the program's own pc behind it."""
    lease = world.attach().client("a").probe(LEA, ignore)
    thread = world.arrive(PID, LEA)
    world.fake.signal(PID, signal.SIGUSR1)
    world.fake.idle()
    assert world.fake.actions(PID, "step") == [("step", PID, world.slot_of(lease))]
    assert delivered(world) == [signal.SIGUSR1]
    assert thread["rip"] == LEA + 4
    assert thread.mask == 0
    assert lease.hits == 1


def test_a_signal_behind_the_copy_finds_the_programs_own_address(world: World) -> None:
    """Invariant: before the jump back the thread is moved home, without a step."""
    lease = world.attach().client("a").probe(LEA, ignore)
    thread = world.arrive(PID, LEA)
    world.fake.pass_by(PID, world.slot_of(lease) + 4)
    world.fake.signal(PID, signal.SIGUSR1)
    world.fake.idle()
    assert world.fake.actions(PID, "step") == []
    assert (delivered(world), thread["rip"]) == ([signal.SIGUSR1], LEA + 4)


def test_a_signal_in_a_slot_that_nobody_leases_any_more(world: World) -> None:
    """Invariant: a retired slot is still a slot to the thread that is in it."""
    lease = world.attach().client("a").probe(LEA, ignore)
    thread = world.arrive(PID, LEA)
    slot = world.slot_of(lease)
    lease.release()
    world.fake.signal(PID, signal.SIGUSR1)
    world.fake.idle()
    assert world.fake.actions(PID, "step") == [("step", PID, slot)]
    assert (delivered(world), thread["rip"]) == ([signal.SIGUSR1], LEA + 4)


@pytest.mark.parametrize("strategy", ["BOOST", "STEP"])
def test_a_fault_in_the_copy_is_the_programs_own(world: World, strategy: str) -> None:
    """Invariant: the program sees its own pc; si_addr stays that of the data it touched."""
    world.attach().client("a").probe(LOAD, ignore, strategy=strategy)
    if strategy == "STEP":
        world.fake.signal(PID, signal.SIGSEGV, code=SEGV_MAPERR, address=0x10, in_step=True)
    thread = world.arrive(PID, LOAD)
    if strategy == "BOOST":
        world.fake.signal(PID, signal.SIGSEGV, code=SEGV_MAPERR, address=0x10)
        world.fake.idle()
    assert delivered(world) == [signal.SIGSEGV]
    assert (thread["rip"], fault_address(thread)) == (LOAD, 0x10)


@pytest.mark.parametrize("strategy", ["BOOST", "STEP"])
def test_a_fault_that_names_the_copy_is_corrected(world: World, strategy: str) -> None:
    """Invariant: where si_addr is the instruction itself (SIGFPE, SIGILL), the program sees its own address."""
    lease = world.attach().client("a").probe(LOAD, ignore, strategy=strategy)
    slot = world.slot_of(lease)
    if strategy == "STEP":
        world.fake.signal(PID, signal.SIGILL, code=2, address=slot, in_step=True)
    thread = world.arrive(PID, LOAD)
    if strategy == "BOOST":
        world.fake.signal(PID, signal.SIGILL, code=2, address=slot)
        world.fake.idle()
    assert delivered(world) == [signal.SIGILL]
    assert (thread["rip"], fault_address(thread)) == (LOAD, LOAD)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGSTOP])
def test_a_signal_during_a_step_waits_for_its_end(world: World, number: int) -> None:
    """Invariant: the step is finished first, SIGSTOP's too, and the signal is delivered once, after it."""
    world.attach().client("a").probe(LEA, ignore, strategy="STEP")
    world.fake.signal(PID, number, in_step=True)
    thread = world.arrive(PID, LEA)
    assert delivered(world) == [number]
    assert thread["rip"] == LEA + 4
    assert thread.mask == 0
    if number == signal.SIGSTOP:
        assert thread.condition == "LISTENING"
        world.fake.continue_process(PID)
        world.fake.idle()
    assert thread.condition == "RUNNING"


def test_two_signals_during_a_step_are_both_delivered(world: World) -> None:
    """Invariant: no signal is lost or doubled by a step, and their order holds."""
    world.attach().client("a").probe(LEA, ignore, strategy="STEP")
    for number in (signal.SIGSTOP, signal.SIGUSR1):
        world.fake.signal(PID, number, in_step=True)
    world.arrive(PID, LEA)
    world.fake.continue_process(PID)
    world.fake.idle()
    assert sorted(delivered(world)) == sorted([signal.SIGSTOP, signal.SIGUSR1])


def test_an_end_of_a_step_that_nobody_asked_for_is_the_programs(world: World) -> None:
    """Invariant: a program that sets its own trap flag gets its SIGTRAP."""
    world.attach().client("a").probe(LEA, ignore)
    world.fake.signal(PID, signal.SIGTRAP, code=2)
    world.fake.idle()
    assert delivered(world) == [signal.SIGTRAP]


def test_a_signal_elsewhere_is_delivered_at_once(world: World) -> None:
    world.attach().client("a").probe(LEA, ignore)
    world.fake.signal(PID, signal.SIGTERM)
    world.fake.idle()
    assert delivered(world) == [signal.SIGTERM]
    assert world.fake.actions(PID, "step", "block_signals") == []
