"""The side that connects, against a broker that does as it is told: how it begins, asks and ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ubpx
from tests.fake_broker import (
    PATIENCE_S,
    PID,
    PLACE,
    TARGET,
    UNANSWERED,
    FakeBroker,
    ask_until,
    elsewhere,
    lease_info,
)
from ubpx_froggy import messages as m
from ubpx_froggy.client import RemoteTarget, connect, dialling

# How it begins --------------------------------------------------------------------------------


def test_a_refusal_says_why(broker: FakeBroker) -> None:
    broker.refusal = "it is full"
    with pytest.raises(ubpx.NoBroker, match=r"refuses: it is full; "):
        connect(broker.path, pid=None, read_only=False)


def test_a_broker_that_says_nothing_is_not_waited_for(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.dumb = True
    monkeypatch.setattr(dialling, "PATIENCE_S", 0.05)
    with pytest.raises(ubpx.BrokerGone, match="said nothing for"):
        connect(broker.path, pid=None, read_only=False)


def test_who_serves_the_socket_must_be_us_or_root(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_UCRED", SimpleNamespace(size=12, unpack=lambda _: (99, os.geteuid() + 1, 0)))
    with pytest.raises(ubpx.PermissionRefused, match="neither you nor root") as refusal:
        connect(broker.path, pid=None, read_only=False)
    assert refusal.value.pid == 99


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("missing", ubpx.NoBroker, "there is no "),
        ("file", ubpx.NoBroker, "nobody listens at "),
        ("file/below", ubpx.NoBroker, "Not a directory"),
        ("x" * 120, ubpx.UsageError, "at most 107"),
        ("\0abstract", ubpx.UsageError, "no path of a socket"),
    ],
)
def test_what_cannot_be_connected_to_says_what_to_do(tmp_path: Path, name: str, error: type, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=words) as found:
        connect(name if name[0] in "\0x" else str(tmp_path / name), pid=None, read_only=False)
    assert "; " in str(found.value)


def test_a_stale_socket_has_nobody_behind_it(broker: FakeBroker) -> None:
    broker.stop()
    with pytest.raises(ubpx.NoBroker, match=r"nobody listens at .* any more"):
        connect(broker.path, pid=None, read_only=False)


def test_a_pid_is_looked_up(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {PID: SimpleNamespace(socket=Path(broker.path))}
    monkeypatch.setattr("ubpx_froggy.client.find_broker", found.get)
    with connect(PID, pid=None, read_only=True) as target:
        assert broker.control.next_ask(m.Join).call == m.Join(PID, read_only=True)
        assert (target.pid, target.broker, target.architecture, target.popen) == (PID, broker.path, "x86_64", None)
    with pytest.raises(ubpx.NoBroker, match="traces process 1; start one with: ubpx serve -p 1"):
        connect(1, pid=None, read_only=False)
    with pytest.raises(ubpx.UsageError, match="two processes"):
        connect(PID, pid=1, read_only=False)
    connect(broker.path, pid=PID, slots="none", read_only=False).detach()
    assert broker.control.next_ask(m.Attach).call == m.Attach(PID, "none")


def test_what_the_broker_answers_is_raised_again(broker: FakeBroker) -> None:
    broker.script[m.Attach] = ubpx.NoSuchProcess(12)
    with pytest.raises(ubpx.NoSuchProcess) as error:
        connect(broker.path, pid=12, read_only=False)
    assert error.value.pid == 12


# Requests -------------------------------------------------------------------------------------


def test_threads_ask_at_once_and_a_wait_is_answered_late(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: a reply goes to who asked, in whichever order replies come."""
    broker.script.update({m.Wait: UNANSWERED, m.ReadMemory: UNANSWERED})
    with elsewhere(target.wait) as status:
        wait = broker.control.next_ask(m.Wait)
        assert target.threads() == (PID, 7)
        with elsewhere(lambda: target.memory.read(1, 2)) as one, elsewhere(lambda: target.memory.read(2, 2)) as two:
            asks = {ask.call.address: ask.id for ask in (broker.control.next_ask(m.ReadMemory) for _ in range(2))}  # type: ignore[union-attr]
            broker.control.reply(asks[2], b"22")
            broker.control.reply(asks[1], b"11")
            assert (one(), two()) == (b"11", b"22")
        broker.control.reply(wait.id, -9)
        assert status() == -9
    broker.script[m.Wait] = None
    assert target.wait(timeout=0.5) is None
    assert broker.control.next_ask(m.Wait).call == m.Wait(TARGET, 0.5)


def test_memory_travels_in_pieces(broker: FakeBroker, target: Any) -> None:
    written: list[tuple[int, int, bool]] = []
    broker.script[m.ReadMemory] = lambda call: bytes(call.size)
    broker.script[m.WriteMemory] = lambda call: written.append((call.address, len(call.data), call.through_protection))
    size = m.MEMORY_BYTES + 5
    assert target.memory.read(PLACE, size) == bytes(size)
    assert target.memory.read(PLACE, 0) == b""
    target.memory.write(PLACE, bytes(size))
    target.memory.patch(PLACE, b"12")
    assert written == [(PLACE, m.MEMORY_BYTES, False), (PLACE + m.MEMORY_BYTES, 5, False), (PLACE, 2, True)]
    broker.script[m.ReadMemory] = lambda call: ubpx.MemoryFault(call.address, call.size, "read")
    for address in (PLACE, -1, 2**64):
        with pytest.raises(ubpx.MemoryFault) as fault:
            target.memory.read(address, size)
        assert (fault.value.address, fault.value.size) == (address, size)
    wrongs: list[Callable[[], Any]] = [
        lambda: target.memory.read("1", 1),
        lambda: target.memory.read(1, -1),
        lambda: target.memory.write(1, "x"),
    ]
    for wrong in wrongs:
        with pytest.raises(ubpx.UsageError):
            wrong()


