"""Who is cancelled while a broker has not answered: nothing is harmed, and nothing is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ubpx
from tests.fake_broker import (
    HOLD,
    LEASE,
    PATIENCE_S,
    PID,
    PLACE,
    UNANSWERED,
    FakeBroker,
    hit,
    joined,
    lease_info,
    registers,
    soon,
    told,
)
from tests.real.loops import out, run
from ubpx_froggy import aio
from ubpx_froggy import messages as m


def test_who_is_cancelled_does_not_harm_the_connection(broker: FakeBroker) -> None:
    """Invariant: the reply that comes later is dropped, and everybody else gets theirs."""

    async def scenario() -> None:
        target = await aio.connect(broker.path)
        broker.script.update({m.Threads: UNANSWERED, m.ReadMemory: UNANSWERED})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(target.threads(), 0.01)
        ask = await out(broker.control.next_ask, m.Threads)
        other = asyncio.create_task(target.memory.read(1, 2))
        broker.control.reply(ask.id, [5])
        broker.control.reply((await out(broker.control.next_ask, m.ReadMemory)).id, b"ab")
        assert await other == b"ab"
        broker.script[m.Threads] = [6]
        assert await target.threads() == (6,)
        await target.detach()

    run(scenario)


def test_a_reply_that_nobody_waits_for_must_be_one_all_the_same(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target = await aio.connect(broker.path)
        broker.script.update({m.Threads: UNANSWERED, m.ReadMemory: UNANSWERED})
        cancelled, other = asyncio.create_task(target.threads()), asyncio.create_task(target.memory.read(1, 2))
        ask = await out(broker.control.next_ask, m.Threads)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        broker.control.reply(ask.id, "no tids at all")
        with pytest.raises(ubpx.BrokerGone, match="a reply that cannot be read"):
            await other
        await target.detach()

    run(scenario)


def test_what_nobody_waited_for_is_given_back(broker: FakeBroker) -> None:
    """Invariant: a lease, hold or client that was granted to somebody who had been cancelled is given back."""

    async def scenario() -> None:
        target, client = await joined(broker)
        seen: list[Any] = []
        broker.script[m.OpenClient] = m.ClientInfo(HOLD, [])
        cases: list[tuple[type, Callable[[], Coroutine[Any, Any, Any]], Any, Any]] = [
            (m.Probe, lambda: client.probe(PLACE, seen.append), lease_info(), m.Release([LEASE])),
            (m.Watch, lambda: client.watch(8, seen.append), lease_info(), m.Release([LEASE])),
            (
                m.ProbeMany,
                lambda: client.probe_many([1, 2], seen.append),
                m.GroupInfo([lease_info(), lease_info(HOLD)], []),
                m.Release([LEASE, HOLD]),
            ),
            (m.TakeHold, lambda: client.hold(7), m.HoldInfo(HOLD, "a", PID, 7), m.ReleaseHold(HOLD)),
            (m.OpenClient, lambda: target.client("b"), m.ClientInfo(HOLD, []), m.CloseClient(HOLD)),
        ]
        for kind, call, reply, undone in cases:
            broker.script[kind] = UNANSWERED
            waiting = asyncio.create_task(call())
            ask = await out(broker.control.next_ask, kind)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            broker.control.reply(ask.id, reply)
            assert (await out(broker.control.next_ask, type(undone))).call == undone
        assert await told(broker.channel, hit(1)) == m.Answer(1), "a hit of before that has no handler"
        assert seen == []
        await target.detach()

    run(scenario)


def test_a_reply_at_the_moment_of_a_cancellation(broker: FakeBroker) -> None:
    """Invariant: it does not matter which of both comes first."""

    async def scenario() -> None:
        target, client = await joined(broker)
        broker.script[m.TakeHold] = UNANSWERED
        waiting = asyncio.create_task(client.hold(7))
        ask = await out(broker.control.next_ask, m.TakeHold)
        broker.control.reply(ask.id, m.HoldInfo(HOLD, "a", PID, 7))
        time.sleep(0.05)  # the reply is read, and whoever waits is woken, in one round of the loop
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(waiting.cancel))
        outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
        if isinstance(outcome, asyncio.CancelledError):
            assert (await out(broker.control.next_ask, m.ReleaseHold)).call == m.ReleaseHold(HOLD)
        else:
            assert isinstance(outcome, aio.AsyncHold)
        await target.detach()

    for _ in range(5):
        run(scenario)


def test_a_cancelled_probe_that_persists_stays_without_a_handler(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        seen: list[Any] = []
        broker.script[m.Probe] = UNANSWERED
        waiting = asyncio.create_task(client.probe(PLACE, seen.append, persistent=True))
        ask = await out(broker.control.next_ask, m.Probe)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        broker.control.reply(ask.id, lease_info(persistent=True))
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        broker.script[m.Leases] = [lease_info(persistent=True)]
        (left,) = await client.leases()
        assert (left.handler, left.state, seen) == (None, "ARMED", [])
        await target.detach()

    run(scenario)


def test_a_release_that_is_cancelled_has_been_done(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        seen: list[int] = []
        lease = await client.probe(PLACE, lambda hit: seen.append(hit.tid), mode="notify")
        broker.script[m.Release] = UNANSWERED
        releasing = asyncio.create_task(lease.release())
        ask = await out(broker.control.next_ask, m.Release)
        releasing.cancel()
        await asyncio.gather(releasing, return_exceptions=True)
        broker.control.send(m.Hits([(LEASE, 5, 0.0, registers())]))
        broker.control.reply(ask.id, [lease_info(mode="notify", state="RELEASED", hits=8)])
        await target.threads()
        assert (lease.hits, lease.state, lease.dropped) == (0, "RELEASED", 1)
        await lease.release()
        broker.script[m.Release] = None
        await target.detach()

    run(scenario)


def test_a_channel_is_opened_once_whoever_is_cancelled(broker: FakeBroker) -> None:
    """Invariant: a channel's token is good once, so its opening goes on when who asked for it is cancelled."""

    async def scenario() -> None:
        target, client = await joined(broker)
        broker.dumb = True
        probes = [asyncio.create_task(client.probe(PLACE, lambda _: None)) for _ in range(3)]
        await soon(lambda: len(broker.peers) == 2)
        probes[0].cancel()
        await asyncio.gather(probes[0], return_exceptions=True)
        broker.dumb = False
        broker.greet(broker.peers[1], m.Hello([1], "late", b"\4" * 16))
        assert [each.handle for each in await asyncio.gather(*probes[1:])] == [LEASE, LEASE]
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        assert len(broker.peers) == 2
        await target.detach()

    run(scenario)


