"""The traced process, as far as it can be seen through a broker."""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

from ubpx import MemoryFault
from ubpx.core.ports import Memory
from ubpx.core.values import MappedRange, ProcessId, VirtAddr
from ubpx_froggy.client.checks import check_bytes, check_span, is_word
from ubpx_froggy.client.conversation import decoder
from ubpx_froggy.client.link import Link
from ubpx_froggy.messages import MEMORY_BYTES, Handle, MappingInfo, Mappings, ReadMemory, WriteMemory

K = TypeVar("K")
M = TypeVar("M")

read_bytes: Final = decoder(bytes)
_mappings: Final = decoder(list[MappingInfo])


class Reading:
    """A read of memory, in as many requests as it takes."""

    def __init__(self, target: Handle, address: int, size: int, *, process: int = 0) -> None:
        """Raises UsageError for what cannot be read anywhere."""
        check_span(address, size)
        self._process: Final = process
        self._target: Final = target
        self._whole: Final = address, size, "read"
        self.fault: Final = MemoryFault(*self._whole)
        """What is raised where a request faults."""

    def requests(self) -> Iterator[ReadMemory]:
        """In order; raises MemoryFault at what no address space has."""
        address, size, _ = self._whole
        for start in range(0, size, MEMORY_BYTES):
            piece = min(MEMORY_BYTES, size - start)
            _check_reach(address + start, piece, whole=self._whole)
            yield ReadMemory(self._target, address + start, piece, self._process)


class Writing:
    """A write of memory, in as many requests as it takes; with ``patch`` through page protections."""

    def __init__(self, target: Handle, address: int, data: bytes, *, patch: bool, process: int = 0) -> None:
        """Raises UsageError for what cannot be written anywhere."""
        self._process: Final = process
        check_bytes(data)
        check_span(address, len(data))
        self._target: Final = target
        self._data: Final = data
        self._patch: Final = patch
        self._whole: Final = address, len(data), "patch" if patch else "write"
        self.fault: Final = MemoryFault(*self._whole)
        """What is raised where a request faults."""

    def requests(self) -> Iterator[WriteMemory]:
        """In order; raises MemoryFault at what no address space has."""
        address, size, _ = self._whole
        for start in range(0, size, MEMORY_BYTES):
            piece = self._data[start : start + MEMORY_BYTES]
            _check_reach(address + start, len(piece), whole=self._whole)
            yield WriteMemory(self._target, address + start, piece, self._patch, self._process)


def _check_reach(address: int, size: int, *, whole: tuple[int, int, str]) -> None:
    """Raises MemoryFault for what no address space has."""
    if not is_word(address) or not is_word(address + size):
        raise MemoryFault(*whole)


class RemoteMemory:
    """The program's memory; no trap of ubpx is ever seen in it. What is large travels in pieces, one by one."""

    def __init__(self, link: Link, target: Handle, process: int = 0) -> None:
        self._link: Final = link
        self._target: Final = target
        self._process: Final = process
        """A followed child's pid; 0: the target itself."""

    def of(self, process: int) -> "RemoteMemory":
        """That of a followed child of the target."""
        return RemoteMemory(self._link, self._target, process)

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises MemoryFault, UsageError, BrokerGone."""
        reading = Reading(self._target, address, size, process=self._process)
        try:
            return b"".join([self._link.request(each, read_bytes) for each in reading.requests()])
        except MemoryFault:
            raise reading.fault from None

    def write(self, address: int, data: bytes) -> None:
        """Write as the program could; raises MemoryFault, UsageError over a probed byte, BrokerGone.

        A fault in a later piece does not take back the earlier ones.
        """
        self._do(Writing(self._target, address, data, patch=False, process=self._process))

    def patch(self, address: int, data: bytes) -> None:
        """Write through page protections; raises as ``write`` does."""
        self._do(Writing(self._target, address, data, patch=True, process=self._process))

    def _do(self, writing: Writing) -> None:
        try:
            for each in writing.requests():
                self._link.request(each)
        except MemoryFault:
            raise writing.fault from None


class KnownProcess(Generic[K, M]):
    """The traced process, without asking; ``link`` and ``memory`` are for who asks."""

    def __init__(self, link: K, target: Handle, pid: int, memory: M) -> None:
        self.pid: Final = ProcessId(pid)
        self.memory: Final = memory
        self._link: Final = link
        self._target: Final = target

    @property
    def proc(self) -> str:
        """A directory of /proc that answers for the process while its leader lives."""
        return f"/proc/{self.pid}"

    def __repr__(self) -> str:
        return f"<process {self.pid}>"


class RemoteProcess(KnownProcess[Link, Memory]):
    """A ``ProcessView`` for hooks. Valid while the target is attached."""

    def mappings(self) -> tuple[MappedRange, ...]:
        """What is mapped now, ascending, slot areas included; raises TargetGone, BrokerGone."""
        found: tuple[MappedRange, ...] = self._link.request(Mappings(self._target), read_mappings)
        return found


def read_mappings(value: msgspec.Raw) -> tuple[MappedRange, ...]:
    """What the reply to ``Mappings`` says."""
    return tuple(map(_mapped_range, _mappings(value)))


def _mapped_range(info: MappingInfo) -> MappedRange:
    return MappedRange(
        start=VirtAddr(info.start),
        end=VirtAddr(info.end),
        permissions=info.permissions,
        offset=info.offset,
        device=info.device,
        inode=info.inode,
        path=info.path,
    )
