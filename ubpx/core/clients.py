"""Clients: who asks. Their life, and what isolates them from each other."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol, Self

from ubpx._errors import ClientQuarantined, UsageError
from ubpx.core.checks import check_flags, is_int, is_text
from ubpx.core.holds import Hold, Parting
from ubpx.core.probepoints import Handler, Lease, LeaseGroup
from ubpx.core.values import ThreadId, Watched
from ubpx.core.watchpoints import checked

STRIKES: Final = 3
"""So many exceptions in a row, over all handlers and hooks of a client on one target, quarantine it."""

_log = logging.getLogger("ubpx.clients")


class ClientState(StrEnum):
    """Whether a client may act."""

    LIVE = "LIVE"
    QUARANTINED = "QUARANTINED"
    CLOSED = "CLOSED"


class Desk(Protocol):
    """Where a client's requests go; they may come from any thread."""

    def probe(self, client: "Client", place: str | int, handler: Handler, options: dict[str, Any]) -> Lease: ...
    def probe_many(self, client: "Client", places: object, handler: Handler, options: dict[str, Any]) -> LeaseGroup: ...
    def release_all(self, leases: Sequence[Lease]) -> None: ...
    def hold(self, client: "Client", thread: ThreadId | None) -> Hold: ...
    def step(self, client: "Client", thread: ThreadId, parting: Parting) -> None: ...
    def watch(self, client: "Client", watched: Watched, handler: Handler, priority: int) -> Lease: ...
    def catch(self, client: "Client", what: str, wanted: Iterable[int | str] | None) -> None: ...
    def close(self, client: "Client") -> None: ...
    def expel(self, client: "Client", reason: str, held_s: float) -> None: ...
    def leases_of(self, client: "Client") -> Sequence[Lease]: ...


