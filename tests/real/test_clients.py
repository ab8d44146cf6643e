"""Clients at one address: order, register writes, isolation, exclusive use, names."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.over_both


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 2)


@pytest.mark.contract("lease-4")
def test_two_clients_share_one_trap_and_slot(echo: Program) -> None:
    """Invariant: leases at one address are shares of one probepoint: one strategy, one slot, ordered names."""
    with ubpx.attach(echo.pid) as target:
        a = target.client("a").probe("answer", lambda _: None)
        assert a.address is not None
        b = target.client("b", priority=5).probe(a.address, lambda _: None)
        assert a.probepoint is not None
        assert b.probepoint is not None
        assert a.address == b.address
        assert a.probepoint == b.probepoint
        assert a.probepoint.slot == b.probepoint.slot is not None
        assert a.probepoint.clients == ("b", "a")
        assert len(target.probepoints()) == 1
        a.release()
        assert b.probepoint.clients == ("b",)
        assert echo.answer(1) == 2
        assert (a.hits, b.hits) == (0, 1)
        b.release()
        assert list(target.probepoints()) == []


@pytest.mark.contract("lease-7", "lease-4")
def test_handlers_run_by_priority_then_age(echo: Program) -> None:
    """Invariant: the higher priority runs first, then the older lease; a lease may outrank its client."""
    order: list[str] = []

    def note(name: str) -> Callable[[ubpx.Hit], None]:
        return lambda _: order.append(name)

    with ubpx.attach(echo.pid) as target:
        low, old, high = target.client("low", priority=-1), target.client("old"), target.client("high", priority=10)
        young = target.client("young")
        low.probe("answer", note("low"))
        old.probe("answer", note("old"))
        young.probe("answer", note("young"))
        high.probe("answer", note("high"))
        last = young.probe("answer", note("urgent"), priority=11)
        assert echo.answer(1) == 2
        assert order == ["urgent", "high", "old", "young", "low"]
        assert last.probepoint is not None
        assert last.probepoint.clients == ("young", "high", "old", "young", "low")


@pytest.mark.contract("hit-3", "hit-4")
def test_hit_tells_where_and_what(echo: Program) -> None:
    """Invariant: a hit shows the probed address as rip, the arguments, the thread, memory, and its own lease."""
    seen: list[tuple[object, ...]] = []

    def look(hit: ubpx.Hit) -> None:
        code = hit.memory.read(hit.address, 4)
        seen.append((hit.address, hit.regs.rip, hit.pid, hit.tid, hit.args[0], hit.regs.rdi, code, hit.lease))

    with ubpx.attach(echo.pid) as target:
        lease = target.client("one").probe("answer", look)
        assert echo.answer(77) == 78
        address = lease.address
        own = bytes.fromhex("48 8d 47 01")
        assert seen == [(address, address, echo.pid, echo.pid, 77, 77, own, lease)]


@pytest.mark.parametrize(
    "strategy", [None, ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
)
@pytest.mark.contract("hit-5", "hit-6")
def test_register_writes_apply_once_after_all_handlers(echo: Program, strategy: ubpx.Strategy | None) -> None:
    """Invariant: later handlers read the values at arrival; the program goes on with what was written."""
    read: list[int] = []

    def write(hit: ubpx.Hit) -> None:
        hit.regs.rdi = 100

    def read_on(hit: ubpx.Hit) -> None:
        read.append(hit.regs.rdi)

    with ubpx.attach(echo.pid) as target:
        target.client("writes", priority=1).probe("answer", write, strategy=strategy)
        target.client("reads").probe("answer", read_on, strategy=strategy)
        assert echo.answer(5) == 101
        assert read == [5]
    assert echo.answer(5) == 6


def test_earlier_write_stands(echo: Program) -> None:
    """Invariant: of two different values for one register at one hit the earlier handler's stands."""

    def write(name: str, value: int) -> Callable[[ubpx.Hit], None]:
        return lambda hit: setattr(hit.regs, name, value)

    with ubpx.attach(echo.pid) as target:
        first, second = target.client("first", priority=1), target.client("second")
        second.probe("answer", write("rdi", 20))
        first.probe("answer", write("rdi", 10))
        assert echo.answer(5) == 11
        assert echo.answer(6) == 11


