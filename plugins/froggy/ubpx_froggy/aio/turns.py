"""Who the caller is: whether it is part of a handler or hook that runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from ubpx_froggy.messages import Hit

_current: Final[ContextVar["Turn | None"]] = ContextVar("ubpx_froggy_turn", default=None)


class Turn:
    """One handler or hook that runs, and has to be waited for. Owned by where it runs.

    Tasks that it starts are part of it, as contexts are inherited, until it ends.
    """

    def __init__(self, place: object, *, line: Any = None, hit: Hit | None = None) -> None:
        self.place: Final = place
        """Where it runs: the handling of its connection."""
        self.line: Final = line
        """The channel that carries what it asks; None: it goes as everybody's, for no answer is due."""
        self.hit: Final = hit
        """The hit that waits for it; None: there is none."""
        self.is_over = False
        self.overran = False
        """Whether it was cancelled because it took too long."""
        self.task: asyncio.Task[Any] | None = None
        """None where it runs in a task of the caller's."""
        self.alarm: asyncio.TimerHandle | None = None

    def context(self) -> Context:
        """For a task that runs it."""
        context = copy_context()
        context.run(_current.set, self)
        return context

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within it the caller is the turn."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def end(self) -> None:
        """What it has started and left behind is no part of it any more."""
        self.is_over = True
        if self.alarm is not None:
            self.alarm.cancel()


def current(place: object) -> Turn | None:
    """The turn of this place that the caller is part of; None if it is of none."""
    turn = _current.get()
    return turn if turn is not None and turn.place is place and not turn.is_over else None


def outside() -> Context:
    """For a task that is no part of the turn that starts it."""
    context = copy_context()
    context.run(_current.set, None)
    return context
