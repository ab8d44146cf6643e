"""Named points of a tracer: every request, wait and access to memory, each by where it is made.

Nothing of it is in the tracer itself: its modules' own names for these primitives are exchanged, in a process
that is there to be killed or to see a call fail.
"""

import os
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, Final

_PRIMITIVES: Final = frozenset({
    "quick", "swift", "request", "waitid", "waitpid", "peek_user", "tgkill", "syscall_info", "event_message",
    "peek", "reap", "_writev", "_quick_writev", "_quick_readv",
})  # fmt: skip
"""Names under which the tracer's modules call the kernel."""
_FILE_CALLS: Final = frozenset({"pread", "pwrite", "open"})
"""Of ``os``, in the module of that deals with memory."""
_REQUESTS: Final = frozenset({"quick", "swift", "request"})

Passing = Callable[[str], None]
"""Told the name of each point right before what it names is done."""


class _Os:
    """The module ``os``, some of whose calls are points."""

    def __init__(self, passing: Passing) -> None:
        for name in _FILE_CALLS:
            setattr(self, name, _point(getattr(os, name), name, {}, passing))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def watch(package: str, passing: Passing) -> None:
    """Have ``passing`` called at every point of the package's modules, from now on and for good."""
    modules = [each for name, each in tuple(sys.modules.items()) if name.startswith(f"{package}.")]
    names = _request_names(modules)
    for module in modules:
        for name in _PRIMITIVES & set(vars(module)):
            setattr(module, name, _point(getattr(module, name), name, names, passing))
        if module.__name__.endswith(".machine_code"):  # then all is done by single calls, each of them a point
            setattr(module, "_mprotect", _refuse)  # noqa: B010 - to mypy it is no attribute
        if module.__name__.endswith(".memory"):
            setattr(module, "os", _Os(passing))  # noqa: B010 - to mypy it is no attribute


def _refuse(*_: object) -> int:
    """As a policy of the system's does that lets no process have code of its own."""
    return -1


def _request_names(modules: list[ModuleType]) -> dict[int, str]:
    """The constants of ptrace.h that the modules know."""
    others = "PTRACE_O_", "PTRACE_EVENT_"
    return {
        value: name
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("PTRACE_") and not name.startswith(others)
    }


def _point(call: Callable[..., Any], name: str, names: dict[int, str], passing: Passing) -> Callable[..., Any]:
    def at_point(*arguments: Any, **options: Any) -> Any:
        what = name
        if name in _REQUESTS and arguments:
            what = names.get(arguments[0], name)
        passing(f"{_where(sys._getframe(1))}: {what}")  # noqa: SLF001 - there is no other way to ask
        return call(*arguments, **options)

    return at_point


def _where(frame: FrameType) -> str:
    return frame.f_code.co_qualname
