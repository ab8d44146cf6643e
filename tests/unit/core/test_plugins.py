"""Plugins and their hooks: found, activated by name, told one at a time, and documented."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, cast

import pluggy
import pytest

from ubpx import hookspecs
from ubpx._errors import NoTracer, PluginFailed, UsageError
from ubpx.core.clients import Client, ClientState
from ubpx.core.herald import Herald
from ubpx.core.plugins import Plugins
from ubpx.hookspecs import hookimpl

PARTS = ["When", "Where", "Arguments", "Returns", "Raises", "Since"]


class Told:
    """A client plugin that keeps what it is told; takes a subset of the arguments."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    @hookimpl
    def ubpx_thread_started(self, client: Any, tid: int) -> None:
        self.heard.append(("started", client.name, tid))

    @hookimpl
    def ubpx_client_left(self, name: str) -> None:
        self.heard.append(("left", name))


class Failing:
    """A client plugin that raises."""

    @hookimpl
    def ubpx_thread_started(self) -> None:
        raise KeyboardInterrupt


class Resolver:
    """An ask plugin; no client."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    @hookimpl
    def ubpx_open_tracer(self) -> Any:
        return self.answer()


def client_of(name: str) -> Client:
    return Client(name, priority=0, target=None, desk=cast(Any, None))


def herald_with(**plugins: object) -> tuple[Herald, dict[str, Client], list[Client]]:
    loaded, quarantined = Plugins([]), list[Client]()
    herald, clients = Herald(quarantined.append), {}
    for name, plugin in plugins.items():
        loaded.register(plugin, name)
        clients[name] = client_of(name)
        herald.activate(loaded.activate(name), clients[name])
    return herald, clients, quarantined


def test_a_broken_plugin_breaks_only_who_names_it(caplog: pytest.LogCaptureFixture) -> None:
    """Invariant: a plugin that cannot be loaded is logged, and is an error for those alone who activate it."""
    entries = [
        EntryPoint("broken", "no_such_module_of_ours:Thing", "ubpx"),
        EntryPoint("kept", "collections:OrderedDict", "ubpx"),
    ]
    plugins = Plugins(entries)
    assert plugins.names() == ("kept",)
    assert "plugin 'broken' could not be loaded" in caplog.text
    assert plugins.ask("ubpx_open_tracer") is None
    with pytest.raises(PluginFailed, match="no_such_module_of_ours"):
        plugins.activate("broken")


def test_plugins_come_from_the_entry_points_of_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: with no entries given, exactly those of the group ubpx are loaded; a class is called once."""
    installed = {"ubpx": [EntryPoint("kept", "collections:OrderedDict", "ubpx")]}
    monkeypatch.setattr("ubpx.core.plugins.entry_points", lambda group: installed[group])
    assert Plugins().names() == ("kept",)


def test_unknown_plugins_are_told_which_there_are() -> None:
    plugins = Plugins([])
    with pytest.raises(UsageError, match="no plugin is named 'x'; there are: none"):
        plugins.activate("x")
    plugins.register(Told(), "told")
    with pytest.raises(UsageError, match="there are: told"):
        plugins.activate("x")
    with pytest.raises(UsageError, match="two plugins are named 'told'"):
        plugins.register(Told(), "told")


def test_a_plugin_that_is_no_client_cannot_be_activated() -> None:
    plugins = Plugins([])
    plugins.register(Resolver(lambda: None), "resolver")
    with pytest.raises(UsageError, match="implements no client hook"):
        plugins.activate("resolver")


