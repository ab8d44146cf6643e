"""Why a thread stopped, and what happens to it next."""

from collections import deque
from enum import IntEnum
from typing import Final

import attrs

from ubpx.core.ports import TracedThread
from ubpx.core.values import ProcessId, ThreadId, VirtAddr

NOWHERE: Final = VirtAddr(0)


class Verdict(IntEnum):
    """What a handler wants to happen to its thread; the least permissive of all given wins."""

    RESUME = 0
    """Go on."""
    STEP = 1
    """Execute one instruction, tell by ``ubpx_thread_stepped``, go on."""
    HOLD = 2
    """This thread stays stopped until the hold is released."""
    HOLD_PROCESS = 3
    """All threads of the process stay stopped until the hold is released."""


@attrs.frozen
class StopEvent:
    """Something happened to a traced thread; except after ThreadGone it is stopped and waits for us."""

    thread: TracedThread


@attrs.frozen
class StepDone(StopEvent):
    """A single step ended (SIGTRAP, TRAP_TRACE)."""

    watched: tuple[int, ...] = ()
    """The debug registers that noticed something in it."""
    address: VirtAddr = NOWHERE
    """si_addr: where the next instruction is."""


@attrs.frozen
class WatchHit(StopEvent):
    """Debug registers have noticed something (SIGTRAP, TRAP_HWBKPT); a data access has been done."""

    watched: tuple[int, ...]
    """Their numbers."""


@attrs.frozen
class SignalArrived(StopEvent):
    """A signal is about to be delivered; nothing of it has happened yet."""

    signal: int
    code: int
    """si_code: above 0 the kernel made it (a fault), else somebody sent it."""
    fault_address: VirtAddr
    """si_addr; only meaningful for a fault."""


@attrs.frozen
class SyscallEntered(StopEvent):
    """The thread is about to make a system call."""

    number: int
    arguments: tuple[int, ...]
    """Six, unsigned; those that the call does not take are whatever the registers hold."""


@attrs.frozen
class SyscallExited(StopEvent):
    """A system call of the thread has ended."""

    number: int
    result: int
    """Signed: minus the errno where it failed."""


@attrs.frozen
class Interrupted(StopEvent):
    """The thread stopped because we asked, or a group-stop ended."""


@attrs.frozen
class Interruptions:
    """Many threads stopped because we asked: ``Interrupted`` for each of them, in one event.

    Whoever takes one takes it out of ``threads``; those that are left are told again.
    """

    threads: deque[TracedThread]


@attrs.frozen
class GroupStopped(StopEvent):
    """The process is stopped by job control (SIGSTOP, SIGTSTP, ...)."""

    signal: int


@attrs.frozen
class ThreadAppeared(StopEvent):
    """A task that a traced thread made is here, stopped before its first instruction.

    It may be a thread, a forked process, or a child that shares memory: ``process`` tells.
    """

    process: ProcessId
    """Its thread-group id."""
    parent: ProcessId
    """The traced process that made it."""
    shares_memory: bool
    group_signal: int = 0
    """What put the process into the group-stop that the thread was born into; 0: into none."""


@attrs.frozen
class TaskCreated(StopEvent):
    """A thread has called clone, fork or vfork; the child announces itself by ThreadAppeared."""

    child: ThreadId
    waits_for_child: bool
    """vfork: the thread cannot run, nor be stopped, until the child execs or exits."""


@attrs.frozen
class Execed(StopEvent):
    """The process runs a new program; it stands before its first instruction."""

    former_tid: ThreadId
    """Of the thread that called exec; it now has the leader's."""


@attrs.frozen
class ThreadExiting(StopEvent):
    """The thread is about to exit; its memory is still there."""

    status: int
    """As ``target.wait`` gives it: the exit status, or the negative signal number."""


@attrs.frozen
class ThreadGone(StopEvent):
    """The thread has exited; for the leader: the whole process has."""

    status: int


@attrs.frozen
class Doorbell:
    """Somebody rang, or the core took charge of an arrival: there may be something to do."""
