"""ptrace++ on real programs: what ptrace has, and what it has not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ptrace import debugger as python_ptrace

import ubpx
from ubpx_ptracepp import (
    ChildError,
    DebuggerError,
    NewProcessEvent,
    ProcessError,
    ProcessExecution,
    ProcessExit,
    ProcessSignal,
    Ptrace,
    PtraceError,
    PtraceProcess,
    createChild,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

PATIENCE_S = 30
LEA_LENGTH = 4
SYSCALL_STOP = signal.SIGTRAP | 0x80


def address_of(pid_or_target: Any, symbol: str) -> int:
    """Where a function of a program is, by a target that has it already."""
    client = pid_or_target.client(f"where is {symbol}")
    lease = client.probe(symbol, lambda _: None)
    address: int = lease.address
    client.close()
    return address


def next_of(waiter: Ptrace | PtraceProcess) -> Any:
    """Its next event, which must come in time."""
    event = waiter.wait(PATIENCE_S)
    assert event is not None, "no event in time"
    return event


def expect_hit(waiter: Ptrace | PtraceProcess, address: int) -> PtraceProcess:
    """The next event must be a hit there; the thread."""
    event = next_of(waiter)
    assert isinstance(event, ProcessSignal), event
    assert event.signum == signal.SIGTRAP
    thread: PtraceProcess = event.process
    assert thread.getInstrPointer() == address + 1
    return thread


# What ptrace has ------------------------------------------------------------------------------


def test_plain_requests(target_program: StartProgram) -> None:
    """Invariant: attach, registers, memory, step, cont and wait work on a stopped thread as ptrace's do."""
    program = target_program("echo")
    maps = program.maps()
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        answer = address_of(process.target, "answer")
        code = process.peek(answer, LEA_LENGTH)
        process.createBreakpoint(answer)
        assert process.peek(answer, LEA_LENGTH) == code
        process.cont()
        assert process.wait(0) is None
        program.tell("5\n")
        expect_hit(process, answer)
        registers = process.getregs()
        assert registers.rdi == 5
        back = int.from_bytes(process.peek(registers.rsp), "little")
        registers.rdi = 7
        process.setregs(registers)
        assert process.getregs().rdi == process.getreg("rdi") == 7
        process.step()
        assert next_of(process).signum == signal.SIGTRAP
        assert process.getInstrPointer() == answer + LEA_LENGTH
        assert process.getreg("rax") == 8
        process.step()
        assert next_of(process).signum == signal.SIGTRAP
        assert (process.getInstrPointer(), process.getStackPointer()) == (back, registers.rsp + 8)
        process.setreg("rax", 80)
        process.cont()
        assert program.number("answer") == 80
    program.assert_untouched(maps)
    assert program.answer(1) == 2
    assert program.tell("q\n").wait() == 0


def test_memory_is_written_through_protections(target_program: StartProgram) -> None:
    """Invariant: poke changes the program's text and data; a read past the end of a mapping is cut there."""
    program = target_program("echo")
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        data, answer = address_of_data(process), address_of(process.target, "answer")
        process.writeWord(data, -2)
        assert process.readWord(data) == 2**64 - 2
        process.poke(answer + 3, b"\x02")  # lea 2(%rdi), %rax
        process.cont()
        assert program.answer(5) == 7
        process = process_again(ptrace, program)
        process.poke(answer + 3, b"\x01")
        stack = process.findStack()
        assert process.readBytes(stack.end - 8, 100) == process.peek(stack.end - 8, 8)
        assert process.readCString(stack.end - 30, 30)[0]
        process.detach()
    assert program.answer(5) == 6


def address_of_data(process: PtraceProcess) -> int:
    """Somewhere in the program's writable data."""
    path = os.readlink(f"/proc/{process.pid}/exe")
    own = [each for each in process.readMappings() if each.pathname == path and "w" in each.permissions]
    return int(own[-1].end) - 64


def process_again(ptrace: Ptrace, program: Program) -> PtraceProcess:
    """The one thread of the program, stopped once more."""
    ptrace[program.pid].detach()
    return ptrace.attach(program.pid)


