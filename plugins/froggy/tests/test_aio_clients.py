"""Clients, what they have, and their hooks in an event loop, against a broker that does as it is told."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

import ubpx
from tests.fake_broker import (
    CLIENT,
    HOLD,
    PID,
    PLACE,
    TARGET,
    UNANSWERED,
    FakeBroker,
    hit,
    joined,
    lease_info,
    soon,
    told,
)
from tests.real.loops import out, run
from ubpx.core.values import VirtAddr
from ubpx.hookspecs import hookimpl
from ubpx_froggy import aio
from ubpx_froggy import messages as m
from ubpx_froggy.failures import as_failure

# Clients and what they have -------------------------------------------------------------------


def test_clients_are_listed_with_those_of_others(broker: FakeBroker) -> None:
    async def scenario() -> None:
        target, client = await joined(broker)
        ours, other = await target.clients()
        assert ours is client
        assert (other.name, other.priority, other.state, other.reason) == ("b", 3, "QUARANTINED", "it failed")
        broker.script[m.Clients] = [m.NamedClient("a", 0, "QUARANTINED", "three exceptions")]
        assert client.state == "LIVE", "as far as we know"
        assert (await client.refresh()) is client
        assert (client.state, client.reason) == ("QUARANTINED", "three exceptions")
        with pytest.raises(ubpx.ClientQuarantined, match="three exceptions"):
            await client.hold()
        assert repr(client) == "<client 'a', QUARANTINED>"
        await target.detach()

    run(scenario)


def test_closing_a_client_gives_back_all_but_what_persists(broker: FakeBroker) -> None:
    async def scenario() -> None:
        broker.script[m.OpenClient] = m.ClientInfo(CLIENT, [lease_info(persistent=True, hits=40)])
        broker.script[m.Leases] = [lease_info(persistent=True), lease_info(HOLD)]
        target = await aio.connect(broker.path)
        async with await target.client("a") as client:
            left, other = await client.leases()
            assert (left.handler, left.persistent) == (None, True)
            assert await client.probe(PLACE, print, persistent=True) is left
            assert left.handler is print
            broker.script[m.ReadLeases] = [lease_info(persistent=True, hits=41)]
        await client.close()
        assert broker.control.next_ask(m.Release).call == m.Release([HOLD])
        assert broker.control.next_ask(m.CloseClient).call == m.CloseClient(CLIENT)
        assert (left.hits, left.state, other.state, client.state) == (41, "RELEASED", "RELEASED", "CLOSED")
        with pytest.raises(ubpx.UsageError, match="client 'a' is closed; join again"):
            await client.probe(PLACE, print)
        await target.detach()

    run(scenario)


def test_a_group_asks_and_releases_at_once(broker: FakeBroker) -> None:
    handles = [bytes([each]) * 16 for each in range(100, 103)]
    refused = m.RefusalInfo("odd", as_failure(ubpx.InsnRefused(VirtAddr(5), None, "it is odd")))
    broker.script[m.ProbeMany] = m.GroupInfo([lease_info(each) for each in handles], [refused])
    broker.script[m.ReadLeases] = lambda call: [lease_info(each, hits=2) for each in call.leases]
    broker.script[m.Release] = lambda call: [lease_info(each, hits=3, state="RELEASED") for each in call.leases]

    async def scenario() -> None:
        target, client = await joined(broker)
        async with await client.probe_many("work_*", lambda _: None, once=True) as group:
            assert broker.control.next_ask(m.ProbeMany).call == m.ProbeMany(CLIENT, "work_*", once=True, priority=0)
            assert (len(group), group.hits, group[0].handle, len(group[1:])) == (3, 0, handles[0], 2)
            assert (await group.refresh()).hits == 6
            assert broker.control.next_ask(m.ReadLeases).call == m.ReadLeases(handles)
            assert (group.refused[0].name, type(group.refused[0].error)) == ("odd", ubpx.InsnRefused)
        assert broker.control.next_ask(m.Release).call == m.Release(handles)
        assert (group.hits, repr(group)) == (9, "<3 leases of 'a': 9 hits>")
        await group.release()
        await client.release(group[0])
        await client.release_all(group)
        assert broker.control.asked.empty()
        await target.detach()

    run(scenario)


def test_probepoints_are_one_object_for_each_place(broker: FakeBroker) -> None:
    async def scenario() -> None:
        broker.script[m.Probepoints] = [m.ProbepointInfo(PLACE, "BOOST", ["b", "a"], 0x7000, "the best")]
        target, client = await joined(broker)
        lease = await client.probe(PLACE, None, mode="count")
        probepoint = await lease.probepoint()
        assert probepoint is not None
        assert probepoint is (await target.probepoints())[0]
        assert (probepoint.address, probepoint.strategy, probepoint.clients) == (PLACE, "BOOST", ("b", "a"))
        broker.script[m.Probepoints] = []
        assert probepoint.clients == ("b", "a"), "as it was last known"
        assert (await probepoint.refresh()) is probepoint
        assert (list(probepoint.clients), probepoint.slot, probepoint.why) == ([], 0x7000, "the best")
        watched = m.WatchpointInfo(8, 4, "WRITE", ["a"])
        broker.script[m.Watch] = lease_info(HOLD, watchpoint=watched)
        watching = await client.watch(8, None, mode="count", size=4)
        assert await watching.probepoint() is None
        assert watching.watchpoint is not None
        assert (watching.watchpoint.address, watching.watchpoint.clients) == (8, ("a",))
        await target.detach()

    run(scenario)


def test_holds_are_released_by_their_owners(broker: FakeBroker) -> None:
    ours, other = m.HoldInfo(HOLD, "a", PID, 7), m.HoldInfo(None, "b", PID, None)

    async def scenario() -> None:
        broker.script.update({m.TakeHold: ours, m.Holds: [ours, other]})
        target, client = await joined(broker)
        hold = await client.hold(7)
        assert (await target.holds())[0] is hold
        with pytest.raises(ubpx.PermissionRefused, match="one of client 'b', of another connection"):
            await (await target.holds())[1].release()
        assert (await hold.refresh()) is hold
        assert (hold.owner, hold.process, hold.thread, hold.released) == ("a", PID, 7, False)
        await hold.release({"rax": -1}, signal=0)
        assert broker.control.next_ask(m.ReleaseHold).call == m.ReleaseHold(HOLD, {"rax": 2**64 - 1}, 0)
        await hold.release()
        assert (hold.released, broker.control.asked.empty()) == (True, True)
        broker.script.update({m.TakeHold: m.HoldInfo(b"h" * 16, "a", PID, None), m.Holds: []})
        async with await client.hold() as whole:
            with pytest.raises(ubpx.UsageError, match="one thread's hold only"):
                await whole.release(signal=0)
            assert (await whole.refresh()).released
        await target.detach()

    run(scenario)


# Hooks ----------------------------------------------------------------------------------------


class Hooks:
    """Tells what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.verdict: Any = ubpx.Verdict.STEP
        self.attached: Callable[[Any], Awaitable[None]] | None = None

    def answer(self) -> Any:
        return self.verdict


