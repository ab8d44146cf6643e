"""What the stateless layer says: analyses, patches, slots, steps. Values only.

Everything that must be remembered between two calls is in one of these, and the caller
keeps it; ubp itself remembers nothing (S7). One page, although a long one: it is nearly all signatures and docstrings,
and whoever adds an architecture reads it as a whole.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

import attrs

from ubpx._errors import MemoryFault
from ubpx.core.ports import Memory
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr


class Strategy(StrEnum):
    """How a thread gets past a probed instruction; the best first."""

    EMULATE = "EMULATE"
    """We do what the instruction does: no slot, no step."""
    JUMP = "JUMP"
    """The instruction's bytes are a jump to a trap in its slot: made of a BOOST or EMULATE that is hot."""
    BOOST = "BOOST"
    """The slot's copy is followed by a jump back: one stop."""
    STEP = "STEP"
    """One single step over the slot's copy: two stops."""
    INLINE = "INLINE"
    """One single step in place, the other threads held."""


class FixUp(StrEnum):
    """What a single step of the copy leaves wrong."""

    RETURN_ADDRESS = "RETURN_ADDRESS"
    """A call pushed the slot's next address."""
    PUSHED_TRAP_FLAG = "PUSHED_TRAP_FLAG"
    """A pushf stored TF, which the step had set."""
    LINK_REGISTERS = "LINK_REGISTERS"
    """A system call left the slot's next address in rcx, and TF in r11."""
    X87_POINTER = "X87_POINTER"
    """The floating-point unit says that its last instruction was the slot's."""


@attrs.frozen(kw_only=True)
class InsnAnalysis:
    """What can be done at one instruction."""

    insn: Insn
    strategies: tuple[Strategy, ...]
    """Allowed ones, the best first; never empty."""
    refusals: Mapping[Strategy, str] = attrs.field(factory=dict)
    """Why each of the others is not allowed."""
    reach: tuple[VirtAddr, ...] = ()
    """Addresses that the slot must lie within the architecture's ``slot_reach`` of; () where it may lie anywhere."""
    steps_anywhere: bool = False
    """Only BOOST needs a slot that reaches those; STEP takes any."""
    landing: VirtAddr | None = None
    """Where the instruction always goes, if that is all it does (nop, jmp); for EMULATE."""
    fix_ups: frozenset[FixUp] = frozenset()
    """What a step of the copy must put right."""
    restarts: bool = False
    """It may begin again by itself after a signal, half done: a repeated string, a system call."""
    waits: bool = False
    """It may wait in the kernel: no signal may be kept from it, and no thread kept waiting for it."""


@attrs.frozen(kw_only=True)
class TrapPatch:
    """The bytes that make a thread stop at ``address``."""

    address: VirtAddr
    trap: bytes
    original: bytes
    """What stood there, as many bytes as the trap has."""
    reported_pc: VirtAddr
    """The PC that a thread shows after it ran into the trap."""


@attrs.frozen(kw_only=True)
class SlotCode:
    """The out-of-line copy of one instruction, as bytes for one slot address."""

    origin: VirtAddr
    slot: VirtAddr
    code: bytes
    places: tuple[tuple[int, VirtAddr], ...]
    """(offset in the slot, original address) of every instruction boundary in it."""
    link: tuple[int, str] | None = None
    """(offset in the slot, register): at that place the register may hold the place's own address, and the slot's
    next instruction puts it right."""
    cushion: int | None = None
    """Offset in the slot of an instruction that the program has not: where the processor gives a program that steps
    itself no trap behind the copy, it gives one behind this, and that is one too many."""
    stop: int | None = None
    """Offset in the slot of the trap behind the copy that a step runs; None where the processor steps by itself."""
    serves: tuple[Strategy, ...] = (Strategy.BOOST, Strategy.STEP)
    """What it can be used for: without BOOST there is no way back to the program."""
    entry_code: bytes = b""
    """A trap, and a jump to the copy: lies behind ``code``, for jumps from the program; empty if there can be none."""

    @property
    def entry(self) -> int | None:
        """Offset in the slot of that trap, where a jump from the program leads."""
        return len(self.code) if self.entry_code else None

    @property
    def entered(self) -> VirtAddr | None:
        """The PC that a thread shows after it came by a jump; from there it goes on to the copy."""
        return None if self.entry is None else VirtAddr(self.slot + self.entry + 1)

    def to_origin(self, pc: VirtAddr) -> VirtAddr | None:
        """The program's own address for a PC in the slot; None for a PC that is no boundary."""
        return next((origin for offset, origin in self.places if self.slot + offset == pc), None)

    def program_pc(self, pc: VirtAddr) -> VirtAddr:
        """The PC that the program must see for a thread anywhere in the slot: before the instruction, or behind."""
        return self.to_origin(pc) or self.origin

    def to_slot(self, address: VirtAddr) -> VirtAddr | None:
        """The place in the slot for one of the program's own addresses."""
        return next((VirtAddr(self.slot + offset) for offset, origin in self.places if origin == address), None)


