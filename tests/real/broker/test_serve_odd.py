"""``ubpx serve`` and ``ubpx list`` in odd surroundings: what is handed over, or in the way, and who does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import ubpx
from ubpx_froggy import listing, wire
from ubpx_froggy import messages as m
from ubpx_froggy.broker import serve as serving
from ubpx_froggy.client import dialling
from ubpx_froggy.directory import announce, open_directory

if TYPE_CHECKING:
    from tests.real.broker.conftest import Outcome, Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

USER: Final = 54321
PATIENCE_S: Final = 30.0
RunUbpx = Callable[..., "Outcome"]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short name; the run directory is in it."""
    with tempfile.TemporaryDirectory(prefix="ubpx-") as name:
        monkeypatch.setenv("UBPX_RUN_DIRECTORY", f"{name}/run")
        yield Path(name)


def left_in(place: Path) -> list[str]:
    """Entries and sockets that are there."""
    return [str(each) for each in place.rglob("*") if each.suffix == ".json" or each.is_socket()]


# The command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    ["--max-stop nan", "--max-stop -1", "--max-stop 0", "--max-stop inf", "--deadline inf", "--deadline -1", "--run",
     "--max-bytes 10", "--max-connections 0", "--max-clients -1", "-p -5", "-p 99999999999"],
)  # fmt: skip
def test_limits_that_are_none_are_refused(options: str, place: Path, program: Program, run_ubpx: RunUbpx) -> None:
    """Invariant: one line, exit status 2 (1 for a pid that no process can have), and the program is not touched."""
    before = program.maps()
    words = options.split() if options.startswith("-p") else [*options.split(), "-p", str(program.pid)]
    run_ubpx("serve", "--socket", str(place / "s"), *words).complaint(1 if options.endswith("999") else 2)
    program.assert_untouched(before)
    assert left_in(place) == []


