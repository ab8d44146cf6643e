"""Client plugins act only where they were asked to."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 2)


@pytest.mark.contract("life-4")
def test_no_client_plugin_acts_unasked(echo: Program) -> None:
    """Invariant: installed client plugins have no client, and arm nothing, on a target that did not name them."""
    installed = {point.name for point in entry_points(group="ubpx")}
    assert installed >= {"symbols", "ptracepp", "hitcount", "argwatch"}, "the tests need all distributions installed"
    maps = echo.maps()
    with ubpx.attach(echo.pid) as target:
        assert list(target.clients()) == []
        assert list(target.probepoints()) == []
        assert echo.answer(1) == 2
    echo.assert_untouched(maps)


@pytest.mark.contract("life-4", "client-3")
def test_named_plugins_have_their_own_clients(echo: Program) -> None:
    """Invariant: each plugin that is named has one client, named after it, and no other has."""
    with ubpx.attach(echo.pid, plugins=["argwatch"]) as target:
        assert [client.name for client in target.clients()] == ["argwatch"]
    with ubpx.attach(echo.pid, plugins=["hitcount", "argwatch"]) as target:
        assert {client.name for client in target.clients()} == {"hitcount", "argwatch"}
        with pytest.raises(ubpx.UsageError):
            target.client("hitcount")


def test_plugin_that_is_not_installed(echo: Program) -> None:
    """Invariant: a plugin name that nobody has is a clear error, and the program is left alone."""
    maps = echo.maps()
    with pytest.raises(ubpx.UbpxError, match="no_such_plugin"):
        ubpx.attach(echo.pid, plugins=["no_such_plugin"])
    echo.assert_untouched(maps)
    assert echo.answer(1) == 2
    with pytest.raises(ubpx.UbpxError, match="no_such_plugin"):
        ubpx.spawn(["true"], plugins=["no_such_plugin"])
