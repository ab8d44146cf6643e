"""Threads that wait in the kernel, and how they go on as if nobody had woken them.

Whatever wakes a thread, be it our interrupt or a signal that only its being traced makes it hear of, ends its system
call. Most calls the kernel begins again by itself, and those with a time-out for the time that is left. Some it ends
with EINTR (signal(7), "Interruption of system calls and library functions by stop signals"): these are made to begin
again too, but for their whole time-out, since nobody knows when they began.
"""

import errno
from collections.abc import Mapping, MutableSequence
from functools import cache
from pathlib import Path
from signal import SIGCHLD, SIGCONT, SIGURG, SIGWINCH
from typing import Final

from ubpx.core.values import Disturbance
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import ABIS, ORIG_RAX, RAX, Abi

_ERESTARTNOHAND: Final = 0xFFFF_FFFF_FFFF_FFFF & -514
"""What a call returns inside the kernel that is to begin again unless the thread has a handler to run."""
_IGNORED_BY_DEFAULT: Final = frozenset({SIGCHLD, SIGCONT, SIGURG, SIGWINCH})

_EXACT: Final = {
    "clock_nanosleep", "clock_nanosleep_time64", "fcntl", "fcntl64", "flock", "futex", "futex_time64",
    "futex_wait", "futex_waitv", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "msgrcv", "msgsnd", "nanosleep", "pause", "poll", "ppoll", "ppoll_time64",
    "pselect6", "pselect6_time64", "restart_syscall", "rt_sigsuspend", "select", "_newselect", "semop",
    "sigsuspend", "wait4", "waitid", "waitpid",
}  # fmt: skip
"""Begun again by the kernel for the time that is left, or until the same moment, or without a time-out."""
_ANEW: Final = {
    "epoll_pwait": 3, "epoll_pwait2": 3, "epoll_wait": 3, "io_getevents": 4, "io_pgetevents": 4,
    "io_pgetevents_time64": 4, "rt_sigtimedwait": 2, "rt_sigtimedwait_time64": 2, "semtimedop": 3,
    "semtimedop_time64": 3,
}  # fmt: skip
"""Begun again by us, with the time-out that they were given; which of their arguments that is."""
_FOR_EVER: Final = frozenset({0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})
"""Such arguments: no pointer to a time-out, or -1 milliseconds."""


def begin_again(words: MutableSequence[int], abi: Abi) -> bool:
    """Have an interrupted system call of a stopped thread, by its registers, begin again; whether they were changed."""
    call = words[ORIG_RAX] & abi.mask
    interrupted = abi.is_result(words[RAX], errno.EINTR) and call <= abi.mask >> 1
    if interrupted and call != abi.calls["close"]:  # which has closed the descriptor already
        words[RAX] = _ERESTARTNOHAND
        return True
    return False


def would_not_wake(tid: int, signal: int) -> bool:
    """Whether the signal would not even have woken the thread if nobody traced it: its program ignores it."""
    fields = procfs.status(tid)
    ignored, caught = (int(fields.get(name, "0"), 16) >> (signal - 1) & 1 for name in ("SigIgn", "SigCgt"))
    return bool(ignored) or (not caught and signal in _IGNORED_BY_DEFAULT)


def disturbance(tid: int, abi: Abi) -> Disturbance:
    """What the thread would notice of being stopped now, by the system call that it waits in (proc(5), syscall)."""
    try:
        number, *arguments = Path(f"/proc/{tid}/syscall").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return Disturbance.PERHAPS
    name = _names(abi.name).get(int(number), "") if number.isdecimal() else None
    if name is None or name in _EXACT:  # it runs, or waits exactly
        return Disturbance.NONE
    if name not in _ANEW:
        return Disturbance.PERHAPS
    return Disturbance.NONE if int(arguments[_ANEW[name]], 16) in _FOR_EVER else Disturbance.TIME_OUT


@cache
def _names(architecture: str) -> Mapping[int, str]:
    return {number: name for name, number in ABIS[architecture].calls.items()}
