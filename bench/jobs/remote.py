"""A client in another process than the tracer's: ``remote.py WAY PLACE...``, WAY being notify, sync or asyncio.

Starts a broker for the program, and is its one client. Speaks as a peer does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ubpx
from interface import Armed, Place, main, wait_for_end

PATIENCE_S = 20.0
UBPX = (sys.executable, "-c", "from ubpx.cli import main; main()")


@contextmanager
def broker(pid: int) -> Iterator[tuple[str, int]]:
    """``ubpx serve -p PID``; the path of its socket, and its process id."""
    with tempfile.TemporaryDirectory(prefix="ubpx-bench-") as directory:
        path = f"{directory}/socket"
        command = [*UBPX, "serve", "-p", str(pid), "--socket", path]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
            try:
                if serving.stderr is None or not serving.stderr.readline().startswith("ubpx: serving"):
                    raise RuntimeError("the broker could not be started")
                yield path, serving.pid
            finally:
                serving.terminate()


class Counter:
    """A handler, and its count."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: Any) -> None:  # noqa: D102 - it is a handler
        self.count += 1

    def checked(self, lease: Any) -> int:
        """The lease's hits. Raises RuntimeError if the handler was not told of each."""
        if self.count != lease.hits or lease.dropped:
            raise RuntimeError(f"{self.count} of {lease.hits} hits handled, {lease.dropped} dropped")
        return int(lease.hits)


def blocking(place: Place, armed: Armed, mode: str) -> int:
    """A handler that counts, called by a thread of the library's."""
    handler = Counter()
    with broker(place.pid) as (path, _), ubpx.connect(path) as target:
        client: Any = target.client("bench")
        lease = client.probe(place.address, handler, mode=mode)
        armed()
        wait_for_end()
        until = time.monotonic() + PATIENCE_S
        while handler.count + lease.dropped < lease.hits and time.monotonic() < until:
            time.sleep(0.01)
        return handler.checked(lease)


async def asynchronous(place: Place, armed: Armed) -> int:
    """The same in an event loop."""
    from ubpx_froggy import aio

    handler = Counter()
    with broker(place.pid) as (path, _):
        async with await aio.connect(path) as target:
            client = await target.client("bench")
            lease = await client.probe(place.address, handler)
            armed()
            await asyncio.to_thread(wait_for_end)
            await lease.refresh()
            return handler.checked(lease)


def main_of(way: str) -> None:
    """Run one way."""
    if way == "asyncio":
        main(lambda place, armed: asyncio.run(asynchronous(place, armed)))
    else:
        main(lambda place, armed: blocking(place, armed, way))


if __name__ == "__main__":
    main_of(sys.argv.pop(1))
