"""Handlers in an event loop that do a bit of everything, while others ask and are cancelled: nothing is missed."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from ubpx_froggy import aio

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import StartProgram

PATIENCE_S: Final = 45.0
THREADS: Final = 4
CALLS: Final = 300
MADE: Final = THREADS * CALLS


class Storm:
    """What three clients of one connection do, by chance."""

    def __init__(self, seed: int, target: aio.AsyncTarget) -> None:
        self._random: Final = random.Random(seed)
        self._target: Final = target
        self.handled = {"coroutine": 0, "plain": 0, "notify": 0}
        self.cancelled = 0
        self._last_was_cancelled = False

    async def coroutine(self, hit: Any) -> None:
        """Prompt or late, asking this or that, cancelled now and then but never twice in a row."""
        self.handled["coroutine"] += 1
        chance = self._random.random()
        was, self._last_was_cancelled = self._last_was_cancelled, False
        if chance < 0.2:
            await hit.memory.read(hit.regs.rsp, 64)
        elif chance < 0.25:
            await asyncio.sleep(self._random.random() * 0.006)
        elif chance < 0.3:
            await asyncio.wait([reading := asyncio.ensure_future(hit.memory.read(hit.regs.rsp, 64))], timeout=0.0002)
            reading.cancel()
        elif chance < 0.34:
            await (await hit.lease.client.probe("probed_nop", None, mode="count")).release()
        elif chance < 0.36 and not was:
            self.cancelled += 1
            self._last_was_cancelled = True
            task: Any = asyncio.current_task()
            task.cancel()
            await asyncio.sleep(PATIENCE_S)

    def plain(self, _: Any) -> None:
        """Counts."""
        self.handled["plain"] += 1

    async def notify(self, _: Any) -> None:
        """Counts, and lets the loop run now and then."""
        self.handled["notify"] += 1
        if self.handled["notify"] % 10 == 0:
            await asyncio.sleep(0)

    async def ask(self, client: aio.AsyncClient) -> None:
        """Without end, being cancelled at any moment; what was granted before is given back."""
        target = self._target
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            target.threads,
            target.holds,
            target.clients,
            client.leases,
            lambda: client.hold(target.pid),
            lambda: client.probe("probed_push", self.plain),
        ]
        while True:
            call = self._random.choice(calls)
            asking = asyncio.create_task(call())
            await asyncio.sleep(self._random.random() * 0.002)
            asking.cancel()
            outcome: Any = (await asyncio.gather(asking, return_exceptions=True))[0]
            if isinstance(outcome, aio.AsyncHold | aio.AsyncLease):
                await outcome.release()
            elif isinstance(outcome, ubpx.UbpxError):
                raise outcome


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_missed(target_program: StartProgram, start_broker: Callable[..., BrokerProcess], seed: int) -> None:
    """Invariant: each client has every hit of the program's, once, and each cancelled handler is an error."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    broker = start_broker("-p", str(program.pid))
    assert broker.greeting.startswith("ubpx: serving"), broker.greeting
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE_S), await aio.connect(broker.path) as target:
            storm = Storm(seed, target)
            first, second, third = [await target.client(name) for name in ("coroutine", "plain", "notify")]
            leases = [
                await first.probe("probed_lea", storm.coroutine),
                await second.probe("probed_lea", storm.plain),
                await third.probe("probed_lea", storm.notify, mode="notify"),
            ]
            made = asyncio.create_task(asyncio.to_thread(program.tell("g").number, "calls"))
            asking = asyncio.create_task(storm.ask(third))
            await asyncio.wait([made, asking], return_when=asyncio.FIRST_COMPLETED)
            asking.cancel()
            assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
            for lease in leases:
                await lease.release()
            assert await made == MADE
            assert [lease.hits for lease in leases] == [MADE] * 3
            assert [lease.errors for lease in leases] == [storm.cancelled, 0, 0]
            storm.handled["notify"] += leases[2].dropped
            assert storm.handled == dict.fromkeys(storm.handled, MADE)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert complaints == []
    assert program.tell("q").wait() == 0
