"""System calls that a stopped thread makes for us (S12), so that it never notices.

The thread executes an existing ``syscall`` (i386: ``int $0x80``) instruction: no byte of the program is changed, no
signal is used (a SIGTRAP would undo the program's own disposition where it is blocked), and it ends
in the kind of stop in which the kernel restarts an interrupted system call by itself.
"""

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from ubpx import PtraceFailed, SlotsExhausted, TargetGone
from ubpx.core.values import ProcessId, VirtAddr
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import ORIG_RAX, RAX, RIP, Abi, RegisterBuffer
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.parenthood import waitpid
from ubpx_ptracepp.requests import (
    OPTIONS,
    PTRACE_CONT,
    PTRACE_EVENT_STOP,
    PTRACE_GETREGS,
    PTRACE_GETSIGMASK,
    PTRACE_INTERRUPT,
    PTRACE_O_SUSPEND_SECCOMP,
    PTRACE_SETOPTIONS,
    PTRACE_SETREGS,
    PTRACE_SETSIGMASK,
    PTRACE_SYSCALL,
    SYSCALL_STOP,
    WAIT_THREAD,
    request,
    tgkill,
)
from ubpx_ptracepp.rseq import Announcement

_NO_SYSCALL: Final = 0xFFFF_FFFF_FFFF_FFFF
_MASK_SIZE: Final = 8
_ERRORS: Final = 4095
"""Results that are negative error numbers begin so far below zero (MAX_ERRNO in the kernel)."""
_LARGEST_SEARCH: Final = 4 << 20


class Interloper(Exception):
    """The thread stopped for something else, which must be handled first."""

    def __init__(self, wait_status: int | None) -> None:
        super().__init__("it has exited" if wait_status is None else f"wait status {wait_status:#x}")
        self.wait_status = wait_status


def wait_for(tid: int) -> int | None:
    """The next wait status of one thread; None if it has exited without one.

    Waiting for the thread alone would be for ever if it is a leader that was killed: its exit is
    not told before its other threads have gone, and they wait for us at their own exits.
    """
    pause = 0.0
    while True:
        exited = procfs.has_exited(tid) if pause else False
        found, status = waitpid(tid, WAIT_THREAD | os.WNOHANG)
        if found:
            return status
        if exited:
            return None
        time.sleep(pause)
        pause = min(2 * pause + 10e-6, 1e-3)


def signal_mask(tid: int) -> int | None:
    """The thread's blocked signals, signal n being bit n-1; None if it is gone."""
    mask = ctypes.c_uint64()
    return mask.value if request(PTRACE_GETSIGMASK, tid, _MASK_SIZE, ctypes.addressof(mask)) else None


def set_signal_mask(tid: int, mask: int) -> None:
    """Block exactly these signals."""
    wanted = ctypes.c_uint64(mask)
    request(PTRACE_SETSIGMASK, tid, _MASK_SIZE, ctypes.addressof(wanted))


@attrs.frozen
class Gate:
    """How a program is made to enter the kernel."""

    abi: Abi
    insn: VirtAddr
    """A system call instruction of its own."""


def find_gate(pid: ProcessId, memory: ProcessMemory, abi: Abi) -> Gate:
    """By some system call instruction in the program's executable memory, the vdso's if it has one.

    Raises SlotsExhausted if there is none.
    """
    candidates = [each for each in procfs.maps(pid) if each.executable and each.path != "[vsyscall]"]
    for mapping in sorted(candidates, key=lambda each: each.path != "[vdso]"):
        size = min(mapping.end - mapping.start, _LARGEST_SEARCH)
        offset = memory.read(mapping.start, size).find(abi.insn)
        if offset >= 0:
            return Gate(abi, VirtAddr(mapping.start + offset))
    raise SlotsExhausted(pid, VirtAddr(0), "the program has no system call instruction to map memory with")


class Injector:
    """Lets stopped threads make system calls. Owned by the tracer, used in its thread."""

    def __init__(self, memory: Callable[[ProcessId], ProcessMemory]) -> None:
        self._memory: Final = memory

    def call(self, pid: ProcessId, tid: int, gate: Gate, name: str, arguments: Sequence[int]) -> int:
        """The call's result as the kernel gives it: negative errno values are negative.

        The thread must be in a plain or signal-delivery stop; it ends in a plain one, its registers, signal mask
        and announced restartable sequence as before. Raises TargetGone if it was killed, SlotsExhausted if a
        seccomp filter forbids it.
        """
        seccomp = self._suspend_seccomp(pid, tid)
        saved, mask = RegisterBuffer(), signal_mask(tid)
        if mask is None or not request(PTRACE_GETREGS, tid, 0, ctypes.addressof(saved)):
            raise TargetGone(pid, None)
        announcement = Announcement(tid, self._memory(pid))
        set_signal_mask(tid, _NO_SYSCALL)
        self._load(tid, saved, gate, (gate.abi.calls[name], *arguments))
        owed: list[int] = []
        self._run(tid, PTRACE_SYSCALL, SYSCALL_STOP, owed)
        self._run(tid, PTRACE_SYSCALL, SYSCALL_STOP, owed)
        after = RegisterBuffer()
        request(PTRACE_GETREGS, tid, 0, ctypes.addressof(after))
        request(PTRACE_INTERRUPT, tid)
        self._run(tid, PTRACE_CONT, None, owed)
        request(PTRACE_SETREGS, tid, 0, ctypes.addressof(saved))
        announcement.put_back()
        set_signal_mask(tid, mask)
        if seccomp:
            request(PTRACE_SETOPTIONS, tid, 0, OPTIONS)
        for signal in owed:
            tgkill(pid, tid, signal)
        mask = gate.abi.mask
        result = after[RAX] & mask
        return result - mask - 1 if result > mask - _ERRORS else result

    def _suspend_seccomp(self, pid: ProcessId, tid: int) -> bool:
        if procfs.status(tid).get("Seccomp", "0") == "0":
            return False
        try:
            request(PTRACE_SETOPTIONS, tid, 0, OPTIONS | PTRACE_O_SUSPEND_SECCOMP)
        except PtraceFailed as error:
            reason = "its seccomp filter may forbid mmap, and only root can suspend that"
            raise SlotsExhausted(pid, VirtAddr(0), reason) from error
        return True

    def _load(
        self, tid: int, saved: ctypes.Array[ctypes.c_uint64], gate: Gate, number_and_arguments: Sequence[int]
    ) -> None:
        words = RegisterBuffer(*saved)
        words[ORIG_RAX], words[RIP] = _NO_SYSCALL, gate.insn
        for register, value in zip((RAX, *gate.abi.arguments), number_and_arguments, strict=False):
            words[register] = value & gate.abi.mask
        request(PTRACE_SETREGS, tid, 0, ctypes.addressof(words))

    def _run(self, tid: int, how: int, until: int | None, owed: list[int]) -> None:
        """Let the thread go until its next stop of the wanted kind (None: a plain one)."""
        while True:
            request(how, tid)
            status = wait_for(tid)
            if status is None or not os.WIFSTOPPED(status):
                raise Interloper(status)
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == PTRACE_EVENT_STOP:
                if until is None:
                    return
            elif event:
                raise Interloper(status)
            elif number == until:
                return
            else:
                owed.append(number)  # SIGSTOP, which no mask keeps back
