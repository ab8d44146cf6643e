"""Where the tracer thread runs, and how urgently.

A stop is two switches from one thread to another. On one processor that is all; between two, each may be a message
that wakes an idle processor, which can take several times as long. The kernel prefers the idle one, so a tracer that
is to be where its threads are must keep to that processor. Whether that helps is not believed, but measured anew for
each program: with the next five hundred stops, beside the last (docs/explanation/stop-path.md).
"""

import contextlib
import os
import time
from typing import Final

from ubpx.core.values import Placement, TracerPost, Urgency
from ubpx_ptracepp import procfs

NICE_STEP: Final = 5
_STOPS: Final = 512
"""So many are measured at a time."""
_SELDOM_S: Final = 200e-6
"""Stops that take longer each, the program's own time included, are not worth it."""
_GAIN: Final = 0.9
"""Kept is what takes at most so much of the time before."""
_LOSS: Final = 1.5
"""Given up is what takes so much more than it did when it was found to help; it may be tried again."""
_LONGEST_REST: Final = 64


class Post:
    """The tracer thread's post. Owned by the tracer, used in its thread; ``now`` may be read by any."""

    def __init__(self) -> None:
        self.now = TracerPost(urgency=Urgency.USUAL, nice=0, placement=Placement.FREE, processor=None)
        self._allowed: frozenset[int] = frozenset()
        self._stops = 0
        self._since = 0.0
        self._before = 0.0
        """Seconds a stop without a processor of its own; 0: not known."""
        self._best = 0.0
        """The same with the present one; 0: it is on trial."""
        self._rest = 0
        """So many measurements are to pass before the next trial."""
        self._next_rest = 1

    def take(self, urgency: Urgency, placement: Placement) -> None:
        """From now on."""
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        raised = False
        if urgency is Urgency.RAISED:
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, nice - NICE_STEP)
                nice, raised = os.getpriority(os.PRIO_PROCESS, 0), True
                # What a handler starts is to have the usual priority.
                policy = os.sched_getscheduler(0) | os.SCHED_RESET_ON_FORK
                os.sched_setscheduler(0, policy, os.sched_getparam(0))
        self._let_go()
        self.now = TracerPost(
            urgency=Urgency.RAISED if raised else Urgency.USUAL, nice=nice, placement=placement, processor=None
        )

    def note(self, stops: int, tid: int) -> None:
        """So many more stops were served, the last one of this thread, which is stopped."""
        if self.now.placement is Placement.FREE:
            return
        self._stops += stops
        if self._stops < _STOPS:
            return
        now = time.monotonic()
        taken, self._since = (now - self._since) / self._stops, now
        self._stops = 0
        if taken > _SELDOM_S:
            self._let_go()
        elif self.now.processor is None:
            self._try(taken, tid)
        else:
            self._judge(taken, tid)

    def _try(self, taken: float, tid: int) -> None:
        self._before = taken
        if self._rest > 0:
            self._rest -= 1
            return
        self._allowed = frozenset(os.sched_getaffinity(0))
        if len(self._allowed) > 1:  # else there is nothing to choose
            self._keep_to(procfs.processor(tid))
            self._best = 0.0

    def _judge(self, taken: float, tid: int) -> None:
        if self._best == 0.0:
            if taken > _GAIN * self._before:
                self._give_up()
                return
            self._best, self._next_rest = taken, 1
        elif taken > _LOSS * self._best:
            self._give_up()
            return
        self._best = min(self._best, taken)
        processor = procfs.processor(tid)
        if processor != self.now.processor:
            self._keep_to(processor)

    def _give_up(self) -> None:
        self._let_go()
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _LONGEST_REST)

    def _keep_to(self, processor: int | None) -> None:
        """If it is one of those that this thread may use."""
        if processor in self._allowed:
            self._set({processor}, processor)

    def _let_go(self) -> None:
        """All that it might use before; unless somebody else has decided since."""
        if self.now.processor is not None and os.sched_getaffinity(0) == {self.now.processor}:
            self._set(self._allowed, None)

    def _set(self, processors: "frozenset[int] | set[int]", kept: int | None) -> None:
        with contextlib.suppress(OSError):  # a cpuset has taken them away
            os.sched_setaffinity(0, processors)
            now = self.now
            self.now = TracerPost(urgency=now.urgency, nice=now.nice, placement=now.placement, processor=kept)
