"""Peers that break the protocol: each is thrown out for itself, and the broker serves the others as before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

import ubpx
from ubpx_froggy import messages as m
from ubpx_froggy import wire
from ubpx_froggy.broker import connection
from ubpx_froggy.broker.host import Host
from ubpx_froggy.broker.quotas import Quotas
from ubpx_froggy.broker.server import Broker
from ubpx_froggy.broker.sockets import listen_at

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers, StillServes
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program

PATIENCE_S: Final = 30.0
HANDLE: Final = bytes(16)


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess], program: Program) -> BrokerProcess:
    return start_broker("-p", str(program.pid), "--deadline", "10")


def framed(body: bytes) -> bytes:
    """Any bytes, as a message."""
    return len(body).to_bytes(4, "little") + body


def packed(value: Any) -> bytes:
    """Any value, as a message."""
    return framed(msgspec.msgpack.encode(value))


NO_MESSAGES: Final = {
    "garbage": b"\xde\xad\xbe\xef" * 64,
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "the longest length": b"\xff\xff\xff\xff",
    "a length of nothing": framed(b""),
    "no array": packed({"hello": [1]}),
    "an empty array": packed([]),
    "no tag": packed([1, 2, 3]),
    "an unknown tag": packed(["farewell", 1]),
    "a broker's message": packed(["welcome", 1, "x", 1, HANDLE]),
    "cut short": framed(msgspec.msgpack.encode(["hello", [1], "x"])[:-1]),
    "bytes behind the end": framed(msgspec.msgpack.encode(["hello", [1], "x"]) + b"\xc0"),
    "nested deeper than is allowed": framed(b"\x91" * (wire.DEPTH + 1) + b"\xc0"),
    "nested a thousand times": framed(b"\x91" * 1000 + b"\xc0"),
    "more items than are allowed": framed(b"\xdd\xff\xff\xff\xff"),
    "an extension": framed(b"\xd4\x01\x00"),
    "a timestamp": framed(b"\x93\xa5hello\x91\x01\xd6\xff\x00\x00\x00\x00"),
    "what begins no value": framed(b"\xc1"),
    "text that is no UTF-8": framed(b"\x93\xa5hello\x91\x01\xa2\xff\xfe"),
}
HELLO: Final = wire.pack(m.Hello([1], "x"))
BEFORE_HELLO: Final = {
    **NO_MESSAGES,
    "longer than a hello may be": b"\x01\x10\x00\x00",
    "a request": wire.pack(m.Ask(1, m.Overview())),
    "versions that are none": packed(["hello", ["1"], "x"]),
    "a channel that is none": packed(["hello", [1], "x", "y"]),
}
AFTER_HELLO: Final = {
    **NO_MESSAGES,
    "longer than a request may be": b"\x01\x00\x10\x00",
    "a second hello": HELLO,
    "a hello for a channel": wire.pack(m.Hello([1], "x", HANDLE)),
    "an answer, which belongs on a channel": wire.pack(m.Answer(1)),
    "an unknown request": packed(["ask", 1, ["destroy", HANDLE]]),
    "a request without its fields": packed(["ask", 1, ["read_memory", HANDLE]]),
    "a number for a handle": packed(["ask", 1, ["threads", 7]]),
    "text for a handle": packed(["ask", 1, ["threads", "x" * 16]]),
    "a float for an address": packed(["ask", 1, ["read_memory", HANDLE, 1.5, 8]]),
    "a bool for a number": packed(["ask", 1, ["read_memory", HANDLE, True, 8]]),
    "a number beyond 64 bits": framed(b"\x93\xa3ask\x01\x92\xa4join\xcf" + b"\xff" * 7),
    "no number for a request": packed(["ask", "1", ["overview"]]),
    "text for bytes": packed(["ask", 1, ["write_memory", HANDLE, 0, "text"]]),
    "a number for registers": packed(["ask", 1, ["release_hold", HANDLE, 5]]),
}


def refusal_of(peers: Peers, broker: BrokerProcess, data: bytes) -> str:
    """Why a connection that says this first is refused."""
    line = peers.line(broker)
    line.send(data)
    answer = line.recv()
    assert isinstance(answer, m.Refused), answer
    assert line.recv() is None, "it was not closed"
    return answer.reason


def test_what_is_no_hello_is_refused(
    peers: Peers, broker: BrokerProcess, program: Program, still_serves: StillServes
) -> None:
    """Invariant: the peer is told why, in a line that can be printed, and the connection is closed."""
    for kind, data in BEFORE_HELLO.items():
        reason = refusal_of(peers, broker, data)
        assert reason.isprintable(), kind
        assert reason.startswith("malformed message"), kind
    still_serves(broker, program)


def test_what_is_no_request_is_evicted(
    peers: Peers, broker: BrokerProcess, program: Program, still_serves: StillServes
) -> None:
    """Invariant: everything of that peer's is taken back, persistent leases too; nothing of anybody else's."""
    good = peers(broker)
    lease = good.probe("answer", name="beside", mode="count")
    for number, (kind, data) in enumerate(AFTER_HELLO.items()):
        bad = peers(broker)
        bad.probe("answer", name=kind, mode="count", persistent=True)
        assert program.answer(1) == 2
        assert good.lease(lease.lease).hits == 2 * number + 1
        bad.send(data)
        reason = bad.end_of()
        assert reason.isprintable(), kind
        assert reason.startswith("malformed message"), kind
        assert program.answer(2) == 3
        good.until_gone(kind)
    still_serves(broker, program)


def test_a_message_may_come_byte_by_byte(peers: Peers, broker: BrokerProcess, program: Program) -> None:
    """Invariant: where a message is cut does not matter; nor does what comes behind it in the same packet."""
    line = peers.line(broker)
    for byte in HELLO:
        line.send(bytes([byte]))
    assert isinstance(line.recv(), m.Welcome)
    line.send(m.Ask(1, m.Overview()), m.Ask(2, m.Join()), wire.pack(m.Ask(3, m.Overview()))[:-3])
    assert [line.recv().id, line.recv().id] == [1, 2]
    line.send(wire.pack(m.Ask(3, m.Overview()))[-3:])
    assert line.recv().id == 3


@pytest.mark.parametrize("data", [b"", b"\x05", HELLO[:-1], b"\xff\x0f\x00\x00x"], ids=["none", "one", "most", "big"])
def test_who_breaks_off_before_the_hello_leaves_nothing(
    data: bytes, peers: Peers, broker: BrokerProcess, program: Program, still_serves: StillServes
) -> None:
    for _ in range(20):
        peers.line(broker).send(data).close()
    still_serves(broker, program)


def test_who_breaks_off_within_a_request_has_everything_taken_back(
    peers: Peers, broker: BrokerProcess, program: Program, still_serves: StillServes
) -> None:
    """Invariant: half a message and the end is the end; it is no eviction, so what persists stays."""
    good = peers(broker)
    good.probe("busy", name="beside", mode="count")
    bad = peers(broker)
    bad.probe("answer", name="bad", mode="count")
    bad.ask(m.TakeHold(bad.client))
    assert program.is_stopped()
    bad.send(wire.pack(m.Ask(9, m.Overview()))[:-1]).close()
    good.until_gone("bad")
    assert program.answer(1) == 2
    still_serves(broker, program)


@pytest.mark.parametrize("versions", [[0], [], [2, 3], [-1], [2**63]])
def test_only_other_versions_are_refused_by_name(
    versions: list[int], peers: Peers, broker: BrokerProcess, program: Program, still_serves: StillServes
) -> None:
    """Invariant: the refusal names the version of each side."""
    reason = refusal_of(peers, broker, wire.pack(m.Hello(versions, "from another time")))
    assert "speaks version 1 of the protocol" in reason
    assert f"the peer {', '.join(map(str, versions)) or 'none'}" in reason
    assert peers(broker, versions=(0, 1, 99)).welcome.version == 1
    still_serves(broker, program)


# The handshake's time is ten seconds; here it is one that can be waited for.


@pytest.fixture
def impatient(nothing_is_left: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A broker in a thread of the test, which waits for a hello for half a second."""
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.5)
    path = Path(os.path.relpath(tmp_path)) / "s"
    listening = listen_at(path, for_everybody=False)
    ready, ending = threading.Event(), []

    async def live() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        ending.append(lambda: loop.call_soon_threadsafe(over.set))
        broker = Broker(listening, loop=loop, quotas=Quotas(), deadline_s=1.0)
        host = Host(ubpx.Session(), lambda pid: pid, broker.changed)
        await broker.serve(host)
        ready.set()
        await over.wait()
        await broker.close(host)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    assert ready.wait(PATIENCE_S)
    yield str(path)
    ending[0]()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    listening.close()


