"""Signals, system calls and single steps of a real program: who is asked, told, and in charge."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

pytestmark = pytest.mark.over_both

HOOK_PATIENCE_S = 10


class SyscallCounter:
    """Keeps every system call that it is asked about: those named, or all."""

    def __init__(self, *calls: str, answer: ubpx.Verdict | None = None) -> None:
        self.calls = calls
        self.answer = answer
        self.entered: list[tuple[int, str]] = []
        self.exited: list[tuple[int, str, int]] = []

    @hookimpl
    def ubpx_process_attached(self, client: ubpx.Client) -> None:
        if self.calls:
            client.catch_syscalls(self.calls)

    @hookimpl
    def ubpx_syscall_entered(self, tid: int, name: str) -> ubpx.Verdict | None:
        self.entered.append((tid, name))
        return self.answer

    @hookimpl
    def ubpx_syscall_exited(self, tid: int, name: str, result: int) -> None:
        self.exited.append((tid, name, result))


class SignalKeeper:
    """Keeps every signal, and answers as told."""

    def __init__(self, answer: ubpx.Verdict | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []
        self.stepped: list[int] = []
        self.step = threading.Event()

    @hookimpl
    def ubpx_signal(self, tid: int, signal: int) -> ubpx.Verdict | None:
        self.asked.append((tid, signal))
        return self.answer

    @hookimpl
    def ubpx_thread_stepped(self, address: int) -> None:
        self.stepped.append(address)
        self.step.set()

    def step_once(self, client: ubpx.Client, tid: int) -> int:
        """One instruction of a held thread; where it then stands."""
        self.step.clear()
        client.step(tid)
        assert self.step.wait(HOOK_PATIENCE_S)
        return self.stepped[-1]


def test_every_system_call_is_told_twice(target_program: StartProgram) -> None:
    """Invariant: of all threads' caught calls each entry and each exit is told once, with number, name and result."""
    program = target_program("caller", 4)
    hooks = SyscallCounter("getppid")
    with ubpx.attach(program.pid) as target:
        client = target.client("calls", hooks=hooks)
        assert program.tell("g").number("calls") == 400
        assert len(hooks.entered) == len(hooks.exited) == 400
        assert {(name, result) for _, name, result in hooks.exited} == {("getppid", os.getpid())}
        assert {tid for tid, _ in hooks.entered} <= set(target.threads())
        client.close()
        stops = target.stops
        assert program.tell("g").number("calls") == 400
        assert target.stops - stops < 100, "nobody asks any more, and yet calls stop the program"
    assert program.tell("q").wait() == 0


