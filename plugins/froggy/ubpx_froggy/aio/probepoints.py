"""A probed place in a broker's target, with the face of ``ubpx.Probepoint`` as it was last known."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Self

from ubpx import UbpxError
from ubpx_froggy.client.probepoints import KnownProbepoint
from ubpx_froggy.messages import ProbepointInfo

Read = Callable[[int], Awaitable[ProbepointInfo | None]]
"""Asks the broker what stands at an address; raises an UbpxError."""


class AsyncProbepoint(KnownProbepoint):
    """One probed place. One object for each address of a target, as long as somebody has it.

    What can be read is as it was when the broker was last asked: by ``refresh``, ``lease.probepoint`` or
    ``target.probepoints``.
    """

    def __init__(self, address: int, read: Read) -> None:
        super().__init__(address)
        self._read: Final = read

    async def refresh(self) -> Self:
        """Ask the broker; when it cannot be asked, all stays as it was. Gives the probepoint itself."""
        with contextlib.suppress(UbpxError):
            self.take(await self._read(self.address))
        return self
