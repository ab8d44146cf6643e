"""Catch sets: which signals and system calls which client is asked about."""

import signal
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ubpx._errors import UsageError
from ubpx.core.checks import is_int
from ubpx.core.clients import Client
from ubpx.core.herald import Herald, Wanted

_HOOKS: Final = {"signals": ("ubpx_signal",), "syscalls": ("ubpx_syscall_entered", "ubpx_syscall_exited")}
"""The hooks that are called for what a client catches."""


class Catches:
    """Asks those clients of one target that catch something. A client keeps its own sets. Owned by the desk."""

    def __init__(self, herald: Herald, syscall_numbers: Mapping[str, int]) -> None:
        self._herald: Final = herald
        self._numbers: Final = syscall_numbers
        self._names: Final = {number: name for name, number in syscall_numbers.items()}

    def checked(self, client: Client, what: str, wanted: Iterable[int | str] | None) -> frozenset[int] | None:
        """The numbers of what ``client`` wants to catch, None for everything; raises UsageError."""
        hooks = _HOOKS[what]
        if not any(each is client for hook in hooks for _, each in self._herald.having(hook)):
            raise UsageError(f"client {client.name!r} implements no {hooks[0]}, which would be called for these")
        if wanted is None:
            return None
        if isinstance(wanted, str) or not isinstance(wanted, Iterable):
            raise UsageError(f"{wanted!r} is no collection of {what}; give a list, or None for all")
        number = self._signal if what == "signals" else self._syscall
        return frozenset(number(each) for each in wanted)

    def _signal(self, wanted: int | str) -> int:
        if is_int(wanted) and wanted in signal.valid_signals() and wanted != signal.SIGKILL:
            return int(wanted)
        raise UsageError(f"{wanted!r} is no signal that can be caught; give numbers, such as signal.SIGUSR1")

    def _syscall(self, wanted: int | str) -> int:
        if isinstance(wanted, str):
            if wanted in self._numbers:
                return self._numbers[wanted]
        elif is_int(wanted) and wanted >= 0:
            return wanted
        raise UsageError(f"{wanted!r} is no system call; give numbers, or names such as 'openat'")

    def any_syscalls(self) -> bool:
        """Whether any client is to be asked about any system call."""
        asked = [client for hook in _HOOKS["syscalls"] for _, client in self._herald.having(hook)]
        return any(client.caught.get("syscalls", True) for client in asked)

    def ask_signal(self, number: int, **arguments: Any) -> Wanted:
        """What clients want to happen before a signal is delivered."""
        only = lambda client: _catches(client, "signals", number)  # noqa: E731
        return self._herald.ask("ubpx_signal", only=only, signal=number, **arguments)

    def ask_syscall(self, event: str, number: int, **arguments: Any) -> Wanted:
        """What clients want to happen before or after (``event``: entered, exited) a system call."""
        only = lambda client: _catches(client, "syscalls", number)  # noqa: E731
        name = self._names.get(number, "")
        return self._herald.ask(f"ubpx_syscall_{event}", only=only, number=number, name=name, **arguments)


def _catches(client: Client, what: str, number: int) -> bool:
    caught = client.caught.get(what)
    return caught is None or number in caught
