"""The ptrace tracer of ubpx, and ptrace++: an enhanced ptrace as a client of ubpx.

The tracer is found by its entry point. ``Ptrace`` has the face of python-ptrace's ``PtraceDebugger``; a program
written for that runs on it with its imports changed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ptrace.debugger import (
        ChildError,
        DebuggerError,
        NewProcessEvent,
        ProcessError,
        ProcessEvent,
        ProcessExecution,
        ProcessExit,
        ProcessSignal,
    )
    from ptrace.error import PtraceError

    from ubpx_ptracepp.breakpoints import Breakpoint
    from ubpx_ptracepp.debugger import Ptrace
    from ubpx_ptracepp.process import PtraceProcess
    from ubpx_ptracepp.sharing import createChild

# Loaded at first use: the tracer's plugin is in every session, and needs none of it.
_HOMES: Final = {
    "Breakpoint": "ubpx_ptracepp.breakpoints",
    "ChildError": "ptrace.debugger",
    "DebuggerError": "ptrace.debugger",
    "NewProcessEvent": "ptrace.debugger",
    "ProcessError": "ptrace.debugger",
    "ProcessEvent": "ptrace.debugger",
    "ProcessExecution": "ptrace.debugger",
    "ProcessExit": "ptrace.debugger",
    "ProcessSignal": "ptrace.debugger",
    "Ptrace": "ubpx_ptracepp.debugger",
    "PtraceError": "ptrace.error",
    "PtraceProcess": "ubpx_ptracepp.process",
    "createChild": "ubpx_ptracepp.sharing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


__all__ = [
    "Breakpoint", "ChildError", "DebuggerError", "NewProcessEvent", "ProcessError", "ProcessEvent",
    "ProcessExecution", "ProcessExit", "ProcessSignal", "Ptrace", "PtraceError", "PtraceProcess", "createChild",
]  # fmt: skip
