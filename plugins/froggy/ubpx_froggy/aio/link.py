"""The asyncio form of a connection: requests that are awaited, and the channel once it is needed."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Self

from ubpx import Responsiveness, UsageError
from ubpx_froggy.aio.dialling import dial
from ubpx_froggy.aio.hits import AsyncSurroundings
from ubpx_froggy.aio.lifetime import LoopWatch
from ubpx_froggy.aio.line import Line, Request
from ubpx_froggy.aio.stage import Stage
from ubpx_froggy.aio.turns import current, outside
from ubpx_froggy.client.channel import CLOSED
from ubpx_froggy.client.conversation import Decode, Ending, EndKind, Question, nothing
from ubpx_froggy.client.dialling import Dialled
from ubpx_froggy.client.handling import lone_hit
from ubpx_froggy.client.link import VERDICT_S
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.messages import Call, Evicted, FromBroker, FromBrokerOnChannel, Handle, Hit, Hits, Hook
from ubpx_froggy.wire import WireError

_GRACE_S: Final = 1.0
"""How long a handler may go on after the connection has ended, before it is cancelled."""


class AsyncLink:
    """One connection to a broker, in one event loop. Made by ``AsyncLink.to``."""

    def __init__(self, path: str, dialled: Dialled) -> None:
        self.broker: Final = path
        self.roster: Final = Roster()
        self.ending: Ending | None = None
        """How it has ended; None while it has not."""
        self._loop: Final = asyncio.get_running_loop()
        self._token: Final[Handle] = dialled.welcome.channel
        self._control: Final = _Control(dialled, self)
        self._channel: _Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._stage: Stage | None = None
        self._responsiveness: Final = Responsiveness()
        """Hits must not wait 5 ms for another thread of ours that computes."""
        self._verdict: asyncio.TimerHandle | None = None
        """When we do not wait any longer to be told why the channel has ended."""
        self._watch: Final = LoopWatch(partial(self.break_off, "our event loop has ended"))

    @classmethod
    async def to(cls, path: str) -> Self:
        """Connect; raises what ``dial`` raises."""
        link = cls(path, await dial(path))
        try:
            await link._control.open()
        except BaseException:
            link.break_off("it was not opened")
            raise
        return link

    def serve(self, around: AsyncSurroundings, deadline_s: float) -> Stage:
        """Have handlers and hooks run; called once, before any is asked for."""
        self._stage = Stage(self, around, deadline_s)
        return self._stage

    @property
    def stage(self) -> Stage:
        """Where handlers and hooks run."""
        if self._stage is None:
            raise WireError("a hit before a target was joined")
        return self._stage

    # Requests -----------------------------------------------------------------------------

    async def request(self, call: Call, decode: Decode = nothing, **options: Any) -> Any:
        """Ask, and await the reply, as long as the connection lives; what ``decode`` makes of it.

        ``options`` are those of ``Request``. When the caller is cancelled the reply is dropped when it comes, and
        what it has brought is given back by ``undo``.
        Raises what the broker answers, and what ``Ending.error`` gives once the connection has ended.
        """
        return await self.begin(call, decode, **options).answer()

    def begin(self, call: Call, decode: Decode = nothing, **options: Any) -> Request:
        """Ask; the request, whose answer is awaited. Raises as ``request``, and UsageError in another event loop."""
        self._check_loop()
        turn = None if self._stage is None else current(self._stage.handling)
        line: Line = self._control if turn is None or turn.line is None else turn.line
        return line.begin(Request(call, decode, **options))

    def begin_outside(self, call: Call, decode: Decode = nothing) -> Request:
        """The same for what is no part of a handler, whoever asks."""
        self._check_loop()
        return self._control.begin(Request(call, decode))

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise UsageError("a target of aio.connect works in the event loop that it was made in; connect in each")

    def tell(self, call: Call) -> None:
        """Ask, and look at no answer, if the connection lives."""
        self._control.tell(call)

    def unanswered(self) -> Iterable[Question]:
        """What was asked and not answered, on the connection and on its channel."""
        lines: list[Line] = [self._control] if self._channel is None else [self._control, self._channel]
        return [question for line in lines for question in line.conversation.unanswered()]

    def check(self, client: str | None = None) -> None:
        """Raises what calls raise, if the connection has ended."""
        if self.ending is not None:
            raise self.ending.error(client)

    async def open_channel(self) -> None:
        """Be ready for hits and hooks. Again: does nothing. Raises what ``dial`` raises, and as ``check`` does."""
        self.check()
        if self._channel is not None:
            return
        if self._opening is None:  # a task, for its token is good once: who asks for it may be cancelled
            self._opening = self._loop.create_task(self._open_channel(), context=outside())
            self._opening.add_done_callback(self._has_opened)
        opening = self._opening
        await asyncio.wait([opening])
        self.check()
        opening.result()

    async def _open_channel(self) -> None:
        channel = _Channel(await dial(self.broker, channel=self._token), self)
        self.stage.handling.channel = channel
        await channel.open()
        self._channel = channel
        self.stage.handling.watchdog.start()
        self._responsiveness.want(wanted=True)

    def _has_opened(self, opening: "asyncio.Task[None]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None

    # The end --------------------------------------------------------------------------------

    def end(self, ending: Ending) -> Ending:
        """Nothing more is asked, and no handler begun; whoever waits hears of it. How the connection has ended."""
        if self.ending is not None:
            return self.ending
        self.ending = ending
        self._watch.stop()
        self._control.shut(ending)
        if self._channel is not None:
            self._channel.shut(ending)
        if self._opening is not None:
            self._opening.cancel()
        if self._verdict is not None:
            self._verdict.cancel()
        self._responsiveness.want(wanted=False)
        if self._stage is not None:
            self._stage.end()
            self._stage.handling.watchdog.stop()
            running = self._running()
            if running is not None:
                self._loop.call_later(_GRACE_S, running.cancel)
        return ending

    def leave(self, reason: str) -> None:
        """End it, for we have no use for it any more."""
        self.end(Ending(kind=EndKind.LEFT, broker=self.broker, reason=reason))

    def break_off(self, reason: str) -> Ending:
        """The broker, or what it says, cannot be used any more. How the connection has ended."""
        return self.end(Ending(kind=EndKind.GONE, broker=self.broker, reason=reason))

    def channel_lost(self, reason: str) -> None:
        """The channel has ended; if the connection does not soon, it ends with it."""
        if self.ending is None and self._verdict is None:
            self._verdict = self._loop.call_later(VERDICT_S, self.break_off, reason)

    async def closed(self) -> None:
        """Wait until nothing of an ended connection is left: no socket, and no handler unless the caller is it."""
        running = self._running()
        if running is not None and not self.stage.handling.is_here:
            await asyncio.wait([running], timeout=_GRACE_S)
            running.cancel()
            await asyncio.wait([running], timeout=_GRACE_S)
        if self._opening is not None:
            await asyncio.wait([self._opening])
        await self._control.closed
        if self._channel is not None:
            await self._channel.closed

    def _running(self) -> "asyncio.Task[Any] | None":
        turn = None if self._stage is None else self._stage.handling.running
        return None if turn is None else turn.task

    def look(self) -> None:
        """Something has come, and was understood."""
        if self._stage is not None:
            self._stage.serve()


class _Control(Line):
    """The connection itself."""

    def __init__(self, dialled: Dialled, link: AsyncLink) -> None:
        super().__init__(dialled, FromBroker, link.break_off)
        self._link: Final = link

    def take(self, message: Any) -> None:
        """Hits whose threads have gone on, or an eviction; raises WireError."""
        match message:
            case Hits():
                self._link.stage.note(message)
            case Evicted(reason=reason):
                self._link.end(Ending(kind=EndKind.EVICTED, broker=self._link.broker, reason=reason))
            case _:
                raise WireError(f"{type(message).__name__.lower()} on a connection that is open")

    def look(self) -> None:
        """Something has come, and was understood."""
        self._link.look()

    def gone(self) -> None:
        """The socket is closed."""
        self._link.break_off("it has closed the connection")


class _Channel(Line):
    """Hits and hooks come here, and what a handler asks while it runs goes this way."""

    def __init__(self, dialled: Dialled, link: AsyncLink) -> None:
        super().__init__(dialled, FromBrokerOnChannel, link.break_off)
        self._link: Final = link
        self._stage: Final = link.stage

    def data_received(self, data: bytes) -> None:
        """Bytes: one hit and nothing else, as nearly always, or whatever it is."""
        stage = self._stage
        if stage.is_idle:
            try:
                hit = lone_hit(data, self._framer)
                if hit is not None:
                    stage.hit(hit)
                    return
            except WireError as error:
                self._break_off(str(error))
                return
        self.understand(data)

    def take(self, message: Any) -> None:
        """A hit or a hook; raises WireError."""
        if not isinstance(message, Hit | Hook):
            raise WireError(f"{type(message).__name__.lower()} on a channel that is open")
        self._stage.call(message)

    def look(self) -> None:
        """Something has come, and was understood."""
        self._stage.serve()

    def gone(self) -> None:
        """The socket is closed."""
        self._link.channel_lost(CLOSED)
