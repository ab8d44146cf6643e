"""The traced process, as far as it can be seen through a broker."""

from typing import Any, Final

from ubpx import MemoryFault
from ubpx.core.values import MappedRange
from ubpx_froggy.aio.link import AsyncLink
from ubpx_froggy.client.process import KnownProcess, Reading, Writing, read_bytes, read_mappings
from ubpx_froggy.messages import Handle, Mappings


class AsyncMemory:
    """The program's memory; no trap of ubpx is ever seen in it. What is large travels in pieces, one by one."""

    def __init__(self, link: AsyncLink, target: Handle, process: int = 0) -> None:
        self._link: Final = link
        self._target: Final = target
        self._process: Final = process
        """A followed child's pid; 0: the target itself."""

    def of(self, process: int) -> "AsyncMemory":
        """That of a followed child of the target."""
        return AsyncMemory(self._link, self._target, process)

    async def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises MemoryFault, UsageError, BrokerGone."""
        reading = Reading(self._target, address, size, process=self._process)
        try:
            pieces = [await self._link.request(each, read_bytes) for each in reading.requests()]
        except MemoryFault:
            raise reading.fault from None
        return b"".join(pieces)

    async def write(self, address: int, data: bytes) -> None:
        """Write as the program could; raises MemoryFault, UsageError over a probed byte, BrokerGone.

        A fault in a later piece does not take back the earlier ones; nor does a cancellation.
        """
        await self._do(Writing(self._target, address, data, patch=False, process=self._process))

    async def patch(self, address: int, data: bytes) -> None:
        """Write through page protections; raises as ``write`` does."""
        await self._do(Writing(self._target, address, data, patch=True, process=self._process))

    async def _do(self, writing: Writing) -> None:
        try:
            for each in writing.requests():
                await self._link.request(each)
        except MemoryFault:
            raise writing.fault from None


class AsyncProcess(KnownProcess[AsyncLink, AsyncMemory]):
    """What hooks get as ``process``. Valid while the target is attached."""

    async def mappings(self) -> tuple[MappedRange, ...]:
        """What is mapped now, ascending, slot areas included; raises TargetGone, BrokerGone."""
        found: Any = await self._link.request(Mappings(self._target), read_mappings)
        return tuple(found)
