"""What a handler gets: a hit with the face of ``ubpx.Hit``, made of the message that told of it."""

from collections.abc import Iterator, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Final, Self

from ubpx import MemoryFault, Snapshot, StaleHit, UnknownRegister, UsageError
from ubpx.core.ports import Memory
from ubpx.core.ubp import Architecture, architecture
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx_froggy.client.checks import as_word, is_int, is_text
from ubpx_froggy.messages import LayoutInfo, TargetInfo
from ubpx_froggy.wire import WireError

_WORD: Final = 8
_ARGUMENTS_IN_SNAPSHOT: Final = 6


class Surroundings:
    """What all hits of one target share, while it runs programs of one architecture."""

    def __init__(self, info: TargetInfo, memory: Memory) -> None:
        """Raises WireError if that is no description of a target."""
        self.pid = ProcessId(info.pid)
        self.memory = memory
        self.describe(info)
        self._by_size: Final[dict[int, Surroundings]] = {self.size: self}
        for layout in info.others:
            other = copy(self)
            other.describe(layout)
            if self._by_size.setdefault(other.size, other) is not other:
                raise WireError(f"two architectures have {len(layout.registers)} registers")

    def describe(self, layout: TargetInfo | LayoutInfo) -> None:
        """Be those of this architecture; raises WireError. For those that are not in use yet."""
        if layout.pc not in layout.registers:
            raise WireError(f"no register {layout.pc!r} among those that were announced")
        self.architecture_name = layout.architecture
        self.names = tuple(layout.registers)
        self.index: Mapping[str, int] = {name: position for position, name in enumerate(layout.registers)}
        self.pc = self.index[layout.pc]
        self.size = _WORD * len(self.names)
        """Of the registers in a message, in bytes."""
        self._architecture: Architecture | None = None

    def of(self, registers: bytes) -> "Surroundings":
        """Those of the program that these registers come from. Raises WireError if it was not announced."""
        found = self._by_size.get(len(registers))
        if found is None:
            announced = " or ".join(map(str, self._by_size))
            raise WireError(f"a hit with {len(registers)} bytes of registers, where {announced} were announced")
        return found

    def inside(self, process: int) -> Self:
        """Those in a followed child of the target."""
        other = copy(self)
        other.pid = ProcessId(process)
        other.enter(process)
        return other

    def enter(self, process: int) -> None:
        """Have the memory of a followed child. For those that are not in use yet."""
        memory: Any = self.memory
        self.memory = memory.of(process)

    @property
    def architecture(self) -> Architecture:
        """Loaded when it is first asked for; raises UsageError if it is not supported here."""
        if self._architecture is None:
            self._architecture = architecture(self.architecture_name)
        return self._architecture


class Arrival:
    """What a hit and its views share. Owned by whoever runs the handler, who ends it."""

    __slots__ = ("around", "lease", "registers", "thread", "time", "writes")

    def __init__(self, lease: Any, thread: int, registers: bytes, time: float, around: Surroundings) -> None:
        self.lease: Final = lease
        self.thread: Final = thread
        self.registers: bytes | None = registers
        """None: it is over."""
        self.time: Final = time
        self.around: Final = around
        self.writes: dict[str, int] | None = None

    def live(self) -> bytes:
        """The registers, as they came; raises StaleHit."""
        if self.registers is None:
            raise StaleHit
        return self.registers

    def word(self, position: int) -> int:
        """One register; raises StaleHit."""
        start = _WORD * position
        return int.from_bytes(self.live()[start : start + _WORD], "little")

    def read(self, name: str) -> int:
        """A register by name; raises StaleHit, UnknownRegister."""
        self.live()
        around = self.around
        position = around.index.get(name) if is_text(name) else None
        if position is None:
            raise UnknownRegister(around.architecture_name, name, around.names)
        return self.word(position)

    def write(self, name: str, value: int) -> None:
        """Collect a write; raises StaleHit, UnknownRegister, UsageError."""
        self.read(name)
        if self.lease.mode != "sync":
            raise UsageError(
                f"register {name} cannot be written by a handler with mode={self.lease.mode!r}: its thread has gone "
                "on; probe with mode='sync'"
            )
        if self.writes is None:
            self.writes = {}
        self.writes[name] = as_word(name, value)


class RegistersByName(Mapping[str, int]):
    """What the stateless layer reads arguments from."""

    __slots__ = ("_arrival",)

    def __init__(self, arrival: Arrival) -> None:
        self._arrival: Final = arrival

    def __getitem__(self, name: str) -> int:
        return self._arrival.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrival.around.names)

    def __len__(self) -> int:
        return len(self._arrival.around.names)


