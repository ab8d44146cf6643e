"""What every peer has in common: how it is started, that it is there, and how it ends.

A peer is a program of its own, ``PEER.py PID ADDRESS LENGTH SLOT STUB OVER``, that probes the running program PID at
ADDRESS. It prints the line ``armed`` once calls may come, and counts them. It ends when the program comes to OVER,
which it does once, or when its standard input is closed, whichever suits it; the program must then be as it was. Its
last line is a JSON object: ``{"hits": N}``, null for a peer that cannot count, with whatever else it has measured
beside it; or ``{"missing": REASON}`` if it cannot be had here.

Each file gives TITLE (for the table), CALLS (so many are made in a round: what is slow needs few), PACKAGES (from PyPI;
with any, it runs in bench's own virtual environment), STOPS (how many stops each hit is, where the kernel has to
count), WARM_UP_S (the warm-up lasts so long at least) and a function ``serve(place, armed)``, which returns the hits.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Armed = Callable[[], None]
"""Says that the probe is there."""


class Missing(Exception):
    """The peer cannot be had here; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where to probe; see bench/programs/target.c. All are addresses but the process id and the length."""

    pid: int
    address: int
    length: int
    """Of the first instruction, in bytes."""
    slot: int
    stub: int
    over: int

    def words(self) -> list[str]:
        """As they stand on a command line."""
        return [str(self.pid), *map(hex, (self.address, self.length, self.slot, self.stub, self.over))]


Serve = Callable[[Place, Armed], "int | Mapping[str, float | str | None] | None"]


def say_armed() -> None:
    """The line that the harness waits for."""
    print("armed", flush=True)


def main(serve: Serve) -> None:
    """Run a peer with the process's arguments."""
    try:
        ended = serve(Place(int(sys.argv[1]), *(int(word, 0) for word in sys.argv[2:7])), say_armed)
    except Missing as reason:
        ended = None
        answer: Mapping[str, object] = {"missing": str(reason)}
    else:
        answer = ended if isinstance(ended, Mapping) else {"hits": ended}
    print(json.dumps(answer), flush=True)


def wait_for_end() -> None:
    """Until the harness says that no more calls come."""
    sys.stdin.read()


def need(program: str, package: str = "") -> str:
    """The path of a program. Raises Missing."""
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is not installed (Debian's package {package or program})")
    return path


def run(command: list[str], armed: Armed) -> int | None:
    """The hits of a peer that is a program in another language: it prints what a peer prints, among other lines.

    Raises RuntimeError with the last that it said if it does not come to its end.
    """
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        for line in program.stdout or ():
            said.append(line.strip())
            if said[-1] == "armed":
                armed()
            elif said[-1].startswith("{"):
                hits: int | None = json.loads(said[-1])["hits"]
                program.wait()
                return hits
    raise RuntimeError(f"{command[0]} ended without a count: {' / '.join(said[-3:])}")


def run_gdb(commands: list[str], armed: Armed) -> int | None:
    """The same of gdb, which attaches and leaves by these commands."""
    whole = ["set pagination off", *commands]
    return run([need("gdb"), "-nx", "-q", "-batch", *(word for each in whole for word in ("-ex", each))], armed)
