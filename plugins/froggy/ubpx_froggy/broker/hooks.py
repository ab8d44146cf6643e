"""The hooks of a remote client, as its stand-in in the broker implements them: each asks the peer.

They are written out, because a hook's parameters are found by their names.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from ubpx import UsageError, Verdict
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.hookspecs import hookimpl

CallHook = Callable[..., Verdict | None]
"""Called with the hook's name, and its arguments without client and process, by keyword."""


class _AllHooks:
    """Every client hook."""

    def __init__(self, call: CallHook) -> None:
        self._call: Final = call

    @hookimpl
    def ubpx_process_attached(self) -> None:
        """A target is attached, and the plugin has a client on it."""
        self._call("ubpx_process_attached")

    @hookimpl
    def ubpx_process_detached(self) -> None:
        """The target is about to be left; last chance to read ``lease.hits`` or memory."""
        self._call("ubpx_process_detached")

    @hookimpl
    def ubpx_process_exited(self, status: int) -> None:
        """The process has ended."""
        self._call("ubpx_process_exited", status=status)

    @hookimpl
    def ubpx_process_execed(self, path: str) -> None:
        """The process has replaced its program; its old probepoints are gone."""
        self._call("ubpx_process_execed", path=path)

    @hookimpl
    def ubpx_process_forked(self, child: ProcessId) -> None:
        """The process has a child with memory of its own (fork) or shared (vfork, posix_spawn)."""
        self._call("ubpx_process_forked", child=child)

    @hookimpl
    def ubpx_module_loaded(self, path: str, base: VirtAddr) -> None:
        """The program has loaded a file with code."""
        self._call("ubpx_module_loaded", path=path, base=base)

    @hookimpl
    def ubpx_module_unloaded(self, path: str, base: VirtAddr) -> None:
        """The program has unloaded a file with code."""
        self._call("ubpx_module_unloaded", path=path, base=base)

    @hookimpl
    def ubpx_thread_started(self, tid: ThreadId) -> None:
        """The process has a new thread."""
        self._call("ubpx_thread_started", tid=tid)

    @hookimpl
    def ubpx_thread_exited(self, tid: ThreadId, status: int) -> None:
        """A thread is about to exit."""
        self._call("ubpx_thread_exited", tid=tid, status=status)

    @hookimpl
    def ubpx_thread_stepped(self, tid: ThreadId, address: VirtAddr) -> None:
        """A thread has executed the one instruction that a handler's verdict STEP asked for."""
        self._call("ubpx_thread_stepped", tid=tid, address=address)

    @hookimpl
    def ubpx_client_joined(self, name: str) -> None:
        """Another client has joined the target."""
        self._call("ubpx_client_joined", name=name)

    @hookimpl
    def ubpx_client_left(self, name: str) -> None:
        """Another client has left the target."""
        self._call("ubpx_client_left", name=name)

    @hookimpl
    def ubpx_client_quarantined(self, name: str, reason: str, held_s: float) -> None:
        """A client failed too often; its leases and holds were swept."""
        self._call("ubpx_client_quarantined", name=name, reason=reason, held_s=held_s)

    @hookimpl
    def ubpx_probepoint_armed(self, address: VirtAddr) -> None:
        """A probepoint has its first lease, anybody's; its trap stands."""
        self._call("ubpx_probepoint_armed", address=address)

    @hookimpl
    def ubpx_probepoint_disarmed(self, address: VirtAddr) -> None:
        """A probepoint has lost its last lease; the original bytes stand again."""
        self._call("ubpx_probepoint_disarmed", address=address)

    @hookimpl
    def ubpx_probepoint_lost(self, address: VirtAddr, reason: str) -> None:
        """A probepoint is gone without our doing: the program replaced or unmapped what stood there."""
        self._call("ubpx_probepoint_lost", address=address, reason=reason)

    @hookimpl
    def ubpx_collision(self, address: VirtAddr, resource: str, winner: str, loser: str) -> None:
        """Two clients wanted different values of one register at one hit; the earlier handler's stands."""
        self._call("ubpx_collision", address=address, resource=resource, winner=winner, loser=loser)

    @hookimpl
    def ubpx_signal(self, tid: ThreadId, signal: int) -> Verdict | None:
        """A signal is about to be delivered to a thread."""
        return self._call("ubpx_signal", tid=tid, signal=signal)

    @hookimpl
    def ubpx_syscall_entered(self, tid: ThreadId, number: int, name: str, arguments: tuple[int, ...]) -> Verdict | None:
        """A thread is about to make a system call."""
        return self._call("ubpx_syscall_entered", tid=tid, number=number, name=name, arguments=arguments)

    @hookimpl
    def ubpx_syscall_exited(self, tid: ThreadId, number: int, name: str, result: int) -> Verdict | None:
        """A system call of a thread has ended."""
        return self._call("ubpx_syscall_exited", tid=tid, number=number, name=name, result=result)


NAMES: Final = frozenset(name for name in vars(_AllHooks) if name.startswith("ubpx_"))
ATTACHED: Final = "ubpx_process_attached"
STOP_HOOKS: Final = frozenset({"ubpx_signal", "ubpx_syscall_entered", "ubpx_syscall_exited"})


def hooks_object(names: Sequence[str], call: CallHook) -> Any:
    """An object that implements these hooks and no others; raises UsageError for what is no client hook."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no hook of a client; see docs/reference/hooks.md")
    members: dict[str, Any] = {name: vars(_AllHooks)[name] for name in names}
    return type("RemoteHooks", (), {"__init__": _AllHooks.__init__, "for_children": False, **members})(call)
