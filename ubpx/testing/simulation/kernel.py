"""A FakeTracer whose threads run by themselves, in an order that somebody picks.

Nothing here waits for time. While the core waits, one thing happens after another, each picked from
all that could come next, until it pleases the kernel to report something. Between any two requests
of the core, too, things may happen that it has not been told of yet.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import attrs

from ubpx._errors import MemoryFault, TargetGone
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import ProcessId, VirtAddr
from ubpx.testing.script import PC, Condition, FakeProcess, FakeThread, Happening, Stop, describe, siginfo
from ubpx.testing.simulation import processor
from ubpx.testing.simulation.choices import Pick
from ubpx.testing.simulation.facts import Facts
from ubpx.testing.simulation.program import must_run

_SIGTRAP: Final = 5
_SI_KERNEL: Final = 0x80
_TRAP_TRACE: Final = 2
_STOP_SIGNALS: Final = frozenset({19, 20, 21, 22})
FIRST_CHILD: Final = 1000
"""Numbers of tasks that are made begin here."""
_FOREVER: Final = 1 << 60


@attrs.frozen(eq=False)
class Trapped:
    """A thread has stopped for a SIGTRAP at which nobody has looked yet."""

    thread: FakeThread
    code: int
    address: int


class Watcher:
    """Whom the kernel tells what it knows for certain; it does nothing about it."""

    def met(self, thread: FakeThread, address: int) -> None:
        """The thread is seen to have run into a trap of the core's."""

    def arriving(self, thread: FakeThread) -> None:
        """The one that was met is served now."""

    def delivered(self, thread: FakeThread, signal: int) -> None:
        """A signal reaches the program."""

    def left(self, thread: FakeThread) -> None:
        """Nobody traces the thread any more, which may stand anywhere."""

    def replaced(self, process: FakeProcess) -> None:
        """The process runs a new program from now on."""


