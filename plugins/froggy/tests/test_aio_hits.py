"""Handlers in an event loop, plain ones and coroutines, against a broker that does as it is told."""

from __future__ import annotations

import asyncio
import gc
import time
from queue import Empty
from typing import Any

import pytest

import ubpx
from tests.fake_broker import (
    LEASE,
    NAMES,
    PATIENCE_S,
    PID,
    PLACE,
    TARGET,
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
from ubpx_froggy import messages as m
from ubpx_froggy.aio import link as link_module
from ubpx_froggy.aio import stage as stage_module


@pytest.mark.parametrize("form", ["plain", "coroutine", "future"])
def test_what_a_handler_returns_and_writes_travels_back(broker: FakeBroker, form: str) -> None:
    """Invariant: a handler gives None or a Verdict, and register writes; anything else counts as raised."""
    returned: list[Any] = [None, ubpx.Verdict.HOLD, 1, None]

    def plain(hit: Any) -> Any:
        if len(returned) == 1:
            hit.regs.rdi = hit.regs["rdi"] - 8
            hit.regs["rax"] = 1 << 64 | 5
            assert hit.regs.rax == 0, "later handlers read the values at arrival"
        return returned.pop(0)

    async def coroutine(hit: Any) -> Any:
        await asyncio.sleep(0)
        return plain(hit)

    def future(hit: Any) -> Any:
        return asyncio.ensure_future(coroutine(hit))

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, {"plain": plain, "coroutine": coroutine, "future": future}[form])
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        assert await told(broker.channel, hit(2)) == m.Answer(2, 2)
        raised = m.Raised(3, "UsageError: a handler returned 1; return None or a ubpx.Verdict")
        assert await told(broker.channel, hit(3)) == raised
        assert client.strikes == 1
        assert await told(broker.channel, hit(4, rdi=4)) == m.Answer(4, None, {"rdi": 2**64 - 4, "rax": 5})
        assert client.strikes == 0
        await target.detach()

    run(scenario)


@pytest.mark.parametrize("form", ["plain", "coroutine"])
@pytest.mark.parametrize("error", [ValueError("x" * 5000), asyncio.CancelledError(), Exception("\ud800")])
def test_what_a_handler_raises_is_told_and_logged(
    broker: FakeBroker, error: BaseException, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(_: Any) -> None:
        raise error

    async def coroutine(_: Any) -> None:
        await asyncio.sleep(0)
        raise error

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, plain if form == "plain" else coroutine)
        for call in (1, 2):
            answer = await told(broker.channel, hit(call))
            assert isinstance(answer, m.Raised)
            assert answer.error.startswith(type(error).__name__)
            assert len(answer.error) <= 2000
        assert "client 'a' raised in its handler at 0x401000 (2 in a row)" in caplog.text
        await target.detach()

    run(scenario)


