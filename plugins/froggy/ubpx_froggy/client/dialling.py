"""From the path of a socket to a broker that has said welcome."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Final

import attrs

from ubpx import BrokerGone, NoBroker, PermissionRefused, UsageError
from ubpx_froggy.client.conversation import hello, welcome
from ubpx_froggy.messages import Handle, Refused, Welcome
from ubpx_froggy.wire import HELLO_BYTES, REPLY_BYTES, Framer, WireError

PATIENCE_S: Final = 10.0
"""How long a broker may take to accept us."""

RETRY_S: Final = 0.02
"""How long to wait before connecting again to one whose backlog is full."""
CHUNK: Final = 1 << 16
"""So many bytes are read at once at most."""
CLOSED_EARLY: Final = (BrokenPipeError, ConnectionResetError)
"""What sending the hello may raise when it has been said already why we are refused."""

_LONGEST_PATH: Final = 107
"""sun_path without its last NUL, in bytes: unix(7)."""
_UCRED: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid; unix(7), SO_PEERCRED."""
_START: Final = "start one with: ubpx serve -p PID"


@attrs.frozen(kw_only=True)
class Dialled:
    """A connection whose handshake is done. Whoever has it closes the socket."""

    socket: socket.socket
    framer: Framer
    """It may have read the beginning of what follows."""
    welcome: Welcome


def dial(path: str, *, channel: Handle | None = None) -> Dialled:
    """Connect to the broker at ``path``; with ``channel`` as the channel of another connection.

    Raises UsageError for what can be no path of a socket, NoBroker if nobody answers there or we are refused,
    PermissionRefused if the broker is of a user whom we need not trust, BrokerGone if it breaks off.
    """
    deadline = monotonic() + PATIENCE_S
    connected = new_socket(path)
    try:
        with connecting(path):
            connected.settimeout(_left(deadline))
            while not try_to_connect(connected, path):
                sleep(RETRY_S)
                connected.settimeout(_left(deadline))
        check_server(connected, path)
        return _shake_hands(connected, path, channel, deadline)
    except BaseException:
        connected.close()
        raise


def new_socket(path: str) -> socket.socket:
    """One that could be connected to a broker there; raises UsageError for what can be no path of a socket."""
    try:
        encoded = os.fsencode(path)
    except UnicodeError:
        encoded = b""
    if not encoded or b"\0" in encoded:
        raise UsageError(f"{path!r} is no path of a socket; give the one that ubpx serve prints, or a pid")
    if len(encoded) > _LONGEST_PATH:
        raise UsageError(
            f"the path {path!r} has {len(encoded)} bytes, and a socket's has at most {_LONGEST_PATH}; "
            "connect by a shorter one, such as a symbolic link"
        )
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def try_to_connect(connected: socket.socket, path: str) -> bool:
    """Whether it has been done; else try again after ``RETRY_S``."""
    try:
        connected.connect(path)
    except BlockingIOError:  # its backlog is full; Linux does not wait for room where there is a timeout
        return False
    return True


@contextmanager
def connecting(path: str) -> Iterator[None]:
    """What goes wrong within it is raised as a NoBroker that says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise NoBroker(f"there is no {path}", _START) from None
    except ConnectionRefusedError:
        raise NoBroker(f"nobody listens at {path} any more", f"remove it if it is a socket, and {_START}") from None
    except PermissionError as error:
        what = f"you may not connect to {path} ({error.strerror})"
        raise NoBroker(what, "ask whoever has started it, or start one of your own with: ubpx serve -p PID") from None
    except TimeoutError:
        raise NoBroker(
            f"the one at {path} has not taken a connection for {PATIENCE_S:g} s", "stop it, and try again"
        ) from None
    except OSError as error:
        raise NoBroker(f"cannot connect to {path} ({error.strerror or error})", _START) from None


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def check_server(connected: socket.socket, path: str) -> None:
    """Raises PermissionRefused unless it is ours or root's: anybody may have put a socket there, and who serves it
    sees what we ask.
    """
    pid, uid, _ = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.geteuid()):
        cause = f"the socket {path} is served by user {uid}, who is neither you nor root"
        raise PermissionRefused(pid, cause, "connect to a broker of your own or of root's")


def _shake_hands(connected: socket.socket, path: str, channel: Handle | None, deadline: float) -> Dialled:
    framer = Framer(HELLO_BYTES)
    with shaking_hands(path):
        with contextlib.suppress(*CLOSED_EARLY):
            connected.sendall(hello(channel), socket.MSG_NOSIGNAL)
        answer = welcome(_first(connected, framer, deadline))
    connected.settimeout(None)
    return accepted(connected, framer, answer, path)


@contextmanager
def shaking_hands(path: str) -> Iterator[None]:
    """What goes wrong within it is raised as BrokerGone; so is EOFError."""
    try:
        yield
    except TimeoutError:
        raise BrokerGone(path, f"it has said nothing for {PATIENCE_S:g} s") from None
    except (OSError, EOFError):
        raise BrokerGone(path, "it has closed the connection") from None
    except WireError as error:
        raise BrokerGone(path, f"it speaks another protocol ({error.reason})") from None


def accepted(connected: socket.socket, framer: Framer, answer: Welcome | Refused, path: str) -> Dialled:
    """The broker has answered our hello; raises NoBroker if it refuses."""
    if isinstance(answer, Refused):
        raise NoBroker(f"the one at {path} refuses: {answer.reason}", "connect to another, or see ubpx serve --help")
    framer.limit = REPLY_BYTES
    return Dialled(socket=connected, framer=framer, welcome=answer)


def _first(connected: socket.socket, framer: Framer, deadline: float) -> bytes:
    while True:
        connected.settimeout(_left(deadline))
        body = first_body(framer, connected.recv(CHUNK))
        if body is not None:
            return body


def first_body(framer: Framer, data: bytes) -> bytes | None:
    """The body of the first message, if it is whole with these bytes. Raises EOFError if there are none, WireError."""
    if not data:
        raise EOFError
    return next(framer.feed(data), None)
