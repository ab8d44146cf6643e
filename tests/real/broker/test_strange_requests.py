"""Requests that are messages, and cannot be right: each is refused by an error of its own, and has done nothing."""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.broker.peers import Peer
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

HUGE: Final = 2**63
LARGEST: Final = 2**64 - 1
LONG: Final = "x" * 500_000


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess], program: Program) -> BrokerProcess:
    return start_broker("-p", str(program.pid), "--deadline", "20")


class Scene:
    """A peer with everything that there is to name, and what another would see change."""

    def __init__(self, peers: Peers, broker: BrokerProcess, program: Program) -> None:
        self.peer: Final = peers(broker)
        self.broker_pid: Final = broker.pid
        self.pid: Final = program.pid
        self.lease: Final = self.peer.probe("answer", name="strange").lease
        self.target, self.client = self.peer.target, self.peer.client
        [self.thread] = [tid for tid in self.peer.ask(m.Threads(self.target)) if tid != self.pid]
        self.hold: Final = self.peer.ask(m.TakeHold(self.client, self.thread)).hold
        self.other: Final = peers(broker)
        self.other.probe("answer+0x4", name="other", mode="count")

    def state(self) -> Any:
        target = self.other.target
        holds = [(each.owner, each.thread) for each in self.other.ask(m.Holds(target))]
        return (
            self.other.ask(m.Clients(target)),
            self.other.ask(m.Probepoints(target)),
            holds,
            sorted(self.other.ask(m.Threads(target))),
            self.other.ask(m.ReadRegisters(target, self.thread)),
        )


@pytest.fixture
def scene(peers: Peers, broker: BrokerProcess, program: Program) -> Scene:
    return Scene(peers, broker, program)


def silly(scene: Scene) -> Iterator[Any]:  # noqa: C901, PLR0912 - a list
    """Requests that must be refused."""
    target, client, hold, thread = scene.target, scene.client, scene.hold, scene.thread
    for pid in (-1, 0, HUGE, LARGEST, 2**22 - 3):
        yield m.Join(pid)
        yield m.Attach(pid)
    yield m.Attach(2)
    yield m.Attach(scene.broker_pid)
    yield m.Attach(os.getpid())  # which is the broker's parent
    yield m.Attach(scene.pid, "many")
    for tid in (-1, 0, scene.pid, os.getpid(), HUGE, LARGEST):
        yield m.ReadRegisters(target, tid)
    for address, size in ((-1, 8), (0, 8), (LARGEST, 8), (LARGEST - 7, 8), (HUGE, 1), (4096, -1), (4096, LARGEST)):
        yield m.ReadMemory(target, address, size)
    yield m.ReadMemory(target, 0, m.MEMORY_BYTES + 1)
    for address in (-1, 0, LARGEST, LARGEST - 7, HUGE):
        for through in (False, True):
            yield m.WriteMemory(target, address, b"12345678", through)
    yield m.WriteMemory(target, 4096, bytes(m.MEMORY_BYTES + 1))
    yield m.WriteMemory(target, text_of(scene), b"12345678")
    for timeout in (-1.0, math.nan, math.inf, 1e300):
        yield m.Wait(target, timeout)
    for name in ("", "strange", "other", "ubpx-broker", "ubpx", LONG):
        yield m.OpenClient(target, name)
    for hooks in (["x"], [""], ["ubpx_commands"], ["__init__"], ["ubpx_signal", "x"], [LONG]):
        yield m.OpenClient(target, "hooked", 0, hooks)
    for place in (
        "",
        ":",
        "nosuch",
        "libc:nosuch",
        "0x",
        "0xfffffffffffffffffffff",
        LONG,
        "\0",
        "\n",
        "answer+1",
        -1,
        0,
    ):
        yield m.Probe(client, place, "count", defer=False)
    yield m.Probe(client, f"{LONG}:x", "count")
    yield m.Probe(client, "0x" + "0" * 500_000 + f"{text_of(scene):x}", "count", assume_boundary=True)
    for place in (LARGEST, HUGE, text_of(scene) + 1):
        yield m.Probe(client, place, "count")
    yield m.Probe(client, "busy", "sometimes")
    yield m.Probe(client, "busy", "count", strategy="MAGIC")
    yield m.Probe(client, "busy", "count", strategy=LONG)
    yield m.Probe(client, "answer", "count", exclusive=True)
    some: tuple[Any, ...] = ("", "nosuch*", "[", LONG, [], ["busy", "nosuch"], [LONG], ["busy", -1], [0])
    for places in some:
        yield m.ProbeMany(client, places, "count")
    yield m.ProbeMany(client, ["busy"], "sometimes")
    for address, size, access in ((-8, 8, "WRITE"), (LARGEST, 8, "WRITE"), (4097, 8, "WRITE"), (4096, 3, "WRITE"),
                                  (4096, -8, "WRITE"), (4096, 8, "LOOK"), (4096, 8, LONG)):  # fmt: skip
        yield m.Watch(client, address, "count", size, access)
    yield m.Watch(client, 4096, "sometimes")
    for tid in (-1, 0, os.getpid(), HUGE, LARGEST):
        yield m.TakeHold(client, tid)
        yield m.Step(client, tid)
    yield m.Step(client, scene.pid)
    for registers in ({"nosuch": 1}, {"": 1}, {LONG: 1}, {"rip": 1, "nosuch": 1}):
        yield m.ReleaseHold(hold, registers)
        yield m.Step(client, thread, registers)
    for signal in (-1, 65, 1000, HUGE):
        yield m.ReleaseHold(hold, None, signal)
        yield m.Step(client, thread, None, signal)
    yield m.Catch(client, "everything")
    yield m.Catch(client, "signals", [])  # it has no such hook
    yield m.Catch(client, "syscalls", ["getpid"])


