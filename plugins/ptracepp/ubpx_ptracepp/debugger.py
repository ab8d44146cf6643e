"""ptrace++: an enhanced ptrace, with the face of python-ptrace's PtraceDebugger."""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from typing import TYPE_CHECKING, Final, Self

from ptrace import debugger as python_ptrace
from ptrace.debugger import (
    DebuggerError,
    NewProcessEvent,
    ProcessEvent,
    ProcessExecution,
    ProcessExit,
    ProcessSignal,
)
from ptrace.error import PtraceError

import ubpx
from ubpx_ptracepp.attachment import Attachment
from ubpx_ptracepp.process import PtraceProcess
from ubpx_ptracepp.reports import STOPS, Inbox, Kind, Report
from ubpx_ptracepp.sharing import POOL
from ubpx_ptracepp.translation import translating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80


class Ptrace(python_ptrace.PtraceDebugger):  # type: ignore[misc]
    """A debugger of any number of processes; several Ptrace objects may have the same one.

    Each has breakpoints, stops and event masks of its own; a thread runs when nobody holds it. May be used from any
    thread. Leaving the ``with`` detaches from every process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.caught_syscalls: Iterable[int | str] | None = None
        """Where ``process.syscall()`` stops, by number or name; None: at all of them."""
        self._caught_signals: list[int] | None = None
        self._inbox: Final = Inbox()
        self._attachments: Final[dict[int, Attachment]] = {}
        self._tellers: Final[Mapping[Kind, Callable[[Attachment, Report], ProcessEvent | None]]] = {
            Kind.STARTED: self._started,
            Kind.FORKED: self._forked,
            Kind.EXECED: self._execed,
            Kind.ENDED: self._ended,
        }

    # Processes ----------------------------------------------------------------------------

    def attach(self, pid: int) -> PtraceProcess:
        """Trace a running process; its leader stops, other threads run on until something happens to them."""
        return self.addProcess(pid, is_attached=False)

    def share(self, target: ubpx.Target) -> PtraceProcess:
        """As ``attach``, for a target that you have attached with ubpx, and will detach."""
        POOL.adopt(target)
        return self.attach(target.pid)

    def addProcess(
        self,
        pid: int,
        is_attached: bool,
        parent: PtraceProcess | None = None,
        is_thread: bool = False,
    ) -> PtraceProcess:
        """Trace a running process, or (``is_attached``) one that ``createChild`` has started; it is stopped then.

        Of a process that is traced already, a further thread can be added.
        Raises KeyError if it has been, PtraceError (EPERM, ESRCH) if it cannot be.
        """
        known = self.dict.get(pid)
        if known is not None and not is_thread:
            raise KeyError(f"The process {pid} is already registered!")
        attachment = next((each for each in self._attachments.values() if each.has_thread(pid)), None)
        with translating():
            if attachment is None:
                attachment = self._join(pid)
            elif not self.is_stopped(pid):
                attachment.hold(pid)
        process = self._list(attachment, pid, parent=parent, was_attached=is_attached)
        if not process.is_stopped:
            process.stop_at()
        return process

    def _join(self, pid: int) -> Attachment:
        attachment = Attachment(pid, self._inbox, self)
        try:
            if self._caught_signals is not None:
                attachment.client.catch_signals(self._caught_signals)
            attachment.hold(pid)
        except BaseException:
            attachment.end()
            raise
        self._attachments[pid] = attachment
        return attachment

    def _list(
        self, attachment: Attachment, tid: int, *, parent: PtraceProcess | None = None, was_attached: bool = False
    ) -> PtraceProcess:
        process: PtraceProcess | None = self.dict.get(tid)
        if process is None:
            process = PtraceProcess(self, attachment, tid, parent=parent, was_attached=was_attached)
            self.dict[tid] = process
            self.list.append(process)
        return process

    def detach(self, process: PtraceProcess) -> None:
        """See ``PtraceProcess.detach``."""
        if self.dict.get(process.pid) is not process:
            return
        attachment = process.attachment
        others = [each for each in self.list if each.attachment is attachment and each is not process]
        if process.is_thread and others:
            if process.is_stopped and attachment.has_thread(process.pid):
                with translating(process):
                    process.let_go()
                    attachment.let_go_unseen(process.pid)
            self._forget(process)
            return
        with translating(process):
            for each in (process, *others):
                each.let_go()
            self._end(attachment)
        for each in (process, *others):
            self._forget(each)

    def _forget(self, process: PtraceProcess) -> None:
        process.left()
        super().deleteProcess(process=process)
        self._inbox.look_again()

    def _end(self, attachment: Attachment) -> None:
        self._attachments.pop(attachment.pid, None)
        attachment.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in tuple(self.list):
            process.detach()

    # Masks --------------------------------------------------------------------------------

    def catchSignals(self, signals: Iterable[int] | None) -> None:
        """Be told of these signals alone, in every process; None: of all. Raises PtraceError for what is none."""
        wanted = None if signals is None else list(signals)
        with translating():
            for attachment in self._attachments.values():
                attachment.client.catch_signals(wanted)
        self._caught_signals = wanted

    def catchSyscalls(self, calls: Iterable[int | str] | None) -> None:
        """Have ``process.syscall()`` stop at these alone, by number or name; None: at all."""
        self.caught_syscalls = None if calls is None else list(calls)

    # Events -------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, *, pid: int | None = None) -> ProcessEvent | None:
        """The next event, of one thread or of any; None after ``timeout`` seconds.

        Raises DebuggerError (ECHILD) if nothing is traced that an event could come of.
        """
        if pid is None:
            self.clear_shelf()
        elif pid not in self.dict:
            raise _nothing_to_wait_for(f"thread {pid} is not traced")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            report = self._inbox.take(lambda each: self._may_take(each, pid), over=lambda: not self.dict, timeout=left)
            if not self.dict:
                raise _nothing_to_wait_for("nothing is traced")
            if report is None:
                return None
            event = self._event_of(report)
            if event is not None:
                return event

    def _wait_event(self, wanted_pid: int | None, blocking: bool = True) -> ProcessEvent | None:
        """What python-ptrace's own methods wait by."""
        return self.wait(None if blocking else 0, pid=wanted_pid)

    def _may_take(self, report: Report, pid: int | None) -> bool:
        if report.kind is Kind.ENDED:
            return True
        if pid is not None and report.tid != pid and not (report.kind is Kind.STARTED and report.pid == pid):
            return False
        return report.kind not in STOPS or not self.is_stopped(report.tid)

    def _event_of(self, report: Report) -> ProcessEvent | None:
        """What its user is told of a report; None: nothing."""
        if report.kind is Kind.EXITED:
            return self._exited(report)
        attachment = self._attachments.get(report.pid)
        if attachment is None:
            return None
        return self._tellers.get(report.kind, self._stopped)(attachment, report)

    def _stopped(self, attachment: Attachment, report: Report) -> ProcessSignal:
        """A stop that is told as a signal."""
        process = self._list(attachment, report.tid)
        number = int(signal.SIGTRAP)
        if report.kind is Kind.SIGNAL:
            number = report.number or 0
        elif report.kind is Kind.SYSCALL and self.use_sysgood:
            number = _SYSCALL_STOP
        process.stop_at(hit=report.number if report.kind is Kind.HIT else None, at_signal=report.kind is Kind.SIGNAL)
        return ProcessSignal(number, process)

    def _execed(self, attachment: Attachment, _report: Report) -> ProcessExecution | None:
        attachment.renew()
        leader = self._list(attachment, attachment.pid)
        leader.renew()
        if self.trace_exec:
            leader.stop_at()
            return ProcessExecution(leader)
        with contextlib.suppress(ubpx.UbpxError):  # it has ended meanwhile
            attachment.let_go(leader.pid, {}, None)  # if another thread's exec came while it was stopped
        return None

    def _started(self, attachment: Attachment, report: Report) -> NewProcessEvent:
        parent = self._list(attachment, attachment.pid)
        process = self._list(attachment, report.tid, parent=parent, was_attached=parent.was_attached)
        process.stop_at()
        parent.started_another()
        return NewProcessEvent(process)

    def _exited(self, report: Report) -> ProcessExit | None:
        process = self.dict.get(report.tid)
        if process is None:
            return None
        self._forget(process)
        status = report.number
        if status is None:
            return ProcessExit(process)
        return ProcessExit(process, signum=-status) if status < 0 else ProcessExit(process, exitcode=status)

    def _ended(self, attachment: Attachment, report: Report) -> None:
        """Tell of the exit of each thread that is listed, the leader's last."""
        listed = [each for each in self.list if each.attachment is attachment]
        told = self._inbox.remove(lambda each: each.kind is Kind.EXITED and each.pid == attachment.pid)
        known = {each.tid for each in told}
        rest = sorted((each.pid for each in listed if each.pid not in known), key=lambda tid: tid == attachment.pid)
        attachment.forget()
        self._end(attachment)
        exits = [Report(kind=Kind.EXITED, pid=attachment.pid, tid=tid, number=report.number) for tid in rest]
        self._inbox.put_back([*told, *exits])

    def _forked(self, attachment: Attachment, report: Report) -> NewProcessEvent | None:
        """The child with memory of its own runs already; stop it where it is, if it still is."""
        parent = self._list(attachment, attachment.pid)
        with contextlib.suppress(PtraceError):
            with translating():
                attachment.settle()
            process = self.addProcess(report.number or 0, is_attached=parent.was_attached, parent=parent)
            parent.started_another()
            return NewProcessEvent(process)
        return None

    # What its processes ask -----------------------------------------------------------------

    def is_stopped(self, tid: int) -> bool:
        """Whether its user was told that the thread has stopped, and has not let it go."""
        process = self.dict.get(tid)
        return process is not None and process.is_stopped

    def is_any_at(self, attachment: Attachment, address: int) -> bool:
        """Whether a thread is stopped at the breakpoint there."""
        return any(each.attachment is attachment and each.is_at(address) for each in self.list)

    def clear_shelf(self) -> None:
        """Threads go on: breakpoints that were removed, and not set again, are gone now."""
        for attachment in tuple(self._attachments.values()):
            with contextlib.suppress(ubpx.UbpxError):  # it has just ended
                attachment.clear_shelf(self.is_stopped)

    def look_again(self) -> None:
        """A thread may be told of once more."""
        self._inbox.look_again()


def _nothing_to_wait_for(what: str) -> DebuggerError:
    return DebuggerError(f"{what}; add a process first", errno=errno.ECHILD)