def test_calls_are_told_to_threads_in_a_call_too(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: a thread that was blocked in a call when the client joined reports the next one rightly."""
    program = target_program("caller", 2)
    hooks = SyscallCounter()
    with ubpx.attach(program.pid) as target:
        target.client("calls", hooks=hooks)
        assert program.tell("g").number("calls") == 200
        assert [name for _, name in hooks.entered].count("getppid") == 200
        said = ("write", len("calls=200\n"))
        assert eventually(lambda: said in {(name, result) for _, name, result in list(hooks.exited)})
    assert program.tell("q").wait() == 0


def test_a_held_call_is_made_after_the_release(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: HOLD at an entry keeps the call from being made, with its arguments open to change."""
    program = target_program("echo")
    hooks = SyscallCounter("write", answer=ubpx.Verdict.HOLD)
    with ubpx.attach(program.pid) as target:
        client = target.client("calls", hooks=hooks)
        program.tell("41\n")
        assert eventually(target.holds)
        (hold,) = target.holds()
        assert target.registers(program.pid)["orig_rax"] == 1
        buffer, size = (target.registers(program.pid)[name] for name in ("rsi", "rdx"))
        assert target.memory.read(buffer, size) == b"answer=42\n"
        client.catch_syscalls([])
        target.memory.write(buffer, b"answer=24\n")
        hold.release()
        assert program.number("answer") == 24
    assert program.tell("q\n").wait() == 0


@pytest.mark.parametrize("flags", [(), ("-m32",)], ids=["x86_64", "i386"])
def test_a_thread_held_at_a_call_can_be_probed_and_left(
    target_program: StartProgram, eventually: Callable[..., bool], flags: tuple[str, ...]
) -> None:
    """Invariant: with its only thread held before a call a program maps slots, is left, and makes the call once."""
    program = target_program("echo", flags=flags)
    maps = program.maps()
    hooks = SyscallCounter("write", answer=ubpx.Verdict.HOLD)
    with ubpx.attach(program.pid) as target:
        target.client("calls", hooks=hooks)
        program.tell("41\n")
        assert eventually(target.holds)
        lease = target.client("other").probe("answer", lambda _: None, strategy="BOOST")
        assert lease.probepoint is not None
        assert lease.probepoint.slot is not None
        assert len(hooks.entered) == 1
    assert program.number("answer") == 42
    program.assert_untouched(maps)
    assert program.tell("q\n").wait() == 0


def test_signals_are_asked_about_and_delivered(target_program: StartProgram) -> None:
    """Invariant: every signal is told before the program's handler runs, and is delivered."""
    program = target_program("caller", 1)
    hooks = SignalKeeper()
    with ubpx.attach(program.pid) as target:
        target.client("signals", hooks=hooks)
        seen: list[int] = []
        target.client("handler").probe("handled", lambda _: seen.append(len(hooks.asked)))
        for count in (1, 2, 3):
            assert program.tell("u").number("signals") == count
        assert hooks.asked == [(program.pid, signal.SIGUSR1)] * 3
        assert seen == [1, 2, 3]
    assert program.tell("q").wait() == 0


def test_a_held_signal_may_be_dropped(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: a client that holds a thread at a signal decides whether the program ever sees it."""
    program = target_program("caller", 1)
    hooks = SignalKeeper(ubpx.Verdict.HOLD)
    with ubpx.attach(program.pid) as target:
        target.client("signals", hooks=hooks)
        for given, count in ((0, 0), (None, 1), (signal.SIGUSR1, 2)):
            program.tell("u")
            assert eventually(target.holds)
            (hold,) = target.holds()
            hold.release(signal=given)
            assert program.number("signals") == count
        assert len(hooks.asked) == 3
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", ["JUMP", "BOOST", "STEP", "INLINE", None])
def test_stepping_on_from_a_hit(
    target_program: StartProgram, eventually: Callable[..., bool], strategy: str | None
) -> None:
    """Invariant: from a hit a client steps instruction by instruction through the program's own code."""
    program = target_program("echo", 2)
    hooks = SignalKeeper()
    with ubpx.attach(program.pid) as target:
        client = target.client("debugger", hooks=hooks)
        lease = client.probe("answer", lambda _: ubpx.Verdict.HOLD, strategy=strategy)
        counter = target.client("counter").probe("busy", lambda _: None)
        program.tell("5\n")
        assert eventually(target.holds)
        address = lease.address
        assert address is not None
        before = target.registers(program.pid)
        assert (before["rip"], before["rdi"]) == (address, 5)
        assert hooks.step_once(client, program.pid) == address + 4
        assert target.registers(program.pid)["rax"] == 6
        back = int.from_bytes(target.memory.read(before["rsp"], 8), "little")
        assert hooks.step_once(client, program.pid) == back
        assert target.registers(program.pid)["rsp"] == before["rsp"] + 8
        steps = 2
        while program.pid in target.threads() and not _made_call(target, program.pid) and steps < 2_000:
            hooks.step_once(client, program.pid)
            steps += 1
        assert steps > 10
        (hold,) = target.holds()
        hold.release()
        assert program.number("answer") == 6
        assert (lease.hits, hooks.asked) == (1, [])
        assert eventually(lambda: counter.hits > 0)
    assert program.tell("q\n").wait() == 0


def _made_call(target: ubpx.Target, tid: int) -> bool:
    """Whether a system call has just returned: rcx is then the address behind it."""
    registers = target.registers(tid)
    return registers["rcx"] == registers["rip"] and target.memory.read(registers["rip"] - 2, 2) == b"\x0f\x05"


def test_stepping_through_a_probed_function(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: stepping onto another client's probe is a hit for it, and the step runs the probed instruction."""
    program = target_program("echo")
    hooks = SignalKeeper()
    with ubpx.attach(program.pid) as target:
        client = target.client("debugger", hooks=hooks)
        lease = client.probe("answer", lambda _: ubpx.Verdict.HOLD)
        other: Any = target.client("other").probe("answer+0x4", lambda _: None)
        program.tell("5\n")
        assert eventually(target.holds)
        assert hooks.step_once(client, program.pid) == other.address
        assert other.hits == 0
        assert hooks.step_once(client, program.pid) not in {lease.address, other.address}
        assert other.hits == 1
        (hold,) = target.holds()
        hold.release()
        assert program.number("answer") == 6
    assert program.tell("q\n").wait() == 0


def test_a_step_over_a_call_that_blocks_may_be_left(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: a thread that steps into a blocking system call keeps neither a quiesce nor a detach waiting."""
    program = target_program("echo")
    hooks = SignalKeeper()
    with ubpx.attach(program.pid) as target:
        client = target.client("debugger", hooks=hooks)
        client.hold(program.pid)  # blocked in read, which restarts
        client.step(program.pid)
        other = target.client("other").probe("answer", lambda _: None)
        with target.client("third").hold():
            assert target.registers(program.pid)["rip"]
        assert other.state == ubpx.LeaseState.ARMED
    program.tell("5\n")
    assert program.number("answer") == 6
    assert program.tell("q\n").wait() == 0


def test_a_program_held_at_a_fault_can_be_probed(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: mapping slots in a program whose one thread is held at a fault delivers nothing before the release."""
    program = target_program("faults", "load", 1)
    hooks = SignalKeeper(ubpx.Verdict.HOLD)
    with ubpx.attach(program.pid) as target:
        target.client("debugger", hooks=hooks)
        program.tell("g")
        assert eventually(target.holds)
        lease = target.client("other").probe("probed_fault_load", lambda _: None, strategy="BOOST")
        assert lease.probepoint is not None
        assert lease.probepoint.slot is not None
        assert hooks.asked == [(program.pid, signal.SIGSEGV)]
        assert target.wait(timeout=0.05) is None
        hooks.answer = None
        (hold,) = target.holds()
        hold.release()
        program.number("arrivals")
    assert program.tell("q").wait() == 0
