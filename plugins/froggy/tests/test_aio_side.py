"""The asyncio form of the side that connects, against a fake broker: how it begins, asks and ends."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ubpx
from tests.fake_broker import (
    CLIENT,
    LEASE,
    PATIENCE_S,
    PID,
    PLACE,
    UNANSWERED,
    FakeBroker,
    hit,
    joined,
    lease_info,
)
from tests.real.loops import out, run
from ubpx.core.values import SlotUse
from ubpx_froggy import aio
from ubpx_froggy import messages as m
from ubpx_froggy.aio import link as link_module
from ubpx_froggy.client import dialling

# How it begins --------------------------------------------------------------------------------


def test_a_target_of_a_path_or_a_pid(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ubpx_froggy.client.find_broker", {PID: SimpleNamespace(socket=Path(broker.path))}.get)

    async def scenario() -> None:
        async with await aio.connect(PID, read_only=True) as target:
            assert broker.control.next_ask(m.Join).call == m.Join(PID, read_only=True)
            assert (target.pid, target.broker, target.architecture) == (PID, broker.path, "x86_64")
            assert await target.threads() == (PID, 7)
            assert repr(target) == f"<target {PID} of the broker at {broker.path}>"
        await (await aio.connect(Path(broker.path), pid=PID, slots="none")).detach()
        assert broker.control.next_ask(m.Attach).call == m.Attach(PID, "none")
        wrongs: list[tuple[str, Awaitable[Any]]] = [
            ("two processes", aio.connect(PID, pid=1)),
            ("is no pid", aio.connect(-1)),
            ("is no pid", aio.connect(broker.path, pid=0)),
            ("choose 'auto' or 'none'", aio.connect(PID, slots="some")),
            ("give True or False", aio.connect(PID, read_only=1)),  # type: ignore[arg-type]
            ("at most 107", aio.connect("x" * 120)),
        ]
        for words, wrong in wrongs:
            with pytest.raises(ubpx.UsageError, match=words):
                await wrong
        with pytest.raises(ubpx.NoBroker, match="traces process 1; "):
            await aio.connect(1)

    run(scenario)


def test_who_cannot_be_connected_to_says_why(
    broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    async def scenario() -> None:
        with pytest.raises(ubpx.NoBroker, match="there is no "):
            await aio.connect(tmp_path / "missing")
        with pytest.raises(ubpx.NoBroker, match="nobody listens at "):
            await aio.connect(tmp_path / "file")
        broker.refusal = "it is full"
        with pytest.raises(ubpx.NoBroker, match="refuses: it is full; "):
            await aio.connect(broker.path)
        broker.refusal, broker.dumb = None, True
        with monkeypatch.context() as patch:
            patch.setattr(dialling, "PATIENCE_S", 0.05)
            with pytest.raises(ubpx.BrokerGone, match="said nothing for"):
                await aio.connect(broker.path)
        broker.dumb = False
        broker.script[m.Attach] = ubpx.NoSuchProcess(12)
        with pytest.raises(ubpx.NoSuchProcess):
            await aio.connect(broker.path, pid=12)
        monkeypatch.setattr(dialling, "_UCRED", SimpleNamespace(size=12, unpack=lambda _: (99, os.geteuid() + 1, 0)))
        with pytest.raises(ubpx.PermissionRefused, match="neither you nor root"):
            await aio.connect(broker.path)

    run(scenario)


def test_a_full_backlog_is_waited_for_without_blocking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "PATIENCE_S", 0.3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        ticks = 0

        async def scenario() -> None:
            nonlocal ticks
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(str(tmp_path / "full"))
                attempt = asyncio.create_task(aio.connect(tmp_path / "full"))
                while not attempt.done():
                    await asyncio.sleep(0.01)
                    ticks += 1
                with pytest.raises(ubpx.NoBroker, match="has not taken a connection"):
                    await attempt

        run(scenario)
        assert ticks > 5


def test_what_belongs_to_one_loop_is_refused_in_another(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target = await aio.connect(broker.path)

        async def elsewhere() -> None:
            with pytest.raises(ubpx.UsageError, match="the event loop that it was made in"):
                await target.threads()
            with pytest.raises(ubpx.UsageError, match="the event loop that it was made in"):
                await target.wait()

        await out(asyncio.run, elsewhere())
        await target.detach()

    run(scenario)


# How it ends ----------------------------------------------------------------------------------


def test_eviction_ends_what_is_awaited(broker: FakeBroker) -> None:
    """Invariant: from then on calls raise ClientQuarantined where a client is concerned, BrokerGone elsewhere."""

    async def scenario() -> None:
        target, client = await joined(broker)
        broker.script[m.ReadLeases] = [lease_info(hits=3)]
        lease = await client.probe(PLACE, None, mode="count")
        assert (await lease.refresh()) is lease
        assert (lease.hits, lease.state) == (3, ubpx.LeaseState.ARMED)
        broker.script.update({m.Threads: UNANSWERED, m.TakeHold: UNANSWERED, m.Wait: UNANSWERED})
        calls = [target.threads(), target.wait(), client.hold(7), target.wait()]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await out(broker.control.next_ask, m.TakeHold)
        await out(broker.evict, "it was slow")
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [
            ubpx.BrokerGone, ubpx.BrokerGone, ubpx.ClientQuarantined, ubpx.BrokerGone,
        ]  # fmt: skip
        assert all("it was slow" in str(each) for each in outcomes)
        for call in (lambda: client.probe(PLACE, None, mode="count"), client.hold):
            with pytest.raises(ubpx.ClientQuarantined, match="'a' is quarantined: it was slow"):
                await call()
        assert (client.state, client.reason) == ("QUARANTINED", "it was slow")
        assert (lease.hits, lease.state) == (3, ubpx.LeaseState.QUARANTINED)
        await lease.refresh()
        await lease.release()
        await client.close()
        await target.detach()

    run(scenario)


@pytest.mark.parametrize("how", ["closed", "malformed", "unasked", "channel", "odd hit"])
def test_a_broker_that_breaks_off_is_gone(broker: FakeBroker, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "VERDICT_S", 0.1)

    async def scenario() -> None:
        target, client = await joined(broker)
        lease = await client.probe(PLACE, lambda _: None)
        broker.script[m.Threads] = UNANSWERED
        waiting = asyncio.ensure_future(target.threads())
        await out(broker.control.next_ask, m.Threads)
        match how:
            case "closed":
                await out(broker.control.close)
            case "malformed":
                broker.control.socket.sendall(b"\1\0\0\0\xc1")
            case "unasked":
                broker.control.send(m.Reply(99))
            case "channel":
                await out(broker.channel.close)
            case "odd hit":
                broker.channel.send(m.Hit(1, LEASE, 7, b"odd"))
        with pytest.raises(ubpx.BrokerGone) as gone:
            await waiting
        assert gone.value.broker == broker.path
        assert (lease.state, lease.hits) == (ubpx.LeaseState.LOST, 0)
        assert (await target.clients(), client.state) == ((), "CLOSED")
        await target.detach()
        await out(broker.control.ended.wait, PATIENCE_S)

    run(scenario)


def test_a_detach_keeps_the_last_counts(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        lease = await client.probe(PLACE, None, mode="count")
        broker.script[m.Release] = [lease_info(hits=9, state="RELEASED")]
        broker.script[m.Wait] = UNANSWERED
        waiting = asyncio.ensure_future(target.wait())
        async with target:
            await asyncio.sleep(0)
        await asyncio.gather(target.detach(), target.detach())
        assert isinstance(broker.control.next_ask(m.Leave).call, m.Leave)
        assert (lease.hits, lease.state, repr(lease)) == (9, "RELEASED", "<lease of 'a' at 0x401000: RELEASED, 9 hits>")
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: waiting,
            target.threads,
            target.wait,
            target.holds,
            lambda: target.client("b"),
            lambda: client.probe(1, None),
        ]
        for call in calls:
            with pytest.raises(ubpx.UsageError, match="target 4711 is detached; connect again"):
                await call()
        assert (await target.clients(), await target.probepoints(), await client.leases()) == ((), (), ())

    run(scenario)


def test_a_loop_that_ends_leaves_nothing_open(broker: FakeBroker) -> None:
    """Invariant: who forgets to detach leaves no task, no socket and no warning when ``asyncio.run`` returns."""
    seen: list[str] = []

    async def main() -> None:
        target, client = await joined(broker)

        async def handler(_: Any) -> None:
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                seen.append("ended")

        await client.probe(PLACE, handler)
        broker.script[m.Threads] = UNANSWERED
        seen.append(asyncio.create_task(target.threads()).get_name())
        broker.channel.send(hit(1))
        await out(broker.control.next_ask, m.Threads)
        await asyncio.sleep(0.02)

    asyncio.run(main())
    gc.collect()
    assert seen[1:] == ["ended"]
    assert broker.control.ended.wait(PATIENCE_S)
    assert broker.channel.ended.wait(PATIENCE_S)


def test_a_loop_that_is_closed_by_hand_tells_who_waits(broker: FakeBroker) -> None:
    loop = asyncio.new_event_loop()
    target = loop.run_until_complete(aio.connect(broker.path))
    broker.script[m.Threads] = UNANSWERED
    waiting = loop.create_task(target.threads())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.raises(ubpx.BrokerGone, match="our event loop has ended"):
        loop.run_until_complete(waiting)
    loop.close()
    gc.collect()


def test_a_forked_copy_has_no_part_in_the_connection(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target = await aio.connect(broker.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: there are threads, and it does nothing
            child = os.fork()
        if child == 0:
            with suppress(StopIteration):
                target.detach().send(None)
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert await target.threads() == (PID, 7)
        await target.detach()

    run(scenario)


# Requests -------------------------------------------------------------------------------------


def test_replies_go_to_who_asked_in_any_order(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target = await aio.connect(broker.path)
        broker.script.update({m.Wait: UNANSWERED, m.ReadMemory: UNANSWERED})
        status = asyncio.create_task(target.wait())
        wait = await out(broker.control.next_ask, m.Wait)
        assert await target.threads() == (PID, 7)
        one, two = (asyncio.create_task(target.memory.read(address, 2)) for address in (1, 2))
        asks = [await out(broker.control.next_ask, m.ReadMemory) for _ in range(2)]
        ids = {ask.call.address: ask.id for ask in asks}  # type: ignore[union-attr]
        broker.control.reply(ids[2], b"22")
        broker.control.reply(ids[1], b"11")
        assert (await one, await two) == (b"11", b"22")
        broker.control.reply(wait.id, -9)
        assert await status == -9
        await target.detach()

    run(scenario)


def test_memory_travels_in_pieces(broker: FakeBroker) -> None:
    written: list[tuple[int, int, bool]] = []
    broker.script[m.ReadMemory] = lambda call: bytes(call.size)
    broker.script[m.WriteMemory] = lambda call: written.append((call.address, len(call.data), call.through_protection))
    size = m.MEMORY_BYTES + 5

    async def scenario() -> None:
        target: Any = await aio.connect(broker.path)
        assert await target.memory.read(PLACE, size) == bytes(size)
        assert await target.memory.read(PLACE, 0) == b""
        await target.memory.write(PLACE, bytes(size))
        await target.memory.patch(PLACE, b"12")
        assert written == [(PLACE, m.MEMORY_BYTES, False), (PLACE + m.MEMORY_BYTES, 5, False), (PLACE, 2, True)]
        broker.script[m.ReadMemory] = lambda call: ubpx.MemoryFault(call.address, call.size, "read")
        broker.script[m.WriteMemory] = lambda call: ubpx.MemoryFault(call.address, 1, "write")
        for address in (PLACE, -1, 2**64):
            with pytest.raises(ubpx.MemoryFault) as fault:
                await target.memory.read(address, size)
            assert (fault.value.address, fault.value.size) == (address, size)
            with pytest.raises(ubpx.MemoryFault) as fault:
                await target.memory.write(address, b"123")
            assert (fault.value.address, fault.value.size) == (address, 3)
        for wrong in (target.memory.read("1", 1), target.memory.read(1, -1), target.memory.write(1, "x")):
            with pytest.raises(ubpx.UsageError):
                await wrong
        await target.detach()

    run(scenario)


def test_what_is_asked_wrongly_is_not_sent(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target: Any = await aio.connect(broker.path)
        client = await target.client("a")
        cases: list[tuple[type[Exception], str, Awaitable[Any]]] = [
            (ubpx.UsageError, "the handler of 1 is a NoneType", client.probe(1)),
            (ubpx.UsageError, "nobody would call", client.probe(1, print, mode="count")),
            (ubpx.UsageError, "is no strategy", client.probe(1, print, strategy="FAST")),
            (ubpx.UsageError, "the list is empty", client.probe_many([], print)),
            (ubpx.UsageError, "cannot be watched", client.watch("x", print)),
            (ubpx.UsageError, "is no tid", client.hold("7")),
            (ubpx.UsageError, "registers=5", client.step(7, 5)),
            (ubpx.UsageError, "implements no ubpx_signal", client.catch_signals([10])),
            (ubpx.UsageError, "implements no ubpx_syscall_entered", client.catch_syscalls(["read"])),
            (ubpx.UsageError, "is no name", target.client("")),
            (ubpx.UsageError, "has no client hook", target.client("b", hooks=object())),
            (ubpx.UsageError, "give seconds", target.wait(-1)),
            (ubpx.UsageError, "is no tid", target.registers("x")),
            (ubpx.UsageError, "valid text", client.probe("\ud800", None, mode="count")),
        ]
        for error, words, wrong in cases:
            with pytest.raises(error, match=words):
                await wrong
        broker.control.asked.get(timeout=PATIENCE_S)
        assert isinstance(broker.control.asked.get(timeout=PATIENCE_S).call, m.OpenClient)
        assert broker.control.asked.empty()
        broker.script.update(
            {
                m.Stops: 12,
                m.Slots: m.SlotUseInfo(3, 2, 1),
                m.Step: None,
                m.Resume: None,
                m.ReadRegisters: {"rip": 2**64 - 1},
            }
        )
        assert await target.stops() == 12
        assert await target.slots() == SlotUse(leased=3, retired=2, free=1)
        assert await target.registers(7) == {"rip": 2**64 - 1}
        await target.resume()
        await client.step(7, {"rax": -1}, signal=0)
        assert broker.control.next_ask(m.Step).call == m.Step(CLIENT, 7, {"rax": 2**64 - 1}, 0)
        await target.detach()

    run(scenario)
