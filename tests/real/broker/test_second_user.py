"""A second user is refused everything on the first one's targets; the first one may do it all."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

import ubpx
from tests.real.broker.users import A, B, Elsewhere, as_user, open_to_all
from ubpx_froggy import listing, wire
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which root alone may")

PATIENCE_S: Final = 30.0
EVERY_CALL: Final = typing.get_args(m.Call)


@attrs.frozen(kw_only=True)
class Handles:
    """What there is to name."""

    pid: int
    thread: int
    """Held by A."""
    address: int
    """Of memory that may be written."""
    target: bytes
    client: bytes
    lease: bytes
    hold: bytes


CALLS: Final[dict[type, Callable[[Handles], Any]]] = {
    m.Overview: lambda _: m.Overview(),
    m.Join: lambda h: m.Join(h.pid),
    m.Attach: lambda h: m.Attach(h.pid),
    m.Leave: lambda h: m.Leave(h.target),
    m.Threads: lambda h: m.Threads(h.target),
    m.ReadRegisters: lambda h: m.ReadRegisters(h.target, h.thread),
    m.ReadMemory: lambda h: m.ReadMemory(h.target, h.address, 8),
    m.WriteMemory: lambda h: m.WriteMemory(h.target, h.address, b"\xff" * 8),
    m.Mappings: lambda h: m.Mappings(h.target),
    m.Clients: lambda h: m.Clients(h.target),
    m.Probepoints: lambda h: m.Probepoints(h.target),
    m.Holds: lambda h: m.Holds(h.target),
    m.Stops: lambda h: m.Stops(h.target),
    m.Slots: lambda h: m.Slots(h.target),
    m.Resume: lambda h: m.Resume(h.target),
    m.Wait: lambda h: m.Wait(h.target, 0.0),
    m.OpenClient: lambda h: m.OpenClient(h.target, "newcomer"),
    m.CloseClient: lambda h: m.CloseClient(h.client),
    m.Probe: lambda h: m.Probe(h.client, "long_insn", "count"),
    m.ProbeMany: lambda h: m.ProbeMany(h.client, ["long_insn", "busy"], "count"),
    m.Watch: lambda h: m.Watch(h.client, h.address & ~7, "count"),
    m.Leases: lambda h: m.Leases(h.client),
    m.ReadLeases: lambda h: m.ReadLeases([h.lease]),
    m.Release: lambda h: m.Release([h.lease]),
    m.TakeHold: lambda h: m.TakeHold(h.client),
    m.ReleaseHold: lambda h: m.ReleaseHold(h.hold, {"rax": 1}),
    m.Step: lambda h: m.Step(h.client, h.thread),
    m.Catch: lambda h: m.Catch(h.client, "signals", []),
}
"""What is tried of each request; one that is not here fails its test."""

CHANGING: Final = frozenset(
    {
        m.WriteMemory, m.Resume, m.OpenClient, m.CloseClient, m.Probe, m.ProbeMany, m.Watch, m.Leases, m.ReadLeases,
        m.Release, m.TakeHold, m.ReleaseHold, m.Step, m.Catch,
    }
)  # fmt: skip
"""Those that a connection that was made to read may not do, or has nothing to do it with."""


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """Root's, for everybody, at a socket that everybody can reach."""
    return open_to_all(start_broker("--all-users", "--deadline", "10"))


@pytest.fixture
def program(target_program: StartProgram) -> Program:
    """User A's."""
    return as_user(target_program, A, "echo", 1)


class Owner:
    """User A at work: a client of the broker in a process of A's, with a lease, a hold, and hooks."""

    def __init__(self, peers: Peers, broker: BrokerProcess, program: Program) -> None:
        self.child: Final[Elsewhere] = peers.elsewhere(A)
        self.peer: Final[Any] = self.child.peer(broker.path)
        self.ask: Final[Any] = self.peer.ask
        self.token: Final[bytes] = self.peer.welcome.channel
        self.peer.open_channel()
        target = self.ask(m.Attach(program.pid)).target
        client = self.ask(m.OpenClient(target, "first", 0, ["ubpx_signal"])).client
        lease = self.ask(m.Probe(client, "answer", "count")).lease
        [thread] = [tid for tid in self.ask(m.Threads(target)) if tid != program.pid]
        hold = self.ask(m.TakeHold(client, thread)).hold
        executable = os.readlink(f"/proc/{program.pid}/exe")
        [data] = [
            each
            for each in self.ask(m.Mappings(target))
            if each.path == executable and each.permissions.startswith("rw")
        ]
        self.handles: Final = Handles(
            pid=program.pid,
            thread=thread,
            address=data.end - 8,
            target=target,
            client=client,
            lease=lease,
            hold=hold,
        )

    def state(self) -> Any:
        """All that another could change, as far as A can see it."""
        target = self.handles.target
        [lease] = self.ask(m.ReadLeases([self.handles.lease]))
        return (
            lease.state,
            lease.hits,
            self.ask(m.Leases(self.handles.client)),
            self.ask(m.Clients(target)),
            self.ask(m.Probepoints(target)),
            self.ask(m.Holds(target)),
            self.ask(m.ReadRegisters(target, self.handles.thread)),
            self.ask(m.ReadMemory(target, self.handles.address, 8)),
        )