class PlainHooks(Hooks):
    @hookimpl
    def ubpx_process_attached(self, client: Any, process: Any) -> None:
        self.calls.append(("attached", (client.name, process.pid, process.proc)))

    @hookimpl
    def ubpx_process_detached(self, client: Any) -> None:
        self.calls.append(("detached", client.name))

    @hookimpl
    def ubpx_syscall_entered(self, tid: int, name: str, arguments: tuple[int, ...]) -> Any:
        self.calls.append(("entered", (tid, name, arguments)))
        return self.verdict


class CoroutineHooks(Hooks):
    @hookimpl
    async def ubpx_process_attached(self, client: Any, process: Any) -> None:
        await asyncio.sleep(0.01)
        self.calls.append(("attached", (client.name, process.pid, process.proc)))
        if self.attached is not None:
            await self.attached(client)

    @hookimpl
    async def ubpx_process_detached(self, client: Any) -> None:
        await asyncio.sleep(0.01)
        self.calls.append(("detached", client.name))

    @hookimpl
    async def ubpx_syscall_entered(self, tid: int, name: str, arguments: tuple[int, ...]) -> Any:
        await asyncio.sleep(0)
        self.calls.append(("entered", (tid, name, arguments)))
        return self.verdict


ATTACHED: Final = ("attached", ("a", PID, f"/proc/{PID}"))
NAMED: Final = ["ubpx_process_attached", "ubpx_process_detached", "ubpx_syscall_entered"]


