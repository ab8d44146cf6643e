"""What tracer threads tell one Ptrace object, in order, until somebody asks for it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

import attrs

import ubpx
from ubpx.hookspecs import hookimpl


class Kind(StrEnum):
    """What happened."""

    HIT = "HIT"
    STEPPED = "STEPPED"
    SIGNAL = "SIGNAL"
    SYSCALL = "SYSCALL"
    STARTED = "STARTED"
    EXECED = "EXECED"
    FORKED = "FORKED"
    EXITED = "EXITED"
    """A thread did, and it was not the leader."""
    ENDED = "ENDED"
    """The process has, or somebody else has detached it."""


STOPS: Final = frozenset({Kind.HIT, Kind.STEPPED, Kind.SIGNAL, Kind.SYSCALL, Kind.STARTED, Kind.EXECED})
"""After these the thread waits for us."""


@attrs.frozen(kw_only=True)
class Report:
    """One thing that happened to one thread."""

    kind: Kind
    pid: int
    tid: int
    number: int | None = None
    """HIT: the address; SIGNAL: which; FORKED: the child; EXITED, ENDED: the status, None if nobody knows."""


class Inbox:
    """The reports of one Ptrace object; filled by tracer threads, emptied by any other."""

    def __init__(self) -> None:
        self._reports: Final[deque[Report]] = deque()
        self._changed: Final = threading.Condition()

    def put(self, report: Report) -> None:
        """The newest."""
        with self._changed:
            self._reports.append(report)
            self._changed.notify_all()

    def put_back(self, reports: list[Report]) -> None:
        """These come first, in this order."""
        with self._changed:
            self._reports.extendleft(reversed(reports))
            self._changed.notify_all()

    def look_again(self) -> None:
        """What nobody wanted may be wanted now."""
        with self._changed:
            self._changed.notify_all()

    def has(self, wanted: Callable[[Report], bool]) -> bool:
        """Whether there is such a report."""
        with self._changed:
            return any(wanted(report) for report in self._reports)

    def remove(self, unwanted: Callable[[Report], bool]) -> list[Report]:
        """Drop such reports, and give them."""
        with self._changed:
            found = [report for report in self._reports if unwanted(report)]
            for report in found:
                self._reports.remove(report)
            return found

    def take(
        self, wanted: Callable[[Report], bool], *, over: Callable[[], bool], timeout: float | None
    ) -> Report | None:
        """The first wanted one, waiting up to ``timeout`` seconds for it; None after that, or when it is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not over():
                report = next((report for report in self._reports if wanted(report)), None)
                if report is not None:
                    self._reports.remove(report)
                    return report
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return None


class Wishes(Protocol):
    """What a Ptrace object wants to be told."""

    trace_clone: bool
    trace_fork: bool
    trace_exec: bool


class Reporter:
    """The hooks of one Ptrace object's client on one target; all that they do is report, and hold."""

    def __init__(self, pid: int, inbox: Inbox, wishes: Wishes) -> None:
        self.want_calls_of: Final[set[int]] = set()
        """Threads that stop at their next system call."""
        self._pid: Final = pid
        self._inbox: Final = inbox
        self._wishes: Final = wishes

    def _report(self, kind: Kind, tid: int, number: int | None = None) -> None:
        self._inbox.put(Report(kind=kind, pid=self._pid, tid=tid, number=number))

    def arrived(self, hit: ubpx.Hit) -> ubpx.Verdict:
        """The handler of every breakpoint."""
        self._report(Kind.HIT, hit.tid, hit.address)
        return ubpx.Verdict.HOLD

    @hookimpl
    def ubpx_process_attached(self, client: ubpx.Client) -> None:
        """Calls stop nothing before somebody asks for them."""
        client.catch_syscalls([])

    @hookimpl
    def ubpx_signal(self, tid: int, signal: int) -> ubpx.Verdict:
        """The thread waits for ``cont``, which says whether it is delivered."""
        self._report(Kind.SIGNAL, tid, signal)
        return ubpx.Verdict.HOLD

    @hookimpl
    def ubpx_syscall_entered(self, tid: int) -> ubpx.Verdict | None:
        """Only for threads that were continued by ``syscall``."""
        if tid not in self.want_calls_of:
            return None
        self.want_calls_of.discard(tid)
        self._report(Kind.SYSCALL, tid)
        return ubpx.Verdict.HOLD

    @hookimpl
    def ubpx_syscall_exited(self, tid: int) -> ubpx.Verdict | None:
        """As at the entry."""
        return self.ubpx_syscall_entered(tid)

    @hookimpl
    def ubpx_thread_stepped(self, tid: int) -> None:
        """The thread is held, as before the step."""
        self._report(Kind.STEPPED, tid)

    @hookimpl
    def ubpx_thread_started(self, client: ubpx.Client, tid: int) -> None:
        """It waits at its first instruction."""
        if self._wishes.trace_clone:
            client.hold(tid)
            self._report(Kind.STARTED, tid)

    @hookimpl
    def ubpx_thread_exited(self, tid: int, status: int) -> None:
        """The leader's end is the process's."""
        self.want_calls_of.discard(tid)
        if tid != self._pid:
            self._report(Kind.EXITED, tid, status)

    @hookimpl
    def ubpx_process_execed(self, client: ubpx.Client) -> None:
        """It waits at the new program's first instruction."""
        if self._wishes.trace_exec:
            client.hold(self._pid)
        self._report(Kind.EXECED, self._pid)

    @hookimpl
    def ubpx_process_forked(self, child: int) -> None:
        """The child runs on; whoever takes the report attaches to it."""
        if self._wishes.trace_fork:
            self._report(Kind.FORKED, self._pid, child)

    @hookimpl
    def ubpx_process_exited(self, status: int) -> None:
        """Every thread has gone."""
        self._report(Kind.ENDED, self._pid, status)

    @hookimpl
    def ubpx_process_detached(self) -> None:
        """Somebody else has left it, and so must we."""
        self._report(Kind.ENDED, self._pid)