@pytest.mark.parametrize("form", ["plain", "coroutine"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_ends_it_from_a_handler_too(
    broker: FakeBroker, error: type[BaseException], form: str
) -> None:
    """Invariant: the thread gets its answer, and the exception comes out of the loop."""

    def plain(_: Any) -> None:
        raise error

    async def coroutine(_: Any) -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        _, client = await joined(broker)
        await client.probe(PLACE, plain if form == "plain" else coroutine)
        broker.channel.send(hit(1))
        await asyncio.sleep(PATIENCE_S)

    with pytest.raises(error):
        asyncio.run(main())
    assert broker.channel.next_answer() == m.Raised(1, f"{error.__name__}: ")
    gc.collect()


def test_a_task_of_a_handler_that_is_cancelled_counts_as_raised(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        tasks: list[Any] = []

        async def handler(_: Any) -> None:
            tasks.append(asyncio.current_task())
            await asyncio.sleep(PATIENCE_S)

        await client.probe(PLACE, handler)
        broker.channel.send(hit(1))
        await soon(lambda: tasks)
        tasks[0].cancel()
        answer = await out(broker.channel.next_answer)
        assert answer == m.Raised(1, "CancelledError: ")
        broker.channel.send(hit(2), hit(3))
        await soon(lambda: len(tasks) == 2)
        tasks[1].cancel()
        assert isinstance(await out(broker.channel.next_answer), m.Raised)
        await soon(lambda: len(tasks) == 3)
        tasks[2].cancel()
        assert isinstance(await out(broker.channel.next_answer), m.Raised)
        await target.detach()

    run(scenario)


@pytest.mark.parametrize("form", ["plain", "coroutine"])
def test_a_handler_that_takes_too_long_is_interrupted(broker: FakeBroker, form: str) -> None:
    """Invariant: before the broker loses its patience the handler is interrupted, and its thread goes on."""
    broker.script[m.Join] = m.TargetInfo(TARGET, PID, "x86_64", list(NAMES), "rip", deadline_s=0.2, spawned=False)

    def plain(_: Any) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            pass

    async def coroutine(_: Any) -> None:
        await asyncio.sleep(PATIENCE_S)

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, plain if form == "plain" else coroutine)
        for call in (1, 2):
            began = time.monotonic()
            assert await told(broker.channel, hit(call)) == m.Raised(call, "HandlerOverran: ")
            assert time.monotonic() - began < PATIENCE_S / 2
        await target.detach()

    run(scenario)


def test_a_hit_has_the_face_of_ubpx_s(broker: FakeBroker) -> None:
    seen: list[Any] = []
    broker.script[m.ReadMemory] = lambda call: call.address.to_bytes(8, "little")

    async def handler(hit: Any) -> None:
        assert (hit.address, hit.pid, hit.tid, hit.lease.handle) == (PLACE, PID, 7, LEASE)
        assert (tuple(hit.regs), hit.regs.rip, bytes(hit.regs)) == (NAMES, PLACE, registers(rdi=1, rsp=0x100))
        assert [hit.args[0], await hit.argument(0), await hit.argument(6)] == [1, 1, 0x108]
        with pytest.raises(ubpx.UsageError, match=r"await hit\.argument\(n\)"):
            hit.args[6]
        for index in (-1, "0", True):
            with pytest.raises(ubpx.UsageError, match="counted from 0"):
                await hit.argument(index)
        assert await hit.memory.read(0x200, 8) == (0x200).to_bytes(8, "little")
        assert abs(hit.time - time.time()) < PATIENCE_S
        assert repr(hit) == "<hit of thread 7 at 0x401000>"
        seen.extend((hit, hit.regs, hit.snapshot(), hit.memory))

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, handler)
        assert await told(broker.channel, hit(1, rdi=1, rsp=0x100)) == m.Answer(1)
        over, regs, snapshot, memory = seen
        assert broker.channel.asked.qsize() == 2, "what a handler asks goes by its channel"
        assert (snapshot.address, snapshot.tid, snapshot.args[0], snapshot.regs["rsp"]) == (PLACE, 7, 1, 0x100)
        assert repr(over) == "<hit, over>"
        uses = (lambda: over.tid, lambda: over.memory, over.snapshot, lambda: regs.rdi)
        for use in uses:
            with pytest.raises(ubpx.StaleHit):
                use()
        with pytest.raises(ubpx.StaleHit):
            await over.argument(0)
        assert await memory.read(0x300, 8) == (0x300).to_bytes(8, "little")
        assert broker.channel.asked.qsize() == 2, "and what is asked afterwards by the connection"
        await target.detach()

    run(scenario)


def test_a_handler_that_awaits_lets_the_loop_run_and_the_next_hit_wait(broker: FakeBroker) -> None:
    """Invariant: what a handler asks goes by its channel; hits that come meanwhile are handled after it, in order."""
    order: list[Any] = []

    async def scenario() -> None:
        target, client = await joined(broker)

        async def handler(hit: Any) -> None:
            tid = hit.tid
            order.append(("begins", tid))
            if tid == 1:
                order.append(await target.threads())
            order.append(("ends", tid))

        await client.probe(PLACE, handler)
        broker.script[m.Threads] = lambda peer, _: UNANSWERED if peer is broker.channel else [99]
        broker.channel.send(hit(1, 1))
        ask = await out(broker.channel.next_ask, m.Threads)
        assert await target.threads() == (99,), "others use the connection meanwhile"
        broker.channel.send(hit(2, 2), m.Reply(ask.id, m.as_raw([5])), hit(3, 3))
        assert [await out(broker.channel.next_answer) for _ in range(3)] == [m.Answer(1), m.Answer(2), m.Answer(3)]
        assert order == [("begins", 1), (5,), ("ends", 1), ("begins", 2), ("ends", 2), ("begins", 3), ("ends", 3)]
        await target.detach()

    run(scenario)


def test_tasks_that_a_handler_leaves_behind_use_the_connection(broker: FakeBroker) -> None:
    """Invariant: while it runs its tasks ask by the channel, afterwards by the connection, for no answer is due."""

    async def scenario() -> None:
        target, client = await joined(broker)
        broker.script[m.Threads] = lambda peer, _: [1] if peer is broker.channel else [2]
        over = asyncio.Event()
        left: list[Any] = []

        async def later() -> Any:
            await over.wait()
            return await target.threads()

        async def handler(_: Any) -> None:
            left.append(asyncio.create_task(later()))
            assert list(await asyncio.gather(target.threads(), target.threads())) == [(1,), (1,)]
            with pytest.raises(ubpx.UsageError, match="would wait for itself"):
                await asyncio.create_task(target.wait())

        await client.probe(PLACE, handler)
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        over.set()
        assert await left[0] == (2,)
        await target.detach()

    run(scenario)


def test_a_broker_that_goes_while_a_handler_asks(broker: FakeBroker) -> None:
    raised: list[BaseException] = []

    async def scenario() -> None:
        target, client = await joined(broker)

        async def handler(_: Any) -> None:
            try:
                await target.threads()
            except ubpx.UbpxError as error:
                raised.append(error)

        await client.probe(PLACE, handler)
        broker.script[m.Threads] = UNANSWERED
        broker.channel.send(hit(1), hit(2))
        await out(broker.channel.next_ask, m.Threads)
        await out(broker.evict, "it was slow")
        await soon(lambda: raised)
        assert [str(each) for each in raised] == [f"the broker at {broker.path} is gone: it was slow; connect again"]
        await target.detach()

    run(scenario)


def test_a_handler_that_sleeps_on_when_the_broker_has_gone_is_cancelled(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_GRACE_S", 0.05)
    seen: list[str] = []

    async def handler(_: Any) -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            seen.append("ended")

    async def gone() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, handler)
        broker.channel.send(hit(1))
        await soon(lambda: seen)
        await out(broker.control.close)
        await soon(lambda: len(seen) == 2)
        await target.detach()

    async def left() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, handler)
        broker.channel.send(hit(1))
        await soon(lambda: len(seen) == 3)
        await target.detach()
        assert len(seen) == 4

    run(gone)
    run(left)


