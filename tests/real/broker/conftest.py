"""Peers of a broker that speak the protocol themselves, and so can break it; and processes of other users.

Long, because pytest imports this file alone: nothing that it could be split into could be imported.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import msgspec
import pytest

import ubpx
from ubpx_froggy import listing, wire
from ubpx_froggy import messages as m
from ubpx_froggy.failures import as_error, as_failure

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

PATIENCE_S: Final = 30.0
UBPX: Final = (sys.executable, "-c", "from ubpx.cli import main; main()")

GIVES: Final[dict[type, Any]] = {
    m.Overview: list[m.TargetOverview],
    m.Join: m.TargetInfo,
    m.Attach: m.TargetInfo,
    m.Leave: None,
    m.Threads: list[int],
    m.ReadRegisters: m.Registers,
    m.ReadMemory: bytes,
    m.WriteMemory: None,
    m.Mappings: list[m.MappingInfo],
    m.Clients: list[m.NamedClient],
    m.Probepoints: list[m.ProbepointInfo],
    m.Holds: list[m.HoldInfo],
    m.Stops: int,
    m.Resume: None,
    m.Wait: int | None,
    m.OpenClient: m.ClientInfo,
    m.CloseClient: None,
    m.Probe: m.LeaseInfo,
    m.ProbeMany: m.GroupInfo,
    m.Watch: m.LeaseInfo,
    m.Leases: list[m.LeaseInfo],
    m.ReadLeases: list[m.LeaseInfo],
    m.Release: list[m.LeaseInfo],
    m.TakeHold: m.HoldInfo,
    m.ReleaseHold: None,
    m.Step: None,
    m.Catch: None,
}
"""What the reply to each request carries."""


class Refused(Exception):
    """The broker has refused the connection; the reason is the message."""


class Evicted(Exception):
    """The broker has thrown the peer out; the reason is the message."""


class Ended(Exception):
    """The broker has closed the connection, and said nothing."""


class Line:
    """One socket to a broker, message by message."""

    def __init__(self, path: str, types: Any) -> None:
        self.socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self._framer: Final = wire.Framer(wire.REPLY_BYTES)
        self._messages: Final[list[Any]] = []
        self._decode: Final = msgspec.msgpack.Decoder(types).decode
        try:
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def send(self, *messages: Any) -> Self:
        """Whole messages; bytes go as they are."""
        data = b"".join(each if isinstance(each, bytes) else wire.pack(each) for each in messages)
        self.socket.sendall(data)
        return self

    def recv(self, timeout: float = PATIENCE_S) -> Any:
        """The next message; None where the broker has closed. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing came in {timeout} s")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            finally:
                self.socket.settimeout(PATIENCE_S)
            if not data:
                return None
            self._messages.extend(self._decode(body) for body in self._framer.feed(data))
        return self._messages.pop(0)

    def greet(self, versions: tuple[int, ...] = (1,), channel: bytes | None = None) -> m.Welcome:
        """Say hello; raises Refused, Ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said already why it refuses
            self.send(m.Hello(list(versions), "a test", channel))
        answer = self.recv()
        if isinstance(answer, m.Refused):
            raise Refused(answer.reason)
        if answer is None:
            raise Ended
        assert isinstance(answer, m.Welcome), answer
        return answer

    def close(self) -> None:
        """Again: does nothing."""
        self.socket.close()


class Channel(Line):
    """A connection's channel."""

    def __init__(self, path: str, token: bytes) -> None:
        super().__init__(path, m.FromBrokerOnChannel)
        self._next_id = 0
        try:
            self.greet(channel=token)
        except BaseException:
            self.close()
            raise

    def ask(self, call: Any) -> Any:
        """As a handler does, while its hit is unanswered; Hits that come meanwhile are kept for ``recv``."""
        self._next_id += 1
        self.send(m.Ask(self._next_id, call))
        kept = []
        while isinstance(answer := self.recv(), m.Hit | m.Hook):
            kept.append(answer)
        self._messages[:0] = kept
        if answer is None:
            raise Ended
        assert answer.id == self._next_id
        return result(call, answer)

    def answer(self, hit: m.Hit | m.Hook, **fields: Any) -> None:
        """That the handler is done."""
        self.send(m.Answer(hit.call, **fields))


