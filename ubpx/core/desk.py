"""Where one target's clients bring their requests, and from where they are told what happens.

Between the clients (any thread), the coordinator (the tracer thread, addresses only) and whoever
resolves specs. One page, although a long one: it decides hardly anything, but is where each request has its door; each
method hands over to leasing, groups, watching, code probes or the keeper, and sees that it is done in the right thread.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ubpx._errors import InternalError, TargetGone, UsageError
from ubpx.core.catches import Catches
from ubpx.core.clients import RESERVED_NAME, Client, ClientState, Roster
from ubpx.core.codeprobes import CodeProbes
from ubpx.core.coordinator import Coordinator
from ubpx.core.dormancy import DormantGroup
from ubpx.core.groups import Groups
from ubpx.core.herald import Herald
from ubpx.core.heritage import Alone, Heritage, Household, Kin
from ubpx.core.holds import Hold, Parting
from ubpx.core.leasing import Leasing, Resolve, ResolveMany
from ubpx.core.loop import TracerThread
from ubpx.core.modules import FindLoaderStop, LoadedFile, ModuleWatch, loaded_files
from ubpx.core.plugins import ClientPlugin, client_plugin
from ubpx.core.probepoints import Handler, Lease, LeaseGroup, LeaseState, Probepoint
from ubpx.core.requests import Request, checked_place, checked_places, checked_request
from ubpx.core.sleepers import CodeProbe
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.telling import Teller
from ubpx.core.values import ProcessId, ThreadId, VirtAddr, Watched
from ubpx.core.watching import Watching

MODULE_HOOKS: Final = frozenset({"ubpx_module_loaded", "ubpx_module_unloaded"})
STARTER: Final = RESERVED_NAME
"""The owner of the hold that keeps a started program at its entry point, and of what ubpx probes for itself."""


class TargetDesk(Teller):
    """The desk of one target: implements the clients' Desk and the coordinator's Listener."""

    def __init__(
        self,
        loop: TracerThread,
        resolve: Resolve,
        resolve_many: ResolveMany,
        target: Any,
        *,
        find_loader_stop: FindLoaderStop = lambda _: None,
        kin: Kin | None = None,
    ) -> None:
        herald = Herald(self._sweep)
        super().__init__(herald, Catches(herald, loop.coordinator.tracer.syscall_numbers))
        self.loop: Final = loop
        self.roster: Final = Roster()
        self.process: TracedProcess | None = None
        self.starting = False
        """Between ``spawn`` and the entry point."""
        self.start_hold: Hold | None = None
        self._target: Final = target
        self._kin: Final = kin or Alone()
        self._heritage: Heritage | None = None
        """Of a followed child."""
        self._born = False
        """Of a followed child: it is traced, not just expected."""
        self._watching: Final = Watching(loop.coordinator)
        self._modules: Final = ModuleWatch(find_loader_stop, self._watch, self._modules_changed)
        self._itself: Final = Client(STARTER, priority=0, target=target, desk=self)
        """The client in whose name ubpx probes for itself; it has joined nowhere."""
        self._leasing: Final = Leasing(loop.coordinator, self._herald, resolve, resolve_many, itself=self._itself)
        self._code: Final = CodeProbes(loop.coordinator, self._leasing)
        self._groups: Final = Groups(loop.coordinator, self._leasing, loop.run)
        self._household: Final = Household(
            roster=self.roster, herald=self._herald, leasing=self._leasing, watching=self._watching
        )

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
        if plugin is not None and not plugin.hooks:
            raise UsageError(f"hooks={hooks!r} has no client hook; mark its methods with ubpx.hookspecs.hookimpl")
        self.loop.run(lambda: self._join(client, plugin))
        return client

    def _join(self, client: Client, plugin: ClientPlugin | None) -> None:
        process = self._traced
        self.roster.join(client)
        self._herald.tell("ubpx_client_joined", only=lambda other: other is not client, name=client.name)
        if plugin is not None:
            self._introduce(plugin, client, process)

    def _introduce(self, plugin: ClientPlugin, client: Client, process: TracedProcess) -> None:
        """Its hooks are called from now on, and it hears of the process."""
        before = frozenset(self.leases_of(client))
        self._herald.activate(plugin, client)
        self._herald.tell("ubpx_process_attached", only=lambda each: each is client, process=process)
        if plugin.for_children:
            client.asks_anew = frozenset(self.leases_of(client)) - before
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
        for heir in tuple(client.heirs):
            heir.close()
        if client.state is ClientState.CLOSED:
            return
        self.roster.leave(client, forget=lambda each: self._sweep_leases(each, LeaseState.RELEASED))
        self._herald.tell("ubpx_client_left", name=client.name)
        self._unite_catches()

    def expel(self, client: Client, reason: str, held_s: float) -> None:
        """See ``Client.expel``."""
        if client.quarantine(reason):
            self._after_hit(lambda: self._sweep(client, held_s))

    def leases_of(self, client: Client) -> Sequence[Lease]:
        """Armed and pending ones."""
        self._groups.make_leases_of(client)
        probes = sorted(self._leasing.requests.of(client), key=lambda each: each.age)
        return (*probes, *self._watching.of(client))

    def _sweep(self, client: Client, held_s: float = 0.0) -> None:
        """The client is quarantined: take everything back and tell the others."""
        for heir in tuple(client.heirs):
            heir.expel(client.reason, held_s=held_s)
        self._sweep_leases(client, LeaseState.QUARANTINED)
        self._herald.tell(
            "ubpx_client_quarantined",
            name=client.name,
            reason=client.reason,
            held_s=held_s,
            only=lambda each: each is not client,
        )

    def _sweep_leases(self, client: Client, state: LeaseState) -> None:
        self._code.release_of(client, state, self.process)
        self._groups.release_of(client, state, self.process)
        self._leasing.withdraw(self.leases_of(client), state, self.process)
        self._watching.withdraw(self._watching.of(client), state, self.process)
        if self.process is not None:
            for hold in self._coordinator.keeper.holds.of(client.name, self.process.pid):
                self._coordinator.keeper.release_hold(hold)

    def catch(self, client: Client, what: str, wanted: Iterable[int | str] | None) -> None:
        """See ``Client.catch_signals`` and ``Client.catch_syscalls``."""
        chosen = self._catches.checked(client, what, wanted, self._traced.space.architecture.name)
        self.loop.run(lambda: self._catch(client, what, chosen))

    def _catch(self, client: Client, what: str, chosen: frozenset[int | str] | None) -> None:
        if chosen is None:
            client.caught.pop(what, None)
        else:
            client.caught[what] = chosen
        self._unite_catches()

    def _unite_catches(self) -> None:
        """System calls are events while at least one client wants to be asked about one."""
        process = self.process
        if process is not None and not process.ended.is_set():
            self._coordinator.report_syscalls(process, wanted=self._catches.any_syscalls())

    # Leases -------------------------------------------------------------------------------

    def probe(self, client: Client, place: str | int, handler: Handler, options: dict[str, Any]) -> Lease:
        """See ``Client.probe``."""
        checked_place(place)
        request = checked_request(options)
        return self.loop.run(lambda: self._probe(client, place, request, handler))

    def _probe(self, client: Client, place: str | int, request: Request, handler: Handler) -> Lease:
        process = self._traced
        lease = self._leasing.probe(client, process, place, request, handler)
        self._watch_modules(process, of_modules=lease.state is LeaseState.PENDING or _names_module(lease.spec))
        return lease

    def _watch_modules(self, process: TracedProcess, *, of_modules: bool) -> None:
        """Notice when what leases were given by comes or goes."""
        if of_modules and self._modules.begin(process) and self._leasing.requests.pending:
            self._leasing.arm_waiting(process)  # its module may have come while nobody watched

    def watch(self, client: Client, watched: Watched, handler: Handler, priority: int) -> Lease:
        """See ``Client.watch``."""
        return self.loop.run(lambda: self._watching.watch(client, self._traced, watched, handler, priority=priority))

    def probe_many(self, client: Client, places: object, handler: Handler, options: dict[str, Any]) -> LeaseGroup:
        """See ``Client.probe_many``."""
        wanted = checked_places(places)
        if options["skip_refused"] is None:
            options["skip_refused"] = isinstance(wanted, str)
        request = checked_request(options)
        return self.loop.run(lambda: self._probe_many(client, wanted, request, handler))

    def _probe_many(
        self, client: Client, wanted: str | Sequence[str | int], request: Request, handler: Handler
    ) -> LeaseGroup:
        group = None
        while group is None:  # a handler, or an exec, came between
            group = self._groups.probe(client, self._traced, wanted, request, handler)
        specs = [wanted] if isinstance(wanted, str) else wanted  # the main program stays
        self._watch_modules(self._traced, of_modules=any(map(_names_module, specs)))
        return group

    def release_all(self, leases: Sequence[Lease]) -> None:
        """See ``LeaseGroup.release``; from any thread."""
        if isinstance(leases, DormantGroup):
            self._after_hit(lambda: self._groups.release(leases, self.process))
            return
        if any(lease in self._leasing.requests for lease in leases):
            self._after_hit(lambda: self._withdraw(leases))
        if any(lease in self._watching for lease in leases):
            self._after_hit(lambda: self._watching.withdraw(leases, LeaseState.RELEASED, self.process))

    def _withdraw(self, leases: Sequence[Lease]) -> None:
        rest = self._groups.withdraw(leases, LeaseState.RELEASED, self.process)
        self._leasing.withdraw(rest, LeaseState.RELEASED, self.process)

    def probe_code(
        self,
        client: Client,
        ranges: Iterable[range],
        handler: Handler | None,
        *,
        first_hits: int | None,
        priority: int,
        sequences: Sequence[range] = (),
    ) -> CodeProbe:
        """Probe every instruction of some code (see ``CodeProbes.probe``); ``handler`` is for all of them."""
        probe = CodeProbe(client, handler, first_hits, priority)
        self.loop.run(lambda: self._code.probe(self._traced, probe, ranges, sequences))
        return probe

    def release_code(self, probe: CodeProbe) -> None:
        """Give it back; from any thread. Again: does nothing."""
        self._after_hit(lambda: self._code.release(probe, LeaseState.RELEASED, self.process))

    def probepoints(self) -> tuple[Probepoint, ...]:
        """All of the target's, by address; what was dormant is not any more."""
        process = self.process
        if process is None or process.ended.is_set():
            return ()
        if process.space.dormant.count:
            self.loop.run(lambda: self._code.wake_all(process.space))
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

    def handler_failed(self, lease: Lease, error: BaseException, ran_s: float) -> None:
        """An exception in a handler: three in a row quarantine its client, after the hit."""
        client = _client_of(lease)
        if client.failed(error, f"its handler at {lease.address or 0:#x}"):
            self._coordinator.reception.after_hit.append(lambda: self._sweep(client, ran_s))

    def handler_blocked(self, lease: Lease, ran_s: float) -> None:
        """A handler blocked in C past its deadline, where nothing can interrupt it: quarantine, after the hit."""
        client = _client_of(lease)
        if client.quarantine(f"its handler at {lease.address or 0:#x} blocked past its deadline"):
            self._coordinator.reception.after_hit.append(lambda: self._sweep(client, ran_s))

    def beget(self, child: TracedProcess) -> "TargetDesk | None":
        """The desk of a followed child, whose clients and leases are like these."""
        heir: TargetDesk | None = self._kin.bear()
        if heir is not None:
            heir.process = child
            heir._heritage = Heritage(self._household, heir._household, self._coordinator, heir._target, heir)
            if child.silent:
                heir._heritage.await_program()
        return heir

    def settle(self, process: TracedProcess, copied_from: AddressSpace | None) -> None:
        """The child is traced: what its clients have stands before it runs, or when its program is mapped."""
        self.process = process
        if copied_from is not None and self._heritage is not None:
            self._hear_of(process)
            self._heritage.arm(process, copied_from)
            if self._leasing.requests.pending:
                self._modules.begin(process)
                self._leasing.arm_waiting(process)
        self._born = True
        self._kin.born()

    def _hear_of(self, process: TracedProcess) -> None:
        """A followed child's clients, before it runs; later: nobody."""
        for plugin, client in self._heritage.take_hooks() if self._heritage else ():
            self._introduce(plugin, client, process)

    def execed(self, process: TracedProcess, old: AddressSpace) -> None:
        """The old program's probepoints are gone; what was given by a spec waits for its module.

        The exec is told first: a broker then looks who may hear any more of the process.
        """
        self._code.end(LeaseState.LOST)
        self._groups.suspend()
        lost = self._leasing.suspend(old)
        self._watching.lose(old)
        if not self.starting:
            self._herald.tell("ubpx_process_execed", process=process, path=_executable(process.pid))
        self._leasing.tell_replaced(lost)

    def _modules_changed(self, loaded: frozenset[LoadedFile], unloaded: frozenset[LoadedFile]) -> None:
        process = self._traced
        for file in unloaded:
            self._groups.forget(process.space, range(file.start, file.end))
            self._leasing.lose(process.space, range(file.start, file.end), f"{file.path} was unloaded")
        self.look_at_text(process, serve=False)
        self._tell_modules("unloaded", unloaded)
        self._tell_modules("loaded", loaded)
        self._leasing.arm_waiting(process)  # of two copies one may have been unloaded: then the other is meant

    def look_at_text(self, process: TracedProcess, *, serve: bool) -> None:
        """Find out what the program has changed of what is probed."""
        self._groups.look(process)
        if self._leasing.look_at_text(process, serve=serve):
            self._modules.restart(process)

    def _tell_modules(self, event: str, files: Iterable[LoadedFile]) -> None:
        for file in sorted(files, key=lambda each: each.start):
            self._herald.tell(f"ubpx_module_{event}", process=self._traced, path=file.path, base=file.start)

    def _watch(self, address: VirtAddr, action: Callable[[], None]) -> None:
        """Probe for ubpx itself; the action comes after the hit."""
        options = {"strategy": None, "exclusive": False, "priority": 0, "assume_boundary": True, "defer": False}
        reception = self._coordinator.reception
        request = checked_request(options)
        self._probe(self._itself, address, request, lambda _: reception.after_hit.append(action))

    def entered(self, process: TracedProcess) -> None:
        """The new program's libraries are mapped: arm what waited for them."""
        if self.starting:
            self.starting = False
            self.start_hold = self._coordinator.keeper.take_hold(STARTER, process, None)
        self._hear_of(process)
        self._leasing.arm_waiting(process)
        listening = any(self._herald.having(hook) for hook in MODULE_HOOKS)
        if listening:
            self._tell_modules("loaded", loaded_files(process.mappings()))
        if self._leasing.requests.pending or listening:
            self._modules.begin(process)

    def detaching(self, process: TracedProcess) -> None:
        """Last words, then everybody's leases are over."""
        self._groups.look(process)
        self._leasing.look_at_text(process, serve=False)
        self._herald.tell("ubpx_process_detached", process=process)
        self._code.end(LeaseState.RELEASED)
        self._groups.end(LeaseState.RELEASED)
        self._leasing.end(process)
        self._watching.end()

    def ended(self, process: TracedProcess) -> None:
        """The process has exited, or was left."""
        if process.status is not None:
            self._herald.tell("ubpx_process_exited", process=process, status=process.status)
        self._code.end(LeaseState.RELEASED)
        self._groups.end(LeaseState.RELEASED)
        self._leasing.end(process)
        self._watching.end()
        if process.status is None:
            for client in self.roster.living():
                self.roster.leave(client, forget=lambda _: None)
        if self._heritage is not None:
            self._heritage.end()
        if self._born:
            self._kin.gone()


