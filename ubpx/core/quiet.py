"""Whether all of many threads have stopped, asked again after each stop: not each of a thousand each time."""

from collections.abc import Callable, Iterable
from typing import Final

from ubpx.core.spaces import Thread


class StillRunning:
    """Those of some threads that do not stand yet."""

    def __init__(self, threads: Callable[[], Iterable[Thread]], stands: Callable[[Thread], bool]) -> None:
        """``threads`` gives all of them, those too that have come meanwhile; one that is none of them any more
        ``stands``.
        """
        self._threads: Final = threads
        self._stands: Final = stands
        self._left: Final = list(threads())

    @property
    def none(self) -> bool:
        """Whether all stand now. Those that did when it was asked before are looked at again last of all."""
        left, stands = self._left, self._stands
        while left and stands(left[-1]):
            left.pop()
        if not left:
            left.extend(each for each in self._threads() if not stands(each))
        return not left