@pytest.mark.parametrize("data", [b"", b"\x05", HELLO[:-1]], ids=["nothing", "a byte", "half a hello"])
def test_who_says_no_hello_is_not_waited_for(data: bytes, peers: Peers, impatient: str) -> None:
    """Invariant: silence, or half a message and silence, ends with a refusal; who has said hello may be silent."""
    greeted = peers(impatient)
    line = peers.line(impatient)
    line.send(data)
    answer = line.recv()
    assert isinstance(answer, m.Refused)
    assert "no hello in 0.5 s" in answer.reason
    assert line.recv() is None
    greeted.send(wire.pack(m.Ask(1, m.Overview()))[:-1])
    time.sleep(0.6)
    greeted.send(wire.pack(m.Ask(1, m.Overview()))[-1:])
    assert greeted.recv().id == 1


# Floods -----------------------------------------------------------------------------------------------

FIRST: Final = 100_000
ROUND: Final = 500
"""Numbers of requests of one size."""


def flood(line: Any, data: bytes, seconds: float) -> int:
    """Send it again and again, as much as is taken for so long, and read nothing; how many bytes that was."""
    line.socket.setblocking(False)
    sent, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            sent += line.socket.send(data[sent % len(data) :])
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            break
    line.socket.settimeout(PATIENCE_S)
    return sent


