"""A tracer in C, and a jump to a stub in which a trap stands: nothing is written at a hit; GETREGS, CONT."""

import os

from interface import Armed, Place, main, run

TITLE = "tracer in C, jump to a stub"
CALLS = 20_000


def serve(place: Place, armed: Armed) -> int | None:
    """See bench/programs/tracer.c; the harness has compiled it."""
    return run([os.environ["BENCH_TRACER"], "stub", *place.words()], armed)


if __name__ == "__main__":
    main(serve)
