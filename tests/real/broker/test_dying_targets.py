"""A program that is killed between any two messages: every later request is answered, and by an error that says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.broker.peers import Peer
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import StartProgram

PATIENCE_S: Final = 30.0


class Session:
    """One peer's session with one program, step by step; a step that fails leaves out what it would have given."""

    def __init__(self, peer: Peer, pid: int) -> None:
        self.peer: Final = peer
        self.pid: Final = pid
        self.target = self.client = self.lease = self.notified = self.watch = self.hold = self.held = bytes(16)
        self.thread = pid
        self.address = 4096

    def ask(self, call: Any) -> Any:
        return self.peer.ask(call)

    def attach(self) -> None:
        self.target = self.ask(m.Attach(self.pid)).target

    def threads(self) -> None:
        self.thread = max(self.ask(m.Threads(self.target)), default=self.pid)

    def mappings(self) -> None:
        mapped = self.ask(m.Mappings(self.target))
        self.address = next(each.end for each in mapped if each.path == "[stack]") - 4096

    def read(self) -> None:
        assert len(self.ask(m.ReadMemory(self.target, self.address, 64))) == 64

    def write(self) -> None:
        self.ask(m.WriteMemory(self.target, self.address, bytes(64), through_protection=True))

    def open(self) -> None:
        self.client = self.ask(m.OpenClient(self.target, "c", 0, ["ubpx_signal", "ubpx_thread_stepped"])).client

    def probe(self) -> None:
        self.lease = self.ask(m.Probe(self.client, "answer", "sync", persistent=True)).lease

    def notify(self) -> None:
        self.notified = self.ask(m.Probe(self.client, "answer", "notify")).lease

    def probe_many(self) -> None:
        self.ask(m.ProbeMany(self.client, ["answer", "long_insn"], "count"))

    def glob(self) -> None:
        self.ask(m.ProbeMany(self.client, "*_insn", "count"))

    def pend(self) -> None:
        self.ask(m.Probe(self.client, "nosuchmodule:f", "count"))

    def watched(self) -> None:
        self.watch = self.ask(m.Watch(self.client, self.address, "count")).lease

    def overview(self) -> None:
        self.ask(m.Overview())

    def leases(self) -> None:
        self.ask(m.Leases(self.client))

    def read_leases(self) -> None:
        self.ask(m.ReadLeases([self.lease, self.notified]))

    def probepoints(self) -> None:
        self.ask(m.Probepoints(self.target))

    def hold_thread(self) -> None:
        self.hold = self.ask(m.TakeHold(self.client, self.thread)).hold

    def holds(self) -> None:
        self.ask(m.Holds(self.target))

    def registers(self) -> None:
        self.ask(m.ReadRegisters(self.target, self.thread))

    def release_thread(self) -> None:
        self.ask(m.ReleaseHold(self.hold, {"r15": 0}))

    def hold_process(self) -> None:
        self.held = self.ask(m.TakeHold(self.client)).hold

    def release_process(self) -> None:
        self.ask(m.ReleaseHold(self.held))

    def catch(self) -> None:
        self.ask(m.Catch(self.client, "signals", [signal.SIGUSR1]))

    def clients(self) -> None:
        self.ask(m.Clients(self.target))

    def stops(self) -> None:
        self.ask(m.Stops(self.target))

    def resume(self) -> None:
        self.ask(m.Resume(self.target))

    def join_again(self) -> None:
        self.ask(m.Join(self.pid))

    def glance(self) -> None:
        self.ask(m.Wait(self.target, 0.0))

    def release(self) -> None:
        self.ask(m.Release([self.lease, self.watch]))

    def close(self) -> None:
        self.ask(m.CloseClient(self.client))

    def open_again(self) -> None:
        self.ask(m.OpenClient(self.target, "d"))

    def leave(self) -> None:
        self.ask(m.Leave(self.target))


STEPS: Final = (
    Session.attach, Session.threads, Session.mappings, Session.read, Session.write, Session.open, Session.probe,
    Session.notify, Session.probe_many, Session.glob, Session.pend, Session.watched, Session.overview, Session.leases,
    Session.read_leases, Session.probepoints, Session.hold_thread, Session.holds, Session.registers,
    Session.release_thread, Session.hold_process, Session.release_process, Session.catch, Session.clients,
    Session.stops, Session.resume, Session.join_again, Session.glance, Session.release, Session.close,
    Session.open_again, Session.leave,
)  # fmt: skip
NEEDS_LIFE: Final = frozenset(
    {
        Session.attach, Session.mappings, Session.read, Session.write, Session.open, Session.probe, Session.notify,
        Session.probe_many, Session.glob, Session.pend, Session.watched, Session.hold_thread, Session.registers,
        Session.hold_process, Session.open_again,
    }
)  # fmt: skip
"""What cannot be done with a process that has ended."""


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    return start_broker("--deadline", "20")


