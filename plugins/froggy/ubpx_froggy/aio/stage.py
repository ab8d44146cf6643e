"""Which handler or hook of a connection runs next: one at a time, in the event loop, in the order of arrival."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Protocol

from ubpx_froggy.aio.handling import AsyncHandling
from ubpx_froggy.aio.hits import AsyncSurroundings
from ubpx_froggy.aio.turns import Turn, outside
from ubpx_froggy.client.conversation import Question
from ubpx_froggy.client.grants import GRANT_S, client_of, gives_leases
from ubpx_froggy.client.handling import Hooked, Leased, quiet
from ubpx_froggy.client.notices import LIMIT
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.messages import Handle, Hit, Hits, Hook
from ubpx_froggy.wire import WireError

_SLICE_S: Final = 0.001
"""How long handlers of hits that nobody waits for may run before the event loop does other things: hits that wait."""
_log = logging.getLogger("ubpx.froggy")


class Owner(Protocol):
    """The link, as its stage needs it."""

    @property
    def roster(self) -> Roster:
        """What it has of the broker."""
        ...

    def unanswered(self) -> Iterable[Question]:
        """What was asked and not answered, on the connection and on its channel."""
        ...

    def break_off(self, reason: str) -> object:
        """What the broker says cannot be used."""
        ...


class Stage:
    """Where what has come waits for its turn. Owned by its link."""

    def __init__(self, owner: Owner, around: AsyncSurroundings, deadline_s: float) -> None:
        self.handling: Final = AsyncHandling(around, deadline_s, self._finished)
        self._owner: Final = owner
        self._roster: Final = owner.roster
        self._leases: Final = owner.roster.leases
        self._loop: Final = asyncio.get_running_loop()
        self._calls: Final[deque[Hit | Hook]] = deque()
        """What waits for an answer."""
        self._notices: Final[deque[tuple[Handle, int, float, bytes, int] | _Mark]] = deque()
        """Hits whose threads have gone on."""
        self._waiters: Final[deque[asyncio.Future[Turn]]] = deque()
        """Who waits to call a hook."""
        self._patience: Final = _Patience(self, min(GRANT_S, self.handling.watchdog.deadline_s))
        self._patience_for_notices: Final = _Patience(self, GRANT_S)
        self._next: asyncio.Handle | None = None
        self._context: Final = outside()

    # What comes ---------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether a hit that comes now is the next to be served."""
        return self.handling.running is None and not self._calls

    def hit(self, message: Hit) -> None:
        """A hit has come while the stage was idle. This is the hot path; raises WireError."""
        lease: Leased | None = self._leases.get(message.lease)
        if lease is None:
            self.call(message)
            self.serve()
        else:
            self._send(self.handling.hit(message, lease))

    def call(self, message: Hit | Hook) -> None:
        """What waits for an answer has come; ``serve`` follows."""
        self._calls.append(message)

    def note(self, message: Hits) -> None:
        """Hits whose threads have gone on have come; ``serve`` follows. Too many are dropped, and counted."""
        self._roster.dropped_there.update(message.dropped)
        if len(self._notices) + len(message.records) > LIMIT:
            for lease, *_ in message.records:
                self._roster.drop(lease)
        else:
            of = message.processes.get
            self._notices.extend((*record, of(record[1], 0)) for record in message.records)

    def after_notices(self, job: Callable[[], None]) -> "asyncio.Future[None]":
        """Have it done when the handlers have had all hits of mode ``notify`` that have come so far."""
        mark = _Mark(job)
        self._notices.append(mark)
        self._serve_soon()
        return mark.done

    # Who is next --------------------------------------------------------------------------

    def serve(self) -> None:
        """Run what waits, until there is a turn to wait for, or nothing is left."""
        try:
            while self.handling.running is None:
                if self._waiters:
                    self._admit(self._waiters.popleft())
                elif not self._calls or not self._serve_call():
                    break
            self._serve_notices()
        except WireError as error:
            self._owner.break_off(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was, a broker must not wait for us
            _log.exception("the connection cannot go on")
            self._owner.break_off(f"we have given up ({type(error).__name__}); see the log")

    def _serve_call(self) -> bool:
        """Serve the next one; False: not yet."""
        message = self._calls[0]
        if isinstance(message, Hook):
            self._calls.popleft()
            client: Hooked | None = client_of(message.client, self._roster, self._owner.unanswered())
            self._send(quiet(message.call) if client is None else self.handling.hook(message, client))
            return True
        lease: Leased | None = self._leases.get(message.lease) or self._roster.last_of(message)
        if lease is None and self._patience.has_time(message, may_come=self._may_come(message.lease)):
            return False
        self._calls.popleft()
        self._send(quiet(message.call) if lease is None else self.handling.hit(message, lease))
        return True

    def _serve_notices(self) -> None:
        until = monotonic() + _SLICE_S
        while self._notices and self.handling.running is None:
            notice = self._notices[0]
            if isinstance(notice, _Mark):
                self._notices.popleft()
                notice.pass_by()
                continue
            handle, thread, moment, registers, process = notice
            lease: Leased | None = self._leases.get(handle)
            if lease is None and self._patience_for_notices.has_time(notice, may_come=self._may_come(handle)):
                return
            self._notices.popleft()
            if lease is None or lease.handler is None:
                self._roster.drop(handle)
            else:
                self.handling.notice(lease, thread, moment, registers, process)
            if monotonic() > until:
                self._serve_soon()
                return

    def _serve_soon(self) -> None:
        """Not here: handlers are no part of whatever task is the caller."""
        if self._next is None:
            self._next = self._loop.call_soon(self._serve_next, context=self._context)

    def _serve_next(self) -> None:
        self._next = None
        self.serve()

    def _may_come(self, handle: Handle) -> bool:
        """Whether the reply that gives this lease may still be on its way."""
        return handle not in self._roster.ended and gives_leases(self._owner.unanswered())

    def _send(self, answer: bytes) -> None:
        if answer:
            self.handling.channel.send(answer)

    def _finished(self, answer: bytes) -> None:
        """A turn is over."""
        self._send(answer)
        self.serve()

    # Hooks that we call ourselves ---------------------------------------------------------

    async def call_hook(self, client: Hooked, name: str) -> None:
        """Call a hook once nothing else runs; from a handler: at once, as part of it. An exception of its is logged."""
        if self.handling.is_here:
            await self.handling.call_here(client, name)
            return
        turn = await self._admission()
        try:
            with turn.here():
                await self.handling.call_here(client, name)
        finally:
            self._leave(turn)

    async def until_idle(self) -> None:
        """Wait until the handler or hook that runs is done."""
        self._leave(await self._admission())

    async def _admission(self) -> Turn:
        waiter: asyncio.Future[Turn] = self._loop.create_future()
        if self.handling.running is None:
            self._admit(waiter)
        else:
            self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave(waiter.result())
            raise

    def _admit(self, waiter: "asyncio.Future[Turn]") -> None:
        if not waiter.done():
            self.handling.running = turn = Turn(self.handling)
            waiter.set_result(turn)

    def _leave(self, turn: Turn) -> None:
        turn.end()
        self.handling.running = None
        self._serve_soon()

    # The end ------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing more is begun: what has come and waits is dropped, and counted."""
        self.handling.silent = True
        self._calls.clear()
        while self._notices:
            notice = self._notices.popleft()
            if isinstance(notice, _Mark):
                notice.pass_by()
            else:
                self._roster.drop(notice[0])


class _Mark:
    """A place in the queue of notices."""

    def __init__(self, job: Callable[[], None]) -> None:
        self.done: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self._job: Final = job

    def pass_by(self) -> None:
        """All that was before it is done."""
        self._job()
        if not self.done.done():
            self.done.set_result(None)


class _Patience:
    """How long the first in a queue may wait for a reply that is on its way."""

    def __init__(self, stage: Stage, limit_s: float) -> None:
        self._stage: Final = stage
        self._limit_s: Final = limit_s
        self._first: Any = None
        self._until = 0.0

    def has_time(self, first: object, *, may_come: bool) -> bool:
        """Whether the one that is the first now may wait a little longer; the stage serves when its time is over."""
        if not may_come:
            return False
        if self._first is not first:
            self._first, self._until = first, monotonic() + self._limit_s
            asyncio.get_running_loop().call_later(self._limit_s + 0.001, self._stage.serve, context=outside())
        return monotonic() < self._until
