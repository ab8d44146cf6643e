"""Many probes, clients, threads and processes: each works as the only one would."""

from __future__ import annotations

import functools
import tracemalloc
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import changed_text, threads_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.alone

FUNCTIONS = 100_000
MOST_BYTES = 1_000
"""Of memory for each place that is armed, or whose lease somebody has looked at."""


def hot(program: Program, calls: int) -> None:
    """Have it call hot() so often."""
    program.tell(f"hot {calls}\n").number("ns", timeout=55)


def test_a_hundred_thousand_armed_probes(target_program: StartProgram) -> None:
    """Invariant: all traps stand, what is called elsewhere is counted exactly, and all are gone afterwards."""
    program = target_program("crowd")
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("many")
        single = target.client("single").probe("hot", lambda _: None)
        group = client.probe_many("work_*", lambda _: None)
        assert len(group) == FUNCTIONS
        start = single.address or 0
        assert client.target.memory.read(start, 4) == bytes.fromhex("488d4701"), "our own eyes see no trap"
        hot(program, 1_000)
        assert (single.hits, group.hits) == (1_000, 0)
        group.release()
        program.tell("all 1\n").number("ns")
        assert (group.hits, len(target.probepoints())) == (0, 1)
    program.assert_untouched(maps)
    assert program.tell("q\n").wait() == 0


def test_each_of_ten_thousand_takes_little_memory(target_program: StartProgram) -> None:
    """Invariant: less than a kilobyte in the session for each armed place, its lease included once it was asked for."""
    program = target_program("crowd")
    with ubpx.attach(program.pid) as target:
        client = target.client("many")
        client.probe_many("work_1*", lambda _: None).release()  # what is known of files is made once
        tracemalloc.start(1)
        try:
            before, _ = tracemalloc.get_traced_memory()
            group = client.probe_many("work_2*", lambda _: None)
            armed, _ = tracemalloc.get_traced_memory()
            leases = list(group)
            listed, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(leases) > FUNCTIONS // 10
        assert (armed - before) / len(leases) < MOST_BYTES / 2
        assert (listed - before) / len(leases) < MOST_BYTES


def test_a_thousand_clients_at_one_probepoint(target_program: StartProgram) -> None:
    """Invariant: each of a thousand clients is told of each hit, in their order; each may go by itself."""
    program = target_program("crowd")
    told: list[int] = []

    def note(number: int, _: ubpx.Hit) -> None:
        told.append(number)

    with ubpx.attach(program.pid) as target:
        clients = [target.client(f"client {number}") for number in range(1_000)]
        leases = [client.probe("hot", functools.partial(note, number)) for number, client in enumerate(clients)]
        hot(program, 3)
        assert told == list(range(1_000)) * 3
        assert {lease.hits for lease in leases} == {3}
        (probepoint,) = target.probepoints()
        assert len(probepoint.clients) == 1_000
        told.clear()
        for client in clients[::2]:
            client.close()
        hot(program, 1)
        assert told == list(range(1, 1_000, 2))
    assert changed_text(program.pid) == []
    assert program.tell("q\n").wait() == 0


@pytest.mark.parametrize("threads", [200, pytest.param(1_000, marks=pytest.mark.torture)])
def test_many_threads_are_traced_stopped_and_left(target_program: StartProgram, threads: int) -> None:
    """Invariant: a program of a thousand threads is attached to, held, let go on, probed and left as it was."""
    program = target_program("crowd", threads)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        assert len(target.threads()) == threads + 1
        client = target.client("one")
        lease = client.probe("hot", lambda _: None)
        for _ in range(2):
            with client.hold():
                assert program.is_stopped()
            hot(program, 100)
        assert lease.hits == 200
    program.assert_untouched(maps)
    assert len(threads_of(program.pid)) == threads + 1
    assert program.tell("q\n").wait() == 0


@pytest.mark.parametrize("many", [20, pytest.param(100, marks=pytest.mark.torture)])
def test_many_processes_in_one_session(
    target_program: StartProgram, eventually: Callable[..., bool], many: int
) -> None:
    """Invariant: one session traces a hundred programs; each has its own hits, ends by itself, or is left as it was."""
    programs = [target_program("echo", 0) for _ in range(many)]
    half = many // 2
    maps = [program.maps() for program in programs]
    with ubpx.Session() as session:
        targets = [session.attach(program.pid) for program in programs]
        leases = [target.client("one").probe("answer", lambda _: None) for target in targets]
        for number, program in enumerate(programs):
            for _ in range(number % 4):
                program.answer(number)
        assert [lease.hits for lease in leases] == [number % 4 for number in range(many)]
        for program in programs[:half]:
            assert program.tell("q\n").wait() == 0
        assert eventually(lambda: [lease.state for lease in leases[:half]] == ["RELEASED"] * half)
        assert programs[-1].answer(1) == 2
        assert leases[-1].hits == (many - 1) % 4 + 1
    for program, before in zip(programs[half:], maps[half:], strict=True):
        program.assert_untouched(before)