@pytest.mark.parametrize("kind", [PlainHooks, CoroutineHooks])
def test_stop_hooks_say_what_happens_next(broker: FakeBroker, kind: type[Hooks]) -> None:
    async def scenario() -> None:
        hooks = kind()
        target = await aio.connect(broker.path)
        client = await target.client("a", hooks=hooks)
        assert hooks.calls == [ATTACHED], "a client that comes back is told by us"
        entered = {"tid": 7, "number": 0, "name": "read", "arguments": [1, 2], "unheard_of": 1}
        replies = []
        for call, verdict in enumerate([ubpx.Verdict.STEP, None, "x"]):
            hooks.verdict = verdict
            replies.append(await told(broker.channel, m.Hook(call, CLIENT, "ubpx_syscall_entered", entered)))
        assert replies[:2] == [m.Answer(0, 1), m.Answer(1)]
        assert replies[2].error == "UsageError: ubpx_syscall_entered returned 'x'; return None or a ubpx.Verdict"
        assert hooks.calls[1:] == [("entered", (7, "read", (1, 2)))] * 3
        broker.channel.send(
            m.Hook(3, CLIENT, "ubpx_process_attached", {}),
            m.Hook(4, CLIENT, "ubpx_signal", {"tid": 7, "signal": 9}),
            m.Hook(5, b"?" * 16, "ubpx_syscall_entered", entered),
        )
        answers = [await out(broker.channel.next_answer) for _ in range(3)]
        assert answers == [m.Answer(3), m.Answer(4), m.Answer(5)]
        await client.catch_syscalls(["read", 1])
        assert broker.control.next_ask(m.Catch).call == m.Catch(CLIENT, "syscalls", ["read", 1])
        await target.detach()
        assert hooks.calls[4:] == [("detached", "a")]

    run(scenario)


def test_a_hook_may_come_before_the_reply_that_opened_its_client(broker: FakeBroker) -> None:
    """Invariant: ``target.client`` returns when ``ubpx_process_attached`` has been called, once, and could probe."""

    async def scenario() -> None:
        hooks = CoroutineHooks()
        probed: list[Any] = []

        async def attached(client: Any) -> None:
            probed.append(await client.probe(PLACE, lambda _: None))

        hooks.attached = attached
        broker.script[m.OpenClient] = UNANSWERED
        target = await aio.connect(broker.path)
        opening = asyncio.create_task(target.client("a", hooks=hooks))
        ask = await out(broker.control.next_ask, m.OpenClient)
        assert ask.call == m.OpenClient(TARGET, "a", 0, NAMED)
        broker.channel.send(m.Hook(1, CLIENT, "ubpx_process_attached", {}))
        assert (await out(broker.channel.next_ask, m.Probe)).call.client == CLIENT  # type: ignore[union-attr]
        assert await out(broker.channel.next_answer) == m.Answer(1)
        broker.control.reply(ask.id, m.ClientInfo(CLIENT, []))
        client = await opening
        assert hooks.calls == [ATTACHED]
        assert await told(broker.channel, hit(2)) == m.Answer(2)
        assert probed[0].client is client
        await target.detach()

    run(scenario)


def test_a_client_is_there_when_its_hook_is_done(broker: FakeBroker) -> None:
    """Invariant: also where the reply comes while the hook, which the broker has called, still runs."""

    async def scenario() -> None:
        hooks = CoroutineHooks()
        free = asyncio.Event()

        async def attached(_: Any) -> None:
            await free.wait()

        hooks.attached = attached
        broker.script[m.OpenClient] = UNANSWERED
        target = await aio.connect(broker.path)
        opening = asyncio.create_task(target.client("a", hooks=hooks))
        ask = await out(broker.control.next_ask, m.OpenClient)
        broker.channel.send(m.Hook(1, CLIENT, "ubpx_process_attached", {}))
        await soon(lambda: hooks.calls)
        broker.control.reply(ask.id, m.ClientInfo(CLIENT, []))
        await target.threads()
        assert not opening.done()
        free.set()
        await opening
        assert await out(broker.channel.next_answer) == m.Answer(1)
        await target.detach()

    run(scenario)