def test_a_program_is_started_stopped_and_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """Invariant: createChild and addProcess start a program; its exit is told, and then nothing is traced."""
    ptrace = Ptrace()
    process = ptrace.addProcess(createChild(["/bin/sh", "-c", "echo said; exit 3"], no_stdout=True), is_attached=True)
    assert process.was_attached
    assert ptrace.list == [process]
    process.cont()
    while not isinstance(event := next_of(ptrace), ProcessExit):
        event.process.cont(event.signum)
    assert (event.process, event.exitcode, event.signum) == (process, 3, None)
    assert capfd.readouterr().out == ""
    assert (len(ptrace), process.running) == (0, False)
    with pytest.raises(DebuggerError, match="nothing is traced"):
        ptrace.waitProcessEvent()
    for request in (process.cont, process.singleStep, process.getregs):
        with pytest.raises(PtraceError):
            request()
    process.detach()


def test_quit_kills_what_was_started_and_leaves_the_rest(target_program: StartProgram) -> None:
    """Invariant: after quit() nothing is traced; started programs have ended, others run on."""
    program = target_program("echo", 2)
    maps = program.maps()
    ptrace = Ptrace()
    started = ptrace.addProcess(createChild(["/bin/sleep", "60"], no_stdout=False), is_attached=True)
    ptrace.attach(program.pid)
    ptrace.quit()
    assert len(ptrace) == 0
    assert not os.path.exists(f"/proc/{started.pid}")
    program.assert_untouched(maps)
    assert program.tell("q\n").wait() == 0


def test_a_killed_program_is_told_of(target_program: StartProgram) -> None:
    """Invariant: the end of a stopped program is told, in bounded time, and its breakpoints go in silence."""
    program = target_program("echo", 2)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        breakpoint_ = process.createBreakpoint(address_of(process.target, "answer"))
        process.kill(signal.SIGKILL)
        event = next_of(process)
        assert isinstance(event, ProcessExit)
        assert (event.signum, event.exitcode) == (signal.SIGKILL, None)
        breakpoint_.desinstall()
        with pytest.raises(PtraceError):
            process.peek(breakpoint_.address)


def test_every_request_of_python_ptrace_goes_through_ubpx() -> None:
    """Invariant: nothing that is inherited makes a ptrace request of its own."""
    for ours, theirs in ((Ptrace, python_ptrace.PtraceDebugger), (PtraceProcess, python_ptrace.PtraceProcess)):
        for name, function in vars(theirs).items():
            names = getattr(getattr(function, "__code__", None), "co_names", ())
            requests = {each for each in names if each.startswith("ptrace_") or each == "waitpid"}
            unused = {"ptraceEvent", "setoptions", "_waitpid"}
            assert not requests or name in unused or name in vars(ours), f"{name} calls {requests}"


def test_the_plugin_stays_light() -> None:
    """Invariant: importing the package loads nothing of python-ptrace; every public name is there when asked for."""
    code = "import sys, ubpx_ptracepp as p; assert 'ptrace' not in sys.modules; [getattr(p, n) for n in p.__all__]"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=PATIENCE_S).returncode == 0
    with pytest.raises(ImportError):
        exec("from ubpx_ptracepp import Nothing")


# What ptrace has not --------------------------------------------------------------------------


def serve(ptrace: Ptrace, hits: list[int]) -> None:
    """Continue every thread that stops, until nothing is traced."""
    while len(ptrace):
        event = next_of(ptrace)
        if isinstance(event, ProcessSignal):
            hits.append(event.process.pid)
            event.process.cont(event.signum)


def test_two_debuggers_and_a_client_share_an_address(target_program: StartProgram) -> None:
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
    servers = [threading.Thread(target=serve, args=each) for each in zip(debuggers, hits, strict=True)]
    for server in servers:
        server.start()
    assert program.tell("g").number("calls") == 200
    assert [len(each) for each in hits] == [each.hits for each in breakpoints] == [200, 200]
    assert lease.hits == 200
    assert program.tell("q").wait() == 0
    for server in servers:
        server.join(PATIENCE_S)
        assert not server.is_alive()