def text_of(scene: Scene) -> int:
    """An address of code, where nobody may write."""
    executable = os.readlink(f"/proc/{scene.pid}/exe")
    mapped: list[m.MappingInfo] = scene.peer.ask(m.Mappings(scene.target))
    return next(each.start for each in mapped if each.path == executable and "x" in each.permissions)


def test_values_that_cannot_be_are_refused(scene: Scene, program: Program) -> None:
    """Invariant: each fails by an error that says what is wrong, not by one that is a bug of ours; nothing changes."""
    before = scene.state()
    for call in silly(scene):
        refused(scene.peer.ask, call)
    assert scene.state() == before
    still_serves_beside(scene, program)


def refused(ask: Callable[[Any], Any], call: Any) -> None:
    try:
        value = ask(call)
    except ubpx.InternalError as error:
        pytest.fail(f"{repr(call)[:150]}: {error}")
    except ubpx.UbpxError:
        return
    pytest.fail(f"{repr(call)[:150]} gave {value!r}")


def still_serves_beside(scene: Scene, program: Program) -> None:
    """The strange peer's own handler is still asked."""
    channel = scene.peer.channel
    assert channel is not None
    program.tell("5\n")
    hit = channel.recv()
    assert hit.lease == scene.lease
    channel.answer(hit)
    assert program.number("answer") == 6


def test_a_handler_is_refused_the_same(scene: Scene, program: Program) -> None:
    """Invariant: on the channel, while a thread waits for the answer, all is refused that is refused elsewhere."""
    channel = scene.peer.channel
    assert channel is not None
    before = scene.state()
    calls = list(silly(scene))
    program.tell("1\n")
    hit = channel.recv()
    for call in calls:
        if call in (m.ReadRegisters(scene.target, scene.pid), m.Step(scene.client, scene.pid)):
            continue  # that thread has stopped for the hit
        refused(channel.ask, call)
    refused(channel.ask, m.Wait(scene.target))
    channel.answer(hit)
    assert program.number("answer") == 2
    assert [each for each in scene.state() if each not in before] == []
    still_serves_beside(scene, program)


OTHERS: Final[dict[type, Callable[[Scene], Any]]] = {
    m.Leave: lambda s: m.Leave(s.target),
    m.Threads: lambda s: m.Threads(s.target),
    m.ReadRegisters: lambda s: m.ReadRegisters(s.target, s.thread),
    m.ReadMemory: lambda s: m.ReadMemory(s.target, text_of(s), 8),
    m.WriteMemory: lambda s: m.WriteMemory(s.target, text_of(s), b"\xcc", through_protection=True),
    m.Mappings: lambda s: m.Mappings(s.target),
    m.Clients: lambda s: m.Clients(s.target),
    m.Probepoints: lambda s: m.Probepoints(s.target),
    m.Holds: lambda s: m.Holds(s.target),
    m.Stops: lambda s: m.Stops(s.target),
    m.Slots: lambda s: m.Slots(s.target),
    m.Resume: lambda s: m.Resume(s.target),
    m.Wait: lambda s: m.Wait(s.target, 0.0),
    m.OpenClient: lambda s: m.OpenClient(s.target, "guest"),
    m.CloseClient: lambda s: m.CloseClient(s.client),
    m.Probe: lambda s: m.Probe(s.client, "busy", "count"),
    m.ProbeMany: lambda s: m.ProbeMany(s.client, ["busy"], "count"),
    m.Watch: lambda s: m.Watch(s.client, 4096, "count"),
    m.Leases: lambda s: m.Leases(s.client),
    m.ReadLeases: lambda s: m.ReadLeases([s.lease]),
    m.Release: lambda s: m.Release([s.lease]),
    m.TakeHold: lambda s: m.TakeHold(s.client),
    m.ReleaseHold: lambda s: m.ReleaseHold(s.hold, {"rax": 0}),
    m.Step: lambda s: m.Step(s.client, s.thread),
    m.Catch: lambda s: m.Catch(s.client, "signals"),
}
"""With another connection's handle."""