def test_its_own_ancestors_are_not_traced(place: Path, run_ubpx: RunUbpx) -> None:
    """Invariant: neither a broker itself nor who has started it: they would wait for each other."""
    assert "ancestor" in run_ubpx("serve", "--socket", str(place / "s"), "-p", str(os.getpid())).complaint(2)
    script = 'exec "$@" -p $$'  # the pid of the shell is the broker's
    command = ["sh", "-c", script, "sh", sys.executable, "-c", "from ubpx.cli import main; main()", "serve"]
    done = subprocess.run(
        [*command, "--socket", str(place / "s")], capture_output=True, text=True, timeout=45, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert left_in(place) == []


# Where it listens -------------------------------------------------------------------------------------


def test_a_socket_that_another_has_put_there_is_left(
    place: Path, start_broker: Callable[..., BrokerProcess], peers: Peers
) -> None:
    """Invariant: who ends removes its own socket alone, not one that took its place."""
    path = str(place / "s")
    first = start_broker("--socket", path)
    assert f"at {path}" in first.greeting
    Path(path).unlink()
    second = start_broker("--socket", path)
    assert f"at {path}" in second.greeting
    first.end()
    assert peers(path).welcome.broker_pid == second.pid
    second.end()
    assert not Path(path).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which root alone may")
@pytest.mark.parametrize("what", ["socket's directory", "run directory", "another's run directory"])
def test_what_another_user_owns_is_not_used(what: str, place: Path, peers: Peers) -> None:
    """Invariant: for a user without privileges: refused, by name, and nothing is left."""
    place.chmod(0o755)
    own = place / "own"
    own.mkdir()
    os.chown(own, USER, USER)
    (place / "root").mkdir(mode=0o755)
    run = {"socket's directory": own / "run", "run directory": place / "root" / "run"}.get(what, place / "root")
    path = place / "root" / "s" if what == "socket's directory" else own / "s"
    text = peers.elsewhere(USER).call(serve_once, str(run), str(path))
    assert str(path if what == "socket's directory" else run) in text
    assert "; " in text
    assert left_in(place) == []


def serve_once(run: str, path: str) -> str:
    """How it is refused."""
    os.environ["UBPX_RUN_DIRECTORY"] = run
    try:
        serving.serve(serving.ServeRequest(path=Path(path)), print)
    except ubpx.UsageError as error:
        return str(error)
    return "it has served"


def handed_over(place: Path, give: str, **variables: str) -> tuple[int, str]:
    """A broker that systemd has given the descriptor 3 that the Python code ``give`` opens."""
    code = f"""
import os, socket, sys
place = {str(place)!r}
{give}
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.environ.update({variables!r})
os.execv(sys.executable, [sys.executable, "-c", "from ubpx.cli import main; main()", "serve"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=45, check=False)
    return done.returncode, done.stderr


GIVEN: Final = "s.listen(); os.dup2(s.fileno(), 3, inheritable=True)"
ODD: Final = {
    "nothing": "os.closerange(3, 10)",
    "a file": "os.dup2(os.open('/dev/null', os.O_RDWR), 3, inheritable=True)",
    "a TCP socket": f"s = socket.socket(); s.bind(('127.0.0.1', 0)); {GIVEN}",
    "a datagram socket": (
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(place + '/s'); "
        "os.dup2(s.fileno(), 3, inheritable=True)"
    ),
    "a socket that does not listen": (
        "s = socket.socket(socket.AF_UNIX); s.bind(place + '/s'); os.dup2(s.fileno(), 3, inheritable=True)"
    ),
    "a connection": (
        "s, t = socket.socketpair(); os.set_inheritable(t.fileno(), True); os.dup2(s.fileno(), 3, inheritable=True)"
    ),
    "an abstract socket": f"s = socket.socket(socket.AF_UNIX); s.bind('\\0ubpx-odd-' + str(os.getpid())); {GIVEN}",
}


@pytest.mark.parametrize("give", ODD.values(), ids=ODD)
def test_what_systemd_hands_over_must_be_a_listening_unix_socket(give: str, place: Path) -> None:
    """Invariant: anything else is refused in one line that says what the unit should have."""
    status, said = handed_over(place, give)
    assert status in {1, 2}, said
    assert said.count("\n") == 1, said
    assert said.startswith("ubpx: systemd hands over")
    assert "ListenStream=" in said
    assert [each for each in left_in(place) if each.endswith(".json")] == []


@pytest.mark.parametrize("count", ["0", "2", "", "x", "-1"])
def test_systemd_hands_over_one_socket(count: str, place: Path) -> None:
    status, said = handed_over(
        place, f"s = socket.socket(socket.AF_UNIX); s.bind(place + '/s'); {GIVEN}", LISTEN_FDS=count
    )
    assert status == 2, said
    assert said.startswith("ubpx: systemd hands over")
    assert said.count("\n") == 1


def test_what_was_handed_to_another_process_is_none_of_ours(
    place: Path, start_broker: Callable[..., BrokerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a broker that has inherited LISTEN_FDS of its starter listens where it was told to."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    broker = start_broker()
    assert broker.greeting == f"ubpx: serving no process yet at {broker.path}"


# Who lists --------------------------------------------------------------------------------------------


class Mute:
    """What has announced itself as a broker, takes connections, and says so much at once, so much when asked."""

    def __init__(self, path: Path, says: bytes, answers: bytes) -> None:
        self._listening: Final = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._says: Final = says
        self._answers: Final = answers
        self._taken: Final[list[socket.socket]] = []
        self._thread: Final = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = self._listening.accept()
                self._taken.append(taken)
                taken.sendall(self._says)
                heard = b""
                while self._answers and b"overview" not in heard and (part := taken.recv(4096)):
                    heard += part
                taken.sendall(self._answers)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_S)
        for each in self._taken:
            each.close()


WELCOME: Final = wire.pack(m.Welcome(1, "mute", 1, bytes(16)))


SPEECHES: Final = {
    "nothing": (b"", b"", " 2 s"),
    "welcome": (WELCOME, b"", " 2 s"),
    "nonsense": (WELCOME, wire.pack(m.Reply(1, m.as_raw([[4711]]))), "malformed message"),
}


@pytest.mark.parametrize("speech", SPEECHES)
def test_a_broker_that_does_not_answer_is_told_of_and_not_waited_for(
    speech: str,
    place: Path,
    start_broker: Callable[..., BrokerProcess],
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Invariant: the others are listed all the same, in bounded time."""
    monkeypatch.setattr(listing, "PATIENCE_S", 2.0)
    monkeypatch.setattr(dialling, "PATIENCE_S", 2.0)
    broker = start_broker("-p", str(program.pid))
    says, answers, told = SPEECHES[speech]
    mute = Mute(place / "mute", says, answers)
    try:
        announce(open_directory(for_everybody=False), str(place / "mute"))
        began = time.monotonic()
        found = {each.pid: each for each in listing.look(None)}
        assert time.monotonic() - began < PATIENCE_S
    finally:
        mute.close()
    assert [each.pid for each in found[broker.pid].targets] == [program.pid]
    problem = found[os.getpid()].problem
    assert problem is not None
    assert told in problem
    assert "does not answer" in listing.as_text(list(found.values()))


@pytest.mark.torture
def test_a_broker_that_stands_still_is_told_of(
    start_broker: Callable[..., BrokerProcess], target_program: StartProgram, run_ubpx: RunUbpx
) -> None:
    """Invariant: so for the command, with the time that it really has."""
    programs = [target_program("echo") for _ in range(2)]
    still, _ = (start_broker("-p", str(each.pid)) for each in programs)
    os.kill(still.pid, signal.SIGSTOP)
    try:
        outcome = run_ubpx("list")
        assert outcome.status == 0
        assert f"process {programs[1].pid}" in outcome.stdout
        assert "does not answer" in outcome.stdout
        assert f"process {programs[0].pid}" not in outcome.stdout
    finally:
        os.kill(still.pid, signal.SIGCONT)
    assert f"process {programs[0].pid}" in run_ubpx("list", "--socket", still.path).stdout


HOSTILE: Final = ("\x1b[2J\x1b]0;owned\x07", "a\nbroker 1 at /fake", "\u202egnp.exe", "tab\there", "\x9b31m", "\x00")
ODD_NAMES: Final = ("broker 1 at /fake", "  process 1: init", "'quoted'", "a\\nb", "\u00fc", "\U0001f980")


def test_hostile_names_are_not_obeyed_by_a_terminal(
    peers: Peers, start_broker: Callable[..., BrokerProcess], run_ubpx: RunUbpx, target_program: StartProgram
) -> None:
    """Invariant: a client has no name that a terminal obeys; command lines reach it escaped, on one line each."""
    argv = [str(target_program.build("echo")), "0", "".join(HOSTILE).replace("\0", "") + "\nprocess 1: init"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hostile:
        try:
            assert hostile.stdout is not None
            assert hostile.stdout.readline() == b"ready\n"
            broker = start_broker("-p", str(hostile.pid))
            peer = peers(broker)
            target = peer.ask(m.Join()).target
            for name in HOSTILE:
                with pytest.raises(ubpx.UsageError):
                    peer.ask(m.OpenClient(target, name))
            for name in ODD_NAMES:
                client = peer.ask(m.OpenClient(target, name)).client
                peer.ask(m.Probe(client, "answer", "count"))
            peer.ask(m.TakeHold(client))
            text = run_ubpx("list", "--socket", broker.path).stdout  # root's directory may have more
            assert all(line.isprintable() for line in text.split("\n"))
            starts = [line.split(" ")[: len(line) - len(line.lstrip()) + 1][-1] for line in text.splitlines()]
            assert [starts.count(each) for each in ("broker", "process", "client")] == [1, 1, len(ODD_NAMES)]
            assert "\\x1b[2J" in text
            said = run_ubpx("list", "--json").stdout
            assert said.isascii()
            [listed] = [each for each in json.loads(said)["brokers"] if each["pid"] == broker.pid]
            assert [each["name"] for each in listed["targets"][0]["clients"]] == list(ODD_NAMES)
            assert listed["targets"][0]["command"] == " ".join(argv)
        finally:
            hostile.kill()
            hostile.communicate(timeout=PATIENCE_S)
