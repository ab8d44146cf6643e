"""Every hook of ubpx: what a plugin may implement.

Three kinds. *Notify* hooks tell a client what happens to its target, and *stop* hooks ask it what is to
happen next to a thread that has stopped. Both are called for one client at a time: for plugins that were
activated by name (``ubpx.attach(pid, plugins=[...])``) and for clients that brought hooks of their own
(``target.client(name, hooks=...)``). *Ask* hooks extend ubpx itself (tracers, resolvers, commands); plugins
that implement them always load. Any hook may be implemented with any subset of its arguments.

Followed children have clients of the same names, and their hooks are called for them too (``client.target`` says
which). An object that has ``for_children = False`` is called for its own target alone.

Isolation: an exception in a notify or stop hook is logged and counts, like one in a handler, against this
client alone; three in a row quarantine it. Hits do not travel through hooks: lease a probepoint
and give a handler.

A long page, and one all the same: plugin authors read it whole, and it is nearly all docstrings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

from ubpx.core.ports import ClientApi, ProcessView, Refusal, Sink, Tracer
from ubpx.core.values import Diagnosis, Finding, Place, ProcessId, ThreadId, VirtAddr

if TYPE_CHECKING:
    import click

    from ubpx.core.events import Verdict

hookspec = pluggy.HookspecMarker("ubpx")
hookimpl = pluggy.HookimplMarker("ubpx")
"""Mark an implementation of a hook with this."""


class NotifyHooks:
    """What happens to a target, told to client plugins."""

    @hookspec
    def ubpx_process_attached(self, client: ClientApi, process: ProcessView) -> None:
        """A target is attached, and the plugin has a client on it.

        When: once per target, before ``ubpx.attach`` or ``ubpx.spawn`` returns. A followed child is a target: of it
            before its first instruction or, if it comes by an exec, at the new program's entry point. What is asked for
            in this hook is not inherited by followed children, since it is asked for again in each.
        Where: in the tracer thread; the program runs on (after ``spawn`` it stands at its entry point, and so does a
            followed child at its beginning).
        Arguments: ``client`` is the plugin's own, named after it, alive until it closes or the target
            is left; ``process`` is valid as long.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_process_detached(self, client: ClientApi, process: ProcessView) -> None:
        """The target is about to be left; last chance to read ``lease.hits`` or memory.

        When: before the first trap is taken out.
        Where: in the tracer thread; all threads of the process are stopped.
        Arguments: ``client`` closes when the hook returns; ``process`` is valid until then.
        Returns: nothing.
        Raises: an exception is logged; the detach goes on.
        Since: 0.1.
        """

    @hookspec
    def ubpx_process_exited(self, client: ClientApi, process: ProcessView, status: int) -> None:
        """The process has ended.

        When: after its last thread has gone.
        Where: in the tracer thread; nothing is left to stop, and no memory to read.
        Arguments: ``status`` is the exit status, or the negative number of the signal that killed it.
        Returns: nothing.
        Raises: an exception is logged.
        Since: 0.1.
        """

    @hookspec
    def ubpx_process_execed(self, client: ClientApi, process: ProcessView, path: str) -> None:
        """The process has replaced its program; its old probepoints are gone.

        When: at the exec event, before the new program runs one instruction; leases given by a spec
            are PENDING and arm again at the new program's entry point.
        Where: in the tracer thread; the whole process is stopped.
        Arguments: ``path`` is the new executable as the kernel names it, in the process's mount
            namespace; ``process`` is valid until the hook returns.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_process_forked(self, client: ClientApi, process: ProcessView, child: ProcessId) -> None:
        """The process has a child with memory of its own (fork) or shared (vfork, posix_spawn).

        When: at the child's first stop, before its first instruction; if it is followed, after its own clients were
            told of it by ``ubpx_process_attached``.
        Where: in the tracer thread; the child is stopped, the other threads run.
        Arguments: ``process`` is the parent; ``child`` the new pid. No probe of ours acts in it, unless it is followed:
            then it is one of ``client.target.children``, and has a client of this one's name.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_module_loaded(self, client: ClientApi, process: ProcessView, path: str, base: VirtAddr) -> None:
        """The program has loaded a file with code.

        When: when its dynamic loader has mapped it, before it is relocated and initialised; and for every file of a
            new program, at its entry point after an exec. What was loaded before the client came is in
            ``process.mappings()``. Files that a program maps by itself are not noticed.
        Where: in the tracer thread; the loading thread is stopped, the others run.
        Arguments: ``path`` as in /proc/PID/maps; ``base`` is the address of the file's first byte.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_module_unloaded(self, client: ClientApi, process: ProcessView, path: str, base: VirtAddr) -> None:
        """The program has unloaded a file with code.

        When: when its dynamic loader has unmapped it; leases in it that were given by a spec are PENDING, those
            given by an address LOST. Not for the files of a program that an exec replaces.
        Where: in the tracer thread; the unloading thread is stopped, the others run.
        Arguments: ``path`` and ``base`` as they were when it was loaded.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_thread_started(self, client: ClientApi, process: ProcessView, tid: ThreadId) -> None:
        """The process has a new thread.

        When: before the thread runs one instruction.
        Where: in the tracer thread; the new thread is stopped, the others run.
        Arguments: ``tid`` as the tracer numbers it.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_thread_exited(self, client: ClientApi, process: ProcessView, tid: ThreadId, status: int) -> None:
        """A thread is about to exit.

        When: at its exit event; its memory and registers are still there.
        Where: in the tracer thread; this thread is stopped, the others run.
        Arguments: ``tid`` as the tracer numbers it; ``status`` is what the thread exits with, or the negative
            number of the signal that kills it (all threads that an exec replaces are killed).
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_thread_stepped(self, client: ClientApi, process: ProcessView, tid: ThreadId, address: VirtAddr) -> None:
        """A thread has executed the one instruction that a handler's verdict STEP asked for.

        When: right after that instruction.
        Where: in the tracer thread; this thread is stopped, the others run.
        Arguments: ``address`` is the next instruction's, in the program's own code.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_client_joined(self, client: ClientApi, name: str) -> None:
        """Another client has joined the target.

        When: before that client's first request.
        Where: in the tracer thread; nothing is stopped for it.
        Arguments: ``name`` is the newcomer's.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_client_left(self, client: ClientApi, name: str) -> None:
        """Another client has left the target.

        When: after its leases and holds were given back.
        Where: in the tracer thread; nothing is stopped for it.
        Arguments: ``name`` is that of the one who left.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_client_quarantined(self, client: ClientApi, name: str, reason: str, held_s: float) -> None:
        """A client failed too often; its leases and holds were swept.

        When: after the hit at which it failed once too often.
        Where: in the tracer thread; nothing is stopped for it.
        Arguments: ``name`` is the failed client's (it may be this one); ``reason`` is for people;
            ``held_s`` is for how long its last handler ran, in seconds, up to a quarter of the deadline
            too long; 0 if it was over before anybody looked.
        Returns: nothing.
        Raises: an exception is logged.
        Since: 0.1.
        """

    @hookspec
    def ubpx_probepoint_armed(self, client: ClientApi, address: VirtAddr) -> None:
        """A probepoint has its first lease, anybody's; its trap stands.

        When: right after the trap was written. Not for probepoints that ``probe_many`` armed, there may be a
            million of them; and not for those that a followed child has from its parent.
        Where: in the tracer thread; nothing is stopped for it.
        Arguments: ``address`` in the target.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_probepoint_disarmed(self, client: ClientApi, address: VirtAddr) -> None:
        """A probepoint has lost its last lease; the original bytes stand again.

        When: right after the bytes were put back, if ``ubpx_probepoint_armed`` was called for it.
        Where: in the tracer thread; nothing is stopped for it.
        Arguments: ``address`` in the target.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_probepoint_lost(self, client: ClientApi, address: VirtAddr, reason: str) -> None:
        """A probepoint is gone without our doing: the program replaced or unmapped what stood there.

        When: as soon as we notice: at the next arrival where the program may rewrite its code at any moment, else when
            it is to be disarmed, when modules come and go, or a second later. Where a program or a module is gone, only
            for those for which ``ubpx_probepoint_armed`` was called: ``ubpx_process_execed`` and
            ``ubpx_module_unloaded`` speak for all.
        Where: in the tracer thread.
        Arguments: ``address`` in the target; ``reason`` is for people. Its leases are LOST or PENDING.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_collision(self, client: ClientApi, address: VirtAddr, resource: str, winner: str, loser: str) -> None:
        """Two clients wanted different values of one register at one hit; the earlier handler's stands.

        When: after all handlers of the hit have run. Only the two clients concerned are told.
        Where: in the tracer thread; the thread that arrived is stopped.
        Arguments: ``resource`` is the register's name; ``winner`` and ``loser`` are clients' names.
        Returns: nothing.
        Raises: an exception counts against this client alone (see "isolation").
        Since: 0.1.
        """


