"""Holds in a broker's target, with the face of ``ubpx.Hold`` as it was last known."""

import contextlib
from collections.abc import Mapping
from typing import Protocol, Self

from ubpx import UbpxError
from ubpx_froggy.client.holds import KnownDesk, KnownHold
from ubpx_froggy.messages import HoldInfo, ReleaseHold


class Desk(KnownDesk, Protocol):
    """Where questions about holds go."""

    async def hold_infos(self) -> list[HoldInfo]:
        """Everybody's holds; raises what requests raise."""
        ...

    async def release_hold(self, parting: ReleaseHold) -> None:
        """End one of ours; raises what the broker answers."""
        ...


class AsyncHold(KnownHold[Desk]):
    """One owner keeps one thread, or all threads of one process, stopped.

    What is held runs again when nobody holds it. The hold of another connection can be seen, and not released.
    """

    @property
    def released(self) -> bool:
        """Whether it has ended, as far as we know."""
        return self._is_over

    async def refresh(self) -> Self:
        """Ask the broker whether it has ended; when it cannot be asked, all stays as it was. Gives the hold itself."""
        if not self.released:
            with contextlib.suppress(UbpxError):
                self._take(await self._desk.hold_infos())
        return self

    async def release(self, registers: Mapping[str, int] | None = None, *, signal: int | None = None) -> None:
        """End it, first writing ``registers`` (by name) to the held thread. Again: does nothing.

        ``signal`` takes the place of the one that the thread stopped for; 0: it never sees that one.
        Raises UsageError for either with a hold of a whole process, and PermissionRefused for a hold of another
        connection.
        """
        if not self.released:
            await self._desk.release_hold(self._parting(registers, signal))
            self._released = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()
