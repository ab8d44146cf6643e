"""Instructions that begin again after a signal, programs that step themselves, and who leaves a slot half-way."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from ubpx.core.events import Verdict
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import VirtAddr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.core.conftest import World
    from ubpx.core.probepoints import Lease

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
CALL, FLD, NOP, REP = TEXT + 0x400, TEXT + 0x420, TEXT + 0x440, TEXT + 32 * 7
HANDLER, SP = TEXT + 0x900, STACK + 0x400
FLAGS, TRAP_FLAG = 0x202, 0x100
ERESTARTSYS, EINTR, READ, SIGRETURN = 2**64 - 512, 2**64 - 4, 0, 15
RIP_IN_FRAME = 176


@pytest.fixture
def hard(world: World) -> Iterator[World]:
    """Attached, with a system call, a floating-point instruction and a nop in the text."""
    before = world.memory.read(VirtAddr(TEXT), 0x1000)
    for address, code in {CALL: "0f 05", FLD: "d9 e8", NOP: "90"}.items():
        world.memory.patch(VirtAddr(address), bytes.fromhex(code))
    yield world.attach(101)
    world.memory.patch(VirtAddr(TEXT), before)


def interrupted(world: World, lease: Lease, **registers: int) -> None:
    """A signal has come to a thread that waits in the system call of its slot."""
    slot = world.slot_of(lease)
    thread = world.fake.thread(PID)
    values = {"rip": slot + 2, "rcx": slot + 2, "r11": FLAGS, "rax": ERESTARTSYS, "orig_rax": READ, **registers}
    for name, value in values.items():
        thread[name] = value
    world.fake.signal(PID, signal.SIGUSR1)


def delivered(world: World) -> list[tuple[object, ...]]:
    return [each for each in world.fake.log if each[0] in ("resume", "step") and signal.SIGUSR1 in each]


def enter_handler(world: World, returns_to: int) -> None:
    """The handler's first instruction: a frame on the stack says where it returns to."""
    world.memory.write(VirtAddr(SP + RIP_IN_FRAME), returns_to.to_bytes(8, "little"))
    world.fake.end_step(PID, rip=HANDLER, rsp=SP)


def return_from_handler(world: World, sp: int = SP + 8) -> None:
    """The handler's last system call, if anybody looks at it; other stacks' frames stay where they are."""
    world.fake.thread(PID)["rsp"] = sp
    world.fake.syscall(PID, SIGRETURN)
    world.fake.idle()


def come_back(world: World, **registers: int) -> None:
    world.arrive(PID, CALL, rsp=STACK + 0x800, rcx=CALL + 2, r11=FLAGS, rax=READ, orig_rax=2**64 - 1, **registers)


def test_the_frame_of_a_signal_in_a_system_call_shows_the_program(hard: World) -> None:
    """Invariant: rip and rcx are the program's when a signal meets the slot of a system call."""
    lease = hard.client("a").probe(CALL, lambda _: None)
    thread = hard.arrive(PID, CALL, rax=READ, rsp=STACK + 0x800, eflags=FLAGS)
    assert thread["rip"] == hard.slot_of(lease)
    enter_handler(hard, returns_to=CALL)
    interrupted(hard, lease)
    hard.fake.idle()
    assert hard.fake.actions(PID, "step") == [("step", PID, CALL + 2, signal.SIGUSR1)]
    assert (thread["rcx"], thread["r11"]) == (CALL + 2, FLAGS)


def test_a_system_call_that_begins_again_has_arrived_already(hard: World) -> None:
    """Invariant: no handler runs and nothing is counted when the kernel begins the call again behind a handler."""
    seen: list[int] = []
    lease = hard.client("a").probe(CALL, lambda hit: seen.append(hit.tid))
    hard.arrive(PID, CALL, rax=READ, rsp=STACK + 0x800, eflags=FLAGS)
    enter_handler(hard, returns_to=CALL)
    interrupted(hard, lease)
    hard.fake.idle()
    hard.arrive(PID, CALL, rsp=SP - 64, rcx=5, rax=39)  # the handler itself calls there: that is an arrival
    return_from_handler(hard)
    come_back(hard)
    assert (lease.hits, seen) == (2, [PID, PID])
    assert hard.fake.thread(PID)["rip"] == hard.slot_of(lease)
    come_back(hard)  # as it stands it has come from somewhere else
    assert lease.hits == 3


