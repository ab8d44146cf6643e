"""bare_ubp: how often is a function called? Counted with ``ubpx.core.ubp`` alone.

``ubp`` knows instructions and remembers nothing. Who uses it without the rest of ubpx traces by means
of their own (here python-ptrace's debugger, see ``debuggee``), and owns what must be remembered
between two calls: the probes' patches, their slots, and for each thread the step that it is in.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Self

import attrs
from ptrace.error import PtraceError

from ubpx import MemoryFault, NotEmulated, SlotsExhausted, StrategyRefused, TargetGone, UbpxError
from ubpx.core import ubp
from ubpx.core.ubp import FixUp, Strategy
from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx_bare_ubp.debuggee import FAULTS, Debuggee, State, Thread, function_address, unless_killed

SERVED: Final = (Strategy.EMULATE, Strategy.BOOST, Strategy.STEP)
"""The strategies that this program knows."""

_AREA_SIZE: Final = 16 * PAGE_SIZE
_PAUSE_S: Final = 0.0005
_MMAP: Final = 9
_MUNMAP: Final = 11
_READ_AND_EXECUTE: Final = 0x5
_PRIVATE_ANONYMOUS_NOREPLACE: Final = 0x100022
_SI_KERNEL: Final = 0x80


@attrs.define(eq=False)
class Probe:
    """One probed instruction: what ``ubp`` said of it, kept by whoever asked."""

    analysis: ubp.InsnAnalysis
    patch: ubp.TrapPatch
    strategy: Strategy
    slot: VirtAddr | None
    """Where its copy is; None for what can only be emulated, and touches no memory."""
    hits: Counter[int] = attrs.field(factory=Counter)
    """By thread."""


class BareUbp:
    """Counts how often the threads of one process come past instructions.

    To be used by one thread of ours: ptrace answers only the one that attached.
    """

    def __init__(self, debuggee: Debuggee) -> None:
        self.debuggee: Final = debuggee
        self._architecture: Final = ubp.architecture(os.uname().machine)
        self._by_trap_pc: Final[dict[int, Probe]] = {}
        self._copies: Final[dict[int, tuple[ubp.InsnAnalysis, ubp.SlotCode]]] = {}
        """By slot."""
        self._area: VirtAddr | None = None  # where the slots are
        self._plans: Final[dict[Thread, ubp.StepPlan]] = {}
        """By thread: the step over a copy that it is in."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def probe(self, symbol: str, allowed: Collection[Strategy] = SERVED) -> Probe:
        """Count calls of a function of the program's own file, by the best strategy of those ``allowed``.

        Raises UnknownSymbol, InsnRefused, StrategyRefused, SlotsExhausted, ForeignTrap, TargetGone.
        """
        thread = self._quiesced()
        address = function_address(thread.process, symbol)
        code = thread.process.readBytes(address, self._architecture.longest_insn)
        analysis = self._architecture.analyze(code, address)
        servable = SERVED if FixUp.X87_POINTER not in analysis.fix_ups else ()  # python-ptrace cannot put that right
        possible = [each for each in analysis.strategies if each in servable]
        strategy = next((each for each in possible if each in allowed), None)
        if strategy is None:
            reason = " and ".join(analysis.refusals.get(each, "this program does not serve it") for each in allowed)
            raise StrategyRefused(address, " or ".join(allowed), possible, reason)
        slot = self._copy(thread, analysis) if {Strategy.BOOST, Strategy.STEP} & set(possible) else None
        probe = Probe(analysis, self._architecture.trap(analysis), strategy, slot)
        ubp.insert(thread, probe.patch)
        self._by_trap_pc[probe.patch.reported_pc] = probe
        return probe

    def _copy(self, thread: Thread, analysis: ubp.InsnAnalysis) -> VirtAddr:
        """Fill the next slot of an area that the program maps below everything else, near its own code."""
        if self._area is None:
            below = VirtAddr(min(each.start for each in thread.process.readMappings()) - _AREA_SIZE)
            arguments = (below, _AREA_SIZE, _READ_AND_EXECUTE, _PRIVATE_ANONYMOUS_NOREPLACE, 2**64 - 1, 0)
            if thread.system_call(_MMAP, *arguments) != below:
                raise SlotsExhausted(self.debuggee.pid, analysis.insn.address, f"the program cannot map {below:#x}")
            self._area = below
        slot = VirtAddr(self._area + len(self._copies) * self._architecture.slot_size)
        if slot >= self._area + _AREA_SIZE:
            raise SlotsExhausted(self.debuggee.pid, analysis.insn.address, "the area is full")
        code = self._architecture.slot_code(analysis, slot)
        thread.patch(slot, code.code)
        self._copies[slot] = analysis, code
        return slot

    def serve(self, done: Callable[[], bool]) -> None:
        """Let the program run and count, until ``done`` says so or the program has ended."""
        for thread in self.debuggee.threads.values():
            if thread.state is State.PARKED:
                with unless_killed():
                    self.debuggee.resume(thread)
        while self.debuggee.threads and not done():
            self._serve_one()

    def detach(self) -> None:
        """Take everything back and let the program run on, if it is still there. Safe to call again."""
        try:
            thread = self._quiesced()
        except TargetGone:
            return
        for probe in self._by_trap_pc.values():
            ubp.remove(thread, probe.patch)
        if self._area is not None:
            thread.system_call(_MUNMAP, self._area, _AREA_SIZE)
        self.debuggee.let_go()

    def _quiesced(self) -> Thread:
        """One thread, to act through, while all rest: parked, and no step half done. Raises TargetGone."""
        threads = self.debuggee.threads
        self.debuggee.stop_all()
        while not all(each.state is State.PARKED and each not in self._plans for each in threads.values()):
            self._serve_one()
        if not threads:
            raise TargetGone(self.debuggee.pid, self.debuggee.status)
        return next(iter(threads.values()))

    def _serve_one(self) -> None:
        """Serve one stop, or wait a moment."""
        with unless_killed():
            stop = self.debuggee.next_stop()
            if stop is None:
                time.sleep(_PAUSE_S)
            else:
                self._stopped(*stop)

    def _stopped(self, thread: Thread, info: Any) -> None:
        """Why did the thread stop? The siginfo says so; a PC alone proves nothing."""
        regs = thread.process.getregs()
        plan = self._plans.get(thread)
        if (info.si_signo, info.si_code) == (signal.SIGTRAP, _SI_KERNEL) and regs.rip in self._by_trap_pc:
            self._arrived(thread, regs, self._by_trap_pc[regs.rip])
        elif info.si_signo == signal.SIGTRAP and info.si_code > 0 and plan is not None:
            outcome = self._architecture.after_step(plan, self._readable(regs))
            self._apply(thread, regs, outcome)
            if outcome.finished:
                del self._plans[thread]
        elif self.debuggee.is_our_stop(thread, info):
            thread.state = State.PARKED
        elif info.si_signo in FAULTS and info.si_code > 0:
            self._faulted(thread, regs, info)
        else:
            thread.signals.append(info)
        self._go_on(thread)

    def _go_on(self, thread: Thread) -> None:
        """A step if it owes one; else it stays if it is parked, and runs on if not."""
        if thread.signals or thread.state is State.PARKED:
            self._out_of_slot(thread, thread.process.getregs())
        if thread in self._plans:
            if thread.signals:
                thread.hold_back_signals()
            thread.process.singleStep()
        elif thread.state is not State.PARKED:
            self.debuggee.resume(thread)

    def _arrived(self, thread: Thread, regs: Any, probe: Probe) -> None:
        """Count, and send the thread past the trap, which stays where it is."""
        probe.hits[thread.tid] += 1
        regs.rip = probe.analysis.insn.address
        if probe.strategy is Strategy.EMULATE and self._emulated(thread, regs, probe):
            return
        regs.rip = probe.slot
        thread.process.setregs(regs)
        if probe.strategy is not Strategy.BOOST:
            self._owe_step(thread, regs, probe.analysis)

    def _emulated(self, thread: Thread, regs: Any, probe: Probe) -> bool:
        """Do what the instruction does; False: its operand cannot be reached, and its copy is to fault as it would."""
        try:
            outcome = self._architecture.emulate(probe.analysis, self._readable(regs), thread)
            self._apply(thread, regs, outcome)
        except (MemoryFault, NotEmulated):
            return False
        return True

    def _owe_step(self, thread: Thread, regs: Any, analysis: ubp.InsnAnalysis) -> None:
        """The thread stands before a copy, and must step over it."""
        self._plans[thread] = self._architecture.before_step(analysis, regs.rip, self._readable(regs))

    def _faulted(self, thread: Thread, regs: Any, info: Any) -> None:
        """If a copy did, the program sees its own instruction fault."""
        self._out_of_slot(thread, regs)
        plan = self._plans.pop(thread, None)
        if plan is not None:
            self._apply(thread, regs, self._architecture.cancel_step(plan, self._readable(regs)))
            fault = info._sigfault  # noqa: SLF001  (python-ptrace gives it no other name)
            if plan.slot <= (fault._addr or 0) < plan.slot_end:  # noqa: SLF001
                fault._addr = plan.origin  # noqa: SLF001
        thread.signals.insert(0, info)

    def _out_of_slot(self, thread: Thread, regs: Any) -> None:
        """Nobody may see a thread in a slot: before the copy it owes a step, behind it it is moved on."""
        copy = self._copies.get(regs.rip - regs.rip % self._architecture.slot_size)
        if copy is None or thread in self._plans:
            return
        analysis, code = copy
        if regs.rip == code.slot and Strategy.STEP in analysis.strategies:
            self._owe_step(thread, regs, analysis)
        else:  # a system call too: begun again after a signal, it is counted again
            self._apply(thread, regs, self._architecture.leave_slot(code, self._readable(regs)))

    def _apply(self, thread: Thread, regs: Any, outcome: ubp.Outcome) -> None:
        """Show the program what ``ubp`` says that it must see."""
        for write in outcome.writes:
            ubp.carry_out(write, thread)
        for name, value in outcome.registers.items():
            setattr(regs, name, value)
        thread.process.setregs(regs)

    def _readable(self, regs: Any) -> Mapping[str, int]:
        """The registers by ubp's names, which are python-ptrace's too."""
        return {name: getattr(regs, name) for name in self._architecture.register_names}


def main() -> int:
    """The command ``bare-ubp``: count until the program ends, or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="bare-ubp", description="Count calls of a program's own functions.")
    parser.add_argument("-e", dest="symbols", metavar="FUNCTION", action="append", required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-p", dest="pid", type=int, help="a running process")
    which.add_argument("command", nargs="*", default=[], help="a program to start")
    options = parser.parse_args()
    interrupted = threading.Event()  # a KeyboardInterrupt could come between a stop and what is to be done about it
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        debuggee = Debuggee(options.pid) if options.pid else Debuggee.start(options.command)
        with BareUbp(debuggee) as counter:
            probes = {symbol: counter.probe(symbol) for symbol in options.symbols}
            counter.serve(interrupted.is_set)
    except (UbpxError, PtraceError, OSError) as error:
        print(f"bare-ubp: {error}", file=sys.stderr)
        return 1
    for symbol, probe in probes.items():
        print(f"{symbol}: {probe.hits.total():,} calls in {len(probe.hits)} threads, by {probe.strategy}")
    return 0
