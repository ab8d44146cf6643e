"""What ``ubpx bench`` measures; printing is elsewhere.

Ratios, for they say the same on machines of different speed and load: each is of things measured in turn in one run.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import attrs

from ubpx._errors import InternalError, UnknownSymbol
from ubpx.cli.dialogue import Dialogue
from ubpx.core.clients import Client
from ubpx.core.hits import Hit
from ubpx.core.probepoints import Lease
from ubpx.target import Target, attach

PROGRAM: Final = Path(__file__).with_name("program.py")
PLACE: Final = "libc:toascii"
ELSEWHERE: Final = "libc:[!_lt]*"
"""Most of libc, but nothing that the program's loop calls."""
CLIENTS: Final = 50
ECHOES: Final = 200
BARE_CALLS: Final = 50_000
HEATING_S: Final = 1.5
"""Probepoints that are hot get a jump within a second or so, if one fits."""
PATIENCE_S: Final = 300.0


@attrs.frozen(kw_only=True)
class BenchResult:
    """Medians over the rounds."""

    strategy: str
    """At the probed place."""
    rounds: int
    calls: int
    """In each round of each way."""
    pinned: bool
    hit_us: float
    """A hit with one Python handler that counts; the program's own time taken off."""
    echo_us: float
    """A line to the program and one back by pipes: what two processes cost that talk."""
    call_ns: float
    """A Python call of the handler, by itself."""
    registers: float
    """A hit whose handler reads two registers, over one that counts; so are the others below."""
    two_clients: float
    busy_host: float
    """Another Python thread of the tracer's process computes."""
    armed_elsewhere: float
    elsewhere: int
    """How many probes that were."""
    client_in_calls: float
    """What one more client adds to a hit, in calls of its handler."""
    arm_us: float
    """Arming one of ``elsewhere``, the first time, all included."""
    release_us: float

    @property
    def hit_in_echoes(self) -> float:
        """What a hit costs beside a line to another process and back."""
        return self.hit_us / self.echo_us


class BenchProgram(Dialogue):
    """The running program. Owned by ``run_bench``."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-I", str(PROGRAM)], PATIENCE_S)
        self.calls = 0
        """That it was told to make since the last look."""

    def ask(self, order: str) -> str:
        """What it answers. Raises TargetGone."""
        self.say(order)
        return self.listen()

    def begin(self) -> None:
        """Wait until it is there. Raises UnknownSymbol where its C library has not what it needs."""
        word, _, name = self.listen().partition(" ")
        if word == "missing":
            raise UnknownSymbol(f"libc:{name}", ())

    def run(self, calls: int) -> float:
        """Nanoseconds a call."""
        self.calls += calls
        return int(self.ask(f"run {calls}")) / calls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()


def run_bench(*, rounds: int, calls: int, pin: bool) -> BenchResult:
    """Measure. Raises an UbpxError if the program cannot be traced, and InternalError if a hit was missed."""
    with ExitStack() as stack:
        if pin:
            stack.enter_context(pinned())
        program = stack.enter_context(BenchProgram())
        program.begin()
        with attach(program.pid) as target:
            return measure(target, program, rounds=rounds, calls=calls, pin=pin)


@contextmanager
def pinned() -> Iterator[None]:
    """Keep this thread, and all that is started by it, on one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def count(_: Hit) -> None:
    """The lease counts."""


def read_two(hit: Hit) -> None:
    """Two registers by name."""
    regs = hit.regs
    _ = regs.rdi, regs.rsp


