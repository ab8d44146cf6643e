"""The socket that a broker listens on: made where nothing is in the way, or handed over by systemd."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ubpx import UsageError

LONGEST_PATH: Final = 107
"""Bytes of a Unix socket's path; unix(7) has 108 with the terminating zero."""
_FIRST_ACTIVATED: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
_BACKLOG: Final = 1024


def activated(environment: Mapping[str, str] = os.environ) -> socket.socket | None:
    """The socket that systemd has opened for us, if it has; raises UsageError for one of another kind."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    if count != "1":
        raise UsageError(f"systemd hands over {count or 'no'} sockets; give the unit one ListenStream=")
    try:
        given = socket.socket(fileno=_FIRST_ACTIVATED)
    except OSError as error:
        raise UsageError(f"systemd hands over no socket ({error.strerror}); give the unit ListenStream=/PATH") from None
    listens = given.family == socket.AF_UNIX and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    name = given.getsockname()
    if given.type != socket.SOCK_STREAM or not listens or not isinstance(name, str) or not name:  # bytes: abstract
        given.close()
        raise UsageError("systemd hands over what is no Unix stream socket; give the unit ListenStream=/PATH")
    given.set_inheritable(False)
    return given


def listen_at(path: Path, *, for_everybody: bool) -> socket.socket:
    """A listening socket at ``path``, for our user alone or for everybody (each peer is checked all the same).

    Raises UsageError, and nothing is left: a path too long, a directory that is not there or not ours to write in,
    something that is in the way; a socket that nobody listens on any more is replaced.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UsageError(f"{path} is too long for a socket ({LONGEST_PATH} bytes at most); choose a shorter --socket")
    _make_way(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o111 if for_everybody else 0o177)
    try:
        listening.bind(os.fsencode(path))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen at {path}: {error.strerror}; {_remedy(error)}") from error
    finally:
        os.umask(before)
    return listening


def inode_of(path: Path) -> tuple[int, int] | None:
    """What stands there now, of whichever kind; none that is still open somewhere has the same."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_way(path: Path) -> None:
    try:
        found = path.lstat()
    except OSError:
        return  # nothing there, or bind says what is wrong
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} exists and is no socket; choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fsencode(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED or found.st_uid != os.geteuid():
                raise UsageError(f"{path} exists ({error.strerror}); choose another --socket") from error
        else:
            raise UsageError(f"another broker listens at {path}; use it, or choose another --socket")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _remedy(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "make its directory first, or choose another --socket"
    if error.errno == errno.ENOSPC:
        return "make room on that file system"
    return "choose another --socket"
