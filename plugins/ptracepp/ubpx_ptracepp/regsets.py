"""Registers by PTRACE_GETREGSET, which every architecture has: what each set is, as data, and how it is moved.

aarch64 and riscv64 have no PTRACE_GETREGS. x86_64's general set is here too: there it must be the same as what
PTRACE_GETREGS gives, which the hot path uses.

At a stop of a system call its number and arguments are asked by PTRACE_GET_SYSCALL_INFO, which knows them everywhere:
by then riscv64's first argument register holds the result-to-be (do_trap_ecall_u).

Sources: include/uapi/linux/elf.h (numbers of sets); arch/arm64/include/uapi/asm/ptrace.h, arch/arm64/kernel/ptrace.c,
arch/riscv/include/uapi/asm/ptrace.h, arch/riscv/kernel/ptrace.c. Calling conventions: AAPCS64; RISC-V ELF psABI; System
V ABI, AMD64 supplement.
"""

import ctypes
from collections.abc import Mapping
from typing import Final

import attrs

from ubpx import UsageError
from ubpx_ptracepp import calls
from ubpx_ptracepp.requests import PTRACE_GETREGSET, PTRACE_SETREGSET, request

NT_PRSTATUS: Final = 1
NT_PRFPREG: Final = 2
NT_ARM_TLS: Final = 0x401
NT_ARM_SYSTEM_CALL: Final = 0x404


@attrs.frozen(kw_only=True)
class Field:
    """One register in a set."""

    name: str
    offset: int
    """In bytes."""
    size: int
    """In bytes; little-endian."""


