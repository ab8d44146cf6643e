"""What clients ask for, checked, and who has asked for what."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from ubpx._errors import UsageError
from ubpx.core.probepoints import Lease, LeaseHolder
from ubpx.core.ubp.plans import Strategy


@attrs.frozen(kw_only=True)
class Request:
    """How a client wants a place, or many, probed; checked."""

    strategy: Strategy | None
    exclusive: bool
    priority: int
    assume_boundary: bool
    defer: bool = False
    """A lease may wait for its module."""
    once: bool = False
    """A lease ends at its first hit."""
    skip_refused: bool = False
    """What cannot be probed is left out."""
    inherited: bool = True
    """Followed children have it too."""


def checked_request(options: dict[str, Any]) -> Request:
    """Raises UsageError."""
    strategy = options.pop("strategy")
    if strategy is not None:
        try:
            strategy = Strategy(strategy)
        except ValueError:
            known = ", ".join(Strategy)
            raise UsageError(f"{strategy!r} is no strategy; choose one of {known}") from None
    return Request(strategy=strategy, **options)


def checked_place(place: object) -> str | int:
    """Raises UsageError."""
    if isinstance(place, bool) or not isinstance(place, str | int):
        raise UsageError(f"a place is a spec or an address, not {place!r}; see the section Specs of the reference")
    return place


def checked_places(places: object) -> str | list[str | int]:
    """A glob, or a list of specs and addresses. Raises UsageError."""
    if isinstance(places, str):
        return places
    if not isinstance(places, Iterable) or isinstance(places, bytes | bytearray):
        raise UsageError(f"{places!r} is no list of places; give specs and addresses in a list, or one glob as a str")
    found = [checked_place(place) for place in places]
    if not found:
        raise UsageError("no places to probe: the list is empty; give at least one spec or address")
    return found


class Requests:
    """The leases that clients have asked for and still have. Owned by a target's desk."""

    def __init__(self) -> None:
        self._by_client: Final[dict[LeaseHolder, dict[Lease, Request]]] = {}
        self.pending: Final[dict[Lease, None]] = {}
        """Those whose module is not mapped, the oldest first."""

    def add(self, lease: Lease, request: Request) -> None:
        """From now on the client has it."""
        self._by_client.setdefault(lease.client, {})[lease] = request

    def remove(self, lease: Lease) -> bool:
        """It is given back or lost; False: it was not there."""
        leases = self._by_client.get(lease.client, {})
        if leases.pop(lease, None) is None:
            return False
        if not leases:
            del self._by_client[lease.client]
        return True

    def of(self, client: LeaseHolder) -> tuple[Lease, ...]:
        """The client's, the oldest first."""
        return tuple(self._by_client.get(client, ()))

    def __getitem__(self, lease: Lease) -> Request:
        return self._by_client[lease.client][lease]

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._by_client.get(lease.client, ())

    def __iter__(self) -> Iterator[Lease]:
        return iter([lease for leases in self._by_client.values() for lease in leases])

    def clear(self) -> None:
        """Nobody has anything any more."""
        self._by_client.clear()
        self.pending.clear()