class StopHooks:
    """A thread has stopped for something; each client says what happens to it next."""

    @hookspec
    def ubpx_signal(self, client: ClientApi, process: ProcessView, tid: ThreadId, signal: int) -> "Verdict | None":
        """A signal is about to be delivered to a thread.

        When: before the program sees it, SIGKILL excepted; a signal that arrives while an instruction is being
            stepped over is told after that. Only signals in the client's catch set, which is all of them
            until it calls ``client.catch_signals``.
        Where: in the tracer thread; this thread is stopped, the others run.
        Arguments: ``tid`` as the tracer numbers it; ``signal`` is its number.
        Returns: a Verdict, or None to abstain; the least permissive of all clients' wins. RESUME delivers it,
            STEP delivers it and runs one instruction (a handler's first), HOLD keeps it until the hold is
            released, where ``hold.release(signal=...)`` may exchange it.
        Raises: an exception, or anything else returned, counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_syscall_entered(
        self,
        client: ClientApi,
        process: ProcessView,
        tid: ThreadId,
        number: int,
        name: str,
        arguments: tuple[int, ...],
    ) -> "Verdict | None":
        """A thread is about to make a system call.

        When: before the kernel looks at it. Only calls in the client's catch set, which is all of them until it
            calls ``client.catch_syscalls``; a client that implements neither this nor
            ``ubpx_syscall_exited`` costs the program nothing here.
        Where: in the tracer thread; this thread is stopped, the others run.
        Arguments: ``number`` and ``name`` are the call's, ``name`` is "" for one that the tracer does not know;
            ``arguments`` are six, unsigned: those that it does not take are whatever the registers hold.
        Returns: a Verdict, or None to abstain; the least permissive of all clients' wins.
        Raises: an exception, or anything else returned, counts against this client alone (see "isolation").
        Since: 0.1.
        """

    @hookspec
    def ubpx_syscall_exited(
        self, client: ClientApi, process: ProcessView, tid: ThreadId, number: int, name: str, result: int
    ) -> "Verdict | None":
        """A system call of a thread has ended.

        When: before the thread runs its next instruction; not for a call that does not return.
        Where: in the tracer thread; this thread is stopped, the others run.
        Arguments: ``number`` and ``name`` as at its entry; ``result`` is signed, minus the errno where the call failed.
        Returns: a Verdict, or None to abstain; the least permissive of all clients' wins.
        Raises: an exception, or anything else returned, counts against this client alone (see "isolation").
        Since: 0.1.
        """


class AskHooks:
    """How ubpx itself is extended."""

    @hookspec(firstresult=True)
    def ubpx_open_tracer(self) -> Tracer | None:
        """Make a tracer for a new session.

        When: once per session, before its tracer thread starts.
        Where: in the thread that made the session.
        Returns: a new Tracer, or None to let another plugin answer; the first answer counts.
        Raises: an exception reaches the caller of ``ubpx.attach`` as PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_connect(
        self, address: "str | int", pid: ProcessId | None, slots: str, read_only: bool, follow: str
    ) -> object:
        """Connect to a broker: to the one that listens at a path, or to the one that traces a process.

        When: at ``ubpx.connect``, and at ``ubpx.attach(pid, join=True)`` for a process that a broker traces.
        Where: in the thread that called it.
        Arguments: ``address`` is the path of a socket, or a pid; ``pid`` is the target's, where the address is a
            path: None for the only one that the broker has; ``slots`` and ``follow`` are ``ubpx.attach``'s, for a
            process that the broker attaches to because of this; ``read_only`` gives up the right to change anything.
        Returns: what has the face of ``ubpx.Target``, or None to let another plugin answer; the first answer counts.
        Raises: any error of ubpx's own tree reaches the caller as it is (NoBroker, BrokerGone, PermissionRefused,
            UsageError, and what ``ubpx.attach`` raises); anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_find_broker(self, pid: ProcessId) -> str | None:
        """Say which broker traces a process.

        When: when a process that is to be attached to is traced already.
        Where: in the thread that called ``attach``; nothing is stopped for it.
        Arguments: ``pid`` is the process's.
        Returns: the path of the broker's socket, or None to let another plugin answer; the first answer counts.
        Raises: any error of ubpx's own tree reaches the caller as it is; anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_find_loader_stop(self, process: ProcessView) -> Place | None:
        """Say where a program's dynamic loader comes by when it has mapped or unmapped modules.

        When: when a client first has to know of modules: it implements ``ubpx_module_loaded`` or ``_unloaded``, or
            has a PENDING lease.
        Where: in the tracer thread; the process runs or not, as it did.
        Arguments: ``process`` is valid until the hook returns.
        Returns: the Place of an instruction, or None for a program that loads nothing or to let another plugin
            answer; the first answer counts.
        Raises: an error reaches whoever made it necessary; one that is not of ubpx's own tree becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_resolve_spec(self, spec: str | int, process: ProcessView) -> Place | None:
        """Say where a probe specification, or an address, leads in a process.

        When: at ``client.probe``, and again when a pending lease may arm.
        Where: in the tracer thread; the process runs or not, as it did.
        Arguments: ``spec`` as the client gave it; ``process`` is valid until the hook returns.
        Returns: a Place, or None to let another plugin answer; the first answer counts.
        Raises: any error of ubpx's own tree reaches the caller as it is (UnknownSymbol, AmbiguousSymbol,
            UnknownModule, NotExecutable, UsageError, ...); anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_resolve_many(
        self, specs: "str | Sequence[str | int]", process: ProcessView
    ) -> "Sequence[Place | Refusal] | None":
        """Say where many probe specifications and addresses, or all functions that a glob names, lead in a process.

        When: once at each ``client.probe_many``, and when pending leases may arm.
        Where: in the tracer thread; the process runs or not, as it did.
        Arguments: ``specs`` is one glob (``libc.so.6:mem*``), or what the client listed, each as
            ``ubpx_resolve_spec`` takes it; ``process`` is valid until the hook returns.
        Returns: for a list one answer for each, in its order: a Place, or a Refusal with the error that
            ``ubpx_resolve_spec`` would raise. For a glob one answer for each function, each address once; the name
            of a Place is then a specification that finds it again. Where there may be many, a
            ``ubpx.core.ports.FunctionPlaces`` spares making all of them. Or None to let another plugin answer; the
            first answer counts, so a plugin with a syntax of its own answers None unless all are its own.
        Raises: an error of ubpx's own tree reaches the caller as it is (for a glob: UnknownModule, UnknownSymbol,
            UsageError); anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_diagnose(self, pid: ProcessId | None) -> Diagnosis | None:
        """Say whether a process can be attached to and, if not, why and what to do.

        When: at ``ubpx doctor``.
        Where: in the main thread; nothing is stopped, and nothing may be: it reads, and touches no process.
        Arguments: ``pid`` is the process's, any number; None asks about the machine.
        Returns: a Diagnosis, or None to let another plugin answer; the first answer counts. Of a tracer
            it says what its attaching would.
        Raises: any error of ubpx's own tree ends the command as it is; anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec(firstresult=True)
    def ubpx_diagnose_traced(self, pid: ProcessId) -> "Sequence[Finding] | None":
        """Say what is known of a process that somebody traces on behalf of others.

        When: at ``ubpx doctor -p``, for a process that ``ubpx_find_broker`` finds traced.
        Where: in the main thread; the process is not touched, but its broker may be asked.
        Arguments: ``pid`` is the process's.
        Returns: findings, or None to let another plugin answer; the first answer counts. They are shown behind those
            of ``ubpx_diagnose``, and none should be a REFUSAL.
        Raises: any error of ubpx's own tree ends the command as it is; anything else becomes PluginFailed.
        Since: 0.1.
        """

    @hookspec
    def ubpx_commands(self) -> "Sequence[click.Command] | None":
        """Add commands to ``ubpx``.

        When: at ``ubpx --help``, shell completion, and a command that ubpx itself does not have.
        Where: in the main thread; nothing is traced.
        Returns: click commands with names, or None; those of all plugins are united. A name that is taken, by
            ubpx or by a plugin asked before, is left out with a warning.
        Raises: an exception, or an answer that is none, is logged; this plugin's commands are left out.
        Since: 0.1.
        """

    @hookspec
    def ubpx_sinks(self) -> "Mapping[str, Callable[[], Sink]] | None":
        """Offer output formats for ``ubpx trace --format NAME``.

        When: at ``ubpx trace --format NAME``, where NAME is none of ubpx's own, before anything is started or attached.
        Where: in the main thread; nothing is traced.
        Returns: by name, what makes a Sink, or None; it is called once, for the format asked for. Those
            of all plugins are united; a name that is taken (``text`` and ``json`` are) is left out with a warning.
        Raises: an exception, or an answer that is none, is logged; this plugin's formats are left out.
        Since: 0.1.
        """
