"""What tests of this distribution share; they import it as ``tests.NAME``, the name that mypy knows.

Pytest imports tests by path and puts no directory on the path, so that somebody must load it. This does not lie in
``tests`` itself, because mypy would take it for the ``tests.conftest`` of another distribution.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]


def load(name: str, root: Path) -> ModuleType:
    """The module of this name, from its file below ``root``; if it is loaded already, that one."""
    if name not in sys.modules:
        path = str(root.joinpath(*name.split(".")).with_suffix(".py"))
        sys.modules[name] = module = ModuleType(name)
        module.__file__ = path
        SourceFileLoader(name, path).exec_module(module)
    return sys.modules[name]


load("tests.real.loops", ROOT)
pytest_report_to_serializable: Final = load("tests.real.reports", ROOT).pytest_report_to_serializable
load("tests.parsing", HERE)
_fake: Final = load("tests.fake_broker", HERE)
broker = _fake.broker
target = _fake.target
make_world: Final = load("tests.channel_world", HERE).make_world