def test_rip_may_be_written(echo: Program) -> None:
    """Invariant: a handler that writes rip sends the thread there instead of over the instruction."""

    def skip(hit: ubpx.Hit) -> None:
        hit.regs.rax = 1234
        hit.regs.rip = hit.address + 4  # the ret behind the lea

    with ubpx.attach(echo.pid) as target, target.client("one") as client:
        client.probe("answer", skip)
        assert [echo.answer(5), echo.answer(6)] == [1234, 1234]
    assert echo.answer(5) == 6


@pytest.mark.contract("hit-1", "hit-2")
def test_hit_is_stale_after_its_handler(echo: Program) -> None:
    """Invariant: a kept hit raises StaleHit; its snapshot stays readable."""
    hits: list[ubpx.Hit] = []
    snapshots = []

    def keep(hit: ubpx.Hit) -> None:
        hits.append(hit)
        snapshots.append(hit.snapshot())

    with ubpx.attach(echo.pid) as target:
        lease = target.client("one").probe("answer", keep)
        assert echo.answer(5) == 6
        (hit,) = hits
        stale: list[Callable[[], object]] = [
            lambda: hit.regs.rdi,
            lambda: hit.args[0],
            lambda: setattr(hit.regs, "rdi", 1),
            lambda: hit.address,
            hit.snapshot,
        ]
        for use in stale:
            with pytest.raises(ubpx.StaleHit):
                use()
        (kept,) = snapshots
        assert echo.answer(6) == 7
    assert (kept.address, kept.pid, kept.tid) == (lease.address, echo.pid, echo.pid)
    assert (kept.regs["rdi"], kept.regs["rip"], kept.args[0]) == (5, lease.address, 5)


@pytest.mark.contract("error-15")
def test_exclusive_use_names_the_holder(echo: Program) -> None:
    """Invariant: who asks for exclusive use gets it alone or not at all; the refusal names the holder."""
    with ubpx.attach(echo.pid) as target:
        a, b = target.client("a"), target.client("b")
        alone = a.probe("answer", lambda _: None, exclusive=True)
        for exclusive in (True, False):
            with pytest.raises(ubpx.ProbepointBusy) as refused:
                b.probe("answer", lambda _: None, exclusive=exclusive)
            assert (refused.value.address, refused.value.holder) == (alone.address, "a")
            assert "'a'" in str(refused.value)
        assert alone.probepoint is not None
        assert alone.probepoint.clients == ("a",)
        alone.release()
        shared = b.probe("answer", lambda _: None)
        with pytest.raises(ubpx.ProbepointBusy, match="'b'"):
            a.probe("answer", lambda _: None, exclusive=True)
        assert echo.answer(1) == 2
        assert (alone.hits, shared.hits) == (0, 1)


@pytest.mark.contract("lease-2", "lease-3")
def test_release_is_idempotent(echo: Program) -> None:
    """Invariant: a second release does nothing, whoever else stands there, in a with or not."""
    with ubpx.attach(echo.pid) as target:
        a = target.client("a").probe("answer", lambda _: None)
        with target.client("b").probe("answer", lambda _: None) as b:
            b.release()
            b.release()
        b.release()
        assert a.state == ubpx.LeaseState.ARMED
        assert b.state == ubpx.LeaseState.RELEASED
        assert echo.answer(1) == 2
        assert (a.hits, b.hits) == (1, 0)


@pytest.mark.contract("client-1", "client-2")
def test_names_of_living_clients_are_unique(echo: Program) -> None:
    """Invariant: one living client per name; a closed one leaves the name free and its leases released."""
    with ubpx.attach(echo.pid) as target:
        first = target.client("same")
        with pytest.raises(ubpx.UsageError, match="same"):
            target.client("same")
        lease = first.probe("answer", lambda _: None)
        first.close()
        assert lease.state == ubpx.LeaseState.RELEASED
        with pytest.raises(ubpx.UsageError):
            first.probe("answer", lambda _: None)
        with target.client("same") as second:
            assert second.probe("answer", lambda _: None).state == ubpx.LeaseState.ARMED
        assert list(target.probepoints()) == []
        assert "same" not in {client.name for client in target.clients()}


