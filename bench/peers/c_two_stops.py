"""A tracer in C, two stops a hit: the copy is stepped over, as gdb does out of line."""

import os

from interface import Armed, Place, main, run

TITLE = "tracer in C, two stops"
CALLS = 20_000


def serve(place: Place, armed: Armed) -> int | None:
    """See bench/programs/tracer.c; the harness has compiled it."""
    return run([os.environ["BENCH_TRACER"], "step", *place.words()], armed)


if __name__ == "__main__":
    main(serve)
