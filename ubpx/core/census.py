"""Who comes and who goes: tasks that appear, threads that are forgotten, processes that end."""

import contextlib
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from ubpx._errors import MemoryFault, SlotsExhausted, TargetGone, UsageError
from ubpx.core import events
from ubpx.core.arming import Armory
from ubpx.core.keeper import Keeper, Move, give_back
from ubpx.core.listener import Listener
from ubpx.core.ports import TracedThread, Tracer
from ubpx.core.sites import SilentSites, leave_slot
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import Input, State
from ubpx.core.ubp import Architecture, architecture
from ubpx.core.values import AddressSpaceId, Follow, ProcessId, ThreadId


class Followers(Protocol):
    """Who follows a process's children (see ``following.Following``)."""

    def take(self, event: events.ThreadAppeared, parent: TracedProcess) -> bool:
        """Follow a child with a copy of the memory, from before its first instruction; False: that is not wanted."""
        ...

    def expect(self, child: TracedProcess, parent: TracedProcess) -> None:
        """Follow a child that shares the memory once it execs, if that is wanted."""
        ...


class _Nobody:
    def take(self, event: events.ThreadAppeared, parent: TracedProcess) -> bool:
        del event, parent
        return False

    def expect(self, child: TracedProcess, parent: TracedProcess) -> None:
        pass


