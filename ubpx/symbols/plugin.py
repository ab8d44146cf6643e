"""What the entry point names. Every session has one; most of what it knows is loaded at the first question."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

from ubpx.core.ports import ProcessView, Refusal
from ubpx.core.values import Place

if TYPE_CHECKING:
    from ubpx.symbols.resolver import SymbolResolver

hookimpl = pluggy.HookimplMarker("ubpx")


class SymbolsPlugin:
    """Resolves specifications by the ELF symbols of what is mapped. Owns its resolver."""

    def __init__(self) -> None:
        self._made: SymbolResolver | None = None

    @property
    def _resolver(self) -> "SymbolResolver":
        if self._made is None:
            from ubpx.symbols.resolver import SymbolResolver

            self._made = SymbolResolver()
        return self._made

    @hookimpl
    def ubpx_find_loader_stop(self, process: ProcessView) -> Place | None:
        """Glibc's and musl's loaders have one; a static program has none."""
        return self._resolver.loader_stop(process)

    @hookimpl
    def ubpx_resolve_spec(self, spec: str | int, process: ProcessView) -> Place | None:
        """See ``SymbolResolver.resolve``."""
        return self._resolver.resolve(spec, process)

    @hookimpl
    def ubpx_resolve_many(
        self, specs: str | Sequence[str | int], process: ProcessView
    ) -> Sequence[Place | Refusal] | None:
        """See ``SymbolResolver.resolve_many``."""
        return self._resolver.resolve_many(specs, process)