def test_a_call_that_ended_with_eintr_is_not_expected_back(hard: World) -> None:
    """Invariant: after EINTR the same call with the same registers is a new arrival."""
    lease = hard.client("a").probe(CALL, lambda _: None)
    hard.arrive(PID, CALL, rax=READ, rsp=STACK + 0x800, eflags=FLAGS)
    enter_handler(hard, returns_to=CALL + 2)
    interrupted(hard, lease)
    hard.fake.idle()
    return_from_handler(hard)
    come_back(hard)
    assert lease.hits == 2


def test_a_handler_that_is_left_by_a_jump_is_not_come_back_from(hard: World) -> None:
    """Invariant: after siglongjmp the same instruction with the same registers is a new arrival."""
    lease = hard.client("a").probe(CALL, lambda _: None)
    hard.arrive(PID, CALL, rax=READ, rsp=STACK + 0x800, eflags=FLAGS)
    enter_handler(hard, returns_to=CALL)
    interrupted(hard, lease)
    hard.fake.idle()
    assert hard.fake.thread(PID).reports_syscalls
    return_from_handler(hard, sp=STACK + 0x800)  # a system call from where the jump led to
    assert not hard.fake.thread(PID).reports_syscalls
    come_back(hard)
    assert lease.hits == 2


def test_a_signal_without_a_handler_lets_the_call_go_on(hard: World) -> None:
    """Invariant: the kernel begins the call again at once, at the trap, and that is no arrival."""
    lease = hard.client("a").probe(CALL, lambda _: None)
    hard.arrive(PID, CALL, rax=READ, rsp=STACK + 0x800, eflags=FLAGS)
    hard.fake.arrive(PID, CALL, {"rax": READ, "orig_rax": 2**64 - 1}, in_step=True)
    interrupted(hard, lease)
    hard.fake.idle()
    assert lease.hits == 1
    assert hard.fake.thread(PID)["rip"] == hard.slot_of(lease)


def test_a_repeated_string_comes_back_where_a_signal_took_it(hard: World) -> None:
    """Invariant: a signal in the middle of rep is delivered at once, with the program's pc, and counts nothing."""
    lease = hard.client("a").probe(REP, lambda _: None)
    thread = hard.arrive(PID, REP, rcx=1000, rsi=TEXT, rdi=STACK, rsp=STACK + 0x800, eflags=FLAGS)
    thread["rcx"] = 400
    hard.memory.write(VirtAddr(SP + RIP_IN_FRAME), REP.to_bytes(8, "little"))
    hard.fake.end_step(PID, rip=HANDLER, rsp=SP)
    hard.fake.signal(PID, signal.SIGUSR1)
    hard.fake.idle()
    assert hard.fake.actions(PID, "step") == [("step", PID, REP, signal.SIGUSR1)]
    return_from_handler(hard)
    hard.arrive(PID, REP, rsp=STACK + 0x800, eflags=FLAGS | 0x10000)
    assert (lease.hits, thread["rip"]) == (1, hard.slot_of(lease))
    hard.arrive(PID, REP, rcx=400)
    assert lease.hits == 2


def test_a_forked_child_has_none_of_its_parents_slots(hard: World) -> None:
    """Invariant: a child made by a system call in a slot goes on in the program's own code, rcx and all."""
    lease = hard.client("a").probe(CALL, lambda _: None)
    thread = hard.arrive(PID, CALL, rax=57)
    slot = hard.slot_of(lease)
    thread["rip"], thread["rcx"], thread["rax"] = slot + 2, slot + 2, 0
    hard.fake.fork(PID, 200)
    hard.fake.idle()
    child = hard.fake._processes[200].threads[200]  # type: ignore[index]
    assert (child["rip"], child["rcx"]) == (CALL + 2, CALL + 2)
    assert thread["rip"] == slot + 2