@pytest.mark.contract("call-2")
def test_calls_from_any_thread(target_program: StartProgram) -> None:
    """Invariant: clients, probes and releases may come from any thread, many at once, while hits go on."""
    program = target_program("hot_calls", "probed_lea", 4, 2_500)
    failures: list[BaseException] = []

    def work(target: ubpx.Target, number: int) -> None:
        try:
            for turn in range(15):
                with target.client(f"client {number}") as client:
                    lease = client.probe(("probed_lea", "call_observed")[turn % 2], lambda _: None)
                    assert lease.state == ubpx.LeaseState.ARMED
        except BaseException as failure:  # noqa: BLE001 - shown by the assertion below
            failures.append(failure)

    with ubpx.attach(program.pid) as target:
        stays = target.client("stays").probe("probed_lea", lambda _: None)
        workers = [threading.Thread(target=work, args=(target, number)) for number in range(6)]
        program.tell("g")
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(50)
        assert failures == []
        assert program.number("calls") == stays.hits == 10_000
    assert program.tell("q").wait() == 0


@pytest.mark.contract("call-4")
def test_release_and_close_in_a_handler_take_effect_after_the_hit(echo: Program) -> None:
    """Invariant: a handler may end its own lease, its client or another's; this hit still reaches everybody."""
    with ubpx.attach(echo.pid) as target:
        one, two = target.client("one", priority=2), target.client("two", priority=1)
        leases: list[ubpx.Lease] = []
        seen: list[str] = []

        def end_all(_: ubpx.Hit) -> None:
            seen.append("one")
            leases[0].release()
            two.close()

        leases.append(one.probe("answer", end_all))
        leases.append(two.probe("answer", lambda _: seen.append("two")))
        stays = target.client("stays").probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert seen == ["one", "two"]
        assert echo.answer(1) == 2
        assert [lease.hits for lease in leases] == [1, 1]
        assert stays.hits == 2
        assert all(lease.state == ubpx.LeaseState.RELEASED for lease in leases)


@pytest.mark.contract("call-4")
def test_detach_in_a_handler(echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: a handler may leave the target; it takes effect after the hit and the program is untouched."""
    maps = echo.maps()
    target = ubpx.attach(echo.pid)
    lease = target.client("one").probe("answer", lambda _: target.detach())
    assert echo.answer(1) == 2
    assert eventually(lambda: lease.state == ubpx.LeaseState.RELEASED)
    target.detach()
    echo.assert_untouched(maps)
    assert lease.hits == 1


@pytest.mark.contract("call-4")
@pytest.mark.parametrize("whole_session", [False, True])
def test_detach_in_a_handler_ends_its_hits(whole_session: bool) -> None:
    """Invariant: a handler that has left the target is not called again, however soon the next thread arrives."""
    calls = ["python3", "-c", "import os\nfor _ in range(3000): os.getppid()"]
    with ubpx.Session() as session:
        target = session.spawn(calls)
        leave = session.close if whole_session else target.detach
        lease = target.client("one").probe("libc:getppid", lambda _: leave())
        target.resume()
        assert target.popen is not None
        assert target.popen.wait(timeout=60) == 0
        assert lease.hits == 1


@pytest.mark.contract("call-3", "call-5")
def test_probe_in_a_handler_and_no_wait_there(echo: Program) -> None:
    """Invariant: from a handler probe works at once; wait, which could never end, is a UsageError."""
    with ubpx.attach(echo.pid) as target:
        client = target.client("one")
        inner: list[ubpx.Lease] = []
        errors: list[BaseException] = []

        def probe_more(_: ubpx.Hit) -> None:
            if not inner:
                inner.append(client.probe("answer+0x4", lambda _: None))
                try:
                    target.wait()
                except ubpx.UsageError as error:
                    errors.append(error)

        outer = client.probe("answer", probe_more)
        assert [echo.answer(n) for n in range(3)] == [1, 2, 3]
        assert (outer.hits, inner[0].hits, len(errors)) == (3, 3, 1)
