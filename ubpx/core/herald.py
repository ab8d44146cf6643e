"""Tells client plugins what happens to their target, each isolated from the others."""

from collections.abc import Callable
from typing import Any, Final

from ubpx.core.clients import Client, ClientState
from ubpx.core.plugins import ClientPlugin

Quarantine = Callable[[Client], None]


class Herald:
    """The active client plugins of one target. Owned by the target's desk."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._active: Final[list[tuple[ClientPlugin, Client]]] = []
        self._quarantine: Final = quarantine

    def activate(self, plugin: ClientPlugin, client: Client) -> None:
        """From now on ``plugin`` is told, as ``client``."""
        self._active.append((plugin, client))

    def tell(self, hook: str, *, only: Callable[[Client], bool] | None = None, **arguments: Any) -> None:
        """Call a notify hook for one client at a time; an exception counts against that client alone."""
        for plugin, client in tuple(self._active):
            if client.state is ClientState.LIVE and (only is None or only(client)):
                self._call(plugin, client, hook, arguments)

    def _call(self, plugin: ClientPlugin, client: Client, hook: str, arguments: dict[str, Any]) -> None:
        call = plugin.hooks.get(hook)
        if call is None:
            return
        try:
            call(client=client, **arguments)
        except BaseException as error:  # noqa: BLE001 - a client's exception must not reach the others
            if client.failed(error, hook):
                self._quarantine(client)
        else:
            client.strikes = 0
