"""Tells clients what happens to their target, and asks them what is to happen next, each isolated from the others."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from ubpx._errors import UsageError
from ubpx.core.clients import Client, ClientState
from ubpx.core.events import Verdict
from ubpx.core.plugins import STOP_HOOKS, ClientPlugin

Wanted = Sequence[tuple[str, Verdict]]
"""What clients want of one stop: name and verdict, in the order in which they were asked."""

Quarantine = Callable[[Client], None]


class Herald:
    """The clients of one target that have hooks. Owned by the target's desk."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._active: Final[list[tuple[ClientPlugin, Client]]] = []
        self._quarantine: Final = quarantine

    def activate(self, plugin: ClientPlugin, client: Client) -> None:
        """From now on ``plugin`` is told, as ``client``."""
        self._active.append((plugin, client))

    @property
    def active(self) -> tuple[tuple[ClientPlugin, Client], ...]:
        """All that were activated."""
        return tuple(self._active)

    def tell(self, hook: str, *, only: Callable[[Client], bool] | None = None, **arguments: Any) -> None:
        """Call a notify hook for one client at a time; an exception counts against that client alone."""
        for plugin, client in self.having(hook):
            if only is None or only(client):
                self._call(plugin, client, hook, arguments)

    def ask(self, hook: str, *, only: Callable[[Client], bool], **arguments: Any) -> Wanted:
        """Call a stop hook for one client at a time; who wants what."""
        wanted = []
        for plugin, client in self.having(hook):
            if only(client):
                answer = self._call(plugin, client, hook, arguments)
                if answer is not None:
                    wanted.append((client.name, answer))
        return wanted

    def having(self, hook: str) -> list[tuple[ClientPlugin, Client]]:
        """The living clients that implement the hook."""
        return [
            (plugin, client)
            for plugin, client in self._active
            if client.state is ClientState.LIVE and hook in plugin.hooks
        ]

    def _call(self, plugin: ClientPlugin, client: Client, hook: str, arguments: dict[str, Any]) -> Verdict | None:
        try:
            answers = plugin.hooks[hook](client=client, **arguments)
            answer = answers[0] if answers else None  # one plugin has one implementation, and None is left out
            if hook in STOP_HOOKS and answer is not None and not isinstance(answer, Verdict):
                raise UsageError(f"{hook} returned {answer!r}; return None or a ubpx.Verdict")
        except BaseException as error:  # noqa: BLE001 - a client's exception must not reach the others
            if client.failed(error, hook):
                self._quarantine(client)
            return None
        client.strikes = 0
        return answer if isinstance(answer, Verdict) else None
