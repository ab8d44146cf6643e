"""System calls that a stopped thread makes for us (S12), so that it never notices.

The thread executes a ``syscall`` (i386: ``int $0x80``) instruction that is there already: no byte that the program
executes is changed, no signal is used (a SIGTRAP would undo the program's own disposition where it is blocked), and it
ends in the kind of stop in which the kernel restarts an interrupted system call by itself. If we are killed meanwhile,
a signal frame of our making brings it back (see ``frames``).
"""

import contextlib
import ctypes
import math
import os
import signal as signals
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs

from ubpx import MemoryFault, PtraceFailed, SlotsExhausted, TargetGone
from ubpx.core.values import MappedRange, ProcessId, VirtAddr
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import ORIG_RAX, RAX, RIP, X86_64, Abi, RegisterBuffer
from ubpx_ptracepp.frames import LEAST_ROOM, returning_frame
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
_NO_SIGNAL: Final = 0xFFFF_FFFF_FFFF_FFFF
"""As a mask: all are blocked."""
_MASK_SIZE: Final = 8
_RETURN: Final = b"\xb8\x0f\x00\x00\x00\x0f\x05"  # mov $15, %eax; syscall: rt_sigreturn
_MOV_RSP: Final = b"\x48\xbc"  # movabs
_FRAME_ALIGNMENT: Final = 64
_PLANNED_AT: Final = 32
"""Behind a makeshift gate's code: what is about to be mapped by it."""
_ERRORS: Final = 4095
"""Results that are negative error numbers begin so far below zero (MAX_ERRNO in the kernel)."""
_LARGEST_SEARCH: Final = 4 << 20
_PATIENCE_S: Final = 5.0
"""A thread that has not entered the kernel after so long never will: another one has changed the code that it is at."""
_WITHOUT_DOUBT_S: Final = 100e-6
"""Until a pause is longer nobody asks whether the thread has exited, which takes longer than most system calls."""
_FAULTS: Final = frozenset({signals.SIGSEGV, signals.SIGBUS, signals.SIGILL, signals.SIGFPE, signals.SIGTRAP})


class GateBroken(Exception):
    """The program has changed the instruction by which it was to enter the kernel; nothing has happened."""


class Interloper(Exception):
    """The thread stopped for something else, which must be handled first."""

    def __init__(self, wait_status: int | None) -> None:
        super().__init__("it has exited" if wait_status is None else f"wait status {wait_status:#x}")
        self.wait_status = wait_status


def wait_for(tid: int, *, patience_s: float = math.inf) -> int | None:
    """The next wait status of one thread; None if it has exited without one. Raises GateBroken if none comes in time.

    Waiting for the thread alone would be for ever if it is a leader that was killed: its exit is
    not told before its other threads have gone, and they wait for us at their own exits.
    """
    pause, began = 0.0, time.monotonic()
    while True:
        exited = pause > _WITHOUT_DOUBT_S and procfs.has_exited(tid)
        found, status = waitpid(tid, WAIT_THREAD | os.WNOHANG)
        if found:
            return status
        if exited:
            return None
        if patience_s < math.inf and time.monotonic() - began > patience_s:
            raise GateBroken
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


@attrs.frozen(kw_only=True)
class Gate:
    """How a program is made to enter the kernel."""

    abi: Abi
    insn: VirtAddr
    """A system call instruction. With a ``frame``, ``rt_sigreturn`` is called behind it, with that as its stack."""
    frame: VirtAddr | None = None
    """Where the registers lie that the thread comes back with even if we are killed meanwhile; None: it would not."""
    room: int = 0
    """Bytes for the frame."""


def find_gate(pid: ProcessId, memory: ProcessMemory, abi: Abi) -> Gate:
    """By some system call instruction in the program's executable memory, the vdso's if it has one.

    Raises SlotsExhausted if there is none.
    """
    candidates = [each for each in procfs.maps(pid) if each.executable and each.path != "[vsyscall]"]
    for mapping in sorted(candidates, key=lambda each: each.path != "[vdso]"):
        size = min(mapping.end - mapping.start, _LARGEST_SEARCH)
        try:
            offset = memory.read(mapping.start, size).find(abi.insn)
        except MemoryFault:  # unmapped meanwhile
            continue
        if offset >= 0:
            return Gate(abi=abi, insn=VirtAddr(mapping.start + offset))
    raise SlotsExhausted(pid, VirtAddr(0), "the program has no system call instruction to map memory with")


@attrs.frozen
class Makeshift:
    """A gate in the vdso's padding, for as long as nothing of ours is mapped."""

    start: VirtAddr
    end: VirtAddr
    planned: VirtAddr
    """What is mapped by it; 0: nothing."""


def find_makeshift(mappings: Sequence[MappedRange], memory: ProcessMemory, abi: Abi) -> Makeshift | None:
    """One that somebody has left there."""
    place = _padding(mappings, memory, abi)
    if place is None:
        return None
    start, end, padding = place
    if not padding.startswith(_makeshift_code(abi, start)):
        return None
    return Makeshift(start, end, VirtAddr(int.from_bytes(padding[_PLANNED_AT : _PLANNED_AT + 8], "little")))