def test_handles_are_no_good_on_another_connection(
    scene: Scene, peers: Peers, broker: BrokerProcess, program: Program
) -> None:
    """Invariant: of the same user too, and for a connection that uses the same target: it is told of no handle."""
    assert set(OTHERS) == set(typing.get_args(m.Call)) - {m.Overview, m.Join, m.Attach}
    before = scene.state()
    stranger = peers(broker)
    for user in (stranger, scene.other):
        for call in (make(scene) for make in OTHERS.values()):
            with pytest.raises(ubpx.UsageError, match="of this connection has that handle"):
                user.ask(call)
    assert [each.hold for each in scene.other.ask(m.Holds(scene.other.target))] == [None]
    assert scene.state() == before
    still_serves_beside(scene, program)


def test_one_kind_of_handle_is_no_other(scene: Scene) -> None:
    """Invariant: a connection's own handle of one kind names nothing of another kind."""
    before = scene.state()
    for wrong in (scene.client, scene.lease, scene.hold, scene.peer.welcome.channel, b"", bytes(16), bytes(15)):
        refused(scene.peer.ask, m.Threads(wrong))
        refused(scene.peer.ask, m.OpenClient(wrong, "x"))
    for wrong in (scene.target, scene.lease, scene.hold, b"\0" * 1000):
        refused(scene.peer.ask, m.Probe(wrong, "busy", "count"))
        refused(scene.peer.ask, m.TakeHold(wrong))
    for wrong in (scene.target, scene.client, scene.hold):
        refused(scene.peer.ask, m.ReadLeases([scene.lease, wrong]))
        refused(scene.peer.ask, m.Release([scene.lease, wrong]))
    for wrong in (scene.target, scene.client, scene.lease):
        refused(scene.peer.ask, m.ReleaseHold(wrong))
    assert scene.state() == before


def test_handles_mean_nothing_once_they_were_given_back(peers: Peers, broker: BrokerProcess, program: Program) -> None:
    """Invariant: after CloseClient and Leave, and a second time, each is refused as one that never was."""
    peer = peers(broker)
    lease = peer.probe("answer", mode="count").lease
    hold = peer.ask(m.TakeHold(peer.client)).hold
    peer.ask(m.CloseClient(peer.client))
    assert program.answer(1) == 2
    for call in (m.CloseClient(peer.client), m.Leases(peer.client), m.ReadLeases([lease]), m.Release([lease])):
        with pytest.raises(ubpx.UsageError):
            peer.ask(call)
    assert peer.ask(m.ReleaseHold(hold, {"rax": 1})) is None, "as in-process: again does nothing"
    peer.ask(m.Leave(peer.target))
    for again in (m.Leave(peer.target), m.Threads(peer.target), m.ReleaseHold(hold)):
        with pytest.raises(ubpx.UsageError):
            peer.ask(again)
    assert peer.ask(m.Join()).pid == program.pid


def test_waits_end_with_the_use_of_their_target(peers: Peers, broker: BrokerProcess, program: Program) -> None:
    """Invariant: who leaves a target is told at once that its waits are over; other waits go on."""
    other, peer = peers(broker), peers(broker)
    others_wait = m.Wait(other.ask(m.Join()).target)
    others_number = other.begin(others_wait)
    target = peer.ask(m.Join()).target
    wait = m.Wait(target)
    number = peer.begin(wait)
    assert [each.pid for each in peer_asks_beside(peer, m.Overview())] == [program.pid]
    leave = peer.begin(m.Leave(target))
    answers = {each.id: each for each in (peer.hear(), peer.hear())}
    assert isinstance(answers[leave], m.Reply)
    assert answers[number].failure.name == "UsageError"
    assert program.tell("x 4\n").wait() == 4
    assert other.reply(others_number, others_wait) == 4


def peer_asks_beside(peer: Peer, call: Any) -> Any:
    """While a wait is under way."""
    return peer.ask(call)


def test_a_client_named_as_what_holds_a_new_program_does_not_start_it(
    peers: Peers, start_broker: Callable[..., BrokerProcess], target_program: StartProgram
) -> None:
    """Invariant: a program at its entry point is held by ``ubpx``, and no client can be that."""
    broker = start_broker("--", str(target_program.build("brief")), "0", "3")
    peer = peers(broker)
    target = peer.ask(m.Join()).target
    with pytest.raises(ubpx.UsageError):
        peer.ask(m.OpenClient(target, "ubpx"))
    [hold] = peer.ask(m.Holds(target))
    assert (hold.hold, hold.owner) == (None, "ubpx")
    assert peer.ask(m.Wait(target)) == 3
