"""Builds a plugin manager on request; nothing is global, nothing loads at import."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import attrs
import pluggy

from ubpx import hookspecs
from ubpx._errors import PluginFailed, UbpxError, UsageError

GROUP: Final = "ubpx"
"""The entry-point group of all plugins."""

_log = logging.getLogger("ubpx.plugins")


def _hook_names(specs: type) -> frozenset[str]:
    return frozenset(name for name in vars(specs) if name.startswith("ubpx_"))


NOTIFY_HOOKS: Final = _hook_names(hookspecs.NotifyHooks)
STOP_HOOKS: Final = _hook_names(hookspecs.StopHooks)
ASK_HOOKS: Final = _hook_names(hookspecs.AskHooks)


def load(entry: EntryPoint) -> Any:
    """The plugin that an entry point names; a class is called once. Raises whatever loading it raises."""
    found = entry.load()
    return found() if isinstance(found, type) else found


@attrs.frozen
class ClientPlugin:
    """A client's hooks: of a plugin that was activated by name, or of an object that the client brought."""

    name: str
    hooks: Mapping[str, Callable[..., Any]]
    """By hook name; each takes any keyword arguments of the hook and uses those it wants."""
    for_children: bool = True
    """Whether they are called for followed children too."""


def client_plugin(plugin: Any, name: str) -> ClientPlugin:
    """The client hooks that an object implements; raises PluginFailed if a hook of its is not as specified."""
    alone = pluggy.PluginManager("ubpx")  # one for each: events go to one client at a time
    alone.add_hookspecs(hookspecs.NotifyHooks)
    alone.add_hookspecs(hookspecs.StopHooks)
    alone.add_hookspecs(hookspecs.AskHooks)
    try:
        alone.register(plugin, name)
        alone.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginFailed(name, str(error)) from error
    callers = {hook: getattr(alone.hook, hook) for hook in NOTIFY_HOOKS | STOP_HOOKS}
    return ClientPlugin(
        name,
        {hook: caller for hook, caller in callers.items() if caller.get_hookimpls()},
        getattr(plugin, "for_children", True),
    )


class Plugins:
    """The plugins of one session: the installed ones, and those of a ``host`` application. Owned by the Session.

    Of what is registered with the host's plugin manager only plugins with hooks of ubpx count, under their names there.
    """

    def __init__(
        self, entries: Sequence[EntryPoint] | None = None, *, host: pluggy.PluginManager | None = None
    ) -> None:
        self._providers = pluggy.PluginManager("ubpx")
        self._providers.add_hookspecs(hookspecs.AskHooks)
        self._found: dict[str, Any] = {}
        self._broken: dict[str, str] = {}
        for entry in entry_points(group=GROUP) if entries is None else entries:
            self._load(entry)
        if host is not None:
            self._adopt(host)

    def _adopt(self, host: pluggy.PluginManager) -> None:
        """Take over the host's; they are asked before the installed ones."""
        if not isinstance(host, pluggy.PluginManager):
            raise UsageError(f"host={host!r}; give the pluggy.PluginManager of the application")
        for name, plugin in host.list_name_plugin():
            if plugin is None or not any(self._providers.parse_hookimpl_opts(plugin, each) for each in dir(plugin)):
                continue
            try:
                self.register(plugin, name)
            except pluggy.PluginValidationError as error:
                self._give_up(name, error)

    def _load(self, entry: EntryPoint) -> None:
        try:
            self.register(load(entry), entry.name)
        except Exception as error:  # noqa: BLE001 - a broken plugin must not break those who do not use it
            self._give_up(entry.name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._broken[name] = f"{type(error).__name__}: {error}"
        _log.warning("plugin %r could not be loaded", name, exc_info=error)

    def register(self, plugin: Any, name: str) -> None:
        """Add a plugin as if it were installed; its client hooks still wait for ``activate``."""
        if name in self._found:
            raise UsageError(f"two plugins are named {name!r}; rename or uninstall one of them")
        self._providers.register(plugin, name)
        self._found[name] = plugin

    def activate(self, name: str) -> ClientPlugin:
        """The client plugin of that name.

        Raises PluginFailed if it could not be loaded or its hooks fit none of ours, UsageError if nobody has the name,
        or its plugin is no client.
        """
        if name in self._broken:
            raise PluginFailed(name, self._broken[name])
        if name not in self._found:
            known = ", ".join(sorted(self._found)) or "none"
            raise UsageError(f"no plugin is named {name!r}; there are: {known}")
        found = client_plugin(self._found[name], name)
        if not found.hooks:
            raise UsageError(f"plugin {name!r} implements no client hook; leave it out of plugins=, it loads by itself")
        return found

    def client(self, name: str) -> Any:
        """The object that ``activate`` takes the hooks from; raises as it does."""
        self.activate(name)
        return self._found[name]

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call an ask hook; errors of our own tree pass, others become PluginFailed."""
        caller = getattr(self._providers.hook, hook)
        try:
            return caller(**arguments)
        except UbpxError:
            raise
        except Exception as error:
            raise PluginFailed(hook, f"{type(error).__name__}: {error}") from error

    def ask_each(self, hook: str) -> Iterator[tuple[str, Any]]:
        """Call an ask hook of one plugin after the other: names and answers. One that raises is logged and left out."""
        for name, plugin in self._found.items():
            others = [other for other in self._providers.get_plugins() if other is not plugin]
            try:
                answers = self._providers.subset_hook_caller(hook, others)()
            except Exception as error:  # noqa: BLE001 - a broken plugin must not break the others
                _log.warning("plugin %r failed in %s", name, hook, exc_info=error)
            else:
                yield from ((name, answer) for answer in answers)

    def names(self) -> tuple[str, ...]:
        """Of all that loaded."""
        return tuple(self._found)
