"""gdb: a breakpoint in Python whose stop() counts and does not stop."""

from interface import Armed, Place, main, need, run

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
    commands = ["set pagination off", f"attach {place.pid}", f"python exec({script!r})"]
    return run([need("gdb"), "-nx", "-q", "-batch", *(word for each in commands for word in ("-ex", each))], armed)


if __name__ == "__main__":
    main(serve)
