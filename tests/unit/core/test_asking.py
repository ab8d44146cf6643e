"""Signals and system calls: who is asked, and what comes of the answers."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import PluginFailed, TargetGone, UsageError
from ubpx.core.clients import ClientState
from ubpx.core.events import Verdict
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION, REP = (TEXT + 32 * i for i in range(8))
USR1, USR2 = int(signal.SIGUSR1), int(signal.SIGUSR2)


class Asked:
    """Hooks that keep what they were asked, and answer as told."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []
        self.stepped: list[tuple[int, int]] = []

    @hookimpl
    def ubpx_signal(self, tid: int, signal: int) -> Any:
        self.asked.append((tid, signal))
        return self.answer

    @hookimpl
    def ubpx_thread_stepped(self, tid: int, address: int) -> None:
        self.stepped.append((tid, address))


class AskedOfCalls(Asked):
    """The same, of system calls too."""

    @hookimpl
    def ubpx_syscall_entered(self, tid: int, name: str, arguments: tuple[int, ...]) -> Any:
        self.asked.append((tid, name, arguments[:2]))
        return self.answer

    @hookimpl
    def ubpx_syscall_exited(self, tid: int, number: int, result: int) -> Any:
        self.asked.append((tid, number, result))
        return None


def delivered(world: World, tid: int = PID) -> list[int]:
    """The signals that the thread was let run with."""
    return [entry[2] for entry in world.fake.actions(tid, "resume") if entry[2]]


def test_every_client_with_the_hook_is_asked_before_the_delivery(world: World) -> None:
    """Invariant: a signal is told to each client once, before the program sees it, and is then delivered."""
    first, second = Asked(), Asked(Verdict.RESUME)
    world.attach().client("first", hooks=first)
    world.client("second", hooks=second)
    world.fake.signal(PID, USR1)
    world.fake.idle()
    assert first.asked == second.asked == [(PID, USR1)]
    assert delivered(world) == [USR1]


def test_a_catch_set_filters_for_its_client_alone(world: World) -> None:
    """Invariant: a client is asked about what it catches; the others are asked as before."""
    some, every, none = Asked(), Asked(), Asked()
    client = world.attach().client("some", hooks=some)
    client.catch_signals([USR2])
    world.client("every", hooks=every)
    world.client("none", hooks=none).catch_signals([])
    for number in (USR1, USR2):
        world.fake.signal(PID, number)
    world.fake.idle()
    assert (some.asked, every.asked, none.asked) == ([(PID, USR2)], [(PID, USR1), (PID, USR2)], [])
    client.catch_signals(None)
    world.fake.signal(PID, USR1)
    world.fake.idle()
    assert some.asked == [(PID, USR2), (PID, USR1)]


def test_a_hold_keeps_the_signal_and_may_exchange_it(world: World) -> None:
    """Invariant: HOLD parks the thread before the delivery; the release delivers, exchanges or drops the signal."""
    hooks = Asked(Verdict.HOLD)
    world.attach().client("a", hooks=hooks)
    for given, expected in ((None, [USR1]), (USR2, [USR1, USR2]), (0, [USR1, USR2])):
        world.fake.signal(PID, USR1)
        world.fake.idle()
        assert world.fake.thread(PID).condition == "STOPPED"
        (hold,) = world.holds()
        hold.release(signal=given)
        world.fake.idle()
        assert delivered(world) == expected
        assert world.fake.thread(PID).condition == "RUNNING"


def test_a_signal_given_where_none_is_due_is_sent(world: World) -> None:
    """Invariant: a signal given at the release of a thread that stopped for something else is not lost."""
    world.attach()
    hold = world.client("a").hold(PID)
    hold.release(signal=USR2)
    world.fake.idle()
    assert ("send_signal", PID, USR2) in world.fake.actions(PID, "send_signal")
    assert delivered(world) == [USR2]


def test_a_signal_during_a_step_is_asked_about_after_it(world: World) -> None:
    """Invariant: whoever is asked sees the thread in the program's own code, never in a copy."""
    hooks = Asked(Verdict.HOLD)
    client = world.attach().client("a", hooks=hooks)
    client.probe(LEA, lambda _: None, strategy="STEP")
    world.fake.signal(PID, USR1, in_step=True)
    world.arrive(PID, LEA)
    assert hooks.asked == [(PID, USR1)]
    assert world.desk.registers(world.fake.thread(PID).tid)["rip"] == LEA + 4
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert delivered(world) == [USR1]


