"""ptrace++ has what ptrace has not: others at the same place, masks, steps that nobody slips past."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx_ptracepp import (
    NewProcessEvent,
    ProcessExecution,
    ProcessExit,
    ProcessSignal,
    Ptrace,
    PtraceError,
    createChild,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.conftest import Expect
    from tests.real.conftest import StartProgram

PATIENCE_S = 30
LEA_LENGTH = 4
SYSCALL_STOP = signal.SIGTRAP | 0x80


def serve(expect: Expect, ptrace: Ptrace, hits: list[int]) -> None:
    """Continue every thread that stops, until nothing is traced."""
    while len(ptrace):
        event = expect.next(ptrace)
        if isinstance(event, ProcessSignal):
            hits.append(event.process.pid)
            event.process.cont(event.signum)


def test_two_debuggers_and_a_client_share_an_address(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: each of three at one address gets every hit of four threads, and nobody another's stops."""
    program = target_program("hot_calls", "probed_lea", 4, 50)
    hits: tuple[list[int], list[int]] = ([], [])
    debuggers = (Ptrace(), Ptrace())
    first, second = (each.attach(program.pid) for each in debuggers)
    assert first.target is second.target
    lease = first.target.client("counter").probe("probed_lea", lambda _: None)
    address: Any = lease.address
    breakpoints = [process.createBreakpoint(address) for process in (first, second)]
    assert lease.probepoint is not None
    assert len(lease.probepoint.clients) == 3
    assert first.peek(address, 1) == breakpoints[1].old_bytes != b"\xcc"
    first.cont()
    second.cont()
    servers = [threading.Thread(target=serve, args=(expect, *each)) for each in zip(debuggers, hits, strict=True)]
    for server in servers:
        server.start()
    assert program.tell("g").number("calls") == 200
    assert [len(each) for each in hits] == [each.hits for each in breakpoints] == [200, 200]
    assert lease.hits == 200
    assert program.tell("q").wait() == 0
    for server in servers:
        server.join(PATIENCE_S)
        assert not server.is_alive()


