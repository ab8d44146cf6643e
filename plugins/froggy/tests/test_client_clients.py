"""Clients, what they have, and their hooks, against a broker that does as it is told."""

from __future__ import annotations

from collections.abc import Callable
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
    elsewhere,
    lease_info,
)
from ubpx.core.values import VirtAddr
from ubpx.hookspecs import hookimpl
from ubpx_froggy import messages as m
from ubpx_froggy.client import RemoteTarget
from ubpx_froggy.failures import as_failure

# Clients and what they have -------------------------------------------------------------------


def test_clients_are_listed_with_those_of_others(broker: FakeBroker, target: RemoteTarget) -> None:
    client = target.client("a")
    ours, other = target.clients()
    assert ours is client
    assert (other.name, other.priority, other.state, other.reason) == ("b", 3, "QUARANTINED", "it failed")
    broker.script[m.Clients] = [m.NamedClient("a", 0, "QUARANTINED", "three exceptions")]
    assert (client.state, client.reason) == ("QUARANTINED", "three exceptions")
    with pytest.raises(ubpx.ClientQuarantined, match="three exceptions"):
        client.hold()


def test_closing_a_client_gives_back_all_but_what_persists(broker: FakeBroker, target: RemoteTarget) -> None:
    broker.script[m.OpenClient] = m.ClientInfo(CLIENT, [lease_info(persistent=True, hits=40)])
    broker.script[m.Leases] = [lease_info(persistent=True), lease_info(HOLD)]
    client = target.client("a")
    left, other = client.leases
    assert (left.handler, left.persistent) == (None, True)
    handler = print
    assert client.probe(PLACE, handler, persistent=True) is left
    assert left.handler is handler
    broker.script[m.ReadLeases] = [lease_info(persistent=True, hits=41)]
    client.close()
    client.close()
    assert broker.control.next_ask(m.Release).call == m.Release([HOLD])
    assert broker.control.next_ask(m.CloseClient).call == m.CloseClient(CLIENT)
    assert (left.hits, left.state, other.state, client.state) == (41, "RELEASED", "RELEASED", "CLOSED")
    with pytest.raises(ubpx.UsageError, match="client 'a' is closed; join again"):
        client.probe(PLACE, handler)


def test_a_group_asks_and_releases_at_once(broker: FakeBroker, target: RemoteTarget) -> None:
    handles = [bytes([each]) * 16 for each in range(100, 103)]
    refused = m.RefusalInfo("odd", as_failure(ubpx.InsnRefused(VirtAddr(5), None, "it is odd")))
    broker.script[m.ProbeMany] = m.GroupInfo([lease_info(each) for each in handles], [refused])
    broker.script[m.ReadLeases] = lambda call: [lease_info(each, hits=2) for each in call.leases]
    broker.script[m.Release] = lambda call: [lease_info(each, hits=3, state="RELEASED") for each in call.leases]
    with target.client("a").probe_many("work_*", lambda _: None, once=True) as group:
        assert broker.control.next_ask(m.ProbeMany).call == m.ProbeMany(CLIENT, "work_*", once=True, priority=0)
        assert (len(group), group.hits, group[0].handle, len(group[1:])) == (3, 6, handles[0], 2)
        assert broker.control.next_ask(m.ReadLeases).call == m.ReadLeases(handles)
        assert (group.refused[0].name, type(group.refused[0].error)) == ("odd", ubpx.InsnRefused)
    assert broker.control.next_ask(m.Release).call == m.Release(handles)
    assert group.hits == 9
    group.release()
    assert (broker.control.asked.empty(), repr(group)) == (True, "<3 leases of 'a': 9 hits>")


def test_probepoints_are_one_object_for_each_place(broker: FakeBroker, target: RemoteTarget) -> None:
    info = m.ProbepointInfo(PLACE, "BOOST", ["b", "a"], 0x7000, "the best")
    broker.script[m.Probepoints] = [info]
    client = target.client("a")
    a = client.probe(PLACE, None, mode="count")
    broker.script[m.Probe] = lease_info(HOLD)
    b = client.probe(PLACE, None, mode="count")
    probepoint = a.probepoint
    assert probepoint is not None
    assert probepoint is b.probepoint is target.probepoints()[0]
    assert (probepoint.address, probepoint.strategy, probepoint.clients) == (PLACE, ubpx.Strategy.BOOST, ("b", "a"))
    broker.script[m.Probepoints] = []
    assert (probepoint.clients, probepoint.strategy, probepoint.slot, probepoint.why) == (
        (),
        "BOOST",
        0x7000,
        "the best",
    )


def test_holds_are_released_by_their_owners(broker: FakeBroker, target: RemoteTarget) -> None:
    ours, other = m.HoldInfo(HOLD, "a", PID, 7), m.HoldInfo(None, "b", PID, None)
    broker.script.update({m.TakeHold: ours, m.Holds: [ours, other]})
    hold = target.client("a").hold(7)
    assert target.holds()[0] is hold
    with pytest.raises(ubpx.PermissionRefused, match="one of client 'b', of another connection"):
        target.holds()[1].release()
    assert (hold.owner, hold.process, hold.thread, hold.released) == ("a", PID, 7, False)
    hold.release({"rax": -1}, signal=0)
    assert broker.control.next_ask(m.ReleaseHold).call == m.ReleaseHold(HOLD, {"rax": 2**64 - 1}, 0)
    hold.release()
    assert (hold.released, broker.control.asked.empty()) == (True, True)


