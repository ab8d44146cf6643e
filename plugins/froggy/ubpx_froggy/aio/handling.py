"""Runs the handlers and hooks of one connection in the event loop, one at a time; makes the answers that travel back.

A plain function is called where its hit is understood, and its answer is there at once. What returns an awaitable is
a *turn*: a task runs it, and nothing else runs until it is done.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from ubpx import HandlerOverran, Verdict
from ubpx_froggy.aio.hits import AsyncHit, AsyncSurroundings
from ubpx_froggy.aio.turns import Turn, current
from ubpx_froggy.client.handling import Handling, Hooked, arguments_of, quiet
from ubpx_froggy.client.hits import Arrival
from ubpx_froggy.messages import Hit, Hook

_PASSED_ON: Final = (KeyboardInterrupt, SystemExit)
"""What ends a program, whoever raises it."""


class AsyncHandling(Handling):
    """Where the handlers and hooks of one connection run. Owned by its target.

    ``finished`` is called when a turn is over, with the answer to send: empty where none is due. What runs a turn in
    a task of the caller's sets ``running`` itself.
    """

    hit_kind = AsyncHit

    def __init__(self, around: AsyncSurroundings, deadline_s: float, finished: Callable[[bytes], None]) -> None:
        super().__init__(around, deadline_s)
        self.running: Turn | None = None
        """Whose handler or hook has to be waited for."""
        self.channel: Any = None
        """The line that carries what a handler or hook asks while its answer is due."""
        self._finished: Final = finished
        self._loop: Final = asyncio.get_running_loop()

    @property
    def is_here(self) -> bool:
        """Whether the caller is a handler or hook."""
        return current(self) is not None

    # Hits ---------------------------------------------------------------------------------

    def unlike_a_verdict(self, value: object, message: Hit, arrival: Arrival) -> bytes:
        """A handler has returned neither None nor a verdict; an awaitable begins a turn. Raises UsageError."""
        if not inspect.isawaitable(value):
            return super().unlike_a_verdict(value, message, arrival)

        def returned(result: object) -> bytes:
            if result is not None and not isinstance(result, Verdict):
                return Handling.unlike_a_verdict(self, result, message, arrival)
            return self.returned(result, message, arrival)

        raised = partial(self.raised, message=message, arrival=arrival)
        self._begin(value, Turn(self, line=self.channel, hit=message), returned, raised)
        return b""

    def raised(self, error: BaseException, message: Hit, arrival: Arrival) -> bytes:
        """A handler has raised; the answer to send."""
        self._pass_on(error)
        return super().raised(error, message, arrival)

    def unlike_none(self, value: object, arrival: Arrival) -> None:
        """A handler whose thread has gone on has returned something; an awaitable begins a turn. Raises UsageError."""
        if not inspect.isawaitable(value):
            super().unlike_none(value, arrival)
            return

        def returned(result: object) -> bytes:
            if result is not None:
                Handling.unlike_none(self, result, arrival)
            self.notice_returned(arrival)
            return b""

        def raised(error: BaseException) -> bytes:
            self.notice_raised(error, arrival)
            return b""

        self._begin(value, Turn(self), returned, raised)

    def notice_raised(self, error: BaseException, arrival: Arrival) -> None:
        """A handler whose thread has gone on has raised."""
        self._pass_on(error)
        super().notice_raised(error, arrival)

    # Hooks --------------------------------------------------------------------------------

    def hook(self, message: Hook, client: Hooked) -> bytes:
        """Call a hook that the broker calls; the answer to send, empty where a turn has begun."""
        name = message.name
        if self.silent or name not in client.hooks or not self.may_call(client, name):
            return quiet(message.call)

        def returned(result: object) -> bytes:
            return self.hook_returned(self.wanted(result, client, name), message)

        def raised(error: BaseException) -> bytes:
            self._pass_on(error)
            client.failed(error, name)
            return self.hook_raised(error, message)

        try:
            answer = self.start_hook(client, name, arguments_of(message))
            if inspect.isawaitable(answer):
                self._begin(answer, Turn(self, line=self.channel), returned, raised)
                return b""
            return returned(answer)
        except BaseException as error:  # noqa: BLE001 - a client's exception must not end the connection
            return raised(error)

    async def call_here(self, client: Hooked, name: str) -> None:
        """Call a hook without arguments of its own, as part of the turn that the caller is; an Exception is logged.

        A hook that is called once at most is not called again.
        """
        if not self.may_call(client, name):
            return
        try:
            answer = self.start_hook(client, name, {})
            self.wanted(await answer if inspect.isawaitable(answer) else answer, client, name)
        except BaseException as error:
            client.failed(error, name)
            if not isinstance(error, Exception):  # the caller is cancelled, or the program ends
                raise

    # Turns --------------------------------------------------------------------------------

    def _begin(
        self,
        awaitable: Awaitable[Any],
        turn: Turn,
        returned: Callable[[Any], bytes],
        raised: Callable[[BaseException], bytes],
    ) -> None:
        """Run it; what it returns or raises makes the answer."""
        coroutine = awaitable if inspect.iscoroutine(awaitable) else _awaited(awaitable)
        self.running = turn
        if turn.line is not None:
            turn.alarm = self._loop.call_later(self.watchdog.deadline_s, _interrupt, turn)
        turn.task = task = self._loop.create_task(coroutine, name="ubpx-handler", context=turn.context())
        task.add_done_callback(lambda task: self._finish(turn, lambda: _outcome(task, turn), returned, raised))

    def _finish(
        self,
        turn: Turn,
        outcome: Callable[[], Any],
        returned: Callable[[Any], bytes],
        raised: Callable[[BaseException], bytes],
    ) -> None:
        turn.end()
        try:
            answer = returned(outcome())
        except BaseException as error:  # noqa: BLE001 - a client's exception must not end the connection
            answer = raised(error)
        self.running = None
        self._finished(answer)

    def _pass_on(self, error: BaseException) -> None:
        """What ends the program ends it from a handler too, when that was answered; a task has done so already."""
        if isinstance(error, _PASSED_ON) and self.running is None:
            self._loop.call_soon(_raise, error)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _interrupt(turn: Turn) -> None:
    """It has kept its thread waiting for too long: the broker is about to lose its patience."""
    if turn.task is not None:
        turn.overran = turn.task.cancel()


def _outcome(task: asyncio.Task[Any], turn: Turn) -> Any:
    if not task.cancelled():
        return task.result()
    raise HandlerOverran if turn.overran else asyncio.CancelledError


def _raise(error: BaseException) -> None:
    raise error
