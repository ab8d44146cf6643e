"""Plugins on the command line, each installed for the test: their commands, their formats, and what is said of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import PluginDirectory

UBPX = Path(sys.executable).with_name("ubpx")

GREETER = """
    import click
    from ubpx.hookspecs import hookimpl

    @click.command()
    @click.option("--loudly", is_flag=True)
    def greet(loudly):
        "Say hello."
        click.echo("HELLO" if loudly else "hello")

    @click.command()
    def doctor():
        "Not ours."

    class Plugin:
        @hookimpl
        def ubpx_commands(self):
            return [greet, doctor]
"""
BROKEN = {
    "raising": "raise RuntimeError('not today')",
    "answerless": "return [42]",
    "nameless": "return 42",
}


def ubpx(plugins: PluginDirectory, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [UBPX, *arguments], env=plugins.environment, capture_output=True, text=True, timeout=60, check=False
    )


def with_hook(hook: str, body: str) -> str:
    return f"from ubpx.hookspecs import hookimpl\nclass Plugin:\n  @hookimpl\n  def {hook}(self):\n    {body}\n"


def test_a_plugin_adds_a_command(plugin_directory: PluginDirectory) -> None:
    """Invariant: the hook ubpx_commands fires for --help and for the command; ours of the same name stays."""
    plugin_directory.install("greeter", GREETER)
    helped = ubpx(plugin_directory, "--help")
    assert helped.returncode == 0
    assert "greet    Say hello." in helped.stdout
    assert "trace" in helped.stdout
    assert "Not ours." not in helped.stdout
    assert helped.stderr == "ubpx: plugin 'greeter' offers 'doctor', which there is already; its own is left out\n"
    assert ubpx(plugin_directory, "greet", "--loudly").stdout == "HELLO\n"
    misused = ubpx(plugin_directory, "greet", "--softly")
    assert misused.returncode == 2
    complaint = misused.stderr.splitlines()[-1]
    assert complaint.startswith("ubpx: no such option")
    assert complaint.endswith("; see ubpx greet --help")


@pytest.mark.parametrize("hook", ["ubpx_commands", "ubpx_sinks"])
def test_a_broken_plugin_breaks_nobody_else(plugin_directory: PluginDirectory, hook: str) -> None:
    """Invariant: --help, commands and formats work beside plugins that fail; each failure is one line."""
    plugin_directory.install("greeter", GREETER.replace(", doctor]", "]"))
    plugin_directory.install("unloadable", "raise ImportError('no \\x1b[2J such thing')")
    for name, body in BROKEN.items():
        plugin_directory.install(name, with_hook(hook, body))
    helped = ubpx(plugin_directory, "--help")
    assert helped.returncode == 0
    assert "greet    Say hello." in helped.stdout
    complaints = helped.stderr.splitlines()
    if hook == "ubpx_sinks":
        refused = ubpx(plugin_directory, "trace", "-e", "x", "--format", "none", "--", "true")
        assert refused.returncode == 2
        complaints = refused.stderr.splitlines()
        assert "'none' is no format; there are text, json" in complaints.pop()
    assert len(complaints) == 1 + len(BROKEN)
    assert all(line.startswith("ubpx: plugin ") and line.isprintable() for line in complaints)
    assert "Traceback" not in helped.stderr


def test_a_command_of_a_plugin_that_raises_is_one_line(plugin_directory: PluginDirectory) -> None:
    """Invariant: what nobody expected is told in one line with its place; --debug shows the traceback."""
    plugin_directory.install(
        "faulty", GREETER.replace('click.echo("HELLO" if loudly else "hello")', "raise ZeroDivisionError('oh')")
    )
    failed = ubpx(plugin_directory, "greet")
    assert failed.returncode == 1
    assert "unexpected ZeroDivisionError (oh): " in failed.stderr.splitlines()[-1]
    assert "faulty.py:9; please report it" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Traceback" in ubpx(plugin_directory, "--debug", "greet").stderr


def test_plugins_lists_what_is_installed(plugin_directory: PluginDirectory) -> None:
    """Invariant: name, distribution, version and hooks of each plugin; why one failed; escapes in both."""
    plugin_directory.install("greeter", GREETER)
    plugin_directory.install("unloadable", "raise ImportError('no \\x1b[2J such thing')")
    plugin_directory.install("misspelt", with_hook("ubpx_comands", "return []"))
    plugin_directory.install("empty", "class Plugin: pass")
    listed = ubpx(plugin_directory, "plugins", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    found = {each["name"]: each for each in json.loads(listed.stdout)}
    assert found["greeter"] == {
        "name": "greeter",
        "distribution": "greeter",
        "version": "1.5",
        "client_hooks": [],
        "ask_hooks": ["ubpx_commands"],
        "unknown_hooks": [],
        "failure": None,
    }
    assert "ubpx_process_attached" in found["hitcount"]["client_hooks"]
    assert found["hitcount"]["distribution"] == "ubpx-hitcount"
    assert "ubpx_resolve_spec" in found["symbols"]["ask_hooks"]
    assert set(found["ptracepp"]["ask_hooks"]) >= {"ubpx_open_tracer", "ubpx_diagnose"}
    text = ubpx(plugin_directory, "plugins").stdout
    assert "greeter (greeter 1.5)\n  ask hooks: ubpx_commands\n" in text
    assert "unloadable (unloadable 1.5)\n  failed to load: ImportError: no \\x1b[2J such thing\n" in text
    assert "unknown hooks, never called: ubpx_comands\n" in text
    assert "empty (empty 1.5)\n  no hooks\n" in text
