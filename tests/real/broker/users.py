"""Processes of other users; who becomes another must be root."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

import ubpx
from tests.real.broker.peers import PATIENCE_S, Ended, Evicted, Peer, Refused
from ubpx.core.ubp.decode import disassemblers
from ubpx_froggy.failures import as_error, as_failure

disassemblers()  # loaded when one is asked for first: a child that is another user could not

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

A: Final = 54321
B: Final = 54322


def open_to_all(broker: BrokerProcess) -> BrokerProcess:
    assert "serving" in broker.greeting
    for private in (Path(broker.path).parent, Path(os.environ["UBPX_RUN_DIRECTORY"]).parent):
        private.chmod(0o755)
    return broker


def as_user(target_program: StartProgram, uid: int, *what: Any, **options: Any) -> Program:
    return target_program(*what, user=uid, group=uid, extra_groups=[], **options)


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
