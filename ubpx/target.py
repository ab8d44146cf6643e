"""The public face: attach, spawn, connect, Session, Target.

One page, although a long one: it is nearly all signatures and docstrings, which are what users read, and decides
nothing: each method hands over to the desk or the session's loop.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from ubpx._errors import AlreadyTraced, InternalError, NoTracer, UnknownSymbol, UsageError
from ubpx.brokers import connect_by, naming_broker
from ubpx.core.checks import check_duration, check_flags, check_names, check_pid, check_seconds
from ubpx.core.clients import Client, check_priority
from ubpx.core.coordinator import Coordinator
from ubpx.core.deadlines import DEADLINE_S
from ubpx.core.desk import STARTER, TargetDesk
from ubpx.core.holds import Hold
from ubpx.core.loop import TracerThread
from ubpx.core.plugins import Plugins
from ubpx.core.ports import Memory, Refusal, Tracer
from ubpx.core.probepoints import Probepoint
from ubpx.core.responsiveness import SWITCH_INTERVAL_S
from ubpx.core.spaces import Healed, TracedProcess
from ubpx.core.values import Follow, Place, ProcessId, SlotUse, ThreadId, TracerPost
from ubpx.exits import exit_status
from ubpx.posting import chosen_placement, chosen_urgency

if TYPE_CHECKING:
    from pluggy import PluginManager

UrgencyPolicy = Literal["raised", "usual"]
PlacementPolicy = Literal["follow", "free"]
SlotPolicy = Literal["auto", "none"]
FollowPolicy = Literal["none", "fork", "exec", "all"]


def attach(
    pid: int,
    *,
    plugins: Sequence[str] = (),
    slots: SlotPolicy = "auto",
    follow: FollowPolicy = "exec",
    deadline: float = DEADLINE_S,
    host: "PluginManager | None" = None,
    join: bool = False,
) -> "Target":
    """Trace a running process, in a session of its own; the program runs on.

    ``plugins`` names client plugins to activate; ``slots="none"`` forbids out-of-line slots; ``follow`` says whom
    the target's clients go along with: "exec" (the process over its execs), "fork" (its children, but nobody over
    an exec), "all" (both) or "none" (neither); see ``Target.children``.
    ``deadline`` is how long a handler may run, in seconds; ``host`` is the plugin manager of an application
    whose plugins may be activated beside the installed ones. With ``join`` a process that a broker traces is used
    by way of that broker, whose ``slots``, ``follow`` and ``deadline`` count.
    Raises NoSuchProcess, KernelThread, AlreadyTraced, PermissionRefused, TargetGone, NoTracer,
    PluginFailed, UsageError; the process is then as it was.
    """
    check_flags(join=join)
    session = Session(deadline=deadline, host=host)
    try:
        return _alone(session, lambda session: session.attach(pid, plugins=plugins, slots=slots, follow=follow))
    except AlreadyTraced as refusal:
        if not join or refusal.broker is None:
            raise
        target: Target = connect_by(
            session._plugins, plugins, address=refusal.broker, pid=pid, slots=slots, read_only=False, follow=follow
        )
        return target


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    kill_on_exit: bool = False,
    plugins: Sequence[str] = (),
    slots: SlotPolicy = "auto",
    follow: FollowPolicy = "exec",
    deadline: float = DEADLINE_S,
    host: "PluginManager | None" = None,
) -> "Target":
    """Start a program, in a session of its own; it stands at its entry point, its libraries mapped.

    It starts at the first ``target.resume()`` or ``target.wait()``. ``env`` to ``stderr`` are
    ``subprocess.Popen``'s; with ``kill_on_exit`` leaving the ``with`` kills it. The others are ``attach``'s.
    Raises UsageError if it cannot be started, NoTracer, PluginFailed.
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return _alone(
        Session(deadline=deadline, host=host),
        lambda session: session.spawn(
            argv, env=env, cwd=cwd, kill_on_exit=kill_on_exit, plugins=plugins, slots=slots, follow=follow, **streams
        ),
    )


