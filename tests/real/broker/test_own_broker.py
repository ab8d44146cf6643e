"""Brokers that do not serve everybody: a user's own, and root's without --all-users."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.broker.users import A, B, as_user, open_to_all
from ubpx_froggy import directory
from ubpx_froggy import messages as m
from ubpx_froggy.broker.serve import ServeRequest, serve

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which root alone may")


@pytest.fixture
def program(target_program: StartProgram) -> Program:
    """User A's."""
    return as_user(target_program, A, "echo", 1)


def test_a_broker_of_root_serves_others_only_if_it_was_told_to(
    peers: Peers, start_broker: Callable[..., BrokerProcess], program: Program
) -> None:
    """Invariant: without --all-users it is the peer's uid that is refused, whatever the socket's mode."""
    broker = open_to_all(start_broker())
    for uid in (A, B):
        with pytest.raises(PermissionError):
            peers.elsewhere(uid).peer(broker.path)
    Path(broker.path).chmod(0o666)
    for uid in (A, B):
        with pytest.raises(peers.Refused, match=f"user {uid}"):
            peers.elsewhere(uid).peer(broker.path)
    assert peers(broker).ask(m.Attach(program.pid)).pid == program.pid


@pytest.fixture
def everything_loaded(target_program: StartProgram) -> None:
    """All modules that a broker needs: what is forked from here cannot read them any more."""
    with ubpx.attach(target_program("echo").pid) as target:
        target.client("c").probe("answer", lambda _: None)
        target.client("d").probe_many("answer*", lambda _: None)


@pytest.fixture
def own_broker(
    peers: Peers, program: Program, everything_loaded: None, eventually: Callable[..., bool]
) -> Iterator[Path]:
    """A's, in a process of A's; its socket."""
    with tempfile.TemporaryDirectory(prefix="ubpx-") as directory:
        os.chown(directory, A, A)
        path = Path(directory, "run", "socket")
        child = peers.elsewhere(A)
        child.begin(serve_alone, directory, str(path), program.pid)
        assert eventually((path.parent / "processes" / f"{program.pid}.json").exists)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        yield path
        child.send_signal(signal.SIGTERM)
        [said] = child.outcome()
        assert said.startswith(f"serving process {program.pid} at {path}")


def serve_alone(directory: str, path: str, pid: int) -> list[str]:
    os.environ["UBPX_RUN_DIRECTORY"] = f"{directory}/run"
    said: list[str] = []
    serve(ServeRequest(pids=[pid], path=Path(path)), said.append)
    return said


def test_a_users_own_broker_is_out_of_reach_of_others(
    peers: Peers, own_broker: Path, program: Program, tmp_path: Path
) -> None:
    """Invariant: B does not get to the socket and, where it lies open, is refused for who B is; A and root are not."""
    with pytest.raises(PermissionError):
        peers.elsewhere(B).peer(str(own_broker))
    first = peers.elsewhere(A).peer(str(own_broker))
    lease = first.probe("answer", mode="count")
    with tempfile.TemporaryDirectory(prefix="ubpx-") as open_directory:
        os.chmod(open_directory, 0o755)
        moved = Path(open_directory, "socket")
        own_broker.rename(moved)
        moved.chmod(0o666)
        for number in range(3):
            with pytest.raises(peers.Refused, match=f"belongs to user {A} and serves that user and root alone"):
                peers.elsewhere(B).peer(str(moved))
            assert program.answer(number) == number + 1
        assert peers.elsewhere(A).peer(str(moved)).ask(m.Join()).pid == program.pid
        assert peers(str(moved)).ask(m.Join()).pid == program.pid
        moved.rename(own_broker)
    assert first.lease(lease.lease).hits == 3


def test_a_users_own_broker_traces_what_the_user_may(
    peers: Peers, own_broker: Path, target_program: StartProgram
) -> None:
    """Invariant: for a broker without privileges the kernel decides; for root as its peer too."""
    roots = target_program("echo")
    others = as_user(target_program, B, "echo")
    for peer in (peers.elsewhere(A).peer(str(own_broker)), peers(str(own_broker))):
        for program in (roots, others):
            with pytest.raises(ubpx.PermissionRefused):
                peer.ask(m.Attach(program.pid))
            assert program.answer(1) == 2


def test_a_users_own_broker_is_in_no_list_of_others(peers: Peers, own_broker: Path, program: Program) -> None:
    """Invariant: B neither finds it by its process nor lists it, even where B is told the directory."""
    run = str(own_broker.parent)
    assert peers.elsewhere(A).call(found_in, run, program.pid) == (str(own_broker), 1)
    assert peers.elsewhere(B).call(found_in, run, program.pid) == (None, 0)


def found_in(run: str, pid: int) -> tuple[str | None, int]:
    os.environ["UBPX_RUN_DIRECTORY"] = run
    found = directory.find_broker(pid)
    return (None if found is None else str(found.socket)), len(directory.brokers())
