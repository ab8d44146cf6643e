"""How much one connection may have."""

import attrs


@attrs.frozen(kw_only=True)
class Quotas:
    """Limits for each connection; a request beyond one raises QuotaExceeded, and gets nothing."""

    clients: int = 64
    """Clients on all targets together."""
    probes: int = 100_000
    """Leases that are armed or pending."""
    slots: int = 100_000
    """Leases of probepoints that need an out-of-line slot."""
    queue: int = 16_384
    """Hits in mode ``notify`` that wait to be sent; what comes then is dropped, and counted."""
    bytes: int = 8 << 20
    """What was written to the connection and not yet read by the peer; until it reads, it is sent no more."""
    requests: int = 64
    """Requests that wait for the one before them; until they are done, no more is read."""
    stop_s: float | None = None
    """For how long at a stretch its clients may keep something stopped, in seconds; None: for ever, as debuggers must.

    A handler that does not answer is another thing: that is what the deadline is for.
    """
    connections: int = 2048
    """Connections of one user, channels not counted."""
