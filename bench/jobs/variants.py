"""ubpx under other conditions than one client's: ``variants.py NAME[=ARGUMENT] PLACE...``; speaks as a peer does."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

import ubpx
from interface import Armed, Place, main, wait_for_end

BARE_CALLS = 200_000


def count_nothing(_: ubpx.Hit) -> None:
    """A handler that does nothing: the lease counts."""


def bare_call_ns() -> float:
    """What it takes Python to call that handler, loop included: the median of a few tries."""
    tries = []
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(BARE_CALLS):
            count_nothing(None)  # type: ignore[arg-type]  # it does not look
        tries.append((time.perf_counter_ns() - began) / BARE_CALLS)
    return sorted(tries)[len(tries) // 2]


def clients(place: Place, armed: Armed, number: int) -> Mapping[str, float | None]:
    """So many clients at one address; none may have missed a hit."""
    with ubpx.attach(place.pid) as target:
        leases = [target.client(f"client {each}").probe(place.address, count_nothing) for each in range(number)]
        armed()
        wait_for_end()
        hits = {lease.hits for lease in leases}
        if len(hits) != 1:
            raise RuntimeError(f"the clients counted {sorted(hits)}")
    return {"hits": hits.pop(), "bare_call_ns": bare_call_ns()}


def busy(place: Place, armed: Armed) -> int:
    """Another Python thread of ours computes."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    with ubpx.attach(place.pid) as target:
        lease = target.client("bench").probe(place.address, count_nothing)
        thread = threading.Thread(target=compute)
        thread.start()
        try:
            armed()
            wait_for_end()
        finally:
            over.set()
            thread.join()
    return lease.hits


def main_of(variant: str) -> None:
    """Run the variant that the first argument names."""
    name, _, argument = variant.partition("=")
    if name == "clients":
        main(lambda place, armed: clients(place, armed, int(argument)))
    elif name == "busy":
        main(busy)
    else:
        raise SystemExit(f"no variant is called {name!r}")


if __name__ == "__main__":
    main_of(sys.argv.pop(1))
