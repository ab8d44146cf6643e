"""One client process of ``ubpx demo --broker``. Runs as a script: NAME SOCKET PLACE.

It joins the broker, probes the place, and talks by lines: ``ready``; one JSON object
when its first hits have come; and one for each line that it gets.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from ubpx.target import connect

BUSY: Final = 500
"""So many hits are said to be the first ones."""
_PATIENCE_S: Final = 30.0


class Tracer:
    """Keeps a line for each hit, with the thread that made it. The program waits for it."""

    mode: Final = "sync"

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, hit: Any) -> None:
        """One more."""
        self.lines.append(f"{hit.tid} came to {hit.address:#x}")

    @property
    def hits(self) -> int:
        """So far."""
        return len(self.lines)


class Coverage:
    """Counts which places were reached. The program does not wait for it."""

    mode: Final = "notify"

    def __init__(self) -> None:
        self.places: Counter[int] = Counter()

    def __call__(self, hit: Any) -> None:
        """One more."""
        self.places[hit.address] += 1

    @property
    def hits(self) -> int:
        """So far."""
        return self.places.total()


class Arguments:
    """Counts what was passed. The program waits for it."""

    mode: Final = "sync"

    def __init__(self) -> None:
        self.values: Counter[int] = Counter()

    def __call__(self, hit: Any) -> None:
        """One more."""
        self.values[hit.args[0]] += 1

    @property
    def hits(self) -> int:
        """So far."""
        return self.values.total()


KINDS: Final[dict[str, Callable[[], Any]]] = {"tracer": Tracer, "coverage": Coverage, "arguments": Arguments}


def say(line: str) -> None:
    """To whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_when_busy(watch: Any) -> None:
    """Once."""
    while watch.hits < BUSY:
        time.sleep(0.001)
    say(json.dumps({"hits": watch.hits}))


def main(name: str, socket: str, place: str) -> None:
    """Until the end of its input."""
    handler = KINDS[name]()
    with connect(socket) as target:
        client: Any = target.client(name)
        lease = client.probe(place, handler, mode=handler.mode)
        say("ready")
        threading.Thread(target=say_when_busy, args=(handler,), daemon=True).start()
        for _ in sys.stdin:
            until = time.monotonic() + _PATIENCE_S
            while handler.hits + lease.dropped < lease.hits and time.monotonic() < until:
                time.sleep(0.005)  # what is told later is still under way
            say(json.dumps({"handled": handler.hits, "dropped": lease.dropped, "hits": lease.hits}))


if __name__ == "__main__":
    main(*sys.argv[1:])
