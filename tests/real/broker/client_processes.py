"""Runs as a script: SOCKET SPEC. Forks a client process for each line NAME KIND that it gets, and tells by lines.

``NAME started PID``, then ``NAME ready`` when its probe stands, ``NAME busy`` at its first hit or hold. Upon SIGUSR1 a
client says ``NAME counted HANDLED HITS DROPPED GAP``, GAP being the longest time between two hits in seconds, and ends.
Kinds: ``sync``, ``notify``, ``count``; ``hold`` holds each thread that comes and lets it go again a little later;
``hold_all`` does so with the process; ``clutch`` holds what comes and never lets it go; ``idle`` only joins. ``raise``,
``overrun``, ``exit`` and ``die`` fail in their handler: by an exception, by not returning, by ending their process, by
SIGKILL. ``wander`` comes and goes for ever, with a choice of SPEC's places each time, which are separated by commas,
and says ``NAME left TIMES``.
"""

import logging
import os
import random
import signal
import sys
import threading
import time
from itertools import count
from typing import Any, Final

import ubpx

PATIENCE_S: Final = 60.0
REPORT: Final = signal.SIGUSR1
HOLD_S: Final = 0.002
WANDER_S: Final = 0.3
FAILING: Final = {"raise", "overrun"}


def say(*words: object) -> None:
    """One line, whole."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Handler:
    """Counts, and may hold."""

    def __init__(self, name: str, kind: str) -> None:
        self.name: Final = name
        self.kind: Final = kind
        self.hits = 0
        self.gap = 0.0
        self._last = 0.0

    def __call__(self, hit: Any) -> ubpx.Verdict | None:
        """One arrival."""
        now = time.monotonic()
        if self.hits:
            self.gap = max(self.gap, now - self._last)
        self._last = now
        self.hits += 1
        if self.hits == 1:
            say(self.name, "busy")
        return self.verdict(hit)

    def verdict(self, _hit: Any) -> ubpx.Verdict | None:
        """What happens to the thread."""
        match self.kind:
            case "hold" | "clutch":
                return ubpx.Verdict.HOLD
            case "hold_all":
                return ubpx.Verdict.HOLD_PROCESS
            case "raise":
                raise RuntimeError("this client is ill")
            case "overrun":
                time.sleep(PATIENCE_S)
            case "exit":
                os._exit(7)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return None


def let_go(target: Any, name: str) -> None:
    """Again and again, what this client holds."""
    while True:
        time.sleep(HOLD_S)
        for hold in target.holds():
            if hold.owner == name:
                hold.release()


def handled(lease: Any, handler: Handler, kind: str) -> int:
    """How many hits the client itself has seen."""
    return int(lease.hits) if kind == "count" else handler.hits


def live(name: str, kind: str, path: str, spec: str) -> None:
    """One client, in its own process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {REPORT})
    logging.disable(logging.CRITICAL if kind in FAILING else logging.NOTSET)  # each failure has its traceback
    target: Any = ubpx.connect(path)
    client = target.client(name)
    handler = Handler(name, kind)
    lease = None
    if kind != "idle":
        mode = kind if kind in {"notify", "count"} else "sync"
        lease = client.probe(spec, None if mode == "count" else handler, mode=mode)
    if kind.startswith("hold"):
        threading.Thread(target=let_go, args=(target, name), daemon=True).start()
    say(name, "ready")
    signal.sigwait({REPORT})
    if lease is None:
        say(name, "counted", 0, 0, 0, 0.0)
        return
    lease.release()
    until = time.monotonic() + PATIENCE_S
    while handled(lease, handler, kind) + lease.dropped < lease.hits and time.monotonic() < until:
        time.sleep(0.005)
    say(name, "counted", handled(lease, handler, kind), lease.hits, lease.dropped, handler.gap)
    target.detach()


def wander(name: str, path: str, places: list[str]) -> None:
    """Connect, join, probe, see some hits, and leave, each in one of the ways that there are."""
    chance = random.Random(name)
    for turn in count():
        target: Any = ubpx.connect(path)
        client = target.client(f"{name}.{turn}")
        mode = chance.choice(["sync", "notify", "count"])
        handler = None if mode == "count" else Handler(name, "wander")
        chosen = chance.sample(places, chance.randint(1, len(places)))
        group = client.probe_many(chosen, handler, mode=mode)
        held = client.hold() if turn % 5 == 0 else None
        time.sleep(chance.random() * WANDER_S)
        if held is not None:
            held.release()
        way = chance.randrange(3)
        if way == 0:
            group.release()
        elif way == 1:
            client.close()
        target.detach()
        say(name, "left", turn + 1)


def main(path: str, spec: str) -> None:
    """Fork as told, until the end of the input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    with ubpx.connect(path):
        """What a connection needs is loaded now, once for all that are forked."""
    for line in iter(sys.stdin.readline, ""):
        name, kind = line.split()
        child = os.fork()
        if child == 0:
            try:
                if kind == "wander":
                    wander(name, path, spec.split(","))
                live(name, kind, path, spec)
            except BaseException as error:  # noqa: BLE001 - the test must hear of it
                say(name, "failed", repr(error).replace("\n", " "))
            os._exit(0)
        say(name, "started", child)


if __name__ == "__main__":
    main(*sys.argv[1:])
