"""The x86_64 architecture: 64-bit mode of x86."""

from collections.abc import Mapping
from typing import ClassVar, Final

import attrs

from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import Decoder, default_decoder
from ubpx.core.ubp.x86_architecture import X86
from ubpx.core.ubp.x86_frames import innermost_64
from ubpx.core.ubp.x86_operands import MODE_64, Mode
from ubpx.core.values import ReadableRegisters, VirtAddr

_RIP_IN_FRAME: Final = 8 + 40 + 16 * 8
"""Behind the return address, uc_flags, uc_link and uc_stack: the 17th word of struct sigcontext."""
_ARGUMENT_REGISTERS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


@attrs.frozen
class X86_64(X86):  # noqa: N801  (the processor's own name)
    """See Architecture."""

    decoder: Decoder = attrs.field(factory=lambda: default_decoder(64))

    mode: ClassVar[Mode] = MODE_64
    name: ClassVar[str] = "x86_64"
    register_names: ClassVar[tuple[str, ...]] = (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    """As struct user_regs_struct has them."""
    pc_name: ClassVar[str] = "rip"
    sp_name: ClassVar[str] = "rsp"
    sigreturn_calls: ClassVar[frozenset[int]] = frozenset({15})
    word_size: ClassVar[int] = 8
    address_limit: ClassVar[int] = 0x7FFF_FFFF_F000
    outside_call: ClassVar[Mapping[str, int]] = {"orig_rax": 2**64 - 1}
    transient_registers: ClassVar[frozenset[str]] = frozenset({"orig_rax", "eflags"})

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        """See Architecture. Source: struct rt_sigframe, arch/x86/include/asm/sigframe.h."""
        return VirtAddr(int.from_bytes(memory.read(VirtAddr(regs["rsp"] + _RIP_IN_FRAME), 8), "little"))

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        """See Architecture."""
        return innermost_64(stack)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """See Architecture. Source: System V ABI, AMD64 supplement, section 3.2.3."""
        if index < len(_ARGUMENT_REGISTERS):
            return regs[_ARGUMENT_REGISTERS[index]]
        behind_return_address = 1 + index - len(_ARGUMENT_REGISTERS)
        return int.from_bytes(memory.read(VirtAddr(regs["rsp"] + 8 * behind_return_address), 8), "little")
