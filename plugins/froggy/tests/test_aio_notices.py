"""Hits in mode notify in an event loop, against a broker that does as it is told."""

from __future__ import annotations

import asyncio
import time
from queue import Empty
from typing import Any

import pytest

import ubpx
from tests.fake_broker import HOLD, LEASE, PID, PLACE, UNANSWERED, FakeBroker, hit, joined, lease_info, registers, soon
from tests.real.loops import out, run
from ubpx_froggy import messages as m
from ubpx_froggy.aio import stage as stage_module


@pytest.mark.parametrize("form", ["plain", "coroutine"])
def test_notices_are_handled_in_order_behind_the_program(
    broker: FakeBroker, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant: a notify handler gets each hit as it was; its verdicts, writes and exceptions are errors here."""
    seen: list[Any] = []

    def plain(hit: Any) -> Any:
        seen.append((hit.tid, hit.time, hit.regs.rdi, hit.args[0], hit))
        if hit.tid == 2:
            return ubpx.Verdict.HOLD
        if hit.tid == 3:
            hit.regs.rdi = 1
        return None

    async def coroutine(hit: Any) -> Any:
        await asyncio.sleep(0)
        return plain(hit)

    async def scenario() -> None:
        target, client = await joined(broker)
        broker.script[m.Probe] = UNANSWERED
        probing = asyncio.create_task(client.probe(PLACE, plain if form == "plain" else coroutine, mode="notify"))
        ask = await out(broker.control.next_ask, m.Probe)
        records = [(LEASE, tid, tid + 0.5, registers(rdi=tid)) for tid in (1, 2, 3)]
        broker.control.send(m.Hits(records, {LEASE: 4}), m.Reply(ask.id, m.as_raw(lease_info(mode="notify"))))
        lease = await probing
        await soon(lambda: len(seen) == 3)
        assert [each[:4] for each in seen] == [(tid, tid + 0.5, tid, tid) for tid in (1, 2, 3)]
        broker.control.send(m.Hits([(b"?" * 16, 4, 0.0, registers())]))
        broker.script[m.Release] = [lease_info(mode="notify", state="RELEASED")]
        await lease.release()
        assert (lease.errors, lease.dropped, lease.state) == (2, 4, "RELEASED")
        assert "with mode='notify' its thread has gone on" in caplog.text
        assert "register rdi cannot be written" in caplog.text
        with pytest.raises(ubpx.StaleHit):
            seen[0][-1].tid  # noqa: B018 - reading it is what raises
        assert not broker.channel_is_open.is_set(), "nobody has asked for a channel"
        await target.detach()

    run(scenario)


def test_too_many_notices_are_dropped_and_counted(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: hits = handled + dropped; and the queue is bounded."""
    monkeypatch.setattr(stage_module, "LIMIT", 10)

    async def scenario() -> None:
        target, client = await joined(broker)
        handled = 0
        free = asyncio.Event()

        async def handler(_: Any) -> None:
            nonlocal handled
            await free.wait()
            handled += 1

        lease = await client.probe(PLACE, handler, mode="notify")
        records = [(LEASE, 1, 0.0, registers())] * 4
        broker.control.send(*[m.Hits(records)] * 5)
        await target.threads()
        assert lease.dropped == 12
        broker.script[m.Release] = [lease_info(mode="notify", state="RELEASED")]
        releasing = asyncio.create_task(lease.release())
        await asyncio.sleep(0.02)
        assert not releasing.done(), "it lets handlers have the hits of before it"
        free.set()
        await releasing
        assert (handled, lease.dropped) == (8, 12)
        await target.detach()

    run(scenario)


def test_many_notices_leave_the_loop_to_others(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        handled, ticks = 0, 0

        def handler(_: Any) -> None:
            nonlocal handled
            time.sleep(0.001)
            handled += 1

        lease = await client.probe(PLACE, handler, mode="notify")
        broker.control.send(m.Hits([(LEASE, 1, 0.0, registers())] * 100))
        while handled < 100:
            await asyncio.sleep(0)
            ticks += 1
        assert ticks >= 10
        await lease.release()
        await target.detach()

    run(scenario)


@pytest.mark.parametrize("form", ["plain", "coroutine"])
def test_handlers_of_both_kinds_run_one_at_a_time(broker: FakeBroker, form: str) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        free = asyncio.Event()
        inside = 0

        async def slow(_: Any) -> None:
            nonlocal inside
            inside += 1
            assert await target.threads() == (PID, 7), "by the connection: no answer is due"
            await free.wait()
            inside -= 1

        def plain(_: Any) -> None:
            assert not inside

        async def coroutine(_: Any) -> None:
            assert not inside

        await client.probe(PLACE, slow, mode="notify")
        broker.script[m.Probe] = lease_info(HOLD)
        await client.probe(PLACE, plain if form == "plain" else coroutine)
        broker.control.send(m.Hits([(LEASE, 1, 0.0, registers()), (LEASE, 2, 0.0, registers())]))
        await soon(lambda: inside)
        broker.channel.send(hit(1, lease=HOLD), hit(2, lease=HOLD))
        with pytest.raises(Empty):
            await out(broker.channel.answers.get, timeout=0.05)
        free.set()
        assert [await out(broker.channel.next_answer) for _ in range(2)] == [m.Answer(1), m.Answer(2)]
        await target.detach()

    run(scenario)
