"""To be told when an event loop is shut down, so that nothing is left open in it."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final


class LoopWatch:
    """Calls ``over`` when the running event loop is shut down. Owned by whoever gives ``over``, who stops it.

    ``asyncio.run``, and whoever ends a loop as it does, closes the asynchronous generators that are alive then
    (``loop.shutdown_asyncgens``). So one that waits for nothing else hears of it, where a task would have to be
    cancelled, and would be a pending one in a loop that is just closed.
    """

    def __init__(self, over: Callable[[], object]) -> None:
        self._over: Final = over
        self._has_ended = False
        self._generator: Final = self._wait()
        with contextlib.suppress(StopIteration):  # its first step needs no loop
            self._generator.__anext__().__await__().send(None)

    async def _wait(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            stopped, self._has_ended = self._has_ended, True
            if not stopped:
                self._over()

    def stop(self) -> None:
        """Call nobody any more. Again: does nothing."""
        if not self._has_ended:
            self._has_ended = True
            with contextlib.suppress(StopIteration):
                self._generator.aclose().__await__().send(None)