def test_a_copy_that_faults_shows_the_programs_own_address(world: World) -> None:
    """Invariant: a client that is asked about a fault sees the thread at its own instruction."""
    hooks = Asked(Verdict.HOLD)
    client = world.attach().client("a", hooks=hooks)
    lease = client.probe(LOAD, lambda _: None, strategy="BOOST")
    slot = world.slot_of(lease)
    world.fake.arrive(PID, LOAD)
    world.fake.signal(PID, signal.SIGSEGV, code=1, address=0)
    world.fake.idle()
    assert slot
    assert hooks.asked == [(PID, signal.SIGSEGV)]
    assert world.desk.registers(world.fake.thread(PID).tid)["rip"] == LOAD


@pytest.mark.parametrize("answer", ["HOLD", 7])
def test_anything_else_returned_counts_as_a_failure(world: World, answer: object) -> None:
    """Invariant: a hook that answers nonsense is as one that raised, and the signal is delivered."""
    hooks = Asked(answer)
    client = world.attach().client("a", hooks=hooks)
    for _ in range(3):
        world.fake.signal(PID, USR1)
    world.fake.idle()
    assert delivered(world) == [USR1] * 3
    assert client.state is ClientState.QUARANTINED
    world.fake.signal(PID, USR1)
    world.fake.idle()
    assert len(hooks.asked) == 3


def test_system_calls_stop_nobody_who_is_not_asked(world: World) -> None:
    """Invariant: only while some client wants to be asked do system calls cost stops."""
    client = world.attach(101).client("a", hooks=AskedOfCalls())
    assert all(world.fake.thread(tid).reports_syscalls for tid in (PID, 101))
    assert len(world.fake.actions(101, "interrupt")) == 1
    client.catch_syscalls([])
    assert not any(world.fake.thread(tid).reports_syscalls for tid in (PID, 101))
    client.catch_syscalls(["read"])
    assert world.fake.thread(101).reports_syscalls
    client.close()
    assert not world.fake.thread(101).reports_syscalls


def test_a_thread_born_later_reports_its_calls_too(world: World) -> None:
    """Invariant: nothing of what is wanted is forgotten for new threads."""
    hooks = AskedOfCalls()
    world.attach().client("a", hooks=hooks)
    world.fake.clone(PID, 101)
    world.fake.idle()
    world.fake.syscall(101, 1, 5, result=9)
    world.fake.idle()
    assert hooks.asked == [(101, "write", (5, 0)), (101, 1, 9)]


def test_each_is_asked_about_what_it_catches(world: World) -> None:
    """Invariant: catch sets are united for the program and filtered per client."""
    reads, both = AskedOfCalls(), AskedOfCalls()
    world.attach().client("reads", hooks=reads).catch_syscalls(["read"])
    world.client("both", hooks=both).catch_syscalls(["read", 1])
    world.fake.syscall(PID, 0, 3, result=1)
    world.fake.syscall(PID, 1, 4, result=2)
    world.fake.syscall(PID, 39, result=3)
    world.fake.idle()
    assert reads.asked == [(PID, "read", (3, 0)), (PID, 0, 1)]
    assert both.asked == [*reads.asked, (PID, "write", (4, 0)), (PID, 1, 2)]


def test_a_call_may_be_held(world: World) -> None:
    """Invariant: HOLD at the entry keeps the call from being made until the release."""
    world.attach().client("a", hooks=AskedOfCalls(Verdict.HOLD))
    world.fake.syscall(PID, 1, 4)
    world.fake.idle()
    assert world.fake.thread(PID).condition == "STOPPED"
    (hold,) = world.holds()
    assert (hold.owner, hold.thread) == ("a", PID)
    hold.release({"rdi": 6})
    world.fake.idle()
    assert world.fake.thread(PID)["rdi"] == 6
    assert world.fake.thread(PID).condition == "RUNNING"


def test_what_cannot_be_caught(world: World) -> None:
    """Invariant: a catch set that makes no sense is refused, and the old one stays."""
    client = world.attach().client("a", hooks=AskedOfCalls())
    with pytest.raises(UsageError, match="'nosuch' is no system call"):
        client.catch_syscalls(["nosuch"])
    with pytest.raises(UsageError, match="-1 is no system call"):
        client.catch_syscalls([-1])
    with pytest.raises(UsageError, match="99 is no signal"):
        client.catch_signals([99])
    with pytest.raises(UsageError, match="no signal"):
        client.catch_signals([signal.SIGKILL])
    assert client.caught == {}
    with pytest.raises(UsageError, match="implements no ubpx_signal"):
        world.client("plain").catch_signals([USR1])