class Census:
    """Keeps the Tracees true to what the tracer sees. Owned by the Coordinator, which moves the threads."""

    def __init__(
        self,
        tracer: Tracer,
        tracees: Tracees,
        keeper: Keeper,
        armory: Armory,
        *,
        move: Move,
        abandon: Callable[[AddressSpace], None],
    ) -> None:
        self._tracer: Final = tracer
        self._architectures: Final[dict[str, Architecture]] = {}
        """Those of the programs seen so far, by name."""
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._armory: Final = armory
        self._move: Final = move
        self._abandon: Final = abandon
        self.followers: Followers = _Nobody()
        """Who follows children; set by the Coordinator."""
        self._early: Final[set[ThreadId]] = set()
        """Tasks that appeared before whoever made them said so."""
        self._identities: Final = count(1)

    def attach(
        self, pid: ProcessId, listener: Listener, *, slots_allowed: bool = True, follow: Follow = Follow.EXEC
    ) -> TracedProcess:
        """Trace a running process; none of its threads is stopped."""
        if pid in self._tracees.processes:
            raise UsageError(f"process {pid} is in this session already; use its target")
        ports = self._tracer.seize(pid)
        space = self.new_space(pid, slots_allowed=slots_allowed)
        process = TracedProcess(pid, space, self._tracer, follow=follow)
        self._tracees.processes[pid] = process
        self._tracees.listeners[pid] = listener
        for port in ports:
            self.adopt(port, process if port.pid == pid else self._child_in_flight(port.pid, process))
        return process

    def _child_in_flight(self, pid: ProcessId, parent: TracedProcess) -> TracedProcess:
        """A child that shares the memory, made before we came; a thread may wait for it, so that it must run."""
        child = self._tracees.processes.get(pid)
        if child is None:
            child = self._tracees.processes[pid] = TracedProcess(pid, parent.space, self._tracer, silent=True)
            parent.space.vforked.add(pid)
        return child

    def new_space(
        self, pid: ProcessId, *, slots_allowed: bool, copied_from: AddressSpace | None = None
    ) -> AddressSpace:
        """The memory that the process has now, with nothing of ours in it.

        Raises UsageError for a program of an architecture that is not supported, TargetGone.
        """
        identity = AddressSpaceId(next(self._identities))
        memory = self._tracer.memory(pid)
        made_for = copied_from.architecture if copied_from else self._architecture(self._tracer.architecture_of(pid))
        space = AddressSpace(identity, pid, memory, made_for, slots_allowed=slots_allowed)
        space.silent_sites = SilentSites(space.sites)
        return space

    def _architecture(self, name: str) -> Architecture:
        known = self._architectures.get(name)
        if known is None:
            known = self._architectures[name] = architecture(name)
        return known

    def adopt(self, port: TracedThread, process: TracedProcess) -> Thread:
        """Count a thread from now on."""
        thread = Thread(port, process)
        process.threads[port.tid] = self._tracees.threads[port.tid] = thread
        port.sites = process.space.silent_sites if process.silent else process.space.sites
        port.reports_syscalls = process.reports_syscalls
        self._keeper.refresh(thread)
        return thread

    def unknown(self, event: events.StopEvent) -> None:
        """Of a thread that we never had: it died before it appeared, or was left meanwhile."""
        if not isinstance(event, events.ThreadGone):
            self._tracer.resume(event.thread)
            return
        for process in tuple(self._tracees.processes.values()):
            if event.thread.tid in process.announced:
                process.announced.discard(event.thread.tid)
                self.end_if_empty(process)

    def appeared(self, event: events.ThreadAppeared) -> None:
        """A new thread or a child that shares the memory stays; a forked child is followed, or cleaned and let go."""
        port = event.thread
        parent = self._tracees.processes.get(event.parent)
        if parent is None:
            self._tracer.detach(port)
            self._tracer.forget(port)
            return
        if port.tid in parent.announced:
            parent.announced.discard(port.tid)
        else:
            self._early.add(port.tid)
        process = self._tracees.processes.get(event.process)
        if process is not None:
            thread = self.adopt(port, process)
            if event.group_signal:
                thread.group_stopped, thread.stop = True, StopKind.GROUP
            self._started(thread)
            return
        if event.shares_memory:
            child = TracedProcess(event.process, parent.space, self._tracer, silent=True, follow=parent.follow)
            self._tracees.processes[child.pid] = child
            thread = self.adopt(port, child)
            self.followers.expect(child, parent)
            self.tell_forked(parent, child.pid)
            self._move(thread, Input.APPEARED)
            self.end_if_empty(parent)
            return
        if self.followers.take(event, parent):
            self.end_if_empty(parent)
            return
        child_space = self.new_space(event.process, slots_allowed=False, copied_from=parent.space)
        self._armory.clean(parent.space, child_space)
        if self._tracer.fetch(port):
            leave_slot(self._tracer, port, child_space, parent.space)
            # Killed; forked before there was anything of ours; or it cannot be helped: what is left is unused.
            with contextlib.suppress(TargetGone, MemoryFault, SlotsExhausted):
                give_back(self._tracer, port, parent.space)
        self.tell_forked(parent, event.process)
        self._tracer.detach(port)
        self._tracer.forget(port)
        self.end_if_empty(parent)

    def _started(self, thread: Thread) -> None:
        listener = self._tracees.listeners.get(thread.process.pid)
        before, self._tracees.current = self._tracees.current, thread
        try:
            if listener is not None:
                listener.thread_started(thread.process, thread.tid)
            self._move(thread, Input.APPEARED)
        finally:
            self._tracees.current = before

    def tell_forked(self, parent: TracedProcess, child: ProcessId) -> None:
        """The parent's clients hear of a child; a silent parent has none."""
        listener = self._tracees.listeners.get(parent.pid)
        if listener is not None:
            listener.forked(parent, child)

    def announced(self, thread: Thread, child: ThreadId) -> None:
        """The thread says that it has made a task."""
        if child in self._early:
            self._early.discard(child)
        else:
            thread.process.announced.add(child)

    def drop(self, thread: Thread) -> None:
        """The thread is gone, and perhaps its process with it."""
        process = thread.process
        self.forget(thread)
        self.end_if_empty(process)

    def end_if_empty(self, process: TracedProcess) -> None:
        """A process without threads, and none on their way, has ended."""
        if not process.threads and not process.announced and not process.ended.is_set():
            self.end(process, process.last_status)

    def forget(self, thread: Thread) -> None:
        """Trace the thread no more."""
        thread.state = State.GONE
        thread.process.stops_of_gone += thread.port.stops
        thread.process.threads.pop(thread.tid, None)
        self._tracees.threads.pop(thread.tid, None)
        self._keeper.holds.forget_thread(thread.tid)
        self._tracer.forget(thread.port)

    def end(self, process: TracedProcess, status: int | None) -> None:
        """The process has ended; with None for ``status`` it was left."""
        self._tracees.processes.pop(process.pid, None)
        if not process.silent:
            self._abandon(process.space)
        for hold in self._keeper.holds.in_process(process.pid):
            self._keeper.holds.drop(hold)
        process.status = status
        process.space.vforked.discard(process.pid)
        process.ended.set()
        listener = process.heir or self._tracees.listeners.pop(process.pid, None)
        if listener is not None:
            listener.ended(process)