class Peer(Line):
    """A connection that has said hello."""

    def __init__(self, path: str, versions: tuple[int, ...] = (1,)) -> None:
        super().__init__(path, m.FromBroker)
        self.path: Final = path
        self.channel: Channel | None = None
        self.records: Final[list[tuple[bytes, int, float, bytes]]] = []
        """Hits in mode notify that have come."""
        self.dropped: Final[dict[bytes, int]] = {}
        self._next_id = 0
        try:
            self.welcome: Final = self.greet(versions)
        except BaseException:
            self.close()
            raise

    def open_channel(self) -> Channel:
        """To be asked at hits."""
        self.channel = Channel(self.path, self.welcome.channel)
        return self.channel

    def ask(self, call: Any, timeout: float = PATIENCE_S) -> Any:
        """What the broker gives; raises what it answers, Evicted, Ended, TimeoutError."""
        return self.reply(self.begin(call), call, timeout)

    def begin(self, call: Any) -> int:
        """Ask, and do not wait for the reply."""
        self._next_id += 1
        self.send(m.Ask(self._next_id, call))
        return self._next_id

    def reply(self, number: int, call: Any, timeout: float = PATIENCE_S) -> Any:
        """To a request that was begun; replies come in order."""
        answer = self.hear(timeout)
        if answer is None:
            raise Ended
        assert answer.id == number, answer
        return result(call, answer)

    def hear(self, timeout: float = PATIENCE_S) -> Any:
        """The next message that is not Hits; those are noted. Raises Evicted."""
        deadline = time.monotonic() + timeout
        while isinstance(message := self.recv(max(0.001, deadline - time.monotonic())), m.Hits):
            self.records.extend(message.records)
            self.dropped.update(message.dropped)
        if isinstance(message, m.Evicted):
            raise Evicted(message.reason)
        return message

    def end_of(self, timeout: float = PATIENCE_S) -> str:
        """Read to the end: why the broker has ended it, or "" where it does not say."""
        deadline = time.monotonic() + timeout
        try:
            while self.hear(max(0.001, deadline - time.monotonic())) is not None:
                pass
        except Evicted as eviction:
            assert self.recv() is None, "something came behind the eviction"
            return str(eviction)
        return ""

    def probe(self, place: str | int, *, pid: int | None = None, name: str = "peer", **options: Any) -> m.LeaseInfo:
        """Join, or attach to ``pid``; open a client, probe: the lease."""
        if options.get("mode", "sync") == "sync" and self.channel is None:
            self.open_channel()
        self.target: bytes = self.ask(m.Join() if pid is None else m.Attach(pid)).target
        self.client: bytes = self.ask(m.OpenClient(self.target, name)).client
        lease: m.LeaseInfo = self.ask(m.Probe(self.client, place, **options))
        return lease

    def until_gone(self, *names: str) -> None:
        """Until its target has no client of any of these names."""
        deadline = time.monotonic() + PATIENCE_S
        while set(names) & {each.name for each in self.ask(m.Clients(self.target))}:
            assert time.monotonic() < deadline, f"there still is one of {names}"
            time.sleep(0.01)

    def until_held(self, thread: int) -> None:
        """Until somebody holds that thread of its target: the broker does, for an answer that is late."""
        deadline = time.monotonic() + PATIENCE_S
        while thread not in {each.thread for each in self.ask(m.Holds(self.target))}:
            assert time.monotonic() < deadline, "nobody holds it"
            time.sleep(0.001)

    def note(self, target: bytes, client: bytes) -> None:
        """What ``probe`` notes too."""
        self.target, self.client = target, client

    def lease_client(self) -> bytes:
        """The client that ``probe`` has opened; of a Remote, too."""
        return self.client

    def lease(self, handle: bytes) -> m.LeaseInfo:
        """As it is now."""
        lease: m.LeaseInfo = self.ask(m.ReadLeases([handle]))[0]
        return lease

    def close(self) -> None:
        """The socket, and the channel's."""
        super().close()
        if self.channel is not None:
            self.channel.close()