def test_stepping_over_a_breakpoint_that_another_has_too(target_program: StartProgram) -> None:
    """Invariant: who removes its own breakpoint and steps runs the one instruction, and is no hit for the other."""
    program = target_program("echo")
    maps = program.maps()
    mine, other = Ptrace(), Ptrace()
    process, others = mine.attach(program.pid), other.attach(program.pid)
    answer = address_of(process.target, "answer")
    breakpoint_, theirs = process.createBreakpoint(answer), others.createBreakpoint(answer)
    for each in (process, others):
        each.cont()
    for count in (1, 2, 3):
        program.tell("5\n")
        expect_hit(mine, answer)
        expect_hit(other, answer)
        breakpoint_.desinstall()
        assert process.findBreakpoint(answer) is None
        process.setInstrPointer(answer)
        process.singleStep()
        assert process.wait(0) is None, "the other still holds the thread"
        others.cont()
        assert next_of(process).signum == signal.SIGTRAP
        assert process.getInstrPointer() == answer + LEA_LENGTH
        assert theirs.hits == count
        breakpoint_ = process.createBreakpoint(answer)
        process.cont()
        assert program.number("answer") == 6
    process.detach()
    assert others.peek(answer, 1) != b"\xcc"
    program.tell("8\n")
    expect_hit(other, answer).cont()
    assert program.number("answer") == 9
    others.detach()
    program.assert_untouched(maps)


