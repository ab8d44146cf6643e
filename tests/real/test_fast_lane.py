"""A thread that is traced alone: what is done for each of its arrivals in one call is what is done for all others."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.conftest import ROOT, changed_text, stopped_or_traced
from ubpx_ptracepp import arrivals
from ubpx_ptracepp.lane.turning import Turns
from ubpx_ptracepp.machine_code import MachineCode
from ubpx_ptracepp.stops import SELDOM, Stops

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

LANE = ROOT / "plugins" / "ptracepp" / "ubpx_ptracepp" / "lane"
FUNCTIONS = [f"probed_{each}" for each in "abcdef"]
TIMES = 2_000
KILLS = 12


@pytest.fixture(params=["compiled", "by calls"])
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How turns are taken in sessions that begin from now on."""
    if request.param == "by calls":
        monkeypatch.setattr(arrivals, "Turns", lambda: Turns(compiled=False))
    return str(request.param)


def noting(to: list[int]) -> Callable[[Any], None]:
    """A handler that notes the first argument."""
    return lambda hit: to.append(hit.regs.rdi)


@pytest.fixture
def alone(target_program: StartProgram) -> Program:
    """A program of one thread."""
    return target_program("alone", TIMES)


def check_unharmed(alone: Program) -> None:
    """It ends the calls that its tracer was killed amid, is healed, and makes as many again."""
    assert alone.number("calls") == 6 * TIMES
    with ubpx.attach(alone.pid) as target:
        assert target.healed is not None
    assert (changed_text(alone.pid), stopped_or_traced(alone.pid)) == ([], {})
    assert alone.tell("g").number("calls") == 12 * TIMES
    assert alone.tell("q").wait() == 0


def test_the_lanes_bytes_are_of_its_source() -> None:
    """Invariant: what is shipped was compiled from the source beside it (tools/images.py --write)."""
    from ubpx_ptracepp.lane.code import SOURCE

    assert (
        hashlib.sha256((LANE.parent / "system_call.h").read_bytes() + (LANE / "lane.c").read_bytes()).hexdigest()
        == SOURCE
    )


def test_turns_are_compiled_where_they_can_be() -> None:
    """Invariant: the slower way is only for processes that may have no code of their own."""
    assert Turns().take.__class__ is not Turns(compiled=False).take.__class__


def test_machine_code_is_a_function_of_pythons_own() -> None:
    """Invariant: it takes no arguments, runs with the interpreter's lock, and gives the object that it returns."""
    given = object()
    code = MachineCode(b"\x48\xb8" + id(given).to_bytes(8, "little") + b"\x48\xff\x00\xc3")  # mov; inc its count; ret
    if not code.runs:
        pytest.skip("this system lets no process have code of its own")
    kept, function = weakref.ref(code), code.function()
    del code
    gc.collect()
    assert kept() is not None, "its page and its definition are there as long as it is"
    assert [function() is given for _ in range(3)] == [True] * 3
    with pytest.raises(TypeError, match="takes no arguments"):
        function(1)  # type: ignore[call-arg]
    del function
    gc.collect()
    assert kept() is None


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_every_arrival_at_several_places_is_seen(alone: Program, count: int) -> None:
    """Invariant: exact at more places than are expected at once, with the registers at arrival."""
    seen: dict[str, list[int]] = {name: [] for name in FUNCTIONS[-count:]}
    with ubpx.attach(alone.pid) as target:
        client = target.client("one")
        leases = {name: client.probe(name, noting(to)) for name, to in seen.items()}
        assert alone.tell("g").number("calls") == 6 * TIMES
        assert {name: lease.hits for name, lease in leases.items()} == dict.fromkeys(seen, TIMES)
    for name, values in seen.items():
        assert values == list(range(FUNCTIONS.index(name), 6 * TIMES, 6))
    assert alone.tell("q").wait() == 0


