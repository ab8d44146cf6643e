"""Errors of ubpx as users of python-ptrace know them, and still as errors of ubpx: either ``except`` finds them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from ptrace.debugger import ProcessError
from ptrace.error import PtraceError

import ubpx

_ERRNOS: Final = (
    (ubpx.AlreadyTraced, errno.EPERM),
    (ubpx.PermissionRefused, errno.EPERM),
    (ubpx.KernelThread, errno.EPERM),
    (ubpx.NoSuchProcess, errno.ESRCH),
    (ubpx.TargetGone, errno.ESRCH),
    (ubpx.MemoryFault, errno.EIO),
    (ubpx.UsageError, errno.ESRCH),  # to ptrace a thread that is not stopped does not exist
)


@cache
def _both(error: type[Any], base: type[Any]) -> type[Any]:
    return type(error.__name__, (error, base), {"__doc__": error.__doc__, "__module__": error.__module__})


def translated(error: ubpx.UbpxError, process: Any = None) -> Any:
    """The same error, which is a PtraceError too, with ``errno`` and ``pid``; of a ``process``: a ProcessError."""
    if isinstance(error, PtraceError):
        return error
    kind: Any = type(error)
    made = _both(kind, PtraceError if process is None else ProcessError)
    new: Any = made.__new__(made, *error.args)
    vars(new).update(vars(error))
    new.errno = next((number for kind, number in _ERRNOS if isinstance(error, kind)), None)
    new.pid = getattr(error, "pid", None) if process is None else process.pid
    if process is not None:
        new.process = process
    return new


@contextmanager
def translating(process: Any = None) -> Iterator[None]:
    """What ubpx raises inside leaves as ``translated``."""
    try:
        yield
    except ubpx.UbpxError as error:
        raise translated(error, process) from None
