"""The riscv64 architecture: RV64GC, 64-bit programs on Linux.

Emulated is what depends on where it stands: jumps, branches, auipc. All else that a program may do runs anywhere.

A trap is as long as the instruction, ebreak or c.ebreak. But of one with four bytes at an address that is no multiple
of four, no write changes both halves at once, so that another hart could run the half of an ebreak: its trap is a
c.ebreak. Either lies in one aligned word, which whoever writes it can write as a whole. That instruction caches follow
is the writer's business, too: the kernel sees to it for ptrace and /proc/PID/mem (copy_to_user_page,
arch/riscv/include/asm/cacheflush.h), not for process_vm_writev.

Landing pads (Zicfilp) are not followed: a trap that replaces an lpad is none, where a program has them checked.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import ClassVar, Final

import attrs

from ubpx._errors import InsnRefused, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import RiscvDecoder
from ubpx.core.ubp.jumpless import Jumpless
from ubpx.core.ubp.plans import Emulator, Flow, InsnAnalysis, Outcome, SlotCode, StepPlan, Strategy, TrapPatch
from ubpx.core.ubp.riscv64_emulation import EMULATED, make_emulator
from ubpx.core.ubp.riscv64_encoding import LONGEST_INSN, PARCEL, REGISTERS, Encoding, length_of, parse
from ubpx.core.ubp.riscv64_frames import PC_IN_FRAME, innermost
from ubpx.core.ubp.riscv64_insns import InsnClass, calls, falls_through, insn_class, mnemonic, target_of
from ubpx.core.ubp.riscv64_sequences import LONGEST_SEQUENCE, in_sequence
from ubpx.core.ubp.riscv64_slots import (
    LONG_TRAP,
    NO_SINGLE_STEP,
    TRAP,
    finish_step,
    give_up_step,
    leave,
    make_slot,
    plan_step,
)
from ubpx.core.values import Insn, ReadableRegisters, VirtAddr

_ATOMIC: Final = (
    "it belongs to a load-reserved/store-conditional sequence, whose store fails after a trap between the two, and "
    "which is sure to succeed only as it stands, without a jump to a copy"
)
_REFUSED: Final[Mapping[InsnClass, str]] = {
    InsnClass.SYSTEM_CALL: (
        "it is a system call (ecall): whether the kernel begins it again after a signal depends on where it was made, "
        "which from a copy would be elsewhere"
    ),
    InsnClass.BREAKPOINT: "it is a breakpoint (ebreak), of the program or of somebody else",
    InsnClass.FENCE: "it is a fence, which orders what the program does in place; the kernel's probes refuse it too",
    InsnClass.RESERVES: _ATOMIC,
    InsnClass.STORES_CONDITIONALLY: _ATOMIC,
    InsnClass.SYSTEM: "it is a system instruction, or uses a control register that is not the program's own",
    InsnClass.NO_INSTRUCTION: "it is unimp, which no processor executes",
    InsnClass.VECTOR: "it is of the vector extension, which is not decoded here",
}
_NO_JUMP: Final = "a jump reaches 1 MiB at most, so that there are none on riscv64"
_RELATIVE: Final = "what it does depends on where it stands"
_COPIED: Final = (Strategy.BOOST, Strategy.STEP)
_ALLOWED: Final[Mapping[InsnClass, tuple[Strategy, ...]]] = {
    **dict.fromkeys(EMULATED, (Strategy.EMULATE,)),
    InsnClass.NOP: (Strategy.EMULATE, *_COPIED),
    InsnClass.PLAIN: _COPIED,
}
_WHY_NOT: Final[Mapping[Strategy, str]] = {
    Strategy.EMULATE: "ubpx does not emulate this instruction",
    Strategy.JUMP: _NO_JUMP,
    Strategy.BOOST: _RELATIVE,
    Strategy.STEP: _RELATIVE,
    Strategy.INLINE: NO_SINGLE_STEP,
}
_REASONS: Final = {
    kind: {strategy: why for strategy, why in _WHY_NOT.items() if strategy not in allowed}
    for kind, allowed in _ALLOWED.items()
}
_ARGUMENTS: Final = 8
_NO_CHANGE: Final = Outcome(registers={})


@attrs.frozen
class RISCV64(Jumpless):
    """See Architecture."""

    decoder: RiscvDecoder = attrs.field(factory=RiscvDecoder)

    name: ClassVar[str] = "riscv64"
    register_names: ClassVar[tuple[str, ...]] = ("pc", *REGISTERS[1:])
    """As struct user_regs_struct has them (arch/riscv/include/uapi/asm/ptrace.h)."""
    pc_name: ClassVar[str] = "pc"
    sp_name: ClassVar[str] = "sp"
    own_trap_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    """None: a program cannot step itself."""
    moved_flag: ClassVar[tuple[str, int]] = ("pc", 0)
    sigreturn_calls: ClassVar[frozenset[int]] = frozenset({139})
    word_size: ClassVar[int] = 8
    address_limit: ClassVar[int] = 1 << 47
    """Of Sv48 and of what mmap gives under Sv57; under Sv39 it is nearer, and the kernel refuses what lies beyond."""
    outside_call: ClassVar[Mapping[str, int]] = {}
    """A call that begins again has its registers set back before a tracer sees them ("riscv: signal: handle syscall
    restart before get_signal", Linux 6.10): whoever sets others, the PC among them, has them as they are."""
    transient_registers: ClassVar[frozenset[str]] = frozenset()
    trap_bytes: ClassVar[bytes] = TRAP
    trap_forms: ClassVar[tuple[bytes, ...]] = (TRAP, LONG_TRAP)
    trap_advance: ClassVar[int] = 0
    nop_bytes: ClassVar[bytes] = b"\x01\x00"
    longest_insn: ClassVar[int] = LONGEST_INSN
    slot_size: ClassVar[int] = 32
    slot_reach: ClassVar[int] = 1 << 20
    has_single_step: ClassVar[bool] = False
    longest_sequence: ClassVar[int] = LONGEST_SEQUENCE
    no_jump: ClassVar[str] = _NO_JUMP

    def mistakable(self, memory: Memory, landing: VirtAddr) -> bool:  # noqa: ARG002 - the protocol's
        """See Architecture. The PC stays at a trap, and a trap may be anywhere."""
        return True

    def analyze(self, code: bytes, address: VirtAddr) -> InsnAnalysis:
        """See Architecture."""
        if address % PARCEL:
            raise InsnRefused(address, None, "no instruction begins at an odd address")
        encoding = parse(code)
        kind = insn_class(encoding) if encoding is not None else None
        if encoding is None or kind is None:
            raise InsnRefused(address, None, _why_unknown(code))
        insn = self._insn(code[: encoding.length], encoding, address)
        if kind in _REFUSED:
            raise InsnRefused(address, insn, _REFUSED[kind])
        landing = insn.end if kind is InsnClass.NOP else None
        if kind is InsnClass.JUMP and encoding.rd == 0:
            landing = target_of(encoding, kind, address)
        strategies = _ALLOWED[kind]
        copied = Strategy.BOOST in strategies
        return InsnAnalysis(
            insn=insn,
            strategies=strategies,
            refusals=_REASONS[kind],
            reach=(insn.end,) if copied else (),
            steps_anywhere=copied,
            landing=landing,
        )

    def _insn(self, raw: bytes, encoding: Encoding, address: VirtAddr) -> Insn:
        """What capstone has no words for is a HINT, or of an extension."""
        return Insn(address, raw, self.decoder.text(raw, address) or mnemonic(encoding) or "a vector instruction")

    def in_sequence(self, code: bytes, start: VirtAddr, address: VirtAddr) -> str | None:
        """See Architecture."""
        return in_sequence(code, start, address)

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """An ebreak or a c.ebreak; a thread that ran into it shows its address."""
        insn = analysis.insn
        is_one_word = insn.length == len(LONG_TRAP) and insn.address % len(LONG_TRAP) == 0
        trap = LONG_TRAP if is_one_word else TRAP
        return TrapPatch(address=insn.address, trap=trap, original=insn.raw[: len(trap)], reported_pc=insn.address)

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """See Architecture. Raises UsageError for what no slot can hold (jumps, branches, auipc)."""
        return make_slot(analysis, slot)

    def before_step(self, analysis: InsnAnalysis, slot: VirtAddr, regs: ReadableRegisters) -> StepPlan:  # noqa: ARG002
        """See Architecture. Raises UsageError in place, and for what no slot can hold."""
        return plan_step(analysis, slot)

    def after_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return finish_step(plan, regs)

    def cancel_step(self, plan: StepPlan, regs: ReadableRegisters) -> Outcome:
        """See Architecture. If the copy ran after all, the same as ``after_step``."""
        return give_up_step(plan, regs)

    def leave_slot(self, code: SlotCode, regs: ReadableRegisters) -> Outcome:
        """See Architecture."""
        return leave(code, regs)

    def hide_step(self, regs: ReadableRegisters) -> Outcome:  # noqa: ARG002 - the protocol's
        """See Architecture: nothing is left to be seen."""
        return _NO_CHANGE

    def restarted(self, regs: ReadableRegisters) -> Mapping[str, int] | None:  # noqa: ARG002 - the protocol's
        """None: the kernel has set the registers back before a tracer sees them."""
        return None

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        """See Architecture."""
        return VirtAddr(int.from_bytes(memory.read(VirtAddr(regs["sp"] + PC_IN_FRAME), 8), "little"))

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        """See Architecture."""
        return innermost(stack)

    def emulate(self, analysis: InsnAnalysis, regs: ReadableRegisters, memory: Memory) -> Outcome:
        """See Architecture."""
        return self.emulator(analysis)(regs, memory)

    def emulator(self, analysis: InsnAnalysis) -> Emulator:
        """See Architecture."""
        encoding = parse(analysis.insn.raw)
        kind = insn_class(encoding) if encoding is not None else None
        emulate = make_emulator(encoding, kind, analysis.insn) if encoding is not None and kind is not None else None
        if emulate is None:
            raise UsageError(f"'{analysis.insn}' cannot be emulated; use {' or '.join(analysis.strategies)}")
        return emulate

    def instruction_starts(self, code: bytes, address: VirtAddr) -> Iterator[VirtAddr]:
        """See Architecture."""
        return (each.start for each in self.flow(code, address))

    def flow(self, code: bytes, address: VirtAddr) -> Iterator[Flow]:
        """See Architecture. Of an operand's address auipc says the upper half alone, so that none is told."""
        for offset, encoding, kind in _linear(code, address):
            start = VirtAddr(address + offset)
            yield Flow(
                start,
                VirtAddr(start + encoding.length),
                target=target_of(encoding, kind, start),
                falls_through=falls_through(encoding, kind),
                calls=calls(encoding, kind),
            )

    def walk(
        self,
        code: bytes,
        address: VirtAddr,
        *,
        named: list[int] | None = None,  # noqa: ARG002 - see ``flow``
        near: range = range(0),  # noqa: ARG002
    ) -> Iterator[tuple[int, Hashable]]:
        """See Architecture."""
        return ((encoding.length, _kind(encoding, kind)) for _, encoding, kind in _linear(code, address))

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """See Architecture."""
        return (next(self.walk(code[at : at + LONGEST_INSN], VirtAddr(0)), (0, None)) for at in places)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """See Architecture. Source: RISC-V ELF psABI, "Integer Calling Convention"."""
        if index < _ARGUMENTS:
            return regs[f"a{index}"]
        return int.from_bytes(memory.read(VirtAddr(regs["sp"] + 8 * (index - _ARGUMENTS)), 8), "little")


def _linear(code: bytes, address: int) -> Iterator[tuple[int, Encoding, InsnClass]]:
    """Offset, encoding and class of one instruction after the other; ends at what is none."""
    offset = 0
    while address % PARCEL == 0 and (encoding := parse(code[offset : offset + LONGEST_INSN])) is not None:
        kind = insn_class(encoding)
        if kind is None:
            return
        yield offset, encoding, kind
        offset += encoding.length


def _kind(encoding: Encoding, kind: InsnClass) -> Hashable:
    return mnemonic(encoding), kind, encoding.length


def _why_unknown(code: bytes) -> str:
    if not code:
        return "nothing is readable there"
    length = length_of(int.from_bytes(code[:PARCEL], "little")) if len(code) >= PARCEL else PARCEL
    shown = code[:LONGEST_INSN].hex(" ")
    if length is None:
        return f"an instruction of more than 32 bits, and no RV64GC has such [{shown}]"
    if len(code) < length:
        return f"the instruction does not end in the {len(code)} bytes that are readable there [{shown}]"
    why = "no instruction of RV64GC: reserved, or of an extension that is not known here"
    return f"{'all bits are zero, which is no instruction' if not any(code[:PARCEL]) else why} [{shown}]"
