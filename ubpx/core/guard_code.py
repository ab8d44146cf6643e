"""Threads are let out of a guard's code before that is unmapped: a trap may bring one there at any time.

A signal's handler may have interrupted the guard, so that the thread stands elsewhere and comes back by its frame.
"""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from ubpx._errors import MemoryFault, SlotsExhausted
from ubpx.core.grounds import Mapped
from ubpx.core.keeper import Keeper, RunUntil
from ubpx.core.ports import Tracer
from ubpx.core.sites import set_pc
from ubpx.core.spaces import AddressSpace, Thread, Tracees
from ubpx.core.stepping import State
from ubpx.core.ubp import traps
from ubpx.core.values import VirtAddr

_TRIES: Final = 100
"""So often a thread is looked for that can act while nobody is in there."""
_PATIENCE_S: Final = 1.0
"""A thread is to leave it within so long; longer than that only a handler of the program's waits."""
_FIRST_PAUSE_S: Final = 0.0002
"""How long threads run at once that are to leave it."""
_SI_KERNEL: Final = 0x80
"""The si_code of a breakpoint's signal (Linux, siginfo.h)."""
_IN_THERE: Final = "a thread is in the guard's code, or comes back to it, and stays"
"""Why a guard must remain."""
_MOST_FRAMES: Final = 64
"""Of signals whose handlers run in one thread at once."""
_MOST_STACK: Final = 8 << 20
"""Bytes of one stack that are looked through."""


class GuardCode:
    """The code of guards, as threads see it. Owned by the Coordinator."""

    def __init__(self, tracer: Tracer, tracees: Tracees, keeper: Keeper, run_until: RunUntil) -> None:
        self._tracer: Final = tracer
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._run_until: Final = run_until

    def once_empty(self, space: AddressSpace, code: range, act: Callable[[Thread], None]) -> None:
        """Do something by a thread of the quiet space while none is in there, or comes back to it.

        Raises TargetGone, and SlotsExhausted if one stays, or none can be had.
        """
        for _ in range(_TRIES):
            self.stand_before_traps(space)
            with self._keeper.stopped_thread(space) as thread:  # it may have taken a signal: one that leads in there
                if not self._inside(space, code):
                    act(thread)
                    return
            if not self.let_out(space, code):
                break
        raise SlotsExhausted(space.pid, VirtAddr(code.start), _IN_THERE)

    def let_out(self, space: AddressSpace, code: range) -> bool:
        """Whether no thread of the quiet space is in there now, or comes back to it; False: one does: it must stay."""
        until, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
        while time.monotonic() < until:
            inside = self._inside(space, code)
            if not inside:
                return True
            if any(thread.group_stopped or thread.vfork_child is not None for thread in inside):
                return False
            if not self._let_run(inside, pause):
                pause *= 2
        return False

    def stand_before_traps(self, space: AddressSpace) -> None:
        """Who has met a trap just now stands before it, and knows of no signal; one that still stands is met again."""
        advance = space.architecture.trap_advance
        for thread in self._keeper.standing(space):
            at = VirtAddr(thread.pc - advance)
            if thread.pending != signal.SIGTRAP or not _is_trap(space, at):
                continue
            if int.from_bytes(self._tracer.signal_info(thread.port)[8:12], "little") == _SI_KERNEL:
                set_pc(self._tracer, thread.port, space, at)
                thread.pending = 0

    def _inside(self, space: AddressSpace, code: range) -> Sequence[Thread]:
        """Those that stand in there, or come back to it."""
        if not code:
            return ()
        mappings = Mapped(self._tracer.mappings(space.pid))
        return [
            each for each in self._keeper.standing(space) if each.pc in code or self._leads_back(each, code, mappings)
        ]

    def _let_run(self, threads: Sequence[Thread], pause_s: float) -> bool:
        """For a while, each with the signal that it owes; whether all have stopped for something before that."""
        for thread in threads:
            thread.state = State.RUNNING
            thread.pending, due = 0, thread.pending
            self._tracer.resume(thread.port, due)
        self._keeper.serve_for(pause_s, lambda: _have_stopped(threads))
        if _have_stopped(threads):
            return True
        for thread in threads:
            if thread.state is State.RUNNING:
                self._tracer.interrupt(thread.port)
        self._run_until(lambda: _have_stopped(threads))
        return False

    def _leads_back(self, thread: Thread, code: range, mappings: Mapped) -> bool:
        """Whether it comes back there when all signals have been dealt with whose handlers run."""
        space = thread.process.space
        sp = thread.port.words[space.layout.index[space.architecture.sp_name]]
        for _ in range(_MOST_FRAMES):
            frame = space.architecture.innermost_frame(stack_of(space, sp, mappings) or b"")
            if frame is None:
                return False
            pc, sp = frame
            if pc in code:
                return True
        return False


def _have_stopped(threads: Sequence[Thread]) -> bool:
    return all(each.state is not State.RUNNING for each in threads)


def _is_trap(space: AddressSpace, at: VirtAddr) -> bool:
    try:
        return traps.stands(space.raw, at, space.architecture.trap_forms)
    except MemoryFault:
        return False


def stack_of(space: AddressSpace, sp: int, mappings: Mapped) -> bytes | None:
    """What lies on a stack from the stack pointer's whole word on; None: nothing that can be read."""
    mapping = mappings.at(sp)
    if mapping is None:
        return None
    start = sp - sp % space.architecture.word_size
    try:
        return space.raw.read(VirtAddr(start), min(mapping.end - start, _MOST_STACK))
    except MemoryFault:
        return None