@attrs.frozen(kw_only=True)
class StepPlan:
    """What must be put right after one instruction ran at ``slot`` instead of ``origin``.

    A step in place has ``slot == origin``; whoever takes it has put the original bytes back first.
    Made by ``before_step``; handed back to ``after_step`` or ``cancel_step`` exactly once
    (or again, after ``after_step`` said that the instruction is not finished).
    """

    origin: VirtAddr
    slot: VirtAddr
    origin_end: VirtAddr
    """The address behind the original instruction."""
    slot_end: VirtAddr
    """The address behind the copy (which may be longer)."""
    repeats: bool
    """One step may be one iteration of several, so that a thread which has not moved has not finished."""
    fix_ups: frozenset[FixUp]
    steps_itself: bool = False
    """The program had set its trap flag: it waits for a SIGTRAP of its own at the instruction's end."""

    @property
    def in_place(self) -> bool:
        """The instruction itself is stepped, not a copy of it."""
        return self.slot == self.origin


@attrs.frozen
class MemoryWrite:
    """Bytes for the program's memory, to be written as the program itself would."""

    address: VirtAddr
    data: bytes
    instead_of: bytes | None = None
    """Write only if these bytes stand there, and nothing if they cannot be read."""


def carry_out(write: MemoryWrite, memory: Memory) -> None:
    """Do what an Outcome wants written. Raises MemoryFault, but not for a conditional write."""
    if write.instead_of is None:
        memory.write(write.address, write.data)
        return
    with contextlib.suppress(MemoryFault):
        if memory.read(write.address, len(write.data)) == write.instead_of:
            memory.write(write.address, write.data)


@attrs.frozen(kw_only=True)
class Outcome:
    """What the program must see: changed registers by name, and stack writes.

    The writes come first; if one faults, the registers must not change.
    """

    registers: Mapping[str, int]
    writes: tuple[MemoryWrite, ...] = ()
    finished: bool = True
    """False: a repeated instruction (rep) is in the middle; step again with the same plan."""
    x87_pointer: tuple[VirtAddr, VirtAddr] | None = None
    """If the address of the last floating-point instruction (FIP) is the first of these, it must be the second."""


class Flow(NamedTuple):  # not attrs: one is made for each instruction of a function, of which there may be 100,000
    """Where control goes from one instruction, and what it uses at an address that it says itself."""

    start: VirtAddr
    end: VirtAddr
    target: VirtAddr | None = None
    """Where a direct jump, branch or call leads."""
    falls_through: bool = True
    """Whether the next instruction may be the one behind it; a call is taken to return."""
    calls: bool = False
    operand: VirtAddr | None = None
    """Where its operand is, if that is addressed relative to the instruction, or absolutely: a table, with an index."""
    touches: bool = False
    """Whether it reads or writes that operand; else it takes the address alone (lea)."""
    prefixes: int = 0
    """How many bytes of prefixes it begins with, which a branch may skip (an optional lock)."""


Emulator = Callable[[ReadableRegisters, Memory], Outcome]
"""Does what one instruction does, on the registers at arrival.

Raises MemoryFault for an operand, NotEmulated where only the instruction itself can do it this time.
"""