def test_stepping_over_a_breakpoint_that_another_has_too(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: who removes its own breakpoint and steps runs the one instruction, and is no hit for the other."""
    program = target_program("echo")
    maps = program.maps()
    mine, other = Ptrace(), Ptrace()
    process, others = mine.attach(program.pid), other.attach(program.pid)
    answer = expect.address(process.target, "answer")
    breakpoint_, theirs = process.createBreakpoint(answer), others.createBreakpoint(answer)
    for each in (process, others):
        each.cont()
    for count in (1, 2, 3):
        program.tell("5\n")
        expect.hit(mine, answer)
        expect.hit(other, answer)
        breakpoint_.desinstall()
        assert process.findBreakpoint(answer) is None
        process.setInstrPointer(answer)
        process.singleStep()
        assert process.wait(0) is None, "the other still holds the thread"
        others.cont()
        assert expect.next(process).signum == signal.SIGTRAP
        assert process.getInstrPointer() == answer + LEA_LENGTH
        assert theirs.hits == count
        breakpoint_ = process.createBreakpoint(answer)
        process.cont()
        assert program.number("answer") == 6
    process.detach()
    assert others.peek(answer, 1) != b"\xcc"
    program.tell("8\n")
    expect.hit(other, answer).cont()
    assert program.number("answer") == 9
    others.detach()
    program.assert_untouched(maps)


def test_threads_at_a_removed_breakpoint_go_on(
    expect: Expect, target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: threads that arrived unseen at a breakpoint run on when it is removed, and it counts for nobody."""
    program = target_program("hot_calls", "probed_lea", 4, 50)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        address = expect.address(process.target, "probed_lea")
        breakpoint_ = process.createBreakpoint(address)
        process.cont()
        program.tell("g")
        thread = expect.hit(ptrace, address)
        assert eventually(lambda: len(process.target.holds()) == 4)
        breakpoint_.desinstall()
        assert len(process.target.holds()) == 4, "it may be set again after a step"
        thread.cont()
        assert program.number("calls") == 200
        while event := ptrace.wait(0):
            assert isinstance(event, ProcessExit)
        assert process.target.probepoints() == ()
    assert program.tell("q").wait() == 0


def test_a_target_of_ones_own_is_shared(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: a Ptrace object joins a target that ubpx has attached, and leaves it attached."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target:
        lease = target.client("counter").probe("answer", lambda _: None)
        with Ptrace() as ptrace:
            process = ptrace.share(target)
            assert lease.address is not None
            process.createBreakpoint(lease.address)
            process.cont()
            program.tell("1\n")
            expect.hit(ptrace, lease.address).cont()
            assert program.number("answer") == 2
        assert program.answer(2) == 3
        assert lease.hits == 2
        ptrace.share(target).cont()
    assert isinstance(expect.next(ptrace), ProcessExit)  # left by somebody else: traced no more
    assert len(ptrace) == 0
    assert program.tell("q\n").wait() == 0


def test_signals_are_each_debuggers_own(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: a debugger is told of the signals in its own mask, and decides whether they are delivered."""
    program = target_program("caller", 1)
    with Ptrace() as every, Ptrace() as some:
        some.catchSignals([signal.SIGUSR2])
        mine, other = every.attach(program.pid), some.attach(program.pid)
        mine.cont()
        other.cont()
        for given, count in ((0, 0), (signal.SIGUSR1, 1), (signal.SIGTRAP, 1)):
            program.tell("u")
            event = expect.next(every)
            assert (event.signum, event.process) == (signal.SIGUSR1, mine)
            mine.cont(given)
            assert program.number("signals") == count
        assert some.wait(0) is None
        every.catchSignals([])
        assert program.tell("u").number("signals") == 2
        assert every.wait(0) is None
        with pytest.raises(PtraceError, match="is no signal"):
            every.catchSignals([9999])


def test_a_thread_stops_at_its_system_calls(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: syscall() stops at the entry and the exit of the calls in the mask, of that thread alone."""
    program = target_program("echo", 2)
    with Ptrace() as ptrace:
        ptrace.catchSyscalls(["write"])
        process = ptrace.attach(program.pid)
        process.syscall()
        program.tell("5\n")
        event = expect.next(process)
        registers = process.getregs()
        assert (event.signum, registers.orig_rax) == (SYSCALL_STOP, 1)
        assert process.readBytes(registers.rsi, registers.rdx) == b"answer=6\n"
        process.syscall()
        ptrace.waitSyscall(process)
        assert process.getreg("rax") == len("answer=6\n")
        process.cont()
        assert program.number("answer") == 6
        assert program.answer(6) == 7
        assert ptrace.wait(0) is None


def test_an_exec_is_told_if_asked_for(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: with traceExec the process stops in its new program; breakpoints of the old one are gone."""
    program = target_program("self_exec", "leader", 2)
    with Ptrace() as ptrace:
        ptrace.traceExec()
        process = ptrace.attach(program.pid)
        process.createBreakpoint(expect.address(process.target, "unprobed_beside"))
        process.cont()
        assert program.tell("g").number("calls") == 2
        program.tell("g")
        while not isinstance(event := expect.next(ptrace), ProcessExecution):
            if isinstance(event, ProcessSignal):  # of a thread that the exec may have ended meanwhile
                event.process.cont()
        assert event.process is process
        assert process.breakpoints == {}
        assert process.getInstrPointer()
        process.cont()
        program.expect("again")
        assert program.tell("g").number("calls") == 2
        program.tell("g")
        event = expect.next(ptrace)
        assert isinstance(event, ProcessExit)
        assert event.exitcode == 5


def test_new_threads_are_told_if_asked_for(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: with traceClone each new thread waits at its start; without, its breakpoints stop it all the same."""
    program = target_program("hot_calls", "probed_lea", 3, 5, "late")
    with Ptrace() as told, Ptrace() as untold:
        told.traceClone()
        mine, other = told.attach(program.pid), untold.attach(program.pid)
        address = expect.address(mine.target, "probed_lea")
        other.createBreakpoint(address)
        mine.cont()
        other.cont()
        program.tell("g")
        started = []
        for _ in range(3):
            event = expect.next(told)
            assert isinstance(event, NewProcessEvent)
            started.append(event.process.pid)
            assert event.process.parent is mine
            mine.cont()
            event.process.cont()
        hits: list[int] = []
        while len(hits) < 15:
            event = expect.next(untold)
            if isinstance(event, ProcessSignal):  # else a thread has made its calls, and ends
                assert event.process.getInstrPointer() == address + 1
                hits.append(event.process.pid)
                event.process.cont()
        assert set(hits) == set(started)
        assert program.number("calls") == 15
        exits = [expect.next(told) for _ in range(3)]
        assert {(event.process.pid, event.exitcode) for event in exits} == {(tid, 0) for tid in started}
        assert told.list == [mine]


def test_a_forked_child_is_told_if_asked_for(expect: Expect) -> None:
    """Invariant: with traceFork a child is attached to and stops; both go on, and both exits are told."""
    ptrace = Ptrace()
    ptrace.traceFork()
    command = "import os, time\nif os.fork(): os.wait()\nelse: time.sleep(1)"
    process = ptrace.addProcess(createChild([sys.executable, "-c", command], no_stdout=False), is_attached=True)
    process.cont()
    seen = []
    while len(ptrace):
        event = expect.next(ptrace)
        seen.append(type(event))
        if isinstance(event, NewProcessEvent):
            child = event.process
            assert child.parent is process
            assert child.getInstrPointer()
            process.cont()
            child.cont()
        elif isinstance(event, ProcessSignal):
            event.process.cont(event.signum)
    assert seen.count(NewProcessEvent) == 1
    assert seen.count(ProcessExit) == 2


def test_a_fault_in_a_step_comes_before_the_instruction(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: stepping an instruction that faults tells the signal; the instruction has not run."""
    program = target_program("faults", "load", 1)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        address = expect.address(process.target, "probed_fault_load")
        breakpoint_ = process.createBreakpoint(address)
        process.cont()
        program.tell("g")
        expect.hit(ptrace, address)
        process.singleStep()
        event = expect.next(process)
        assert (event.signum, process.getInstrPointer()) == (signal.SIGSEGV, address)
        process.cont(signal.SIGSEGV)
        expect.hit(ptrace, address)  # the program's handler has put the cause right
        breakpoint_.desinstall()
        process.cont()
        assert program.number("arrivals") == 2
    assert program.tell("q").wait() == 0
