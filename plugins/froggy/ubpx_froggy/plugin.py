"""What the entry point names. What a hook needs is imported when it is called, so that others stay quick."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ubpx.core.values import Finding, ProcessId
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    import click


class FroggyPlugin:
    """Offers connections to brokers, and the commands of one."""

    @hookimpl
    def ubpx_connect(
        self,
        address: str | int,
        pid: ProcessId | None,
        slots: str,
        read_only: bool,  # noqa: FBT001 - pluggy passes by position
        follow: str,
    ) -> object:
        """A target of a broker's."""
        from ubpx_froggy.client import connect

        return connect(address, pid=pid, slots=slots, read_only=read_only, follow=follow)

    @hookimpl
    def ubpx_find_broker(self, pid: ProcessId) -> str | None:
        """By the run directory."""
        from ubpx_froggy.directory import find_broker

        found = find_broker(pid)
        return None if found is None else str(found.socket)

    @hookimpl
    def ubpx_diagnose_traced(self, pid: ProcessId) -> Sequence[Finding] | None:
        """By asking the broker that traces it."""
        from ubpx_froggy.directory import find_broker
        from ubpx_froggy.listing import findings

        found = find_broker(pid)
        return None if found is None else findings(found.socket, pid)

    @hookimpl
    def ubpx_commands(self) -> "Sequence[click.Command]":
        """Serve, list."""
        from ubpx_froggy.commands import list_, serve

        return (serve, list_)
