"""Who is at the other end of a socket, and may talk to this broker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from typing import Final

import pytest

import ubpx
from ubpx_froggy.broker.access import NOBODY_KNOWN, Peer, Right, check_peer, check_target, peer_of

USER: Final = 54321
OTHER: Final = 54322
PATIENCE_S: Final = 30

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="starts processes of other users, which root alone may")


def peer(uid: int = USER, gid: int = USER) -> Peer:
    return Peer(uid=uid, gid=gid, pid=4711)


def test_rights_are_ordered() -> None:
    assert Right.LOOK < Right.READ < Right.CHANGE


def test_a_peer_is_who_has_made_the_pair() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == Peer(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())


CONNECTS: Final = """
import os, socket, sys
user = int(sys.argv[2])
os.setresgid(1, 54321, 0)
os.setresuid(1, user, 0)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    os.setresuid(0, 0, 0)
    print("connected", flush=True)
    sys.stdin.read()
"""


@needs_root
@pytest.mark.parametrize("uid", [USER, 4_000_000_000])
def test_a_peer_is_who_has_connected(uid: int) -> None:
    """Invariant: the effective ids at the time of the connect count, and numbers beyond 2^31 are no negative ones."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        os.chmod(directory, 0o755)
        path = f"{directory}/socket"
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        listener.settimeout(PATIENCE_S)
        program = subprocess.Popen(
            [sys.executable, "-c", CONNECTS, path, str(uid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "connected\n"
            connection, _ = listener.accept()
            with connection:
                assert peer_of(connection) == Peer(uid=uid, gid=USER, pid=program.pid)
        finally:
            program.kill()
            program.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_socket_without_a_peer_is_nobodys(family: socket.AddressFamily) -> None:
    """Invariant: what says nothing of its peer is refused, by a broker of root too."""
    with socket.socket(family) as lonely:
        found = peer_of(lonely)
    assert (found.uid, found.gid) == (NOBODY_KNOWN, NOBODY_KNOWN)
    with pytest.raises(ubpx.PermissionRefused, match="does not say who it is"):
        check_peer(found)
    with pytest.raises(ubpx.PermissionRefused, match="does not say who it is"):
        check_target(found, os.getpid())


@pytest.mark.parametrize("uid", [0, USER, OTHER])
def test_a_broker_of_root_talks_with_everybody(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_peer(peer(uid))
    for nobody in (peer(NOBODY_KNOWN, uid), peer(uid, NOBODY_KNOWN)):
        with pytest.raises(ubpx.PermissionRefused):
            check_peer(nobody)


def test_a_broker_of_a_user_talks_with_that_user_and_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    check_peer(peer(USER))
    check_peer(peer(USER, gid=OTHER))
    check_peer(peer(0))
    cause = f"belongs to user {USER} and serves that user and root alone, not user {OTHER}"
    with pytest.raises(ubpx.PermissionRefused, match=cause) as refusal:
        check_peer(peer(OTHER, gid=USER))
    assert refusal.value.pid == 4711
    assert "ubpx serve" in refusal.value.remedy


NAMESPACED: Final = """
from ubpx import PermissionRefused
from ubpx_froggy.broker.access import Peer, check_peer
for uid, gid in ((0, 0), (65534, 0), (0, 65534)):
    try:
        check_peer(Peer(uid=uid, gid=gid, pid=1))
        print("allowed")
    except PermissionRefused as refusal:
        print("refused")
"""


@needs_root
def test_the_number_that_stands_for_all_unknown_users_is_nobodys_in_a_user_namespace() -> None:
    """Invariant: 65534 is a user like any other where all have their numbers, and refused where not."""
    check_peer(peer(65534, 65534))
    tried = subprocess.run(["unshare", "-U", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine makes no user namespaces: {tried.stderr}")
    outcome = subprocess.run(
        ["unshare", "-U", "--map-root-user", sys.executable, "-c", NAMESPACED],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert outcome.stdout.split() == ["allowed", "refused", "refused"], outcome.stderr
