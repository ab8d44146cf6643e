"""The plugin as the plugin loader sees it."""

import subprocess
import sys

import pluggy
import pytest

from ubpx import hookspecs
from ubpx.symbols.resolver import SymbolResolver


def test_the_resolver_answers_its_hooks() -> None:
    """Invariant: an instance, made without arguments, is a plugin whose hooks fit the specification."""
    manager = pluggy.PluginManager("ubpx")
    manager.add_hookspecs(hookspecs.AskHooks)
    manager.register(SymbolResolver())
    manager.check_pending()
    hooks = manager.get_hookcallers(manager.get_plugins().pop()) or []
    assert {hook.name for hook in hooks} == {"ubpx_resolve_spec", "ubpx_resolve_many", "ubpx_find_loader_stop"}


@pytest.mark.contract("import-7")
def test_importing_loads_no_elf_library() -> None:
    """Invariant: pyelftools is loaded at the first file, never at import."""
    program = "import sys, ubpx.symbols; sys.exit('elftools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
