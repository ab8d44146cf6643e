"""Peers that do not answer, answer late or wrongly, do not read, or die: the program and the others go on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.broker.peers import channel_of, counting
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers, StartBroker, StillServes
    from tests.real.conftest import Program, StartProgram

PATIENCE_S: Final = 30.0


def test_a_peer_that_stands_still_is_evicted_and_the_program_goes_on(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: after the deadline all that it had is taken back; no hit of anybody else's is missed."""
    broker = start_broker("-p", str(program.pid), "--deadline", "1")
    other, lease = counting(peers, broker)
    child = peers.elsewhere()
    still = child.peer(broker.path)
    still.probe("answer", name="still")
    still.ask(m.Probe(still.lease_client(), "busy", "count", persistent=True))
    child.send_signal(signal.SIGSTOP)
    for number in range(10):
        assert program.answer(number) == number + 1
    assert other.lease(lease).hits == 10
    other.until_gone("still")
    assert [each.clients for each in other.ask(m.Probepoints(other.target))] == [["beside"]]
    child.send_signal(signal.SIGCONT)
    assert "has not answered a hit for 1 s" in still.end_of()
    still_serves(broker, program)


def test_a_peer_that_answers_late_but_in_time_stays(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: the deadline is for each answer: many late ones may together take longer. What they say counts."""
    broker = start_broker("-p", str(program.pid), "--deadline", "2")
    other, others_lease = counting(peers, broker, "answer+0x4")
    slow = peers(broker)
    lease = slow.probe("answer", name="slow")
    began = time.monotonic()
    for number in range(8):
        program.tell(f"{number}\n")
        hit = channel_of(slow).recv()
        time.sleep(0.3)
        channel_of(slow).answer(hit, registers={"rdi": 100 * number})
        assert program.number("answer") == 100 * number + 1
    assert time.monotonic() - began > 2
    assert slow.lease(lease.lease).hits == other.lease(others_lease).hits == 8
    still_serves(broker, program)


def test_answers_at_the_edge_of_late_are_all_taken(
    peers: Peers, start_broker: StartBroker, target_program: StartProgram
) -> None:
    """Invariant: whichever thread of the broker reads an answer, each is read once, in order, and counts."""
    program = target_program("hot_calls", "probed_lea", 4, 500)
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, others_lease = counting(peers, broker, "probed_lea")
    edge = peers(broker)
    lease = edge.probe("probed_lea", name="edge")
    channel, chance = channel_of(edge), random.Random(1)
    program.tell("g")
    for _ in range(2000):
        hit = channel.recv()
        delay = chance.choice([0.0, 0.0, 0.0018, 0.002, 0.0022, 0.004])
        if delay:
            time.sleep(delay)
        channel.answer(hit)
    assert program.number("calls") == 2000
    assert edge.lease(lease.lease).hits == other.lease(others_lease).hits == 2000
    assert edge.lease(lease.lease).errors == 0
    assert other.ask(m.Holds(other.target)) == []
    program.tell("q")
    assert program.wait() == 0


@pytest.mark.parametrize("deadline", ["1e-9", "0.0001"])
def test_no_deadline_is_so_short_that_it_is_none(
    deadline: str, peers: Peers, start_broker: StartBroker, program: Program
) -> None:
    """Invariant: a time that a socket cannot be given does not make the tracer wait for ever."""
    broker = start_broker("-p", str(program.pid), "--deadline", deadline)
    other, lease = counting(peers, broker)
    still = peers(broker)
    still.probe("answer", name="still")
    assert program.answer(1) == 2
    assert still.end_of()
    assert other.lease(lease).hits == 1


# Channels that end, or come twice -------------------------------------------------------------------


def test_a_token_is_good_once(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: a second channel is refused, and the first one serves on; so is a token that was never given out."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    peer = peers(broker)
    lease = peer.probe("answer", name="once")
    first = channel_of(peer)
    for token in (peer.welcome.channel, bytes(16), b"", os.urandom(16)):
        with pytest.raises(peers.Refused, match="its token is good once"):
            peers.line(broker).greet(channel=token)
    program.tell("1\n")
    first.answer(first.recv())
    assert program.number("answer") == 2
    assert peer.lease(lease.lease).hits == 1
    peer.close()
    with pytest.raises(peers.Refused):
        peers.line(broker).greet(channel=peer.welcome.channel)
    still_serves(broker, program)


@pytest.mark.parametrize("which", ["channel", "connection"])
def test_either_end_is_the_end_of_both(
    which: str, peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: whichever socket the peer closes, while a thread waits for its answer, everything is given back."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, lease = counting(peers, broker)
    for number in range(6):
        peer = peers(broker)
        peer.probe("answer", name="ends")
        channel = channel_of(peer)
        program.tell("1\n")
        hit = channel.recv()
        if number % 2:
            other.until_held(hit.thread)
        if which == "channel":
            channel.close()
            assert peer.end_of() == ""
        else:
            peer.socket.close()
            assert channel.recv() is None
        assert program.number("answer") == 2
        assert other.lease(lease).hits == number + 1
        other.until_gone("ends")
    still_serves(broker, program)


def test_a_handler_that_does_not_read_its_replies_is_evicted(
    peers: Peers, start_broker: StartBroker, program: Program, still_serves: StillServes
) -> None:
    """Invariant: the tracer waits for nobody who does not read; the program goes on."""
    broker = start_broker("-p", str(program.pid), "--deadline", "3")
    other, lease = counting(peers, broker)
    bad = peers(broker)
    bad.probe("answer", name="bad")
    [stack] = [each for each in bad.ask(m.Mappings(bad.target)) if each.path == "[stack]"]
    program.tell("1\n")
    channel = channel_of(bad)
    channel.recv()
    size = min(stack.end - stack.start, m.MEMORY_BYTES)
    for number in range(50):
        try:
            channel.send(m.Ask(number, m.ReadMemory(bad.target, stack.end - size, size)))
        except (BrokenPipeError, ConnectionResetError):
            break
    assert bad.end_of()
    assert program.number("answer") == 2
    assert other.lease(lease).hits == 1
    still_serves(broker, program)


# Notices that nobody reads --------------------------------------------------------------------------


def test_notices_that_nobody_reads_are_dropped_counted_and_told(
    peers: Peers, start_broker: StartBroker, target_program: StartProgram
) -> None:
    """Invariant: the program does not wait; once the peer reads again: hits = records + dropped, for each lease."""
    program = target_program("hot_calls", "probed_lea", 4, 5000)
    broker = start_broker("-p", str(program.pid), "--max-queue", "100", "--max-bytes", "65536", "--deadline", "20")
    other, others_lease = counting(peers, broker, "probed_lea")
    deaf = peers(broker)
    lease = deaf.probe("probed_lea", name="deaf", mode="notify").lease
    second = deaf.ask(m.Probe(deaf.client, "probed_lea", "notify")).lease
    program.tell("g")
    assert program.number("calls") == 20000
    assert other.lease(others_lease).hits == 20000
    infos = deaf.ask(m.ReadLeases([lease, second]))
    assert [each.hits for each in infos] == [20000, 20000]
    deaf.ask(m.Stops(deaf.target))
    deadline = time.monotonic() + PATIENCE_S
    while len(deaf.records) + sum(deaf.dropped.values()) < 40000 and time.monotonic() < deadline:
        deaf.ask(m.Stops(deaf.target))
        time.sleep(0.01)
    for each in (lease, second):
        received = sum(1 for record in deaf.records if record[0] == each)
        assert received + deaf.dropped[each] == 20000
        assert deaf.lease(each).dropped == deaf.dropped[each] > 0
    again = len(deaf.records), dict(deaf.dropped)
    deaf.ask(m.Stops(deaf.target))
    assert (len(deaf.records), deaf.dropped) == again
    program.tell("q")
    assert program.wait() == 0


# Peers that die -------------------------------------------------------------------------------------


def holds_a_thread(peer: Any, thread: int) -> None:
    peer.ask(m.TakeHold(peer.lease_client(), thread))


def holds_the_process(peer: Any, _: int) -> None:
    peer.ask(m.TakeHold(peer.lease_client()))


def holds_both(peer: Any, thread: int) -> None:
    holds_the_process(peer, thread)
    holds_a_thread(peer, thread)


def steps(peer: Any, thread: int) -> None:
    holds_a_thread(peer, thread)
    peer.ask(m.Step(peer.lease_client(), thread))


@pytest.mark.parametrize("held", [holds_a_thread, holds_the_process, holds_both, steps], ids=lambda each: each.__name__)
def test_what_a_killed_peer_has_held_runs_on(
    held: Callable[[Any, int], None],
    *,
    peers: Peers,
    start_broker: StartBroker,
    program: Program,
    still_serves: StillServes,
    eventually: Callable[..., bool],
) -> None:
    """Invariant: kill -9 gives back threads and process, whatever the peer was doing with them."""
    broker = start_broker("-p", str(program.pid), "--deadline", "20")
    other, lease = counting(peers, broker, "busy")
    child = peers.elsewhere()
    peer = child.peer(broker.path)
    peer.probe("busy", name="killed", mode="count")
    [thread] = [tid for tid in other.ask(m.Threads(other.target)) if tid != program.pid]
    held(peer, thread)
    before = other.lease(lease).hits
    child.end()
    other.until_gone("killed")
    assert program.answer(1) == 2
    assert eventually(lambda: other.lease(lease).hits > before)
    assert other.ask(m.Holds(other.target)) == []
    still_serves(broker, program)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("asked", [False, True], ids=["before", "while it asks"])
def test_a_peer_killed_while_a_thread_waits_for_it(
    *,
    late: bool,
    asked: bool,
    peers: Peers,
    start_broker: StartBroker,
    program: Program,
    still_serves: StillServes,
) -> None:
    """Invariant: the thread goes on at once, and not at the deadline."""
    broker = start_broker("-p", str(program.pid), "--deadline", "600")
    other, lease = counting(peers, broker)
    child = peers.elsewhere()
    peer = child.peer(broker.path)
    peer.probe("answer", name="killed")
    program.tell("1\n")
    hit = peer.channel.recv()
    if late:
        other.until_held(hit.thread)
    if asked:
        peer.channel.send(*[m.Ask(number, m.Threads(other.target)) for number in range(100)])
    child.end()
    assert program.number("answer") == 2
    assert other.lease(lease).hits == 1
    other.until_gone("killed")
    still_serves(broker, program)
