"""What a target's program has mapped as code, and what it loads and unloads while it runs."""

import logging
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from ubpx._errors import UbpxError
from ubpx.core.spaces import TracedProcess
from ubpx.core.values import AddressSpaceId, MappedRange, Place, VirtAddr

_log = logging.getLogger("ubpx.modules")

FindLoaderStop = Callable[[TracedProcess], Place | None]
"""Where the dynamic loader of a process stops after it has mapped or unmapped something."""

Watch = Callable[[VirtAddr, Callable[[], None]], None]
"""Have something done after each hit at an address."""


@attrs.frozen
class LoadedFile:
    """One file with code in the process, at one place."""

    path: str
    """As /proc/PID/maps has it."""
    start: VirtAddr
    """Where its first byte is."""
    end: VirtAddr = attrs.field(eq=False)
    """Behind its last."""


def loaded_files(mappings: Iterable[MappedRange]) -> frozenset[LoadedFile]:
    """The files of which code is mapped; one that is loaded twice counts twice.

    A file's mappings belong together from one that shows its first byte to the next such one.
    """
    found: dict[tuple[str, int, str], list[MappedRange]] = {}
    files = set()
    for mapped in [*mappings, None]:
        key = (mapped.device, mapped.inode, mapped.path) if mapped else None
        for former in [each for each in found if mapped is None or (each == key and mapped.offset == 0)]:
            ranges = found.pop(former)
            if any(each.executable for each in ranges):
                files.add(LoadedFile(ranges[0].path, ranges[0].start, ranges[-1].end))
        if mapped is not None and key is not None and mapped.inode:
            found.setdefault(key, []).append(mapped)
    return frozenset(files)


class ModuleWatch:
    """Looks, at each stop of the program's own loader, what has changed. Owned by the target's desk.

    A program without a dynamic loader loads nothing, and is not watched.
    """

    def __init__(
        self,
        find_loader_stop: FindLoaderStop,
        watch: Watch,
        changed: Callable[[frozenset[LoadedFile], frozenset[LoadedFile]], None],
    ) -> None:
        self._find_loader_stop: Final = find_loader_stop
        self._watch: Final = watch
        self._changed: Final = changed
        self._space: AddressSpaceId | None = None
        """Of the program that is watched."""
        self._known: frozenset[LoadedFile] = frozenset()

    def begin(self, process: TracedProcess) -> bool:
        """Watch the program that the process runs now; False: that is so already, or it cannot be."""
        if self._space == process.space.identity:
            return False
        self._space = process.space.identity
        try:
            place = self._find_loader_stop(process)
            if place is None:
                return False
            self._known = loaded_files(process.mappings())
            self._watch(place.address, lambda: self.look(process))
        except UbpxError:
            _log.warning("what process %d loads will not be noticed", process.pid, exc_info=True)
            return False
        return True

    def restart(self, process: TracedProcess) -> None:
        """The program has changed its loader, or moved it."""
        self._space = None
        self.begin(process)

    def look(self, process: TracedProcess) -> None:
        """Tell what has been loaded and unloaded since the last look."""
        known, self._known = self._known, loaded_files(process.mappings())
        loaded, unloaded = self._known - known, known - self._known
        if loaded or unloaded:
            self._changed(loaded, unloaded)
