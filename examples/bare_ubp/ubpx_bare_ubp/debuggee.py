"""What is traced, by python-ptrace's debugger: threads that are stopped, asked why, and let go.

This half knows nothing of ``ubp``, and ``ubp`` nothing of it: any other way to trace would do. From
python-ptrace come attaching, waiting, registers and memory; its breakpoints are not used.
"""

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import attrs
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from ptrace.binding.func import ptrace, ptrace_cont, ptrace_detach, ptrace_setsiginfo
from ptrace.ctypes_libc import libc
from ptrace.debugger import NewProcessEvent, ProcessEvent, ProcessExecution, ProcessExit, ProcessSignal, PtraceDebugger
from ptrace.debugger.child import createChild
from ptrace.error import PtraceError

from ubpx import AmbiguousSymbol, MemoryFault, TargetGone, UnknownSymbol
from ubpx.core.values import PAGE_SIZE, VirtAddr

_SYSCALL_INSN: Final = b"\x0f\x05"
_SI_TKILL: Final = -6
_PTRACE_GETSIGMASK: Final = 0x420A  # python-ptrace does not know these two
_PTRACE_SETSIGMASK: Final = 0x420B
FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
_FAULT_MASK: Final = sum(1 << number - 1 for number in {*FAULTS, signal.SIGTRAP})
_NO_SYSCALL: Final = 2**64 - 1


@contextlib.contextmanager
def unless_killed() -> Iterator[None]:
    """A thread that ends while we look at it answers no more; its exit comes next."""
    try:
        yield
    except PtraceError as error:
        if error.errno != errno.ESRCH:
            raise


class State(Enum):
    """What a thread does, or is to do."""

    RUNNING = "it runs, or goes on when its stop is understood"
    STOPPING = "a SIGSTOP of ours is on its way to it"
    PARKED = "it stays where it stops"


@attrs.define(eq=False)
class Thread:
    """One thread, which python-ptrace calls a process; and the Memory that ``ubp`` asks for, seen through it.

    Owned by its Debuggee. Memory, like everything else, can be reached while the thread is stopped.
    """

    process: Any
    state: State = State.PARKED
    signals: list[Any] = attrs.field(factory=list)
    """The siginfo of those that it has not been given yet; the first one goes with it when it goes."""
    _mask: ctypes.c_uint64 | None = None
    """Its own signal mask, while signals are held back."""

    @property
    def tid(self) -> int:
        """The kernel's number."""
        return int(self.process.pid)

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault."""
        try:
            data = bytes(self.process.readBytes(address, size))
        except (PtraceError, OverflowError) as error:
            raise MemoryFault(address, size, "read") from error
        if len(data) < size:
            raise MemoryFault(address, size, "read")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write what the program itself could; ptrace would write more."""
        writable = (each for each in self.process.readMappings() if "w" in each.permissions)
        if not any(each.start <= address and address + len(data) <= each.end for each in writable):
            raise MemoryFault(address, len(data), "write")
        self.patch(address, data)

    def patch(self, address: int, data: bytes) -> None:
        """Write through page protections."""
        try:
            self.process.writeBytes(address, data)
        except PtraceError as error:
            raise MemoryFault(address, len(data), "write") from error

    def system_call(self, number: int, *arguments: int) -> int:
        """Let the parked thread make one (S12), by a ``syscall`` instruction that the program has; the result."""
        process = self.process
        executable = (each for each in process.readMappings() if "x" in each.permissions)
        self.hold_back_signals()
        saved, regs = process.getregs(), process.getregs()
        regs.rip = next(place for mapping in executable for place in mapping.search(_SYSCALL_INSN))
        regs.rax, regs.orig_rax = number, _NO_SYSCALL  # else an interrupted call would begin again at our instruction
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(regs, name, value)
        process.setregs(regs)
        process.singleStep()
        while not isinstance(event := process.waitEvent(), ProcessSignal) or event.signum != signal.SIGTRAP:
            if isinstance(event, ProcessExit):
                raise TargetGone(process.pid, event.exitcode)
            self.signals.append(process.getsiginfo())
            process.singleStep()
        result = int(process.getreg("rax"))
        process.setregs(saved)
        return result

    def hold_back_signals(self) -> None:
        """Let no signal come but those that an instruction itself raises, until ``next_signal``."""
        if self._mask is None:
            self._mask, blocked = ctypes.c_uint64(), ctypes.c_uint64(~_FAULT_MASK)
            ptrace(_PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(self._mask))
            ptrace(_PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(blocked))

    def next_signal(self, pid: int) -> int:
        """The signal to give to the thread as it goes, 0 for none. Further ones are sent again, and come again."""
        if self._mask is not None:
            ptrace(_PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(self._mask))
            self._mask = None
        for info in self.signals[1:]:
            libc.tgkill(pid, self.tid, info.si_signo)
        if not self.signals:
            return 0
        ptrace_setsiginfo(self.tid, self.signals[0])
        number = int(self.signals[0].si_signo)
        self.signals.clear()
        return number


