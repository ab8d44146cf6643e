"""Turns of the fast lane (see lane.c), and the places where a thread is expected."""

import ctypes
from collections.abc import Callable
from typing import Final

from ubpx.core.ports import Site
from ubpx.core.values import PAGE_SIZE
from ubpx_ptracepp.abi import EFLAGS, RIP, TRAP_FLAG, X86_64
from ubpx_ptracepp.commands import SI_CODE, SIGINFO_SIZE
from ubpx_ptracepp.lane.code import IMAGES
from ubpx_ptracepp.machine_code import MachineCode, address_of
from ubpx_ptracepp.parenthood import waitid
from ubpx_ptracepp.requests import PEEK, PTRACE_GETREGS, PTRACE_GETSIGINFO, PTRACE_POKEUSER, quick, request
from ubpx_ptracepp.tasks import PtraceThread

OTHER, UNEXPECTED = -1, -2
"""What a turn gives if the thread is at no place where it is expected: another stop, or a trap of its own elsewhere."""
CLOSELY = -3
"""What it gives for an arrival at place 0 that is to be looked at more closely; less by n for one at place n."""
_OF_PYTHON: Final = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyLong_FromLong")
"""What struct turn begins with: the functions that it calls."""
_GO, _STAYS, _PATIENCE, _TID, _REGISTERS, _COUNT, _PLACES = range(len(_OF_PYTHON), len(_OF_PYTHON) + 7)
"""Words of struct turn."""
_PC, _HAS_RUN, _SIGNAL = range(3)
"""What proves an arrival: that the thread has run since the last one is enough in a slot only."""
_PLACE_WORDS: Final = 4
_MANY_PLACES: Final = 4
_ARRIVED: Final = _PLACES + _MANY_PLACES * _PLACE_WORDS
_WORDS: Final = PAGE_SIZE // 8
_SIGTRAP: Final = 5
_CLD_TRAPPED: Final = 4
_SI_KERNEL: Final = 0x80


class Turns:
    """One tracer's turns. Owned by it, used in its thread."""

    def __init__(self, *, compiled: bool = True) -> None:
        """``compiled``: as far as this process may have code of its own."""
        self._code: Final = MachineCode(IMAGES[X86_64.name], data_pages=1, wanted=compiled)
        self._fields: Final = memoryview((ctypes.c_uint64 * _WORDS).from_address(self._code.data)).cast("B").cast("Q")
        for word, name in enumerate(_OF_PYTHON):
            self._fields[word] = address_of(name)
        self.take: Final[Callable[[], int]] = self._code.function() if self._code.runs else self._take_by_calls
        """Let the thread go on, if it is to; wait for the next stop. The number of the place where it has arrived and
        been sent on, or one of the above. No stop is consumed; what is no arrival is still to be looked at.
        """
        self.sites: Final[list[Site]] = []
        """Of the places where it is expected, by number."""
        self.serves: Final[list[Callable[[PtraceThread], bool]]] = []
        """What is to be called for those that have arrived there and need no closer look."""
        self._reported: Final[list[int]] = []
        """The PCs that their traps report."""

    def attend(self, thread: PtraceThread, patience: int) -> None:
        """From now on it is this thread's turn; it is expected nowhere, and not to be let go on by the first turn.

        ``patience``: after so many arrivals it is to be looked at more closely, those before others' turns included.
        """
        fields = self._fields
        if fields[_TID] != thread.tid or not fields[_PATIENCE]:
            fields[_PATIENCE] = patience
        fields[_GO] = thread.go
        fields[_TID] = thread.tid
        fields[_REGISTERS] = ctypes.addressof(thread.buffer)
        fields[_ARRIVED + RIP] = 0
        fields[_STAYS] = 1
        self._expect_nobody()

    @property
    def impatient(self) -> bool:
        """Whether the thread was not looked at closely for as long as may be; else it steps itself."""
        return not self._fields[_PATIENCE]

    def _expect_nobody(self) -> None:
        self.sites.clear()
        self.serves.clear()
        self._reported.clear()
        self._fields[_COUNT] = 0

    def expect(self, reported: int, site: Site) -> bool:
        """Behind this trap from now on, and by the next turn where it stands; False: what arrives there needs a closer
        look.

        So does what was not taken for an arrival though it is expected there.
        """
        if site.watchful or (site.landing is None and not site.in_slot) or reported in self._reported:
            return False
        if len(self.sites) == _MANY_PLACES:
            self._expect_nobody()
        fields, at = self._fields, _PLACES + len(self.sites) * _PLACE_WORDS
        proof = _PC if site.certain else _HAS_RUN if site.in_slot else _SIGNAL
        shown, serve = site.express or (0, site.arrive)
        for word, value in enumerate((reported, site.landing or 0, proof, shown)):
            fields[at + word] = value
        self.sites.append(site)
        self.serves.append(serve)
        self._reported.append(reported)
        fields[_COUNT] = len(self.sites)
        fields[_STAYS] = 1
        return True

    def _take_by_calls(self) -> int:
        """As lane.c does."""
        fields = self._fields
        tid = fields[_TID]
        if not fields[_STAYS]:
            quick(fields[_GO], tid, 0, 0)
        fields[_STAYS] = 0
        stop = waitid(0, 0, PEEK)
        if stop is None or (stop[0], stop[3], stop[4]) != (tid, _SIGTRAP, _CLD_TRAPPED):
            return OTHER
        words = (ctypes.c_uint64 * (EFLAGS + 1)).from_address(fields[_REGISTERS])
        words[RIP] = 0
        quick(PTRACE_GETREGS, tid, 0, ctypes.c_void_p(fields[_REGISTERS]))
        for number in range(fields[_COUNT]):
            at = _PLACES + number * _PLACE_WORDS
            reported, landing, proof, shown = fields[at : at + _PLACE_WORDS]
            if reported != words[RIP] or not (proof == _PC or _is_breakpoint(tid)):
                continue
            if landing:
                quick(PTRACE_POKEUSER, tid, ctypes.c_long(RIP * 8), ctypes.c_ulong(landing))
            fields[_PATIENCE] -= 1
            if not fields[_PATIENCE] or (shown and words[EFLAGS] & TRAP_FLAG):
                return CLOSELY - number
            if shown:
                words[RIP] = shown
            return number
        return UNEXPECTED


def _is_breakpoint(tid: int) -> bool:
    info = (ctypes.c_char * SIGINFO_SIZE)()
    if not request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info)):
        return False
    return int.from_bytes(info.raw[SI_CODE : SI_CODE + 4], "little") == _SI_KERNEL
