"""The tasks that are traced, and those that whoever made them has announced or that have appeared unannounced."""

import ctypes
import struct
from collections.abc import Iterable, Mapping, MutableSequence
from typing import Final, cast

from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import ProcessId, ThreadId
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import RegisterBuffer
from ubpx_ptracepp.requests import PTRACE_CONT, PTRACE_GETREGS, PTRACE_SYSCALL, shares_memory


class PtraceThread:
    """One traced thread (a ``ports.TracedThread``). Owned by the tracer."""

    __slots__ = ("asked", "buffer", "call", "entered_with", "get_registers", "go", "held", "image", "interrupted",
                 "interruption", "limit", "pid", "queued", "reported", "resumed_wait", "rewound", "sites", "stepping",
                 "stops", "tid", "trap_unblocked", "watching", "words")  # fmt: skip

    def __init__(self, tid: ThreadId, pid: ProcessId) -> None:
        self.tid: Final = tid
        self.pid: Final = pid
        self.buffer = RegisterBuffer()
        self.get_registers: Final = PTRACE_GETREGS, tid, 0, ctypes.byref(self.buffer)
        """What ``quick`` is called with to fill ``words``."""
        self.image: Final = memoryview(self.buffer).cast("B")
        """``words`` as bytes."""
        self.asked: Final = struct.pack("QQQQ", tid, ctypes.addressof(self.buffer), 0, 0)
        """What ``crowd`` asks of it (struct asked in crowd.c)."""
        self.words = cast(MutableSequence[int], memoryview(self.buffer).cast("B").cast("Q"))
        self.sites: Mapping[int, Site] = {}
        self.held = False
        self.stops = 0
        self.interrupted = False
        """We asked it to stop, and have not seen it do so."""
        self.interruption: Final = events.Interrupted(self)
        """The event, which is always the same."""
        self.queued = -1, 0
        """At which of its stops it was found, and the signals in its own queue then, bit ``number - 1`` of each."""
        self.watching = False
        """Its debug registers watch something."""
        self.stepping = False
        """It was last let run for one instruction."""
        self.trap_unblocked = 0
        """While it steps with SIGTRAP unblocked by us: its own mask."""
        self.go: int = PTRACE_CONT
        """The request that lets it run; ``look`` keeps it right."""
        self.reported = False
        """See ``reports_syscalls``."""
        self.limit: float | None = None
        """When the system call that it was made to begin again is to time out, by the monotonic clock; see waiting."""
        self.resumed_wait = False
        """That call has been entered again."""
        self.call = -1
        """The number of the system call that it is in, as its entry was reported; -1: none was."""
        self.entered_with = b""
        """Its registers when it stopped last at a trap that a jump leads to."""
        self.rewound = False
        """It stands before a system call whose entry has been reported."""

    @property
    def reports_syscalls(self) -> bool:
        """Whether its system calls stop it, from the next time on that it is let run."""
        return self.reported

    @reports_syscalls.setter
    def reports_syscalls(self, wanted: bool) -> None:
        self.reported = wanted
        self.look()

    def set_limit(self, limit: float | None) -> None:
        """While it has one its system calls are looked at, so that nobody takes another one for that which has it."""
        self.limit, self.resumed_wait = limit, False
        self.look()

    def look(self) -> None:
        """Have its system calls stop it if somebody wants to know of them."""
        self.go = PTRACE_SYSCALL if self.reported or self.limit is not None else PTRACE_CONT


class TaskTable:
    """Every traced thread by tid, and the two halves of a birth that may come in either order. Owned by the tracer."""

    def __init__(self) -> None:
        self.threads: Final[dict[int, PtraceThread]] = {}
        self._parents: Final[dict[int, ProcessId]] = {}
        """Who made a task that has not appeared yet."""
        self._unannounced: Final[set[int]] = set()
        """Tasks that have appeared, and whose maker has not said so yet."""
        self._orphans: Final[dict[int, ProcessId]] = {}
        """Tasks that appeared before whoever made them said so, and whose maker is unknown."""

    def add(self, threads: Iterable[PtraceThread]) -> None:
        """These are traced now."""
        self.threads.update((thread.tid, thread) for thread in threads)

    def knows(self, pid: ProcessId) -> bool:
        """Whether the process has a thread that is traced, or that has announced one."""
        return pid in {thread.pid for thread in self.threads.values()} | set(self._parents.values())

    def announced(self, tid: int, maker: PtraceThread) -> events.ThreadAppeared | None:
        """A thread has made a task; the task's own event, if it came first and could not be told."""
        if tid in self._unannounced:
            self._unannounced.discard(tid)
        else:
            self._parents[tid] = maker.pid
        orphan = self._orphans.pop(tid, None)
        return None if orphan is None else self._appear(tid, orphan, maker.pid)

    def appeared(self, tid: int, pid: ProcessId) -> events.ThreadAppeared | None:
        """An unknown task of process ``pid`` has stopped; None while nobody is known to have made it."""
        if self.knows(pid):
            return self._appear(tid, pid, pid)
        parent = self._parents.get(tid) or ProcessId(procfs.parent(pid))
        if self.knows(parent):
            return self._appear(tid, pid, parent)
        if pid:
            self._orphans[tid] = pid
        return None

    def never_came(self, tid: int) -> ProcessId:
        """A task died before it appeared; the process that made it, 0 if that is unknown."""
        self._orphans.pop(tid, None)
        return self._parents.pop(tid, ProcessId(0))

    def _appear(self, tid: int, pid: ProcessId, parent: ProcessId) -> events.ThreadAppeared:
        if self._parents.pop(tid, None) is None:
            self._unannounced.add(tid)
        shares = pid == parent or any(
            shares_memory(tid, thread.tid) for thread in self.threads.values() if thread.pid == parent
        )
        thread = self.threads[tid] = PtraceThread(ThreadId(tid), pid)
        thread.stops += 1
        return events.ThreadAppeared(thread, pid, parent, shares)