class Kernel(Facts):
    """The part of a SeededTracer that decides what is next, and serves the core's requests.

    ``pick`` decides; ``budget`` is how many things threads may begin by themselves, what they have begun comes to its
    end without it. With ``alone`` nobody else makes anything happen: to wait for what cannot happen is a failure.
    """

    def __init__(self, pick: Pick, *, budget: int = 0, watcher: Watcher | None = None, alone: bool = False) -> None:
        super().__init__()
        self.pick: Final = pick
        self.budget = budget
        self.watcher: Final = watcher or Watcher()
        self.waits = 0
        """How often the core has waited."""
        self.happenings = 0
        """How many things have happened."""
        self.tracing = not alone
        """Whether ``log`` is written."""
        self.countdown = _FOREVER
        """Requests until something comes between."""
        self.between: Callable[[str], None] = lambda _request: None
        """What does, told the request's name."""
        self._alone: Final = alone
        self._told: Sequence[Any] = ()
        """What the core handles now."""
        self._interruptions: Final = events.Interruptions(deque())
        self._unseen: Final[deque[Any]] = deque()
        """Stops that the core has not been told of: Trapped, or events."""

    # What is next ---------------------------------------------------------------------------

    def wait(self) -> Any:
        """The next event; arrivals are served meanwhile, after those that there are have been looked at."""
        self._check_owner("wait")
        self.waits += 1
        self._told = ()
        while True:
            while self._batch:
                thread, site = self._batch.popleft()
                self.watcher.arriving(thread)
                goes_on = site.arrive(thread)
                self._note("arrived", thread, goes_on)
                if not goes_on:
                    return events.Doorbell()
                if thread.condition is Condition.STOPPED:
                    self._run(thread)
            if self._queue or self._interruptions.threads:
                return self._next()
            self._gather()

    def _next(self) -> Any:
        """Interruptions in one event where there are several in a row."""
        queue, threads = self._queue, self._interruptions.threads
        while queue and isinstance(queue[0], events.Interrupted):
            threads.append(queue.popleft().thread)
        told = [events.Interrupted(thread) for thread in threads]
        if len(threads) == 1:
            threads.clear()
        self._told = told or [queue.popleft()]
        return self._interruptions if threads else self._told[0]

    def _gather(self) -> None:
        """Let things happen until something is reported."""
        pick = self.pick
        while True:
            if self._unseen and not pick(3):
                self._look()
                return
            if self._rung and not pick(4):
                break
            if not self.advance() and not self._end_stop():
                break
        if self._unseen:
            self._look()
        elif self._rung:
            self._rung = False
            self._queue.append(events.Doorbell())
        elif self._alone:
            self._refuse(f"the core waits for what cannot happen: {describe(self._threads)}")
        else:
            super()._gather()

    def _look(self) -> None:
        """See every stop that there is, in any order."""
        unseen = self._unseen
        while unseen:
            if len(unseen) > 1 and self.pick(2):
                unseen.rotate(-1)
            item = unseen.popleft()
            if isinstance(item, Trapped):
                super()._trapped(item.thread, item.code, item.address)
                if self._batch and item.thread.exit_status is not None and self._batch[-1][0] is item.thread:
                    self._batch.pop()  # killed while it was made safe: what is there to be seen is its exit
                continue
            if not isinstance(item, events.ThreadGone):
                item.thread.stops += 1
            self._note("event", item.thread, type(item).__name__)
            self._queue.append(item)

    def _end_stop(self) -> bool:
        """Nothing else can happen: a child that somebody waits for in the kernel is not left stopped for ever."""
        for process in self._processes.values():
            if process.vfork_parent is not None and any(each.group_signal for each in process.threads.values()):
                self.continue_process(process.pid)
                return True
        return False

    @property
    def can_report(self) -> bool:
        """Whether waiting may lead to something."""
        return bool(self._batch or self._queue or self._unseen or self._able())

    def advance(self) -> bool:
        """Let one thing happen that the core is not told of yet; False: nothing can."""
        able = self._able()
        if not able:
            return False
        self.happenings += 1
        self._go_on(able[self.pick(len(able))])
        return True

    def _able(self) -> list[Any]:
        """Threads that can do something, those that nobody traces left aside."""
        free = self.budget > 0
        return [
            thread
            for thread in self._threads.values()
            if thread.condition is Condition.RUNNING and thread.traced and (free or self._must_go_on(thread))
        ]

    def _must_go_on(self, thread: FakeThread) -> bool:
        """Whether the thread goes on without being free to begin anything."""
        return self.has_to_do(thread)

    def has_to_do(self, thread: FakeThread) -> bool:
        """Whether the thread has something to end."""
        if thread.interrupt_since is not None or thread.next() is not None:
            return True
        return must_run(thread.registers[PC]) or self.bodies[thread.tid].stepping

    def _go_on(self, thread: FakeThread) -> None:
        """The thread does what it can do next, one thing."""
        happening = thread.next()
        asked = thread.interrupt_since is not None
        late = happening is not None and happening.late
        if thread.must_trap or (asked and (late or not self.pick(3))):
            self._interrupted(thread)
        elif happening is not None:
            self._happen(thread, happening)
        elif must_run(thread.registers[PC]) or self.bodies[thread.tid].stepping:
            self._execute(thread)
        elif self.budget > 0:
            self.budget -= 1
            self._begin_something(thread)

    def _begin_something(self, thread: FakeThread) -> None:
        """The thread does something by itself."""

    # How threads stop -----------------------------------------------------------------------

    def _execute(self, thread: FakeThread) -> None:
        """One instruction, from memory as it is."""
        body = self.bodies[thread.tid]
        pc = thread.registers[PC]
        try:
            ran = processor.execute(thread, self._processes[thread.pid].memory)
        except (processor.Garbage, MemoryFault) as error:
            self._refuse(f"thread {thread.tid} would die at {pc:#x}: {error}")
        self._note("ran", thread, pc, thread.registers[PC])
        if not ran:
            self._trap(thread, _SI_KERNEL)
        elif body.stepping:
            self._trap(thread, _TRAP_TRACE, thread.registers[PC])

    def _trap(self, thread: FakeThread, code: int, address: int = 0) -> None:
        """A trap; an interrupt that was asked for before may be reported first."""
        report = partial(self._trapped, thread, code, address)
        if thread.interrupt_since is not None and self.pick(2):
            thread.script.appendleft(self._by_itself("trap", report, late=True))
            self._interrupted(thread)
        else:
            report()

    def _trapped(self, thread: FakeThread, code: int, address: int = 0) -> None:
        thread.siginfo = siginfo(_SIGTRAP, code, address)
        self._stopped(thread, Stop.SIGNAL, Trapped(thread, code, address))

    def _stopped(self, thread: FakeThread, kind: Stop, event: Any) -> None:
        """The thread stops, unseen; any stop clears an interrupt that was asked for before (ptrace_stop)."""
        if thread.condition is not Condition.STOPPED:
            thread.condition, thread.interrupt_since = Condition.STOPPED, None
        thread.stop, thread.must_trap = kind, False
        body = self.bodies.get(thread.tid)
        if body is not None:
            body.stepping = False
        if event is not None:
            self._unseen.append(event)

    def _make_safe(self, thread: FakeThread, site: Site) -> bool:
        self.watcher.met(thread, thread.words[PC] - 1)
        return super()._make_safe(thread, site)

    def _drop_unseen(self, thread: FakeThread) -> Any:
        """The stop that nobody has looked at, which nobody will; None if there is none."""
        for item in self._unseen:
            if item.thread is thread:
                self._unseen.remove(item)
                return item
        return None

    # Requests -------------------------------------------------------------------------------

    def _note(self, action: str, thread: FakeThread, *details: Any) -> None:
        if self.tracing:
            super()._note(action, thread, *details)

    def _check_owner(self, request: str) -> None:
        if not self._alone:
            super()._check_owner(request)
        self.countdown -= 1
        if self.countdown <= 0:
            self._interfere(request)

    def tick(self, request: str) -> None:
        """A request is about to be served: something may come between."""
        self.countdown -= 1
        if self.countdown <= 0:
            self._interfere(request)

    def _interfere(self, request: str) -> None:
        self.countdown = _FOREVER
        self.between(request)

    def _check_stopped(self, request: str, thread: FakeThread) -> bool:
        self._check_owner(request)
        if thread.condition is not Condition.STOPPED and thread.exit_status is not None:
            return False  # it is dying, and was let go
        if thread.condition is Condition.GONE:
            return False
        if thread.condition is not Condition.STOPPED or not thread.traced:
            self._refuse(f"{request} of thread {thread.tid}, which is {thread.condition}")
        return True

    def _check_delivery(self, thread: FakeThread, signal: int) -> None:
        if thread.exit_status is None:
            super()._check_delivery(thread, signal)

    def _check_injection(self, request: str, thread: FakeThread) -> None:
        if not self._check_stopped(request, thread) or thread.exit_status is not None:
            raise TargetGone(thread.pid, None)
        if thread.stop is Stop.EVENT:
            self._refuse(f"{request} by thread {thread.tid}, which stands at an event; settle it first")
        thread.stop = Stop.PLAIN

    def _run(self, thread: FakeThread) -> None:
        if self._unseen:
            self._drop_unseen(thread)
        super()._run(thread)

    def resume(self, thread: Any, signal: int = 0) -> None:
        """Let it run; a signal may end its process, stop it, or be handled."""
        if not self._check_stopped("resume", thread):
            return
        self._check_delivery(thread, signal)
        self._note("resume", thread, signal, thread.registers[PC])
        if signal and thread.exit_status is None:
            self._deliver(thread, signal)
        self._run(thread)
        if signal in _STOP_SIGNALS:
            self._stop_group(thread, signal)

    def listen(self, thread: Any) -> None:
        """Only from a group-stop or an interrupt's stop; not by one that is dying."""
        if not self._check_stopped("listen", thread) or thread.exit_status is not None:
            return
        if thread.stop is not Stop.PLAIN:
            self._refuse(f"listen of thread {thread.tid}, which is in a stop of kind {thread.stop}")
        self._note("listen", thread)
        thread.condition = Condition.LISTENING
        if thread.interrupt_since is not None or not thread.group_signal:
            self._interrupt(thread)

    def step(self, thread: Any, signal: int = 0) -> None:
        """One instruction, or into the handler of ``signal``."""
        if not self._check_stopped("step", thread):
            return
        self._check_delivery(thread, signal)
        self._note("step", thread, signal, thread.registers[PC])
        entered = bool(signal) and thread.exit_status is None and self._deliver(thread, signal)
        self._run(thread)
        if thread.condition is Condition.RUNNING:
            self.bodies[thread.tid].stepping = True
            if entered:
                self._trap(thread, _TRAP_TRACE, thread.registers[PC])

    def _deliver(self, thread: FakeThread, signal: int) -> bool:
        """The signal reaches the program; whether it has a handler for it."""
        pc = thread.registers[PC]
        if self.in_area(thread):
            self._refuse(f"signal {signal} shows thread {thread.tid} a slot, at {pc:#x}")
        if signal == _SIGTRAP:
            self._refuse(f"thread {thread.tid} dies of a SIGTRAP that is none of the program's")
        self.watcher.delivered(thread, signal)
        return False

    def settle(self, thread: Any) -> bool:
        """The event's stop becomes a plain one, unless the thread is dying."""
        if thread.exit_status is not None:
            self._check_owner("settle")
            return False
        return super().settle(thread)

    def detach(self, thread: Any, signal: int = 0) -> None:
        """It runs on alone; whatever nobody has looked at is lost."""
        traced = thread.traced
        super().detach(thread, signal)
        if traced and not thread.traced and thread.exit_status is None:
            self.watcher.left(thread)
            if signal:
                self._deliver(thread, signal)

    def replace_signal(self, thread: Any, info: bytes) -> None:
        """What the next ``resume(signal=...)`` delivers, unless the thread is dying."""
        if self._check_stopped("replace_signal", thread) and thread.exit_status is None:
            if thread.stop is not Stop.SIGNAL:
                self._refuse(f"thread {thread.tid} has no signal to replace in a stop of kind {thread.stop}")
            thread.siginfo = info

    def unmap_area(self, thread: Any, address: VirtAddr, size: int) -> None:
        """What a child has not, since it was made before, there is nothing to unmap of."""
        process = self._processes[thread.pid]
        if address in process.areas or process.pid < FIRST_CHILD:
            super().unmap_area(thread, address, size)
        else:
            self._check_injection("unmap_area", thread)

    def send_signal(self, thread: Any, signal: int) -> None:
        """It comes before all else, unless the thread is gone."""
        if thread.condition is not Condition.GONE:
            super().send_signal(thread, signal)

    def running(self, pid: ProcessId) -> list[FakeThread]:
        """Those of a process that run, and have not been asked to stop."""
        threads = self._processes[pid].threads.values()
        return [
            each
            for each in threads
            if each.condition is Condition.RUNNING
            and each.interrupt_since is None
            and each.next() is None
            and not self.bodies[each.tid].stepping
        ]

    @property
    def has_news(self) -> bool:
        """Whether there is something that the core has not dealt with."""
        return bool(self._batch or self._queue or self._unseen)

    def run_alone(self, thread: FakeThread) -> None:
        """Let a thread that nobody traces come out of its signals' handlers, and to open code."""
        body = self.bodies[thread.tid]
        while must_run(thread.registers[PC]) or body.frames:
            if not must_run(thread.registers[PC]):
                thread.registers[:], body.visits = body.frames.pop()
                continue
            self._execute(thread)
            if thread.condition is Condition.STOPPED:
                self._refuse(f"thread {thread.tid} dies of a trap at {thread.registers[PC] - 1:#x}: nobody traces it")

    def _by_itself(self, what: str, act: Any, **options: Any) -> Happening:
        return Happening(what=what, act=act, since=0, scripted=False, **options)


__all__ = ["FIRST_CHILD", "Kernel", "Trapped", "Watcher"]