@attrs.define
class Bench:
    """One target and its program, between which every way is measured. Owned by ``measure``.

    The place stays probed from the first way to the last: each takes it over from the one before, so that it
    stays as hot as it is.
    """

    target: Target
    program: BenchProgram
    calls: int
    strategy: str = "?"
    """At the place, when it was last hot."""
    _ways: int = attrs.field(default=0, init=False)
    _clients: Sequence[Client] = attrs.field(default=(), init=False)

    def take_over(self, *handlers: Callable[[Hit], None]) -> Sequence[Lease]:
        """From now on these handlers have the place, each a client's, and no others."""
        self._ways += 1
        before, names = self._clients, [f"bench {self._ways}.{number}" for number in range(len(handlers))]
        self._clients = [self.target.client(name) for name in names]
        leases = [each.probe(PLACE, handler) for each, handler in zip(self._clients, handlers, strict=True)]
        for client in before:
            client.close()
        self.program.calls = 0
        return leases

    def heat(self) -> None:
        """Call until the place is as quick as it gets: its strategy has changed, or would have."""
        (lease,) = self.take_over(count)
        first, until = self.look(lease), time.monotonic() + HEATING_S
        while self.look(lease) == first and time.monotonic() < until:
            self.program.run(self.calls)

    def look(self, lease: Lease) -> str:
        """Which strategy the place has."""
        if lease.probepoint is not None:
            self.strategy = str(lease.probepoint.strategy)
        return self.strategy

    def probed(self, *handlers: Callable[[Hit], None]) -> float:
        """Nanoseconds a hit; a fifth of the calls warms up. Raises InternalError if a handler has missed a hit."""
        leases = self.take_over(*handlers)
        self.program.run(max(self.calls // 5, 1))
        span = self.program.run(self.calls)
        for lease in leases:
            if lease.hits != self.program.calls:
                raise InternalError(f"a lease counted {lease.hits} hits of {self.program.calls} calls")
        self.look(leases[0])
        return span

    def busy(self) -> float:
        """The same while another thread of ours computes."""
        over = threading.Event()

        def compute() -> None:
            while not over.is_set():
                sum(range(1000))

        thread = threading.Thread(target=compute, daemon=True)
        thread.start()
        try:
            return self.probed(count)
        finally:
            over.set()
            thread.join()

    def elsewhere(self) -> Mapping[str, float]:
        """The same with many armed elsewhere, and what arming and releasing each of them costs."""
        with self.target.client("bench elsewhere") as client:
            began = time.perf_counter_ns()
            group = client.probe_many(ELSEWHERE, count)
            armed = time.perf_counter_ns()
            span = self.probed(count)
            again = time.perf_counter_ns()
            group.release()
            released = time.perf_counter_ns()
            sites = len(group)
        return {
            "sites": sites,
            "armed_elsewhere": span,
            "arm": (armed - began) / sites,
            "release": (released - again) / sites,
        }

    def echo(self) -> float:
        """Nanoseconds for a line to the program and one back."""
        began = time.perf_counter_ns()
        for _ in range(ECHOES):
            self.program.ask("echo")
        return (time.perf_counter_ns() - began) / ECHOES

    def round(self, own: float) -> Mapping[str, float]:
        """Every way once: nanoseconds, the program's own time for a call taken off where it runs its loop."""
        many = self.elsewhere()
        hits = {
            "hit": self.probed(count),
            "registers": self.probed(read_two),
            "two_clients": self.probed(count, count),
            "many_clients": self.probed(*[count] * CLIENTS),
            "busy_host": self.busy(),
            "armed_elsewhere": many["armed_elsewhere"],
        }
        others = {name: many[name] for name in ("sites", "arm", "release")}
        return {name: span - own for name, span in hits.items()} | others | {"echo": self.echo(), "call": bare_call()}


def bare_call() -> float:
    """Nanoseconds for a call of the handler by nobody else than Python."""
    nothing: Any = None
    began = time.perf_counter_ns()
    for _ in range(BARE_CALLS):
        count(nothing)
    return (time.perf_counter_ns() - began) / BARE_CALLS


def measure(target: Target, program: BenchProgram, *, rounds: int, calls: int, pin: bool) -> BenchResult:
    """All ways in turn, as often as there are rounds."""
    bench = Bench(target, program, calls)
    program.run(calls)
    own = program.run(calls)
    bench.heat()
    spans = [bench.round(own) for _ in range(rounds)]

    def median(name: str) -> float:
        return statistics.median(span[name] for span in spans)

    def over_one(name: str) -> float:
        return statistics.median(span[name] / span["hit"] for span in spans)

    added = [(span["many_clients"] - span["hit"]) / (CLIENTS - 1) / span["call"] for span in spans]
    return BenchResult(
        strategy=bench.strategy,
        rounds=rounds,
        calls=calls,
        pinned=pin,
        hit_us=median("hit") / 1000,
        echo_us=median("echo") / 1000,
        call_ns=median("call"),
        registers=over_one("registers"),
        two_clients=over_one("two_clients"),
        busy_host=over_one("busy_host"),
        armed_elsewhere=over_one("armed_elsewhere"),
        elsewhere=int(spans[0]["sites"]),
        client_in_calls=statistics.median(added),
        arm_us=spans[0]["arm"] / 1000,
        release_us=median("release") / 1000,
    )
