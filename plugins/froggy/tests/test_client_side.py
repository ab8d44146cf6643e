"""The side that connects, against a broker that does as it is told, and traces nothing."""

from __future__ import annotations

import os
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from ubpx.core.values import VirtAddr
from ubpx.hookspecs import hookimpl
from ubpx_froggy import messages as m
from ubpx_froggy.client import RemoteTarget, connect, dialling
from ubpx_froggy.client.handling import quiet
from ubpx_froggy.failures import as_failure

if TYPE_CHECKING:
    from tests.fake_broker import (
        CLIENT,
        HOLD,
        LEASE,
        NAMES,
        PATIENCE_S,
        PID,
        PLACE,
        TARGET,
        UNANSWERED,
        FakeBroker,
        Peer,
        lease_info,
        parse_from_peer,
        registers,
    )
else:  # pytest imports tests by path, so that none can import its neighbour
    _fake = runpy.run_path(str(Path(__file__).with_name("fake_broker.py")))
    globals().update({name: value for name, value in _fake.items() if not name.startswith("__")})


@pytest.fixture
def target(broker: FakeBroker) -> Iterator[RemoteTarget]:
    with connect(broker.path, pid=None, read_only=False) as joined:
        yield joined


@contextmanager
def elsewhere(job: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Runs it in a thread; what is given waits for its result, or raises what it raised."""
    outcome: Queue[tuple[Any, BaseException | None]] = Queue()

    def run() -> None:
        try:
            outcome.put((job(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the result is wanted
            outcome.put((None, error))

    def result() -> Any:
        value, error = outcome.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return value

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def ask_until(done: Callable[[], Any], target: RemoteTarget) -> None:
    """Ask the broker for something, again and again, until it is so."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and not done():
        target.threads()


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


# Hits -----------------------------------------------------------------------------------------


def test_the_quiet_answer_is_an_answer() -> None:
    for call in (0, 1, 300, 2**40):
        frame = quiet(call)
        assert int.from_bytes(frame[:4], "little") == len(frame) - 4
        assert parse_from_peer(frame[4:]) == m.Answer(call)


def test_what_a_handler_returns_and_writes_travels_back(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: a handler gives None or a Verdict, and register writes; anything else counts as raised."""
    returned: list[Any] = [None, ubpx.Verdict.HOLD, 1, None]

    def handler(hit: Any) -> Any:
        if len(returned) == 1:
            hit.regs.rdi = hit.regs["rdi"] - 8
            hit.regs["rax"] = 1 << 64 | 5
            assert hit.regs.rax == 0, "later handlers read the values at arrival"
            with pytest.raises(ubpx.UsageError, match="write an int"):
                hit.regs.rax = "5"
            with pytest.raises(ubpx.UnknownRegister, match="x86_64 has no register 'nosuch'"):
                hit.regs.nosuch = 1
            assert not hasattr(hit.regs, "nosuch")
        return returned.pop(0)

    target.client("a").probe(PLACE, handler)
    assert broker.channel.hit(1) == m.Answer(1)
    assert broker.channel.hit(2) == m.Answer(2, 2)
    assert broker.channel.hit(3) == m.Raised(3, "UsageError: a handler returned 1; return None or a ubpx.Verdict")
    assert broker.channel.hit(4, rdi=4) == m.Answer(4, None, {"rdi": 2**64 - 4, "rax": 5})


@pytest.mark.parametrize("error", [ValueError("x" * 5000), KeyboardInterrupt(), SystemExit(3), Exception("\ud800")])
def test_what_a_handler_raises_is_told_and_logged(
    broker: FakeBroker, target: RemoteTarget, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(_: Any) -> None:
        raise error

    target.client("a").probe(PLACE, handler)
    for call in (1, 2):
        answer = broker.channel.hit(call)
        assert isinstance(answer, m.Raised)
        assert answer.error.startswith(type(error).__name__)
        assert len(answer.error) <= 2000
    assert "client 'a' raised in its handler at 0x401000 (2 in a row)" in caplog.text
    assert caplog.records[0].name == "ubpx.clients"


def test_a_hit_has_the_face_of_ubpx_s(broker: FakeBroker, target: RemoteTarget) -> None:
    seen: list[Any] = []
    broker.script[m.ReadMemory] = lambda call: call.address.to_bytes(8, "little")

    def handler(hit: Any) -> None:
        assert (hit.address, hit.pid, hit.tid, hit.lease) == (PLACE, PID, 7, lease)
        assert (tuple(hit.regs), hit.regs.rip, bytes(hit.regs)) == (NAMES, PLACE, registers(rdi=1, rsp=0x100))
        assert [hit.args[index] for index in (0, 6)] == [1, 0x108]
        for index in (-1, "0", True):
            with pytest.raises(ubpx.UsageError, match="counted from 0"):
                hit.args[index]
        assert abs(hit.time - time.time()) < PATIENCE_S
        assert repr(hit) == "<hit of thread 7 at 0x401000>"
        assert "rdi=0x1" in repr(hit.regs)
        seen.extend((hit, hit.regs, hit.snapshot()))

    lease = target.client("a").probe(PLACE, handler)
    assert broker.channel.hit(1, rdi=1, rsp=0x100) == m.Answer(1)
    hit, regs, snapshot = seen
    assert (snapshot.address, snapshot.tid, snapshot.args[0], snapshot.regs["rsp"]) == (PLACE, 7, 1, 0x100)
    assert repr(hit) == "<hit, over>"
    for use in (lambda: hit.tid, lambda: hit.args, hit.snapshot, lambda: regs.rdi, lambda: regs.__setitem__("rdi", 1)):
        with pytest.raises(ubpx.StaleHit):
            use()


def test_a_handler_asks_by_channel_while_hits_wait(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: what a handler asks goes by its channel; hits that come meanwhile are handled after it, in order."""
    order: list[Any] = []

    def handler(hit: Any) -> None:
        tid = hit.tid
        order.append(("begins", tid))
        if tid == 1:
            order.append(target.threads())
        order.append(("ends", tid))

    def threads(peer: Peer, _: Any) -> Any:
        return UNANSWERED if peer is broker.channel else [99]

    target.client("a").probe(PLACE, handler)
    broker.script[m.Threads] = threads
    broker.channel.send(m.Hit(1, LEASE, 1, registers()))
    ask = broker.channel.next_ask(m.Threads)
    assert target.threads() == (99,), "other threads use the connection meanwhile"
    broker.channel.send(
        m.Hit(2, LEASE, 2, registers()), m.Reply(ask.id, m.as_raw([5])), m.Hit(3, LEASE, 3, registers())
    )
    assert [broker.channel.next_answer() for _ in range(3)] == [m.Answer(1), m.Answer(2), m.Answer(3)]
    assert order == [("begins", 1), (5,), ("ends", 1), ("begins", 2), ("ends", 2), ("begins", 3), ("ends", 3)]


def test_a_broker_that_goes_while_a_handler_asks(broker: FakeBroker, target: RemoteTarget) -> None:
    raised: Queue[BaseException] = Queue()

    def handler(_: Any) -> None:
        try:
            target.threads()
        except ubpx.UbpxError as error:
            raised.put(error)

    target.client("a").probe(PLACE, handler)
    broker.script[m.Threads] = UNANSWERED
    broker.channel.send(m.Hit(1, LEASE, 1, registers()))
    broker.channel.next_ask(m.Threads)
    broker.evict("it was slow")
    assert str(raised.get(timeout=PATIENCE_S)).endswith("it was slow; connect again")


def test_a_hit_may_come_before_the_reply_that_gave_its_lease(broker: FakeBroker, target: RemoteTarget) -> None:
    client = target.client("a")
    broker.script[m.Probe] = UNANSWERED
    seen: list[Any] = []
    with elsewhere(lambda: client.probe(PLACE, lambda hit: seen.append(hit.lease))) as lease:
        ask = broker.control.next_ask(m.Probe)
        broker.channel.send(m.Hit(1, LEASE, 7, registers()))
        with pytest.raises(Empty):
            broker.channel.answers.get(timeout=0.05)
        broker.control.reply(ask.id, lease_info())
        assert broker.channel.next_answer() == m.Answer(1)
        assert seen == [lease()]
    assert broker.channel.hit(2, lease=b"?" * 16) == m.Answer(2), "nobody's: it was given back"


def test_waiting_and_detaching_in_a_handler(broker: FakeBroker, target: RemoteTarget) -> None:
    """Invariant: detach takes effect after the hit, and no other hit comes to a handler."""
    said: list[str] = []

    def handler(_: Any) -> None:
        with pytest.raises(ubpx.UsageError, match="would wait for itself"):
            target.wait()
        target.detach()
        target.detach()
        said.append("still here" if target.threads() else "")

    target.client("a").probe(PLACE, handler)
    broker.script[m.Leave] = UNANSWERED
    broker.channel.send(m.Hit(1, LEASE, 7, registers()), m.Hit(2, LEASE, 7, registers()))
    assert [broker.channel.next_answer(), broker.channel.next_answer()] == [m.Answer(1), m.Answer(2)]
    assert said == ["still here"]
    broker.control.reply(broker.control.next_ask(m.Leave).id, None)
    target.detach()
    with pytest.raises(ubpx.UsageError, match="is detached"):
        target.threads()


# Notices --------------------------------------------------------------------------------------


def test_notices_are_handled_in_order_behind_the_program(
    broker: FakeBroker, target: RemoteTarget, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant: a notify handler gets each hit as it was; its verdicts, writes and exceptions are errors here."""
    client = target.client("a")
    broker.script[m.Probe] = UNANSWERED
    seen: Queue[Any] = Queue()

    def handler(hit: Any) -> Any:
        seen.put((hit.tid, hit.time, hit.regs.rdi, hit.args[0], hit))
        if hit.tid == 2:
            return ubpx.Verdict.HOLD
        if hit.tid == 3:
            hit.regs.rdi = 1
        return None

    with elsewhere(lambda: client.probe(PLACE, handler, mode="notify")) as granted:
        ask = broker.control.next_ask(m.Probe)
        records = [(LEASE, tid, tid + 0.5, registers(rdi=tid)) for tid in (1, 2, 3)]
        broker.control.send(m.Hits(records, {LEASE: 4}), m.Reply(ask.id, m.as_raw(lease_info(mode="notify"))))
        lease = granted()
    found = [seen.get(timeout=PATIENCE_S) for _ in range(3)]
    assert [each[:4] for each in found] == [(tid, tid + 0.5, tid, tid) for tid in (1, 2, 3)]
    broker.control.send(m.Hits([(b"?" * 16, 4, 0.0, registers())]))
    broker.script[m.Release] = [lease_info(mode="notify", state="RELEASED")]
    lease.release()
    assert (lease.errors, lease.dropped, lease.state) == (2, 4, "RELEASED")
    assert "with mode='notify' its thread has gone on" in caplog.text
    assert "register rdi cannot be written" in caplog.text
    with pytest.raises(ubpx.StaleHit):
        found[0][-1].tid  # noqa: B018 - reading it is what raises
    assert not broker.channel_is_open.is_set(), "nobody has asked for a channel"


def test_handlers_of_both_kinds_run_one_at_a_time(broker: FakeBroker, target: RemoteTarget) -> None:
    client = target.client("a")
    inside, free = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        inside.set()
        free.wait(PATIENCE_S)

    client.probe(PLACE, slow, mode="notify")
    broker.script[m.Probe] = lease_info(HOLD)
    client.probe(PLACE, lambda _: None)
    broker.control.send(m.Hits([(LEASE, 1, 0.0, registers())]))
    assert inside.wait(PATIENCE_S)
    broker.channel.send(m.Hit(1, HOLD, 7, registers()))
    with pytest.raises(Empty):
        broker.channel.answers.get(timeout=0.05)
    free.set()
    assert broker.channel.next_answer() == m.Answer(1)


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
