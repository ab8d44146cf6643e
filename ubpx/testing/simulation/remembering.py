"""What an architecture says is a function of what it is asked: schedules by the thousand ask it once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from ubpx.core import ubp
from ubpx.core.ubp.plans import Architecture, InsnAnalysis, SlotCode, TrapPatch
from ubpx.core.values import Insn, VirtAddr


class Remembering:
    """Answers as the architecture that it wraps does, from memory where it was asked before."""

    def __init__(self, asked: Architecture) -> None:
        self._asked: Final = asked
        self.analyze: Final = cache(asked.analyze)
        self._slots: Final[dict[tuple[Insn, VirtAddr], SlotCode]] = {}
        self._traps: Final[dict[Insn, TrapPatch]] = {}

    def slot_code(self, analysis: InsnAnalysis, slot: VirtAddr) -> SlotCode:
        """See Architecture."""
        known = self._slots.get((analysis.insn, slot))
        if known is None:
            known = self._slots[analysis.insn, slot] = self._asked.slot_code(analysis, slot)
        return known

    def trap(self, analysis: InsnAnalysis) -> TrapPatch:
        """See Architecture."""
        known = self._traps.get(analysis.insn)
        if known is None:
            known = self._traps[analysis.insn] = self._asked.trap(analysis)
        return known

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._asked, name)
        setattr(self, name, value)
        return value


@contextmanager
def remembering() -> Iterator[None]:
    """While it lasts, one architecture of each kind is made, and remembers."""
    sound = dict(ubp.ARCHITECTURES)
    ubp.ARCHITECTURES.update({name: _once(make) for name, make in sound.items()})
    try:
        yield
    finally:
        ubp.ARCHITECTURES.update(sound)


def _once(make: Callable[[], Architecture]) -> Callable[[], Architecture]:
    return cache(lambda: Remembering(make()))