def test_first_answer_counts_and_errors_are_named() -> None:
    """Invariant: an ask hook's own error passes; any other becomes PluginFailed."""

    def ask(answer: Callable[[], Any]) -> Any:
        plugins = Plugins([])
        plugins.register(Resolver(answer), "resolver")
        return plugins.ask("ubpx_open_tracer")

    def refuse() -> None:
        raise NoTracer

    assert ask(lambda: "a tracer") == "a tracer"
    assert ask(lambda: None) is None
    with pytest.raises(NoTracer):
        ask(refuse)
    with pytest.raises(PluginFailed, match="ZeroDivisionError"):
        ask(lambda: 1 // 0)


def test_an_installed_client_plugin_acts_only_when_activated() -> None:
    """Invariant: nobody is told anything who was not activated by name."""
    plugins, idle, active = Plugins([]), Told(), Told()
    plugins.register(idle, "idle")
    plugins.register(active, "active")
    herald = Herald(lambda _: None)
    herald.activate(plugins.activate("active"), client_of("active"))
    herald.tell("ubpx_client_left", name="x")
    assert (idle.heard, active.heard) == ([], [("left", "x")])


def test_two_active_plugins_are_told_once_each_as_their_own_client() -> None:
    """Invariant: each active plugin hears an event once, with its own client, and a subset of the arguments."""
    first, second = Told(), Told()
    herald, _, _ = herald_with(first=first, second=second)
    herald.tell("ubpx_thread_started", process=None, tid=7)
    herald.tell("ubpx_thread_exited", process=None, tid=7)
    assert first.heard == [("started", "first", 7)]
    assert second.heard == [("started", "second", 7)]
    herald.tell("ubpx_client_left", only=lambda client: client.name == "second", name="x")
    assert (len(first.heard), len(second.heard)) == (1, 2)


def test_a_failing_plugin_pays_alone_and_is_quarantined_once() -> None:
    """Invariant: others are told whatever one raises, KeyboardInterrupt too; three in a row quarantine it."""
    told = Told()
    herald, clients, quarantined = herald_with(failing=Failing(), told=told)
    for tid in range(5):
        herald.tell("ubpx_thread_started", process=None, tid=tid)
    assert [heard[2] for heard in told.heard] == [0, 1, 2, 3, 4]
    assert quarantined == [clients["failing"]]
    assert clients["failing"].state is ClientState.QUARANTINED
    assert clients["failing"].strikes == 3, "a quarantined client is told nothing more"
    assert clients["told"].strikes == 0


def test_a_hook_that_succeeds_resets_the_strikes() -> None:
    herald, clients, _ = herald_with(told=Told())
    clients["told"].strikes = 2
    herald.tell("ubpx_thread_exited", process=None, tid=1)
    assert clients["told"].strikes == 2, "a hook that it does not have says nothing about it"
    herald.tell("ubpx_thread_started", process=None, tid=1)
    assert clients["told"].strikes == 0


@pytest.mark.parametrize("kind", [hookspecs.NotifyHooks, hookspecs.StopHooks, hookspecs.AskHooks])
def test_every_hook_says_what_a_hook_must_say(kind: type) -> None:
    """Invariant: when, where, arguments, returns, raises, since, in this order, and every argument is in the text."""
    for name, hook in vars(kind).items():
        if not name.startswith("ubpx_"):
            continue
        text = inspect.getdoc(hook) or ""
        found = re.findall(rf"^({'|'.join(PARTS)}):", text, re.MULTILINE)
        arguments = list(inspect.signature(hook).parameters)[1:]
        assert found == (PARTS if arguments else [part for part in PARTS if part != "Arguments"]), name
        assert text.splitlines()[0].endswith("."), name
        if kind is not hookspecs.AskHooks:
            assert arguments[0] == "client", name
            arguments = [each for each in arguments if each not in ("client", "process", "tid", "address")]
        if kind is hookspecs.NotifyHooks:
            assert "Returns: nothing." in text, name
        assert [each for each in arguments if f"``{each}``" not in text] == [], name


class Misspelt:
    """A client plugin that would never be told."""

    @hookimpl
    def ubpx_thread_startd(self) -> None:
        raise AssertionError


class Overreaching:
    """A client plugin that wants what nobody tells."""

    @hookimpl
    def ubpx_thread_started(self, weather: str) -> None:
        raise AssertionError(weather)


@pytest.mark.parametrize(("plugin", "said"), [(Misspelt(), "ubpx_thread_startd"), (Overreaching(), "weather")])
def test_hooks_that_do_not_exist_are_told(plugin: object, said: str) -> None:
    """Invariant: a misspelt hook or argument is PluginFailed at activation, and never a hook that stays silent."""
    plugins = Plugins([])
    plugins.register(plugin, "wrong")
    with pytest.raises(PluginFailed, match=said):
        plugins.activate("wrong")


class HostOnly:
    """A plugin of the host's that has nothing to do with ubpx."""

    def ubpx_thread_started(self) -> None:
        raise AssertionError


def test_a_hosts_plugins_with_hooks_of_ours_count() -> None:
    """Invariant: of the host's plugins those with hooks of ours are known, under their names there."""
    host = pluggy.PluginManager("another project")
    told = Told()
    host.register(told, "told")
    host.register(HostOnly(), "beside")
    host.register(Resolver(lambda: "the host's tracer"), "tracer")
    host.set_blocked("blocked")
    plugins = Plugins([], host=host)
    assert plugins.names() == ("told", "tracer")
    assert plugins.ask("ubpx_open_tracer") == "the host's tracer"
    plugins.activate("told").hooks["ubpx_client_left"](client=None, name="x")
    assert told.heard == [("left", "x")]


def test_two_plugins_of_one_name_are_a_collision() -> None:
    """Invariant: neither of two plugins of one name is taken in silence for the other."""
    host = pluggy.PluginManager("another project")
    host.register(Told(), "kept")
    with pytest.raises(UsageError, match="two plugins are named 'kept'"):
        Plugins([EntryPoint("kept", "collections:OrderedDict", "ubpx")], host=host)


def test_a_broken_plugin_of_the_host_breaks_only_who_names_it(caplog: pytest.LogCaptureFixture) -> None:
    """Invariant: an ask hook with arguments that nobody gives is logged, and an error for those who activate it."""

    class Broken:
        @hookimpl
        def ubpx_open_tracer(self, weather: str) -> str:
            return weather

    host = pluggy.PluginManager("another project")
    host.register(Broken(), "broken")
    plugins = Plugins([], host=host)
    assert plugins.ask("ubpx_open_tracer") is None
    assert "plugin 'broken' could not be loaded" in caplog.text
    with pytest.raises(PluginFailed, match="weather"):
        plugins.activate("broken")


@pytest.mark.parametrize("host", ["application", 5, object])
def test_a_host_is_a_plugin_manager(host: Any) -> None:
    with pytest.raises(UsageError, match=r"pluggy\.PluginManager"):
        Plugins([], host=host)