def test_hooks_that_are_not_as_specified_are_refused(world: World) -> None:
    """Invariant: a misspelt argument is found when the client joins, and nobody has joined then."""

    class Wrong:
        @hookimpl
        def ubpx_signal(self, signl: int) -> None:
            """Never called."""

    world.attach()
    with pytest.raises(PluginFailed, match="signl"):
        world.client("wrong", hooks=Wrong())
    assert [client.name for client in world.desk.roster.living()] == ["recorder"]


# One instruction at a time -------------------------------------------------------------------


def test_a_client_steps_what_it_holds(world: World) -> None:
    """Invariant: the thread runs one instruction, its client is told, and it is held again."""
    hooks = Asked()
    client = world.attach().client("a", hooks=hooks)
    client.hold(PID)
    world.fake.thread(PID)["rip"] = LEA
    client.step(PID)
    world.fake.idle()
    assert hooks.stepped == [(PID, LEA + 4)]
    assert world.fake.thread(PID).condition == "STOPPED"
    assert len(world.holds()) == 1
    client.step(PID, {"rip": LONG_NOP, "rdi": 5})
    world.fake.idle()
    assert hooks.stepped[-1] == (PID, LONG_NOP + 4)
    assert world.fake.thread(PID)["rdi"] == 5


@pytest.mark.parametrize("place", [LEA, PUSH, NOP])
@pytest.mark.parametrize("strategy", [None, "STEP", "INLINE"])
def test_a_step_from_an_arrival_runs_the_probed_instruction(world: World, place: int, strategy: str | None) -> None:
    """Invariant: whatever the strategy, a thread held at a hit stands at the probed address, then behind it."""
    hooks = Asked()
    client = world.attach().client("a", hooks=hooks)
    lease = client.probe(place, lambda _: Verdict.HOLD, strategy=strategy)
    world.arrive(PID, place, rsp=STACK + 0x100)
    tid = world.fake.thread(PID).tid
    assert world.desk.registers(tid)["rip"] == place
    assert world.desk.registers(tid)["rsp"] == STACK + 0x100
    client.step(PID)
    world.fake.idle()
    behind = {LEA: LEA + 4, PUSH: PUSH + 1, NOP: NOP + 1}[place]
    assert hooks.stepped == [(PID, behind)]
    assert world.desk.registers(tid)["rip"] == behind
    assert world.fake.thread(PID).condition == "STOPPED"
    assert lease.hits == 1
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert world.fake.thread(PID).condition == "RUNNING"


def test_a_step_onto_a_trap_arrives(world: World) -> None:
    """Invariant: a step from an address where somebody's trap stands is a hit, and runs the instruction under it."""
    hooks = Asked()
    client = world.attach().client("a", hooks=hooks)
    other = world.client("b").probe(LEA, lambda _: None)
    client.hold(PID)
    world.fake.thread(PID)["rip"] = LEA
    world.fake.signal(PID, signal.SIGTRAP, code=0x80, in_step=True)
    world.fake.thread(PID)["rip"] = LEA + 1
    client.step(PID)
    world.fake.idle()
    assert other.hits == 1
    assert hooks.stepped == [(PID, LEA + 4)]
    assert world.fake.thread(PID).condition == "STOPPED"


def test_a_step_waits_for_the_other_holders(world: World) -> None:
    """Invariant: a thread that somebody else holds too does not step before they let it."""
    hooks = Asked()
    client, other = world.attach().client("a", hooks=hooks), world.client("b")
    client.hold(PID)
    whole = other.hold()
    world.fake.thread(PID)["rip"] = LEA
    client.step(PID)
    world.fake.idle()
    assert hooks.stepped == []
    whole.release()
    world.fake.idle()
    assert hooks.stepped == [(PID, LEA + 4)]
    assert world.fake.thread(PID).condition == "STOPPED"


def test_a_step_delivers_the_signal_that_is_due(world: World) -> None:
    """Invariant: a step from a signal's stop goes into its handler."""
    hooks = Asked(Verdict.HOLD)
    client = world.attach().client("a", hooks=hooks)
    world.fake.signal(PID, USR1)
    world.fake.idle()
    client.step(PID)
    world.fake.idle()
    assert world.fake.actions(PID, "step")[-1][-1] == USR1
    assert len(hooks.stepped) == 1


