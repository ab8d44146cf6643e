"""What a handler gets: a hit with the face of ``ubpx.Hit``; what lies in the program's memory is awaited."""

from typing import Any, Final, NoReturn, Protocol

from ubpx import UsageError
from ubpx_froggy.client.hits import AnyHit, Surroundings, argument
from ubpx_froggy.messages import TargetInfo


class Reader(Protocol):
    """Memory that is asked for."""

    async def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        ...

    async def write(self, address: int, data: bytes) -> None:
        """Write as the program could."""
        ...

    async def patch(self, address: int, data: bytes) -> None:
        """Write through page protections."""
        ...


class OutOfReach:
    """Stands for memory where nothing can be awaited."""

    def read(self, address: int, size: int) -> bytes:
        """Raises UsageError."""
        del address, size
        self._refuse()

    def write(self, address: int, data: bytes) -> None:
        """Raises UsageError."""
        del address, data
        self._refuse()

    def patch(self, address: int, data: bytes) -> None:
        """Raises UsageError."""
        del address, data
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            "this argument lies in the program's memory, not in a register; await hit.argument(n) in a handler that is "
            "a coroutine function"
        )


class AsyncSurroundings(Surroundings):
    """What all hits of one target share."""

    def __init__(self, info: TargetInfo, reader: Reader) -> None:
        self.reader = reader
        super().__init__(info, OutOfReach())

    def enter(self, process: int) -> None:
        """Have the memory of a followed child."""
        reader: Any = self.reader
        self.reader = reader.of(process)


class AsyncHit(AnyHit):
    """One arrival of one thread at one probepoint, as one client's handler sees it.

    Valid until the handler is done, which for a coroutine is its end; used later it raises StaleHit. ``snapshot()``
    is a copy to keep. With ``mode="notify"`` the thread has gone on: registers are those at arrival, and memory is as
    it is now. ``args`` has what is in registers: the first six on x86_64, none on i386; ``argument`` has all.
    """

    __slots__ = ()

    @property
    def memory(self) -> Reader:
        """The program's memory, whose methods are awaited; no trap of ubpx is ever seen in it."""
        self._arrival.live()
        around: Any = self._arrival.around
        reader: Reader = around.reader
        return reader

    async def argument(self, index: int) -> int:
        """An integer argument, right at a function's entry only, wherever it lies; counted from 0.

        Raises UsageError, StaleHit; MemoryFault if it is on a stack that cannot be read; BrokerGone.
        """
        known = _Known()
        while True:
            try:
                return argument(index, self._arrival, known)
            except _WantedError as wanted:
                known.pieces[wanted.span] = await self.memory.read(*wanted.span)


class _WantedError(Exception):
    """Memory is needed that is not known yet. Nobody but ``argument`` sees it."""

    def __init__(self, span: tuple[int, int]) -> None:
        super().__init__(span)
        self.span: Final = span


class _Known(OutOfReach):
    """What has been read so far."""

    def __init__(self) -> None:
        self.pieces: Final[dict[tuple[int, int], bytes]] = {}

    def read(self, address: int, size: int) -> bytes:
        """Raises _WantedError for what has not."""
        piece = self.pieces.get((address, size))
        if piece is None:
            raise _WantedError((address, size))
        return piece
