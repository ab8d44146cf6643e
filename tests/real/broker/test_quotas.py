"""Each quota, reached: the request gets a clear error and nothing else, and what there was stays as it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.broker.peers import Peer
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers, StartBroker, StillServes
    from tests.real.conftest import Program, StartProgram


def exceeded(peer: Any, call: Any, quota: str) -> None:
    with pytest.raises(ubpx.QuotaExceeded) as error:
        peer.ask(call)
    assert error.value.resource == quota
    assert "; " in str(error.value)


def armed(peer: Peer) -> list[int]:
    return [each.address for each in peer.ask(m.Probepoints(peer.target))]


def test_probes(peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes) -> None:
    """Invariant: one more is refused however it is asked for, armed nowhere, and can be had once another is released.

    Pending leases count, and each connection has its own.
    """
    broker = start_broker("-p", str(program.pid), "--max-probes", "3", "--deadline", "20")
    peer, other = peers(broker), peers(broker)
    first = peer.probe("answer", mode="count")
    peer.ask(m.Probe(peer.client, "nosuchmodule:f", "count"))
    before = armed(peer)
    for call in (
        m.ProbeMany(peer.client, ["busy", "long_insn"], "count"),
        m.ProbeMany(peer.client, "*s*", "count"),
    ):
        exceeded(peer, call, "probes")
        assert armed(peer) == before
    third = peer.ask(m.Probe(peer.client, "busy", "notify"))
    before = armed(peer)
    more = (
        m.Probe(peer.client, "long_insn", "count"),
        m.Probe(peer.client, "answer", "count"),
        m.ProbeMany(peer.client, ["long_insn"], "count"),
        m.ProbeMany(peer.client, "long_*", "count"),
        m.Watch(peer.client, 4096, "count"),
    )
    for each in more:
        exceeded(peer, each, "probes")
        assert armed(peer) == before
    client = peer.ask(m.OpenClient(peer.target, "another")).client
    exceeded(peer, m.Probe(client, "answer", "count"), "probes")
    assert program.answer(1) == 2
    assert peer.lease(first.lease).hits == 1
    assert other.probe("long_insn", name="other", mode="count").state == "ARMED"
    peer.ask(m.Release([third.lease]))
    assert peer.ask(m.Probe(peer.client, "answer+0x4", "count")).state == "ARMED"
    assert program.answer(1) == 2
    assert peer.lease(first.lease).hits == 2
    still_serves(broker, program)


def test_a_group_that_is_too_large_leaves_nothing(
    peers: Peers, start_broker: StartBroker, target_program: StartProgram
) -> None:
    """Invariant: it is known to be too large once it is armed; what was hit until it was released again counts not."""
    program = target_program("echo", 16)
    broker = start_broker("-p", str(program.pid), "--max-probes", "3", "--deadline", "20")
    peer = peers(broker)
    first = peer.probe("answer", mode="count")
    for _ in range(30):
        exceeded(peer, m.ProbeMany(peer.client, "*s*", "notify"), "probes")
    for place in ("busy", "long_insn"):
        assert peer.ask(m.Probe(peer.client, place, "count")).state == "ARMED"
    assert program.answer(1) == 2
    assert peer.lease(first.lease).hits == 1


def test_a_group_that_fits_is_granted_while_it_is_hit(
    peers: Peers, start_broker: StartBroker, target_program: StartProgram
) -> None:
    """Invariant: hits that come before the reply change nothing about how many leases that is."""
    program = target_program("echo", 64)
    broker = start_broker("-p", str(program.pid), "--max-probes", "2", "--deadline", "20")
    peer = peers(broker)
    peer.probe("answer", mode="count")
    peer.ask(m.CloseClient(peer.client))
    peer.client = peer.ask(m.OpenClient(peer.target, "group")).client
    for _ in range(150):
        group = peer.ask(m.ProbeMany(peer.client, ["busy", "answer"], "notify"))
        peer.ask(m.Release([each.lease for each in group.leases]))


def test_leases_that_have_ended_are_none(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: armed and pending leases count alone: one that has ended, by its first hit, makes room."""
    broker = start_broker("-p", str(program.pid), "--max-probes", "2", "--deadline", "20")
    peer = peers(broker)
    peer.probe("long_insn", mode="count")
    for number in range(10):
        [once] = peer.ask(m.ProbeMany(peer.client, ["answer"], "count", once=True)).leases
        exceeded(peer, m.Probe(peer.client, "busy", "count"), "probes")
        assert program.answer(number) == number + 1
        ended = peer.lease(once.lease)
        assert (ended.state, ended.hits) == ("RELEASED", 1)
    still_serves(broker, program)