def test_the_floating_point_unit_is_put_right(hard: World) -> None:
    """Invariant: a step of the copy leaves the program's own instruction as the last floating-point one."""
    lease = hard.client("a").probe(FLD, lambda _: None)
    slot = hard.slot_of(lease)
    hard.fake.thread(PID).x87_pointer = slot
    hard.arrive(PID, FLD)
    assert hard.fake.thread(PID).x87_pointer == FLD
    hard.fake.thread(PID).x87_pointer = TEXT
    hard.arrive(PID, FLD)
    assert hard.fake.thread(PID).x87_pointer == TEXT


@pytest.mark.parametrize("strategy", [None, Strategy.STEP])
def test_a_program_that_steps_itself_has_its_trap_behind_a_nop(hard: World, strategy: Strategy | None) -> None:
    """Invariant: an instruction is not passed without the trap that the program waits for."""
    lease = hard.client("a").probe(NOP, lambda _: None, strategy=strategy)
    thread = hard.fake.thread(PID)
    hard.arrive(PID, NOP, eflags=FLAGS | TRAP_FLAG)
    if strategy is None:  # the copy runs by itself, and traps by itself
        slot = thread["rip"]
        assert hard.process.space.slots.code_at(slot) is not None
        thread["rip"] = slot + 1
        hard.fake.signal(PID, signal.SIGTRAP, code=2, address=slot + 1)
        hard.fake.idle()
    assert thread["rip"] == NOP + 1
    assert ("resume", PID, signal.SIGTRAP) in hard.fake.log
    assert int.from_bytes(thread.siginfo[16:24], "little") == NOP + 1
    hard.arrive(PID, NOP, eflags=FLAGS)
    assert lease.hits == 2


def test_a_step_over_a_system_call_keeps_no_signal_back(hard: World) -> None:
    """Invariant: STEP at a system call runs it as it is, since it may wait; then rcx, r11 and pc are the program's."""
    lease = hard.client("a").probe(CALL, lambda _: Verdict.STEP)
    slot = hard.slot_of(lease)
    thread = hard.fake.thread(PID)
    hard.fake.end_step(PID, rip=slot + 2, rcx=slot + 2, r11=FLAGS | TRAP_FLAG, rax=5)
    hard.arrive(PID, CALL, rax=39, eflags=FLAGS)
    assert hard.fake.actions(PID, "step") == [("step", PID, slot)]
    assert hard.fake.actions(PID, "block_signals") == []
    assert (thread["rip"], thread["rcx"], thread["r11"]) == (CALL + 2, CALL + 2, FLAGS)


def test_the_handler_of_a_fault_comes_back_as_a_new_arrival(hard: World) -> None:
    """Invariant: a repeated string that faults is as any instruction that faults: run again, it is hit again."""
    lease = hard.client("a").probe(REP, lambda _: None)
    thread = hard.arrive(PID, REP, rcx=1000, eflags=FLAGS)
    hard.fake.signal(PID, signal.SIGSEGV, code=1, address=TEXT)
    hard.fake.idle()
    assert (thread["rip"], hard.fake.actions(PID, "step")) == (REP, [])
    hard.arrive(PID, REP, eflags=FLAGS)
    assert lease.hits == 2


def test_what_a_debug_register_watches_is_not_done_in_the_programs_stead(hard: World) -> None:
    """Invariant: a push onto a watched word runs itself, so that the watchpoint notices it."""
    push = TEXT + 32
    watching = hard.client("b")
    lease = hard.client("a").probe(push, lambda _: None)
    thread = hard.arrive(PID, push, rsp=STACK + 0x400, eflags=FLAGS)
    assert thread["rip"] == push + 1
    watching.watch(STACK + 0x3F8, lambda _: None)
    thread = hard.arrive(PID, push, rsp=STACK + 0x400, eflags=FLAGS)
    assert hard.process.space.slots.code_at(thread["rip"]) is not None
    thread = hard.arrive(PID, push, rsp=STACK + 0x800, eflags=FLAGS)
    assert (thread["rip"], lease.hits) == (push + 1, 3)
