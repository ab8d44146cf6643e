"""ubpx, default settings: one Python handler that counts."""

import ubpx
from interface import Armed, Place, main, wait_for_end

TITLE = "ubpx, Python handler that counts"
CALLS = 20_000


def serve(place: Place, armed: Armed) -> int:
    """The handler's count is compared with the lease's."""
    count = 0

    def handler(_: ubpx.Hit) -> None:
        nonlocal count
        count += 1

    with ubpx.attach(place.pid) as target:
        lease = target.client("bench").probe(place.address, handler)
        armed()
        wait_for_end()
        if lease.hits != count:
            raise RuntimeError(f"the handler ran {count} times, the lease counted {lease.hits}")
    return count


if __name__ == "__main__":
    main(serve)
