"""The fake tracer does what every tracer must: what a real one does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest

from ubpx.core.ports import Tracer
from ubpx.core.values import ProcessId, VirtAddr
from ubpx.testing import CHECKS, FakeMemory, FakeTracer, SeededTracer, check_tracer
from ubpx.testing.simulation.choices import seeded

PID, TEXT, DATA = 100, 0x40_1000, 0x60_0000


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


class FakeProgram:
    """One scripted process (a ``ubpx.testing.ConformingProgram``)."""

    def __init__(self, fake: FakeTracer) -> None:
        self.fake = fake
        self.tracer: Tracer = self.fake
        self.pid = ProcessId(PID)
        self.site, self.behind = VirtAddr(TEXT), VirtAddr(TEXT + 4)
        self.writable, self.unmapped = VirtAddr(DATA), VirtAddr(0x10)
        self.memory = FakeMemory()
        self.memory.map(TEXT, bytes.fromhex("0f 1f 40 00 c3").ljust(64, b"\x90"), permissions="r-xp")
        self.memory.map(DATA, bytes(64))
        self.fake.process(PID, self.memory)
        self.thread = self.fake.thread(PID)
        self.thread["rip"] = TEXT + 16
        self._before = self.memory.image()

    def call(self) -> None:
        self.fake.reach(PID, self.site, self.behind)

    def called(self) -> bool:
        return not self.thread.traced or self.thread["rip"] == self.behind or bool(self.thread.script)

    def signal(self, number: int) -> None:
        self.fake.signal(PID, number)

    def received(self, number: int) -> bool:
        return [entry[2] for entry in self.fake.actions(PID, "resume", "detach") if entry[2]] == [number]

    def exit(self, status: int) -> None:
        self.fake.exit(PID, status)

    def exit_status(self) -> int:
        return 7

    def kill(self) -> None:
        self.fake.kill(PID)

    def is_untouched(self) -> bool:
        running = not self.thread.traced and self.thread.condition == "RUNNING"
        return running and self.memory.image() == self._before


@attrs.frozen
class FakeScenario:
    """Makes them, each with a tracer of its own."""

    make: Callable[[], FakeTracer]

    @contextmanager
    def start(self) -> Iterator[FakeProgram]:
        program = FakeProgram(self.make())
        yield program
        assert program.fake.failure is None


@pytest.mark.parametrize("check", CHECKS)
def test_the_fake_tracer_conforms(check: str) -> None:
    """Invariant: what tests of the core rely on is what the kernel does."""
    check_tracer(FakeScenario(FakeTracer), check)


@pytest.mark.parametrize("check", CHECKS)
def test_the_seeded_tracer_conforms_whatever_it_picks(check: str) -> None:
    """Invariant: each order that it may choose is one of the kernel's."""
    for seed in range(8):
        check_tracer(FakeScenario(lambda seed=seed: SeededTracer(seeded(seed))), check)  # type: ignore[misc]
