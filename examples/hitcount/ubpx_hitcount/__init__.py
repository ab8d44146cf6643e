"""hitcount: how often does each thread of a program come past a place?

A complete client of ubpx. It is found by its entry point (see pyproject.toml), and acts on a process
when somebody asks for it: ``ubpx.attach(pid, plugins=["hitcount"])``.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Final

import ubpx
from ubpx.core.ports import ClientApi, ProcessView
from ubpx.hookspecs import hookimpl

SPEC_VARIABLE: Final = "UBPX_HITCOUNT_SPEC"
"""The environment variable that says where to count, such as ``libc:write``."""

_THREADS_SHOWN: Final = 8


class HitCount:
    """The plugin. ubpx makes one, and gives it a client of its own on every process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._hits: dict[int, Counter[int]] = {}

    def hits(self, pid: int) -> Mapping[int, int]:
        """Hits of one process by thread, as long as it is attached."""
        return self._hits.get(pid, Counter())

    @hookimpl
    def ubpx_process_attached(self, client: ClientApi, process: ProcessView) -> None:
        """Begin to count."""
        spec = self._environment.get(SPEC_VARIABLE)
        if not spec:
            raise ubpx.UsageError(f"{client.name} does not know where to count; set {SPEC_VARIABLE}=libc:write, say")
        by_thread = self._hits[process.pid] = Counter()

        def count(hit: ubpx.Hit) -> None:
            # Handlers run one at a time, in ubpx's tracer thread: no lock is needed.
            by_thread[hit.tid] += 1

        client.probe(spec, count)

    @hookimpl
    def ubpx_process_detached(self, client: ClientApi, process: ProcessView) -> None:
        """The process runs on without us."""
        self._tell(client, process)

    @hookimpl
    def ubpx_process_exited(self, client: ClientApi, process: ProcessView) -> None:
        """The process has ended while we counted."""
        self._tell(client, process)

    def _tell(self, client: ClientApi, process: ProcessView) -> None:
        by_thread = self._hits.pop(process.pid, None)
        if by_thread is not None:
            print(f"{client.name}: {summary(process.pid, by_thread)}", file=sys.stderr)


def summary(pid: int, by_thread: Counter[int]) -> str:
    """One line for people; the busiest threads first."""
    total = f"{by_thread.total():,} hits in process {pid}"
    threads = [f"thread {tid} {hits:,}" for tid, hits in by_thread.most_common(_THREADS_SHOWN)]
    if len(by_thread) > _THREADS_SHOWN:
        threads.append(f"{len(by_thread) - _THREADS_SHOWN} more threads")
    return f"{total}: {', '.join(threads)}" if threads else total
