"""What simulated threads begin by themselves: they go to places, get signals, make tasks, exec, exit."""

import signal as signals
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ubpx.core import events
from ubpx.core.values import ThreadId
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import PC, Condition, FakeThread, Stop
from ubpx.testing.simulation.choices import Pick, one_of
from ubpx.testing.simulation.kernel import Watcher
from ubpx.testing.simulation.lives import LivingKernel
from ubpx.testing.simulation.program import HANDLER, PLACES

SIGNALS: Final = (10, 12, 17)
"""SIGUSR1, SIGUSR2, which have handlers; SIGCHLD, which has none."""
_HANDLED: Final = frozenset({10, 12})
_FATAL: Final = int(signals.SIGTERM)
_OFTEN: Final = 6
"""Of so many things that a thread begins, all but the last go to a place."""
_MOST_THREADS: Final = 5


class SeededTracer(LivingKernel):
    """A whole kernel for one schedule: a ``ports.Tracer`` that decides by ``pick`` what comes next.

    The same picks give the same order of everything. What a test scripts by the methods of a FakeTracer happens too.
    """

    def __init__(
        self,
        pick: Pick,
        *,
        budget: int = 0,
        watcher: Watcher | None = None,
        alone: bool = False,
        memory: Callable[[], FakeMemory] = FakeMemory,
    ) -> None:
        super().__init__(pick, budget=budget, watcher=watcher, alone=alone, memory=memory)
        self.places: Sequence[int] = PLACES
        """Where threads go."""
        self._calls: Final[tuple[Callable[[FakeThread], None], ...]] = (
            self._get_signal,
            self._send_signal,
            self._send_signal,
            self._be_interrupted,
            self._call_clone,
            self._call_fork,
            self._call_exit,
            self._call_vfork,
            self._call_share,
            self._get_stop,
            self._call_exec,
            self._call_exit_all,
            self._get_killer,
        )
        """What a thread may do but go to a place; each is as likely as the others."""

    def _begin_something(self, thread: FakeThread) -> None:
        if self._processes[thread.pid].vfork_parent is not None and not self.pick(3):
            self._end_vfork(thread)
        elif self.pick(_OFTEN) < _OFTEN - 1:
            self._go(thread)
        else:
            one_of(self.pick, self._calls)(thread)

    def _go_on(self, thread: Any) -> None:
        before = self.budget
        super()._go_on(thread)
        if before == 0 and isinstance(thread, FakeThread) and self._idles_in_vfork(thread):
            self._end_vfork(thread)

    def _idles_in_vfork(self, thread: FakeThread) -> bool:
        waited_for = self._processes[thread.pid].vfork_parent is not None
        return waited_for and thread.condition is Condition.RUNNING and not self.has_to_do(thread)

    def _end_vfork(self, thread: FakeThread) -> None:
        if self.pick(2):
            self.replace(thread)
        else:
            self._exiting(thread, 0)

    # Going about ----------------------------------------------------------------------------

    def _go(self, thread: FakeThread) -> None:
        body = self.bodies[thread.tid]
        if body.frames and not self.pick(2):
            words, body.visits = body.frames.pop()
            thread.registers[:] = words
            self._note("sigreturn", thread, words[PC])
            return
        place = one_of(self.pick, self.places)
        body.visits[place] += 1
        thread.registers[PC] = place
        if self.pick(4):  # mostly at once
            self._execute(thread)

    def _deliver(self, thread: FakeThread, signal: int) -> bool:
        super()._deliver(thread, signal)
        body = self.bodies[thread.tid]
        if signal in SIGNALS:
            if signal not in body.owed:
                self._refuse(f"signal {signal} reaches thread {thread.tid}, to which nobody has sent it")
            body.owed.remove(signal)
        if signal == _FATAL:
            self.doom(thread.pid, -signal)
        elif signal in _HANDLED:
            body.frames.append((list(thread.registers), dict(body.visits)))
            thread.registers[PC] = HANDLER
            return True
        return False

    def signal(self, tid: int, number: int, **how: Any) -> None:
        """See Stage: somebody sends one to the thread."""
        self.bodies[ThreadId(tid)].owed.append(number)
        super().signal(tid, number, **how)

    # What may be called ---------------------------------------------------------------------

    def _get_signal(self, thread: FakeThread) -> None:
        """Somebody sends one to the thread."""
        number = one_of(self.pick, SIGNALS)
        self.bodies[thread.tid].owed.append(number)
        self._signal_stop(thread, number, 0, 0)

    def _send_signal(self, thread: FakeThread) -> None:
        """It sends one to a thread of its process, which may be stopped, or stepping."""
        number = one_of(self.pick, SIGNALS)
        others = [each for each in self._processes[thread.pid].threads.values() if each.exit_status is None]
        other = one_of(self.pick, others)
        self.bodies[other.tid].owed.append(number)
        act = partial(self._signal_stop, other, number, 0, 0)
        other.script.append(self._by_itself("sent", act, signal=number))

    def _be_interrupted(self, thread: FakeThread) -> None:
        """It stops as if the core had asked."""
        self._stopped(thread, Stop.PLAIN, events.Interrupted(thread))

    def _is_crowded(self, thread: FakeThread) -> bool:
        return len(self._threads) >= _MOST_THREADS or self._processes[thread.pid].vfork_parent is not None

    def _call_clone(self, maker: FakeThread) -> None:
        """It clones, unless there are many."""
        if not self._is_crowded(maker):
            self.make_thread(maker)

    def _call_fork(self, thread: FakeThread) -> None:
        """It forks, unless there are many."""
        if not self._is_crowded(thread):
            self.make_process(thread, shares_memory=False, waits=False)

    def _call_vfork(self, thread: FakeThread) -> None:
        """It forks by vfork."""
        if not self._is_crowded(thread):
            self.make_process(thread, shares_memory=True, waits=True)

    def _call_share(self, thread: FakeThread) -> None:
        """It makes a child that shares its memory, and does not wait."""
        if not self._is_crowded(thread):
            self.make_process(thread, shares_memory=True, waits=False)

    def _get_stop(self, thread: FakeThread) -> None:
        """Job control stops the process."""
        if not thread.group_signal:
            self._signal_stop(thread, signals.SIGSTOP, 0, 0)

    def _call_exec(self, thread: FakeThread) -> None:
        """It execs, one time in two."""
        if self.pick(2):
            self.replace(thread)

    def _call_exit(self, thread: FakeThread) -> None:
        """It exits, and the others live on."""
        self._exiting(thread, 0)

    def _call_exit_all(self, thread: FakeThread) -> None:
        """The process exits, or is killed."""
        if self.pick(2):
            self.doom(thread.pid, -int(signals.SIGKILL))
        else:
            self.doom(thread.pid, 3)

    def _get_killer(self, thread: FakeThread) -> None:
        """A signal arrives that ends the process if it is delivered."""
        self._signal_stop(thread, _FATAL, 0, 0)