class Architecture(Protocol):
    """Everything that differs between processors. Stateless: equal calls, equal answers."""

    @property
    def name(self) -> str:
        """As ``uname -m`` says it."""
        ...

    @property
    def register_names(self) -> tuple[str, ...]:
        """In the order of the 64-bit words that PTRACE_GETREGS fills; "" for a word that is no register here."""
        ...

    @property
    def pc_name(self) -> str:
        """The register that holds the next instruction's address."""
        ...

    @property
    def own_trap_flag(self) -> tuple[str, int]:
        """The register and the bit by which a program steps itself: each instruction then ends in a SIGTRAP."""
        ...

    @property
    def moved_flag(self) -> tuple[str, int]:
        """The register and the bit that say of a thread at a trap that it was sent on; it means nothing else there."""
        ...

    def mistakable(self, memory: Memory, landing: VirtAddr) -> bool:
        """Whether a thread at ``landing`` could be one that has just run into a trap, of ours or another."""
        ...

    @property
    def transient_registers(self) -> frozenset[str]:
        """Those in which a thread that comes back from a signal's handler may differ from how it was interrupted."""
        ...

    @property
    def outside_call(self) -> Mapping[str, int]:
        """Registers that make the kernel not begin again a system call in which the thread is stopped."""
        ...

    @property
    def sp_name(self) -> str:
        """The stack pointer."""
        ...

    @property
    def sigreturn_calls(self) -> frozenset[int]:
        """The numbers of the system calls that end a signal's handler."""
        ...

    @property
    def word_size(self) -> int:
        """Bytes of a general register, of an address, of what a call pushes."""
        ...

    @property
    def address_limit(self) -> int:
        """The first address that no program can have; slots lie below it."""
        ...

    @property
    def trap_bytes(self) -> bytes:
        """What ``trap`` writes, or the shortest of it: what fills slots."""
        ...

    @property
    def trap_forms(self) -> tuple[bytes, ...]:
        """All that ``trap`` may write; to recognise a trap of somebody else."""
        ...

    @property
    def trap_advance(self) -> int:
        """How many bytes behind a trap's address the PC stands of a thread that ran into it: 1 on x86, else 0."""
        ...

    @property
    def nop_bytes(self) -> bytes:
        """An instruction as long as a trap that does nothing."""
        ...

    @property
    def longest_insn(self) -> int:
        """In bytes; ``analyze`` never needs more."""
        ...

    @property
    def slot_size(self) -> int:
        """Bytes that one slot takes, a power of two."""
        ...

    @property
    def slot_reach(self) -> int:
        """How far a slot may lie from each address of ``InsnAnalysis.reach``, bytes in either direction."""
        ...

    @property
    def has_single_step(self) -> bool:
        """Whether the processor stops a thread behind one instruction; else a copy that is stepped ends in a trap."""
        ...

    @property
    def longest_sequence(self) -> int:
        """Bytes on either side of an instruction that ``in_sequence`` looks at; 0: there are no such sequences."""
        ...

    def in_sequence(self, code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
        """Why no thread may be stopped at ``address``, within instructions that only get done together; None: it may.

        ``code`` is the function, or what is readable of it around the address, and begins at ``start``; there an
        instruction begins.
        """
        ...

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """Say what can be done at the instruction that ``code`` begins with.

        ``code`` is what is readable from ``address`` on, up to ``longest_insn`` bytes: fewer at the
        end of a mapping. Raises InsnRefused with a reason that a person understands.
        """
        ...

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """The trap for this instruction."""
        ...

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """The copy, its operands adjusted to ``slot``, then a jump back where the copy falls through.

        One code serves BOOST and STEP; without a single step it has a second copy for that, with a trap behind it.
        Raises InsnRefused if ``slot`` is out of reach, except for a code that serves STEP alone then.
        """
        ...

    @property
    def jump_size(self) -> int:
        """Bytes of the longest jump that ``jump`` makes."""
        ...

    def jump_target(self, code: bytes, address: VirtAddr) -> VirtAddr | None:
        """Where a jump like that leads that ``code`` at ``address`` begins with; None: it is none."""
        ...

    def jump_targets(self, analysis: InsnAnalysis, following: bytes) -> range:
        """Where a jump can lead that is written over the instruction's own bytes, with ``following`` behind them.

        Raises InsnRefused where there must be none.
        """
        ...

    def jump(self, analysis: InsnAnalysis, target: VirtAddr, following: bytes) -> TrapPatch:
        """A jump to one of ``jump_targets``; ``reported_pc`` is that of a trap there."""
        ...

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:
        """What to keep while one thread steps the copy at ``slot``; ``regs`` are those at arrival.

        The instruction's own address as ``slot`` means a step in place. The plan's ``slot`` is where the thread must
        stand for the step: at the copy with a trap behind it, where a slot has two.
        """
        ...

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """After the step: changes that turn the registers into what the original would have left."""
        ...

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """The copy did not run (it faulted, or the step is given up): back to the origin."""
        ...

    def leave_slot(self, code: SlotCode, regs: ReadableRegisters) -> Outcome:
        """What the program must see of a thread whose PC lies anywhere in the slot, and that is taken out of it."""
        ...

    def hide_step(self, regs: ReadableRegisters) -> Outcome:
        """After a step without a plan: what must not be seen of it (a system call's r11 keeps the flags)."""
        ...

    def restarted(self, regs: ReadableRegisters) -> Mapping[str, int] | None:
        """What a system call that the thread is stopped in begins again with, if it does; None: it cannot."""
        ...

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        """At the first instruction of a signal's handler: where the handler will return to. Raises MemoryFault."""
        ...

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        """Where a thread goes on, and with which stack pointer, when the signal has been dealt with whose frame lies
        on its stack before all others; ``stack`` is from a whole word on. None: none does.
        """
        ...

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """Do what the instruction does, on values; nothing is written here.

        Raises MemoryFault if an operand cannot be read, NotEmulated where the instruction itself must run this
        time, UsageError if EMULATE is not allowed.
        """
        ...

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """``emulate`` for one instruction, parsed once; for whoever does it many times.

        Raises UsageError if EMULATE is not allowed.
        """
        ...

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        """Start addresses of the instructions from ``address`` on, linearly; ends at what is undecodable."""
        ...

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """The instructions from ``address`` on, linearly, and where each leads.

        Ends at what is undecodable, or so encoded that processors disagree on its length.
        """
        ...

    def walk(
        self, code: bytes, address: VirtAddr, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """The length and the kind of the instructions from ``address`` on, linearly; ends at what is undecodable.

        Of the instructions of one kind ``analyze`` refuses all or none, and all or none can do without a slot.
        What they address relative to themselves ``near`` is added to ``named``.
        """
        ...

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """The same for the instruction at each of some offsets in the code; (0, None) where there is none."""
        ...

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """Integer argument ``index`` (from 0), unsigned, as at a function's entry.

        Raises MemoryFault if it is on a stack that cannot be read.
        """
        ...
