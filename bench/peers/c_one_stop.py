"""A tracer in C, one stop a hit: the yardstick. GETREGS, POKEUSER, CONT; the copy of the instruction lies ready."""

import os

from interface import Armed, Place, main, run

TITLE = "tracer in C, one stop"
CALLS = 20_000


def serve(place: Place, armed: Armed) -> int | None:
    """See bench/programs/tracer.c; the harness has compiled it."""
    return run([os.environ["BENCH_TRACER"], "slot", *place.words()], armed)


if __name__ == "__main__":
    main(serve)