# Hooks ----------------------------------------------------------------------------------------


class Hooks:
    """Tells what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.verdict: Any = ubpx.Verdict.STEP
        self.attached: Callable[[Any], None] = lambda _: None

    @hookimpl
    def ubpx_process_attached(self, client: Any, process: Any) -> None:
        self.calls.append(("attached", (client.name, process.pid, process.proc)))
        self.attached(client)

    @hookimpl
    def ubpx_process_detached(self, client: Any) -> None:
        self.calls.append(("detached", client.name))

    @hookimpl
    def ubpx_syscall_entered(self, tid: int, name: str, arguments: tuple[int, ...]) -> Any:
        self.calls.append(("entered", (tid, name, arguments)))
        return self.verdict


ATTACHED: Final = ("attached", ("a", PID, f"/proc/{PID}"))
NAMED: Final = ["ubpx_process_attached", "ubpx_process_detached", "ubpx_syscall_entered"]


def test_a_hook_may_come_before_the_reply_that_opened_its_client(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: ``target.client`` returns when ``ubpx_process_attached`` has been called, once, and could probe."""
    hooks = Hooks()
    probed: list[Any] = []
    hooks.attached = lambda client: probed.append(client.probe(PLACE, lambda _: None))
    broker.script[m.OpenClient] = UNANSWERED
    with elsewhere(lambda: target.client("a", hooks=hooks)) as opened:
        ask = broker.control.next_ask(m.OpenClient)
        assert ask.call == m.OpenClient(TARGET, "a", 0, NAMED)
        broker.channel.send(m.Hook(1, CLIENT, "ubpx_process_attached", {}))
        assert broker.channel.next_ask(m.Probe).call.client == CLIENT  # type: ignore[union-attr]
        assert broker.channel.next_answer() == m.Answer(1)
        broker.control.reply(ask.id, m.ClientInfo(CLIENT, []))
        client = opened()
    assert hooks.calls == [ATTACHED]
    assert broker.channel.hit(2) == m.Answer(2)
    assert probed[0].client is client
    with pytest.raises(ubpx.UsageError, match="is no system call"):
        client.catch_syscalls([-1])
    client.catch_syscalls(["read", 1])
    assert broker.control.next_ask(m.Catch).call == m.Catch(CLIENT, "syscalls", ["read", 1])


def test_stop_hooks_say_what_happens_next(broker: FakeBroker, target: RemoteTarget) -> None:
    hooks = Hooks()
    target.client("a", hooks=hooks)
    assert hooks.calls == [ATTACHED], "a client that comes back is told by us"
    entered = {"tid": 7, "number": 0, "name": "read", "arguments": [1, 2], "unheard_of": 1}
    replies = []
    for call, verdict in enumerate([ubpx.Verdict.STEP, None, "x"]):
        hooks.verdict = verdict
        broker.channel.send(m.Hook(call, CLIENT, "ubpx_syscall_entered", entered))
        replies.append(broker.channel.next_answer())
    assert replies[:2] == [m.Answer(0, 1), m.Answer(1)]
    assert replies[2].error == "UsageError: ubpx_syscall_entered returned 'x'; return None or a ubpx.Verdict"
    assert hooks.calls[1:] == [("entered", (7, "read", (1, 2)))] * 3
    broker.channel.send(
        m.Hook(3, CLIENT, "ubpx_process_attached", {}),
        m.Hook(4, CLIENT, "ubpx_signal", {"tid": 7, "signal": 9}),
        m.Hook(5, b"?" * 16, "ubpx_syscall_entered", entered),
    )
    assert [broker.channel.next_answer() for _ in range(3)] == [m.Answer(3), m.Answer(4), m.Answer(5)]
    target.detach()
    assert hooks.calls[4:] == [("detached", "a")]


def test_hooks_must_be_as_specified(target: RemoteTarget) -> None:
    class Odd:
        @hookimpl
        def ubpx_signal(self, nosuch: int) -> None: ...

    with pytest.raises(ubpx.PluginFailed, match="nosuch"):
        target.client("a", hooks=Odd())


def test_mappings_and_registers_are_values(broker: FakeBroker, target: RemoteTarget) -> None:
    hooks = Hooks()
    views: list[Any] = []
    broker.script[m.Mappings] = [m.MappingInfo(0x1000, 0x2000, "r-xp", 0, "08:01", 5, "/bin/x")]
    broker.script[m.ReadRegisters] = {"rip": 2**64 - 1}
    hooks.attached = lambda client: views.extend(client.process.mappings())
    target.client("a", hooks=hooks)
    assert (views[0].start, views[0].executable, views[0].path) == (0x1000, True, "/bin/x")
    assert target.registers(7) == {"rip": 2**64 - 1}