def result(call: Any, answer: Any) -> Any:
    """What a Reply carries; raises what a Failed says."""
    if isinstance(answer, m.Failed):
        raise as_error(answer.failure)
    assert isinstance(answer, m.Reply), answer
    return msgspec.msgpack.decode(answer.value, type=GIVES[type(call)])


# Processes of other users -----------------------------------------------------------------------


class Elsewhere:
    """A forked child of the test, that may have become another user: keeps objects, and calls them as it is told.

    The interpreter may lie where only root can read, so nothing is executed there, and nothing imported.
    """

    def __init__(self, uid: int | None = None, gid: int | None = None) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid: Final = os.fork()
        if self.pid == 0:
            self._ours.close()
            _serve(theirs, uid, uid if gid is None else gid)
        theirs.close()
        self._ours.settimeout(PATIENCE_S + 5)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What it returns there; objects that stay there come as Remote. It must be one that can be pickled."""
        return self.ask(("call", function, arguments, options))

    def peer(self, path: str, **options: Any) -> Any:
        """A Peer there."""
        return self.ask(("make", "Peer", (path,), options))

    def begin(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """As ``call``, and ``outcome`` gives what it returns."""
        _write(self._ours, ("call", function, arguments, options))

    def ask(self, order: Any) -> Any:
        """One order, and its outcome."""
        _write(self._ours, order)
        return self.outcome()

    def outcome(self) -> Any:
        """Of an order; raises what it raised, as far as that can travel."""
        kind, value = _read(self._ours)
        if kind == "remote":
            return Remote(self, value)
        if kind == "failure":
            raise as_error(value)
        if kind == "raised":
            name, text = value
            raise _TRAVELS.get(name, RuntimeError)(text)
        return value

    def send_signal(self, number: int) -> None:
        """To the child itself."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill and reap it. Again: does nothing."""
        self._ours.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Remote:
    """Stands for an object of an Elsewhere: its methods are called there, its attributes are read there."""

    def __init__(self, home: Elsewhere, number: int) -> None:
        self._home: Final = home
        self._number: Final = number

    def __getattr__(self, name: str) -> Any:
        return self._home.ask(("get", self._number, name))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._home.ask(("run", self._number, arguments, options))


_PLAIN: Final = (str, bytes, int, float, bool, type(None), list, tuple, dict, msgspec.Struct)
_TRAVELS: Final[dict[str, type[Exception]]] = {
    each.__name__: each for each in (Refused, Evicted, Ended, TimeoutError, PermissionError, ConnectionRefusedError)
}


