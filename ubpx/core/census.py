"""Who comes and who goes: tasks that appear, threads that are forgotten, processes that end."""

import contextlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, Protocol

from ubpx._errors import MemoryFault, SlotsExhausted, TargetGone, UsageError
from ubpx.core import events
from ubpx.core.arming import Armory
from ubpx.core.keeper import Keeper, Move, give_back
from ubpx.core.listener import Listener
from ubpx.core.ports import TracedThread, Tracer
from ubpx.core.silent import SilentSites
from ubpx.core.sites import leave_slot
from ubpx.core.spaces import AddressSpace, StopKind, Thread, TracedProcess, Tracees
from ubpx.core.stepping import Input, State
from ubpx.core.ubp import Architecture, architecture
from ubpx.core.ubp.plans import TrapPatch
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


_REMEMBERED: Final = 16
"""So many processes that have ended."""


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
        self._made_in: Final[dict[ThreadId, AddressSpace]] = {}
        """The memory of whoever made a task that has not appeared yet: by then an exec may have replaced it."""
        self._left: Final[dict[ProcessId, tuple[AddressSpace, Sequence[TrapPatch]]]] = {}
        """What a process had before its last exec, and the traps that stood there."""
        self._ended: Final[dict[ProcessId, AddressSpace]] = {}
        """The memories of those that ended last: a child of which they could not tell may appear still."""
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

    def unknown(self, port: TracedThread, *, gone: bool) -> None:
        """A thread that we never had: it died before it appeared, or was left meanwhile and has stopped once more."""
        if not gone:
            self._tracer.resume(port)
            return
        for process in tuple(self._tracees.processes.values()):
            if port.tid in process.announced:
                process.announced.discard(port.tid)
                self._made_in.pop(port.tid, None)
                self.end_if_empty(process)

    def appeared(self, event: events.ThreadAppeared) -> None:
        """A new thread or a child that shares the memory stays; a forked child is followed, or cleaned and let go."""
        port = event.thread
        parent = self._tracees.processes.get(event.parent)
        if parent is None:
            ended = self._ended.get(event.parent)
            self._let_go(event.process, port, ended and self._memory_of(event.process, event.parent, ended))
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
            self._made_in.pop(port.tid, None)
            self._started(thread)
            return
        space = self._made_in.pop(port.tid, None)
        if space is None:
            space = self._memory_of(event.process, parent.pid, parent.space)
        if event.shares_memory:
            child = TracedProcess(event.process, space, self._tracer, silent=True, follow=parent.follow)
            self._tracees.processes[child.pid] = child
            thread = self.adopt(port, child)
            self.followers.expect(child, parent)
            self.tell_forked(parent, child.pid)
            self._move(thread, Input.APPEARED)
            if space is not parent.space:  # its parent has left that memory by an exec
                self._abandon(space)
            self.end_if_empty(parent)
            return
        if space is parent.space and self.followers.take(event, parent):
            self.end_if_empty(parent)
            return
        self._let_go(event.process, port, space, parent)
        self.end_if_empty(parent)

    def left(self, process: TracedProcess, old: AddressSpace) -> None:
        """The process runs a new program now."""
        self._left[process.pid] = old, tuple(old.patches.values())

    def _memory_of(self, child: ProcessId, parent: ProcessId, now: AddressSpace) -> AddressSpace:
        """Which memory an unannounced child has, or a copy of: an old one, if traps stand where they stood there."""
        old, standing = self._left.get(parent, (now, ()))
        if not standing:
            return now
        memory = self._tracer.memory(child)
        try:
            if now.patches and all(memory.read(at, len(each.trap)) == each.trap for at, each in now.patches.items()):
                return now
            found = [(memory.read(patch.address, len(patch.trap)), patch) for patch in standing]
        except MemoryFault:
            return now
        has_traps = any(there == patch.trap for there, patch in found)
        return old if has_traps and all(there in (patch.trap, patch.original) for there, patch in found) else now

    def _let_go(
        self, pid: ProcessId, port: TracedThread, space: AddressSpace | None, parent: TracedProcess | None = None
    ) -> None:
        """A child that nobody follows: clean it of what was copied of ``space``, tell of it, and trace it no more."""
        if space is not None:
            self.clean_copy(port, space, self.new_space(pid, slots_allowed=False, copied_from=space))
        if parent is not None:
            self.tell_forked(parent, pid)
        self._tracer.detach(port)
        self._tracer.forget(port)

    def clean_copy(self, port: TracedThread, space: AddressSpace, copy: AddressSpace) -> None:
        """Have a forked child's copy of ``space``, and its one thread, be without anything of ours."""
        self._armory.clean(space, copy)
        if self._tracer.fetch(port):
            leave_slot(self._tracer, port, copy, space)
            # Killed; forked before there was anything of ours; or it cannot be helped: what is left is unused.
            with contextlib.suppress(TargetGone, MemoryFault, SlotsExhausted):
                give_back(self._tracer, port, space)

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
            self._made_in[child] = thread.process.space

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
        thread.process.lose(thread)
        self._tracees.threads.pop(thread.tid, None)
        self._keeper.holds.forget_thread(thread.tid)
        self._tracer.forget(thread.port)

    def end(self, process: TracedProcess, status: int | None) -> None:
        """The process has ended; with None for ``status`` it was left."""
        self._tracees.processes.pop(process.pid, None)
        self._ended[process.pid] = process.space  # first: children appear while those who share its memory are left
        for pid in tuple(self._ended)[:-_REMEMBERED]:
            del self._ended[pid]
            self._left.pop(pid, None)
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