class Debuggee:
    """One process. Made with all its threads parked."""

    def __init__(self, pid: int, *, started: bool = False) -> None:
        self.pid: Final = pid
        self.status: int | None = None
        """As Popen.returncode; None while the program lives."""
        self.threads: Final[dict[int, Thread]] = {}
        self._debugger: Final = PtraceDebugger()
        self._debugger.traceClone()
        self._debugger.traceExec()
        if started:
            self._adopt(self._debugger.addProcess(pid, is_attached=True))
        else:
            self._attach()

    @classmethod
    def start(cls, argv: Sequence[str]) -> Self:
        """A new program, before its first instruction."""
        return cls(createChild(list(argv), no_stdout=False), started=True)

    def _attach(self) -> None:
        """Stop every thread, also those that others create meanwhile."""
        try:
            while new := {int(each) for each in os.listdir(f"/proc/{self.pid}/task")} - self.threads.keys():
                for tid in new:
                    with unless_killed(), contextlib.suppress(ProcessExit):
                        self._adopt(self._debugger.addProcess(tid, is_attached=False, is_thread=tid != self.pid))
        except BaseException:
            self.let_go()
            raise

    def _adopt(self, process: Any) -> Thread:
        """A thread that has just been stopped; a signal may have come before the stop that was asked for."""
        thread = self.threads[process.pid] = Thread(process)
        while (info := process.getsiginfo()).si_signo not in {signal.SIGSTOP, signal.SIGTRAP}:
            process.cont(info.si_signo)  # which runs nothing: the stop is on its way already
            process.waitEvent()
        return thread

    def next_stop(self) -> tuple[Thread, Any] | None:
        """A thread that stopped for a signal, and its siginfo; None if nobody did, or for something else."""
        try:
            event = self._debugger.waitProcessEvent(blocking=False)
        except ProcessEvent as raised:  # some of python-ptrace's events come by this way
            event = raised
        match event:
            case ProcessSignal():
                return self._with_siginfo(self.threads[event.process.pid])
            case ProcessExit():
                self.threads.pop(event.process.pid, None)
                if event.process.pid == self.pid:
                    self.status = -event.signum if event.signum else event.exitcode
            case NewProcessEvent():
                creator, thread = self.threads[event.process.parent.pid], self._adopt(event.process)
                ptrace_cont(creator.tid)
                if creator.state is State.RUNNING:
                    self.resume(thread)
            case ProcessExecution():  # it is another program now, with nothing of ours in it
                if any(thread.state is State.STOPPING for thread in self.threads.values()):
                    os.kill(self.pid, signal.SIGCONT)  # which takes back a SIGSTOP of ours
                self.let_go()
        return None

    def _with_siginfo(self, thread: Thread) -> tuple[Thread, Any] | None:
        try:
            return thread, thread.process.getsiginfo()
        except PtraceError as error:
            if error.errno == errno.EINVAL:  # a group-stop; who attached by PTRACE_ATTACH cannot leave it alone
                ptrace_cont(thread.tid)
            return None

    def stop_all(self) -> None:
        """Ask the running threads to stop. Each shows it by a signal that ``is_our_stop``."""
        for thread in self.threads.values():
            if thread.state is State.RUNNING:
                thread.state = State.STOPPING
                libc.tgkill(self.pid, thread.tid, signal.SIGSTOP)  # process.kill() would ask any thread of them

    def is_our_stop(self, thread: Thread, info: Any) -> bool:
        """Whether the signal is the one that ``stop_all`` sent."""
        expected = (signal.SIGSTOP, _SI_TKILL, State.STOPPING)
        return (info.si_signo, info.si_code, thread.state) == expected

    def resume(self, thread: Thread) -> None:
        """Let it run, with its signal if it has one."""
        if thread.state is State.PARKED:
            thread.state = State.RUNNING
        ptrace_cont(thread.tid, thread.next_signal(self.pid))  # process.cont() would drop a SIGTRAP

    def let_go(self) -> None:
        """Detach from all threads, which are parked or gone."""
        for thread in self.threads.values():
            with contextlib.suppress(PtraceError):
                ptrace_detach(thread.tid, thread.next_signal(self.pid))
        self.threads.clear()
        for process in list(self._debugger):
            process.is_attached = False
            if process.read_mem_file:
                process.read_mem_file.close()
            self._debugger.deleteProcess(process)


def function_address(process: Any, symbol: str) -> VirtAddr:
    """Where a function of the program's own file is. Raises UnknownSymbol, AmbiguousSymbol."""
    with Path(f"/proc/{process.pid}/exe").open("rb") as file:
        elf = ELFFile(file)
        tables = [each for each in elf.iter_sections() if isinstance(each, SymbolTableSection)]
        found = [each for table in tables for each in table.get_symbol_by_name(symbol) or ()]
        values = {each["st_value"] for each in found if each["st_info"]["type"] == "STT_FUNC"} - {0}
        if not values:
            raise UnknownSymbol(symbol, ())
        value, *others = values
        if others:
            raise AmbiguousSymbol(symbol, [hex(each) for each in values])
        if elf["e_type"] == "ET_EXEC":
            return VirtAddr(value)
        first = min(segment["p_vaddr"] for segment in elf.iter_segments("PT_LOAD"))
    path = os.readlink(f"/proc/{process.pid}/exe")
    start = min(each.start for each in process.readMappings() if each.pathname == path)
    return VirtAddr(start - first // PAGE_SIZE * PAGE_SIZE + value)
