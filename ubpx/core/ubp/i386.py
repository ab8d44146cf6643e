"""The i386 architecture: 32-bit code, as a tracer of 64 bits sees it."""

from collections.abc import Mapping
from typing import ClassVar, Final

import attrs

from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import Decoder, default_decoder
from ubpx.core.ubp.x86_architecture import X86
from ubpx.core.ubp.x86_frames import innermost_32
from ubpx.core.ubp.x86_operands import MODE_32, Mode
from ubpx.core.values import ReadableRegisters, VirtAddr

_CONTEXT_IN_UCONTEXT: Final = 20
_EIP_IN_CONTEXT: Final = 14 * 4


@attrs.frozen
class I386(X86):
    """See Architecture."""

    decoder: Decoder = attrs.field(factory=lambda: default_decoder(32))

    mode: ClassVar[Mode] = MODE_32
    name: ClassVar[str] = "i386"
    register_names: ClassVar[tuple[str, ...]] = (
        "", "", "", "", "ebp", "ebx", "", "", "", "", "eax", "ecx", "edx", "esi", "edi",
        "orig_eax", "eip", "cs", "eflags", "esp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    """As struct user_regs_struct of x86_64 has them, without r8 to r15."""
    pc_name: ClassVar[str] = "eip"
    sp_name: ClassVar[str] = "esp"
    sigreturn_calls: ClassVar[frozenset[int]] = frozenset({119, 173})
    word_size: ClassVar[int] = 4
    address_limit: ClassVar[int] = 0xFFFF_E000
    outside_call: ClassVar[Mapping[str, int]] = {"orig_eax": 2**64 - 1}
    transient_registers: ClassVar[frozenset[str]] = frozenset({"orig_eax", "eflags"})

    def interrupted_pc(self, regs: ReadableRegisters, memory: Memory) -> VirtAddr:
        """See Architecture. Source: struct sigframe_ia32 and rt_sigframe_ia32, arch/x86/include/asm/sigframe.h."""
        sp = regs["esp"]
        _, signal, second, third = (int.from_bytes(memory.read(VirtAddr(sp + 4 * n), 4), "little") for n in range(4))
        # With SA_SIGINFO the handler has pointers to siginfo and ucontext; without, the context itself is there.
        context = third + _CONTEXT_IN_UCONTEXT if signal and second > sp and third > sp else sp + 8
        return VirtAddr(int.from_bytes(memory.read(VirtAddr(context + _EIP_IN_CONTEXT), 4), "little"))

    def innermost_frame(self, stack: bytes) -> tuple[VirtAddr, VirtAddr] | None:
        """See Architecture."""
        return innermost_32(stack)

    def argument(self, index: int, regs: ReadableRegisters, memory: Memory) -> int:
        """See Architecture. Source: System V ABI, Intel386 supplement, section 2.2.3."""
        address = regs["esp"] + 4 * (index + 1) & 0xFFFF_FFFF
        return int.from_bytes(memory.read(VirtAddr(address), 4), "little")
