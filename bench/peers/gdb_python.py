"""gdb: a breakpoint in Python whose stop() counts and does not stop."""

from interface import Armed, Place, main, run_gdb

TITLE = "gdb, Python breakpoint"
CALLS = 500

SCRIPT = """
import gdb

class Counting(gdb.Breakpoint):
    hits = 0

    def stop(self):
        self.hits += 1
        return False

counting = Counting("*{address:#x}")
gdb.Breakpoint("*{over:#x}")
print("armed", flush=True)
gdb.execute("continue")
print('{{"hits": %d}}' % counting.hits, flush=True)
gdb.execute("delete")
gdb.execute("detach")
"""


def serve(place: Place, armed: Armed) -> int | None:
    """The script is gdb's, run within it."""
    script = SCRIPT.format(address=place.address, over=place.over)
    return run_gdb([f"attach {place.pid}", f"python exec({script!r})"], armed)


if __name__ == "__main__":
    main(serve)
