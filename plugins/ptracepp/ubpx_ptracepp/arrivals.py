"""How the tracer waits: arrivals at sites are served here, and every other stop is told as an event.

The order at a trap of ours: peek at the stop, make the thread safe, consume the stop, run the handlers, let it go. From
the moment of consumption our own death does no harm. What each call costs is in docs/explanation/stop-path.md.
"""

import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ubpx.core import events
from ubpx.core.ports import Site, TracedThread
from ubpx_ptracepp import parenthood, procfs
from ubpx_ptracepp.abi import RIP
from ubpx_ptracepp.commands import SI_CODE, SIGINFO_SIZE
from ubpx_ptracepp.crowd.looking import AT_ONCE, MANY, OTHER, RUNS, STOOD, STOOD_IN_CALL, UNKNOWN, Crowd
from ubpx_ptracepp.lane.turning import CLOSELY, UNEXPECTED, Turns
from ubpx_ptracepp.parenthood import waitid
from ubpx_ptracepp.placement import Post
from ubpx_ptracepp.requests import (
    PEEK,
    PTRACE_GETSIGINFO,
    PTRACE_INTERRUPT,
    PTRACE_POKEUSER,
    peek,
    quick,
    reap,
    swift,
)
from ubpx_ptracepp.stops import SELDOM, Stops
from ubpx_ptracepp.tasks import PtraceThread

_SIGTRAP: Final = int(signal.SIGTRAP)
_ALL: Final = os.P_ALL
_CLD_TRAPPED: Final = os.CLD_TRAPPED
_WAIT_STATUS: Final = 0xFFFF_FFFF
_TRAP_STATUS: Final = _SIGTRAP << 8 | 0x7F
_RIP_OFFSET: Final = ctypes.c_long.from_param(RIP * 8)
_SI_CODE_WORD: Final = SI_CODE // 4
_SI_KERNEL: Final = 0x80
_Stop = tuple[int, int, int, int, int]
"""As waitid gives it: who, of which user, by SIGCHLD, with which signal or status, and how (CLD_*)."""
_STOPS_IN_S: Final = 3e-6
"""After about so long for each, all of them may have stopped (measured: 3 to 9 us)."""
_LONGEST_NAP_S: Final = 1e-3
_MOST_NAPS: Final = 8
_MOST_HURRIED: Final = 2
"""Not one: of jobs that come in pairs, a hold's and its release's, it would always be the same that waits."""


