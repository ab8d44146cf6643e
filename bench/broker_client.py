"""One client of bench/broker.py. Runs as a script: SOCKET ADDRESS WAY; upon the end of its input it says its counts."""

import asyncio
import sys
import time
from typing import Any

import ubpx

PATIENCE_S = 20.0


def blocking(path: str, address: int, mode: str) -> None:
    """A handler that counts, called by a thread of the library's."""
    count = 0

    def handler(hit: Any) -> None:  # noqa: ARG001 - a counter does not look at the hit
        nonlocal count
        count += 1

    with ubpx.connect(path) as target:
        client: Any = target.client("bench")
        lease = client.probe(address, handler, mode=mode)
        print("ready", flush=True)
        sys.stdin.read()
        until = time.monotonic() + PATIENCE_S
        while count + lease.dropped < lease.hits and time.monotonic() < until:
            time.sleep(0.01)
        print(count, lease.dropped, lease.hits)


async def asynchronous(path: str, address: int) -> None:
    """The same in an event loop."""
    from ubpx_froggy import aio

    count = 0

    def handler(hit: Any) -> None:  # noqa: ARG001 - a counter does not look at the hit
        nonlocal count
        count += 1

    async with await aio.connect(path) as target:
        client = await target.client("bench")
        lease = await client.probe(address, handler)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await lease.refresh()
        print(count, lease.dropped, lease.hits)


def main(path: str, address: str, way: str) -> None:
    """One way."""
    if way == "asyncio":
        asyncio.run(asynchronous(path, int(address, 16)))
    else:
        blocking(path, int(address, 16), way)


if __name__ == "__main__":
    main(*sys.argv[1:])
