"""ubpx, default settings: a Python handler that reads two registers."""

import ubpx
from interface import Armed, Place, main, wait_for_end

TITLE = "ubpx, Python handler, two registers"
CALLS = 20_000
WARM_UP_S = 1.3
"""Each second ubpx looks which probepoints are hot, and has them jump."""


def serve(place: Place, armed: Armed) -> dict[str, float | str | None]:
    """What it reads is what the program passes: a round's calls are numbered from 0 on."""
    count = wrong = before = 0

    def handler(hit: ubpx.Hit) -> None:
        nonlocal count, wrong, before
        regs = hit.regs
        number, stack = regs.rdi, regs.rsp
        if number != before or not stack:
            wrong += number != 0
        before = number + 1
        count += 1

    with ubpx.attach(place.pid) as target:
        lease = target.client("bench").probe(place.address, handler)
        armed()
        wait_for_end()
        strategy = str(lease.probepoint.strategy) if lease.probepoint is not None else None
        if wrong or lease.hits != count:
            raise RuntimeError(f"{wrong} arguments were not what the program passed, {count} of {lease.hits} hits")
    return {"hits": count, "strategy": strategy}


if __name__ == "__main__":
    main(serve)
