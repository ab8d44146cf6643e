"""What comes between two requests of the core, or makes one fail: at most one failure in a schedule, at any call."""

import errno
import os
import signal as signals
from collections.abc import Callable, Mapping
from typing import Final

from ubpx._errors import MemoryFault, PtraceFailed, SlotsExhausted
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx.testing.simulation.choices import Pick, one_of
from ubpx.testing.simulation.ledger import Ledger
from ubpx.testing.simulation.seeded import SeededTracer

_FAR: Final = 24
"""Something comes between after at most so many requests."""
REFUSED: Final = frozenset({"interrupt", "settle", "map_area"})
"""What the kernel may refuse while a client's own request is carried out: the client is told, and all is as before."""


class Interference:
    """Decides what comes between, and when. Owned by one schedule's world."""

    def __init__(self, kernel: SeededTracer, ledger: Ledger, pick: Pick, pid: int, *, failures: int) -> None:
        self._kernel: Final = kernel
        self._ledger: Final = ledger
        self._pick: Final = pick
        self._pid: Final = ProcessId(pid)
        self._failures = failures
        self.told: Callable[[str], None] = lambda _what: None
        self.may_refuse: Callable[[], bool] = lambda: False
        """Whether a client's own request is carried out, and nothing else."""
        self._failing: Final[Mapping[str, Callable[[str], None]]] = {
            "map_area": self._fail_to_map,
            "insert": self._fail_to_write,
        }
        kernel.between = self._come
        self._wait()

    def stop(self) -> None:
        """From now on everything goes as it should."""
        self._failures = 0

    def _wait(self) -> None:
        self._kernel.countdown = 1 + self._pick(_FAR)

    def _come(self, request: str) -> None:
        try:
            if self._failures and not self._pick(2):
                self._failures -= 1
                self._fail(request)
            else:
                for _ in range(1 + self._pick(3)):
                    self._kernel.advance()
        finally:
            self._wait()

    def _fail(self, request: str) -> None:
        choice = self._pick(3)
        if choice == 0 and self._kernel.lives(self._pid):
            self._kill(request)
        elif choice == 1 and request in REFUSED and self.may_refuse():
            self._refuse(request)
        elif request in self._failing:
            self._failing[request](request)
        else:
            self._failures += 1  # not here

    def _kill(self, request: str) -> None:
        """The process is killed; what was about to be asked finds nobody, or somebody who is dying."""
        self.told(f"killed before {request}")
        if self._pick(2):
            self._kernel.kill(self._pid)
        else:
            self._kernel.doom(self._pid, -int(signals.SIGKILL))

    def _refuse(self, request: str) -> None:
        self.told(f"{request} fails")
        code = one_of(self._pick, (errno.EIO, errno.EPERM, errno.EINVAL))
        raise PtraceFailed(request, self._pid, OSError(code, os.strerror(code)))

    def _fail_to_map(self, request: str) -> None:
        """The place is taken meanwhile, or there is no memory to be had."""
        if self._pick(2):
            self.told("no memory to map")
            raise SlotsExhausted(self._pid, VirtAddr(0), "the program's mmap failed")
        process = self._kernel.process_by(self._pid)
        for mapping in process.memory.mappings():
            place = mapping.start - 16 * PAGE_SIZE
            if process.memory.is_free(place, PAGE_SIZE):
                self.told(f"{request} finds {place:#x} taken")
                process.memory.map(place, bytes(PAGE_SIZE), permissions="rw-p")

    def _fail_to_write(self, request: str) -> None:
        """No memory for a copy of the page; a trap that goes back after a step in place finds one."""
        if self._ledger.process.space.taking_turns:
            self._failures += 1
            return
        self.told(f"{request} fails")
        raise MemoryFault(0, 1, "patch")
