"""Brokers, as ``attach`` and ``connect`` need them: plugins find them and connect to them."""

from collections.abc import Sequence
from typing import Any

from ubpx._errors import AlreadyTraced, NoBroker
from ubpx.core.checks import check_names
from ubpx.core.plugins import Plugins


def connect_by(loaded: Plugins, plugins: Sequence[str], **where: Any) -> Any:
    """What the hook ``ubpx_connect`` gives for ``where``, with the client plugins of these names at work there.

    Raises NoBroker, and what the hook and ``target.client`` raise; then the connection is given up.
    """
    check_names("plugins", plugins)
    clients = {name: loaded.client(name) for name in plugins}
    target = loaded.ask("ubpx_connect", **where)
    if target is None:
        raise NoBroker("nothing that can connect to one is installed", "install it with: pip install ubpx-froggy")
    try:
        for name, plugin in clients.items():
            target.client(name, hooks=plugin)
    except BaseException:
        target.detach()
        raise
    return target


def naming_broker(refusal: AlreadyTraced, loaded: Plugins) -> AlreadyTraced:
    """The same, with the broker that traces the process, where a plugin knows of one."""
    broker: str | None = refusal.broker or loaded.ask("ubpx_find_broker", pid=refusal.pid)
    return AlreadyTraced(refusal.pid, refusal.tracer_pid, refusal.tracer_command, broker)
