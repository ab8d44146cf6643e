"""What a FakeTracer traces: processes and threads that do what a test tells them."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableSequence
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple

import attrs

from ubpx.core.ports import Site
from ubpx.core.ubp import ARCHITECTURES, architecture
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import Disturbance, ProcessId, ThreadId, VirtAddr, Watched
from ubpx.testing.memory import FakeMemory

PC: Final = X86_64.register_names.index(X86_64.pc_name)
"""In x86's words, of either mode."""
_X86: Final = ("i386", "x86_64")


def _positions(names: Iterable[str]) -> Mapping[str, int]:
    return {
        register: position
        for name in names
        for position, register in enumerate(architecture(name).register_names)
        if register
    }


POSITIONS: Final = _positions(_X86)
"""Of the registers of both modes of x86: each word has one name in either."""


class Layout(NamedTuple):
    """What the words of a thread are."""

    size: int
    positions: Mapping[str, int]
    pc: int


@cache
def layout(name: str) -> Layout:
    """That of an architecture; a thread of x86 has names of both modes, for an exec may change between them."""
    described = architecture(name)
    names = described.register_names
    positions = POSITIONS if name in _X86 else _positions((name,))
    return Layout(len(names), positions, names.index(described.pc_name))


class Condition(StrEnum):
    """What a fake thread does now, as the kernel sees it."""

    RUNNING = "RUNNING"
    BLOCKED = "BLOCKED"
    """In vfork: neither runs nor can be stopped until the child execs or exits."""
    STOPPED = "STOPPED"
    LISTENING = "LISTENING"
    GONE = "GONE"


class Stop(StrEnum):
    """What kind of stop a stopped thread is in; decides what the kernel lets a tracer do."""

    SIGNAL = "SIGNAL"
    """For a signal, a trap or a step's end: a signal can be delivered from here."""
    EVENT = "EVENT"
    """At clone, fork, vfork, exec or exit: no system call can be injected before ``settle``."""
    PLAIN = "PLAIN"
    """Interrupted, or in a group-stop."""


@attrs.frozen(kw_only=True)
class Happening:
    """One thing that a thread will do when it runs."""

    what: str
    act: Callable[[], None]
    """Run in the tracer thread when the thread gets there."""
    since: int
    """When it was scripted, by the tracer's count."""
    signal: int = 0
    late: bool = False
    """Done already, but an interrupt is reported first."""
    overtakes: bool = False
    """It is reported before a pending interrupt, which it clears."""
    stepping: bool = False
    """The end of a single step."""
    scripted: bool = True
    """False: it comes by itself."""


class FakeThread:
    """One thread (a ``ports.TracedThread``). Owned by its FakeTracer."""

    def __init__(self, tid: ThreadId, pid: ProcessId, machine: str = "x86_64") -> None:
        self.tid: Final = tid
        self.pid: Final = pid
        self.layout = layout(machine)
        self.words: MutableSequence[int] = [0] * self.layout.size
        self.sites: Mapping[int, Site] = {}
        self.held = False
        self.reports_syscalls = False
        self.stops = 0
        self.watched: tuple[Watched | None, ...] = ()
        self.registers: list[int] = [0] * self.layout.size
        """What the thread itself has; ``words`` are the tracer's copy."""
        self.condition = Condition.RUNNING
        self.stop = Stop.PLAIN
        self.traced = False
        self.siginfo = b""
        self.x87_pointer = 0
        """Where its last floating-point instruction was (FIP)."""
        self.mask = 0
        """Blocked signals, signal n being bit n-1."""
        self.group_signal = 0
        """What put its process into a group-stop; 0: it is in none."""
        self.waits_for: ProcessId | None = None
        """Its vfork child."""
        self.disturbance = Disturbance.NONE
        """What it would notice of being stopped."""
        self.interrupt_since: int | None = None
        """When it was asked to stop, while that is pending."""
        self.must_trap = False
        """It was asked to stop while it stood still: it does so before it does anything else."""
        self.overtaken: Happening | None = None
        """What had happened already when an interrupt was reported."""
        self.ready_since = 0
        """When it was last let run."""
        self.exit_status: int | None = None
        """Once it stands at its exit event."""
        self.script: Final[deque[Happening]] = deque()
        self.steps: Final[deque[Happening]] = deque()
        """What comes instead of the end of its next steps."""

    def __getitem__(self, register: str) -> int:
        """The register that the thread itself has."""
        return self.registers[self.layout.positions[register]]

    def __setitem__(self, register: str, value: int) -> None:
        self.registers[self.layout.positions[register]] = value

    def begin(self, machine: str) -> None:
        """A new program, made for that architecture: its registers are 0, and as before where nobody knows others."""
        if machine in ARCHITECTURES:
            self.layout = layout(machine)
        self.words[:] = [0] * self.layout.size
        self.registers[:] = self.words

    @property
    def at(self) -> int:
        """Where the thread itself stands: its PC."""
        return self.registers[self.layout.pc]

    @at.setter
    def at(self, address: int) -> None:
        self.registers[self.layout.pc] = address

    def next(self) -> Happening | None:
        """What it does next, blocked signals left aside."""
        return next((each for each in self.script if not self.blocks(each.signal)), None)

    def blocks(self, signal: int) -> bool:
        """Whether the signal waits until it is unblocked."""
        return bool(signal and self.mask >> (signal - 1) & 1)

    def __repr__(self) -> str:
        return f"<fake thread {self.tid}, {self.condition}, {len(self.script)} scripted>"


@attrs.define(eq=False)
class FakeProcess:
    """One process. Owned by its FakeTracer."""

    pid: ProcessId
    memory: FakeMemory
    entry: VirtAddr
    architecture: str = "x86_64"
    """What its program is made for."""
    own_child: bool = False
    """The embedding program is its parent."""
    can_map: bool = True
    """False: ``map_area`` raises SlotsExhausted."""
    areas: dict[int, int] = attrs.field(factory=dict)
    """Sizes of the areas that it mapped for the tracer, by address."""
    threads: dict[ThreadId, FakeThread] = attrs.field(factory=dict)
    """The living ones."""
    vfork_parent: FakeThread | None = None


def siginfo(number: int, code: int, address: int) -> bytes:
    """A siginfo as the kernel lays it out on x86_64: signo, errno, code, and si_addr at 16."""
    head = number.to_bytes(4, "little") + bytes(4) + code.to_bytes(4, "little", signed=True) + bytes(4)
    return (head + address.to_bytes(8, "little")).ljust(128, b"\0")


def describe(threads: Mapping[ThreadId, FakeThread]) -> str:
    """For a failure's message."""
    return ", ".join(map(repr, threads.values())) or "no thread"


Log = list[tuple[Any, ...]]
"""What the core asked for and what threads did, in order: (action, tid, details...)."""
