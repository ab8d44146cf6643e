"""How a program is left: by a detach, or because it has ended or exec'd while others live on in its memory."""

import logging
from typing import Final

from ubpx._errors import SlotsExhausted, TargetGone
from ubpx.core import watchpoints
from ubpx.core.arming import Armory
from ubpx.core.batches import Batches
from ubpx.core.census import Census
from ubpx.core.guard_code import GuardCode
from ubpx.core.keeper import Keeper, RunUntil, give_back
from ubpx.core.ports import Tracer
from ubpx.core.quiet import StillRunning
from ubpx.core.spaces import AddressSpace, TracedProcess, Tracees
from ubpx.core.stepping import State
from ubpx.core.steps import Steps

_log = logging.getLogger("ubpx.departure")
_LEAVING_S: Final = 1.0
"""How long who is on its way out may take, which waits in the kernel at times: for a file that it closes, say."""


class Departure:
    """Takes everything of ours out of a memory. Owned by the Coordinator."""

    def __init__(
        self, tracer: Tracer, tracees: Tracees, census: Census, *, keeper: Keeper, steps: Steps, armory: Armory,
        batches: Batches, guard_code: GuardCode, run_until: RunUntil,
    ) -> None:  # fmt: skip
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._census: Final = census
        self._keeper: Final = keeper
        self._steps: Final = steps
        self._armory: Final = armory
        self._batches: Final = batches
        self._guard_code: Final = guard_code
        self._run_until: Final = run_until
        self._abandoned: Final[list[AddressSpace]] = []
        """Memories that a program has left, and children that share it have not."""

    def detach(self, process: TracedProcess) -> None:
        """Leave the process as if nobody had been there."""
        space = None
        while not process.ended.is_set() and space is not process.space:  # again, if it exec'd meanwhile
            space = process.space
            self._stop_and_clean(process, space)
        for each in self._tracees.sharing(process.space):
            self._let_go(each)
        if not process.ended.is_set():
            self._census.end(process, None)

    def _stop_and_clean(self, process: TracedProcess, space: AddressSpace) -> None:
        space.quiesced = True
        try:
            self._keeper.stop_all(space)
            if not process.ended.is_set() and process.space is space:
                self._tracees.listeners[process.pid].detaching(process)
                self._clean(space)
                self._see_off(space)
        except TargetGone:  # killed, or replaced by an exec, while we were at it: see which
            self._run_until(lambda: process.ended.is_set() or process.space is not space)
        finally:
            space.quiesced = False

    def _see_off(self, space: AddressSpace) -> None:
        """Threads that are just leaving end first, if they are quick: else they are zombies until our thread ends, too.

        Not leaders, whose end is told after that of the others.
        """
        leaving = StillRunning(
            lambda: self._tracees.threads_in(space),
            lambda each: each.state is not State.EXITING or int(each.tid) == each.process.pid,
        )
        if not leaving.none:
            self._keeper.serve_for(_LEAVING_S, lambda: leaving.none)

    def _clean(self, space: AddressSpace) -> None:
        self._batches.disarm(space, tuple(space.registry))
        with space.memory.writing:
            space.dormant.take_out(space.raw)
        self._armory.remove_entry_trap(space)
        self._clear_threads(space)

    def _clear_threads(self, space: AddressSpace) -> None:
        for thread in self._tracees.threads_in(space):
            self._steps.leave_slot(thread)
            if thread.watches != watchpoints.NOTHING:
                self._tracer.watch(thread.port, watchpoints.NOTHING)
        if space.slots.areas or space.guard is not None:
            try:
                code = space.guard.code if space.guard is not None else range(0)
                self._guard_code.once_empty(space, code, lambda thread: give_back(self._tracer, thread.port, space))
            except SlotsExhausted as error:
                _log.warning("process %d keeps what it has mapped for us: %s", space.pid, error.reason)
            space.slots.forget_areas()
            space.guard = None

    def _let_go(self, process: TracedProcess) -> None:
        for thread in process.living():
            if thread.state is State.PARKED:
                self._steps.part_with(thread)
                self._tracer.detach(thread.port, thread.pending)
            self._census.forget(thread)
        if process.silent:
            self._census.end(process, None)

    def abandon(self, space: AddressSpace) -> None:
        """The program has left this memory; children that share it may live on there, and must meet no trap."""
        if self._tracees.sharing(space):
            self._armory.clean(space, space)
            space.former.update(space.patches)  # a child forked before may appear still, and have them
            space.patches.clear()
            space.dormant.end()
            self._abandoned.append(space)
            self.leave_abandoned()

    def leave_abandoned(self) -> None:
        """Let those children go, once none of them waits for its turn."""
        for space in [each for each in self._abandoned if not each.taking_turns]:
            self._abandoned.remove(space)
            self._leave_children(space)

    def _leave_children(self, space: AddressSpace) -> None:
        space.vforked.intersection_update(thread.vfork_child for thread in self._tracees.threads_in(space))
        space.quiesced = True
        before, self._tracees.current = self._tracees.current, None
        for thread in self._tracees.threads_in(space):
            if thread.process.pid in space.vforked:
                thread.wanted = 0  # for what was to be done to the program, which is no more
        try:
            self._keeper.stop_all(space)
            self._clear_threads(space)
        except TargetGone:  # killed while we were at it
            pass
        finally:
            space.quiesced = False
            self._tracees.current = before
        for child in self._tracees.sharing(space):
            self._let_go(child)
