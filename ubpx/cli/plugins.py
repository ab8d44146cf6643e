"""``ubpx plugins``: what is installed, and what it does."""

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import attrs
import pluggy

from ubpx import hookspecs
from ubpx.cli.text import printable
from ubpx.core.plugins import ASK_HOOKS, GROUP, NOTIFY_HOOKS, STOP_HOOKS, load


@attrs.frozen(kw_only=True)
class PluginReport:
    """One entry point of our group."""

    name: str
    distribution: str
    version: str
    """Both "" where the metadata do not say."""
    client_hooks: tuple[str, ...] = ()
    ask_hooks: tuple[str, ...] = ()
    unknown_hooks: tuple[str, ...] = ()
    """Misspelt, or of another version of ubpx: never called."""
    failure: str | None = None
    """Why it could not be loaded."""


def installed(entries: Sequence[EntryPoint] | None = None) -> list[PluginReport]:
    """Every installed plugin, by name; each is loaded, and one that fails harms no other."""
    found = entry_points(group=GROUP) if entries is None else entries
    return [report(entry) for entry in sorted(found, key=lambda entry: entry.name)]


def report(entry: EntryPoint) -> PluginReport:
    """What one entry point brings."""
    plain = PluginReport(
        name=entry.name,
        distribution=entry.dist.name if entry.dist else "",
        version=entry.dist.version if entry.dist else "",
    )
    manager = pluggy.PluginManager("ubpx")
    manager.add_hookspecs(hookspecs.AskHooks)
    manager.add_hookspecs(hookspecs.NotifyHooks)
    manager.add_hookspecs(hookspecs.StopHooks)
    try:
        plugin = load(entry)
        manager.register(plugin, entry.name)
    except Exception as error:  # noqa: BLE001 - a broken plugin is what this command is for
        return attrs.evolve(plain, failure=f"{type(error).__name__}: {error}")
    hooks = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
    client_hooks = NOTIFY_HOOKS | STOP_HOOKS
    return attrs.evolve(
        plain,
        client_hooks=tuple(sorted(hooks & client_hooks)),
        ask_hooks=tuple(sorted(hooks & ASK_HOOKS)),
        unknown_hooks=tuple(sorted(hooks - client_hooks - ASK_HOOKS)),
    )


def as_json_text(reports: Sequence[PluginReport]) -> str:
    """A list of one object for each plugin."""
    return json.dumps([attrs.asdict(each) for each in reports])


def as_text(reports: Sequence[PluginReport]) -> str:
    """A paragraph for each plugin."""
    return "\n".join(line for each in reports for line in lines(each)) or "no plugin is installed"


def lines(each: PluginReport) -> list[str]:
    """What is said of one plugin."""
    origin = f"{each.distribution} {each.version}".strip() or "a distribution without metadata"
    told = [f"{printable(each.name)} ({printable(origin)})"]
    if each.failure is not None:
        return [*told, f"  failed to load: {printable(each.failure)}"]
    for label, hooks in (
        ("client hooks", each.client_hooks),
        ("ask hooks", each.ask_hooks),
        ("unknown hooks, never called", each.unknown_hooks),
    ):
        if hooks:
            told.append(f"  {label}: {printable(', '.join(hooks))}")
    return told if len(told) > 1 else [*told, "  no hooks"]