class Client:
    """One client of one target. Made by ``target.client`` or, for a plugin, by ubpx.

    Owned by the target's Roster. Usable as a context manager: leaving closes it.
    """

    def __init__(self, name: str, *, priority: int, target: Any, desk: Desk) -> None:
        self.name: Final = name
        self.priority: Final = priority
        self.target: Final = target
        """The live ``ubpx.Target``."""
        self.state = ClientState.LIVE
        self.reason = ""
        """Why it is quarantined."""
        self.strikes = 0
        """Exceptions since the last success."""
        self.caught: Final[dict[str, frozenset[int | str]]] = {}
        """What its stop hooks are called for, by ``signals`` and ``syscalls``; where there is none: everything."""
        self.heirs: Final[set[Client]] = set()
        """Those of its name in followed children, whose heirs are theirs; they end with it."""
        self.begotten_by: Client | None = None
        """Whose heir it is, where it is one."""
        self.asks_anew: frozenset[Lease] = frozenset()
        """What it asked for in ``ubpx_process_attached``, and asks for again in each followed child."""
        self._desk = desk

    def beget(self, target: Any, desk: Desk) -> "Client":
        """One of its name and priority, which asks for what it asks for, in a followed child."""
        heir = Client(self.name, priority=self.priority, target=target, desk=desk)
        heir.caught.update(self.caught)
        heir.begotten_by = self
        self.heirs.add(heir)
        return heir

    def pass_on(self) -> None:
        """The child that it is an heir in is traced no more: its own heirs go to whose heir it is."""
        origin, self.begotten_by = self.begotten_by, None
        if origin is not None:
            origin.heirs.discard(self)
            for heir in self.heirs:
                heir.begotten_by = origin
            origin.heirs.update(self.heirs)
            self.heirs.clear()

    def probe(
        self,
        place: str | int,
        handler: Handler,
        *,
        strategy: str | None = None,
        exclusive: bool = False,
        priority: int | None = None,
        assume_boundary: bool = False,
        defer: bool = True,
        once: bool = False,
    ) -> Lease:
        """Lease the probepoint at ``place`` (a spec, or an address) and run ``handler(hit)`` at each arrival.

        ``strategy`` forces one; ``exclusive`` refuses to share; ``priority`` overrides the client's;
        ``assume_boundary`` takes your word that an instruction starts there; with ``defer`` a spec
        whose module is not mapped yet gives a PENDING lease. With ``once`` the lease ends at its first hit: of
        several threads that arrive together one is told, and the trap goes within that stop.

        Raises an UbpxError, and then nothing was written: UnknownSymbol, AmbiguousSymbol, UnknownModule,
        NotExecutable, NotAnInstruction, InsnRefused, StrategyRefused, ProbepointBusy, ForeignTrap,
        SlotsExhausted, ClientQuarantined, TargetGone, UsageError.
        """
        order = self._order(handler, place, priority)
        check_flags(exclusive=exclusive, assume_boundary=assume_boundary, defer=defer, once=once)
        options = {
            "strategy": strategy,
            "exclusive": exclusive,
            "priority": order,
            "assume_boundary": assume_boundary,
            "defer": defer,
            "once": once,
        }
        return self._desk.probe(self, place, handler, options)

    def probe_many(
        self,
        places: Iterable[str | int] | str,
        handler: Handler,
        *,
        once: bool = False,
        strategy: str | None = None,
        exclusive: bool = False,
        priority: int | None = None,
        assume_boundary: bool = False,
        skip_refused: bool | None = None,
    ) -> LeaseGroup:
        """Lease many probepoints at once: all of ``places``, or none and an error that names the place.

        ``places`` are specs and addresses, or one glob for functions: ``libc.so.6:mem*``, or ``work_*`` of the
        main program (the symbol's part may have ``*``, ``?``, ``[seq]``; case matters). Several names of one
        address are one lease. With ``once`` each lease ends at its first hit, whichever thread it is. With
        ``skip_refused`` what cannot be probed there is left out, and listed in the group's ``refused``: by
        default so for a glob, which means whatever is there, and not so for a list, which means just these. A
        place that another client holds exclusively is an error in any case. The other options are ``probe``'s;
        modules must be mapped.

        Client plugins are not told of each place. Raises as ``probe`` does.
        """
        order = self._order(handler, "probe_many", priority)
        check_flags(once=once, exclusive=exclusive, assume_boundary=assume_boundary)
        if skip_refused is not None:
            check_flags(skip_refused=skip_refused)
        options = {
            "once": once,
            "strategy": strategy,
            "exclusive": exclusive,
            "priority": order,
            "assume_boundary": assume_boundary,
            "skip_refused": skip_refused,
        }
        return self._desk.probe_many(self, places, handler, options)

    def watch(
        self, address: int, handler: Handler, *, size: int = 8, access: str = "WRITE", priority: int | None = None
    ) -> Lease:
        """Lease one of the process's four hardware debug registers and run ``handler(hit)`` at each access.

        ``access`` is WRITE, READWRITE or EXECUTE; ``address`` must be a multiple of ``size`` (1, 2, 4 or 8 bytes).
        Clients that watch the same share one register. A data access has been done when the handler runs, and
        ``hit.address`` is the next instruction's; what a system call, or another process, does to the memory is
        not noticed. The lease is LOST at an exec.

        Raises DebugRegistersBusy, ClientQuarantined, TargetGone, UsageError.
        """
        order = self._order(handler, address, priority)
        return self._desk.watch(self, checked(address, size, access), handler, order)

    def _order(self, handler: object, place: str | int, priority: int | None) -> int:
        """The priority of a lease that is asked for; raises what ``check_live`` does, UsageError."""
        self.check_live()
        _check_handler(handler, place)
        check_priority(priority)
        return self.priority if priority is None else priority

    def hold(self, thread: int | None = None) -> Hold:
        """Keep one thread (by tid), or the whole process, stopped until the hold is released.

        Raises UsageError for a tid that is not the target's, ClientQuarantined, TargetGone.
        """
        self.check_live()
        if thread is not None:
            _check_tid(thread)
        return self._desk.hold(self, None if thread is None else ThreadId(thread))

    def step(self, thread: int, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """Let a thread that this client holds run one instruction; then it is held again, and told as stepped.

        ``registers`` and ``signal`` as in ``hold.release``. While others hold it too, it waits for them.
        Raises UsageError if the client does not hold the thread or it has not stopped yet.
        """
        self.check_live()
        _check_tid(thread)
        self._desk.step(self, ThreadId(thread), Parting(registers=registers or {}, signal=signal))

    def catch_signals(self, signals: Iterable[int] | None) -> None:
        """Have ``ubpx_signal`` called for these signals alone; None: for all, as it is at first.

        Raises UsageError for what is no signal, and for a client without that hook.
        """
        self.check_live()
        self._desk.catch(self, "signals", signals)

    def catch_syscalls(self, calls: Iterable[int | str] | None) -> None:
        """Have ``ubpx_syscall_entered`` and ``_exited`` called for these alone, by number or name; None: for all.

        In ``ubpx_process_attached`` it comes before the first of them.
        A name stays what it is when the program execs one of another architecture, whose numbers are others.
        Raises UsageError for a name that is no system call's, and for a client without those hooks; TargetGone.
        """
        self.check_live()
        self._desk.catch(self, "syscalls", calls)

    @property
    def leases(self) -> Sequence[Lease]:
        """Its leases that are armed or pending, the oldest first."""
        return self._desk.leases_of(self)

    def release(self, lease: Lease) -> None:
        """Give a lease back; the same as ``lease.release()``."""
        self._desk.release_all((lease,))

    def release_all(self, leases: Sequence[Lease]) -> None:
        """Give many leases back at once; the same as ``group.release()``."""
        self._desk.release_all(leases)

    def close(self) -> None:
        """Give back every lease and hold, and leave. Again: does nothing."""
        self._desk.close(self)

    def expel(self, reason: str, *, held_s: float = 0.0) -> None:
        """Quarantine it now, for a reason that is not three exceptions; from any thread. Again: does nothing.

        ``held_s`` is for how long it has kept the program waiting, in seconds.
        """
        self._desk.expel(self, reason, held_s)

    def check_live(self) -> None:
        """Raises ClientQuarantined, or UsageError if it is closed."""
        if self.state is ClientState.QUARANTINED:
            raise ClientQuarantined(self.name, self.reason)
        if self.state is ClientState.CLOSED:
            raise UsageError(f"client {self.name!r} is closed; join again with target.client({self.name!r})")

    def failed(self, error: BaseException, where: str) -> bool:
        """Count an exception of the client's code; True if it is one too many."""
        self.strikes += 1
        _log.warning("client %r raised in %s (%d in a row)", self.name, where, self.strikes, exc_info=error)
        if self.strikes < STRIKES:
            return False
        return self.quarantine(f"{STRIKES} exceptions in a row, the last one {type(error).__name__} in {where}")

    def quarantine(self, reason: str) -> bool:
        """It may not act any more; False if it could not anyway."""
        if self.state is not ClientState.LIVE:
            return False
        self.state = ClientState.QUARANTINED
        self.reason = reason
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<client {self.name!r}, {self.state}>"


def check_priority(priority: object) -> None:
    """Raises UsageError unless it can be compared with others' priorities."""
    if priority is not None and not is_int(priority):
        raise UsageError(f"priority={priority!r}; give an integer, a higher one runs earlier")


def _check_tid(tid: object) -> None:
    if not is_int(tid):
        raise UsageError(f"{tid!r} is no tid; give one of target.threads()")


def _check_handler(handler: object, place: str | int) -> None:
    if not callable(handler):
        kind = type(handler).__name__
        raise UsageError(f"the handler of {place!r} is a {kind}; give a callable that takes a hit")


RESERVED_NAME: Final = "ubpx"
"""In whose name ubpx itself holds and probes."""


class Roster:
    """The clients of one target. Owned by the target."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}

    def join(self, client: Client) -> None:
        """Raises UsageError if a living client has the name."""
        if not is_text(client.name) or not client.name:
            raise UsageError(f"{client.name!r} is no name; a client needs a name that others can be told")
        if client.name == RESERVED_NAME:
            raise UsageError(f"the name {RESERVED_NAME!r} is ubpx's own; choose another name")
        if client.name in self._clients:
            raise UsageError(f"a client named {client.name!r} is already here; choose another name, or close that one")
        self._clients[client.name] = client

    def leave(self, client: Client, *, forget: Callable[[Client], None]) -> None:
        """Sweep a client by ``forget`` and close it; again: does nothing."""
        if self._clients.get(client.name) is not client:
            return
        forget(client)
        client.state = ClientState.CLOSED
        del self._clients[client.name]

    def living(self) -> tuple[Client, ...]:
        """All that have joined and not left, the quarantined included, in the order of joining."""
        return tuple(self._clients.values())
