"""What each disassembler makes of an x86 instruction, in one language, so that they can be compared.

For tools that check the analysis and the copies; nothing that a probe needs is here. What the
libraries say is passed on, whether it is right or not, except where their *words* differ: which
of them is right about an instruction is for the reader (and the processor) to say.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final, Protocol

import attrs

from ubpx._errors import UsageError
from ubpx.core.ubp.decode import LONGEST_INSN, disassemblers


class FlowKind(StrEnum):
    """Where a thread goes after an instruction."""

    NEXT = "none"
    JUMP = "jump"
    CONDITIONAL = "conditional"
    CALL = "call"
    INDIRECT_JUMP = "indirect jump"
    INDIRECT_CALL = "indirect call"
    RETURN = "return"
    """From a call or from an interrupt."""
    INTERRUPT = "interrupt"
    """Into the kernel, or a monitor: a system call as well as int n."""
    NOWHERE = "nowhere"
    """It is there to fault, or halts: ud2, hlt."""


KNOWN_TO_BOTH: Final = frozenset({"x86_64", "i386"})
"""The architectures that both disassemblers read."""
DIRECT: Final = frozenset({FlowKind.JUMP, FlowKind.CONDITIONAL, FlowKind.CALL})
"""Those with a target that the instruction itself says."""


@attrs.frozen(kw_only=True)
class Opinion:
    """One instruction as one library sees it."""

    length: int
    flow: FlowKind
    text: str
    """Equal for the same instruction at another place: addresses are absolute, and what says nothing is left out
    (a branch's size, its prefixes)."""
    target: int | None
    """Where a direct branch leads."""
    operand: int | None
    """The address of a pc-relative memory operand."""


class Disassembler(Protocol):
    """One library, for 32 or 64 bits. Not for several threads at once."""

    name: str

    def opinion(self, code: bytes, address: int) -> Opinion | None:
        """On the instruction that ``code`` begins with; None if it is not one, or not whole."""
        ...


class Iced:
    """See Disassembler."""

    name = "iced"
    reads_gaps = False

    def __init__(self, bits: int) -> None:
        iced, _ = disassemblers()
        self.bits = bits
        self._decoder = iced.Decoder
        self._mask = (1 << bits) - 1
        self._formatter = iced.Formatter(iced.FormatterSyntax.INTEL)
        self._formatter.show_branch_size = False
        self._bare = iced.FormatMnemonicOptions.NO_PREFIXES
        self._flows = self._flow_table(iced.FlowControl)
        self._halt = iced.Mnemonic.HLT
        self._near = frozenset({iced.OpKind.NEAR_BRANCH16, iced.OpKind.NEAR_BRANCH32, iced.OpKind.NEAR_BRANCH64})

    @staticmethod
    def _flow_table(control: Any) -> dict[int, FlowKind]:
        return {
            control.UNCONDITIONAL_BRANCH: FlowKind.JUMP,
            control.INDIRECT_BRANCH: FlowKind.INDIRECT_JUMP,
            control.CONDITIONAL_BRANCH: FlowKind.CONDITIONAL,
            control.RETURN: FlowKind.RETURN,
            control.CALL: FlowKind.CALL,
            control.INDIRECT_CALL: FlowKind.INDIRECT_CALL,
            control.INTERRUPT: FlowKind.INTERRUPT,
            control.EXCEPTION: FlowKind.NOWHERE,
            control.XBEGIN_XABORT_XEND: FlowKind.CONDITIONAL,  # said of xbegin alone, whose abort handler is its target
        }

    def opinion(self, code: bytes, address: int) -> Opinion | None:
        """See Disassembler."""
        if not code:
            return None
        insn = self._decoder(self.bits, code[:LONGEST_INSN], ip=address & self._mask).decode()
        if insn.is_invalid:
            return None
        flow = self._flow(insn)
        target = None
        if flow in DIRECT and insn.op0_kind in self._near:
            target = insn.near_branch_target
            text = f"{self._formatter.format_mnemonic(insn, self._bare)} {target:#x}"
        else:
            text = self._formatter.format(insn)
        operand = insn.ip_rel_memory_address if insn.is_ip_rel_memory_operand else None
        return Opinion(length=insn.len, flow=flow, text=text, target=target, operand=operand)

    def _flow(self, insn: Any) -> FlowKind:
        flow = self._flows.get(insn.flow_control, FlowKind.NEXT)
        if flow is FlowKind.CALL and not (insn.is_call_near or insn.is_call_far):  # syscall, sysenter, vmcall, vmrun
            return FlowKind.INTERRUPT
        return FlowKind.NOWHERE if insn.mnemonic == self._halt else flow

    def lengths(self, code: bytes, address: int) -> Iterator[int]:
        """Length after length from the start of ``code`` on, ten million a second; ends at what is no instruction."""
        for insn in self._decoder(self.bits, code, ip=address & self._mask):
            if insn.is_invalid:
                return
            yield insn.len

    def bare(self, code: bytes, address: int) -> Any:
        """Decode and say nothing: the least that any analysis must do, to measure against."""
        return self._decoder(self.bits, code, ip=address).decode()

    def without_distance(self, code: bytes, address: int) -> bytes:
        """The instruction's bytes with zeros for the distance of its branch or operand: equal for its equals."""
        decoder = self._decoder(self.bits, code, ip=address & self._mask)
        insn = decoder.decode()
        raw = code[: insn.len]
        if insn.op_count and insn.op0_kind in self._near:
            offsets = decoder.get_constant_offsets(insn)
            return _blanked(raw, offsets.immediate_offset, offsets.immediate_size)
        if insn.is_ip_rel_memory_operand:
            offsets = decoder.get_constant_offsets(insn)
            return _blanked(raw, offsets.displacement_offset, offsets.displacement_size)
        return raw


def _blanked(raw: bytes, at: int, size: int) -> bytes:
    return raw[:at] + bytes(size) + raw[at + size :]


class Capstone:
    """See Disassembler."""

    name = "capstone"

    def __init__(self, bits: int) -> None:
        _, capstone = disassemblers()
        mode = capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32
        self._groups = capstone
        self._mask = (1 << bits) - 1
        self._words = capstone.Cs(capstone.CS_ARCH_X86, mode)
        self._details = capstone.Cs(capstone.CS_ARCH_X86, mode)
        self._details.detail = True
        self._flows: dict[tuple[str, bool], FlowKind] = {}

    def opinion(self, code: bytes, address: int) -> Opinion | None:
        """See Disassembler."""
        address &= self._mask
        found = next(iter(self._words.disasm_lite(code[:LONGEST_INSN], address, 1)), None)
        if found is None:
            return None
        _, length, mnemonic, operands = found
        flow = self._flow(code[:length], mnemonic, operands)
        if flow in DIRECT and _ADDRESS.fullmatch(operands):
            target = int(operands, 16) & self._mask
            return Opinion(
                length=length, flow=flow, text=f"{mnemonic.split()[-1]} {target:#x}", target=target, operand=None
            )
        text, operand = f"{mnemonic} {operands}".rstrip(), None
        if (relative := _PC_RELATIVE.search(text)) is not None:
            register, sign, distance = relative.groups()
            width = 64 if register == "rip" else 32
            operand = address + length + int(f"{sign or ''}{distance or 0}", 0) & (1 << width) - 1
            text = f"{text[: relative.start()]}[{operand:#x}]{text[relative.end() :]}"
        return Opinion(length=length, flow=flow, text=text, target=None, operand=operand)

    def _flow(self, raw: bytes, mnemonic: str, operands: str) -> FlowKind:
        """Asking for details is slow; they are equal for all instructions of one mnemonic and kind of operand."""
        key = mnemonic, _ADDRESS.fullmatch(operands) is not None
        known = self._flows.get(key)
        if known is None:
            known = _WITHOUT_GROUP.get(mnemonic) or self._flow_by_groups(raw, direct=key[1])
            self._flows[key] = known
        return known

    def _flow_by_groups(self, raw: bytes, *, direct: bool) -> FlowKind:
        library = self._groups
        insn = next(iter(self._details.disasm(raw, 0, 1)), None)
        groups = frozenset() if insn is None else frozenset(insn.groups)
        if library.CS_GRP_CALL in groups:
            return FlowKind.CALL if direct else FlowKind.INDIRECT_CALL
        if groups & {library.CS_GRP_RET, library.CS_GRP_IRET}:
            return FlowKind.RETURN
        if library.CS_GRP_INT in groups:
            return FlowKind.INTERRUPT
        if insn is not None and groups & {library.CS_GRP_JUMP, library.CS_GRP_BRANCH_RELATIVE}:
            if insn.mnemonic.split()[-1] not in _ALWAYS:
                return FlowKind.CONDITIONAL
            return FlowKind.JUMP if direct else FlowKind.INDIRECT_JUMP
        return FlowKind.NEXT


_WITHOUT_GROUP: Final = {**dict.fromkeys(("hlt", "ud0", "ud1", "ud2"), FlowKind.NOWHERE), "rsm": FlowKind.RETURN}
_ADDRESS: Final = re.compile("0x[0-9a-f]+|[0-9]")
"""An operand that is a target; a far one has a selector, too."""
_ALWAYS: Final = frozenset({"jmp", "ljmp"})
_PC_RELATIVE: Final = re.compile(r"\[([re]ip)(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")


def both_disassemblers(bits: int) -> tuple[Iced, Capstone]:
    """Both libraries. Raises UsageError if one is not installed."""
    try:
        return Iced(bits), Capstone(bits)
    except ImportError as error:
        raise UsageError("comparing needs both disassemblers; pip install iced-x86 capstone") from error
