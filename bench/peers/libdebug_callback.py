"""libdebug: a breakpoint with a Python callback that counts."""

from interface import Armed, Place, main

TITLE = "libdebug, Python callback"
CALLS = 2_000
PACKAGES = ("libdebug",)


def serve(place: Place, armed: Armed) -> int:
    """Its own count of hits is compared with the callback's."""
    from libdebug import debugger

    hits = 0

    def callback(*_: object) -> None:
        nonlocal hits
        hits += 1

    program = debugger()
    program.attach(place.pid)
    breakpoint_ = program.breakpoint(place.address, callback=callback, file="absolute")
    over = program.breakpoint(place.over, file="absolute")
    program.cont()
    armed()
    program.wait()
    if not over.hit_on(program):
        raise RuntimeError("the program stopped elsewhere")
    if breakpoint_.hit_count != hits:
        raise RuntimeError(f"the callback ran {hits} times, libdebug counted {breakpoint_.hit_count}")
    program.detach()
    program.terminate()
    return hits


if __name__ == "__main__":
    main(serve)
