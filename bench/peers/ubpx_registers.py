"""ubpx, default settings: a Python handler that reads two registers."""

import ubpx
from interface import Armed, Place, main, wait_for_end

TITLE = "ubpx, Python handler, two registers"
CALLS = 20_000


def serve(place: Place, armed: Armed) -> int:
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
        if wrong or lease.hits != count:
            raise RuntimeError(f"{wrong} arguments were not what the program passed, {count} of {lease.hits} hits")
    return count


if __name__ == "__main__":
    main(serve)
