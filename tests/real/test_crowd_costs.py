"""What many probes, clients and processes cost, against the only one, and against the same in C: ratios of one run.

Rounds are short and interleaved, and the best of each side count: what else the machine does makes a round longer, and
the longer one of the two more often.
"""

from __future__ import annotations

import statistics
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.real.conftest import Program, StartProgram

pytestmark = [pytest.mark.torture, pytest.mark.alone]

ROUNDS = 9
CALLS = 1_000


def nothing(_: object) -> None:
    """What a handler costs that does nothing."""


def hot(program: Program, calls: int = CALLS) -> float:
    """Nanoseconds for each of so many calls of hot()."""
    return program.tell(f"hot {calls}\n").number("ns", timeout=55) / calls


def show(what: str, ratio: float, most: float, *figures: str) -> float:
    """Say what was measured; the ratio."""
    sys.stdout.write(f"{what}: {ratio:.3f} (at most {most}); {', '.join(figures)}\n")
    return ratio


def ratio_of(others: Sequence[float], ones: Sequence[float]) -> float:
    """That of the best rounds."""
    return min(others) / min(ones)


def written_by_c(program: Program, addresses: Sequence[int]) -> tuple[float, float]:
    """Nanoseconds for each of so many traps, and for taking it out, by a pwrite of its byte."""
    done = subprocess.run(
        [build("crowd_peer"), "write", str(program.pid)],
        input=struct.pack(f"<{len(addresses)}Q", *addresses), capture_output=True, check=True, timeout=50,
    )  # fmt: skip
    write, restore = (int(line.partition("=")[2]) for line in done.stdout.decode().split())
    return write, restore


@pytest.fixture
def crowd(target_program: StartProgram) -> Iterator[Program]:
    """The program, which must end well."""
    program = target_program("crowd")
    yield program
    assert program.tell("q\n").wait() == 0


def test_arming_and_disarming_ten_thousand_functions(target_program: StartProgram) -> None:
    """Invariant: everything included, from the glob to the last trap, at most ten times a pwrite of each byte in C.

    Of ours the processor time of all threads counts: it takes long enough that others have the processor meanwhile.
    """
    c_write, c_restore, armed, disarmed = (list[float]() for _ in range(4))
    for turn in range(ROUNDS + 1):
        program = target_program("crowd", flags=("-DFUNCTIONS=10000",))
        with ubpx.attach(program.pid) as target:
            client = target.client("many")
            began = time.process_time()
            group = client.probe_many("work_*", nothing)
            done = time.process_time()
            group.release()
            over = time.process_time()
            addresses = [lease.address or 0 for lease in group]
        write, restore = written_by_c(program, addresses)
        assert program.tell("q\n").wait() == 0
        if not turn:  # what is loaded at first use
            continue
        armed.append((done - began) * 1e9 / len(addresses))
        disarmed.append((over - done) * 1e9 / len(addresses))
        c_write.append(write)
        c_restore.append(restore)
    figures = [f"{min(each):.0f} ns" for each in (armed, c_write, disarmed, c_restore)]
    arming, disarming = ratio_of(armed, c_write), ratio_of(disarmed, c_restore)
    show("arming one of ten thousand, in pwrites", arming, 10, *figures[:2])
    show("disarming it", disarming, 10, *figures[2:])
    assert arming <= 10
    assert disarming <= 10


