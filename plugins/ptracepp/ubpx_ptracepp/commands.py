"""What is asked of one stopped thread, or told to it: each is a request or two, and nothing is remembered."""

import ctypes
import errno
import signal
import struct
from collections.abc import Sequence
from typing import Final

from ubpx import PtraceFailed
from ubpx.core.values import VirtAddr, Watched
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import ALL_BUT_FAULTS, FAULTS
from ubpx_ptracepp.injection import set_signal_mask, signal_mask
from ubpx_ptracepp.requests import (
    PTRACE_GETFPREGS,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_INTERRUPT,
    PTRACE_LISTEN,
    PTRACE_POKEUSER,
    PTRACE_SETFPREGS,
    PTRACE_SETREGS,
    PTRACE_SETSIGINFO,
    PTRACE_SINGLESTEP,
    Answers,
    peek_user,
    pending_signals,
    request,
    swift,
    tgkill,
)
from ubpx_ptracepp.tasks import PtraceThread

SIGINFO_SIZE: Final = 128
SI_CODE, SI_ADDR = 8, 16
"""Offsets in a siginfo."""
_X87_SIZE: Final = 512
_X87_POINTER: Final = 8
_DEBUG_REGISTERS: Final = 848
"""Offset of u_debugreg in struct user (<sys/user.h>)."""
_STATUS, _CONTROL = 6, 7
_KINDS: Final = {"EXECUTE": 0, "WRITE": 1, "READWRITE": 3}
_LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}
SIGTRAP_BIT: Final = 1 << (signal.SIGTRAP - 1)


