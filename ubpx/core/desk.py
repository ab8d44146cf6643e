"""Where one target's clients bring their requests, and from where they are told what happens.

Between the clients (any thread), the coordinator (the tracer thread, addresses only) and whoever
resolves specs.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import attrs

from ubpx._errors import InternalError, NotAnInstruction, TargetGone, UbpxError, UnknownModule, UsageError
from ubpx.core import arming
from ubpx.core.catches import Catches
from ubpx.core.clients import Client, ClientState, Roster
from ubpx.core.coordinator import Coordinator
from ubpx.core.herald import Herald, Wanted
from ubpx.core.holds import Hold, Parting
from ubpx.core.loop import TracerThread
from ubpx.core.modules import FindLoaderStop, LoadedFile, ModuleWatch, loaded_files
from ubpx.core.plugins import ClientPlugin, client_plugin
from ubpx.core.probepoints import Handler, Lease, LeaseState, Probepoint
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import Place, ProcessId, ThreadId, VirtAddr, Watched
from ubpx.core.verdicts import RegisterCollision

Resolve = Callable[[str | int, TracedProcess], Place]
"""From a spec or an address to a place; raises an UbpxError."""

MODULE_HOOKS: Final = frozenset({"ubpx_module_loaded", "ubpx_module_unloaded"})
STARTER: Final = "ubpx"
"""The owner of the hold that keeps a started program at its entry point, and of what ubpx probes for itself."""


@attrs.frozen(kw_only=True)
class Request:
    """What a client wants of ``probe``, checked."""

    place: str | int
    strategy: Strategy | None
    exclusive: bool
    priority: int
    assume_boundary: bool
    defer: bool


def _checked(place: str | int, options: dict[str, Any]) -> Request:
    if isinstance(place, bool) or not isinstance(place, str | int):
        raise UsageError(f"a place is a spec or an address, not {place!r}; see the section Specs of the reference")
    strategy = options.pop("strategy")
    if strategy is not None:
        try:
            strategy = Strategy(strategy)
        except ValueError:
            known = ", ".join(Strategy)
            raise UsageError(f"{strategy!r} is no strategy; choose one of {known}") from None
    return Request(place=place, strategy=strategy, **options)


class TargetDesk:
    """The desk of one target: implements the clients' Desk and the coordinator's Listener."""

    def __init__(
        self,
        loop: TracerThread,
        resolve: Resolve,
        target: Any,
        *,
        find_loader_stop: FindLoaderStop = lambda _: None,
    ) -> None:
        self.loop: Final = loop
        self.roster: Final = Roster()
        self.pending: Final[list[Lease]] = []
        """Leases whose module is not mapped."""
        self.process: TracedProcess | None = None
        self.starting = False
        """Between ``spawn`` and the entry point."""
        self.start_hold: Hold | None = None
        self._herald: Final = Herald(self._sweep)
        self._catches: Final = Catches(self._herald, loop.coordinator.tracer.syscall_numbers)
        self._resolve: Final = resolve
        self._target: Final = target
        self._ages: Final = count()
        self._requests: Final[dict[Lease, Request]] = {}
        self._watches: Final[dict[Lease, AddressSpace]] = {}
        """Leases of watchpoints, and where."""
        self._modules: Final = ModuleWatch(find_loader_stop, self._watch, self._modules_changed)
        self._itself: Final = Client(STARTER, priority=0, target=target, desk=self)
        """The client in whose name ubpx probes for itself; it has joined nowhere."""

    @property
    def _traced(self) -> TracedProcess:
        process = self.process
        if process is None or process.ended.is_set():
            status = process.status if process else None
            raise TargetGone(process.pid if process else 0, status)
        return process

    @property
    def _coordinator(self) -> Coordinator:
        return self.loop.coordinator

    def _after_hit(self, action: Callable[[], None]) -> None:
        """Now; from a handler: when the hit is over."""
        if self.loop.is_current and self._coordinator.reception.serving is not None:
            self._coordinator.reception.after_hit.append(action)
        elif self.process is not None and not self.process.ended.is_set():
            self.loop.run(action)
        else:
            action()

    # Clients ------------------------------------------------------------------------------

    def join(self, name: str, priority: int, hooks: object = None) -> Client:
        """A new client, with the hooks that an object of its implements; UsageError if a living one has the name."""
        client = Client(name, priority=priority, target=self._target, desk=self)
        plugin = None if hooks is None else client_plugin(hooks, name)
        self.loop.run(lambda: self._join(client, plugin))
        return client

    def _join(self, client: Client, plugin: ClientPlugin | None) -> None:
        process = self._traced
        self.roster.join(client)
        self._herald.tell("ubpx_client_joined", only=lambda other: other is not client, name=client.name)
        if plugin is not None:
            self._herald.activate(plugin, client)
            self._herald.tell("ubpx_process_attached", only=lambda each: each is client, process=process)
            self._unite_catches()
            if MODULE_HOOKS & plugin.hooks.keys():
                self._modules.begin(process)

    def activate(self, plugin: ClientPlugin) -> None:
        """Give the plugin its client and tell it of the process; in the tracer thread."""
        self._join(Client(plugin.name, priority=0, target=self._target, desk=self), plugin)

    def close(self, client: Client) -> None:
        """Sweep a client and let it go."""
        self._after_hit(lambda: self._close(client))

    def _close(self, client: Client) -> None:
        if client.state is ClientState.CLOSED:
            return
        self.roster.leave(client, forget=lambda each: self._sweep_leases(each, LeaseState.RELEASED))
        self._herald.tell("ubpx_client_left", name=client.name)
        self._unite_catches()

    def leases_of(self, client: Client) -> Sequence[Lease]:
        """Armed and pending ones."""
        return tuple(lease for lease in (*self._requests, *self._watches) if lease.client is client)

    def _sweep(self, client: Client) -> None:
        """The client is quarantined: take everything back and tell the others."""
        self._sweep_leases(client, LeaseState.QUARANTINED)
        held = time.monotonic() - self._coordinator.reception.serving_since
        self._herald.tell(
            "ubpx_client_quarantined",
            name=client.name,
            reason=client.reason,
            held_s=max(held, 0.0),
            only=lambda each: each is not client,
        )

    def _sweep_leases(self, client: Client, state: LeaseState) -> None:
        for lease in self.leases_of(client):
            self._withdraw(lease, state)
            self._unwatch(lease, state)
        if self.process is not None:
            for hold in self._coordinator.keeper.holds.of(client.name, self.process.pid):
                self._coordinator.keeper.release_hold(hold)

    def catch(self, client: Client, what: str, wanted: Iterable[int | str] | None) -> None:
        """See ``Client.catch_signals`` and ``Client.catch_syscalls``."""
        numbers = self._catches.checked(client, what, wanted)
        self.loop.run(lambda: self._catch(client, what, numbers))

    def _catch(self, client: Client, what: str, numbers: frozenset[int] | None) -> None:
        if numbers is None:
            client.caught.pop(what, None)
        else:
            client.caught[what] = numbers
        self._unite_catches()

    def _unite_catches(self) -> None:
        """System calls are events while at least one client wants to be asked about one."""
        process = self.process
        if process is not None and not process.ended.is_set():
            self._coordinator.report_syscalls(process, wanted=self._catches.any_syscalls())

    # Leases -------------------------------------------------------------------------------

    def probe(self, client: Client, place: str | int, handler: Handler, options: dict[str, Any]) -> Lease:
        """See ``Client.probe``."""
        request = _checked(place, options)
        return self.loop.run(lambda: self._probe(client, request, handler))

    def _probe(self, client: Client, request: Request, handler: Handler) -> Lease:
        client.check_live()
        process = self._traced
        spec = request.place if isinstance(request.place, str) else None
        lease = Lease(
            client,
            handler,
            priority=request.priority,
            age=next(self._ages),
            spec=spec,
            exclusive=request.exclusive,
        )
        lease.forced = request.strategy
        try:
            self._arm(lease, request, process)
        except UnknownModule as error:
            if spec is None or not request.defer:
                raise
            self._requests[lease] = request
            self._wait_for_module(lease, error)
            if self._modules.begin(process):
                self._arm_pending(process)  # it may have come while nobody watched
        self._requests[lease] = request
        return lease

    def watch(self, client: Client, watched: Watched, handler: Handler, priority: int) -> Lease:
        """See ``Client.watch``."""
        return self.loop.run(lambda: self._watch_data(client, watched, handler, priority))

    def _watch_data(self, client: Client, watched: Watched, handler: Handler, priority: int) -> Lease:
        client.check_live()
        process = self._traced
        lease = Lease(client, handler, priority=priority, age=next(self._ages), spec=None, exclusive=False)
        fresh = process.space.watches.grant(lease, watched)
        self._watches[lease] = process.space
        if fresh:
            self._coordinator.rewatch(process)
        return lease

    def _unwatch(self, lease: Lease, state: LeaseState) -> None:
        space, process = self._watches.pop(lease, None), self.process
        idle = space is not None and space.watches.withdraw(lease, state)
        if idle and process is not None and process.space is space and not process.ended.is_set():
            self._coordinator.rewatch(process)

    def _wait_for_module(self, lease: Lease, why: UbpxError | None = None) -> None:
        lease.state, lease.probepoint, lease.obstacle = LeaseState.PENDING, None, why
        self.pending.append(lease)

    def _arm_pending(self, process: TracedProcess) -> None:
        """Something was mapped: arm what waited for it."""
        waiting, self.pending[:] = tuple(self.pending), []
        for lease in waiting:
            try:
                self._arm(lease, self._requests[lease], process)
                lease.obstacle = None
            except UbpxError as error:
                self._wait_for_module(lease, error)

    def _arm(self, lease: Lease, request: Request, process: TracedProcess) -> None:
        place = self._resolve(request.place, process)
        space = process.space
        registry = space.registry
        registry.check(place.address, exclusive=request.exclusive, strategy=request.strategy)
        probepoint = registry.at(place.address)
        fresh = probepoint is None
        if probepoint is None:
            if not request.assume_boundary:
                _prove_boundary(space, place)
            analysis = arming.analyze(space, place.address)
            choice = arming.choose(space, analysis, request.strategy)
            probepoint = self._coordinator.armory.arm(space, analysis, choice, process.pid)
        registry.grant(lease, probepoint)
        self._coordinator.armory.refresh(space, probepoint)
        if fresh and lease.client is not self._itself:
            self._herald.tell("ubpx_probepoint_armed", address=place.address)

    def release(self, lease: Lease) -> None:
        """See ``Lease.release``."""
        if lease in self._watches:
            self._after_hit(lambda: self._unwatch(lease, LeaseState.RELEASED))
        if lease in self._requests:
            self._after_hit(lambda: self._withdraw(lease, LeaseState.RELEASED))

    def _withdraw(self, lease: Lease, state: LeaseState) -> None:
        if self._requests.pop(lease, None) is None:
            return
        if lease in self.pending:
            self.pending.remove(lease)
            lease.state = state
            return
        process, probepoint = self.process, lease.probepoint
        if process is None or probepoint is None or process.space.identity != probepoint.space:
            lease.state = state
            return
        if not process.space.registry.withdraw(lease, state):
            self._coordinator.armory.refresh(process.space, probepoint)
            return
        ours = self._coordinator.armory.disarm(process.space, probepoint)
        if ours:
            self._herald.tell("ubpx_probepoint_disarmed", address=probepoint.address)
        else:
            self._tell_lost(probepoint.address, "the program wrote something else there")

    def _tell_lost(self, address: VirtAddr, reason: str) -> None:
        self._herald.tell("ubpx_probepoint_lost", address=address, reason=reason)

    def probepoints(self) -> tuple[Probepoint, ...]:
        """All of the target's, by address."""
        process = self.process
        if process is None or process.ended.is_set():
            return ()
        clients = (each for each in process.space.registry if set(each.clients) != {STARTER})
        return tuple(sorted(clients, key=lambda each: each.address))

    # Holds --------------------------------------------------------------------------------

    def hold(self, client: Client, thread: ThreadId | None) -> Hold:
        """See ``Client.hold``; when it returns, what is held has stopped (from a handler: stops soon)."""
        return self.loop.run(lambda: self._hold(client, thread))

    def _hold(self, client: Client, thread: ThreadId | None) -> Hold:
        client.check_live()
        hold: Hold = self._coordinator.keeper.take_hold(client.name, self._traced, thread)
        if self._coordinator.reception.serving is None:
            self._coordinator.keeper.await_hold(hold)
        return hold

    def step(self, client: Client, thread: ThreadId, parting: Parting) -> None:
        """See ``Client.step``."""
        keeper = self._coordinator.keeper
        self.loop.run(lambda: keeper.step(client.name, self._traced, thread, parting))

    def registers(self, thread: ThreadId) -> Mapping[str, int]:
        """See ``Target.registers``."""
        return self.loop.run(lambda: self._coordinator.keeper.registers(self._traced, thread))

    # What the coordinator tells -----------------------------------------------------------

    def handler_failed(self, lease: Lease, error: BaseException) -> None:
        """An exception in a handler: three in a row quarantine its client, after the hit."""
        client = _client_of(lease)
        if client.failed(error, f"its handler at {lease.address or 0:#x}"):
            self._coordinator.reception.after_hit.append(lambda: self._sweep(client))

    def handler_blocked(self, lease: Lease) -> None:
        """A handler blocked in C past its deadline, where nothing can interrupt it: quarantine, after the hit."""
        client = _client_of(lease)
        if client.quarantine(f"its handler at {lease.address or 0:#x} blocked past its deadline"):
            self._coordinator.reception.after_hit.append(lambda: self._sweep(client))

    def signalled(self, process: TracedProcess, tid: ThreadId, signal: int) -> Wanted:
        """What clients want to happen before a signal is delivered."""
        return self._catches.ask_signal(signal, process=process, tid=tid)

    def syscall_entered(self, process: TracedProcess, tid: ThreadId, number: int, arguments: tuple[int, ...]) -> Wanted:
        """What clients want to happen before a system call."""
        return self._catches.ask_syscall("entered", number, process=process, tid=tid, arguments=arguments)

    def syscall_exited(self, process: TracedProcess, tid: ThreadId, number: int, result: int) -> Wanted:
        """What clients want to happen after a system call."""
        return self._catches.ask_syscall("exited", number, process=process, tid=tid, result=result)

    def collided(self, address: VirtAddr, collision: RegisterCollision) -> None:
        """Tell the two concerned."""
        concerned = (collision.winner, collision.loser)
        self._herald.tell(
            "ubpx_collision",
            only=lambda client: client.name in concerned,
            address=address,
            resource=collision.register,
            winner=collision.winner,
            loser=collision.loser,
        )

    def stepped(self, process: TracedProcess, clients: Sequence[str], tid: ThreadId, address: VirtAddr) -> None:
        """The step that a verdict asked for is done."""
        only = lambda client: client.name in clients  # noqa: E731
        self._herald.tell("ubpx_thread_stepped", only=only, process=process, tid=tid, address=address)

    def thread_started(self, process: TracedProcess, tid: ThreadId) -> None:
        """A new thread."""
        self._herald.tell("ubpx_thread_started", process=process, tid=tid)

    def thread_exited(self, process: TracedProcess, tid: ThreadId) -> None:
        """A thread is about to exit."""
        self._herald.tell("ubpx_thread_exited", process=process, tid=tid)

    def forked(self, process: TracedProcess, child: ProcessId) -> None:
        """A child, cleaned or stepped over."""
        self._herald.tell("ubpx_process_forked", process=process, child=child)

    def execed(self, process: TracedProcess, old: AddressSpace) -> None:
        """The old program's probepoints are gone; what was given by a spec waits for its module."""
        for probepoint in old.registry:
            own = set(probepoint.clients) == {STARTER}
            self._lose_leases(old, probepoint)
            old.registry.remove(probepoint)
            if not own:
                self._tell_lost(probepoint.address, "the process runs a new program")
        for lease in tuple(self._watches):
            self._unwatch(lease, LeaseState.LOST)
        if not self.starting:
            self._herald.tell("ubpx_process_execed", process=process, path=_executable(process.pid))

    def _lose_leases(self, space: AddressSpace, probepoint: Probepoint) -> None:
        """What was given by a spec waits for its module to come again."""
        for lease in probepoint.leases:
            space.registry.withdraw(lease, LeaseState.LOST)
            if lease.spec:
                self._wait_for_module(lease)
            else:
                self._requests.pop(lease, None)

    def _modules_changed(self, loaded: frozenset[LoadedFile], unloaded: frozenset[LoadedFile]) -> None:
        process = self._traced
        space = process.space
        for file in unloaded:
            for probepoint in space.registry.owning(range(file.start, file.end)):
                self._lose_leases(space, probepoint)
                self._coordinator.armory.disarm(space, probepoint)
                self._tell_lost(probepoint.address, f"{file.path} was unloaded")
        self._tell_modules("unloaded", unloaded)
        self._tell_modules("loaded", loaded)
        if loaded:
            self._arm_pending(process)

    def _tell_modules(self, event: str, files: Iterable[LoadedFile]) -> None:
        for file in sorted(files, key=lambda each: each.start):
            self._herald.tell(f"ubpx_module_{event}", process=self._traced, path=file.path, base=file.start)

    def _watch(self, address: VirtAddr, action: Callable[[], None]) -> None:
        """Probe for ubpx itself; the action comes after the hit."""
        options = {"strategy": None, "exclusive": False, "priority": 0, "assume_boundary": True, "defer": False}
        reception = self._coordinator.reception
        self._probe(self._itself, _checked(address, options), lambda _: reception.after_hit.append(action))

    def entered(self, process: TracedProcess) -> None:
        """The new program's libraries are mapped: arm what waited for them."""
        if self.starting:
            self.starting = False
            self.start_hold = self._coordinator.keeper.take_hold(STARTER, process, None)
        self._arm_pending(process)
        listening = any(self._herald.having(hook) for hook in MODULE_HOOKS)
        if listening:
            self._tell_modules("loaded", loaded_files(process.mappings()))
        if self.pending or listening:
            self._modules.begin(process)

    def detaching(self, process: TracedProcess) -> None:
        """Last words, then everybody's leases are over."""
        self._herald.tell("ubpx_process_detached", process=process)
        self._release_all(process)

    def ended(self, process: TracedProcess) -> None:
        """The process has exited, or was left."""
        if process.status is not None:
            self._herald.tell("ubpx_process_exited", process=process, status=process.status)
        self._release_all(process)
        if process.status is None:
            for client in self.roster.living():
                self.roster.leave(client, forget=lambda _: None)

    def _release_all(self, process: TracedProcess) -> None:
        for lease in tuple(self._requests):
            if not process.space.registry.withdraw(lease, LeaseState.RELEASED):
                lease.state = LeaseState.RELEASED
        for lease in tuple(self._watches):
            self._watches.pop(lease).watches.withdraw(lease, LeaseState.RELEASED)
        self._requests.clear()
        self.pending.clear()


def _client_of(lease: Lease) -> Client:
    if not isinstance(lease.client, Client):
        raise InternalError(f"{lease!r} belongs to nobody who can fail")
    return lease.client


def _executable(pid: ProcessId) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _prove_boundary(space: AddressSpace, place: Place) -> None:
    """Raises NotAnInstruction unless decoding from the enclosing symbol's start arrives there."""
    address, start, end = place.address, place.symbol_start, place.symbol_end
    if start is None or end is None:
        raise NotAnInstruction(
            address, "it lies outside any symbol", "pass assume_boundary=True if you know that one starts there"
        )
    if start == address:
        return
    code = space.memory.read(start, min(end, address + space.architecture.longest_insn) - start)
    for found in space.architecture.instruction_starts(code, start):
        if found == address:
            return
        if found > address:
            break
    raise NotAnInstruction(address, f"it is inside an instruction of {place.name}", "probe that instruction's start")
