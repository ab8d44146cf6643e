"""One thread of a traced process, with the face of python-ptrace's PtraceProcess."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from ptrace import debugger as python_ptrace
from ptrace.binding import REGISTER_NAMES, ptrace_registers_t
from ptrace.cpu_info import CPU_WORD_SIZE
from ptrace.debugger import ProcessError, ProcessExit
from ptrace.error import PtraceError

import ubpx
from ubpx.core.values import PAGE_SIZE
from ubpx_ptracepp.abi import words_of
from ubpx_ptracepp.breakpoints import Breakpoint
from ubpx_ptracepp.translation import translating

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ubpx_ptracepp.attachment import Attachment
    from ubpx_ptracepp.debugger import Ptrace

_WORD_MASK: Final = (1 << 8 * CPU_WORD_SIZE) - 1
_PC: Final = "rip"


class PtraceProcess(python_ptrace.PtraceProcess):  # type: ignore[misc]
    """One thread. Whoever was told that it has stopped reads and writes it, and lets it go on.

    Made by a Ptrace object. What only displays, or is made of other requests, is python-ptrace's own.
    A thread that has hit a breakpoint shows an instruction pointer behind it, by the length of a trap, as it would
    under ptrace; let go like that, it goes on properly, over the instruction.
    """

    def __init__(
        self,
        debugger: Ptrace,
        attachment: Attachment,
        tid: int,
        *,
        parent: PtraceProcess | None = None,
        was_attached: bool = False,
    ) -> None:
        # Not python-ptrace's, which attaches.
        self.debugger = debugger
        self.pid = tid
        self.parent = parent
        self.running = True
        self.exited = False
        self.is_attached = True
        self.was_attached = was_attached
        self.is_stopped = False
        self.is_thread = tid != attachment.pid
        self.breakpoints = attachment.breakpoints
        self.attachment: Final = attachment
        self._registers: dict[str, int] = {}
        """Written, and not yet given to the thread; by python-ptrace's names."""
        self._hit: int | None = None
        """The address of the breakpoint that it is stopped at."""
        self._at_signal = False
        self._owed = 0
        """How often its user will continue it for threads that it has started; it never stopped for them."""

    @property
    def target(self) -> ubpx.Target:
        """The ``ubpx.Target``, on which other kinds of clients can join."""
        return self.attachment.target

    # What the debugger tells --------------------------------------------------------------

    def stop_at(self, *, hit: int | None = None, at_signal: bool = False) -> None:
        """Its user is being told of a stop."""
        self.is_stopped, self._hit, self._at_signal = True, hit, at_signal

    def started_another(self) -> None:
        """Its user is being told of a new thread, after which users of python-ptrace continue both."""
        self._owed += 1

    def is_at(self, address: int) -> bool:
        """Whether it is stopped at the breakpoint there."""
        return self.is_stopped and self._hit == address

    def renew(self) -> None:
        """It runs a new program: what was written belonged to the old one."""
        self._registers = {}

    def left(self) -> None:
        """It is traced no more."""
        self.running = self.is_attached = self.is_stopped = False

    # Going on -----------------------------------------------------------------------------

    def cont(self, signum: int = 0) -> None:
        """Go on, with a signal; if it stopped for one, that one is replaced (0: never delivered).

        Raises PtraceError (ESRCH) if it is not stopped.
        """
        if not self._is_excused() and self._prepare():
            with translating(self):
                self.attachment.want_no_call_of(self.pid)
            self._leave_stop(signum, self.attachment.let_go)

    def syscall(self, signum: int = 0) -> None:
        """Go on to the next system call's entry or exit."""
        if not self._is_excused() and self._prepare():
            with translating(self):
                self.attachment.want_call_of(self.pid, self.debugger.caught_syscalls)
            self._leave_stop(signum, self.attachment.let_go)

    def singleStep(self) -> None:
        """Run one instruction, out of line where a breakpoint stands, anybody's; SIGTRAP follows.

        While another client holds the thread too, it waits for that one.
        """
        if self._prepare(sheltered=True):
            self._leave_stop(0, self.attachment.step)

    step = singleStep

    def _is_excused(self) -> bool:
        """Whether this is a call that it owes for a new thread."""
        self._owed, owed = max(self._owed - 1, 0), self._owed
        return owed > 0

    def _prepare(self, *, sheltered: bool = False) -> bool:
        """Whether it can be let go now; if it has stopped once more, that is told first."""
        self._check_stopped()
        if not self.attachment.has_thread(self.pid):  # its exit is what is told next
            self.is_stopped = False
            return False
        with translating(self):
            self.attachment.settle()
        if not sheltered:
            self.debugger.clear_shelf()
        if not self.attachment.stops_again(self.pid):
            return True
        self.is_stopped = False
        self.debugger.look_again()
        return False

    def _check_stopped(self) -> None:
        if not self.is_stopped:
            why = "runs; wait for an event of it first" if self.running else "is traced no more"
            raise PtraceError(f"thread {self.pid} {why}", errno=errno.ESRCH, pid=self.pid)

    def _leave_stop(self, signum: int, go: Callable[[int, Mapping[str, int], int | None], None]) -> None:
        due = self.filterSignal(signum) if signum or self._at_signal else None
        registers = self._registers
        if self._hit is not None and registers.get(_PC) in {self._hit, self._hit + 1}:
            del registers[_PC]  # past the breakpoint's instruction, over its copy
        self._registers, self._hit, self._at_signal, self.is_stopped = {}, None, False, False
        try:
            with translating(self):
                names = words_of(self.target.architecture)
                go(self.pid, {names[name]: value for name, value in registers.items() if name in names}, due)
        except PtraceError:
            if self.attachment.has_thread(self.pid):
                raise

    def detach(self) -> None:
        """Let it go, and list it no more; the process is left with its leader, or with the last one listed."""
        self.debugger.detach(self)

    def let_go(self) -> None:
        """Go on with what was written; a signal that it stopped for is delivered."""
        if self.is_stopped and self._registers and self.attachment.has_thread(self.pid):
            self._at_signal = False  # so that it is delivered as it is
            self._leave_stop(0, self.attachment.let_go)
        self.is_stopped = False

    def attach(self) -> None:
        """It is attached from the beginning, until ``detach``."""

    def kill(self, signum: int) -> None:
        """Send a signal to the process. Raises PtraceError (ESRCH, EPERM)."""
        try:
            os.kill(self.pid, signum)
        except OSError as error:
            raise PtraceError(
                f"cannot send signal {signum} to {self.pid}: {error.strerror}", error.errno, self.pid
            ) from None

    def terminate(self, wait_exit: bool = True) -> bool:
        """Kill a program that was started for us, and see it to its end; whether it has gone."""
        if not self.running or not self.was_attached:
            return True
        try:
            self.kill(signal.SIGKILL)
        except PtraceError as error:
            if error.errno != errno.ESRCH:
                raise
        while wait_exit and not isinstance(self.waitEvent(), ProcessExit):
            continue
        return wait_exit

    # Events -------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Any:
        """The next event of this thread; None after ``timeout`` seconds."""
        return self.debugger.wait(timeout, pid=self.pid)

    def isTraced(self) -> bool:
        """Whether it is stopped, and we were told."""
        return self.is_stopped

    def getsiginfo(self) -> Any:
        """Not available: raises ProcessError."""
        raise ProcessError(self, f"the siginfo of thread {self.pid} cannot be had; see event.signum")

    # Registers ----------------------------------------------------------------------------

    def _values(self) -> Mapping[str, int]:
        with translating(self):
            found = self.target.registers(self.pid)
            values = dict.fromkeys(REGISTER_NAMES, 0) | {
                name: found[its] for name, its in words_of(self.target.architecture).items()
            }
        if self._hit is not None and values[_PC] == self._hit:
            values[_PC] += 1
        return values | self._registers

    def getregs(self) -> Any:
        """A ctypes structure with an attribute for each register. Raises PtraceError if the thread runs."""
        registers = ptrace_registers_t()
        for name, value in self._values().items():
            setattr(registers, name, value)
        return registers

    def setregs(self, regs: Any) -> None:
        """Give the thread these; it has them when it goes on."""
        self._check_stopped()
        values = self._values()
        for name in REGISTER_NAMES:
            value = getattr(regs, name) & _WORD_MASK
            if value != values[name]:
                self._registers[name] = value

    # Memory -------------------------------------------------------------------------------

    def peek(self, address: int, size: int = CPU_WORD_SIZE) -> bytes:
        """Exactly these bytes of the program's own, whoever's trap stands there. Raises PtraceError (EIO, ESRCH)."""
        with translating(self):
            return self.target.memory.read(_checked(self, address), size)

    def poke(self, address: int, data: bytes) -> None:
        """Write through page protections. Raises PtraceError, over a breakpoint too, anybody's."""
        with translating(self):
            self.target.memory.patch(_checked(self, address), data)

    def readBytes(self, address: int, size: int) -> bytes:
        """As ``peek``, but fewer bytes where a mapping ends."""
        try:
            return self.peek(address, size)
        except ubpx.MemoryFault:
            data, at, end = b"", address, address + size
            while at < end:
                part = min(end, at - at % PAGE_SIZE + PAGE_SIZE) - at
                try:
                    data += self.peek(at, part)
                except ubpx.MemoryFault:
                    break
                at += part
            if not data:
                raise
            return data

    def writeBytes(self, address: int, data: bytes) -> None:
        """As ``poke``."""
        self.poke(address, data)

    def readWord(self, address: int) -> int:
        """The unsigned word there."""
        return int.from_bytes(self.peek(address), "little")

    def writeWord(self, address: int, word: int) -> None:
        """Write a word, signed or not."""
        self.poke(address, (word & _WORD_MASK).to_bytes(CPU_WORD_SIZE, "little"))

    # Breakpoints --------------------------------------------------------------------------

    def createBreakpoint(self, address: int, size: int = 1, *, assume_boundary: bool = False) -> Breakpoint:
        """Set one for all threads of the process; others may have theirs at the same address.

        Outside any symbol ``assume_boundary`` takes your word that an instruction starts there.
        Raises ProcessError if this Ptrace object has set one there, or none can be set.
        """
        known = self.findBreakpoint(address)
        if known is not None:
            raise ProcessError(self, f"a breakpoint is already set: {known}")
        old_bytes = self.peek(address, size)
        with translating(self):
            lease = self.attachment.lease(address, assume_boundary=assume_boundary)
        made = self.breakpoints[address] = Breakpoint(self, address, old_bytes, lease)
        return made

    def removeBreakpoint(self, breakpoint: Breakpoint) -> None:  # noqa: A002 - python-ptrace's name
        """The same as its ``desinstall()``."""
        breakpoint.desinstall()

    def unset(self, breakpoint_: Breakpoint) -> None:
        """Remove a breakpoint, at once unless a thread is stopped at it."""
        if self.breakpoints.get(breakpoint_.address) is not breakpoint_:
            return
        del self.breakpoints[breakpoint_.address]
        if self.debugger.is_any_at(self.attachment, breakpoint_.address):
            self.attachment.shelve(breakpoint_.address, breakpoint_.lease)
        else:
            with translating(self):
                self.attachment.give_back(breakpoint_.address, breakpoint_.lease, self.debugger.is_stopped)

    def __del__(self) -> None:
        """Nothing ends because a reference does."""


def _checked(process: PtraceProcess, address: int) -> int:
    if not process.running:
        raise PtraceError(f"thread {process.pid} is traced no more", errno=errno.ESRCH, pid=process.pid)
    if address < 0:
        raise ProcessError(process, f"{address} is no address; give one that is not negative")
    if address > _WORD_MASK >> 1:
        raise OverflowError(f"{address:#x} is no address of a program; they end below 2**63")
    return address
