"""Who watches what in one target: leases of watchpoints, granted and taken back. In the tracer thread."""

from collections.abc import Sequence
from itertools import count
from typing import Final

from ubpx._errors import UsageError
from ubpx.core.clients import Client
from ubpx.core.coordinator import Coordinator
from ubpx.core.probepoints import Handler, Lease, LeaseState
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.values import Watched


class Watching:
    """Grants and takes back the watchpoints of one target. Owned by its desk."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator: Final = coordinator
        self._spaces: Final[dict[Lease, AddressSpace]] = {}
        """Where each lease watches."""
        self._ages: Final = count()

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._spaces

    def of(self, client: Client) -> tuple[Lease, ...]:
        """The leases of one client, the oldest first."""
        return tuple(lease for lease in tuple(self._spaces) if lease.client is client)

    def watch(
        self, client: Client, process: TracedProcess, watched: Watched, handler: Handler, *, priority: int
    ) -> Lease:
        """See ``Client.watch``."""
        client.check_live()
        if watched.address >= process.space.architecture.address_limit:
            raise UsageError(f"{watched.address:#x} cannot be watched; give an address of the program's memory")
        self._coordinator.keeper.protect(process.space)
        lease = Lease(client, handler, priority=priority, age=next(self._ages), spec=None, exclusive=False)
        fresh = process.space.watches.grant(lease, watched)
        self._spaces[lease] = process.space
        if fresh:
            self._coordinator.rewatch(process)
        return lease

    def withdraw(self, leases: Sequence[Lease], state: LeaseState, process: TracedProcess | None) -> None:
        """End these leases; others, and those that have ended, do not matter."""
        idle = False
        for lease in leases:
            space = self._spaces.pop(lease, None)
            if space is not None and space.watches.withdraw(lease, state):
                idle |= process is not None and process.space is space
        if idle and process is not None and not process.ended.is_set():
            self._coordinator.rewatch(process)

    def lose(self, space: AddressSpace) -> None:
        """The memory is gone, and the registers are clear."""
        for lease in [each for each, where in self._spaces.items() if where is space]:
            self._spaces.pop(lease).watches.withdraw(lease, LeaseState.LOST)

    def end(self) -> None:
        """The process is left, or has ended."""
        for lease in tuple(self._spaces):
            self._spaces.pop(lease).watches.withdraw(lease, LeaseState.RELEASED)
