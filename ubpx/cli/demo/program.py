"""The program that ``ubpx demo`` watches. It knows nothing of ubpx, and runs as a script.

Some threads call libc's ``labs``, a known number of times, between two gates that all of them pass.
Others never stop at a gate: they compute, or sleep and wake, from the beginning to the end. It calls
through ctypes, which lets go of the interpreter lock: calls of different threads really overlap.

It talks by lines. It says ``ready`` when all threads are there; upon ``go`` it opens the first gate; behind
the second it says ``{"calls": ..., "rounds": ...}``; upon the end of its input it ends, with
status 0 if every call returned what it must.
"""

import ctypes
import json
import sys
import threading
import time
import zlib
from collections.abc import Callable

_BLOCK = bytes(1 << 20)
_NAP_S = 0.001
_NUMBERS = 16
# Threads that call wait for the interpreter lock behind those that compute: by default for 5 ms each time.
_SWITCH_INTERVAL_S = 0.0001


class Caller(threading.Thread):
    """Calls labs between the gates, and keeps count itself."""

    def __init__(self, gate: threading.Barrier, labs: Callable[[int], int], calls: int) -> None:
        super().__init__(daemon=True)
        self.calls = 0
        self.wrong = 0
        self._gate, self._labs, self._wanted = gate, labs, calls

    def run(self) -> None:
        """From gate to gate."""
        self._gate.wait()
        for turn in range(self._wanted):
            number = turn % _NUMBERS
            self.wrong += self._labs(-number if turn % 2 else number) != number
            self.calls += 1
        self._gate.wait()


class Bystander(threading.Thread):
    """Goes round and round, and passes no gate."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.rounds = 0
        self._work = work
        self._ended = threading.Event()

    def run(self) -> None:
        """Until ``end``."""
        while not self._ended.is_set():
            self._work()
            self.rounds += 1

    def end(self) -> None:
        """Stop after this round."""
        self._ended.set()
        self.join()


def find_labs() -> Callable[[int], int]:
    """Libc's own function, called without the interpreter lock."""
    labs = ctypes.CDLL(None).labs
    labs.argtypes, labs.restype = [ctypes.c_long], ctypes.c_long
    function: Callable[[int], int] = labs
    return function


def say(line: str) -> None:
    """To whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(threads: int, calls: int) -> int:
    """Run; the exit status."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gate = threading.Barrier(threads + 1)
    labs = find_labs()
    callers = [Caller(gate, labs, calls) for _ in range(threads)]
    bystanders = [Bystander(lambda: zlib.crc32(_BLOCK)), Bystander(lambda: time.sleep(_NAP_S))]
    for thread in (*callers, *bystanders):
        thread.start()
    say("ready")
    if sys.stdin.readline() != "go\n":
        return 1
    before = sum(each.rounds for each in bystanders)
    gate.wait()
    gate.wait()
    meanwhile = sum(each.rounds for each in bystanders) - before
    say(json.dumps({"calls": sum(each.calls for each in callers), "rounds": meanwhile}))
    sys.stdin.read()
    for bystander in bystanders:
        bystander.end()
    return 1 if any(each.wrong for each in callers) else 0


if __name__ == "__main__":
    sys.exit(main(threads=int(sys.argv[1]), calls=int(sys.argv[2])))