def test_the_session_is_one(peers: Peers, broker: BrokerProcess, target_program: StartProgram) -> None:
    """Invariant: with a program that lives each of its steps is done, so what fails below fails for its death."""
    program = target_program("echo", 1)
    peer = peers(broker)
    peer.open_channel()
    session = Session(peer, program.pid)
    for step in STEPS:
        step(session)
    assert program.answer(1) == 2


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "ending"])
def test_a_program_that_dies_between_any_two_requests(
    *,
    ended: bool,
    peers: Peers,
    broker: BrokerProcess,
    target_program: StartProgram,
    still_serves: Callable[..., None],
) -> None:
    """Invariant: whichever step it dies behind, each later one is done or fails by a clear error, and none hangs."""
    for number in range(1, len(STEPS)):
        program = target_program("echo", 1)
        peer = peers(broker)
        peer.open_channel()
        session = Session(peer, program.pid)
        for step in STEPS[:number]:
            step(session)
        os.kill(program.pid, signal.SIGKILL)
        if ended:
            assert peer.ask(m.Wait(session.target)) == -signal.SIGKILL
            assert program.wait() == -signal.SIGKILL
        for step in STEPS[number:]:
            told = f"killed behind {STEPS[number - 1].__name__}: {step.__name__}"
            try:
                step(session)
            except ubpx.InternalError as error:
                pytest.fail(f"{told}: {error}")
            except (ubpx.TargetGone, ubpx.UsageError, ubpx.NoSuchProcess, ubpx.MemoryFault):
                pass
            else:
                assert not (ended and step in NEEDS_LIFE), told
        if not ended:
            assert program.wait() == -signal.SIGKILL
        assert peer.ask(m.Overview()) is not None
        peer.close()
    bystander = target_program("echo", 1)
    still_serves(broker, bystander)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_program_that_dies_while_a_handler_runs(
    *,
    late: bool,
    peers: Peers,
    broker: BrokerProcess,
    target_program: StartProgram,
    still_serves: Callable[..., None],
) -> None:
    """Invariant: what the handler asks then is refused clearly, its answer is taken, and the connection lives."""
    peer = peers(broker)
    channel = peer.open_channel()
    for _ in range(5):
        program = target_program("echo", 1)
        lease = peer.probe("answer", pid=program.pid)
        program.tell("1\n")
        hit = channel.recv()
        if late:
            until = time.monotonic() + PATIENCE_S
            while not any(each.holds for each in peer.ask(m.Overview()) if each.pid == program.pid):
                assert time.monotonic() < until
        os.kill(program.pid, signal.SIGKILL)
        for call in (
            m.ReadMemory(peer.target, 4096, 8),
            m.ReadRegisters(peer.target, program.pid),
            m.Mappings(peer.target),
            m.Probe(peer.client, "long_insn", "count"),
            m.TakeHold(peer.client, program.pid),
            m.TakeHold(peer.client),
        ):
            try:
                channel.ask(call)
            except ubpx.InternalError as error:
                pytest.fail(f"{call}: {error}")
            except ubpx.UbpxError:
                pass
        channel.answer(hit, registers={"rdi": 7}, verdict=2)
        assert peer.ask(m.Wait(peer.target)) == -signal.SIGKILL
        assert program.wait() == -signal.SIGKILL
        assert peer.lease(lease.lease).hits == 1
        peer.ask(m.Leave(peer.target))
    still_serves(broker, target_program("echo", 1))


def test_a_list_is_made_while_programs_end(peers: Peers, broker: BrokerProcess, target_program: StartProgram) -> None:
    """Invariant: a program that ends just then is left out, or shown as ended; the others are shown in any case."""
    peer, looker = peers(broker), peers(broker)
    stays = target_program("echo", 1)
    peer.probe("answer", pid=stays.pid, mode="count")
    for number in range(30):
        program = target_program("echo", 2)
        target = peer.ask(m.Attach(program.pid)).target
        client = peer.ask(m.OpenClient(target, "c")).client
        peer.ask(m.Probe(client, "busy", "count"))
        os.kill(program.pid, signal.SIGKILL)
        for _ in range(number % 10):
            assert stays.pid in [each.pid for each in looker.ask(m.Overview())]
        assert program.wait() == -signal.SIGKILL
        peer.ask(m.Leave(target))
    [listed] = looker.ask(m.Overview())
    assert [each.name for each in listed.clients] == ["peer"]


def test_persistent_leases_end_with_their_program(
    peers: Peers,
    start_broker: Callable[..., BrokerProcess],
    target_program: StartProgram,
    eventually: Callable[..., bool],
) -> None:
    """Invariant: an absent client keeps neither a program that has ended in the list, nor a broker from its end."""
    program = target_program("echo", 1)
    broker = start_broker("-p", str(program.pid))
    left = peers(broker)
    left.probe("answer", name="left", mode="count", persistent=True)
    left.close()
    assert program.tell("x 3\n").wait() == 3
    assert eventually(lambda: broker.popen.poll() is not None, timeout=10)
    assert broker.popen.wait() == 0


def test_a_program_that_is_replaced_under_its_pid_is_not_the_old_one(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram
) -> None:
    """Invariant: handles of a process that has ended name nothing of a later one, and an attach is a new one."""
    peer = peers(broker)
    first = target_program("echo", 1)
    old = peer.ask(m.Attach(first.pid)).target
    os.kill(first.pid, signal.SIGKILL)
    assert peer.ask(m.Wait(old)) == -signal.SIGKILL
    first.wait()
    for call in (m.Mappings(old), m.OpenClient(old, "c"), m.ReadMemory(old, 4096, 8), m.Attach(first.pid)):
        with pytest.raises((ubpx.TargetGone, ubpx.NoSuchProcess, ubpx.MemoryFault, ubpx.UsageError)):
            peer.ask(call)
    second = target_program("echo", 1)
    new = peer.ask(m.Attach(second.pid)).target
    assert len(peer.ask(m.Threads(new))) == 2
    assert peer.ask(m.Threads(old)) == []
    assert second.answer(1) == 2
