"""The plugin as the plugin loader sees it."""

import subprocess
import sys

import pluggy
import pytest

from ubpx import hookspecs
from ubpx.symbols.plugin import SymbolsPlugin


def test_the_resolver_answers_its_hooks() -> None:
    """Invariant: an instance, made without arguments, is a plugin whose hooks fit the specification."""
    manager = pluggy.PluginManager("ubpx")
    manager.add_hookspecs(hookspecs.AskHooks)
    manager.register(SymbolsPlugin())
    manager.check_pending()
    hooks = manager.get_hookcallers(manager.get_plugins().pop()) or []
    assert {hook.name for hook in hooks} == {"ubpx_resolve_spec", "ubpx_resolve_many", "ubpx_find_loader_stop"}


@pytest.mark.contract("import-7")
def test_importing_loads_no_elf_library() -> None:
    """Invariant: the resolver is loaded at the first question, pyelftools at the first file, neither before."""
    program = "import sys, ubpx.symbols.plugin; sys.exit('ubpx.symbols.resolver' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
    program = "import sys, ubpx.symbols.resolver; sys.exit('elftools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
