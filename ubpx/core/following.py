"""Children that are followed: traced from before their first instruction, with what their parent's clients have.

A child with a copy of the memory is cleaned as one that is let go, and then given traps and slots of its own: its
parent's stay in its parent. One that shares the memory has the parent's traps, and is stepped over them; it is followed
from its exec on.
"""

import contextlib
from typing import Final

from ubpx._errors import MemoryFault, UbpxError
from ubpx.core import events
from ubpx.core.arming import Armory
from ubpx.core.census import Census
from ubpx.core.keeper import Move, RunUntil
from ubpx.core.listener import Listener
from ubpx.core.ports import Tracer
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import Input, State


class Following:
    """Implements ``census.Followers``. Owned by the Coordinator."""

    def __init__(
        self, tracer: Tracer, tracees: Tracees, census: Census, *, armory: Armory, move: Move, run_until: RunUntil
    ) -> None:
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._census: Final = census
        self._armory: Final = armory
        self._move: Final = move
        self._run_until: Final = run_until

    # A copy of the memory -----------------------------------------------------------------

    def take(self, event: events.ThreadAppeared, parent: TracedProcess) -> bool:
        """See ``census.Followers``."""
        space, listener = parent.space, self._listener_of(parent)
        if not parent.follow.forks or event.shares_memory or listener is None:
            return False
        own = self._census.new_space(event.process, slots_allowed=space.slots_allowed, copied_from=space)
        child = TracedProcess(event.process, own, self._tracer, follow=parent.follow)
        heir = listener.beget(child)
        if heir is None:
            return False
        self._tracees.processes[child.pid] = child
        self._tracees.listeners[child.pid] = heir
        thread = self._census.adopt(event.thread, child)
        before, self._tracees.current = self._tracees.current, thread
        try:
            self._furnish(thread, space, heir)
            self._census.tell_forked(parent, child.pid)
        finally:
            if event.group_signal:
                thread.group_stopped, thread.stop = True, StopKind.GROUP
            self._move(thread, Input.APPEARED)
            self._tracees.current = before
        return True

    def _furnish(self, thread: Thread, space: AddressSpace, heir: Listener) -> None:
        child = thread.process
        with contextlib.suppress(MemoryFault):  # killed meanwhile: its end follows
            self._census.clean_copy(thread.port, space, child.space)
        heir.settle(child, space)

    def _listener_of(self, parent: TracedProcess) -> Listener | None:
        """Whose clients' traps a child of ``parent`` has: for a silent parent they are those of its memory's owner."""
        if not parent.silent:
            found: Listener | None = self._tracees.listeners.get(parent.pid)
            return found
        owner = self._tracees.processes.get(parent.space.pid)
        return None if owner is None or owner.space is not parent.space else self._tracees.listeners.get(owner.pid)

    def children_are_seen(self, thread: Thread) -> bool:
        """Before an exec counts, what is to be followed is seen with the memory of then; False: the process has ended.

        What is let go is cleaned by what its parent's memory was (see ``Census``), whenever it is seen.
        """
        process, was = thread.process, thread.state
        if process.announced and process.follow.forks:
            before, self._tracees.current = self._tracees.current, None
            try:
                self._run_until(lambda: not process.announced or process.ended.is_set())
            finally:
                self._tracees.current = before
        return thread.state is was

    # The memory itself --------------------------------------------------------------------

    def expect(self, child: TracedProcess, parent: TracedProcess) -> None:
        """See ``census.Followers``."""
        if child.follow.forks and child.follow.execs:
            listener = self._listener_of(parent)
            child.heir = listener.beget(child) if listener is not None else None

    def execed(self, thread: Thread) -> bool:
        """A silent child has a memory of its own: follow it from now on; False: that is not wanted."""
        silent, heir = thread.process, thread.process.heir
        if heir is None:
            return False
        silent.heir = None
        thread.state = State.GONE
        del silent.threads[thread.tid], self._tracees.threads[thread.tid]
        self._census.end(silent, None)
        try:
            space = self._census.new_space(silent.pid, slots_allowed=silent.space.slots_allowed)
        except UbpxError:  # a program of a kind that cannot be traced
            heir.ended(silent)
            return False
        child = TracedProcess(silent.pid, space, self._tracer, follow=silent.follow)
        self._tracees.processes[child.pid] = child
        self._tracees.listeners[child.pid] = heir
        own = self._census.adopt(thread.port, child)
        own.stop = StopKind.EVENT
        heir.settle(child, None)
        self._tracees.current = own
        with contextlib.suppress(UbpxError):  # killed meanwhile: its end follows
            self._armory.set_entry_trap(space, self._tracer.entry_point(child.pid), guarded=not child.reports_syscalls)
        self._move(own, Input.APPEARED)
        return True
