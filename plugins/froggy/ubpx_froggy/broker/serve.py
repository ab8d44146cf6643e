"""``ubpx serve``: one broker's life, from its socket to the last target that it leaves."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from ubpx import Session, UsageError
from ubpx_froggy import directory
from ubpx_froggy.broker.host import Host
from ubpx_froggy.broker.quotas import Quotas
from ubpx_froggy.broker.server import Broker
from ubpx_froggy.broker.sockets import activated, inode_of, listen_at

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.frozen(kw_only=True)
class ServeRequest:
    """What the command line asks for."""

    pids: Sequence[int] = ()
    command: Sequence[str] = ()
    path: Path | None = None
    """None: one of the broker's own in the run directory."""
    for_everybody: bool = False
    run: bool = False
    """Start the command's program at once, not with the first client that resumes it or waits for it."""
    follow: str = "exec"
    """For the targets that are named here."""
    deadline_s: float = 1.0
    quotas: Quotas = attrs.field(factory=Quotas)


def serve(request: ServeRequest, say: Callable[[str], None]) -> None:
    """Serve until a signal comes or, where targets were named, until those have ended and nobody is connected.

    Raises an UbpxError if it cannot begin; then nothing is left behind.
    """
    if request.for_everybody and os.geteuid() != 0:
        raise UsageError("--all-users needs root: only root may trace other users' programs; leave it out")
    _share_malloc_arenas()
    place = directory.open_directory(for_everybody=request.for_everybody)
    given = activated()
    path = request.path or place / f"{os.getpid()}.sock"
    if given is not None:
        path = Path(given.getsockname())
    listening = given or listen_at(path.absolute(), for_everybody=request.for_everybody)
    made = inode_of(path) if given is None else None
    try:
        asyncio.run(_Life(request, place, path.absolute(), listening, say).live())
    finally:
        if made is not None and inode_of(path) == made:
            with contextlib.suppress(OSError):
                path.unlink()
        listening.close()


def _share_malloc_arenas() -> None:
    """Let the worker threads use few arenas (mallopt(3)): each keeps what the longest request has ever taken."""
    with contextlib.suppress(OSError, AttributeError):  # another libc than GNU's
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def _allow_many_descriptors() -> None:
    """Each client has one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Life:
    """One run. Lives in the event loop."""

    def __init__(
        self, request: ServeRequest, place: Path, path: Path, listening: socket.socket, say: Callable[[str], None]
    ) -> None:
        self._request: Final = request
        self._place: Final = place
        self._path: Final = path
        self._listening: Final = listening
        self._say: Final = say

    async def live(self) -> None:
        """Until the end."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in _ENDING:
            loop.add_signal_handler(number, ended.set)
        request = self._request
        broker = Broker(
            self._listening,
            loop=loop,
            quotas=request.quotas,
            deadline_s=request.deadline_s,
            for_everybody=request.for_everybody,
        )
        host = Host(Session(deadline=request.deadline_s), self._register, broker.changed)
        announcement: Any = None
        try:
            announcement = directory.announce(self._place, str(self._path))
            self._take_targets(host)
            _allow_many_descriptors()  # not before: a program that we start has the limits that we had
            await broker.serve(host)
            if request.pids or request.command:
                broker.on_idle = ended.set
                broker.changed()
            self._say(self._ready(host))
            await ended.wait()
        finally:
            await broker.close(host)
            if announcement is not None:
                directory.withdraw(announcement)

    def _register(self, pid: int) -> Any:
        return directory.register(self._place, pid, str(self._path))

    def _take_targets(self, host: Host) -> None:
        for pid in dict.fromkeys(self._request.pids):
            host.attach(pid, follow=self._request.follow, on_demand=False)
        if self._request.command:
            hosted = host.spawn(self._request.command, follow=self._request.follow)
            if self._request.run:
                hosted.resume()

    def _ready(self, host: Host) -> str:
        pids = [str(each.pid) for each in host.all()]
        what = f"process {', '.join(pids)}" if pids else "no process yet"
        waiting = ""
        if self._request.command and not self._request.run:
            waiting = "; the program stands at its entry point, until a client resumes it or waits for it"
        return f"serving {what} at {self._path}{waiting}"