def test_clients(peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes) -> None:
    """Invariant: counted over all targets of a connection; a name that was refused is free for others."""
    broker = start_broker("-p", str(program.pid), "--max-clients", "2", "--deadline", "20")
    peer, other = peers(broker), peers(broker)
    target = peer.ask(m.Join()).target
    clients = [peer.ask(m.OpenClient(target, f"c{number}")).client for number in range(2)]
    for _ in range(3):
        exceeded(peer, m.OpenClient(target, "wanted"), "clients")
    assert other.probe("answer", name="wanted", mode="count").state == "ARMED"
    assert [each.name for each in peer.ask(m.Clients(target))] == ["c0", "c1", "wanted"]
    peer.ask(m.CloseClient(clients[0]))
    assert peer.ask(m.OpenClient(target, "c2")).client
    still_serves(broker, program)


def test_slots(peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes) -> None:
    """Invariant: leases of places that need a slot are counted, each connection's; the trap is not left behind."""
    broker = start_broker("-p", str(program.pid), "--max-slots", "1", "--deadline", "20")
    peer = peers(broker)
    slotted = peer.probe("busy", mode="count", strategy="BOOST")
    [place] = peer.ask(m.Probepoints(peer.target))
    assert place.slot is not None
    for call in (
        m.Probe(peer.client, "answer", "count", strategy="BOOST"),
        m.Probe(peer.client, "busy", "count"),
        m.ProbeMany(peer.client, ["answer", "long_insn"], "count", strategy="BOOST"),
    ):
        exceeded(peer, call, "slots")
        assert peer.ask(m.Probepoints(peer.target)) == [place]
    peer.ask(m.Release([slotted.lease]))
    assert peer.ask(m.Probe(peer.client, "answer", "count", strategy="BOOST")).state == "ARMED"
    assert program.answer(1) == 2
    still_serves(broker, program)


def test_places_without_a_slot_need_none(peers: Peers, start_broker: StartBroker, program: Program) -> None:
    """Invariant: what is emulated is not counted, with no slot to be had either."""
    broker = start_broker("-p", str(program.pid), "--max-slots", "0", "--deadline", "20")
    peer = peers(broker)
    assert peer.probe("answer", mode="count", strategy="INLINE").state == "ARMED"


def test_waits(peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes) -> None:
    """Invariant: so many waits at once; all of them are answered in the end, and other requests go on."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    peer = peers(broker)
    target = peer.ask(m.Join()).target
    wait = m.Wait(target)
    numbers = [peer.begin(wait) for _ in range(64)]
    exceeded(peer, wait, "waits")
    exceeded(peer, m.Wait(target, 0.0), "waits")
    assert len(peer.ask(m.Threads(target))) == 2
    still_serves(broker, program)
    assert program.tell("x 7\n").wait() == 7
    answers = [peer.hear() for _ in numbers]
    assert sorted(each.id for each in answers) == numbers
    assert all(isinstance(each, m.Reply) for each in answers)
    assert peer.ask(wait) == 7


def test_requests_that_wait_are_all_done(peers: Peers, start_broker: StartBroker, program: Program) -> None:
    """Invariant: more requests than may wait at once are read later, and none is lost."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    peer = peers(broker)
    target = peer.ask(m.Join()).target
    numbers = [peer.begin(m.Threads(target)) for _ in range(1000)]
    assert [peer.hear().id for _ in numbers] == numbers


