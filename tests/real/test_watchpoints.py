"""Hardware debug registers of a real program: leased, shared, in every thread, and gone after a detach."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import build

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.over_both

THREADS, EACH = 4, 50


def address_of(program: Program, symbol: str) -> int:
    """Where a data symbol of the program is."""
    path = build("writer")
    linked = next(
        int(line.split()[0], 16)
        for line in subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout.splitlines()
        if line.endswith(f" {symbol}")
    )
    base = min(int(line.split("-")[0], 16) for line in program.maps() if str(path) in line)
    return base + linked


@pytest.fixture
def writer(target_program: StartProgram) -> Program:
    """Four threads that write and read one long when told to."""
    return target_program("writer", THREADS)


def test_every_write_of_every_thread_is_noticed(writer: Program) -> None:
    """Invariant: two clients share one register, count every write of every thread, a new thread's too, and no read."""
    with ubpx.attach(writer.pid) as target:
        place = address_of(writer, "watched_long")
        seen: list[int] = []
        first = target.client("first").watch(place, lambda hit: seen.append(hit.address))
        second = target.client("second").watch(place, lambda _: None)
        assert first.watchpoint is second.watchpoint
        assert first.watchpoint.clients == ("first", "second")
        assert writer.tell("w").number("accesses") == THREADS * EACH
        assert (first.hits, second.hits) == (THREADS * EACH, THREADS * EACH)
        assert len(set(seen)) == 1, "the address behind the one store"
        assert writer.tell("r").number("accesses") == THREADS * EACH
        assert writer.tell("b").number("accesses") == THREADS * EACH
        assert first.hits == THREADS * EACH
        assert writer.tell("t").number("accesses") == 1
        assert first.hits == THREADS * EACH + 1
        first.release()
        assert writer.tell("w").number("accesses") == THREADS * EACH
        assert (first.hits, second.hits) == (THREADS * EACH + 1, 2 * THREADS * EACH + 1)
    assert writer.tell("w").number("accesses") == THREADS * EACH
    assert writer.tell("q").wait() == 0


def test_reads_are_noticed_where_wanted(writer: Program) -> None:
    """Invariant: READWRITE notices both, and a register's watch ends with its last lease."""
    with ubpx.attach(writer.pid) as target:
        lease = target.client("one").watch(address_of(writer, "watched_long"), lambda _: None, access="READWRITE")
        writer.tell("r").number("accesses")
        writer.tell("w").number("accesses")
        assert lease.hits == 2 * THREADS * EACH
        lease.release()
        writer.tell("r").number("accesses")
        assert lease.hits == 2 * THREADS * EACH
        assert lease.state == ubpx.LeaseState.RELEASED
    assert writer.tell("q").wait() == 0


def test_a_fifth_place_is_refused_and_names_the_holders(writer: Program) -> None:
    """Invariant: four places can be watched in a process; who wants a fifth is told who holds them."""
    place = address_of(writer, "watched_long")
    with ubpx.attach(writer.pid) as target:
        one, two = target.client("one"), target.client("two")
        leases = [one.watch(place + each, lambda _: None, size=1) for each in range(3)]
        leases.append(two.watch(place + 3, lambda _: None, size=1))
        with pytest.raises(ubpx.DebugRegistersBusy, match="'one', 'two'") as refused:
            two.watch(place + 4, lambda _: None, size=1)
        assert refused.value.holders == ("one", "two")
        one.close()
        assert [lease.state for lease in leases] == ["RELEASED"] * 3 + ["ARMED"]
        assert two.watch(place + 4, lambda _: None, size=1).state == ubpx.LeaseState.ARMED
    assert writer.tell("w").number("accesses") == THREADS * EACH
    assert writer.tell("q").wait() == 0


def test_an_instruction_is_watched_without_a_trap(writer: Program) -> None:
    """Invariant: EXECUTE stops before the instruction, runs it once, and leaves the text as it is."""
    maps = writer.maps()
    with ubpx.attach(writer.pid) as target:
        client = target.client("one")
        seen: list[int] = []
        lease = client.watch(
            address_of(writer, "write_it"), lambda hit: seen.append(hit.args[0]), size=1, access="EXECUTE"
        )
        assert writer.tell("w").number("accesses") == THREADS * EACH
        assert lease.hits == THREADS * EACH
        assert sorted(seen) == sorted(list(range(EACH)) * THREADS)
        assert target.probepoints() == ()
    writer.assert_untouched(maps)
    assert writer.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", ["JUMP", "BOOST", "STEP", "INLINE"])
def test_a_probe_on_the_watched_store(writer: Program, strategy: str) -> None:
    """Invariant: a store that runs in a slot, or is stepped, is noticed as often as it is made."""
    with ubpx.attach(writer.pid) as target:
        client = target.client("one")
        watch = client.watch(address_of(writer, "watched_long"), lambda _: None)
        probe = client.probe("write_it", lambda _: None, strategy=strategy)
        assert writer.tell("w").number("accesses") == THREADS * EACH
        assert (watch.hits, probe.hits) == (THREADS * EACH, THREADS * EACH)
    assert writer.tell("q").wait() == 0


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        (0x1001, {}, "no multiple of 8"),
        (0x1000, {"size": 3}, "3 bytes"),
        (0x1000, {"access": "SMELL"}, "'SMELL'"),
        (0x1000, {"access": "EXECUTE"}, "size=1"),
        (-8, {}, "-8 cannot be watched"),
        (1 << 60, {}, "cannot be watched"),
        ("main", {}, "'main' cannot be watched"),
    ],
)
def test_what_cannot_be_watched(writer: Program, address: int, options: dict[str, str], words: str) -> None:
    """Invariant: what no debug register can watch is refused before any is touched."""
    with ubpx.attach(writer.pid) as target:
        client = target.client("one")
        with pytest.raises(ubpx.UsageError, match=words):
            client.watch(address, lambda _: None, **options)  # type: ignore[arg-type]
        assert client.leases == ()


def test_a_watch_from_a_handler(writer: Program) -> None:
    """Invariant: a handler may watch; what it watches is noticed by the other threads soon, by its own at once."""
    place = address_of(writer, "watched_long")
    with ubpx.attach(writer.pid) as target:
        client = target.client("one")
        leases: list[ubpx.Lease] = []

        def watch_once(hit: ubpx.Hit) -> None:
            if not leases:
                leases.append(client.watch(place, lambda _: None))

        client.probe("write_it", watch_once)
        writer.tell("w").number("accesses")
        writer.tell("w").number("accesses")
        assert THREADS * EACH <= leases[0].hits <= 2 * THREADS * EACH
    assert writer.tell("q").wait() == 0
