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
AT_ONCE: Final = 128
"""So many are asked by one call, which keeps the interpreter's lock; and looked at: where most of a thousand run still,
to name all of them each time would take long."""
RUNS: Final = 0
"""The status of a thread that has not stopped."""
OTHER: Final = 1 << 32
"""The status of one that has ended, or stands outside a system call for another reason: it is left to be looked at."""
UNKNOWN: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Instead of the signals that are queued for a thread: they are too many, or nobody has asked."""
_CONSUMED: Final = 2 << 32
"""Goes with the wait status of a stop that was consumed, which could be 0."""
_AGAIN: Final = 4 << 32
"""Goes with that of a thread whose system call may have to be made to begin again."""
STOOD: Final = _CONSUMED | INTERRUPTED << 8 | 0x7F
"""The status of a thread that has stopped because it was asked to, and can go on as it is."""
STOOD_IN_CALL: Final = STOOD | _AGAIN
"""The same, but for its system call."""
_REGISTERS, _STATUS, _QUEUED, _WORDS = range(1, 5)
"""Of struct asked: tid, registers, status, queued."""
_ASK_AT: Final = 8
"""Where in the image the code begins that asks; that which looks is at its beginning."""

Found = tuple[PtraceThread, int, int, int]
"""A thread; the wait status of its stop (in the low 32 bits), or one of the above; of a stop that was consumed also
whether its ``words`` are up to date (else 0), and the signals in its own queue, bit ``number - 1`` of each, or
UNKNOWN; in a system call none, so that of one that we step over, or watch, they must be asked for."""


class Crowd:
    """Of one tracer's threads. Owned by it, used in its thread."""

    def __init__(self, answers: Answers, *, compiled: bool = True) -> None:
        """``compiled``: as far as this process may have code of its own."""
        self.left = False
        """It is known of some what was found, and perhaps not taken yet."""
        self._answers: Final = answers
        self._code: Final = MachineCode(IMAGES[X86_64.name], wanted=compiled)
        start = self._code.start
        # They never wait, so they keep the interpreter's lock.
        self._ask: Final[Any] = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(start + _ASK_AT)
        self._look: Final[Any] = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)(start)
        self._found: Iterator[Found] = iter(())

    def ask(self, threads: Sequence[PtraceThread]) -> list[PtraceThread]:
        """Ask each to stop; those that could not be asked."""
        if not self._code.runs:
            return [each for each in threads if swift(PTRACE_INTERRUPT, each.tid, 0, 0) == -1]
        failed: list[PtraceThread] = []
        for first in range(0, len(threads), AT_ONCE):
            some = threads[first : first + AT_ONCE]
            asked = _asked(some)
            if self._ask(ctypes.addressof(asked), len(some)):
                failed += [thread for thread, error in zip(some, asked[_STATUS::_WORDS], strict=True) if error]
        return failed

    def look(self, threads: Sequence[PtraceThread]) -> None:
        """At each, in order; ``take`` gives what is found. Nothing may be left to be taken.

        What is found is noted before anything can interrupt us: of a stop that was consumed nobody else knows.
        """
        words = _asked(threads)
        fields = memoryview(words).cast("B").cast("Q")
        self._found = zip(threads, *(fields[each::_WORDS] for each in (_STATUS, _REGISTERS, _QUEUED)), strict=True)
        self.left = True
        if self._code.runs:
            self._look(ctypes.addressof(words), len(threads), MANY)
        else:
            self._look_by_calls(threads, fields)

    def take(self) -> Iterator[Found]:
        """What was found, each once, whatever becomes of the one before; ``left`` is to be unset behind the last."""
        return self._found

    def _look_by_calls(self, threads: Sequence[PtraceThread], fields: "memoryview[int]") -> None:
        misses = 0
        for at, thread in enumerate(threads):
            seen = peek(self._answers, thread.tid) if misses < MANY else None
            misses = misses + 1 if seen is None else 0
            if seen is not None and seen[1] != INTERRUPTED:
                fields[_WORDS * at + _STATUS] = OTHER
            elif seen is not None and (status := reap(thread.tid, self._answers)) is not None:
                fields[_WORDS * at + _STATUS] = _CONSUMED | _AGAIN | status
                fields[_WORDS * at + _REGISTERS] = 0
                fields[_WORDS * at + _QUEUED] = UNKNOWN


def _asked(threads: Sequence[PtraceThread]) -> Any:
    """An array of struct asked."""
    return (ctypes.c_uint64 * (_WORDS * len(threads))).from_buffer_copy(b"".join([each.asked for each in threads]))
