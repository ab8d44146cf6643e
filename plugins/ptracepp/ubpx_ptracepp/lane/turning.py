"""Turns of the fast lane (see lane.c), and the places where a thread is expected."""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Final

from ubpx.core.ports import Site
from ubpx.core.values import PAGE_SIZE
from ubpx_ptracepp.abi import RIP, X86_64
from ubpx_ptracepp.commands import SI_CODE, SIGINFO_SIZE
from ubpx_ptracepp.lane.code import IMAGES
from ubpx_ptracepp.machine_code import MachineCode
from ubpx_ptracepp.parenthood import waitid
from ubpx_ptracepp.requests import PEEK, PTRACE_GETREGS, PTRACE_GETSIGINFO, PTRACE_POKEUSER, quick, request
from ubpx_ptracepp.tasks import PtraceThread

OTHER, UNEXPECTED = -1, -2
"""What a turn gives if the thread is at no place where it is expected: another stop, or a trap of its own elsewhere."""
_GO, _TID, _REGISTERS, _COUNT, _PLACES = range(5)
"""Words of struct turn."""
_PLACE_WORDS: Final = 3
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
        self.take: Final[Callable[[], int]] = (
            ctypes.CFUNCTYPE(ctypes.c_long)(self._code.start) if self._code.runs else self._take_by_calls
        )
        """Let the thread go on, if it is to; wait for the next stop. The number of the place where it has arrived and
        been sent on, or one of the above: that stop is still to be looked at. No stop is consumed.
        """
        self._places: Final[list[tuple[int, Site, Any]]] = []

    def attend(self, thread: PtraceThread) -> None:
        """From now on it is this thread's turn; it is expected nowhere."""
        self._fields[_TID] = thread.tid
        self._fields[_REGISTERS] = ctypes.addressof(thread.buffer)
        self._fields[_ARRIVED + RIP] = 0
        self._places.clear()

    def prepare(self, go: int, sites: Mapping[int, Site], *, expected: bool) -> None:
        """Before a turn: the request that lets the thread go on, 0 if it runs; whether it is expected anywhere at all.

        A place whose site is another by now, or needs a closer look, is none.
        """
        fields, places = self._fields, self._places
        fields[_GO] = go
        for reported, site, landing in places:
            if sites.get(reported) is not site or site.landing_word is not landing or site.watchful:
                places.clear()
                break
        fields[_COUNT] = len(places) if expected else 0

    def expect(self, reported: int, site: Site) -> bool:
        """Behind this trap from now on; False: what arrives there needs a closer look.

        So does what was not taken for an arrival though it is expected there.
        """
        landing, places = site.landing_word, self._places
        if site.watchful or (landing is None and not site.in_slot) or any(each[0] == reported for each in places):
            return False
        if len(places) == _MANY_PLACES:
            places.clear()
        at = _PLACES + len(places) * _PLACE_WORDS
        going = site.landing if landing is not None else None
        self._fields[at], self._fields[at + 1], self._fields[at + 2] = reported, going or 0, landing is not None
        places.append((reported, site, landing))
        return True

    def site(self, number: int) -> Site:
        """What is at a place."""
        return self._places[number][1]

    def _take_by_calls(self) -> int:
        """As lane.c does."""
        fields = self._fields
        tid = fields[_TID]
        if fields[_GO]:
            quick(fields[_GO], tid, 0, 0)
        stop = waitid(0, 0, PEEK)
        if stop is None or (stop[0], stop[3], stop[4]) != (tid, _SIGTRAP, _CLD_TRAPPED):
            return OTHER
        words = (ctypes.c_uint64 * (RIP + 1)).from_address(fields[_REGISTERS])
        words[RIP] = 0
        quick(PTRACE_GETREGS, tid, 0, ctypes.c_void_p(fields[_REGISTERS]))
        for number in range(fields[_COUNT]):
            at = _PLACES + number * _PLACE_WORDS
            reported, landing, certain = fields[at : at + _PLACE_WORDS]
            if reported != words[RIP] or not (certain or _is_breakpoint(tid)):
                continue
            if landing:
                quick(PTRACE_POKEUSER, tid, ctypes.c_long(RIP * 8), ctypes.c_ulong(landing))
            return number
        return UNEXPECTED


def _is_breakpoint(tid: int) -> bool:
    info = (ctypes.c_char * SIGINFO_SIZE)()
    if not request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info)):
        return False
    return int.from_bytes(info.raw[SI_CODE : SI_CODE + 4], "little") == _SI_KERNEL
