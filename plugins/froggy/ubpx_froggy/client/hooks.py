"""Which hooks an object implements: found out here, called over the channel."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pluggy

from ubpx import PluginFailed, UsageError
from ubpx.hookspecs import AskHooks, NotifyHooks, StopHooks

Hooks = Mapping[str, Callable[..., Any]]
"""By hook name; each takes any keyword arguments of the hook and uses those it wants."""

STOP_HOOKS: Final = frozenset(name for name in vars(StopHooks) if name.startswith("ubpx_"))
"""Those whose answer says what happens to a thread next."""
ATTACHED: Final = "ubpx_process_attached"
DETACHED: Final = "ubpx_process_detached"
EXITED: Final = "ubpx_process_exited"
ONCE: Final = frozenset({ATTACHED, DETACHED, EXITED})
"""Those that a client is called for once at most."""

_CLIENT_HOOKS: Final = STOP_HOOKS | frozenset(name for name in vars(NotifyHooks) if name.startswith("ubpx_"))


def given_hooks(hooks: object, name: str) -> Hooks:
    """Those of what a caller gave for a client of this name, None for no hooks; raises UsageError, PluginFailed."""
    if hooks is None:
        return {}
    found = client_hooks(hooks, name)
    if not found:
        raise UsageError(f"hooks={hooks!r} has no client hook; mark its methods with ubpx.hookspecs.hookimpl")
    return found


def client_hooks(plugin: object, name: str) -> Hooks:
    """The client hooks that an object implements; raises PluginFailed if a hook of its is not as specified."""
    alone = pluggy.PluginManager("ubpx")  # one for each: a hook is called for one client at a time
    for specified in (NotifyHooks, StopHooks, AskHooks):
        alone.add_hookspecs(specified)
    try:
        alone.register(plugin, name)
        alone.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginFailed(name, str(error)) from error
    callers = {hook: getattr(alone.hook, hook) for hook in _CLIENT_HOOKS}
    return {hook: caller for hook, caller in callers.items() if caller.get_hookimpls()}
