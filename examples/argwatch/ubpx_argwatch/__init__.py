"""argwatch: with which first arguments is a function called?

A complete client of ubpx. It is found by its entry point (see pyproject.toml), and acts on a process
when somebody asks for it: ``ubpx.attach(pid, plugins=["argwatch"])``.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import ubpx
from ubpx.core.ports import ClientApi, ProcessView
from ubpx.hookspecs import hookimpl

SPEC_VARIABLE: Final = "UBPX_ARGWATCH_SPEC"
"""The environment variable that names the function, such as ``libc:malloc``."""

_BAR_WIDTH: Final = 40


class ArgWatch:
    """The plugin. ubpx makes one, and gives it a client of its own on every process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._sizes: dict[int, Counter[int]] = {}

    def calls_by_size(self, pid: int) -> Mapping[int, int]:
        """Calls in one process by the length in bits of argument 0, as long as it is attached."""
        return self._sizes.get(pid, Counter())

    @hookimpl
    def ubpx_process_attached(self, client: ClientApi, process: ProcessView) -> None:
        """Begin to watch."""
        spec = self._environment.get(SPEC_VARIABLE)
        if not spec:
            raise ubpx.UsageError(f"{client.name} does not know what to watch; set {SPEC_VARIABLE}=libc:malloc, say")
        by_size = self._sizes[process.pid] = Counter()

        def watch(hit: ubpx.Hit) -> None:
            # An argument is read from the stopped thread when it is asked for, and is unsigned.
            by_size[hit.args[0].bit_length()] += 1

        client.probe(spec, watch)

    @hookimpl
    def ubpx_process_detached(self, client: ClientApi, process: ProcessView) -> None:
        """The process runs on without us."""
        self._tell(client, process)

    @hookimpl
    def ubpx_process_exited(self, client: ClientApi, process: ProcessView) -> None:
        """The process has ended while we watched."""
        self._tell(client, process)

    def _tell(self, client: ClientApi, process: ProcessView) -> None:
        by_size = self._sizes.pop(process.pid, None)
        if by_size is not None:
            print(f"{client.name}: argument 0 of {by_size.total():,} calls in process {process.pid}", file=sys.stderr)
            for line in histogram(by_size):
                print(f"  {line}", file=sys.stderr)


def histogram(by_size: Counter[int]) -> Iterator[str]:
    """One line for each power of two that occurred, the smallest first."""
    most = max(by_size.values(), default=0)
    for size, calls in sorted(by_size.items()):
        lowest, highest = (1 << size) >> 1, (1 << size) - 1
        bar = "#" * max(1, _BAR_WIDTH * calls // most)
        yield f"{lowest:#x} to {highest:#x}: {calls:,} {bar}"