def test_what_is_asked_wrongly_is_not_sent(broker: FakeBroker, target: Any) -> None:
    client, handler = target.client("a"), print
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ubpx.UsageError, "the handler of 1 is a NoneType", lambda: client.probe(1)),
        (ubpx.UsageError, "nobody would call", lambda: client.probe(1, handler, mode="count")),
        (ubpx.UsageError, "choose one of sync, notify, count", lambda: client.probe(1, handler, mode="fast")),
        (ubpx.UsageError, "is no strategy", lambda: client.probe(1, handler, strategy="FAST")),
        (ubpx.UsageError, "exclusive=1; give True or False", lambda: client.probe(1, handler, exclusive=1)),
        (ubpx.UsageError, "priority='1'", lambda: client.probe(1, handler, priority="1")),
        (ubpx.UsageError, "a place is a spec or an address", lambda: client.probe(None, handler)),
        (ubpx.NotExecutable, "nothing is mapped there", lambda: client.probe(1 << 70, handler)),
        (ubpx.UsageError, "valid text", lambda: client.probe("\ud800", handler)),
        (ubpx.UsageError, "the list is empty", lambda: client.probe_many([], handler)),
        (ubpx.UsageError, "too many for one request", lambda: client.probe_many(range(1, 140_000), handler)),
        (ubpx.UsageError, "cannot be watched", lambda: client.watch("x", handler)),
        (ubpx.UsageError, "is no tid", lambda: client.hold("7")),
        (ubpx.UsageError, "registers=5", lambda: client.step(7, 5)),
        (ubpx.UsageError, "signal=99", lambda: client.step(7, signal=99)),
        (ubpx.UsageError, "implements no ubpx_signal", lambda: client.catch_signals([10])),
        (ubpx.UsageError, "is no name", lambda: target.client("")),
        (ubpx.UsageError, "has no client hook", lambda: target.client("b", hooks=object())),
        (ubpx.UsageError, "give seconds", lambda: target.wait(-1)),
        (ubpx.UsageError, "is no tid", lambda: target.registers("x")),
    ]
    for error, words, wrong in cases:
        with pytest.raises(error, match=words):
            wrong()
    broker.control.asked.get(timeout=PATIENCE_S)
    assert isinstance(broker.control.asked.get(timeout=PATIENCE_S).call, m.OpenClient)
    assert broker.control.asked.empty()


# How it ends ----------------------------------------------------------------------------------


def test_eviction_quarantines_the_clients(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: from then on calls raise ClientQuarantined where a client is concerned, BrokerGone elsewhere."""
    client = target.client("a")
    broker.script[m.ReadLeases] = [lease_info(hits=3)]
    lease = client.probe(PLACE, None, mode="count")
    assert (lease.hits, lease.state) == (3, ubpx.LeaseState.ARMED)
    broker.script[m.Threads] = UNANSWERED
    with elsewhere(target.threads) as threads:
        broker.control.next_ask(m.Threads)
        broker.evict("it was slow")
        with pytest.raises(ubpx.BrokerGone, match="it was slow"):
            threads()
    for call in (lambda: client.probe(PLACE, None, mode="count"), client.hold):
        with pytest.raises(ubpx.ClientQuarantined, match="'a' is quarantined: it was slow"):
            call()
    assert (client.state, client.reason) == ("QUARANTINED", "it was slow")
    assert (lease.hits, lease.state) == (3, ubpx.LeaseState.QUARANTINED)
    lease.release()
    client.close()
    target.detach()


@pytest.mark.parametrize("how", ["closed", "malformed", "unasked", "channel"])
def test_a_broker_that_breaks_off_is_gone(broker: FakeBroker, target: RemoteTarget, how: str) -> None:
    client = target.client("a")
    with client.probe(PLACE, lambda _: None) as lease:
        broker.channel_is_open.wait(PATIENCE_S)
        match how:
            case "closed":
                broker.control.close()
            case "malformed":
                broker.control.socket.sendall(b"\1\0\0\0\xc1")
            case "unasked":
                broker.control.send(m.Reply(99))
            case "channel":
                broker.channel.close()
        with pytest.raises(ubpx.BrokerGone) as gone:
            ask_until(lambda: None, target)
        assert gone.value.broker == broker.path
        assert (lease.state, lease.hits) == (ubpx.LeaseState.LOST, 0)
        assert (target.clients(), client.state) == ((), "CLOSED")
        broker.control.ended.wait(PATIENCE_S)


def test_a_detach_keeps_the_last_counts(broker: FakeBroker, target: RemoteTarget) -> None:
    client = target.client("a")
    lease = client.probe(PLACE, None, mode="count")
    broker.script[m.Release] = [lease_info(hits=9, state="RELEASED")]
    with target:
        pass
    target.detach()
    assert isinstance(broker.control.next_ask(m.Leave).call, m.Leave)
    assert (lease.hits, lease.state, repr(lease)) == (9, "RELEASED", "<lease of 'a' at 0x401000: RELEASED, 9 hits>")
    for call in (target.threads, target.wait, target.holds, lambda: target.client("b"), lambda: client.probe(1, None)):
        with pytest.raises(ubpx.UsageError, match="target 4711 is detached; connect again"):
            call()
    assert (target.clients(), target.probepoints(), client.leases) == ((), (), ())
