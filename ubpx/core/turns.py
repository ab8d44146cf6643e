"""Stepping in place (S5): one thread at a time, while all others that share its memory are stopped.

The trap is out for that one step only, so that no other thread slips past it. A thread that waits
in the kernel where it cannot stop (a vfork's parent) runs nothing of the program's before it has
stopped, and so need not be waited for; neither need a child that shares the memory, since its hits
are not counted. One who asks is never at a system call, which might wait for a held thread: ubp
refuses those.
"""

import contextlib
from typing import Final

from ubpx._errors import ForeignTrap, MemoryFault, NotAnInstruction
from ubpx.core.keeper import Keeper, Move, RunUntil
from ubpx.core.ports import Tracer
from ubpx.core.spaces import AddressSpace, Thread, Tracees
from ubpx.core.stepping import Input, State
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import TrapPatch

_STOPPED: Final = frozenset({State.PARKED, State.LISTENING, State.EXITING, State.GONE})


class Turns:
    """Who steps in place, and when. Owned by the Coordinator, which moves the threads."""

    def __init__(self, tracer: Tracer, tracees: Tracees, keeper: Keeper, *, move: Move, run_until: RunUntil) -> None:
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._move: Final = move
        self._run_until: Final = run_until
        self._served: Final[list[Thread]] = []
        """Threads whose own events are not over, while others take turns: they stand still."""

    def needs(self, thread: Thread) -> bool:
        """Whether the thread must wait for a turn before it steps: its instruction has a trap of ours in it."""
        plan, space = thread.plan, thread.process.space
        return plan is not None and plan.in_place and plan.origin in space.patches and space.turn is not thread

    def ask(self, thread: Thread) -> None:
        """Have a stopped thread take its step, sooner or later; now, unless turns are being taken already."""
        space = thread.process.space
        space.waiting.append(thread)
        if not space.taking_turns:
            current, self._tracees.current = self._tracees.current, None
            if current is not None:
                self._served.append(current)
            try:
                self._take_all(space)
            finally:
                self._tracees.current = current
                if current is not None:
                    self._served.pop()

    def _take_all(self, space: AddressSpace) -> None:
        space.taking_turns = True
        try:
            self._refresh_all(space)
            self._run_until(lambda: self._is_quiet(space))
            while (thread := self._next(space)) is not None:
                self._take(space, thread)
        finally:
            space.taking_turns = False
            self._refresh_all(space)

    def _refresh_all(self, space: AddressSpace) -> None:
        for thread in self._tracees.threads_in(space):
            self._keeper.refresh(thread)

    def _is_quiet(self, space: AddressSpace) -> bool:
        return all(self._cannot_slip_past(thread, space) for thread in self._tracees.threads_in(space))

    def _cannot_slip_past(self, thread: Thread, space: AddressSpace) -> bool:
        if thread.state in _STOPPED or thread in space.waiting or thread.process.pid in space.vforked:
            return True
        if thread.vfork_child is not None or thread in self._served:
            return True
        return bool(space.vforked) and self._tracer.cannot_run(thread.port)

    def _next(self, space: AddressSpace) -> Thread | None:
        """Of those that asked, and of those that arrived while turns were taken."""
        for thread in self._tracees.threads_in(space):
            if thread.state is State.PARKED and self.needs(thread) and not self._kept(thread):
                thread.held = False
                self._move(thread, Input.RELEASED)
        while space.waiting:
            thread = space.waiting.popleft()
            if thread.state is State.STEPPING:
                return thread
        return None

    def _kept(self, thread: Thread) -> bool:
        held = self._keeper.holds.holds(thread.process.pid, thread.tid, but_for=thread.stepped_by)
        return held or thread.wanted > 0 or thread.group_stopped

    def _take(self, space: AddressSpace, thread: Thread) -> None:
        """One instruction, or all iterations of it, with its trap out; then the thread parks."""
        plan = thread.plan
        patch = space.patches.get(plan.origin) if plan is not None else None
        thread.held = True
        thread.leave_site()
        space.turn = thread
        try:
            if patch is not None:
                with contextlib.suppress(MemoryFault):  # being killed: its memory goes first
                    traps.remove(space.raw, patch)
            self._tracer.step(thread.port)
            self._run_until(lambda: thread.state is not State.STEPPING)
        finally:
            space.turn = None
            if patch is not None and space.patches.get(patch.address) is patch:
                _put_back(space, patch)


def _put_back(space: AddressSpace, patch: TrapPatch) -> None:
    # Refused if the step itself changed what stands there, or the process ended; told when the leases are given back.
    with contextlib.suppress(MemoryFault, NotAnInstruction, ForeignTrap):
        traps.insert(space.raw, patch)