class ThreadCommands:
    """The part of ``ports.Tracer`` that is about one thread. Used in the tracer thread."""

    def __init__(self) -> None:
        self._answers: Final = Answers()
        self._left: PtraceThread | None = None
        """The thread whose handlers run while its stop is not consumed (see ``Arrivals``); when it has gone on since it
        stays so, until the tracer has seen another stop.
        """

    def resume(self, thread: PtraceThread, signal: int = 0) -> None:
        """Let it run."""
        self._leave_stop(thread)
        thread.stepping = False
        if swift(thread.go, thread.tid, 0, signal) == -1:
            request(thread.go, thread.tid, 0, signal)

    def step(self, thread: PtraceThread, signal: int = 0) -> None:
        """One instruction."""
        self._leave_stop(thread)
        thread.stepping = True
        self._let_trap(thread)
        if swift(PTRACE_SINGLESTEP, thread.tid, 0, signal) == -1:
            request(PTRACE_SINGLESTEP, thread.tid, 0, signal)

    def _leave_stop(self, thread: PtraceThread) -> None:
        """Its stop, which may not be consumed yet, is over: nobody will see it again."""
        if self._left is thread:
            self._left = None

    def _let_trap(self, thread: PtraceThread) -> None:
        """A step is not to end in a blocked SIGTRAP: the kernel would undo the process's action for it."""
        mask = signal_mask(thread.tid)
        if mask is not None and mask & SIGTRAP_BIT:
            set_signal_mask(thread.tid, mask & ~SIGTRAP_BIT)
            thread.trap_unblocked = mask

    def block_trap_again(self, thread: PtraceThread) -> None:
        """After the step, unless that has set another mask."""
        mask, thread.trap_unblocked = thread.trap_unblocked, 0
        if mask and signal_mask(thread.tid) == mask & ~SIGTRAP_BIT:
            set_signal_mask(thread.tid, mask)

    def listen(self, thread: PtraceThread) -> None:
        """Stay in the group-stop; one that was killed meanwhile stands at its exit, which follows."""
        self._leave_stop(thread)
        try:
            request(PTRACE_LISTEN, thread.tid)
        except PtraceFailed as error:
            if error.error.errno != errno.EIO:
                raise

    def interrupt(self, thread: PtraceThread) -> None:
        """Ask it to stop."""
        thread.interrupted = request(PTRACE_INTERRUPT, thread.tid)

    def fetch(self, thread: PtraceThread) -> bool:
        """Registers into ``words``."""
        return swift(PTRACE_GETREGS, thread.tid, 0, thread.buffer) != -1 or request(
            PTRACE_GETREGS, thread.tid, 0, ctypes.addressof(thread.buffer)
        )

    def store(self, thread: PtraceThread) -> None:
        """Registers from ``words``."""
        if swift(PTRACE_SETREGS, thread.tid, 0, thread.buffer) == -1:
            request(PTRACE_SETREGS, thread.tid, 0, ctypes.addressof(thread.buffer))

    # Debug registers ------------------------------------------------------------------------

    def watch(self, thread: PtraceThread, watched: Sequence[Watched | None]) -> None:
        """Debug registers and what they watch (Intel SDM volume 3B, 18.2)."""
        control = sum(_enabled(number, each) for number, each in enumerate(watched) if each is not None)
        request(PTRACE_POKEUSER, thread.tid, _DEBUG_REGISTERS + _CONTROL * 8, 0)  # none while the addresses change
        for number, each in enumerate(watched):
            request(PTRACE_POKEUSER, thread.tid, _DEBUG_REGISTERS + number * 8, each.address if each else 0)
        request(PTRACE_POKEUSER, thread.tid, _DEBUG_REGISTERS + _CONTROL * 8, control)
        thread.watching = control != 0

    def noticed(self, thread: PtraceThread) -> tuple[int, ...]:
        """The numbers of the debug registers that have noticed something since this was asked last."""
        status = peek_user(thread.tid, _DEBUG_REGISTERS + _STATUS * 8)
        request(PTRACE_POKEUSER, thread.tid, _DEBUG_REGISTERS + _STATUS * 8, 0)
        return tuple(number for number in range(4) if status >> number & 1)

    # Signals --------------------------------------------------------------------------------

    def signal_info(self, thread: PtraceThread) -> bytes:
        """The siginfo that it stopped for; empty if it is gone."""
        return siginfo(thread.tid) or b""

    def replace_signal(self, thread: PtraceThread, info: bytes) -> None:
        """What the next ``resume(signal=...)`` delivers."""
        if info:
            buffer = ctypes.create_string_buffer(info, SIGINFO_SIZE)
            request(PTRACE_SETSIGINFO, thread.tid, 0, ctypes.addressof(buffer))

    def correct_fault_address(self, thread: PtraceThread, address: VirtAddr) -> None:
        """Set si_addr."""
        info = self.signal_info(thread)
        self.replace_signal(thread, info[:SI_ADDR] + address.to_bytes(8, "little") + info[SI_ADDR + 8 :])

    def correct_x87_pointer(self, thread: PtraceThread, wrong: VirtAddr, right: VirtAddr) -> None:
        """FIP, in struct user_fpregs_struct."""
        state = ctypes.create_string_buffer(_X87_SIZE)
        if request(PTRACE_GETFPREGS, thread.tid, 0, ctypes.addressof(state)):
            (found,) = struct.unpack_from("<Q", state, _X87_POINTER)
            if found == wrong:
                struct.pack_into("<Q", state, _X87_POINTER, right)
                request(PTRACE_SETFPREGS, thread.tid, 0, ctypes.addressof(state))

    def block_signals(self, thread: PtraceThread) -> int:
        """Block all but traps and faults; returns the former mask."""
        mask = signal_mask(thread.tid)
        if mask is None:
            return 0
        set_signal_mask(thread.tid, mask | ALL_BUT_FAULTS)
        return mask

    def restore_signals(self, thread: PtraceThread, mask: int) -> None:
        """Give the mask back."""
        set_signal_mask(thread.tid, mask)

    def pending_fault(self, thread: PtraceThread) -> bool:
        """Whether a trap or fault is queued for the stopped thread."""
        found_at, bits = thread.queued
        if found_at == thread.stops:
            return bool(bits & ~ALL_BUT_FAULTS)
        queued = pending_signals(thread.tid, self._answers)
        if queued is not None:
            return not FAULTS.isdisjoint(queued)
        return bool(int(procfs.status(thread.tid).get("SigPnd", "0"), 16) & ~ALL_BUT_FAULTS)

    def send_signal(self, thread: PtraceThread, signal: int) -> None:
        """To the one thread."""
        tgkill(thread.pid, thread.tid, signal)


def _enabled(number: int, watched: Watched) -> int:
    """The bits of the control register for one watched place."""
    kind = _KINDS[watched.access] | _LENGTHS[watched.size] << 2
    return 1 << 2 * number | kind << 16 + 4 * number


def siginfo(tid: int) -> bytes | None:
    """The siginfo that a stopped thread shows; None if it is gone."""
    info = ctypes.create_string_buffer(SIGINFO_SIZE)
    return info.raw if request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info)) else None
