"""What a test tells fake processes and threads to do, and how it comes about."""

import signal as signals
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Final, NoReturn

from ubpx._errors import InsnRefused, MemoryFault
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.ubp import Architecture, architecture, traps
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import Condition, FakeProcess, FakeThread, Happening, Log, Stop, describe, siginfo

_SI_KERNEL: Final = 0x80
_TRAP_TRACE: Final = 2
_CAN_HAPPEN: Final = frozenset({Condition.RUNNING})


class Stage:
    """The scripted half of a FakeTracer; its methods may be called from any thread.

    A thread does what it was told as soon as it runs, in the order that it was told, one thing
    for each time that the core lets it run. Keyword options of everything that a thread can do:
    ``in_step``: it comes instead of the end of the thread's next single step; ``late``: the thread
    has got there, but the next interrupt or group-stop is reported first (``pending_fault`` says so);
    ``overtakes``: it is reported before an interrupt that was asked for earlier, and clears it as
    Linux does.
    """

    def __init__(self, *, patience: float = 10.0) -> None:
        self.log: Final[Log] = []
        """What was asked for and what happened, in order: (action, tid, details...)."""
        self.failure: AssertionError | None = None
        """The first misuse; ``idle`` raises it."""
        self._patience: Final = patience
        self._processes: Final[dict[ProcessId, FakeProcess]] = {}
        self._threads: Final[dict[ThreadId, FakeThread]] = {}
        self._queue: Final[deque[Any]] = deque()
        self._batch: Final[deque[tuple[FakeThread, Site]]] = deque()
        self._changed: Final = threading.Condition()
        self._moments: Final = count(1)
        self._rung = False
        self._waiting = False
        self._together = False

    # Who there is -------------------------------------------------------------------------

    def process(
        self, pid: int, memory: FakeMemory, *, entry: int = 0, own_child: bool = False, architecture: str = "x86_64"
    ) -> FakeProcess:
        """A running process with its leader; nobody traces it yet."""
        process = FakeProcess(ProcessId(pid), memory, VirtAddr(entry), architecture, own_child)
        self._processes[process.pid] = process
        self._born(FakeThread(ThreadId(pid), process.pid, architecture))
        return process

    def thread(self, tid: int, pid: int | None = None) -> FakeThread:
        """The thread of that number; with ``pid`` a new one of that process, before it is seized."""
        if pid is not None:
            self._born(FakeThread(ThreadId(tid), ProcessId(pid), self._processes[ProcessId(pid)].architecture))
        return self._threads[ThreadId(tid)]

    def _born(self, thread: FakeThread) -> FakeThread:
        self._threads[thread.tid] = self._processes[thread.pid].threads[thread.tid] = thread
        return thread

    def actions(self, tid: int | None = None, *names: str) -> list[tuple[Any, ...]]:
        """The log's entries of one thread (None: of all), of these actions (none: of all)."""
        with self._changed:
            return [entry for entry in self.log if tid in (None, entry[1]) and (not names or entry[0] in names)]

    # What threads do ----------------------------------------------------------------------

    def arrive(self, tid: int, address: int, registers: Mapping[str, int] | None = None, /, **how: bool) -> None:
        """The thread runs into the trap that stands at ``address``, with these registers; AssertionError if none does.

        ``in_step``: instead of the end of its next step.
        """
        self._tell(
            tid, "arrive", partial(self._run_into, self._threads[ThreadId(tid)], address, registers or {}), **how
        )

    def reach(self, tid: int, address: int, behind: int) -> None:
        """The thread comes to ``address``: it runs into the trap if one stands there, else it is ``behind``."""
        self._tell(tid, "reach", partial(self._come_to, self._threads[ThreadId(tid)], address, behind))

    def pass_by(self, tid: int, address: int, **how: bool) -> None:
        """The thread stands at ``address`` from now on, and goes on running."""
        self._tell(tid, "pass_by", partial(self._move, self._threads[ThreadId(tid)], address), **how)

    def signal(self, tid: int, number: int, *, code: int = 0, address: int = 0, **how: bool) -> None:
        """A signal is about to be delivered; ``code`` above 0: the thread's own instruction raised it."""
        act = partial(self._signal_stop, self._threads[ThreadId(tid)], number, code, address)
        self._tell(tid, "signal", act, signal=number if code <= 0 else 0, **how)

    def end_step(self, tid: int, **registers: int) -> None:
        """The thread's next step ends with these registers (default: the PC behind the instruction)."""
        self._tell(tid, "step", partial(self._end_step, self._threads[ThreadId(tid)], registers), in_step=True)

    @contextmanager
    def together(self) -> Iterator[None]:
        """``with fake.together():`` what is told inside comes about at one moment."""
        with self._changed:
            self._together = True
        try:
            yield
        finally:
            with self._changed:
                self._together = False
                self._changed.notify_all()

    def idle(self) -> None:
        """Wait until all that can happen has happened and the core waits for more; raises the first misuse."""

        def is_idle() -> bool:
            nothing = self._waiting and not self._rung and not self._queue and self._due() is None
            return self.failure is not None or nothing

        with self._changed:
            if not self._changed.wait_for(is_idle, self._patience):
                self._refuse(f"the core has not come to rest in {self._patience} s: {describe(self._threads)}")
            if self.failure is not None:
                raise self.failure

    def _tell(
        self,
        tid: int,
        what: str,
        act: Callable[[], None],
        *,
        signal: int = 0,
        in_step: bool = False,
        late: bool = False,
        overtakes: bool = False,
    ) -> None:
        thread = self._threads[ThreadId(tid)]
        with self._changed:
            happening = Happening(
                what=what,
                act=act,
                since=next(self._moments),
                signal=signal,
                late=late,
                overtakes=overtakes,
                stepping=in_step,
            )
            (thread.steps if in_step else thread.script).append(happening)
            self._changed.notify_all()

    # How it comes about (in the tracer thread) ---------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        failure = AssertionError(what)
        with self._changed:
            self.failure = self.failure or failure
            self._changed.notify_all()
        raise failure

    def _note(self, action: str, thread: FakeThread, *details: Any) -> None:
        with self._changed:
            self.log.append((action, thread.tid, *details))

    def _gather(self) -> None:
        """Wait for something to happen, and let all happen that can."""
        with self._changed:
            while not (self._rung or self._queue or (found := self._due())):
                self._waiting = True
                self._changed.notify_all()
                if not self._changed.wait(self._patience):
                    self._refuse(f"nothing has happened for {self._patience} s, nor can: {describe(self._threads)}")
            self._waiting = False
            if self._rung:
                self._rung = False
                self._queue.append(events.Doorbell())
            if self._queue:
                return
        while found:
            found()
            with self._changed:
                found = self._due()

    def _due(self) -> Callable[[], None] | None:
        """What happens next; None: nothing can."""
        if self._together:
            return None
        candidates = []
        for thread in self._threads.values():
            if thread.traced and thread.condition in _CAN_HAPPEN:
                candidates += self._due_of(thread)
        return min(candidates, key=lambda each: each[0])[1] if candidates else None

    def _due_of(self, thread: FakeThread) -> list[tuple[int, Callable[[], None]]]:
        happening, asked = thread.next(), thread.interrupt_since
        waits = happening is None or (happening.late and happening is not thread.overtaken)
        moment = max(happening.since if happening else 0, thread.ready_since)
        if asked is not None:
            asked = max(asked, thread.ready_since)
            first = asked <= moment and (thread.must_trap or not (happening and happening.overtakes))
            if waits or first:
                return [(asked, partial(self._interrupted, thread))]
        if happening is None or waits:
            return []
        return [(moment, partial(self._happen, thread, happening))]

    def _happen(self, thread: FakeThread, happening: Happening) -> None:
        with self._changed:
            thread.script.remove(happening)
        if happening.overtakes:  # any stop clears an interrupt that was asked for before it
            thread.interrupt_since = None
        happening.act()

    def _stopped(self, thread: FakeThread, kind: Stop, event: Any) -> None:
        """The thread stops; ``event`` says why (None: an arrival, which is being served)."""
        with self._changed:
            thread.condition, thread.stop, thread.must_trap = Condition.STOPPED, kind, False
            for happening in [each for each in thread.script if each.stepping]:
                thread.script.remove(happening)  # the step did not come to its end
                if happening.scripted:
                    thread.steps.appendleft(happening)
            if event is not None:
                thread.stops += 1
                self._queue.append(event)

    def _interrupted(self, thread: FakeThread) -> None:
        thread.interrupt_since = None
        self._overtake(thread)
        in_group = thread.group_signal
        event = events.GroupStopped(thread, in_group) if in_group else events.Interrupted(thread)
        self._stopped(thread, Stop.PLAIN, event)

    def _group_stop(self, thread: FakeThread, number: int) -> None:
        self._overtake(thread)
        self._stopped(thread, Stop.PLAIN, events.GroupStopped(thread, number))

    def _overtake(self, thread: FakeThread) -> None:
        happening = thread.next()
        if happening is not None and happening.late:
            thread.overtaken = happening

    def _interrupt(self, thread: FakeThread) -> None:
        """An interrupt is pending from now on; it ends a group-stop's listening at once."""
        if thread.interrupt_since is None:
            thread.interrupt_since = next(self._moments)
        if thread.condition is Condition.LISTENING:
            thread.condition, thread.ready_since = Condition.RUNNING, thread.interrupt_since
            thread.must_trap = True

    def _architecture(self, thread: FakeThread) -> Architecture:
        return architecture(self._processes[thread.pid].architecture)

    def _run_into(self, thread: FakeThread, address: int, registers: Mapping[str, int]) -> None:
        for name, value in registers.items():
            thread[name] = value
        memory, forms = self._processes[thread.pid].memory, self._architecture(thread).trap_forms
        try:
            found = memory.read(VirtAddr(address), len(forms[0]))
        except MemoryFault:
            self._refuse(f"thread {thread.tid} cannot arrive at {address:#x}: nothing is mapped there")
        if not traps.stands(memory, VirtAddr(address), forms):
            self._refuse(f"thread {thread.tid} runs through {address:#x}: {found.hex()} stands there, and no trap")
        thread.at = address + self._architecture(thread).trap_advance
        self._trapped(thread, _SI_KERNEL)

    def _come_to(self, thread: FakeThread, address: int, behind: int) -> None:
        forms = self._architecture(thread).trap_forms
        if traps.stands(self._processes[thread.pid].memory, VirtAddr(address), forms):
            self._run_into(thread, address, {})
        else:
            self._move(thread, behind)

    def _move(self, thread: FakeThread, address: int) -> None:
        thread.at = address

    def _signal_stop(self, thread: FakeThread, number: int, code: int, address: int) -> None:
        if number == signals.SIGTRAP:
            self._trapped(thread, code, address)
            return
        thread.siginfo = siginfo(number, code, address)
        self._stopped(thread, Stop.SIGNAL, events.SignalArrived(thread, number, code, VirtAddr(address)))

    def _trapped(self, thread: FakeThread, code: int, address: int = 0) -> None:
        """A stop for SIGTRAP: first made safe if a site answers for it (see ``ports.Site``), then consumed."""
        thread.siginfo = siginfo(signals.SIGTRAP, code, address)
        self._stopped(thread, Stop.SIGNAL, None)
        thread.words[:] = thread.registers
        try:
            site = thread.sites[thread.words[thread.layout.pc]]
        except KeyError:
            site = None
        if site is not None and (site.certain or code == _SI_KERNEL) and self._make_safe(thread, site):
            if thread.condition is Condition.GONE:
                return
            thread.stops += 1
            self._note("consumed", thread)
            self._batch.append((thread, site))
        elif code == _TRAP_TRACE:
            self._stopped(thread, Stop.SIGNAL, events.StepDone(thread, (), VirtAddr(address)))
        else:
            self._stopped(thread, Stop.SIGNAL, events.SignalArrived(thread, signals.SIGTRAP, code, VirtAddr(0)))

    def _make_safe(self, thread: FakeThread, site: Site) -> bool:
        if site.landing is not None:
            thread.at = site.landing
        elif not site.make_safe(thread):
            return False
        self._note("safe", thread, thread.at)
        return True

    def _end_step(self, thread: FakeThread, registers: Mapping[str, int]) -> None:
        if self._architecture(thread).pc_name not in registers:
            thread.at = self._behind(thread)
        for name, value in registers.items():
            thread[name] = value
        self._trapped(thread, _TRAP_TRACE, thread.at)

    def _behind(self, thread: FakeThread) -> VirtAddr:
        """The address behind the instruction that the thread stands at."""
        pc = VirtAddr(thread.at)
        try:
            described = self._architecture(thread)
            code = self._processes[thread.pid].memory.read(pc, described.longest_insn)
            return described.analyze(code, pc).insn.end
        except (InsnRefused, MemoryFault) as error:
            self._refuse(f"the step of thread {thread.tid} must be scripted by end_step: {error}")
