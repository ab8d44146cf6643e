"""ptrace++ has what ptrace has, on real programs, and refuses what cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ptrace import debugger as python_ptrace

import ubpx
from ubpx_ptracepp import (
    ChildError,
    DebuggerError,
    ProcessError,
    ProcessExit,
    Ptrace,
    PtraceError,
    PtraceProcess,
    createChild,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.conftest import Expect
    from tests.real.conftest import Program, StartProgram

PATIENCE_S = 30
LEA_LENGTH = 4


def test_a_program_of_32_bits_is_shown_as_a_tracer_of_64_sees_it(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: 32-bit registers have the names of the 64-bit words that the kernel gives, and can be written."""
    program = target_program("i386", 1, 1, "probed_nop", flags=("-m32",))
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        process.createBreakpoint(expect.address(process.target, "probed_nop"))
        process.cont()
        program.tell("g")
        event = expect.next(ptrace)
        while event.signum != signal.SIGTRAP:  # its timer's, or a thread that has started
            event.process.cont(event.signum)
            event = expect.next(ptrace)
        thread = event.process
        registers = thread.getregs()
        assert (registers.rcx, registers.rdi, registers.r8) == (20, 24, 0)
        stack = int.from_bytes(thread.peek(registers.rsp, 8), "little")
        back, argument = stack & 0xFFFF_FFFF, stack >> 32
        assert argument == 19
        registers.rip, registers.rsp, registers.rax = back, registers.rsp + 4, argument + 4
        thread.setregs(registers)
    assert program.number("calls") == 1
    program.number("signals")
    assert program.tell("q").wait() == 0


def test_plain_requests(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: attach, registers, memory, step, cont and wait work on a stopped thread as ptrace's do."""
    program = target_program("echo")
    maps = program.maps()
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        answer = expect.address(process.target, "answer")
        code = process.peek(answer, LEA_LENGTH)
        process.createBreakpoint(answer)
        assert process.peek(answer, LEA_LENGTH) == code
        process.cont()
        assert process.wait(0) is None
        program.tell("5\n")
        expect.hit(process, answer)
        registers = process.getregs()
        assert registers.rdi == 5
        back = int.from_bytes(process.peek(registers.rsp), "little")
        registers.rdi = 7
        process.setregs(registers)
        assert process.getregs().rdi == process.getreg("rdi") == 7
        process.step()
        assert expect.next(process).signum == signal.SIGTRAP
        assert process.getInstrPointer() == answer + LEA_LENGTH
        assert process.getreg("rax") == 8
        process.step()
        assert expect.next(process).signum == signal.SIGTRAP
        assert (process.getInstrPointer(), process.getStackPointer()) == (back, registers.rsp + 8)
        process.setreg("rax", 80)
        process.cont()
        assert program.number("answer") == 80
    program.assert_untouched(maps)
    assert program.answer(1) == 2
    assert program.tell("q\n").wait() == 0


def test_memory_is_written_through_protections(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: poke changes the program's text and data; a read past the end of a mapping is cut there."""
    program = target_program("echo")
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        data, answer = address_of_data(process), expect.address(process.target, "answer")
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


def test_a_program_is_started_stopped_and_ended(expect: Expect, capfd: pytest.CaptureFixture[str]) -> None:
    """Invariant: createChild and addProcess start a program; its exit is told, and then nothing is traced."""
    ptrace = Ptrace()
    process = ptrace.addProcess(createChild(["/bin/sh", "-c", "echo said; exit 3"], no_stdout=True), is_attached=True)
    assert process.was_attached
    assert ptrace.list == [process]
    process.cont()
    while not isinstance(event := expect.next(ptrace), ProcessExit):
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


def test_threads_are_added_one_by_one(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: as under python-ptrace each thread can be added, is stopped then, and is let go by its own cont."""
    program = target_program("hot_calls", "probed_lea", 4, 5)
    with Ptrace() as ptrace:
        leader = ptrace.attach(program.pid)
        for tid in leader.target.threads():
            process = ptrace.addProcess(tid, is_attached=False, parent=leader, is_thread=True)
            assert (process.pid, process.is_thread) == (tid, tid != program.pid)
            assert process.getInstrPointer()
        assert len(ptrace) == 5
        leader.createBreakpoint(expect.address(leader.target, "probed_lea"))
        program.tell("g")
        for process in ptrace:
            assert process.isTraced()
            process.cont()
        expect.next(ptrace).process.singleStep()
        leader.detach()
        assert len(ptrace) == 0
    assert program.number("calls") == 20
    assert program.tell("q").wait() == 0


def test_quit_kills_what_was_started_and_leaves_the_rest(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: after quit() nothing is traced; started programs have ended, others run on."""
    program = target_program("echo", 2)
    maps = program.maps()
    ptrace = Ptrace()
    started = ptrace.addProcess(createChild(["/bin/sleep", "60"], no_stdout=False), is_attached=True)
    ptrace.attach(program.pid)
    ptrace.quit()
    assert len(ptrace) == 0
    assert eventually(lambda: not os.path.exists(f"/proc/{started.pid}"))
    program.assert_untouched(maps)
    assert program.tell("q\n").wait() == 0


def test_a_killed_program_is_told_of(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: the end of a stopped program is told, in bounded time, and its breakpoints go in silence."""
    program = target_program("echo", 2)
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        breakpoint_ = process.createBreakpoint(expect.address(process.target, "answer"))
        process.kill(signal.SIGKILL)
        event = expect.next(process)
        assert isinstance(event, ProcessExit)
        assert (event.signum, event.exitcode) == (signal.SIGKILL, None)
        breakpoint_.desinstall()
        for request in (process.peek, process.createBreakpoint):
            with pytest.raises(PtraceError, match="is traced no more"):
                request(breakpoint_.address)


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


def test_errors_are_of_both_families(expect: Expect, target_program: StartProgram) -> None:
    """Invariant: what ubpx refuses is found by either kind of except, says why, and nothing is left behind."""
    program = target_program("echo")
    maps = program.maps()
    with Ptrace() as ptrace:
        process = ptrace.attach(program.pid)
        answer = expect.address(process.target, "answer")
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
