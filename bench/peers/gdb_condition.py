"""gdb: a breakpoint whose condition is never true. It counts by assigning, which costs little beside the rest."""

from interface import Armed, Place, main, need, run

TITLE = "gdb, false condition"
CALLS = 500


def serve(place: Place, armed: Armed) -> int | None:
    """Gdb evaluates the condition."""
    commands = [
        "set pagination off",
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
    return run([need("gdb"), "-nx", "-q", "-batch", *(word for each in commands for word in ("-ex", each))], armed)


if __name__ == "__main__":
    main(serve)
