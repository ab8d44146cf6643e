"""What plugins add to the command line: commands, and formats of ``ubpx trace``."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import click

from ubpx._errors import UsageError
from ubpx.cli.logs import tell_logs
from ubpx.core.plugins import Plugins
from ubpx.core.ports import Sink

Thing = TypeVar("Thing")
_log = logging.getLogger("ubpx.plugins")


def plugin_commands(*, taken: Collection[str]) -> dict[str, click.Command]:
    """The commands of all plugins by name; a plugin that fails is logged, and harms no other."""
    tell_logs(with_tracebacks=False)
    found: dict[str, click.Command] = {}
    for plugin, answer in Plugins().ask_each("ubpx_commands"):
        offered = _understood(plugin, "ubpx_commands", answer, _by_name)
        _unite(found, offered, plugin=plugin, taken=taken)
    return found


def find_sink(name: str) -> Callable[[], Sink]:
    """What makes the sink of a format; plugins are asked where it is not one of ours. Raises UsageError."""
    found: dict[str, Callable[[], Sink]] = {}
    for plugins in _ours_then_installed():
        for plugin, answer in plugins.ask_each("ubpx_sinks"):
            offered = _understood(plugin, "ubpx_sinks", answer, _callables)
            _unite(found, offered, plugin=plugin, taken=())
        if name in found:
            return found[name]
    raise UsageError(f"{name!r} is no format; there are {', '.join(found)}")


def _ours_then_installed() -> Iterator[Plugins]:
    from ubpx.cli.trace.formats import OwnFormats

    ours = Plugins([])
    ours.register(OwnFormats(), "ubpx")
    yield ours
    yield Plugins()


def _by_name(answer: Any) -> Mapping[str, click.Command]:
    commands = list(answer)
    for command in commands:
        if not isinstance(command, click.Command) or not command.name:
            raise TypeError(f"{command!r} is no click command with a name")
    return {command.name: command for command in commands}


def _callables(answer: Any) -> Mapping[str, Callable[[], Sink]]:
    for name, make in dict(answer).items():
        if not isinstance(name, str) or not callable(make):
            raise TypeError(f"{name!r}: {make!r} is no name of a format and what makes a sink")
    return dict(answer)


def _understood(
    plugin: str, hook: str, answer: Any, reading: Callable[[Any], Mapping[str, Thing]]
) -> Mapping[str, Thing]:
    """The answer as ``reading`` makes it out; nothing if it cannot."""
    try:
        return reading(answer)
    except Exception as error:  # noqa: BLE001 - a broken plugin must not break the others
        _log.warning("plugin %r gave no answer that %s can use", plugin, hook, exc_info=error)
        return {}


def _unite(found: dict[str, Thing], offered: Mapping[str, Thing], *, plugin: str, taken: Collection[str]) -> None:
    for name, thing in offered.items():
        if name in found or name in taken:
            _log.warning("plugin %r offers %r, which there is already; its own is left out", plugin, name)
        else:
            found[name] = thing
