"""gdbserver: it evaluates a false condition itself, so that gdb is not asked. It cannot count: the kernel does."""

from interface import Armed, Place, main, need, run_gdb

TITLE = "gdbserver, false condition"
CALLS = 2_000
STOPS = 2
"""A hit and a step: it takes its breakpoint out for that."""


def serve(place: Place, armed: Armed) -> int | None:
    """Gdb only says what the condition is."""
    server = need("gdbserver")
    commands = [
        "set sysroot /",
        f"target remote | {server} --once --attach - {place.pid}",
        "set breakpoint condition-evaluation target",
        f"break *{place.address:#x} if $rdi == -1",
        f"break *{place.over:#x}",
        r'printf "armed\n"',
        "continue",
        r'printf "{\"hits\": null}\n"',
        "delete",
        "detach",
    ]
    return run_gdb(commands, armed)


if __name__ == "__main__":
    main(serve)
