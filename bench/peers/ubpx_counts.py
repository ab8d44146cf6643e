"""ubpx, default settings: one Python handler that counts."""

import ubpx
from interface import Armed, Place, main, wait_for_end

TITLE = "ubpx, Python handler that counts"
CALLS = 20_000
WARM_UP_S = 1.3
"""Each second ubpx looks which probepoints are hot, and has them jump."""


def serve(place: Place, armed: Armed) -> dict[str, float | str | None]:
    """The handler's count is compared with the lease's."""
    count = 0

    def handler(_: ubpx.Hit) -> None:
        nonlocal count
        count += 1

    with ubpx.attach(place.pid) as target:
        lease = target.client("bench").probe(place.address, handler)
        armed()
        wait_for_end()
        strategy = str(lease.probepoint.strategy) if lease.probepoint is not None else None
        if lease.hits != count:
            raise RuntimeError(f"the handler ran {count} times, the lease counted {lease.hits}")
    return {"hits": count, "strategy": strategy}


if __name__ == "__main__":
    main(serve)
