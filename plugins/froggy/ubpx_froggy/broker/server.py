"""The broker: listens, hands each connection what it needs, and ends without harm to anybody."""

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ubpx_froggy.broker.access import ROOT, Peer
from ubpx_froggy.broker.channel import PATIENCE_S, Channel
from ubpx_froggy.broker.connection import Connection
from ubpx_froggy.broker.entries import new_handle
from ubpx_froggy.broker.guests import Guest
from ubpx_froggy.broker.host import Host
from ubpx_froggy.broker.notices import Mailer
from ubpx_froggy.broker.quotas import Quotas
from ubpx_froggy.broker.service import Service
from ubpx_froggy.messages import Handle

WORKERS: Final = 8
"""Threads that do what connections ask, one request of each at a time."""
SWEEPERS: Final = 4
"""Threads that let held threads go and take back what connections had: they wait for nobody's request."""

_LEAST_PATIENCE_S: Final = 0.001
"""A socket's time-out of less than a microsecond would be none at all."""
_log = logging.getLogger("ubpx.broker")


class Broker:
    """Serves connections on a listening socket. Everything but ``submit`` runs in the event loop."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        quotas: Quotas,
        deadline_s: float,
        for_everybody: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.loop: Final = loop
        self.quotas: Final = quotas
        self.connections: Final[set[Connection]] = set()
        self.on_idle: Callable[[], None] = lambda: None
        """Called when there is neither a target nor a connection any more."""
        self._listening: Final = listening
        self._deadline_s: Final = deadline_s
        self._patience_s: Final = max(min(patience_s, deadline_s), _LEAST_PATIENCE_S)
        self._for_everybody: Final = for_everybody
        self._mailer: Final = Mailer(loop)
        self._workers: Final = ThreadPoolExecutor(WORKERS, thread_name_prefix="ubpx-broker")
        self._sweepers: Final = ThreadPoolExecutor(SWEEPERS, thread_name_prefix="ubpx-sweeper")
        self._by_uid: Final[Counter[int]] = Counter()
        """Connections, those included that have not said yet whether they will be channels."""
        self._guests_by_uid: Final[Counter[int]] = Counter()
        self._tokens: Final[dict[Handle, tuple[Guest, Peer]]] = {}
        self._server: asyncio.Server | None = None
        self._host: Host | None = None
        self._service: Service | None = None

    async def serve(self, host: Host) -> None:
        """Take connections from now on."""
        self._host = host
        self._service = Service(host, deadline_s=self._deadline_s)
        self._server = await self.loop.create_unix_server(lambda: Connection(self), sock=self._listening, backlog=1024)

    async def close(self, host: Host) -> None:
        """Take no more connections, end those that are there, and leave all targets unharmed."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.end(None)
        await asyncio.sleep(0)  # what was written last goes out
        await self.loop.run_in_executor(None, self._close_rest, host)

    def _close_rest(self, host: Host) -> None:
        for pool in (self._workers, self._sweepers):
            pool.shutdown(wait=True)
        host.close()

    def changed(self) -> None:
        """A target, or a connection, has come or gone; from any thread."""
        self.submit(self._tidy)

    def _tidy(self) -> None:
        if self._host is None:
            return
        self._host.tidy_all()
        if not self._host.all():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        if not self.connections and self._host is not None and not self._host.all():
            self.on_idle()

    # For connections (see connection.Lobby) -------------------------------------------------------

    def enter(self, connection: Connection, peer: Peer) -> str | None:
        """Count it; why it may not, if it may not."""
        if not self._for_everybody and peer.uid not in {ROOT, os.geteuid()}:
            return (
                f"this broker was not started with --all-users, and serves not user {peer.uid}; start one of your own"
            )
        if self._by_uid[peer.uid] >= 2 * self.quotas.connections:  # each may have a channel that is just being opened
            return self._crowded(peer)
        self._by_uid[peer.uid] += 1
        self.connections.add(connection)
        return None

    def _crowded(self, peer: Peer) -> str:
        limit = self.quotas.connections
        return f"user {peer.uid} has {limit} connections to this broker; close some, or see ubpx serve --help"

    def leave(self, connection: Connection) -> None:
        """It has ended. Again: does nothing."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._by_uid[connection.uid] -= 1
            self._tokens.pop(connection.token, None)
            if connection.guest is None:
                self.changed()
            else:
                self._guests_by_uid[connection.uid] -= 1

    def new_guest(self, connection: Connection, peer: Peer) -> tuple[Guest, Handle] | str:
        """For a connection that has said hello, and the token by which its channel will find it.

        Why there is none, where that is so.
        """
        if self._guests_by_uid[peer.uid] >= self.quotas.connections:
            return self._crowded(peer)
        self._guests_by_uid[peer.uid] += 1
        service = self._service
        if service is None:
            raise RuntimeError("a connection came before the broker served")
        guest = Guest(
            peer,
            self.quotas,
            self._mailer,
            perform=service.perform,
            submit=self.submit,
            settle=self.settle,
            send=connection.send_hits,
            end=connection.end_soon,
            later=self._later,
            left=self.changed,
        )
        token = new_handle()
        self._tokens[token] = guest, peer
        return guest, token

    def claim_channel(self, token: Handle, peer: Peer) -> Guest | None:
        """The connection that was given the token; a token is good once, and for the same user."""
        guest, owner = self._tokens.get(token, (None, None))
        if guest is None or owner is None or owner.uid != peer.uid:
            return None
        del self._tokens[token]
        return guest

    def make_channel(self, connected: socket.socket, guest: Guest) -> Channel:
        """Around a socket that is the channel's own."""
        return Channel(connected, guest, self.loop, patience_s=self._patience_s, deadline_s=self._deadline_s)

    def submit(self, job: Callable[[], object]) -> None:
        """Have a worker thread do it; from any thread."""
        with contextlib.suppress(RuntimeError):  # we end: everything is given back anyway
            self._workers.submit(_logged, job)

    def settle(self, job: Callable[[], object]) -> None:
        """Have a thread do it that waits for nobody's request; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._sweepers.submit(_logged, job)

    def sweep(self, guest: Guest) -> None:
        """Have everything taken back that a connection had."""
        self.settle(guest.sweep)

    def _later(self, delay_s: float, job: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(lambda: self.loop.call_later(delay_s, job))


def _logged(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception:  # whatever it was: nobody looks at the future of a job, so it would go unnoticed
        _log.exception("a request could not be brought to its end")
        raise