def test_threads_at_a_removed_breakpoint_go_on(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: threads that arrived unseen at a breakpoint run on when it is removed, and it counts for nobody."""
    program = target_program("hot_calls", "probed_lea", 4, 50)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        address = address_of(process.target, "probed_lea")
        breakpoint_ = process.createBreakpoint(address)
        process.cont()
        program.tell("g")
        thread = expect_hit(ptrace, address)
        assert eventually(lambda: len(process.target.holds()) == 4)
        breakpoint_.desinstall()
        assert len(process.target.holds()) == 4, "it may be set again after a step"
        thread.cont()
        assert program.number("calls") == 200
        while event := ptrace.wait(0):
            assert isinstance(event, ProcessExit)
        assert process.target.probepoints() == ()
    assert program.tell("q").wait() == 0


def test_a_target_of_ones_own_is_shared(target_program: StartProgram) -> None:
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
            expect_hit(ptrace, lease.address).cont()
            assert program.number("answer") == 2
        assert program.answer(2) == 3
        assert lease.hits == 2
        ptrace.share(target).cont()
    assert isinstance(next_of(ptrace), ProcessExit)  # left by somebody else: traced no more
    assert len(ptrace) == 0
    assert program.tell("q\n").wait() == 0


def test_signals_are_each_debuggers_own(target_program: StartProgram) -> None:
    """Invariant: a debugger is told of the signals in its own mask, and decides whether they are delivered."""
    program = target_program("caller", 1)
    with Ptrace() as every, Ptrace() as some:
        some.catchSignals([signal.SIGUSR2])
        mine, other = every.attach(program.pid), some.attach(program.pid)
        mine.cont()
        other.cont()
        for given, count in ((0, 0), (signal.SIGUSR1, 1), (signal.SIGTRAP, 1)):
            program.tell("u")
            event = next_of(every)
            assert (event.signum, event.process) == (signal.SIGUSR1, mine)
            mine.cont(given)
            assert program.number("signals") == count
        assert some.wait(0) is None
        every.catchSignals([])
        assert program.tell("u").number("signals") == 2
        assert every.wait(0) is None
        with pytest.raises(PtraceError, match="is no signal"):
            every.catchSignals([9999])


def test_a_thread_stops_at_its_system_calls(target_program: StartProgram) -> None:
    """Invariant: syscall() stops at the entry and the exit of the calls in the mask, of that thread alone."""
    program = target_program("echo", 2)
    with Ptrace() as ptrace:
        ptrace.catchSyscalls(["write"])
        process = ptrace.attach(program.pid)
        process.syscall()
        program.tell("5\n")
        event = next_of(process)
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


def test_an_exec_is_told_if_asked_for(target_program: StartProgram) -> None:
    """Invariant: with traceExec the process stops in its new program; breakpoints of the old one are gone."""
    program = target_program("self_exec", "leader", 2)
    with Ptrace() as ptrace:
        ptrace.traceExec()
        process = ptrace.attach(program.pid)
        process.createBreakpoint(address_of(process.target, "unprobed_beside"))
        process.cont()
        assert program.tell("g").number("calls") == 2
        program.tell("g")
        while not isinstance(event := next_of(ptrace), ProcessExecution):
            assert event.process.getreg("rip")
            event.process.cont()
        assert event.process is process
        assert process.breakpoints == {}
        assert process.getInstrPointer()
        process.cont()
        program.expect("again")
        assert program.tell("g").number("calls") == 2
        program.tell("g")
        event = next_of(ptrace)
        assert isinstance(event, ProcessExit)
        assert event.exitcode == 5


def test_new_threads_are_told_if_asked_for(target_program: StartProgram) -> None:
    """Invariant: with traceClone each new thread waits at its start; without, its breakpoints stop it all the same."""
    program = target_program("hot_calls", "probed_lea", 3, 5, "late")
    with Ptrace() as told, Ptrace() as untold:
        told.traceClone()
        mine, other = told.attach(program.pid), untold.attach(program.pid)
        address = address_of(mine.target, "probed_lea")
        other.createBreakpoint(address)
        mine.cont()
        other.cont()
        program.tell("g")
        started = []
        for _ in range(3):
            event = next_of(told)
            assert isinstance(event, NewProcessEvent)
            started.append(event.process.pid)
            assert event.process.parent is mine
            mine.cont()
            event.process.cont()
        stopped = set()
        for _ in range(15):
            thread = expect_hit(untold, address)
            stopped.add(thread.pid)
            thread.cont()
        assert stopped == set(started)
        assert program.number("calls") == 15
        exits = [next_of(told) for _ in range(3)]
        assert {(event.process.pid, event.exitcode) for event in exits} == {(tid, 0) for tid in started}
        assert told.list == [mine]


def test_a_forked_child_is_told_if_asked_for() -> None:
    """Invariant: with traceFork a child is attached to and stops; both go on, and both exits are told."""
    ptrace = Ptrace()
    ptrace.traceFork()
    command = "import os, time\nif os.fork(): os.wait()\nelse: time.sleep(1)"
    process = ptrace.addProcess(createChild([sys.executable, "-c", command], no_stdout=False), is_attached=True)
    process.cont()
    seen = []
    while len(ptrace):
        event = next_of(ptrace)
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


def test_a_fault_in_a_step_comes_before_the_instruction(target_program: StartProgram) -> None:
    """Invariant: stepping an instruction that faults tells the signal; the instruction has not run."""
    program = target_program("faults", "load", 1)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        address = address_of(process.target, "probed_fault_load")
        breakpoint_ = process.createBreakpoint(address)
        process.cont()
        program.tell("g")
        expect_hit(ptrace, address)
        process.singleStep()
        event = next_of(process)
        assert (event.signum, process.getInstrPointer()) == (signal.SIGSEGV, address)
        process.cont(signal.SIGSEGV)
        expect_hit(ptrace, address)  # the program's handler has put the cause right
        breakpoint_.desinstall()
        process.cont()
        assert program.number("arrivals") == 2
    assert program.tell("q").wait() == 0


# Bad input ------------------------------------------------------------------------------------


def test_what_cannot_be_traced() -> None:
    """Invariant: who cannot be attached to, or started, raises an error of both families, and nothing is listed."""
    ptrace = Ptrace()
    with pytest.raises(ubpx.NoSuchProcess) as missing:
        ptrace.attach(2**22 + 1)
    assert isinstance(missing.value, PtraceError)
    assert missing.value.errno == 3
    with pytest.raises(ChildError, match="no/such"):
        createChild(["/no/such/program"], no_stdout=False)
    with pytest.raises(DebuggerError, match="is not traced"):
        ptrace.wait(pid=1)
    assert len(ptrace) == 0


def test_errors_are_of_both_families(target_program: StartProgram) -> None:
    """Invariant: what ubpx refuses is found by either kind of except, says why, and nothing is left behind."""
    program = target_program("echo")
    maps = program.maps()
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        answer = address_of(process.target, "answer")
        with pytest.raises(KeyError):
            ptrace.attach(program.pid)
        with pytest.raises(ProcessError) as inside:
            process.createBreakpoint(answer + 1)
        assert inside.value.process is process
        assert isinstance(inside.value, ubpx.NotAnInstruction)
        process.createBreakpoint(answer)
        with pytest.raises(ProcessError, match="already set"):
            process.createBreakpoint(answer)
        with pytest.raises(ProcessError, match="a probe stands"):
            process.poke(answer, b"\x90")
        with pytest.raises(ubpx.MemoryFault) as fault:
            process.peek(8)
        assert isinstance(fault.value, PtraceError)
        assert fault.value.errno == 5
        with pytest.raises(ProcessError):
            process.getreg("no_such")
        with pytest.raises(OverflowError):
            process.peek(2**63)
        process.cont()
        with pytest.raises(PtraceError, match="runs"):
            process.cont()
        with pytest.raises(PtraceError):
            process.getregs()
    program.assert_untouched(maps)
    assert program.tell("q\n").wait() == 0
