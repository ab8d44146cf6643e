"""One socket of a connection: what is asked goes out, what comes in is understood."""

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from ubpx import UbpxError
from ubpx_froggy.client.conversation import Conversation, Decode, Ending, Question, nothing
from ubpx_froggy.client.dialling import Dialled
from ubpx_froggy.messages import Call
from ubpx_froggy.wire import WireError

_log = logging.getLogger("ubpx.froggy")


class Request(Question):
    """A question whose answer is awaited. Owned by whoever asked; the last one who stops waiting abandons it.

    ``undo`` is called with what the reply has brought if nobody waits for that any more: it gives it back.
    """

    __slots__ = ("_is_abandoned", "_undo", "_waiters")

    def __init__(
        self,
        call: Call,
        decode: Decode = nothing,
        *,
        client: str | None = None,
        subject: Any = None,
        undo: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(call, decode, client=client, subject=subject)
        self._undo: Final = undo
        self._waiters: Final[list[asyncio.Future[None]]] = []
        self._is_abandoned = False

    def wake(self) -> None:
        """It is answered."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._is_abandoned:
            self._take_back()

    async def answer(self) -> Any:
        """What the reply has brought, once it is here; raises what went wrong. Several may wait."""
        if not self.is_answered:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._waiters.remove(waiter)
                if not self._waiters:
                    self._abandon()
                raise
            self._waiters.remove(waiter)
        return self.result()

    def _abandon(self) -> None:
        self._is_abandoned = True
        if self.is_answered:  # just now: who waited was told, and stopped before it could look
            self._take_back()

    def _take_back(self) -> None:
        if self._undo is not None and self._error is None:
            self._undo(self._value)


class Line(asyncio.Protocol):
    """One socket. Owned by its link; everything happens in one event loop.

    ``types`` are the messages that the broker may send on it. ``break_off`` is called, with the reason, when what it
    has sent cannot be used.
    """

    def __init__(self, dialled: Dialled, types: Any, break_off: Callable[[str], object]) -> None:
        self.conversation: Final = Conversation(types)
        self.closed: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""
        self._socket: Final = dialled.socket
        self._framer: Final = dialled.framer
        self._break_off: Final = break_off
        self._transport: Any = None
        self._is_shut = False

    async def open(self) -> None:
        """Begin to listen."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._socket)
        except BaseException:
            self._socket.close()
            raise

    @abstractmethod
    def take(self, message: Any) -> None:
        """A message that is no answer has come; raises WireError."""

    @abstractmethod
    def look(self) -> None:
        """Something has come, and was understood."""

    @abstractmethod
    def gone(self) -> None:
        """The socket is closed."""

    # Asking -------------------------------------------------------------------------------

    def begin(self, request: Request) -> Request:
        """Ask. Raises what calls raise after the end, and UsageError for what cannot travel."""
        frame = self.conversation.ask(request, request.wake)
        self.send(frame)
        return request

    def tell(self, call: Call) -> None:
        """Ask, and look at no answer."""
        with contextlib.suppress(UbpxError):
            self.begin(Request(call))

    def send(self, frame: bytes) -> None:
        """A whole message; after the end: does nothing."""
        if not self._is_shut:
            self._transport.write(frame)

    # From the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open; something may have come behind the welcome."""
        self._transport = transport
        self.understand(b"")

    def data_received(self, data: bytes) -> None:
        """Bytes, whole messages or not."""
        self.understand(data)

    def understand(self, data: bytes) -> None:
        """Take what has come."""
        try:
            for body in self._framer.feed(data):
                if self._is_shut:
                    return
                message = self.conversation.take(body)
                if message is not None:
                    self.take(message)
        except WireError as error:
            self._break_off(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits must hear of it
            _log.exception("the connection cannot go on")
            self._break_off(f"we have given up ({type(error).__name__}); see the log")
        self.look()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        del error
        if not self.closed.done():
            self.closed.set_result(None)
        self.gone()

    # The end --------------------------------------------------------------------------------

    def shut(self, ending: Ending) -> None:
        """Nothing more is asked or understood: whoever waits gets the ending's error. Again: does nothing."""
        self.conversation.end(ending)
        if not self._is_shut:
            self._is_shut = True
            if self._transport is not None:
                self._transport.abort()
