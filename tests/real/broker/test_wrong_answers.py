"""Answers on the channel that are none, or come in another order, or mean nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.broker.peers import Peer, channel_of, counting
from ubpx_froggy import messages as m
from ubpx_froggy import wire

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers, StartBroker, StillServes
    from tests.real.conftest import Program, StartProgram

PATIENCE_S: Final = 30.0


WRONG: Final[dict[str, Callable[[Any], bytes]]] = {
    "an answer to another call": lambda hit: wire.pack(m.Answer(hit.call + 1)),
    "an answer to no call": lambda hit: wire.pack(m.Answer(0)),
    "an answer to an earlier call": lambda hit: wire.pack(m.Answer(hit.call - 1)),
    "a negative call": lambda hit: wire.pack(m.Answer(-1)),
    "a failure of another call": lambda hit: wire.pack(m.Raised(hit.call + 1, "x")),
    "a hello": lambda hit: wire.pack(m.Hello([1], "x")),
    "a hit": wire.pack,
    "garbage": lambda hit: b"\xff\xff\xff\xff",
    "deep": lambda hit: b"\x20\0\0\0" + b"\x91" * 31 + b"\xc0",
    "text for a verdict": lambda hit: wire.pack(m.Answer(hit.call)).replace(b"\xc0\xc0", b"\xa1x\xc0"),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_wrong_words_on_the_channel_evict(
    *, late: bool, peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: what is no answer to the oldest hit ends the connection; its thread goes on as if it had none."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, lease = counting(peers, broker)
    for number, (kind, make) in enumerate(WRONG.items()):
        bad = peers(broker)
        bad.probe("answer", name=kind)
        program.tell("1\n")
        hit = channel_of(bad).recv()
        if late:
            other.until_held(hit.thread)
        channel_of(bad).send(make(hit))
        assert bad.end_of(), kind
        assert program.number("answer") == 2
        assert other.lease(lease).hits == number + 1
        other.until_gone(kind)
    still_serves(broker, program)


def test_answers_out_of_order_evict(peers: Peers, start_broker: StartBroker, target_program: StartProgram) -> None:
    """Invariant: of two hits the first is answered first; the program and the others go on without the peer."""
    program = target_program("hot_calls", "probed_lea", 2, 3)
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, lease = counting(peers, broker, "probed_lea")
    bad = peers(broker)
    bad.probe("probed_lea", name="bad")
    program.tell("g")
    channel = channel_of(bad)
    first, second = channel.recv(), channel.recv()
    assert first.thread != second.thread
    channel.send(m.Answer(second.call), m.Answer(first.call))
    assert f"the answer to call {first.call} is due" in bad.end_of()
    assert program.number("calls") == 6
    assert other.lease(lease).hits == 6
    program.tell("q")
    assert program.wait() == 0


@pytest.mark.parametrize("again", [m.Answer(0), m.Raised(0, "x")], ids=["answer", "raised"])
def test_an_answer_too_many_evicts(
    again: Any, peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: what comes behind the last answer that is due is noticed, whatever number it has."""
    broker = start_broker("-p", str(program.pid), "--deadline", "2")
    other, _ = counting(peers, broker)
    bad = peers(broker)
    bad.probe("answer", name="bad")
    program.tell("1\n")
    hit = channel_of(bad).recv()
    other.until_held(hit.thread)
    channel_of(bad).send(m.Answer(hit.call), again)
    assert program.number("answer") == 2
    program.tell("2\n")  # at the latest this hit finds out
    assert "is due" in bad.end_of()
    assert program.number("answer") == 3
    still_serves(broker, program)


def test_answers_that_nobody_has_asked_for_evict(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: an answer from before the hit is none to it."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    bad = peers(broker)
    bad.probe("answer", name="bad")
    channel_of(bad).send(m.Answer(1), m.Answer(2), m.Answer(2))
    program.tell("1\n")
    assert program.number("answer") == 2
    program.tell("2\n")
    assert program.number("answer") == 3
    program.tell("3\n")
    assert program.number("answer") == 4
    assert "is due" in bad.end_of()
    still_serves(broker, program)


STRANGE_ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "a verdict that is none": {"verdict": 4},
    "a negative verdict": {"verdict": -1},
    "a huge verdict": {"verdict": 2**63},
    "a register that is none": {"registers": {"nosuch": 1}},
    "no name": {"registers": {"": 1}},
    "a register of another architecture": {"registers": {"x0": 1}},
    "some good registers": {"registers": {"rdi": 99, "nosuch": 1}},
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_answers_that_mean_nothing_count_as_failures(
    *, late: bool, peers: Peers, start_broker: StartBroker, program: Program
) -> None:
    """Invariant: nothing of it is done; three in a row quarantine the client, and the connection lives."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, lease = counting(peers, broker)
    bad = peers(broker)
    hits = 0
    for kind, fields in STRANGE_ANSWERS.items():
        strange = bad.probe("answer", name=kind, pid=program.pid)
        for _ in range(3):
            fail(bad, program, other if late else None, **fields)
        hits += 3
        until_quarantined(bad, strange.lease, 3)
        with pytest.raises(ubpx.ClientQuarantined):
            bad.ask(m.Probe(bad.client, "busy", "count"))
        bad.ask(m.CloseClient(bad.client))
    assert other.lease(lease).hits == hits


@pytest.mark.parametrize("late", [(True, True, False), (False, False, True), (True, False, True)], ids=str)
def test_three_failures_are_three_whether_late_or_not(
    late: tuple[bool, ...], peers: Peers, start_broker: StartBroker, program: Program
) -> None:
    """Invariant: it is one row of failures, whoever has read the answers."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, _ = counting(peers, broker)
    bad = peers(broker)
    lease = bad.probe("answer", name="bad").lease
    for each in late:
        fail(bad, program, other if each else None, verdict=9)
    until_quarantined(bad, lease, 3)


def fail(bad: Peer, program: Program, late: Peer | None, **fields: Any) -> None:
    """One hit, and an answer that means nothing: late where somebody is there to see that."""
    program.tell("1\n")
    hit = channel_of(bad).recv()
    if late is not None:
        late.until_held(hit.thread)
    channel_of(bad).answer(hit, **fields)
    assert program.number("answer") == 2


def until_quarantined(peer: Peer, lease: bytes, errors: int) -> None:
    """Soon: what the last answer does to the client is done behind the program's back."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := peer.lease(lease)).state != "QUARANTINED" or found.errors != errors:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    assert found.hits == errors