def connect(
    address: "str | os.PathLike[str] | int",
    *,
    pid: int | None = None,
    plugins: Sequence[str] = (),
    slots: SlotPolicy = "auto",
    follow: FollowPolicy = "exec",
    read_only: bool = False,
    host: "PluginManager | None" = None,
) -> "Target":
    """Use a target of a broker's; what this gives has the face of what ``attach`` gives, and detaching leaves it to
    the others.

    ``address`` is the path of the broker's socket, or the pid of a process that some broker here traces. With a path
    ``pid`` says which process, one that the broker attaches to then, with ``slots`` and ``follow``, if it has not; it
    may be left out where the broker has just one. Hits of followed children come to the leases of this target. With
    ``read_only`` nothing of the program can be changed. ``plugins`` and ``host`` are ``attach``'s: they act here, as
    clients of the broker.
    Raises NoBroker, BrokerGone, PermissionRefused, UsageError, PluginFailed, and what ``attach`` raises.
    """
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    if not isinstance(address, str):
        check_pid(address)
    if pid is not None:
        check_pid(pid)
    _check_slots(slots)
    _checked_follow(follow)
    check_flags(read_only=read_only)
    target: Target = connect_by(
        Plugins(host=host), plugins, address=address, pid=pid, slots=slots, read_only=read_only, follow=follow
    )
    return target


def _check_slots(slots: str) -> None:
    if slots not in ("auto", "none"):
        raise UsageError(f"slots={slots!r}; choose 'auto' or 'none'")


def _checked_follow(follow: str) -> Follow:
    try:
        return Follow(follow)
    except ValueError:
        raise UsageError(f"follow={follow!r}; choose {', '.join(map(repr, map(str, Follow)))}") from None


def _alone(session: "Session", make: Callable[["Session"], "Target"]) -> "Target":
    session._ends_with_target = True
    try:
        return make(session)
    except BaseException:
        session.close()
        raise