def _client_of(lease: Lease) -> Client:
    if not isinstance(lease.client, Client):
        raise InternalError(f"{lease!r} belongs to nobody who can fail")
    return lease.client


def _names_module(spec: str | int | None) -> bool:
    return isinstance(spec, str) and ":" in spec


def _executable(pid: ProcessId) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def probe_code(
    client: Client,
    ranges: Iterable[range],
    handler: Handler | None = None,
    *,
    first_hits: int | None = None,
    priority: int = 0,
    sequences: Sequence[range] = (),
) -> CodeProbe:
    """Probe every instruction of ``ranges`` of code, by the million: for tools of ubpx's own.

    Each range is decoded from its start, linearly, up to what is no instruction; ranges do not overlap, have a step of
    1 and are not empty. Instructions in restartable ``sequences`` are refused, and those that another client holds
    exclusively: ``CodeProbe.refused`` counts both by reason. With ``first_hits`` each probe ends after so many hits.
    What nobody has arrived at yet is in no list of leases, but ``target.probepoints()`` makes a probepoint of each of
    them.
    Raises NotExecutable, MemoryFault, UsageError, TargetGone; then nothing is armed.
    """
    desk: TargetDesk = client.target._desk
    return desk.probe_code(client, ranges, handler, first_hits=first_hits, priority=priority, sequences=sequences)
