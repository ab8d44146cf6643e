"""What a handler gets: the hit, valid until the handler returns."""

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs

from ubpx._errors import MemoryFault, StaleHit, UnknownRegister, UsageError
from ubpx.core.checks import is_int, is_text
from ubpx.core.ports import Memory, TracedThread
from ubpx.core.registers import RegisterLayout, WordRegisters
from ubpx.core.ubp.plans import Architecture
from ubpx.core.values import ProcessId, ThreadId, VirtAddr

_ARGUMENTS_IN_SNAPSHOT: Final = 6


def as_word(name: str, value: object, layout: RegisterLayout) -> int:
    """What a register holds after ``value`` was written: as many of its lowest bits as fit. Raises UsageError unless
    it is an int.
    """
    if not isinstance(value, int):
        raise UsageError(f"register {name} cannot be {value!r}; write an int")
    return value & layout.mask


class Surroundings(Protocol):
    """What all hits of one process share."""

    @property
    def architecture(self) -> Architecture: ...
    @property
    def layout(self) -> RegisterLayout: ...
    @property
    def memory(self) -> Memory: ...


@attrs.frozen(kw_only=True)
class Snapshot:
    """A hit to keep: plain values."""

    address: VirtAddr
    pid: ProcessId
    tid: ThreadId
    regs: Mapping[str, int]
    args: tuple[int, ...]
    """The first six, as at a function's entry; fewer where the stack that holds them cannot be read."""
    lease: Any


class HitRegisters:
    """The thread's registers at arrival, by name; writes apply once, after all handlers.

    Attributes and items are the same: ``regs.rdi``, ``regs["rdi"]``. Values are unsigned,
    a write is cut to the register's size.
    """

    __slots__ = ("_hit",)
    _hit: "Hit"

    def __getitem__(self, name: str) -> int:
        hit = self._hit
        if hit._thread is None:
            raise StaleHit
        layout = hit._surroundings.layout
        position = layout.index.get(name) if is_text(name) else None
        if position is None:
            raise UnknownRegister(layout.architecture, name, layout.names)
        return hit._thread.words[position] & layout.mask

    def __setitem__(self, name: str, value: int) -> None:
        self[name]  # an unknown name and a stale hit raise
        if self._hit._writes is None:
            self._hit._writes = {}
        self._hit._writes[name] = as_word(name, value, self._hit._surroundings.layout)

    def __getattr__(self, name: str) -> int:
        return self[name]

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._hit._surroundings.layout.names)

    def __bytes__(self) -> bytes:
        """All at once: 64-bit words in the order of iteration, little-endian; as at arrival."""
        return self._hit.brief()[1]

    def __repr__(self) -> str:
        return "<registers " + " ".join(f"{name}={self[name]:#x}" for name in self) + ">"


_set_hit: Final[Callable[[HitRegisters, "Hit"], None]] = vars(HitRegisters)["_hit"].__set__
"""Past ``HitRegisters.__setattr__``."""


def _view(layout: RegisterLayout) -> type[HitRegisters]:
    """What ``hit.regs`` is where registers lie so, each name an attribute of its own: a third of the time."""
    if layout.view is None:
        layout.view = _view_of(layout.architecture, tuple(layout.index.items()), layout.mask)
    view: type[HitRegisters] = layout.view
    return view


@functools.cache
def _view_of(architecture: str, places: tuple[tuple[str, int], ...], mask: int) -> type[HitRegisters]:
    members: dict[str, Any] = {name: property(_reader(position, mask)) for name, position in places}
    return type(f"{HitRegisters.__name__}_{architecture}", (HitRegisters,), {"__slots__": (), **members})


def _reader(position: int, mask: int) -> Callable[[HitRegisters], int]:
    def read(registers: HitRegisters) -> int:
        thread = registers._hit._thread
        if thread is None:
            raise StaleHit
        return thread.words[position] & mask

    return read


class HitArguments:
    """Integer arguments as at a function's entry, read when asked for."""

    __slots__ = ("_hit",)

    def __init__(self, hit: "Hit") -> None:
        self._hit = hit

    def __getitem__(self, index: int) -> int:
        thread = self._hit._live()
        if not is_int(index) or index < 0:
            raise UsageError(f"hit.args[{index!r}]: arguments are counted from 0; nobody knows how many there are")
        around = self._hit._surroundings
        return around.architecture.argument(index, WordRegisters(thread.words, around.layout), around.memory)


def _first_arguments(args: HitArguments) -> Iterator[int]:
    for index in range(_ARGUMENTS_IN_SNAPSHOT):
        try:
            yield args[index]
        except MemoryFault:
            return


class Hit:
    """One arrival of one thread at one probepoint, as one client's handler sees it.

    Valid until the handler returns; used later it raises StaleHit. ``snapshot()`` is a copy to keep.
    Made, and filled in, by ``sites.run_handlers`` alone.
    """

    __slots__ = ("_lease", "_surroundings", "_thread", "_writes")
    _lease: Any
    _thread: TracedThread | None
    _surroundings: Surroundings
    _writes: dict[str, int] | None

    def _live(self) -> TracedThread:
        if self._thread is None:
            raise StaleHit
        return self._thread

    @property
    def address(self) -> VirtAddr:
        """The probed address."""
        thread = self._live()
        return VirtAddr(thread.words[self._surroundings.layout.pc])

    @property
    def pid(self) -> ProcessId:
        """The process that the thread belongs to."""
        return self._live().pid

    @property
    def tid(self) -> ThreadId:
        """The thread that arrived."""
        return self._live().tid

    @property
    def lease(self) -> Any:
        """The lease whose handler runs."""
        self._live()
        return self._lease

    @property
    def regs(self) -> HitRegisters:
        """The registers at arrival, the PC being the probed address; to read and to write."""
        if self._thread is None:
            raise StaleHit
        layout = self._surroundings.layout
        registers = (layout.view or _view(layout))()
        _set_hit(registers, self)
        return registers

    @property
    def args(self) -> HitArguments:
        """Integer arguments, right at a function's entry only: ``hit.args[0]``."""
        self._live()
        return HitArguments(self)

    @property
    def memory(self) -> Memory:
        """The program's memory; no trap of ours is ever seen in it."""
        self._live()
        return self._surroundings.memory

    def brief(self) -> tuple[ThreadId, bytes]:
        """The thread and ``bytes(hit.regs)``, by one call: for who passes hits on to somebody else."""
        thread = self._thread
        if thread is None:
            raise StaleHit
        return thread.tid, self._surroundings.layout.packed(thread.words)

    def snapshot(self) -> Snapshot:
        """A frozen copy that stays valid."""
        thread = self._live()
        return Snapshot(
            address=self.address,
            pid=thread.pid,
            tid=thread.tid,
            regs=MappingProxyType(self._surroundings.layout.values(thread.words)),
            args=tuple(_first_arguments(self.args)),
            lease=self._lease,
        )

    def __repr__(self) -> str:
        try:
            return f"<hit of thread {self.tid} at {self.address:#x}>"
        except StaleHit:  # also while we look: who watches for handlers that overrun is another thread
            return "<hit, over>"