def test_requests_without_reading_cost_the_broker_nothing(
    peers: Peers,
    start_broker: Callable[..., BrokerProcess],
    program: Program,
    memory_of: Callable[[int], int],
    still_serves: StillServes,
) -> None:
    """Invariant: who asks and does not read is not read from; the broker's memory stays flat, others are served.

    When it reads at last, each request is answered, in order.
    """
    broker = start_broker("-p", str(program.pid), "--max-bytes", str(1 << 16))
    floods = [peers(broker) for _ in range(4)]
    for each in floods:
        each.target = each.ask(m.Join()).target
    [stack] = [each for each in floods[0].ask(m.Mappings(floods[0].target)) if each.path == "[stack]"]
    calls = [
        m.Overview() if number % 2 else m.ReadMemory(each.target, stack.end - 65536, 65536)
        for number, each in enumerate(floods)
    ]
    before = memory_of(broker.pid)
    sent = []
    for each, call in zip(floods, calls, strict=True):
        data = b"".join(wire.pack(m.Ask(number, call)) for number in range(FIRST, FIRST + ROUND))
        sent.append(flood(each, data, 1.0))
        still_serves(broker, program)
    assert memory_of(broker.pid) - before < 24 << 20, f"{sent} bytes were sent"
    for each, call, size in zip(floods, calls, sent, strict=True):
        asked = size // len(wire.pack(m.Ask(FIRST, call)))
        assert asked > 0
        for number in range(min(asked, 500)):
            answer = each.recv()
            assert isinstance(answer, m.Reply)
            assert answer.id == FIRST + number % ROUND
        each.close()
    still_serves(broker, program)


def test_messages_that_are_no_messages_cost_the_broker_nothing(
    peers: Peers, broker: BrokerProcess, program: Program, memory_of: Callable[[int], int], still_serves: StillServes
) -> None:
    """Invariant: a length is believed up to the cap alone, and what was announced is dropped with its connection."""
    before = memory_of(broker.pid)
    for _ in range(50):
        bad = peers(broker)
        bad.send((wire.REQUEST_BYTES).to_bytes(4, "little"))
        flood(bad, bytes(1 << 16), 0.02)
        bad.close()
    for _ in range(50):
        line = peers.line(broker)
        line.send(b"\xff\xff\xff\x7f" + bytes(4096))
        assert isinstance(line.recv(), m.Refused)
        line.close()
    assert memory_of(broker.pid) - before < 24 << 20
    still_serves(broker, program)


def test_connections_beyond_the_quota_are_refused(
    peers: Peers, start_broker: Callable[..., BrokerProcess], program: Program, still_serves: StillServes
) -> None:
    """Invariant: those that are there are served on, with their channels; a place that is left can be taken."""
    broker = start_broker("-p", str(program.pid), "--max-connections", "4")
    there = [peers(broker) for _ in range(4)]
    for _ in range(50):
        with pytest.raises(peers.Refused, match="has 4 connections"):
            peers(broker)
    leases = [each.probe("answer", name=f"c{number}") for number, each in enumerate(there)]
    program.tell("1\n")
    for each in there:
        assert each.channel is not None
        each.channel.answer(each.channel.recv())
    assert program.number("answer") == 2
    assert [each.lease(lease.lease).hits for each, lease in zip(there, leases, strict=True)] == [1] * 4
    there.pop().close()
    assert eventually_connects(peers, broker)
    there.pop().close()
    assert eventually_connects(peers, broker)
    there.pop().close()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(peers.Refused):
            still_serves(broker, program)
            return
    pytest.fail("it serves nobody any more")


def eventually_connects(peers: Peers, broker: BrokerProcess) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(peers.Refused):
            peers(broker)
            return True
        time.sleep(0.01)
    return False


def test_silent_connections_do_not_keep_others_out_for_ever(
    peers: Peers, start_broker: Callable[..., BrokerProcess], program: Program, still_serves: StillServes
) -> None:
    """Invariant: who opens sockets and says nothing is refused more of them; when they close, all is as before."""
    broker = start_broker("-p", str(program.pid), "--max-connections", "4")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    for each in silent:
        each.settimeout(PATIENCE_S)
        each.connect(broker.path)
    refused = 0
    for each in silent[8:]:
        refused += each.recv(4096) != b""
    assert refused == len(silent) - 8
    for each in silent:
        each.close()
    assert eventually_connects(peers, broker)
    still_serves(broker, program)