@attrs.frozen(kw_only=True)
class RegisterSet:
    """What one PTRACE_GETREGSET moves."""

    note: int
    """Its number (NT_*)."""
    kernel_type: str
    """What the kernel's headers call its layout."""
    fields: tuple[Field, ...]
    size: int
    """In bytes, what is reserved at its end included."""

    def values(self, data: bytes) -> Mapping[str, int]:
        """Of all registers, unsigned, from a set as ``fetch`` gives it; of those alone that a shorter one has."""
        return {
            each.name: int.from_bytes(data[each.offset : each.offset + each.size], "little")
            for each in self.fields
            if each.offset + each.size <= len(data)
        }

    def changed(self, data: bytes, registers: Mapping[str, int]) -> bytes:
        """A set with other values in these registers; raises UsageError for one that cannot be, or cannot have it."""
        image = bytearray(data)
        fields = {each.name: each for each in self.fields}
        for name, value in registers.items():
            field = fields.get(name)
            if field is None:
                raise UsageError(f"{self.kernel_type} has no register {name!r}; it has {', '.join(fields)}")
            if not 0 <= value < 1 << 8 * field.size:
                raise UsageError(f"{value:#x} is no value for {name}, which has {field.size} bytes")
            image[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
        return bytes(image)


@attrs.frozen(kw_only=True)
class Convention:
    """Who passes what in which register: programs to the kernel, and to each other. Names are those of the sets."""

    architecture: str
    """As ``ubpx.core.ubp.architecture`` takes it."""
    general: RegisterSet
    """Its fields are the words of a thread, in the core's order."""
    others: tuple[RegisterSet, ...]
    calls: Mapping[str, int]
    """Numbers of system calls by name."""
    insn: bytes
    """The instruction that makes one."""
    number: str
    """Takes its number."""
    arguments: tuple[str, ...]
    """Take its arguments, in order."""
    result: str
    number_set: RegisterSet | None
    """The set by which a tracer changes the number at a call's entry; None: ``number`` itself."""
    parameters: tuple[str, ...]
    """Take a function's integer arguments, in order; the others lie on the stack."""
    returned: tuple[str, ...]
    """Where a function's integer result is."""
    link: str | None
    """The register with a function's return address; None: it is on the stack."""
    stack_alignment: int
    """Of the stack pointer where a function is called, bytes."""


def _words(names: str) -> tuple[Field, ...]:
    return tuple(Field(name=name, offset=8 * place, size=8) for place, name in enumerate(names.split()))


def _numbered(letter: str, count: int) -> str:
    return " ".join(f"{letter}{number}" for number in range(count))


X86_64_GENERAL: Final = RegisterSet(
    note=NT_PRSTATUS,
    kernel_type="struct user_regs_struct",
    fields=_words(
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
        "ds es fs gs"
    ),
    size=216,
)
AARCH64_GENERAL: Final = RegisterSet(
    note=NT_PRSTATUS,
    kernel_type="struct user_pt_regs",
    fields=_words(f"{_numbered('x', 31)} sp pc pstate"),
    size=272,
)
AARCH64_VECTORS: Final = RegisterSet(
    note=NT_PRFPREG,
    kernel_type="struct user_fpsimd_state",
    fields=(
        *(Field(name=f"v{number}", offset=16 * number, size=16) for number in range(32)),
        Field(name="fpsr", offset=512, size=4),
        Field(name="fpcr", offset=516, size=4),
    ),
    size=528,
)
AARCH64_THREAD: Final = RegisterSet(
    note=NT_ARM_TLS,
    kernel_type="unsigned long[2]",
    fields=_words("tpidr tpidr2"),
    size=16,
)
"""Its second word is there with SME alone (Linux 6.3)."""
AARCH64_CALL: Final = RegisterSet(
    note=NT_ARM_SYSTEM_CALL,
    kernel_type="int",
    fields=(Field(name="syscallno", offset=0, size=4),),
    size=4,
)
"""-1, as unsigned: it is in none, or makes none."""
RISCV64_GENERAL: Final = RegisterSet(
    note=NT_PRSTATUS,
    kernel_type="struct user_regs_struct",
    fields=_words(f"pc ra sp gp tp t0 t1 t2 s0 s1 {_numbered('a', 8)} s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"),
    size=256,
)
RISCV64_FLOATS: Final = RegisterSet(
    note=NT_PRFPREG,
    kernel_type="struct __riscv_d_ext_state",
    fields=(
        *(Field(name=f"f{number}", offset=8 * number, size=8) for number in range(32)),
        Field(name="fcsr", offset=256, size=4),
    ),
    size=264,
)

X86_64: Final = Convention(
    architecture="x86_64",
    general=X86_64_GENERAL,
    others=(),
    calls=calls.X86_64,
    insn=b"\x0f\x05",
    number="rax",
    arguments=("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    result="rax",
    number_set=None,
    parameters=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    returned=("rax", "rdx"),
    link=None,
    stack_alignment=16,
)
AARCH64: Final = Convention(
    architecture="aarch64",
    general=AARCH64_GENERAL,
    others=(AARCH64_VECTORS, AARCH64_THREAD),
    calls=calls.AARCH64,
    insn=b"\x01\x00\x00\xd4",  # svc #0
    number="x8",
    arguments=tuple(_numbered("x", 6).split()),
    result="x0",
    number_set=AARCH64_CALL,
    parameters=tuple(_numbered("x", 8).split()),
    returned=("x0", "x1"),
    link="x30",
    stack_alignment=16,
)
RISCV64: Final = Convention(
    architecture="riscv64",
    general=RISCV64_GENERAL,
    others=(RISCV64_FLOATS,),
    calls=calls.RISCV64,
    insn=b"\x73\x00\x00\x00",  # ecall
    number="a7",
    arguments=tuple(_numbered("a", 6).split()),
    result="a0",
    number_set=None,
    parameters=tuple(_numbered("a", 8).split()),
    returned=("a0", "a1"),
    link="ra",
    stack_alignment=16,
)
CONVENTIONS: Final[Mapping[str, Convention]] = {each.architecture: each for each in (X86_64, AARCH64, RISCV64)}
"""By architecture."""


class _Vector(ctypes.Structure):
    """Struct iovec: where a set lies, and how many bytes of it."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def fetch(tid: int, registers: RegisterSet) -> bytes | None:
    """The set of a stopped thread, as many bytes as the kernel has of it; None if the thread is gone.

    Raises PtraceFailed: EINVAL where the kernel or the processor has no such set.
    """
    buffer = ctypes.create_string_buffer(registers.size)
    vector = _Vector(ctypes.addressof(buffer), registers.size)
    if not request(PTRACE_GETREGSET, tid, registers.note, ctypes.addressof(vector)):
        return None
    return buffer.raw[: vector.length]


def store(tid: int, registers: RegisterSet, data: bytes) -> bool:
    """Give a stopped thread the set; False: it is gone. Raises PtraceFailed for values that cannot be."""
    buffer = ctypes.create_string_buffer(data, len(data))
    vector = _Vector(ctypes.addressof(buffer), len(data))
    return request(PTRACE_SETREGSET, tid, registers.note, ctypes.addressof(vector))