def test_a_client_that_nobody_waits_for_hears_of_nothing(broker: FakeBroker) -> None:
    """Invariant: its hooks are not called, nor taken for those of the next client, and it is closed."""

    async def scenario() -> None:
        hooks, next_hooks = PlainHooks(), PlainHooks()
        broker.script[m.OpenClient] = UNANSWERED
        target = await aio.connect(broker.path)
        opening = asyncio.create_task(target.client("a", hooks=hooks))
        ask = await out(broker.control.next_ask, m.OpenClient)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        following = asyncio.create_task(target.client("b", hooks=next_hooks))
        next_ask = await out(broker.control.next_ask, m.OpenClient)
        assert await told(broker.channel, m.Hook(1, CLIENT, "ubpx_process_attached", {})) == m.Answer(1)
        broker.control.reply(ask.id, m.ClientInfo(CLIENT, []))
        assert (await out(broker.control.next_ask, m.CloseClient)).call == m.CloseClient(CLIENT)
        assert await told(broker.channel, m.Hook(2, HOLD, "ubpx_process_attached", {})) == m.Answer(2)
        broker.control.reply(next_ask.id, m.ClientInfo(HOLD, []))
        client = await following
        assert (hooks.calls, len(next_hooks.calls), client.handle) == ([], 1, HOLD)
        await target.detach()

    run(scenario)


def test_joining_in_a_handler_calls_the_hook_as_part_of_it(broker: FakeBroker) -> None:
    async def scenario() -> None:
        hooks = CoroutineHooks()
        target, client = await joined(broker)
        broker.script[m.OpenClient] = m.ClientInfo(HOLD, [])

        async def attached(newcomer: Any) -> None:
            assert await newcomer.target.threads() == (1,)

        async def handler(_: Any) -> None:
            await target.client("b", hooks=hooks)
            hooks.calls.append(("handler", None))

        hooks.attached = attached
        broker.script[m.Threads] = lambda peer, _: [1] if peer is broker.channel else [2]
        await client.probe(PLACE, handler)
        assert await told(broker.channel, hit(1)) == m.Answer(1)
        assert [name for name, _ in hooks.calls] == ["attached", "handler"]
        await target.detach()

    run(scenario)


def test_a_hook_that_raises_is_told_and_logged(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    class Raising:
        @hookimpl
        async def ubpx_signal(self) -> None:
            raise ValueError("no signal")

        @hookimpl
        def ubpx_process_attached(self) -> None:
            raise ValueError("not attached")

        @hookimpl
        async def ubpx_process_detached(self, process: Any) -> None:
            (mapping,) = await process.mappings()
            raise ValueError(f"not detached from {mapping.path}")

    async def scenario() -> None:
        broker.script[m.Mappings] = [m.MappingInfo(0x1000, 0x2000, "r-xp", 0, "08:01", 5, "/bin/x")]
        target = await aio.connect(broker.path)
        client = await target.client("a", hooks=Raising())
        assert client.strikes == 1
        answer = await told(broker.channel, m.Hook(1, CLIENT, "ubpx_signal", {"tid": 7, "signal": 9}))
        assert answer == m.Raised(1, "ValueError: no signal")
        await target.detach()
        for words in ("not attached", "no signal", "not detached from /bin/x"):
            assert words in caplog.text

    run(scenario)


def test_a_place_in_a_queue_is_given_up_by_who_is_cancelled(broker: FakeBroker) -> None:
    """Invariant: who waits to call a hook while a handler runs, and is cancelled, keeps nobody from running."""

    async def scenario() -> None:
        target, client = await joined(broker)
        free = asyncio.Event()
        begun = False

        async def handler(_: Any) -> None:
            nonlocal begun
            begun = True
            await free.wait()

        await client.probe(PLACE, handler)
        broker.channel.send(hit(1))
        await soon(lambda: begun)
        broker.script[m.OpenClient] = m.ClientInfo(HOLD, [])
        hooks = PlainHooks()
        opening = asyncio.create_task(target.client("b", hooks=hooks))
        await out(broker.control.next_ask, m.OpenClient)
        await out(broker.control.next_ask, m.OpenClient)
        await target.threads()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert (await out(broker.control.next_ask, m.CloseClient)).call == m.CloseClient(HOLD)
        free.set()
        assert await out(broker.channel.next_answer) == m.Answer(1)
        assert await told(broker.channel, hit(2)) == m.Answer(2)
        assert hooks.calls == []
        await target.detach()

    run(scenario)


def test_the_switch_interval_is_put_back(broker: FakeBroker) -> None:
    former = sys.getswitchinterval()

    async def scenario() -> None:
        target, client = await joined(broker)
        await client.probe(PLACE, lambda _: None)
        assert sys.getswitchinterval() < former
        assert any(each.name == "ubpx-watchdog" for each in threading.enumerate())
        await target.detach()

    run(scenario)
    assert sys.getswitchinterval() == former
