"""Many threads at once: asked to stop, and looked at whether they have (see crowd.c)."""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ubpx_ptracepp.abi import X86_64
from ubpx_ptracepp.crowd.code import IMAGES
from ubpx_ptracepp.machine_code import MachineCode
from ubpx_ptracepp.requests import INTERRUPTED, PTRACE_INTERRUPT, Answers, peek, reap, swift
from ubpx_ptracepp.tasks import PtraceThread

MANY: Final = 16
"""So many threads are worth this. Behind so many in a row that run still, the others are taken to run."""
RUNS: Final = 0
"""The status of a thread that has not stopped."""
OTHER: Final = 1 << 32
"""The status of one that stands, or has ended, for another reason: that is left to be looked at."""
UNKNOWN: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Instead of the signals that are queued for a thread: they are too many, or nobody has asked."""
_WORDS: Final = 4
"""In struct asked: tid, registers, status, queued."""
_ASK_AT: Final = 8
"""Where in the image the code begins that asks; that which looks is at its beginning."""

Found = tuple[PtraceThread, int, int, int]
"""A thread; the wait status of its stop, which was consumed, or one of the above; whether its ``words`` are up to date
(else 0); the signals in its own queue, bit ``number - 1`` of each, or UNKNOWN."""


class Crowd:
    """Of one tracer's threads. Owned by it, used in its thread."""

    def __init__(self, answers: Answers, *, compiled: bool = True) -> None:
        """``compiled``: as far as this process may have code of its own."""
        self._answers: Final = answers
        self._code: Final = MachineCode(IMAGES[X86_64.name], wanted=compiled)
        start = self._code.start
        self._ask: Final[Any] = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long)(start + _ASK_AT)
        self._look: Final[Any] = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)(start)

    def ask(self, threads: Sequence[PtraceThread]) -> list[PtraceThread]:
        """Ask each to stop; those that could not be asked."""
        if not self._code.runs:
            return [each for each in threads if swift(PTRACE_INTERRUPT, each.tid, 0, 0) == -1]
        asked = _asked(threads)
        self._ask(ctypes.addressof(asked), len(threads))
        return [thread for thread, error in zip(threads, asked[2::_WORDS], strict=True) if error]

    def look(self, threads: Sequence[PtraceThread]) -> Iterator[Found]:
        """At each, in order."""
        return self._look_by_one_call(threads) if self._code.runs else self._look_by_calls(threads)

    def _look_by_one_call(self, threads: Sequence[PtraceThread]) -> Iterator[Found]:
        asked = _asked(threads)
        self._look(ctypes.addressof(asked), len(threads), MANY)
        registers, statuses, queued = (asked[at::_WORDS] for at in (1, 2, 3))
        return zip(threads, statuses, registers, queued, strict=True)

    def _look_by_calls(self, threads: Sequence[PtraceThread]) -> Iterator[Found]:
        misses = 0
        for thread in threads:
            seen = peek(self._answers, thread.tid) if misses < MANY else None
            misses = misses + 1 if seen is None else 0
            if seen is None:
                yield thread, RUNS, 0, UNKNOWN
            elif seen[1] != INTERRUPTED:
                yield thread, OTHER, 0, UNKNOWN
            else:
                yield thread, reap(thread.tid, self._answers) or RUNS, 0, UNKNOWN


def _asked(threads: Sequence[PtraceThread]) -> Any:
    """An array of struct asked."""
    return (ctypes.c_uint64 * (_WORDS * len(threads))).from_buffer_copy(b"".join([each.asked for each in threads]))