def test_a_hit_may_come_before_the_reply_that_gave_its_lease(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        broker.script[m.Probe] = UNANSWERED
        seen: list[Any] = []
        probing = asyncio.create_task(client.probe(PLACE, lambda hit: seen.append(hit.lease)))
        ask = await out(broker.control.next_ask, m.Probe)
        broker.channel.send(hit(1))
        with pytest.raises(Empty):
            await out(broker.channel.answers.get, timeout=0.05)
        broker.control.reply(ask.id, lease_info())
        assert await out(broker.channel.next_answer) == m.Answer(1)
        assert seen == [await probing]
        assert await told(broker.channel, hit(2, lease=b"?" * 16)) == m.Answer(2), "nobody's: it was given back"
        await target.detach()

    run(scenario)


def test_a_hit_does_not_wait_for_ever_for_its_lease(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "GRANT_S", 0.05)

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, lambda _: None)
        broker.script[m.Probe] = UNANSWERED
        probing = asyncio.create_task(client.probe(PLACE, lambda _: None, mode="notify"))
        await out(broker.control.next_ask, m.Probe)
        await out(broker.control.next_ask, m.Probe)
        broker.control.send(m.Hits([(b"?" * 16, 1, 0.0, registers()), (LEASE, 1, 0.0, registers())]))
        assert await told(broker.channel, hit(1, lease=b"?" * 16), hit(2)) == m.Answer(1)
        assert await out(broker.channel.next_answer) == m.Answer(2)
        probing.cancel()
        await target.detach()

    run(scenario)


def test_a_lease_that_a_handler_releases_ends_after_the_hit(broker: FakeBroker) -> None:
    """Invariant: the other handlers of the same arrival still run, and none of a later one."""

    async def scenario() -> None:
        target, client = await joined(broker)
        seen: list[int] = []
        other_handle = b"o" * 16
        broker.script[m.Probe] = lease_info(other_handle)
        other = await client.probe(PLACE, lambda hit: seen.append(hit.tid))

        async def handler(_: Any) -> None:
            await other.release()
            assert other.state is ubpx.LeaseState.RELEASED

        broker.script[m.Probe] = lease_info()
        await client.probe(PLACE, handler)
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        assert await told(broker.channel, hit(2, lease=other_handle)) == m.Answer(2)
        assert await told(broker.channel, hit(3, 8, lease=other_handle)) == m.Answer(3)
        assert seen == [7]
        await target.detach()

    run(scenario)


def test_detaching_in_a_handler_takes_effect_after_the_hit(broker: FakeBroker) -> None:
    """Invariant: no other hit comes to a handler then."""
    said: list[str] = []

    async def scenario() -> None:
        target, client = await joined(broker)

        async def handler(_: Any) -> None:
            with pytest.raises(ubpx.UsageError, match="would wait for itself"):
                await target.wait()
            await target.detach()
            await target.detach()
            said.append("still here" if await target.threads() else "")

        await client.probe(PLACE, handler)
        broker.script[m.Leave] = UNANSWERED
        broker.channel.send(hit(1), hit(2))
        answers = [await out(broker.channel.next_answer), await out(broker.channel.next_answer)]
        assert answers == [m.Answer(1), m.Answer(2)]
        assert said == ["still here"]
        broker.control.reply((await out(broker.control.next_ask, m.Leave)).id, None)
        await target.detach()
        with pytest.raises(ubpx.UsageError, match="is detached"):
            await target.threads()

    run(scenario)