@pytest.fixture
def owner(peers: Peers, broker: BrokerProcess, program: Program) -> Owner:
    return Owner(peers, broker, program)


def guessed(handles: Handles) -> Handles:
    """Real numbers, for those anybody can see; handles as another might make them up."""
    target, client, lease, hold = (secrets.token_bytes(16) for _ in range(4))
    return attrs.evolve(handles, target=target, client=client, lease=lease, hold=hold)


def test_the_second_user_is_refused(peers: Peers, broker: BrokerProcess, program: Program, owner: Owner) -> None:
    """Invariant: nothing is given and nothing is changed, whether B makes handles up or has got hold of A's."""
    second = peers.elsewhere(B).peer(broker.path)
    second.open_channel()
    for number, call in enumerate(EVERY_CALL):
        assert program.answer(1) == 2
        before = owner.state()
        assert before[:2] == ("ARMED", number + 1)
        for handles in (guessed(owner.handles), owner.handles):
            if call is m.Overview:
                assert second.ask(CALLS[call](handles)) == []
                continue
            with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError)) as refusal:
                second.ask(CALLS[call](handles))
            if call in {m.Join, m.Attach}:
                assert isinstance(refusal.value, ubpx.PermissionRefused)
                assert f"user {A}" in str(refusal.value)
            else:
                assert "of this connection has that handle" in str(refusal.value), call
        assert owner.state() == before, call


def test_every_request_is_tried() -> None:
    """Invariant: a request without a case here is noticed."""
    assert set(CALLS) == set(EVERY_CALL)
    assert set(EVERY_CALL) >= CHANGING


def test_the_first_user_may(peers: Peers, broker: BrokerProcess, program: Program) -> None:
    """Invariant: what is refused to B is not refused to A, so the refusals are not for another reason."""
    looks = peers(broker)
    looks.target = looks.ask(m.Attach(program.pid)).target
    for call in EVERY_CALL:
        owner = Owner(peers, broker, program)
        owner.ask(CALLS[call](owner.handles))
        if call is m.TakeHold:
            assert program.is_stopped()
        else:
            assert program.answer(1) == 2, call
        owner.child.end()
        looks.until_gone("first")
        assert program.answer(1) == 2, call


def test_the_second_user_mixes_nothing_of_the_first_into_its_own(
    peers: Peers, broker: BrokerProcess, program: Program, owner: Owner, target_program: StartProgram
) -> None:
    """Invariant: with a target and client of its own, B still cannot name a thread, lease or hold of A's."""
    before = owner.state()
    own = as_user(target_program, B, "echo", 1)
    second = peers.elsewhere(B).peer(broker.path)
    target = second.ask(m.Attach(own.pid)).target
    client = second.ask(m.OpenClient(target, "second")).client
    assert [each.pid for each in second.ask(m.Overview())] == [own.pid]
    handles = attrs.evolve(owner.handles, target=target, client=client)
    tries = [
        m.ReadRegisters(target, handles.thread),
        m.TakeHold(client, handles.thread),
        m.TakeHold(client, handles.pid),
        m.Step(client, handles.thread),
        m.ReadLeases([handles.lease]),
        m.Release([handles.lease]),
        m.ReleaseHold(handles.hold),
        m.OpenClient(handles.client, "other"),
        m.OpenClient(owner.handles.target, "other"),
    ]
    for each in tries:
        with pytest.raises((ubpx.UsageError, ubpx.PermissionRefused)):
            second.ask(each)
    # A name is a name on one target: B's client "first" is none of A's.
    namesake = second.ask(m.OpenClient(target, "first")).client
    assert second.ask(m.Leases(namesake)) == []
    assert owner.state() == before
    assert own.answer(1) == 2
    assert program.answer(1) == 2


def test_the_second_user_does_not_come_back_as_the_first(
    peers: Peers, broker: BrokerProcess, program: Program, owner: Owner
) -> None:
    """Invariant: a persistent lease that A has left is no one else's, root's by its own name either."""
    owner.ask(m.Probe(owner.handles.client, "long_insn", "count", persistent=True))
    owner.ask(m.CloseClient(owner.handles.client))
    second = peers.elsewhere(B).peer(broker.path)
    with pytest.raises(ubpx.PermissionRefused):
        second.ask(m.Join(program.pid))
    root = peers(broker)
    target = root.ask(m.Join(program.pid)).target
    root.open_channel()
    with pytest.raises(ubpx.PermissionRefused, match="belongs to user 54321"):
        root.ask(m.OpenClient(target, "first", 0, ["ubpx_signal"]))
    back = owner.ask(m.OpenClient(owner.handles.target, "first", 0, ["ubpx_signal"]))
    assert [each.spec for each in back.leases] == ["long_insn"]


