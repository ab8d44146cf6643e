"""The ways past an instruction, each taken by the real processor: in place, and as every strategy goes.

What is done about registers, faults and fault addresses is what ``core.steps`` does for a program.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Final, NamedTuple

from ubpx._errors import InternalError, MemoryFault, NotEmulated
from ubpx.core.registers import WordRegisters, put
from ubpx.core.ubp import carry_out
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing.oracle.cases import Case
from ubpx.testing.oracle.layout import CODE_SIZE, INT3, MEMORY, STACK_SIZE
from ubpx.testing.oracle.processor import REGISTERS, Processor, Stop
from ubpx.testing.oracle.vectors import FIP_AT

_TRAP_FLAG, _RESUME_FLAG, _IDENTIFICATION = 1 << 8, 1 << 16, 1 << 21
_POP_FLAGS: Final = b"\x9d\xcc"
_SI_KERNEL: Final = 0x80
_MOST_STEPS: Final = 100_000
LANDED: Final = Stop(0, 0, 0)
"""The thread has reached one of the traps that fill the code."""


class End(NamedTuple):
    """What a program sees after one instruction."""

    stop: Stop
    pc: int
    words: tuple[int, ...]
    """General registers; RF, which every instruction clears, is never set."""
    xstate: bytes
    memory: bytes


class Routes:
    """Runs cases on one processor. Owned by the thread that owns the processor."""

    def __init__(self, processor: Processor, architecture: Architecture) -> None:
        self._processor: Final = processor
        self._architecture: Final = architecture
        self._layout: Final = processor.layout
        self._registers: Final = processor.registers
        self._pc: Final = processor.registers.pc
        self._flags: Final = processor.registers.index["eflags"]
        self._sp: Final = "rsp" if self._layout.word_size == 8 else "esp"

    def in_place(self, case: Case) -> End:
        """The instruction at its own address, run on until it meets a trap or faults."""
        self._load(case)
        with self._code(case.origin, case.code):
            self._processor.load_words(case.words)
            return self._end(self._processor.run())

    def by(self, strategy: Strategy, case: Case, analysis: InsnAnalysis) -> End | None:
        """Past the instruction by ``strategy``, its own address holding a trap.

        None where the strategy leaves this one arrival to another (emulation that faults).
        """
        self._load(case)
        match strategy:
            case Strategy.EMULATE:
                return self._emulated(case, analysis)
            case Strategy.BOOST:
                return self._boosted(case, analysis)
            case Strategy.STEP:
                slot = self._layout.slot
                code = self._architecture.slot_code(analysis, slot)
                return self._stepped(case, analysis, slot, code.code)
            case Strategy.INLINE:
                return self._stepped(case, analysis, case.origin, case.code)
            case _:
                raise InternalError(f"no route goes by {strategy}")

    def run_on(self, end: End) -> End:
        """Where a thread comes to that stands at ``end``, in the program's own code."""
        self._processor.load_words(REGISTERS.pack(*end.words))
        return self._end(self._processor.run())

    def _emulated(self, case: Case, analysis: InsnAnalysis) -> End | None:
        words = list(REGISTERS.unpack(case.words))
        try:
            outcome = self._architecture.emulate(analysis, WordRegisters(words, self._registers), self._processor)
            for write in outcome.writes:
                carry_out(write, self._processor)
        except (MemoryFault, NotEmulated):
            return None
        put(words, self._registers, outcome.registers)
        return End(LANDED, words[self._pc], tuple(words), case.xstate, self._processor.shared[MEMORY])

    def _boosted(self, case: Case, analysis: InsnAnalysis) -> End:
        slot = self._architecture.slot_code(analysis, self._layout.slot)
        with self._code(slot.slot, slot.code):
            self._processor.load_words(self._moved(case.words, slot.slot))
            end = self._end(self._processor.run())
        if end.stop is LANDED:
            return end
        left = self._out_of(slot, analysis, end)
        # A program that steps itself is trapped too often where the slot has more instructions than the program.
        surplus = slot.cushion is not None and slot.slot + slot.cushion < end.pc < slot.slot + len(slot.code)
        return left._replace(stop=LANDED) if surplus and end.stop.signal == signal.SIGTRAP else left

    def _out_of(self, slot: SlotCode, analysis: InsnAnalysis, end: End) -> End:
        """A signal has arrived; if the thread is in the slot, it goes back to the program's own code."""
        if not slot.slot <= end.pc < slot.slot + self._architecture.slot_size:
            return end
        words = list(end.words)
        regs = WordRegisters(words, self._registers)
        if end.pc == slot.slot and not analysis.restarts:
            plan = self._architecture.before_step(analysis, slot.slot, regs)
            return self._cancelled(plan, end)
        outcome = self._architecture.leave_slot(slot, regs)
        stop = end.stop
        if slot.slot <= stop.address < slot.slot + self._architecture.slot_size:
            stop = Stop(stop.signal, stop.code, slot.program_pc(VirtAddr(stop.address)))
        return self._applied(outcome, end, stop)

    def _stepped(self, case: Case, analysis: InsnAnalysis, slot: VirtAddr, code: bytes) -> End:
        """Single steps until the instruction is done, or has faulted."""
        arrived = WordRegisters(list(REGISTERS.unpack(case.words)), self._registers)
        plan = self._architecture.before_step(analysis, slot, arrived)
        with self._code(slot, code):
            self._processor.load_words(self._moved(case.words, slot))
            for _ in range(_MOST_STEPS):
                stopped = self._processor.run(step=True)
                if stopped != signal.SIGTRAP:
                    return self._cancelled(plan, self._end(stopped))
                words = list(self._processor.words())
                outcome = self._architecture.after_step(plan, WordRegisters(words, self._registers))
                if outcome.finished:
                    end = self._applied(outcome, self._state(LANDED, words), LANDED)
                    return end if not plan.steps_itself else self._trapped(end)
        raise InternalError(f"{_MOST_STEPS} steps do not end {case.code.hex(' ')}")

    def _trapped(self, end: End) -> End:
        """The program steps itself: it gets the step's trap, as if it had asked for it."""
        return end._replace(stop=Stop(signal.SIGTRAP, self._processor.why(signal.SIGTRAP).code, end.pc))

    def _cancelled(self, plan: StepPlan, end: End) -> End:
        outcome = self._architecture.cancel_step(plan, WordRegisters(list(end.words), self._registers))
        stop = end.stop
        if plan.slot <= stop.address < plan.slot_end:
            stop = Stop(stop.signal, stop.code, plan.origin)
        return self._applied(outcome, end, stop)

    def _applied(self, outcome: Outcome, end: End, stop: Stop) -> End:
        """The state with what the architecture says put right."""
        memory, xstate = end.memory, end.xstate
        for write in outcome.writes:
            carry_out(write, self._processor)
            memory = self._processor.shared[MEMORY]
        if outcome.x87_pointer is not None:
            wrong, right = outcome.x87_pointer
            if int.from_bytes(xstate[FIP_AT : FIP_AT + 8], "little") == wrong:
                xstate = xstate[:FIP_AT] + right.to_bytes(8, "little") + xstate[FIP_AT + 8 :]
        words = list(end.words)
        put(words, self._registers, outcome.registers)
        return End(stop, words[self._pc], tuple(words), xstate, memory)

    def _load(self, case: Case) -> None:
        """All but the general registers; but of the flags the one that ptrace does not set."""
        shared = self._processor.shared
        wanted = int.from_bytes(case.words[8 * self._flags :][:4], "little") & _IDENTIFICATION
        if self._processor.words()[self._flags] & _IDENTIFICATION != wanted:
            self._identify(wanted)
        if shared[MEMORY] != case.memory:
            shared[MEMORY] = case.memory
        self._processor.load_xstate(case.xstate)

    def _identify(self, wanted: int) -> None:
        """Have the thread set or clear ID itself."""
        layout, sp = self._layout, self._layout.stack + STACK_SIZE // 2
        self._processor.write(sp, (0x202 | wanted).to_bytes(layout.word_size, "little"))
        self._processor.ask(_POP_FLAGS, {self._sp: sp})

    @contextlib.contextmanager
    def _code(self, address: int, code: bytes) -> Iterator[None]:
        """While it lasts, ``code`` stands there; then traps do."""
        self._processor.put_code(address, code)
        try:
            yield
        finally:
            self._processor.put_code(address, INT3 * len(code))

    def _moved(self, words: bytes, pc: int) -> bytes:
        at = 8 * self._pc
        return words[:at] + pc.to_bytes(8, "little") + words[at + 8 :]

    def _end(self, stopped: int) -> End:
        """The thread has been run until it stopped."""
        words = list(self._processor.words())
        pc = words[self._pc]
        if stopped == signal.SIGTRAP and self._is_trap(pc - 1):
            stop = self._processor.why(stopped) if words[self._flags] & _TRAP_FLAG else LANDED
            if stop is LANDED or stop.code == _SI_KERNEL:
                words[self._pc] = pc - 1
                return self._state(LANDED, words)
            return self._state(stop, words)
        return self._state(self._processor.why(stopped), words)

    def _is_trap(self, address: int) -> bool:
        offset = address - self._layout.code
        return 0 <= offset < CODE_SIZE and self._processor.shared[offset] == INT3[0]

    def _state(self, stop: Stop, words: list[int]) -> End:
        words[self._flags] &= ~_RESUME_FLAG
        return End(stop, words[self._pc], tuple(words), self._processor.xstate(), self._processor.shared[MEMORY])
