"""Values that every part speaks: addresses, identities, instructions."""

from typing import NewType, Protocol

import attrs

VirtAddr = NewType("VirtAddr", int)
"""An address in the target's memory."""

ThreadId = NewType("ThreadId", int)
"""A Linux tid, as the tracer's PID namespace numbers it."""

ProcessId = NewType("ProcessId", int)
"""A Linux pid (thread-group id), as the tracer's PID namespace numbers it."""

AddressSpaceId = NewType("AddressSpaceId", int)
"""One memory. Threads share it, vfork children too; an exec makes a new one."""

PAGE_SIZE = 4096


class ReadableRegisters(Protocol):
    """Registers by the architecture's own names; a plain dict will do.

    Values are unsigned and as wide as the register.
    """

    def __getitem__(self, name: str, /) -> int: ...


@attrs.frozen
class Insn:
    """One machine instruction as it stands in the program, without any trap of ours."""

    address: VirtAddr
    raw: bytes = attrs.field(repr=bytes.hex)
    text: str
    """In the disassembler's words, for people."""

    @property
    def length(self) -> int:
        """In bytes."""
        return len(self.raw)

    @property
    def end(self) -> VirtAddr:
        """The address right behind the instruction."""
        return VirtAddr(self.address + len(self.raw))

    def __str__(self) -> str:
        return f"{self.text} [{self.raw.hex(' ')}]"
