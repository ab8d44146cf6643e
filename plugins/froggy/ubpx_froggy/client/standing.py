"""Whether a client may act, as a broker says it."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Protocol

import attrs

from ubpx import ClientQuarantined, UsageError
from ubpx_froggy.client.conversation import Ending, EndKind, decoder
from ubpx_froggy.messages import NamedClient

read_clients: Final = decoder(list[NamedClient])
"""Everybody's, in the order of joining."""


class ClientState(StrEnum):
    """Whether a client may act; equal to ubpx's own."""

    LIVE = "LIVE"
    QUARANTINED = "QUARANTINED"
    CLOSED = "CLOSED"


@attrs.frozen(kw_only=True)
class ForeignClient:
    """A client of another connection, or of the broker's own, as it was when it was asked for."""

    name: str
    priority: int
    state: ClientState
    reason: str
    """Why it is quarantined."""


def foreign(info: NamedClient) -> ForeignClient:
    """One that the broker tells of, and is not ours."""
    return ForeignClient(name=info.name, priority=info.priority, state=ClientState(info.state), reason=info.reason)


class Facts(Protocol):
    """What a connection knows of itself."""

    @property
    def ending(self) -> Ending | None:
        """How it has ended; None while it has not."""
        ...

    def check(self, client: str | None = None) -> None:
        """Raises what calls raise, if it has ended."""
        ...


class Standing:
    """How one client of ours stands with the broker, as far as we know. Owned by the client."""

    def __init__(self, name: str, link: Facts) -> None:
        self.state = ClientState.LIVE
        """As far as we know."""
        self.reason = ""
        """Why it is quarantined."""
        self._name: Final = name
        self._link: Final = link

    def look(self) -> bool:
        """Take the end of the connection into account; whether the broker could tell how it is now."""
        if self.state is ClientState.CLOSED:
            return False
        ending = self._link.ending
        if ending is None:
            return True
        if self.state is ClientState.LIVE and ending.kind is EndKind.EVICTED:
            self.state, self.reason = ClientState.QUARANTINED, ending.reason
        elif self.state is ClientState.LIVE:
            self.state = ClientState.CLOSED
        return False

    def take(self, clients: Iterable[NamedClient]) -> None:
        """The broker has said how all clients are."""
        for each in clients:
            if each.name == self._name and self.state is not ClientState.CLOSED:
                self.state, self.reason = ClientState(each.state), each.reason

    def refused(self, error: ClientQuarantined) -> None:
        """The broker, or the end of the connection, has refused a request with this."""
        if self.state is ClientState.LIVE and error.client == self._name:
            self.state, self.reason = ClientState.QUARANTINED, error.reason

    def check(self) -> None:
        """As far as we know: raises ClientQuarantined, BrokerGone, UsageError if it is closed or we have detached."""
        self._link.check(self._name)
        if self.state is ClientState.QUARANTINED:
            raise ClientQuarantined(self._name, self.reason)
        if self.state is ClientState.CLOSED:
            raise UsageError(f"client {self._name!r} is closed; join again with target.client({self._name!r})")