class Session:
    """Several targets under one tracer thread. Leaving the ``with`` detaches from all of them.

    ``deadline`` is how long a handler may run, in seconds. ``switch_interval`` is the interpreter's (see
    sys.setswitchinterval) while probes are armed, in seconds, so that a hit need not wait long for a Python
    thread of yours that computes; None leaves it alone. ``jumps``: whether places that threads come by often get jumps
    instead of traps, for which all threads of the program are stopped for a moment. ``urgency`` "raised" has the tracer
    thread go before threads of the usual priority, where that is permitted, "usual" not; ``placement`` "follow" has it
    keep to the processor of the thread that stops most often, while stops are many and that helps, "free" not. Left
    out, the environment decides (``UBPX_URGENCY``, ``UBPX_PLACEMENT``), else "raised" and "follow". ``host`` is the
    plugin manager of an application whose plugins may be activated beside the installed ones.
    """

    def __init__(
        self,
        *,
        deadline: float = DEADLINE_S,
        switch_interval: float | None = SWITCH_INTERVAL_S,
        jumps: bool = True,
        urgency: UrgencyPolicy | None = None,
        placement: PlacementPolicy | None = None,
        host: "PluginManager | None" = None,
    ) -> None:
        check_duration("deadline", deadline)
        post = chosen_urgency(urgency), chosen_placement(placement)
        if switch_interval is not None:
            check_duration("switch_interval", switch_interval)
        self._plugins: Final = Plugins(host=host)
        tracer: Tracer | None = self._plugins.ask("ubpx_open_tracer")
        if tracer is None:
            raise NoTracer
        self._tracer: Final = tracer
        coordinator = Coordinator(tracer)
        coordinator.reception.watchdog.deadline_s = deadline
        coordinator.jumps.enabled = jumps
        self._loop: Final = TracerThread(tracer, coordinator)
        self._loop.responsiveness.interval_s = switch_interval
        self._loop.run(lambda: tracer.take_post(*post))
        self._targets: Final[list[Target]] = []
        self._closed = self._closing = False
        """``_closing``: no child is followed any more."""
        self._ends_with_target = False
        """Whether it was made for one target."""
        self._maker: Final = os.getpid()
        atexit.register(self.close)

    def attach(
        self,
        pid: int,
        *,
        plugins: Sequence[str] = (),
        slots: SlotPolicy = "auto",
        follow: FollowPolicy = "exec",
    ) -> "Target":
        """As ``ubpx.attach``, in this session."""
        check_pid(pid)
        whom = _checked_follow(follow)
        active = self._activate(plugins, slots)
        target = Target(self, None, kill_on_exit=False)
        desk = target._desk

        def job() -> None:
            coordinator = self._loop.coordinator
            desk.process = coordinator.attach(ProcessId(pid), desk, slots_allowed=slots == "auto", follow=whom)
            for plugin in active:
                desk.activate(plugin)

        try:
            self._loop.run(job)
        except AlreadyTraced as refusal:
            raise naming_broker(refusal, self._plugins) from refusal
        self._targets.append(target)
        return target

    def spawn(
        self,
        argv: Sequence[str],
        *,
        kill_on_exit: bool = False,
        plugins: Sequence[str] = (),
        slots: SlotPolicy = "auto",
        follow: FollowPolicy = "exec",
        **popen_options: Any,
    ) -> "Target":
        """As ``ubpx.spawn``, in this session."""
        check_flags(kill_on_exit=kill_on_exit)
        whom = _checked_follow(follow)
        active = self._activate(plugins, slots)
        launch = self._tracer.launch(argv, popen_options)
        if launch.pid is None:
            launch.finish()
        target = Target(self, None, kill_on_exit=kill_on_exit)
        desk, pid = target._desk, ProcessId(launch.pid or 0)
        desk.starting = True

        def job() -> None:
            coordinator = self._loop.coordinator
            process = desk.process = coordinator.attach(pid, desk, slots_allowed=slots == "auto")
            launch.go()
            coordinator.run_until(lambda: not desk.starting or process.ended.is_set())
            process.follow = whom  # not before: it has come by an exec itself
            if not process.ended.is_set():
                for plugin in active:
                    desk.activate(plugin)

        try:
            self._loop.run(job)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            launch.go()
            launch.finish().wait()
            raise
        target._popen = launch.finish()
        self._targets.append(target)
        failure = desk.process.failure if desk.process else None
        if failure is not None:
            target._popen.kill()
            target._popen.wait()
            raise failure
        return target

    def _activate(self, names: Sequence[str], slots: str) -> list[Any]:
        if self._closed:
            raise UsageError("the session is closed; make another")
        _check_slots(slots)
        check_names("plugins", names)
        return [self._plugins.activate(name) for name in names]

    def _resolve(self, spec: str | int, process: TracedProcess) -> Place:
        place: Place | None = self._plugins.ask("ubpx_resolve_spec", spec=spec, process=process)
        if place is None:
            raise UnknownSymbol(str(spec), ())
        return place

    def _resolve_many(self, specs: str | Sequence[str | int], process: TracedProcess) -> Sequence[Place | Refusal]:
        answers: Sequence[Place | Refusal] | None = self._plugins.ask("ubpx_resolve_many", specs=specs, process=process)
        if answers is None:
            raise UnknownSymbol(str(specs), ())
        return answers

    def _find_loader_stop(self, process: TracedProcess) -> Place | None:
        place: Place | None = self._plugins.ask("ubpx_find_loader_stop", process=process)
        return place

    @property
    def post(self) -> TracerPost:
        """How the tracer thread runs now: its priority, and the processor that it keeps to."""
        return self._tracer.post

    @property
    def targets(self) -> tuple["Target", ...]:
        """Those that are attached, and those of followed children that live."""
        return tuple(self._targets)

    def close(self) -> None:
        """Detach from every target and end the tracer thread; from a handler or hook: after it. Again: does nothing."""
        if self._closed or os.getpid() != self._maker:  # a forked copy of the program has no tracer thread
            return
        self._later_in_tracer_thread(self._end, self.targets)

    def _later_in_tracer_thread(self, end: Callable[[], None], ending: "Sequence[Target]") -> None:
        """Now; in the tracer thread, once the event is over that is being handled: it is about a thread of ours."""
        if not self._loop.is_current:
            end()
            return
        reception = self._loop.coordinator.reception
        if reception.serving is None:
            self._loop.post(end)
        else:  # ends the tracer's wait too: else the handler would run again before the loop gets to its jobs
            reception.after_hit.append(lambda: self._end_soon(end, ending))

    def _end_soon(self, end: Callable[[], None], ending: "Sequence[Target]") -> None:
        """Between two events; until then nothing of what ends may come to a handler again."""
        coordinator = self._loop.coordinator
        for target in ending:
            if not target._process.ended.is_set():
                coordinator.keeper.take_hold(STARTER, target._process, None)
        self._loop.post(end)

    def _end(self) -> None:
        if self._closed:
            return
        self._closing = True
        while self._targets:  # a child may have come meanwhile
            self._targets[0]._leave()
        self._closed = True
        self._loop.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Target:
    """One traced process. Leaving the ``with`` detaches, and the program lives on unharmed."""

    def __init__(
        self,
        session: Session,
        popen: "subprocess.Popen[Any] | None",
        *,
        kill_on_exit: bool,
        parent: "Target | None" = None,
    ) -> None:
        self._session: Final = session
        self._parent: Final = parent
        """Whose child it is, if it was followed."""
        self._desk: Final = TargetDesk(
            session._loop,
            session._resolve,
            session._resolve_many,
            self,
            find_loader_stop=session._find_loader_stop,
            kin=_Family(self, session),
        )
        self._popen = popen
        self._kill_on_exit: Final = kill_on_exit
        self._detached = False

    @property
    def _process(self) -> TracedProcess:
        process = self._desk.process
        if process is None:
            raise InternalError("a target is made by attach or spawn, and neither gave it a process")
        return process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def children(self) -> "tuple[Target, ...]":
        """Those of its children that were followed and live; each is a target by itself, of this target's session.

        A followed child (``follow="fork"`` or ``"all"``) has clients of the same names as this target had when it was
        made, with leases and handlers like theirs. It stays when this target is left; it goes with the session.
        """
        return tuple(each for each in self.family if each._parent is self)

    @property
    def family(self) -> "tuple[Target, ...]":
        """Its followed children that live, and theirs, those too whose own parent has ended."""
        followed = (each for each in self._session.targets if self in each._ancestors())
        return tuple(each for each in followed if not each._process.ended.is_set())

    def _ancestors(self) -> "Iterator[Target]":
        parent = self._parent
        while parent is not None:
            yield parent
            parent = parent._parent

    @property
    def architecture(self) -> str:
        """What its present program is made for: ``x86_64`` or ``i386``. An exec may change it."""
        return self._process.space.architecture.name

    @property
    def stops(self) -> int:
        """How often threads of the process have stopped for the tracer so far."""
        return self._process.stops

    @property
    def slots(self) -> SlotUse:
        """How many out-of-line slots of the program are leased, retired, and free."""
        return self._process.space.slots.use

    @property
    def memory(self) -> Memory:
        """The program's memory; no trap of ours is ever seen in it."""
        return self._process.memory

    @property
    def healed(self) -> Healed | None:
        """What a tracer that was killed had left in the program, and attaching has taken out; None: nothing."""
        process = self._desk.process
        return None if process is None else process.healed

    @property
    def popen(self) -> "subprocess.Popen[Any] | None":
        """The Popen of a spawned program, for its pipes; None for an attached one."""
        return self._popen

    def client(self, name: str, *, priority: int = 0, hooks: object = None) -> Client:
        """A new client; ``hooks`` is an object whose hooks (see ubpx.hookspecs) are called as a plugin's would be.

        Raises UsageError if a living client has the name, PluginFailed for hooks that are not as specified,
        TargetGone.
        """
        self._check_attached()
        check_priority(priority)
        return self._desk.join(name, priority, hooks)

    def clients(self) -> tuple[Client, ...]:
        """The living ones, in the order of joining."""
        return self._desk.roster.living()

    def probepoints(self) -> tuple[Probepoint, ...]:
        """All probepoints that anybody leases, by address."""
        return self._desk.probepoints()

    def threads(self) -> tuple[ThreadId, ...]:
        """The tids of the process's threads; none once it has ended."""
        self._check_attached()
        return tuple(thread.tid for thread in self._process.living())

    def registers(self, thread: int) -> Mapping[str, int]:
        """The registers of a stopped thread, by name, as the program would see them.

        Raises UsageError if it runs or is not the target's, TargetGone.
        """
        self._check_attached()
        return self._desk.registers(ThreadId(thread))

    def holds(self) -> tuple[Hold, ...]:
        """Who keeps what stopped; what a handler asked for before this call is in it."""
        self._check_attached()
        if self._process.ended.is_set():
            return ()
        loop = self._session._loop
        return loop.run(lambda: loop.coordinator.keeper.holds.in_process(self._process.pid))

    def resume(self) -> None:
        """Start a spawned program. Once it runs: does nothing."""
        self._check_attached()
        hold = self._desk.start_hold
        if hold is not None and not hold.released and not self._process.ended.is_set():
            self._session._loop.run(hold.release)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the process has ended: its exit status, or minus the signal that killed it.

        None if ``timeout`` seconds were not enough. Raises UsageError from a handler, and after a detach.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if self._session._loop.is_current:
            raise UsageError("target.wait() from a handler would wait for itself; return a verdict instead")
        self._check_attached()
        self.resume()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._process.ended.wait(timeout):
            return None
        if self._process.failure is not None:
            raise self._process.failure
        self._check_attached()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return exit_status(self._process, self._popen, left)

    def detach(self) -> None:
        """Leave the process as if nobody had been there; from a handler or hook: after it. Again: does nothing."""
        if not self._detached:
            self._session._later_in_tracer_thread(self._end, (self,))

    def _end(self) -> None:
        self._leave()
        if self._session._ends_with_target and self._parent is None:
            self._session._end()

    def _leave(self) -> None:
        if self._detached:
            return
        if self._desk.process is not None and not self._process.ended.is_set():
            self._detach_process()
        self._detached = True
        with contextlib.suppress(ValueError):
            self._session._targets.remove(self)
        if self._popen is not None and self._popen.poll() is None:
            threading.Thread(target=self._popen.wait, name=f"ubpx-reaper-{self.pid}", daemon=True).start()

    def _detach_process(self) -> None:
        loop = self._session._loop
        try:
            loop.run(lambda: loop.coordinator.detach(self._process))
        except UsageError:
            if not self._process.ended.is_set():  # else a handler's detach was quicker, and the session is closed
                raise

    def _check_attached(self) -> None:
        if self._detached or (self._process.ended.is_set() and self._process.status is None):
            if self._process.failure is not None:
                raise self._process.failure
            raise UsageError(f"target {self._process.pid} is detached; attach again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kill_on_exit and self._popen is not None and not self._detached:
            self._popen.kill()
            self._process.ended.wait()
            self._popen.wait()
        self.detach()

    def __repr__(self) -> str:
        return f"<target {self.pid}>"


class _Family:
    """Implements ``heritage.Kin`` for a target, in the tracer thread."""

    def __init__(self, target: Target, session: Session) -> None:
        self._target: Final = target
        self._session: Final = session

    def bear(self) -> TargetDesk | None:
        """Of a child."""
        if self._session._closing:
            return None
        return Target(self._session, None, kill_on_exit=False, parent=self._target)._desk

    def born(self) -> None:
        """It is one of the session's from now on."""
        self._session._targets.append(self._target)

    def gone(self) -> None:
        """Whoever has it can still ask how it ended."""
        with contextlib.suppress(ValueError):
            self._session._targets.remove(self._target)


__all__ = ["Session", "Target", "attach", "connect", "spawn"]
