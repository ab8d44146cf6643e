"""Values that every part speaks: addresses, identities, instructions."""

from enum import IntEnum, StrEnum
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


class Follow(StrEnum):
    """Whom a target's clients go along with."""

    NONE = "none"
    """Nobody: children are let go, and a process that execs is left at its new program."""
    FORK = "fork"
    """Children with a copy of its memory; all of them are left at an exec."""
    EXEC = "exec"
    """The process over its execs, and no child."""
    ALL = "all"
    """Children, however they are made, and everybody over their execs."""

    @property
    def forks(self) -> bool:
        """Whether a child with a copy of the memory is followed."""
        return self in (Follow.FORK, Follow.ALL)

    @property
    def execs(self) -> bool:
        """Whether a process stays traced when it execs."""
        return self in (Follow.EXEC, Follow.ALL)


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


@attrs.frozen(kw_only=True)
class MappedRange:
    """One line of /proc/PID/maps."""

    start: VirtAddr
    end: VirtAddr
    permissions: str
    """As the kernel prints them: ``r-xp``."""
    offset: int
    """Of ``start`` in the file, bytes."""
    device: str
    """``major:minor`` as the kernel prints it, hexadecimal."""
    inode: int
    """0 where no file is mapped."""
    path: str
    """The kernel's name for it, ``[heap]`` and the like included; "" for anonymous memory."""

    @property
    def executable(self) -> bool:
        """Whether the program may run code there."""
        return "x" in self.permissions

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


def parse_maps(text: str) -> tuple[MappedRange, ...]:
    """The ranges that the text of a /proc/PID/maps lists, in its order (ascending)."""
    ranges = []
    for line in text.splitlines():
        span, permissions, offset, device, inode, *path = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        ranges.append(
            MappedRange(
                start=VirtAddr(int(start, 16)),
                end=VirtAddr(int(end, 16)),
                permissions=permissions,
                offset=int(offset, 16),
                device=device,
                inode=int(inode),
                path=path[0] if path else "",
            )
        )
    return tuple(ranges)


MOST_JUMP_PAGES = 256
"""In one program; what is hot beyond that keeps its trap."""


class Urgency(StrEnum):
    """How soon the tracer thread gets a processor when others want it, too."""

    RAISED = "raised"
    """Before threads of the usual priority, where that is permitted."""
    USUAL = "usual"
    """As its host has it."""


class Placement(StrEnum):
    """On which processors the tracer thread runs."""

    FOLLOW = "follow"
    """On that of the thread that stops most often, for as long as stops are many and cost less so."""
    FREE = "free"
    """On those of its host."""


@attrs.frozen(kw_only=True)
class TracerPost:
    """How a tracer thread runs now."""

    urgency: Urgency
    """As it is in force: RAISED only if that was permitted."""
    nice: int
    """See nice(2)."""
    placement: Placement
    """As it was asked for."""
    processor: int | None
    """The one that it keeps to now."""


@attrs.frozen(kw_only=True)
class SlotUse:
    """How many slots of a program are what."""

    leased: int
    """They serve probepoints."""
    retired: int
    """Nobody leases them, and a thread may still be in one, where it waits in a system call for instance. None of them
    is used for anything else before all threads have been seen outside."""
    free: int
    """Mapped, and nothing is in them."""
    jump_pages: int = 0
    """Pages that were mapped for jumps which only few addresses can be the targets of; at most MOST_JUMP_PAGES."""


@attrs.frozen
class Watched:
    """What one hardware debug register watches."""

    address: VirtAddr
    """Aligned to ``size``."""
    size: int
    """In bytes: 1, 2, 4 or 8."""
    access: str
    """``WRITE``, ``READWRITE`` or ``EXECUTE``."""


@attrs.frozen(kw_only=True)
class Place:
    """Where a probe specification leads in one process, and what is known of the code around.

    A resolver gives what it knows; the bytes are read, and instructions proved, by the core.
    """

    address: VirtAddr
    name: str
    """For people: ``libc.so.6:write+0x4``, or the address where no symbol is near."""
    symbol_start: VirtAddr | None
    """Where the enclosing function starts: decoding from here proves an instruction's start.

    With ``gap`` it is one that unwind data alone describes.
    """
    symbol_end: VirtAddr | None
    """Behind the enclosing function's last byte; None, like ``symbol_start``, outside any."""
    entries: tuple[VirtAddr, ...] = ()
    """Where else in that function instructions are known to start: other functions' symbols, abort handlers."""
    data: tuple[tuple[VirtAddr, VirtAddr], ...] = ()
    """Spans of that function that are known to be data, ascending."""
    gap: str | None = None
    """Outside any symbol: which gap it is, from where to where and between what, for people; then it takes the client's
    word that an instruction starts there."""
    atomic: tuple[VirtAddr, VirtAddr] | None = None
    """The restartable sequence (rseq) that the address is in, or whose announcement ends there; never probed."""


@attrs.frozen(kw_only=True)
class HitRecord:
    """One hit as ``ubpx trace`` shows it."""

    time: float
    """Of the arrival, in seconds since 1970 UTC."""
    pid: ProcessId
    tid: ThreadId
    symbol: str
    """The spec that was asked for."""
    address: VirtAddr
    args: tuple[int, ...]
    """The first six, as at a function's entry, unsigned; fewer where the stack that holds them cannot be read."""


class Disturbance(IntEnum):
    """What a running thread would notice of being stopped; the more, the greater."""

    NONE = 0
    """It runs; or what it waits for in the kernel goes on, for the time that was left."""
    PERHAPS = 1
    """It waits, and might begin anew: on a socket with a time-out. Or transfer less than it was to."""
    TIME_OUT = 2
    """It waits anew for the whole of its time-out, if it has one."""


class Severity(StrEnum):
    """What a finding means for attaching."""

    FINE = "FINE"
    WARNING = "WARNING"
    """Attaching works; something else may not."""
    REFUSAL = "REFUSAL"
    """Attaching does not work."""


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that a diagnosis has looked at."""

    severity: Severity
    what: str
    """What was found, for people."""
    remedy: str
    """What to do about it; "" where all is fine."""


@attrs.frozen(kw_only=True)
class Diagnosis:
    """Whether a process can be attached to, found out by reading alone."""

    subject: str
    """What was looked at: ``4711 (nginx)``, or the machine."""
    findings: tuple[Finding, ...]

    @property
    def attachable(self) -> bool:
        """Whether nothing speaks against it."""
        return all(finding.severity is not Severity.REFUSAL for finding in self.findings)