def _serve(connected: socket.socket, uid: int | None, gid: int | None) -> NoReturn:
    """In the child; whatever happens, pytest does not go on in it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor != connected.fileno():
                with contextlib.suppress(OSError):
                    os.close(descriptor)  # a copy of the test's, which would outlive it when it is closed there
        if uid is not None and gid is not None:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        objects: dict[int, Any] = {}
        while True:
            try:
                order = _read(connected)
            except EOFError:
                os._exit(0)
            try:
                value = _obey(order, objects)
                if isinstance(value, _PLAIN):
                    outcome = "value", value
                else:
                    objects[len(objects)] = value
                    outcome = "remote", len(objects) - 1
            except ubpx.UbpxError as error:
                outcome = "failure", as_failure(error)
            except Exception as error:  # noqa: BLE001 - it is raised again in the test
                if type(error).__name__ not in _TRAVELS:
                    os.write(2, traceback.format_exc().encode())
                outcome = "raised", (type(error).__name__, str(error))
            _write(connected, outcome)
    except BaseException:  # noqa: BLE001 - see above
        os.write(2, traceback.format_exc().encode())  # what sys.stderr writes to by now may be closed
    finally:
        os._exit(99)


def _obey(order: Any, objects: dict[int, Any]) -> Any:
    match order:
        case "call", function, arguments, options:
            return function(*arguments, **options)
        case "make", name, arguments, options:
            return {"Peer": Peer}[name](*arguments, **options)
        case "get", number, name:
            return getattr(objects[number], name)
        case "run", number, arguments, options:
            return objects[number](*arguments, **options)
    raise AssertionError(order)


def _write(connected: socket.socket, value: Any) -> None:
    data = pickle.dumps(value)
    connected.sendall(struct.pack("<Q", len(data)) + data)


def _read(connected: socket.socket) -> Any:
    (size,) = struct.unpack("<Q", _exactly(connected, 8))
    return pickle.loads(_exactly(connected, size))


def _exactly(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connected.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# Fixtures ---------------------------------------------------------------------------------------


@pytest.fixture
def start_broker(target_program: StartProgram, start_broker: Any) -> Any:
    """As everywhere, but a broker is ended before the programs are looked at."""
    return start_broker


class Peers:
    """Makes peers, and closes them; the names that tests need of this file."""

    Refused: Final = Refused
    Evicted: Final = Evicted
    Ended: Final = Ended
    connect: Final = Peer

    def __init__(self) -> None:
        self._ending: Final = contextlib.ExitStack()

    def __call__(self, broker: BrokerProcess | str, versions: tuple[int, ...] = (1,)) -> Peer:
        """A connection that has said hello."""
        peer = Peer(broker if isinstance(broker, str) else broker.path, versions)
        self._ending.callback(peer.close)
        return peer

    def line(self, broker: BrokerProcess | str, types: Any = m.FromBroker) -> Line:
        """A connection that has said nothing yet."""
        line = Line(broker if isinstance(broker, str) else broker.path, types)
        self._ending.callback(line.close)
        return line

    def elsewhere(self, uid: int | None = None, gid: int | None = None) -> Elsewhere:
        """A forked child."""
        child = Elsewhere(uid, gid)
        self._ending.callback(child.end)
        return child

    def close(self) -> None:
        """All."""
        self._ending.close()


@pytest.fixture
def peers(nothing_is_left: None) -> Iterator[Peers]:
    """``peers(broker)``: a Peer; each is closed after the test."""
    made = Peers()
    yield made
    made.close()


@pytest.fixture
def still_serves() -> Callable[..., None]:
    """``still_serves(broker, program)``: it serves a good client of the program (echo.c), and can be listed."""

    def check(broker: BrokerProcess, program: Program, place: str = "answer") -> None:
        with contextlib.closing(Peer(broker.path)) as good:
            lease = good.probe(place, name="good", mode="notify", pid=program.pid)
            for value in range(3):
                assert program.answer(value) == value + 1
            assert [each.hits for each in good.ask(m.Release([lease.lease]))] == [3]
            [listed] = listing.look(Path(broker.path))
            assert (listed.pid, listed.problem) == (broker.pid, None)
            [target] = [each for each in listed.targets if each.pid == program.pid]
            assert "good" in [each.name for each in target.clients]

    return check


class Outcome:
    """What a command that has ended said."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr

    def complaint(self, status: int) -> str:
        """The one line that it says, as every error is told; it ends with this status, and says nothing else."""
        assert (self.status, self.stdout) == (status, ""), (self.status, self.stdout, self.stderr)
        assert self.stderr.count("\n") == 1, self.stderr
        said = self.stderr.rstrip("\n")
        assert said.startswith("ubpx: ")
        assert said.isprintable()
        assert "; " in said, "it says what to do next"
        return said.removeprefix("ubpx: ")


@pytest.fixture
def run_ubpx(nothing_is_left: None) -> Callable[..., Outcome]:
    """``run_ubpx(*arguments, **popen_options)``: the command line, to its end."""

    def run(*arguments: str, timeout: float = 1.5 * PATIENCE_S, **options: Any) -> Outcome:
        options = {"stdin": subprocess.DEVNULL} | options
        done = subprocess.run(
            [*UBPX, *arguments], capture_output=True, text=True, timeout=timeout, check=False, **options
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def memory_of() -> Callable[[int], int]:
    """``memory_of(pid)``: its resident memory, in bytes."""

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    return resident


@pytest.fixture
def readable() -> Callable[[socket.socket, float], bool]:
    """``readable(socket, seconds)``: whether something comes, or the end, in that time."""

    def wait(connected: socket.socket, timeout: float) -> bool:
        return bool(select.select([connected], [], [], timeout)[0])

    return wait
