"""Hits and notices at the side that connects, against a broker that does as it is told."""

from __future__ import annotations

import threading
import time
from queue import Empty, Queue
from typing import Any

import pytest

import ubpx
from tests.fake_broker import (
    HOLD,
    LEASE,
    NAMES,
    PATIENCE_S,
    PID,
    PLACE,
    UNANSWERED,
    FakeBroker,
    Peer,
    elsewhere,
    lease_info,
    parse_from_peer,
    registers,
)
from ubpx_froggy import messages as m
from ubpx_froggy.client import RemoteTarget
from ubpx_froggy.client.handling import Handling, quiet

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


def test_who_leaves_in_a_handler_asks_for_nothing_before_the_answer_is_sent(
    broker: FakeBroker, target: RemoteTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a broker that is asked to close a client has its last answer, and does not let go without it."""
    returned, leaves, left_early = Handling.returned, threading.Event(), list[bool]()

    def slowly(*arguments: Any) -> bytes:
        left_early.append(leaves.wait(0.2))
        return returned(*arguments)

    def leave(_: Any) -> list[m.LeaseInfo]:
        leaves.set()
        return [lease_info(state="RELEASED")]

    monkeypatch.setattr(Handling, "returned", slowly)
    broker.script.update({m.Leave: leave, m.Release: leave})
    target.client("a").probe(PLACE, lambda _: target.detach())
    assert broker.channel.hit(1) == m.Answer(1)
    assert leaves.wait(PATIENCE_S)
    assert left_early == [False]


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