def test_a_hold_at_the_fault_of_a_step_ends_the_step(world: World) -> None:
    """Invariant: a client that answers HOLD while it steps the thread has it as it stands: nothing is delivered."""
    hooks = Asked(Verdict.HOLD)
    client = world.attach().client("a", hooks=hooks)
    client.hold(PID)
    world.fake.signal(PID, int(signal.SIGSEGV), code=1, in_step=True)
    client.step(PID)
    world.fake.idle()
    assert hooks.asked == [(PID, signal.SIGSEGV)]
    assert hooks.stepped == []
    assert world.fake.thread(PID).condition == "STOPPED"
    for hold in world.holds():
        hold.release()
    world.fake.idle()
    assert delivered(world) == [signal.SIGSEGV]
    assert world.fake.thread(PID).condition == "RUNNING"


def test_a_hook_holds_a_new_thread_before_its_first_instruction(world: World) -> None:
    """Invariant: client.hold in ubpx_thread_started returns at once, and the new thread parks where it was born."""

    class Keeper:
        @hookimpl
        def ubpx_thread_started(self, client: Any, tid: int) -> None:
            client.hold(tid)

    world.attach().client("a", hooks=Keeper())
    world.fake.clone(PID, 101)
    world.fake.idle()
    assert world.fake.thread(101).condition == "STOPPED"
    assert world.fake.actions(101, "resume") == []
    assert world.fake.thread(PID).condition == "RUNNING"
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert world.fake.thread(101).condition == "RUNNING"


def test_a_handler_may_ask_for_its_threads_registers(world: World) -> None:
    """Invariant: in a handler the registers of the thread that arrived are those of the hit."""
    seen: list[tuple[int, int]] = []

    def look(hit: Any) -> None:
        registers = world.desk.registers(hit.tid)
        seen.append((registers["rip"], registers["rdi"]))

    world.attach().client("a").probe(LEA, look)
    world.arrive(PID, LEA, rdi=7)
    assert seen == [(LEA, 7)]


def test_what_cannot_step(world: World) -> None:
    client = world.attach(101).client("a")
    with pytest.raises(UsageError, match="'a' does not hold thread 101"):
        client.step(101)
    world.client("b").hold(101)
    with pytest.raises(UsageError, match="'a' does not hold thread 101"):
        client.step(101)
    with pytest.raises(UsageError, match="thread 100 is not stopped; hold it first"):
        world.desk.registers(world.fake.thread(PID).tid)
    with pytest.raises(UsageError, match="no thread 999"):
        world.desk.registers(999)  # type: ignore[arg-type]
    world.fake.kill(PID)
    world.fake.idle()
    with pytest.raises(TargetGone):
        client.step(101)


def test_a_thread_held_at_a_signal_can_be_borrowed(world: World) -> None:
    """Invariant: a thread held at a signal maps slots for another client, and gets the signal at its release."""
    hooks = Asked(Verdict.HOLD)
    world.attach().client("a", hooks=hooks)
    world.fake.signal(PID, USR1, code=-6)
    world.fake.idle()
    info = world.fake.thread(PID).siginfo
    lease = world.client("b").probe(LEA, lambda _: None)
    assert lease.probepoint is not None
    assert lease.probepoint.slot is not None
    assert delivered(world) == []
    assert world.fake.thread(PID).condition == "STOPPED"
    (hold,) = world.holds()
    hold.release()
    world.fake.idle()
    assert delivered(world) == [USR1]
    assert world.fake.thread(PID).siginfo == info
    assert hooks.asked == [(PID, USR1)]
    assert world.fake.thread(PID).condition == "RUNNING"


@pytest.mark.parametrize("given", [0, USR2])
def test_a_borrowed_threads_signal_may_still_be_exchanged(world: World, given: int) -> None:
    """Invariant: the release decides about the signal, whatever was done with the thread meanwhile."""
    world.attach().client("a", hooks=Asked(Verdict.HOLD))
    world.fake.signal(PID, USR1)
    world.fake.idle()
    world.client("b").probe(LEA, lambda _: None)
    (hold,) = world.holds()
    hold.release(signal=given)
    world.fake.idle()
    assert delivered(world) == ([given] if given else [])


def test_a_detach_brings_a_borrowed_threads_signal_back(world: World) -> None:
    """Invariant: no signal is lost to a detach."""
    world.attach().client("a", hooks=Asked(Verdict.HOLD))
    world.fake.signal(PID, USR1)
    world.fake.idle()
    world.client("b").probe(LEA, lambda _: None)
    world.detach()
    assert ("send_signal", PID, USR1) in world.fake.actions(PID, "send_signal")