def test_a_hit_among_a_hundred_thousand_and_a_program_that_hits_none(crowd: Program) -> None:
    """Invariant: what is armed elsewhere costs nothing: a hit at most a tenth more, the program's own work 1 %."""
    alone, among, own, own_among = (list[float]() for _ in range(4))

    def measure(hits: list[float], work: list[float]) -> None:
        hits.append(hot(crowd))
        work.append(min(crowd.tell("own 10000000\n").number("ns", timeout=55) for _ in range(3)))

    with ubpx.attach(crowd.pid) as target:
        many = target.client("many")
        target.client("single").probe("hot", nothing)
        hot(crowd)
        for turn in range(ROUNDS):
            if turn % 2:
                measure(alone, own)
            with many.probe_many("work_*", nothing) as group:
                assert len(group) == 100_000
                measure(among, own_among)
            if not turn % 2:
                measure(alone, own)
    hit = show("a hit with 100,000 armed elsewhere", ratio_of(among, alone), 1.1, f"{min(among):.0f} ns")
    work = show("own work with 100,000 armed", min(own_among) / min(own), 1.01, f"{min(own) / 1e6:.2f} ms")
    assert hit <= 1.1
    assert work <= 1.01


def bare_call() -> float:
    """Nanoseconds for a Python function that does nothing, called in a loop."""
    began = time.perf_counter()
    for number in range(200_000):
        nothing(number)
    return (time.perf_counter() - began) * 1e9 / 200_000


def test_two_clients_and_the_thousandth(crowd: Program) -> None:
    """Invariant: two clients at most a tenth more than one; the thousandth at most half a microsecond."""
    one, two, thousand, bare = (list[float]() for _ in range(4))
    with ubpx.attach(crowd.pid) as target:
        clients = [target.client(f"client {number}") for number in range(1_000)]
        for _ in range(ROUNDS):
            leases = [clients[0].probe("hot", nothing)]
            hot(crowd, 200)
            one.append(hot(crowd))
            leases.append(clients[1].probe("hot", nothing))
            two.append(hot(crowd))
            leases += [client.probe("hot", nothing) for client in clients[2:]]
            thousand.append(hot(crowd, 200))
            bare.append(bare_call())
            for lease in leases:
                lease.release()
    one_more = (min(thousand) - min(one)) / 999
    shared = show("two clients", ratio_of(two, one), 1.1, f"{min(one):.0f} ns for one")
    show("one more of a thousand, in bare calls", one_more / min(bare), 8, f"{one_more:.0f} ns")
    assert shared <= 1.1
    assert one_more <= 500


def test_a_hit_in_one_of_a_hundred_processes(target_program: StartProgram, crowd: Program) -> None:
    """Invariant: what a hit costs does not grow with the processes of the session."""
    others = [target_program("echo", 0) for _ in range(99)]
    alone, among = list[float](), list[float]()

    def measure(processes: Sequence[Program], costs: list[float]) -> None:
        with ubpx.Session() as session:
            for program in (crowd, *processes):
                session.attach(program.pid).client("one").probe("hot" if program is crowd else "answer", nothing)
            hot(crowd, 500)
            costs.append(hot(crowd))

    for _ in range(3):
        measure((), alone)
        measure(others, among)
    figures = f"{min(among):.0f} ns", f"{min(alone):.0f} ns"
    assert show("a hit in one of 100 processes", ratio_of(among, alone), 1.5, *figures) <= 1.5


def test_stopping_a_thousand_threads(target_program: StartProgram) -> None:
    """Invariant: a hold of the whole process takes at most twice as long as INTERRUPT and waitpid by tid in C."""
    program = target_program("crowd", 1_000)
    in_c, ours = list[float](), list[float]()
    for _ in range(5):
        done = subprocess.run(
            [build("crowd_peer"), "quiesce", str(program.pid), "9"], capture_output=True, check=True, timeout=50
        )
        in_c.append(int(done.stdout.decode().partition("=")[2]))
        with ubpx.attach(program.pid) as target:
            client, taken = target.client("one"), list[float]()
            for _ in range(9):
                began = time.perf_counter()
                hold = client.hold()
                taken.append((time.perf_counter() - began) * 1e9)
                hold.release()
            ours.append(statistics.median(taken))
    figures = f"{statistics.median(ours) / 1e6:.1f} ms", f"{statistics.median(in_c) / 1e6:.1f} ms in C"
    assert show("stopping 1,000 threads", ratio_of(ours, in_c), 2, *figures) <= 2
    assert program.tell("q\n").wait() == 0
