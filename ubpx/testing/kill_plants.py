"""Faults planted in what saves programs from the death of their tracer: the tool must find each of them."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from ubpx.core.healing import Healer


def _no_guard(package: str) -> None:
    """Programs get no guard."""
    module: Any = importlib.import_module(f"{package}.tracer")
    module.PtraceTracer.can_guard = False


def _no_rows(package: str) -> None:
    """The guard is not told of traps."""
    module: Any = importlib.import_module(f"{package}.guard.table")
    module.GuardTable.stand = lambda *_, **__: None


def _no_frame(package: str) -> None:
    """A thread that is borrowed for a system call does not come back by itself."""
    module: Any = importlib.import_module(f"{package}.injection")
    module.returning_frame = lambda *_, **__: None


def _half_healed(_package: str) -> None:
    """Healing takes no trap out, and unmaps nothing."""
    healer: Any = Healer
    healer.heal = lambda *_: None


PLANTS: Final[Mapping[str, Callable[[str], None]]] = {
    "no-guard": _no_guard,
    "no-rows": _no_rows,
    "no-frame": _no_frame,
    "half-healed": _half_healed,
}
"""By name: what breaks the tracer whose modules are in the package of that name, in this process and its children."""
