"""Catch sets: which signals and system calls which client is asked about."""

import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ubpx._errors import UsageError
from ubpx.core.checks import is_int
from ubpx.core.clients import Client
from ubpx.core.herald import Herald, Wanted

_HOOKS: Final = {"signals": ("ubpx_signal",), "syscalls": ("ubpx_syscall_entered", "ubpx_syscall_exited")}
"""The hooks that are called for what a client catches."""


class Catches:
    """Asks those clients of one target that catch something. A client keeps its own sets. Owned by the desk.

    A set has what the client named, numbers or names: what a name's number is can change with an exec.
    """

    def __init__(self, herald: Herald, syscall_numbers: Callable[[str], Mapping[str, int]]) -> None:
        """``syscall_numbers`` answers for an architecture, by its name."""
        self._herald: Final = herald
        self._syscall_numbers: Final = syscall_numbers
        self._tables: Final[dict[str, Mapping[int, str]]] = {}
        """Names of system calls by number, by architecture."""

    def checked(
        self, client: Client, what: str, wanted: Iterable[int | str] | None, architecture: str
    ) -> frozenset[int | str] | None:
        """What ``client`` wants to catch in a program for ``architecture``, None for everything; raises UsageError."""
        hooks = _HOOKS[what]
        if not any(each is client for hook in hooks for _, each in self._herald.having(hook)):
            raise UsageError(f"client {client.name!r} implements no {hooks[0]}, which would be called for these")
        if wanted is None:
            return None
        if isinstance(wanted, str) or not isinstance(wanted, Iterable):
            raise UsageError(f"{wanted!r} is no collection of {what}; give a list, or None for all")
        if what == "signals":
            return frozenset(self._signal(each) for each in wanted)
        return frozenset(self._syscall(each, architecture) for each in wanted)

    def _signal(self, wanted: int | str) -> int:
        if is_int(wanted) and wanted in signal.valid_signals() and wanted != signal.SIGKILL:
            return int(wanted)
        raise UsageError(f"{wanted!r} is no signal that can be caught; give numbers, such as signal.SIGUSR1")

    def _syscall(self, wanted: int | str, architecture: str) -> int | str:
        known = self._syscall_numbers(architecture)
        if (isinstance(wanted, str) and wanted in known) or (is_int(wanted) and int(wanted) >= 0):
            return wanted
        raise UsageError(f"{wanted!r} is no system call of {architecture}; give numbers, or names such as 'openat'")

    def _name(self, number: int, architecture: str) -> str:
        table = self._tables.get(architecture)
        if table is None:
            known = self._syscall_numbers(architecture)
            table = self._tables[architecture] = {number: name for name, number in known.items()}
        return table.get(number, "")

    def any_syscalls(self) -> bool:
        """Whether any client is to be asked about any system call."""
        asked = [client for hook in _HOOKS["syscalls"] for _, client in self._herald.having(hook)]
        return any(client.caught.get("syscalls", True) for client in asked)

    def ask_signal(self, number: int, **arguments: Any) -> Wanted:
        """What clients want to happen before a signal is delivered."""
        only = lambda client: _catches(client, "signals", number)  # noqa: E731
        return self._herald.ask("ubpx_signal", only=only, signal=number, **arguments)

    def ask_syscall(self, event: str, number: int, architecture: str, **arguments: Any) -> Wanted:
        """What clients want to happen before or after (``event``: entered, exited) a system call."""
        name = self._name(number, architecture)
        only = lambda client: _catches(client, "syscalls", number, name)  # noqa: E731
        return self._herald.ask(f"ubpx_syscall_{event}", only=only, number=number, name=name, **arguments)


def _catches(client: Client, what: str, number: int, name: str = "") -> bool:
    caught = client.caught.get(what)
    return caught is None or number in caught or (name != "" and name in caught)