def test_the_second_user_sees_nothing_in_the_list(
    peers: Peers, broker: BrokerProcess, program: Program, owner: Owner
) -> None:
    """Invariant: ``ubpx list`` names no program, client or place of A's to B; to A and root it does."""
    seen = {
        "A": owner.child.call(listing.as_text, owner.child.call(look, broker.path)),
        "B": peers.elsewhere(B).call(look_as_text, broker.path),
        "root": look_as_text(broker.path),
    }
    for who in ("A", "root"):
        assert f"process {program.pid}" in seen[who]
        assert "'first'" in seen[who]
    assert seen["B"].splitlines() == [f"broker {broker.pid} at {broker.path}", "  no target"]


def look(path: str) -> Any:
    return list(listing.look(Path(path)))


def look_as_text(path: str) -> str:
    return listing.as_text(listing.look(Path(path)))


def test_the_second_user_does_not_see_what_has_ended(
    peers: Peers, broker: BrokerProcess, program: Program, owner: Owner
) -> None:
    """Invariant: that a process has ended, and has no credentials any more, makes nobody its user."""
    os.kill(program.pid, signal.SIGKILL)
    assert owner.ask(m.Wait(owner.handles.target)) == -signal.SIGKILL
    second = peers.elsewhere(B).peer(broker.path)
    assert second.ask(m.Overview()) == []
    for call in (m.Join(program.pid), m.Join()):
        with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError, ubpx.TargetGone)):
            second.ask(call)
    assert [each.pid for each in owner.ask(m.Overview())] == [program.pid]
    again = peers.elsewhere(A).peer(broker.path)
    target = again.ask(m.Join(program.pid)).target
    assert again.ask(m.Wait(target)) == -signal.SIGKILL


def test_a_channels_token_is_no_use_to_the_second_user(peers: Peers, broker: BrokerProcess, program: Program) -> None:
    """Invariant: B is refused with A's token, and A can still use it."""
    first = peers.elsewhere(A).peer(broker.path)
    token = first.welcome.channel
    other = peers.elsewhere(B)
    assert other.call(try_channel, broker.path, token).startswith("no connection waits for that channel")
    first.open_channel()
    lease = first.probe("answer", pid=program.pid, mode="count")
    assert program.answer(1) == 2
    assert first.lease(lease.lease).hits == 1
    assert other.call(try_channel, broker.path, token).startswith("no connection waits for that channel")


def try_channel(path: str, token: bytes) -> str:
    """Why it is refused; "" if it is not."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(PATIENCE_S)
        connected.connect(path)
        connected.sendall(wire.pack(m.Hello([1], "thief", token)))
        answer = wire.Parser(m.FromBrokerOnChannel).parse(next(wire.Framer(4096).feed(connected.recv(4096))))
        return answer.reason if isinstance(answer, m.Refused) else ""


# Read-only ----------------------------------------------------------------------------------------


def test_who_joins_to_read_can_read_alone(peers: Peers, broker: BrokerProcess, program: Program, owner: Owner) -> None:
    """Invariant: with read_only what looks and reads is given, to A itself too, and what changes is refused."""
    before = owner.state()
    reader = peers.elsewhere(A).peer(broker.path)
    for call in EVERY_CALL:
        target = reader.ask(m.Join(program.pid, read_only=True)).target
        handles = attrs.evolve(owner.handles, target=target)
        if call in CHANGING:
            expected = ubpx.PermissionRefused if call in {m.WriteMemory, m.Resume, m.OpenClient} else ubpx.UsageError
            with pytest.raises(expected):
                reader.ask(CALLS[call](handles))
        else:
            reader.ask(CALLS[call](handles))
        assert owner.state() == before, call
    assert program.answer(1) == 2


def test_a_reader_of_one_connection_takes_nothing_from_its_writer(
    peers: Peers, broker: BrokerProcess, program: Program
) -> None:
    """Invariant: of two handles for one target each has its own right, in whichever order they were asked for."""
    first = peers.elsewhere(A).peer(broker.path)
    reading = first.ask(m.Attach(program.pid, read_only=True)).target
    writing = first.ask(m.Join(program.pid)).target
    with pytest.raises(ubpx.PermissionRefused):
        first.ask(m.OpenClient(reading, "c"))
    client = first.ask(m.OpenClient(writing, "c")).client
    lease = first.ask(m.Probe(client, "answer", "count")).lease
    assert program.answer(1) == 2
    assert first.lease(lease).hits == 1
    first.ask(m.Leave(writing))
    for call in (m.Probe(client, "long_insn", "count"), m.TakeHold(client), m.WriteMemory(reading, 0, b"x")):
        with pytest.raises((ubpx.UsageError, ubpx.PermissionRefused)):
            first.ask(call)
    assert len(first.ask(m.Threads(reading))) == 2