# How long something may be kept stopped ---------------------------------------------------------------


def evicted_for_stopping(peer: Peer, seconds: float) -> None:
    reason = peer.end_of()
    assert "has kept threads stopped for" in reason
    assert float(reason.split()[-2]) >= seconds


def holds_thread(peer: Peer, program: Program) -> None:
    [thread] = [tid for tid in peer.ask(m.Threads(peer.target)) if tid != program.pid]
    peer.ask(m.TakeHold(peer.client, thread))


def holds_process(peer: Peer, _: Program) -> None:
    peer.ask(m.TakeHold(peer.client))


def holds_by_verdict(peer: Peer, program: Program) -> None:
    assert peer.channel is not None
    peer.ask(m.Probe(peer.client, "long_insn", "sync"))
    program.tell("1\n")
    hit = peer.channel.recv()
    peer.channel.answer(hit, verdict=2)


def holds_process_by_verdict(peer: Peer, program: Program) -> None:
    assert peer.channel is not None
    program.tell("1\n")
    hit = peer.channel.recv()
    peer.channel.answer(hit, verdict=3)


def holds_late(peer: Peer, program: Program) -> None:
    assert peer.channel is not None
    program.tell("1\n")
    peer.channel.recv()


@pytest.mark.parametrize(
    "held",
    [holds_thread, holds_process, holds_by_verdict, holds_process_by_verdict, holds_late],
    ids=lambda each: each.__name__,
)
def test_what_is_kept_stopped_too_long_runs_on(
    held: Callable[[Peer, Program], None],
    *,
    peers: Peers,
    start_broker: StartBroker,
    program: Program,
    still_serves: StillServes,
) -> None:
    """Invariant: however it was stopped, the peer is evicted after that time and not before; the others are not."""
    broker = start_broker("-p", str(program.pid), "--max-stop", "0.5", "--deadline", "60")
    other = peers(broker)
    lease = other.probe("answer+0x4", name="beside", mode="count")
    peer = peers(broker)
    peer.probe("answer", name="stops")
    began = time.monotonic()
    held(peer, program)
    evicted_for_stopping(peer, 0.5)
    assert time.monotonic() - began >= 0.5
    if held not in (holds_thread, holds_process):
        assert program.number("answer") == 2
    assert program.answer(5) == 6
    assert other.lease(lease.lease).state == "ARMED"
    assert other.ask(m.Holds(other.target)) == []
    still_serves(broker, program)


def test_stopping_again_and_again_is_no_long_stop(peers: Peers, start_broker: StartBroker, program: Program) -> None:
    """Invariant: the time is that of one hold: a debugger that stops often, each time shortly, stays."""
    broker = start_broker("-p", str(program.pid), "--max-stop", "1", "--deadline", "60")
    peer = peers(broker)
    peer.probe("busy", name="stops", mode="count")
    [thread] = [tid for tid in peer.ask(m.Threads(peer.target)) if tid != program.pid]
    until = time.monotonic() + 2.5
    rounds = 0
    while time.monotonic() < until:
        hold = peer.ask(m.TakeHold(peer.client, thread)).hold
        time.sleep(0.05)
        peer.ask(m.ReleaseHold(hold))
        rounds += 1
    assert rounds > 3
    peer.ask(m.TakeHold(peer.client, thread))
    evicted_for_stopping(peer, 1)
    assert program.answer(1) == 2


def test_what_was_released_in_time_is_forgotten(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    broker = start_broker("-p", str(program.pid), "--max-stop", "0.5", "--deadline", "60")
    peer = peers(broker)
    peer.probe("busy", name="stops", mode="count")
    hold = peer.ask(m.TakeHold(peer.client)).hold
    peer.ask(m.ReleaseHold(hold))
    time.sleep(1.2)
    assert len(peer.ask(m.Threads(peer.target))) == 2
    still_serves(broker, program)