class RemoteRegisters:
    """The thread's registers at arrival, by name; writes travel with the answer, and apply once.

    Attributes and items are the same: ``regs.rdi``, ``regs["rdi"]``. Values are unsigned,
    a write is cut to the register's size.
    """

    __slots__ = ("_arrival",)
    _arrival: Arrival

    def __init__(self, arrival: Arrival) -> None:
        object.__setattr__(self, "_arrival", arrival)

    def __getitem__(self, name: str) -> int:
        return self._arrival.read(name)

    def __setitem__(self, name: str, value: int) -> None:
        self._arrival.write(name, value)

    def __getattr__(self, name: str) -> int:
        return self._arrival.read(name)

    def __setattr__(self, name: str, value: int) -> None:
        self._arrival.write(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrival.around.names)

    def __bytes__(self) -> bytes:
        """All at once: 64-bit words in the order of iteration, little-endian; as at arrival."""
        return self._arrival.live()

    def __repr__(self) -> str:
        return "<registers " + " ".join(f"{name}={self[name]:#x}" for name in self) + ">"


class RemoteArguments:
    """Integer arguments as at a function's entry, read when asked for."""

    __slots__ = ("_arrival",)

    def __init__(self, arrival: Arrival) -> None:
        self._arrival: Final = arrival

    def __getitem__(self, index: int) -> int:
        return argument(index, self._arrival, self._arrival.around.memory)


def argument(index: int, arrival: Arrival, memory: Memory) -> int:
    """One integer argument; raises StaleHit, UsageError, and what reading ``memory`` raises."""
    arrival.live()
    if not is_int(index) or index < 0:
        raise UsageError(f"hit.args[{index!r}]: arguments are counted from 0; nobody knows how many there are")
    return arrival.around.architecture.argument(index, RegistersByName(arrival), memory)


def _first_arguments(args: RemoteArguments) -> Iterator[int]:
    """As many as can be had without waiting: those on a stack cannot in an event loop."""
    for index in range(_ARGUMENTS_IN_SNAPSHOT):
        try:
            yield args[index]
        except (MemoryFault, UsageError):
            return


class AnyHit:
    """What a hit shows that is known without asking."""

    __slots__ = ("_arrival",)

    def __init__(self, arrival: Arrival) -> None:
        self._arrival: Final = arrival

    @property
    def address(self) -> VirtAddr:
        """The probed address; for a watchpoint, the next instruction's."""
        return VirtAddr(self._arrival.word(self._arrival.around.pc))

    @property
    def pid(self) -> ProcessId:
        """The process that the thread belongs to."""
        self._arrival.live()
        return self._arrival.around.pid

    @property
    def tid(self) -> ThreadId:
        """The thread that arrived."""
        self._arrival.live()
        return ThreadId(self._arrival.thread)

    @property
    def time(self) -> float:
        """When it arrived, in seconds since 1970 UTC; with ``mode="sync"`` when we were told."""
        self._arrival.live()
        return self._arrival.time

    @property
    def lease(self) -> Any:
        """The lease whose handler runs."""
        self._arrival.live()
        return self._arrival.lease

    @property
    def regs(self) -> RemoteRegisters:
        """The registers at arrival, the PC being the probed address; to read and, with ``mode="sync"``, to write."""
        self._arrival.live()
        return RemoteRegisters(self._arrival)

    @property
    def args(self) -> RemoteArguments:
        """Integer arguments, right at a function's entry only: ``hit.args[0]``."""
        self._arrival.live()
        return RemoteArguments(self._arrival)

    def snapshot(self) -> Snapshot:
        """A frozen copy that stays valid."""
        arrival = self._arrival
        return Snapshot(
            address=self.address,
            pid=self.pid,
            tid=self.tid,
            regs=MappingProxyType({name: arrival.read(name) for name in arrival.around.names}),
            args=tuple(_first_arguments(self.args)),
            lease=arrival.lease,
        )

    def __repr__(self) -> str:
        try:
            return f"<hit of thread {self.tid} at {self.address:#x}>"
        except StaleHit:  # also while we look: who watches for handlers that overrun is another thread
            return "<hit, over>"


class RemoteHit(AnyHit):
    """One arrival of one thread at one probepoint, as one client's handler sees it.

    Valid until the handler returns; used later it raises StaleHit. ``snapshot()`` is a copy to keep. With
    ``mode="notify"`` the thread has gone on: registers are those at arrival, and memory is as it is now.
    """

    __slots__ = ()

    @property
    def memory(self) -> Memory:
        """The program's memory; no trap of ubpx is ever seen in it."""
        self._arrival.live()
        return self._arrival.around.memory
