"""One Ptrace object's share in one process: its client there, its breakpoints, and what it holds."""

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Final

import ubpx
from ubpx_ptracepp.reports import STOPS, Inbox, Kind, Report, Reporter, Wishes
from ubpx_ptracepp.sharing import POOL

_numbers: Final = count(1)


class Attachment:
    """Owned by one Ptrace object. Nothing here runs in the tracer thread; the Reporter does."""

    def __init__(self, pid: int, inbox: Inbox, wishes: Wishes) -> None:
        self.pid: Final = pid
        self.breakpoints: Final[dict[int, Any]] = {}
        """Every ``Breakpoint`` that is set, by address."""
        self.ended = False
        self._inbox: Final = inbox
        self._reporter: Final = Reporter(pid, inbox, wishes)
        self._shelf: Final[dict[int, ubpx.Lease]] = {}
        """Leases of removed breakpoints that may be set again before any thread can slip past."""
        self._shared: Final = POOL.join(pid)
        try:
            self.client: Final = self.target.client(f"ptrace++ {next(_numbers)}", hooks=self._reporter)
        except BaseException:
            POOL.leave(self._shared)
            raise

    @property
    def target(self) -> ubpx.Target:
        """The ``ubpx.Target``, for clients of other kinds."""
        return self._shared.target

    def has_thread(self, tid: int) -> bool:
        """Whether the thread is there and has not begun to exit."""
        if self.ended:
            return False
        try:
            return tid in self.target.threads()
        except ubpx.UbpxError:
            return False

    # What is stopped ----------------------------------------------------------------------

    def hold(self, tid: int) -> None:
        """Stop a thread; when this returns it has, and a program that waits at its entry point waits for us."""
        self.client.hold(tid)
        self.target.resume()

    def _holds_of(self, tid: int) -> list[ubpx.Hold]:
        return [hold for hold in self.target.holds() if hold.owner == self.client.name and hold.thread == tid]

    def stops_again(self, tid: int) -> bool:
        """Whether a report of a stopped thread waits to be taken: it must not be let go before."""
        return self._inbox.has(lambda report: report.tid == tid and report.kind in STOPS)

    def settle(self) -> None:
        """When this returns, what has happened to stopped threads has been reported."""
        self.target.holds()

    def let_go(self, tid: int, registers: Mapping[str, int], signal: int | None) -> None:
        """End the holds of a thread; the signal replaces the one that it stopped for (None: as it is)."""
        holds = self._holds_of(tid)
        for hold in holds[1:]:
            hold.release()
        for hold in holds[:1]:
            hold.release(registers, signal=signal)

    def let_go_unseen(self, tid: int) -> None:
        """The same, for a thread whose further stops are told to nobody."""
        self.settle()
        self._inbox.remove(lambda report: report.tid == tid and report.kind in STOPS)
        self.let_go(tid, {}, None)

    def step(self, tid: int, registers: Mapping[str, int], signal: int | None) -> None:
        """Let a held thread run one instruction."""
        self.client.step(tid, registers, signal=signal)

    # System calls -------------------------------------------------------------------------

    def want_call_of(self, tid: int, calls: Iterable[int | str] | None) -> None:
        """Have the thread stop at the next of these calls, at its entry or its exit."""
        self._reporter.want_calls_of.add(tid)
        self.client.catch_syscalls(calls)

    def want_no_call_of(self, tid: int) -> None:
        """Have it pass; when no thread is to stop at calls, none stop the program."""
        if tid in self._reporter.want_calls_of:
            self._reporter.want_calls_of.discard(tid)
            if not self._reporter.want_calls_of:
                self.client.catch_syscalls([])

    # Breakpoints --------------------------------------------------------------------------

    def lease(self, address: int, *, assume_boundary: bool) -> ubpx.Lease:
        """A lease whose hits are reported: the shelved one, if there is one."""
        shelved = self._shelf.pop(address, None)
        if shelved is not None and shelved.state is ubpx.LeaseState.ARMED:
            return shelved
        return self.client.probe(address, self._reporter.arrived, assume_boundary=assume_boundary)

    def shelve(self, address: int, lease: ubpx.Lease) -> None:
        """Keep it armed until threads are let go."""
        self._shelf[address] = lease

    def clear_shelf(self, stopped: Callable[[int], bool]) -> None:
        """Give the shelved leases back."""
        while self._shelf:
            address, lease = self._shelf.popitem()
            self.give_back(address, lease, stopped)

    def give_back(self, address: int, lease: ubpx.Lease, stopped: Callable[[int], bool]) -> None:
        """Release it; threads that arrived there, and that nobody was told of, go on as if they had not.

        ``stopped`` says whether a thread, by tid, is stopped for our user anyway.
        """
        lease.release()
        gone = self._inbox.remove(lambda report: self._is_hit_at(report, address))
        for report in gone:
            if not stopped(report.tid) and not self.stops_again(report.tid):
                self.let_go(report.tid, {}, None)

    def _is_hit_at(self, report: Report, address: int) -> bool:
        return report.kind is Kind.HIT and report.pid == self.pid and report.number == address

    # The end ------------------------------------------------------------------------------

    def renew(self) -> None:
        """The process runs a new program; what was set in the old one is gone."""
        self.breakpoints.clear()
        self._shelf.clear()

    def end(self) -> None:
        """Give everything back and leave the process; the last one that does so detaches. Again: does nothing."""
        if self.ended:
            return
        self.ended = True
        self.renew()
        self.client.close()
        self._inbox.remove(lambda report: report.pid == self.pid and report.kind is not Kind.EXITED)
        POOL.leave(self._shared)

    def forget(self) -> None:
        """The process has ended, or was left by somebody else."""
        POOL.forget(self._shared)