def _padding(
    mappings: Sequence[MappedRange], memory: ProcessMemory, abi: Abi
) -> tuple[VirtAddr, VirtAddr, bytes] | None:
    """The last bytes of the vdso, as many as a gate and a frame need: from where, to where, and what they are."""
    vdso = next((each for each in mappings if each.path == "[vdso]"), None)
    if abi is not X86_64 or vdso is None:
        return None
    start = VirtAddr((vdso.end - LEAST_ROOM) // _FRAME_ALIGNMENT * _FRAME_ALIGNMENT - _FRAME_ALIGNMENT)
    return start, vdso.end, memory.read(start, vdso.end - start)


def _makeshift_code(abi: Abi, start: VirtAddr) -> bytes:
    """A system call, then the return by the frame behind."""
    return abi.insn + _MOV_RSP + (start + _FRAME_ALIGNMENT).to_bytes(8, "little") + _RETURN


@contextmanager
def makeshift_gate(pid: ProcessId, memory: ProcessMemory, abi: Abi) -> Iterator[Gate]:
    """A gate with a frame, before anything of ours is mapped: for as long as the block runs, in the vdso's padding.

    Where that has no room it is one without a frame. Raises SlotsExhausted as ``find_gate`` does.
    """
    place = _padding(procfs.maps(pid), memory, abi)
    if place is None or (any(place[2]) and not place[2].startswith(_makeshift_code(abi, place[0]))):
        yield find_gate(pid, memory, abi)
        return
    start, end, _ = place
    code = _makeshift_code(abi, start)
    frame = VirtAddr(start + _FRAME_ALIGNMENT)
    try:
        memory.patch(start, code)
        yield Gate(abi=abi, insn=start, frame=frame, room=end - frame)
    finally:
        with contextlib.suppress(MemoryFault):
            memory.patch(start, bytes(end - start))


def plan(memory: ProcessMemory, gate: Gate, address: VirtAddr) -> None:
    """Note at a makeshift gate what is about to be mapped by it."""
    if gate.frame is not None:
        memory.patch(gate.insn + _PLANNED_AT, address.to_bytes(8, "little"))


def is_intact(gate: Gate, memory: ProcessMemory) -> bool:
    """Whether a system call instruction is where there was one."""
    try:
        return memory.read(gate.insn, len(gate.abi.insn)) == gate.abi.insn
    except MemoryFault:
        return False


Call = tuple[str, Sequence[int]]
"""A system call's name, and its arguments."""


class Injector:
    """Lets stopped threads make system calls. Owned by the tracer, used in its thread."""

    def __init__(self, memory: Callable[[ProcessId], ProcessMemory]) -> None:
        self._memory: Final = memory

    def calls(self, pid: ProcessId, tid: int, gate: Gate, calls: Sequence[Call]) -> list[int]:
        """The calls' results as the kernel gives them: negative errno values are negative.

        The thread must be in a plain or signal-delivery stop; it ends in a plain one, its registers, signal mask
        and announced restartable sequence as before. Raises TargetGone if it was killed, SlotsExhausted if a
        seccomp filter forbids it, GateBroken.
        """
        if not is_intact(gate, self._memory(pid)):
            raise GateBroken
        seccomp = self._suspend_seccomp(pid, tid)
        saved, mask = RegisterBuffer(), signal_mask(tid)
        if mask is None or not request(PTRACE_GETREGS, tid, 0, ctypes.addressof(saved)):
            raise TargetGone(pid, None)
        announcement = Announcement(tid, self._memory(pid))
        self._write_frame(pid, tid, gate, saved, mask)
        owed: list[int] = []
        results: list[int] = []
        broken = False
        for number, (name, arguments) in enumerate(calls):
            self._load(tid, saved, gate, (gate.abi.calls[name], *arguments))
            if number == 0:  # from here on a frame, if there is one, brings everything back
                set_signal_mask(tid, _NO_SIGNAL)
            try:
                self._run(tid, PTRACE_SYSCALL, SYSCALL_STOP, owed, patience_s=_PATIENCE_S)
            except GateBroken:
                broken = True
                break
            self._run(tid, PTRACE_SYSCALL, SYSCALL_STOP, owed)
            results.append(_result(tid, gate.abi))
        request(PTRACE_INTERRUPT, tid)
        self._run(tid, PTRACE_CONT, None, owed)
        set_signal_mask(tid, mask)
        request(PTRACE_SETREGS, tid, 0, ctypes.addressof(saved))
        announcement.put_back()
        if seccomp:
            request(PTRACE_SETOPTIONS, tid, 0, OPTIONS)
        for signal in owed:
            tgkill(pid, tid, signal)
        if broken:
            raise GateBroken
        return results

    def _write_frame(
        self, pid: ProcessId, tid: int, gate: Gate, saved: ctypes.Array[ctypes.c_uint64], mask: int
    ) -> None:
        """Have what the thread comes back with lie where the gate looks for it."""
        if gate.frame is not None:
            place = range(gate.frame, gate.frame + gate.room)
            frame = returning_frame(tid, saved, mask, gate.abi, place)
            if frame is not None:
                with contextlib.suppress(MemoryFault):  # taken away by the program, or it is being killed
                    self._memory(pid).patch(gate.frame, frame)

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

    def _run(self, tid: int, how: int, until: int | None, owed: list[int], *, patience_s: float = math.inf) -> None:
        """Let the thread go until its next stop of the wanted kind (None: a plain one)."""
        while True:
            request(how, tid)
            status = wait_for(tid, patience_s=patience_s)
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
            elif number in _FAULTS:
                if until is not None:
                    raise GateBroken
            else:
                owed.append(number)  # SIGSTOP, which no mask keeps back


def _result(tid: int, abi: Abi) -> int:
    """Of the system call that the thread has just ended."""
    after = RegisterBuffer()
    request(PTRACE_GETREGS, tid, 0, ctypes.addressof(after))
    result = after[RAX] & abi.mask
    return result - abi.mask - 1 if result > abi.mask - _ERRORS else result
