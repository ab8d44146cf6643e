"""The asyncio form of a connection to a real broker: how it ends, and who is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.loops import out, run, soon, using
from ubpx_froggy import aio

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

    Serve = Callable[..., BrokerProcess]


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """Answers lines, and calls busy() all the time."""
    return target_program("echo", 1)


@pytest.fixture
def broker(serve: Serve, echo: Program) -> BrokerProcess:
    """Traces it."""
    return serve(echo)


# How it ends ----------------------------------------------------------------------------------


def test_detaching_leaves_the_broker_to_others(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: what one connection had is given back, and the others miss nothing."""
    left, stays = [], []

    async def scenario() -> None:
        async with using(broker, "stays") as (target, client):
            lease = await client.probe("answer", lambda hit: stays.append(hit.regs.rdi))
            async with using(broker, "goes") as (_, other):
                ending = await other.probe("answer", lambda hit: left.append(hit.regs.rdi))
                await other.hold(echo.pid)
                answer = asyncio.create_task(out(echo.answer, 1))
            assert await answer == 2, "its hold was given back too"
            assert await out(echo.answer, 2) == 3
            assert ending.state == "RELEASED"
            assert [each.name for each in await target.clients()] == ["stays"]
            assert (await lease.refresh()).hits == 2
            assert await target.holds() == ()
        assert stays == [1, 2]
        assert left in ([1], [])

    run(scenario)
    assert broker.popen.poll() is None


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_detaching_in_a_handler_takes_effect_after_the_hit(
    echo: Program, broker: BrokerProcess, delay_s: float
) -> None:
    """Invariant: also if the tracer has lost its patience with the handler meanwhile."""

    async def scenario() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")

        async def handler(hit: Any) -> None:
            await asyncio.sleep(delay_s)
            await target.detach()
            hit.regs.rdi += 100

        await client.probe("answer", handler)
        assert await out(echo.answer, 1) == 102
        assert await out(echo.answer, 1) == 2
        await target.detach()
        with pytest.raises(ubpx.UsageError, match="is detached"):
            await target.threads()

    run(scenario)


def test_a_broker_that_is_killed_is_gone_for_everybody(target_program: StartProgram, serve: Serve) -> None:
    """Invariant: whoever awaits a reply, inside a handler or outside, hears of it, and nothing is left pending."""
    program = target_program("echo", 0)
    broker = serve(program)
    heard: list[Any] = []

    async def scenario() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")
        begun = asyncio.Event()

        async def handler(_: Any) -> None:
            begun.set()
            try:
                while True:
                    await target.threads()
            except ubpx.BrokerGone as gone:
                heard.append(gone)

        await client.probe("answer", handler)
        program.tell("1\n")
        waiting = [asyncio.create_task(target.wait()) for _ in range(3)]
        await begun.wait()
        os.kill(broker.pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [ubpx.BrokerGone] * 3
        await soon(lambda: heard)
        with pytest.raises(ubpx.BrokerGone):
            await target.threads()
        assert client.state == "CLOSED"
        await target.detach()

    run(scenario)


def test_an_evicted_connection_says_why(echo: Program, serve: Serve) -> None:
    """Invariant: who blocks the loop in C cannot be interrupted, and is evicted; the program and the others go on."""
    broker = serve(echo, "--deadline", "0.2")

    async def scenario() -> None:
        async with using(broker, "neighbour") as (_, neighbour), using(broker) as (target, client):
            kept = await neighbour.probe("answer", None, mode="count")

            async def handler(_: Any) -> None:
                signal.sigtimedwait([], 1.0)

            await client.probe("answer", handler)
            assert await out(echo.answer, 1) == 2
            await soon(lambda: client.state == "QUARANTINED")
            with pytest.raises(ubpx.ClientQuarantined, match=r"has not answered a hit for 0\.2 s"):
                await client.hold(echo.pid)
            with pytest.raises(ubpx.BrokerGone, match="has not answered"):
                await target.threads()
            assert await out(echo.answer, 2) == 3
            assert (await kept.refresh()).hits == 2

    run(scenario)


def test_the_end_of_the_program_is_told(echo: Program, broker: BrokerProcess) -> None:
    async def scenario() -> None:
        async with await aio.connect(broker.path) as target:
            assert await target.wait(timeout=0.01) is None
            for _ in range(100):  # more than a broker lets wait at once
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(target.wait(), 0.0001)
            waiting = [asyncio.create_task(target.wait()) for _ in range(2)]
            echo.tell("x 7\n")
            assert await asyncio.gather(*waiting) == [7, 7]
            assert await target.wait() == 7
            assert await target.threads() == ()

    run(scenario)


# Cancellation ---------------------------------------------------------------------------------


def test_cancelled_requests_leave_nothing_and_harm_nobody(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: holds and leases that nobody waited for are given back; the connection goes on."""

    async def scenario() -> None:
        async with using(broker) as (target, client):
            cancelled = 0
            for turn in range(60):
                calls = [client.hold(echo.pid), client.probe("answer", lambda _: None), target.memory.read(0, 1)]
                tasks = [asyncio.create_task(call) for call in calls]
                for _ in range(turn % 7):
                    await asyncio.sleep(0)
                await asyncio.sleep(turn % 5 * 0.0003)
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                cancelled += sum(isinstance(each, asyncio.CancelledError) for each in outcomes)
                for granted in outcomes[:2]:
                    if not isinstance(granted, BaseException):
                        await granted.release()
            assert cancelled
            while await target.holds():  # what was asked for last may have been granted after this was asked
                await asyncio.sleep(0.005)
            assert await client.leases() == ()
            assert await target.probepoints() == ()
            assert await out(echo.answer, 1) == 2

    run(scenario)


def test_a_handler_that_is_cancelled_raises(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: its thread goes on, the lease counts an error, and the next hit is served."""
    tasks: list[Any] = []

    async def handler(hit: Any) -> None:
        tasks.append(asyncio.current_task())
        if hit.regs.rdi == 1:
            while True:
                await hit.memory.read(hit.address, 1)

    async def scenario() -> None:
        async with using(broker) as (_, client):
            lease = await client.probe("answer", handler)
            answer = asyncio.create_task(out(echo.answer, 1))
            await soon(lambda: tasks)
            tasks[0].cancel()
            assert await answer == 2
            assert await out(echo.answer, 5) == 6
            await lease.refresh()
            assert (lease.hits, lease.errors) == (2, 1)

    run(scenario)


def test_a_loop_that_ends_without_a_detach_gives_everything_back(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: as for a process that is killed; and there is no warning."""

    async def careless() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")
        await client.probe("answer", lambda _: ubpx.Verdict.HOLD)
        await client.hold()

    asyncio.run(careless())
    gc.collect()
    assert echo.answer(1) == 2
