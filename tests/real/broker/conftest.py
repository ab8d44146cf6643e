"""What tests of brokers start with: peers and processes of other users, the command line, and what must be so after."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.conftest import load
from ubpx_froggy import listing
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

load("real.broker.peers")
load("real.broker.users")
from tests.real.broker.peers import PATIENCE_S, Ended, Evicted, Line, Peer, Refused  # noqa: E402 - loaded just now
from tests.real.broker.users import Elsewhere  # noqa: E402 - loaded just now

StartBroker = Callable[..., "BrokerProcess"]
StillServes = Callable[..., None]
UBPX: Final = (sys.executable, "-c", "from ubpx.cli import main; main()")


@pytest.fixture
def start_broker(target_program: StartProgram, start_broker: Any) -> Any:
    """As everywhere, but a broker is ended before the programs are looked at."""
    return start_broker


@pytest.fixture
def program(target_program: StartProgram) -> Program:
    """Answers lines, and calls busy() all the time."""
    return target_program("echo", 1)


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