def test_a_channel_that_is_being_opened_when_the_connection_ends(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        broker.dumb = True
        probing = asyncio.create_task(client.probe(PLACE, lambda _: None))
        await soon(lambda: len(broker.peers) == 2)
        await out(broker.control.close)
        with pytest.raises(ubpx.BrokerGone):
            await probing
        await target.detach()
        assert broker.peers[1].ended.wait(PATIENCE_S)

    run(scenario)


def test_many_who_wait_for_the_end_make_one_request(broker: FakeBroker) -> None:
    """Invariant: a broker lets few requests wait, and who gives up waiting does not use them up."""

    async def scenario() -> None:
        target = await aio.connect(broker.path)
        broker.script[m.Wait] = UNANSWERED
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(target.wait(), 0.005)
        waiting = [asyncio.create_task(target.wait()) for _ in range(3)]
        ask = await out(broker.control.next_ask, m.Wait)
        broker.control.reply(ask.id, -9)
        assert await asyncio.gather(*waiting) == [-9, -9, -9]
        assert broker.control.asked.empty()
        broker.script[m.Wait] = ubpx.TargetGone(PID, 0)
        with pytest.raises(ubpx.TargetGone):
            await target.wait()
        broker.script[m.Wait] = None
        assert await target.wait(timeout=0.5) is None
        assert await target.wait() is None
        await target.detach()

    run(scenario)


def test_cancelling_a_detach_leaves_at_once(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, _ = await joined(broker)
        broker.script[m.Leave] = UNANSWERED
        leaving = asyncio.create_task(target.detach())
        await out(broker.control.next_ask, m.Leave)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await target.detach()
        with pytest.raises(ubpx.UsageError, match="is detached"):
            await target.threads()

    run(scenario)
    assert broker.control.ended.wait(PATIENCE_S)
