"""Persistent leases: a client leaves, or is killed, and comes back for its counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 1)


@pytest.fixture
def path(start_broker: Any, echo: Program) -> str:
    """The socket of a broker that traces it."""
    broker = start_broker("-p", str(echo.pid))
    socket: str = broker.path
    return socket


def connect(path: str) -> Any:
    """A target of the broker's."""
    return ubpx.connect(path)


@pytest.mark.parametrize("leaving", ["close", "detach", "break off"])
@pytest.mark.parametrize("mode", ["count", "sync", "notify"])
def test_a_client_comes_back_for_its_counts(
    path: str, echo: Program, eventually: Callable[..., bool], mode: str, leaving: str
) -> None:
    """Invariant: hits of a persistent lease go on while its client is away, and the others' leases end with it."""
    seen: list[int] = []
    handler = None if mode == "count" else lambda hit: seen.append(hit.args[0])
    target = connect(path)
    client = target.client("c")
    stays = client.probe("answer", handler, mode=mode, persistent=True)
    ends = client.probe("answer", None, mode="count")
    client.hold(echo.pid).release()
    held = client.hold(echo.pid)
    assert not held.released
    echo.tell("1\n")
    if leaving == "close":
        client.close()
    elif leaving == "detach":
        target.detach()
    else:
        target._link.break_off("the test pulls the plug")
    assert echo.number("answer") == 2, "its hold did not end with it"
    with connect(path) as look:
        assert eventually(lambda: [each.clients for each in look.probepoints()] == [("c",)])
        assert eventually(lambda: look.holds() == ())
    assert [echo.answer(n) for n in (2, 3)] == [3, 4]
    before = tuple(seen)
    with connect(path) as again:
        client = again.client("c")
        (found,) = client.leases
        assert (found.hits, found.spec, found.persistent, found.state, found.mode) == (3, "answer", True, "ARMED", mode)
        assert found.handler is None
        taken = client.probe("answer", handler, mode=mode, persistent=True)
        assert taken is found
        assert echo.answer(4) == 5
        assert found.hits == 4
        assert mode == "count" or eventually(lambda: seen == [*before, 4])
        found.release()
        assert (found.state, found.hits) == ("RELEASED", 4)
        assert again.probepoints() == ()
    assert (stays.hits, ends.hits) <= (4, 4)


def test_the_name_is_kept_for_its_owner(path: str, echo: Program) -> None:
    """Invariant: an absent client's name is given to who comes back, with the hooks that it had, and to nobody else."""
    with connect(path) as target:
        target.client("c").probe("answer", None, mode="count", persistent=True)
        with pytest.raises(ubpx.UsageError, match="already here"):
            connect(path).client("c")
    with connect(path) as target:

        class Hooks:
            @hookimpl
            def ubpx_thread_started(self, tid: int) -> None: ...

        with pytest.raises(ubpx.UsageError, match="other hooks"):
            target.client("c", hooks=Hooks())
        client = target.client("c")
        with pytest.raises(ubpx.UsageError, match="mode 'count'"):
            client.probe("answer", lambda _: None, persistent=True)
        assert echo.answer(1) == 2
        (lease,) = client.leases
        assert lease.hits == 1


def test_a_quarantined_client_loses_them(path: str, echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: persistence is for clients in good standing."""
    with connect(path) as target:
        client = target.client("ill")
        kept = client.probe("answer", None, mode="count", persistent=True)
        client.probe("answer", lambda _: 1 // 0)
        for number in range(3):
            assert echo.answer(number) == number + 1
        assert eventually(lambda: kept.state == ubpx.LeaseState.QUARANTINED)
        assert target.probepoints() == ()
    with connect(path) as target:
        assert target.client("ill").leases == ()


def test_who_cannot_be_told_counts_all_the_same(path: str, target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: of a hot place that is left and taken up again no hit is missing."""
    program = target_program("hot_calls", "probed_lea", 4, 3_000)
    broker = start_broker("-p", str(program.pid))
    handled: list[int] = []
    target = connect(broker.path)
    target.client("c").probe("probed_lea", lambda hit: handled.append(hit.tid), persistent=True)
    program.tell("g")
    for _ in range(10):
        target.detach()
        target = connect(broker.path)
        client = target.client("c")
        client.probe("probed_lea", lambda hit: handled.append(hit.tid), persistent=True)
    assert program.number("calls", timeout=60) == 12_000
    (lease,) = client.leases
    assert lease.hits == 12_000
    assert 0 < len(handled) <= 12_000
    target.detach()
    assert program.tell("q").wait() == 0


def test_a_lease_that_ends_at_its_first_hit_cannot_stay(path: str, echo: Program) -> None:
    """Invariant: once and persistent are refused together, and nothing is armed; once alone counts in every mode."""
    with connect(path) as target:
        client = target.client("c")
        with pytest.raises(ubpx.UsageError, match="leave out once, or persistent"):
            client.probe("answer", None, mode="count", persistent=True, once=True)
        assert list(target.probepoints()) == []
        leases = [client.probe("answer", None, mode="count", once=True)]
        leases.append(client.probe("answer", lambda _: None, mode="notify", once=True))
        assert [echo.answer(n) for n in (1, 2)] == [2, 3]
        assert [(lease.hits, lease.state) for lease in leases] == [(1, "RELEASED")] * 2
        assert list(target.probepoints()) == []