class Arrivals(Stops):
    """The part of ``ports.Tracer`` that waits. Used in the tracer thread."""

    def __init__(self) -> None:
        super().__init__()
        self._batch: Final[deque[tuple[PtraceThread, Site]]] = deque()
        self._post: Final = Post()
        self._asked: Final[deque[PtraceThread]] = deque()
        """Threads that were asked to stop, and may have."""
        self._naps = 0
        """How often in a row none of them had."""
        self._stood: Final[deque[TracedThread]] = deque()
        """Those that had, and can go on as they are."""
        self._interruptions: Final = events.Interruptions(self._stood)
        self._hurried = 0
        """How often in a row only the doorbell was looked at."""
        self._turns: Final = Turns()
        self._crowd: Final = Crowd(self._answers)
        self._trap_info_buffer: Final = (ctypes.c_int32 * (SIGINFO_SIZE // 4))()
        self._trap_info: Final = memoryview(self._trap_info_buffer).cast("B").cast("i")

    def wait(self) -> Any:
        """The next event; arrivals at sites are served meanwhile."""
        batch, queue = self._batch, self._queue
        if self._left is not None:
            self._consume_left()
        while True:
            while batch:
                thread, site = batch.popleft()
                if not site.arrive(thread):
                    return events.Doorbell()
                quick(thread.go, thread.tid, 0, 0)
            if self._stood:  # before what may have come of them since
                return self._interruptions
            if queue:
                return queue.popleft()
            if (self._asked or self._crowd.left) and self._collect():
                continue
            stop = self._attend() if len(self._threads) == 1 else waitid(_ALL, 0, PEEK)
            if stop is None:
                return events.Doorbell()
            self._gather(stop)

    def _collect(self) -> bool:
        """Take the stops of many threads that were asked to stop, each by its tid; whether ``wait`` is to look again.

        The kernel finds one among a thousand in as much time as it takes to look at all of them. It is never waited
        for one alone, which might be waiting for another that has stopped, too.
        """
        asked, crowd, stood = self._asked, self._crowd, self._stood
        if not crowd.left:  # else the last time was interrupted
            if len(asked) < MANY:
                asked.clear()
                return False
            crowd.look(self._due())
        for thread, status, fetched, queued in crowd.take():
            if status == RUNS:
                asked.append(thread)
            elif status in (STOOD, STOOD_IN_CALL) and not thread.trap_unblocked:
                thread.stops = stops = thread.stops + 1
                if queued != UNKNOWN and not (thread.stepping or thread.watching):
                    thread.queued = stops, queued
                if status == STOOD and thread.limit is None:
                    thread.interrupted = False
                    stood.append(thread)
                else:
                    self._queue.append(self._interrupted(thread, fetched=fetched != 0))
            else:
                self._take_other(thread, status)
        crowd.left = False
        if stood or self._queue or self._batch:
            self._naps = 0
        elif self._naps == _MOST_NAPS or not asked:
            return False
        else:
            self._naps += 1
            time.sleep(min(len(asked) * _STOPS_IN_S, _LONGEST_NAP_S))
        return True

    def _due(self) -> list[PtraceThread]:
        """Some that were asked to stop, and whose stop, or end, has not been seen yet."""
        asked, threads = self._asked, self._threads
        due: list[PtraceThread] = []
        while asked and len(due) < AT_ONCE:
            thread = asked.popleft()
            if thread.interrupted and threads.get(thread.tid) is thread:
                due.append(thread)
        return due

    def _attend(self) -> _Stop | None:
        """Serve the only thread there is: the fast lane, for as long as it does nothing but arrive at sites.

        The first stop that ``_gather`` has to take; None: the core has the thread, or events wait. Nobody starves
        meanwhile: the kernel shows the doorbell and new tasks first. What ``_take_trap`` does is done here in the same
        order, but for consuming the stop: that would only show it again, to ``wait`` within a handler (see ``_left``).
        """
        (thread,) = self._threads.values()
        if thread.trap_unblocked:
            return waitid(_ALL, 0, PEEK)
        turns = self._turns
        take, serves = turns.take, turns.serves
        turns.attend(thread, SELDOM)
        while True:
            number = take()
            if number >= 0:
                thread.stops += 1
                self._left = thread
                if serves[number](thread):  # so nothing is another than before
                    continue
                self._consume_left()
                return None
            self._left = None
            if number <= CLOSELY:
                if not self._serve_closely(thread, turns.sites[CLOSELY - number]):
                    return None
                turns.attend(thread, SELDOM)
                continue
            reported = thread.words[RIP]
            site = thread.sites.get(reported) if number == UNEXPECTED else None
            if site is None or not turns.expect(reported, site):
                return waitid(_ALL, 0, PEEK)

    def _serve_closely(self, thread: PtraceThread, site: Site) -> bool:
        """An arrival that is to be looked at closely; whether the thread was let go on, and no event waits."""
        thread.stops += 1
        self._left = thread
        self._consume_left()
        if self._queue:  # killed meanwhile
            return False
        if self._turns.impatient:
            self._look_closely(thread, site)
        goes_on = site.arrive(thread)
        if goes_on:
            quick(thread.go, thread.tid, 0, 0)
        return goes_on and not self._queue

    def _look_closely(self, thread: PtraceThread, site: Site) -> None:
        """At each 64th arrival, when its stop is consumed."""
        self._look_at_mask(thread, site)
        self._post.note(SELDOM, thread.tid)

    def _consume_left(self) -> None:
        """The stop of the thread whose handlers run, if it is not consumed yet: it must not be seen again."""
        thread, self._left = self._left, None
        if thread is not None:
            status = reap(thread.tid, self._answers)
            if status is not None and status != _TRAP_STATUS:  # killed meanwhile
                self._classify(thread.tid, thread, status)

    def _gather(self, first: _Stop) -> None:
        """Consume every stop there is, ``first`` first, before any thread goes on: so none starves.

        A job does not wait for that, which takes long where threads are many; each third job does.
        """
        threads, batch = self._threads, self._batch
        tid, _, _, number, code = first
        stop: tuple[int, int, int] | None = (tid, number, code)
        self._hurried = self._hurried + 1 if self._hurried < _MOST_HURRIED and self._is_doorbell(tid) else 0
        while stop is not None:
            self._take(stop)
            if batch and len(batch) == len(threads) and batch[-1][0].stops % SELDOM:
                return  # there is nobody else who could have stopped
            if self._hurried or len(self._asked) >= MANY:
                return  # else they are found sooner one by one
            stop = peek(self._answers)

    def _take(self, stop: tuple[int, int, int]) -> None:
        """Consume one stop, that of a thread at a site once it is safe."""
        tid, number, code = stop
        thread = self._threads.get(tid)
        if thread is None or number != _SIGTRAP or code != _CLD_TRAPPED:
            self._consume(tid, thread)
        else:
            self._take_trap(tid, thread)

    def _take_trap(self, tid: int, thread: PtraceThread) -> None:
        """Make the thread safe before its stop is consumed: from then on our death does no harm."""
        words = thread.words
        words[RIP] = 0
        quick(*thread.get_registers)
        try:
            site = thread.sites[words[RIP]]
        except KeyError:
            site = None
        if site is None or not (site.certain or (site.in_slot and self._has_moved(thread)) or self._is_breakpoint(tid)):
            self._consume(tid, thread)
            return
        if site.landing is not None:
            landing = site.landing_word or ctypes.c_ulong.from_param(site.landing)
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, landing)
        elif not site.make_safe(thread):
            self._consume(tid, thread)
            return
        status = reap(tid, self._answers)
        if status == _TRAP_STATUS:
            thread.stops = stops = thread.stops + 1
            if thread.trap_unblocked:
                self.block_trap_again(thread)
            if not stops % SELDOM:
                self._look_closely(thread, site)
            elif site.watchful:
                self._look_at_mask(thread, site)
            self._batch.append((thread, site))
        elif status is not None:  # killed meanwhile
            self._classify(tid, thread, status)

    def _has_moved(self, thread: PtraceThread) -> bool:
        """Since it last stopped at a trap in a slot; if no register is another, it may not have run at all."""
        registers = thread.image.tobytes()
        moved, thread.entered_with = registers != thread.entered_with, registers
        return moved

    def _is_breakpoint(self, tid: int) -> bool:
        info = self._trap_info
        info[_SI_CODE_WORD] = 0
        quick(PTRACE_GETSIGINFO, tid, 0, self._trap_info_buffer)
        return info[_SI_CODE_WORD] == _SI_KERNEL

    def _consume(self, tid: int, thread: PtraceThread | None) -> None:
        somebodys = thread is None and self._is_untraced_child(tid)
        status = reap(tid, self._answers)
        if status is None:
            return
        if somebodys and not os.WIFSTOPPED(status):
            parenthood.hand_over(tid, status)
        else:
            self._classify(tid, thread, status)

    def _is_untraced_child(self, tid: int) -> bool:
        """A handler has started it, so that it is a child of this very thread."""
        if tid in self._kept or self._is_doorbell(tid):
            return False
        fields = procfs.status(tid)
        return fields.get("PPid") == str(os.getpid()) and fields.get("Tgid") == str(tid)

    def _is_doorbell(self, tid: int) -> bool:
        return self._doorbell is not None and tid == self._doorbell.pid

    def interrupt(self, thread: PtraceThread) -> None:
        """Ask it to stop."""
        if swift(PTRACE_INTERRUPT, thread.tid, 0, 0) == -1:
            super().interrupt(thread)
        else:
            thread.interrupted = True
        self._asked.append(thread)
        self._naps = 0

    def interrupt_all(self, threads: Sequence[PtraceThread]) -> None:
        """As ``interrupt`` for each."""
        if len(threads) < MANY:
            for thread in threads:
                self.interrupt(thread)
            return
        failed = self._crowd.ask(threads)
        for thread in threads:
            thread.interrupted = True
        self._asked.extend(threads)
        self._naps = 0
        for thread in failed:
            super().interrupt(thread)

    def _take_other(self, thread: PtraceThread, status: int) -> None:
        if status != OTHER:  # in a system call, or killed between the look and its end; or its mask is to be set again
            self._classify(thread.tid, thread, status & _WAIT_STATUS)
            return
        stop = peek(self._answers, thread.tid)
        if stop is not None:
            self._take(stop)