@pytest.mark.usefixtures("turns")
def test_probes_come_and_go_from_a_handler(alone: Program) -> None:
    """Invariant: a place that a handler changes is looked at anew: no arrival there is missed, or has two handlers."""
    others: list[int] = []
    with ubpx.attach(alone.pid) as target:
        client = target.client("one")

        def handler(_hit: Any) -> None:
            if lease.hits % 100 == 50:
                client.probe("probed_b", lambda _: others.append(1), once=True)

        lease = client.probe("probed_a", handler)
        assert alone.tell("g").number("calls") == 6 * TIMES
        assert (lease.hits, len(others)) == (TIMES, TIMES // 100)
    assert changed_text(alone.pid) == []
    assert alone.tell("q").wait() == 0


@pytest.mark.usefixtures("turns")
def test_a_thread_that_stops_for_other_things_as_well_is_looked_at_as_often(
    alone: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: the mask of a thread is looked at after so many arrivals, however many of them come in a row."""
    looked: list[int] = []
    look = Stops._look_at_mask

    def looking(self: Any, thread: Any, site: Any) -> None:
        looked.append(thread.tid)
        look(self, thread, site)

    with ubpx.attach(alone.pid) as target:
        client = target.client("one")

        def handler(_hit: Any) -> None:
            if lease.hits % 20 == 0:
                target.probepoints()  # so that the hit ends the long way
            if lease.hits % 21 == 0:
                client.leases  # noqa: B018 - the same

        lease = client.probe("probed_a", handler)
        monkeypatch.setattr(Stops, "_look_at_mask", looking)
        assert alone.tell("g").number("calls") == 6 * TIMES
    assert len(looked) >= TIMES // SELDOM // 2
    assert alone.tell("q").wait() == 0


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("strategy", [None, "BOOST", "JUMP"])
def test_a_place_goes_while_its_handler_runs(alone: Program, strategy: str | None) -> None:
    """Invariant: a handler may give back other leases than its own, have them again, and ask what there is."""
    with ubpx.attach(alone.pid) as target:
        client, seen = target.client("one"), [0, 0]
        other: list[ubpx.Lease] = []

        def count(_hit: Any) -> None:
            seen[1] += 1

        def handler(_hit: Any) -> None:
            seen[0] += 1
            if seen[0] % 50 == 7:
                other.pop().release()
            elif seen[0] % 50 == 9:
                other.append(client.probe("probed_b", count, strategy=strategy))
            elif seen[0] % 50 == 20:
                assert len(target.probepoints()) == 2

        other.append(client.probe("probed_b", count, strategy=strategy))
        client.probe("probed_a", handler, strategy=strategy)
        assert alone.tell("g").number("calls") == 6 * TIMES
        assert seen == [TIMES, TIMES - 2 * TIMES // 50]
    assert changed_text(alone.pid) == []
    assert alone.tell("q").wait() == 0


@pytest.mark.usefixtures("turns")
def test_a_hot_thread_is_held_and_left(alone: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: what a handler's verdict, another thread and a detach want is done at once, and nothing stays."""
    with ubpx.attach(alone.pid) as target:
        client = target.client("one")
        lease = client.probe("probed_a", lambda hit: ubpx.Verdict.HOLD if hit.lease.hits == 500 else None)
        alone.tell("g")
        assert eventually(target.holds)
        assert lease.hits == 500
        (hold,) = target.holds()
        hold.release()
        assert eventually(lambda: lease.hits >= 600)
        with client.hold():
            before = lease.hits
            assert target.registers(alone.pid)["rip"]
            assert lease.hits == before
    assert alone.number("calls") == 6 * TIMES
    assert (changed_text(alone.pid), stopped_or_traced(alone.pid)) == ([], {})
    assert alone.tell("q").wait() == 0


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("symbol", ["probed_a", "probed_e", "probed_f"])
@pytest.mark.parametrize("strategy", [None, "JUMP", "BOOST", "STEP", "INLINE"])
def test_a_tracer_killed_in_its_handler_does_no_harm(alone: Program, symbol: str, strategy: str | None) -> None:
    """Invariant: the stop is not consumed while handlers run, and yet the program goes on as if it had been."""
    if (symbol, strategy) in {("probed_f", "JUMP"), ("probed_e", "JUMP")}:
        strategy = "EMULATE"
    tracer = os.fork()
    if tracer == 0:
        try:
            target = ubpx.attach(alone.pid)

            def handler(hit: Any) -> None:
                if hit.lease.hits == TIMES // 2 + 7:
                    os.kill(os.getpid(), signal.SIGKILL)

            target.client("one").probe(symbol, handler, strategy=strategy)
            alone.tell("g")
            signal.alarm(20)
            signal.pause()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
    check_unharmed(alone)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_tracer_killed_at_any_time_in_a_turn_does_no_harm(alone: Program, seed: int) -> None:
    """Invariant: between any two of the calls that a turn makes, too."""
    chance = random.Random(seed)
    strategy = chance.choice([None, "BOOST", "JUMP"])
    began, told = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            client = ubpx.attach(alone.pid).client("one")
            client.probe("probed_a", lambda _: None, strategy=strategy)
            client.probe("probed_e", lambda hit: hit.regs.rdi and None)
            os.write(told, b"!")
            signal.alarm(20)
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(began, 1) == b"!"
    os.close(began)
    os.close(told)
    alone.tell("g")
    time.sleep(chance.uniform(0, 0.03))
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)
    check_unharmed(alone)


@pytest.mark.usefixtures("turns")
def test_a_thread_that_is_killed_in_its_handler_is_seen_to_end(alone: Program) -> None:
    """Invariant: its end is told once, and as it was."""
    with ubpx.attach(alone.pid) as target:

        def handler(hit: Any) -> None:
            if hit.lease.hits == 1_000:
                os.kill(hit.pid, signal.SIGKILL)

        target.client("one").probe("probed_a", handler)
        alone.tell("g")
        assert target.wait(timeout=20) == -signal.SIGKILL
