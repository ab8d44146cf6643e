"""ubpx as a plugin of another application: found by entry point, its clients among the host's own plugins."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real.conftest import Program, StartProgram

PROJECT = "logbook"
"""The application: its project name, and the entry-point group of its plugins."""
ENTRY_POINTS = """\
[logbook]
ubpx = ubpx
answers = logbook_answers:plugin
weather = logbook_answers:weather
"""
PLUGINS = '''\
"""Plugins of the application; one is a client of ubpx too."""
import pluggy
from ubpx.hookspecs import hookimpl as ubpx_hookimpl

hookimpl = pluggy.HookimplMarker("logbook")


class Answers:
    def __init__(self):
        self.seen = []

    @hookimpl
    def logbook_lines(self):
        return [f"answered {value}" for value in self.seen]

    @ubpx_hookimpl
    def ubpx_process_attached(self, client, process):
        client.probe("answer", lambda hit: self.seen.append(hit.args[0]))


class Weather:
    @hookimpl
    def logbook_lines(self):
        return ["fair"]


plugin, weather = Answers(), Weather()
'''


class LogbookHooks:
    """What the application asks its plugins."""

    @pluggy.HookspecMarker(PROJECT)
    def logbook_lines(self) -> list[str]:  # type: ignore[empty-body]
        """Lines for the book."""


@pytest.fixture
def logbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pluggy.PluginManager]:
    """The application's plugin manager, with everything that is installed for it."""
    installed = tmp_path / "logbook-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: logbook\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "logbook_answers.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(tmp_path)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(LogbookHooks)
    assert manager.load_setuptools_entrypoints(PROJECT) == 3
    yield manager
    del sys.modules["logbook_answers"]


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo")


def test_the_host_finds_ubpx_and_lends_it_its_plugins(
    logbook: pluggy.PluginManager, echo: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a host that knows ubpx as a plugin alone traces with it, its own plugins being clients by name."""
    monkeypatch.setenv("UBPX_ARGWATCH_SPEC", "answer")
    tracing: Any = logbook.get_plugin("ubpx")
    maps = echo.maps()
    with tracing.attach(echo.pid, host=logbook, plugins=["answers", "argwatch"]) as target:
        assert [client.name for client in target.clients()] == ["answers", "argwatch"]
        assert [echo.answer(n) for n in (5, 6)] == [6, 7]
    lines = sorted(line for lines in logbook.hook.logbook_lines() for line in lines)
    assert lines == ["answered 5", "answered 6", "fair"]
    echo.assert_untouched(maps)


def test_a_hosts_plugin_acts_only_where_it_is_named(logbook: pluggy.PluginManager, echo: Program) -> None:
    """Invariant: a session knows the plugins of the host that it was given, and none acts unasked."""
    with ubpx.attach(echo.pid, host=logbook) as target:
        assert target.clients() == ()
        assert echo.answer(1) == 2
    with pytest.raises(ubpx.UsageError, match="no plugin is named 'answers'"):
        ubpx.attach(echo.pid, plugins=["answers"])
    with pytest.raises(ubpx.UsageError, match="no plugin is named 'weather'"):
        ubpx.attach(echo.pid, host=logbook, plugins=["weather"])
    with ubpx.Session(host=logbook) as session:
        session.attach(echo.pid, plugins=["answers"])
        assert echo.answer(9) == 10
    assert logbook.get_plugin("answers").seen == [9]  # type: ignore[union-attr]


@pytest.mark.contract("life-4")
def test_a_spawned_program_has_the_hosts_clients_from_its_start(
    logbook: pluggy.PluginManager, target_program: StartProgram
) -> None:
    """Invariant: spawn takes a host as attach does."""
    target, program = target_program.spawned(ubpx.spawn, "echo", host=logbook, plugins=["answers"])
    with target:
        target.resume()
        program.expect("ready")
        assert program.answer(3) == 4
        program.tell("q\n")
        assert target.wait(10) == 0
    assert logbook.get_plugin("answers").seen == [3]  # type: ignore[union-attr]


class Leaver:
    """A client plugin that leaves its target in a hook."""

    def __init__(self, hook: str) -> None:
        self.clients: list[Any] = []

        def leave(client: Any) -> None:
            self.clients.append(client)
            client.target.detach()

        setattr(self, hook, hookimpl(leave))


@pytest.mark.contract("call-4")
@pytest.mark.parametrize("hook", ["ubpx_process_attached", "ubpx_thread_started", "ubpx_thread_exited"])
def test_a_plugin_may_leave_in_a_hook(
    target_program: StartProgram, eventually: Callable[..., bool], caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    """Invariant: a detach in a hook takes effect after the event, ends the session, and harms nobody."""
    program = target_program("hot_calls", "probed_lea", 4, 200, "late")
    leaver = Leaver(hook)
    host = pluggy.PluginManager(PROJECT)
    host.register(leaver, "leaver")
    target = ubpx.attach(program.pid, host=host, plugins=["leaver"])
    lease = None if hook == "ubpx_process_attached" else target.client("one").probe("probed_lea", lambda _: None)
    assert program.tell("g").number("calls") == 800
    assert eventually(lambda: "ubpx-tracer" not in {thread.name for thread in threading.enumerate()})
    assert lease is None or lease.state is ubpx.LeaseState.RELEASED
    assert leaver.clients
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert program.tell("q").wait() == 0
