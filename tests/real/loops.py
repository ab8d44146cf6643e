"""Scenarios in event loops, for the tests of the asyncio form, in bounded time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess

PATIENCE_S: Final = 30.0

out: Final = asyncio.to_thread
"""What a program or a broker says or waits for must not keep the loop waiting."""


def run(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """In a loop of its own, in bounded time; no task is left then, and no complaint of the loop's."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE_S):
            await scenario()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert complaints == []


async def soon(done: Callable[[], object]) -> None:
    """Until it is so; the loop's time is bounded."""
    while not done():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def using(broker: BrokerProcess, name: str = "a", **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A target, and a client of it."""
    from ubpx_froggy import aio

    async with await aio.connect(broker.path) as target, await target.client(name, **options) as client:
        yield target, client
