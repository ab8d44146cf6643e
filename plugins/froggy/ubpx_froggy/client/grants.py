"""What may come before the reply to a request: hits of a lease that it gives, hooks of a client that it opens."""

from collections.abc import Iterable
from typing import Any, Final

from ubpx_froggy.client.conversation import Question
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.messages import Call, Handle, OpenClient, Probe, ProbeMany, Watch

GRANT_S: Final = 5.0
"""How long a hit waits for the reply that gave its lease."""

_GRANTS: Final = (Probe, ProbeMany, Watch, OpenClient)


def gives_leases(unanswered: Iterable[Question]) -> bool:
    """Whether one of these requests gives leases that we do not know yet."""
    return any(isinstance(each.call, _GRANTS) for each in unanswered)


def client_of(handle: Handle, roster: Roster, unanswered: Iterable[Question]) -> Any:
    """The client of a hook; one that is just being opened, if we have not been told its handle yet. None: it has gone.

    ``subject`` of the request that opens a client is that client.
    """
    if handle not in roster.clients and not roster.is_former(handle):
        opened = [each.subject for each in unanswered if _has_hooks(each.call)]
        newcomer = next((each for each in opened if each.handle is None), None)
        if newcomer is not None and handle not in roster.clients:
            newcomer.known_as(handle)
    return roster.clients.get(handle)


def _has_hooks(call: Call) -> bool:
    return isinstance(call, OpenClient) and bool(call.hooks)
