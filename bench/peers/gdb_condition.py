"""gdb: a breakpoint whose condition is never true. It counts by assigning, which costs little beside the rest."""

from interface import Armed, Place, main, run_gdb

TITLE = "gdb, false condition"
CALLS = 500


def serve(place: Place, armed: Armed) -> int | None:
    """Gdb evaluates the condition."""
    commands = [
        f"attach {place.pid}",
        "set var $hits = 0",
        f"break *{place.address:#x} if ($hits = $hits + 1) < 0",
        f"break *{place.over:#x}",
        r'printf "armed\n"',
        "continue",
        r'printf "{\"hits\": %d}\n", $hits',
        "delete",
        "detach",
    ]
    return run_gdb(commands, armed)


if __name__ == "__main__":
    main(serve)
