"""Threads that wait in the kernel, and how they go on as if nobody had woken them.

Whatever wakes a thread, be it our interrupt or a signal that only its being traced makes it hear of, ends its system
call. Most calls the kernel begins again by itself, and those with a time-out for the time that is left. Some it ends
with EINTR (signal(7), "Interruption of system calls and library functions by stop signals"): these are made to begin
again too, but for their whole time-out, since nobody knows when they began. From then on one knows: when they are
stopped again behind that time they end as if they had timed out, so that no series of stops keeps them waiting.
"""

import errno
import struct
import time
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from functools import cache
from pathlib import Path
from signal import SIGCHLD, SIGCONT, SIGURG, SIGWINCH
from typing import Final

from ubpx import UbpxError
from ubpx.core.ports import Memory
from ubpx.core.values import Disturbance
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import ABIS, ORIG_RAX, RAX, X86_64, Abi
from ubpx_ptracepp.tasks import PtraceThread

_ERESTARTNOHAND: Final = 0xFFFF_FFFF_FFFF_FFFF & -514
"""What a call returns inside the kernel that is to begin again unless the thread has a handler to run."""
_INTERRUPTED_RESULTS: Final = frozenset({_ERESTARTNOHAND & 0xFFFF_FFFF, 0xFFFF_FFFF & -errno.EINTR})
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
    "io_pgetevents_time64": 4, "ipc": 5, "rt_sigtimedwait": 2, "rt_sigtimedwait_time64": 2, "semtimedop": 3,
    "semtimedop_time64": 3,
}  # fmt: skip
"""Begun again by us, with the time-out that they were given; which of their arguments that is."""
_FOR_EVER: Final = frozenset({0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})
"""Such arguments: no pointer to a time-out, or -1 milliseconds."""
_SEMTIMEDOP: Final = 4
"""i386's ``ipc`` is many calls, by its first argument (ipc(2)); this one may have a time-out."""
_IN_MILLISECONDS: Final = {"epoll_wait", "epoll_pwait"}
"""The others have a pointer to a struct timespec."""
_WORD: Final = 0xFFFF_FFFF_FFFF_FFFF


def may_begin_again(result: int) -> bool:
    """Whether one of the next two may be so, by what a stopped thread has in RAX; most have been in no such call."""
    return result & 0xFFFF_FFFF in _INTERRUPTED_RESULTS


def begin_again(words: MutableSequence[int], abi: Abi) -> bool:
    """Have an interrupted system call of a stopped thread, by its registers, begin again; whether they were changed."""
    call = words[ORIG_RAX] & abi.mask
    interrupted = abi.is_result(words[RAX], errno.EINTR) and call <= abi.mask >> 1
    if interrupted and call != abi.calls["close"]:  # which has closed the descriptor already
        words[RAX] = _ERESTARTNOHAND
        return True
    return False


def is_to_begin_again(words: Sequence[int]) -> bool:
    """Whether ``begin_again`` has done its work, and the kernel not yet."""
    return words[RAX] == _ERESTARTNOHAND


def limit_wait(thread: PtraceThread, abi: Abi, memory: Callable[[], Memory]) -> None:
    """The call that a stopped thread is made to begin again, by its ``words``, is not to wait for ever anew.

    From the first stop on it is known when it is to time out; at the first one behind that it ends as if it had.
    """
    now = time.monotonic()
    if thread.limit is None:
        seconds = _time_out(thread.words, abi, memory)
        if seconds is not None:
            thread.set_limit(now + seconds)
    elif now < thread.limit:
        thread.set_limit(thread.limit)
    else:
        thread.words[RAX] = _result(thread.words, abi) & _WORD
        thread.set_limit(None)


def call_entered(thread: PtraceThread) -> None:
    """It enters a system call: the one that begins again, or another one."""
    if thread.limit is not None and thread.resumed_wait:
        thread.set_limit(None)
    thread.resumed_wait = True


def call_left(thread: PtraceThread, result: int) -> None:
    """Its system call has ended, with this result; if it was interrupted, it may be made to begin again once more."""
    if thread.limit is not None and result != -errno.EINTR:
        thread.set_limit(None)


def _time_out(words: Sequence[int], abi: Abi, memory: Callable[[], Memory]) -> float | None:
    """Seconds, of a call that begins anew; None if it has none, or has it elsewhere."""
    name = _names(abi.name).get(words[ORIG_RAX] & abi.mask, "")
    argument = _time_out_argument(name, [words[each] & abi.mask for each in abi.arguments])
    if argument is None:
        return None
    if name in _IN_MILLISECONDS:
        return (argument & 0x7FFF_FFFF) / 1000
    form = "<qq" if abi is X86_64 or name.endswith("64") or name == "epoll_pwait2" else "<ii"
    try:
        seconds, nanoseconds = struct.unpack(form, memory().read(argument, struct.calcsize(form)))
    except UbpxError:  # it points nowhere, or the process is gone
        return None
    return float(seconds + nanoseconds / 1e9)


def _result(words: Sequence[int], abi: Abi) -> int:
    """What a call that begins anew returns when it times out."""
    return 0 if _names(abi.name)[words[ORIG_RAX] & abi.mask].startswith(("epoll", "io_")) else -errno.EAGAIN


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
    limited = _time_out_argument(name, [int(each, 16) for each in arguments]) is not None
    return Disturbance.TIME_OUT if limited else Disturbance.NONE


def _time_out_argument(name: str, arguments: Sequence[int]) -> int | None:
    """The one that says for how long a call that begins anew is to wait; None: for ever, or it is another call."""
    if name not in _ANEW or (name == "ipc" and arguments[0] & 0xFFFF != _SEMTIMEDOP):
        return None
    argument = arguments[_ANEW[name]]
    return None if argument in _FOR_EVER else argument


@cache
def _names(architecture: str) -> Mapping[int, str]:
    return {number: name for name, number in ABIS[architecture].calls.items()}
