"""``ubpx.connect`` and ``attach(join=True)``: brokers are found, and connected to, by hook alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest

import ubpx
from ubpx import brokers
from ubpx.core.plugins import Plugins
from ubpx.hookspecs import hookimpl


class RemoteTarget:
    """What a plugin may give: it has the face of a target."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.clients: list[tuple[str, object]] = []
        self.detached = False
        self._refuses = refuses

    def client(self, name: str, *, hooks: object) -> None:
        """Refuse, or remember."""
        if self._refuses:
            raise ubpx.UsageError("no client here; go away")
        self.clients.append((name, hooks))

    def detach(self) -> None:
        """Remember."""
        self.detached = True


class Connector:
    """A plugin that connects, and knows one broker."""

    def __init__(self, target: RemoteTarget | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.target = target or RemoteTarget()

    @hookimpl
    def ubpx_connect(self, address: str | int, pid: int | None, slots: str, read_only: bool, follow: str) -> object:
        self.asked.append({"address": address, "pid": pid, "slots": slots, "read_only": read_only, "follow": follow})
        return self.target

    @hookimpl
    def ubpx_find_broker(self, pid: int) -> str | None:
        return "/run/broker" if pid == 5 else None


class ClientPlugin:
    """A client plugin."""

    @hookimpl
    def ubpx_client_left(self, name: str) -> None: ...


def application(**plugins: object) -> pluggy.PluginManager:
    """An application that has these plugins."""
    manager = pluggy.PluginManager("application")
    for name, plugin in plugins.items():
        manager.register(plugin, name)
    return manager


@pytest.mark.contract("command-11")
@pytest.mark.parametrize("address", ["/run/s", Path("/run/s"), 4711])
def test_connect_comes_by_hook(address: Any) -> None:
    """Invariant: what a plugin gives is what the caller gets, and the plugin is told all that was asked."""
    connector = Connector()
    target: Any = ubpx.connect(
        address, pid=7, slots="none", read_only=True, follow="all", host=application(connector=connector)
    )
    assert target is connector.target
    where = address if isinstance(address, int) else "/run/s"
    assert connector.asked == [{"address": where, "pid": 7, "slots": "none", "read_only": True, "follow": "all"}]


def test_client_plugins_act_on_what_was_connected_to() -> None:
    plugin, connector = ClientPlugin(), Connector()
    target: Any = ubpx.connect("/s", plugins=["mine"], host=application(connector=connector, mine=plugin))
    assert target.clients == [("mine", plugin)]
    assert not target.detached


def test_a_client_that_cannot_join_gives_the_connection_up() -> None:
    connector = Connector(RemoteTarget(refuses=True))
    with pytest.raises(ubpx.UsageError, match="go away"):
        ubpx.connect("/s", plugins=["mine"], host=application(connector=connector, mine=ClientPlugin()))
    assert connector.target.detached


def test_without_a_plugin_that_connects_it_says_what_to_install() -> None:
    with pytest.raises(ubpx.NoBroker, match="pip install ubpx-froggy"):
        brokers.connect_by(Plugins([]), (), address="/s", pid=None, slots="auto", read_only=False, follow="exec")


def test_an_unknown_plugin_is_refused_before_anything_is_connected() -> None:
    connector = Connector()
    with pytest.raises(ubpx.UsageError, match="no plugin is named 'nosuch'"):
        ubpx.connect("/s", plugins=["nosuch"], host=application(connector=connector))
    assert connector.asked == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: ubpx.connect(0),
        lambda: ubpx.connect(True),
        lambda: ubpx.connect(-5),
        lambda: ubpx.connect("/s", pid=0),
        lambda: ubpx.connect("/s", slots="many"),  # type: ignore[arg-type]
        lambda: ubpx.connect("/s", read_only=1),  # type: ignore[arg-type]
        lambda: ubpx.connect("/s", plugins="hitcount"),
        lambda: ubpx.connect(None),  # type: ignore[arg-type]
        lambda: ubpx.attach(1, join="yes"),  # type: ignore[arg-type]
    ],
)
def test_silly_values_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ubpx.UsageError):
        call()


def test_a_refusal_names_the_broker_that_a_plugin_knows() -> None:
    loaded = Plugins([], host=application(connector=Connector()))
    found = brokers.naming_broker(ubpx.AlreadyTraced(5, 6, "ubpx serve", None), loaded)
    assert (found.pid, found.tracer_pid, found.tracer_command, found.broker) == (5, 6, "ubpx serve", "/run/broker")
    assert "--join" in str(found)
    other = brokers.naming_broker(ubpx.AlreadyTraced(8, 6, "strace", None), loaded)
    assert other.broker is None
    assert "stop that tracer first" in str(other)
