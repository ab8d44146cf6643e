"""What ``check_tracer`` needs of those who want a tracer checked, as Protocols."""

from contextlib import AbstractContextManager
from typing import Protocol

from ubpx.core.ports import Tracer
from ubpx.core.values import ProcessId, VirtAddr


class ConformingProgram(Protocol):
    """One running program with one thread, and what a check can ask of it, from any thread."""

    tracer: Tracer
    """A new one, not opened."""
    pid: ProcessId
    site: VirtAddr
    """An instruction longer than a trap that does nothing, run once for each ``call``."""
    behind: VirtAddr
    """The next instruction."""
    writable: VirtAddr
    """16 bytes that the program may write and does not need; ``site`` is where it may not write."""
    unmapped: VirtAddr

    def call(self) -> None:
        """Have the thread run through ``site`` soon."""
        ...

    def called(self) -> bool:
        """Whether it comes (or came) through, once for each time that this is asked."""
        ...

    def signal(self, number: int) -> None:
        """Send the thread a signal; it has handlers for SIGUSR1 and SIGUSR2."""
        ...

    def received(self, number: int) -> bool:
        """Whether the handler runs (or ran) in time."""
        ...

    def exit(self, status: int) -> None:
        """Have it exit soon."""
        ...

    def exit_status(self) -> int:
        """As its parent is told, if the tracer says that it is our own child."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def is_untouched(self) -> bool:
        """Whether it lives as if nobody had been there: untraced, not stopped, its memory as before."""
        ...


class Scenario(Protocol):
    """Starts programs for ``check_tracer``."""

    def start(self) -> AbstractContextManager[ConformingProgram]:
        """A program that runs on, and is ended with the context."""
        ...
