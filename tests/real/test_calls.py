"""Where calls may come from: any thread of the embedding program, and handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 1)


def every_call(target: ubpx.Target) -> Mapping[str, Callable[[], object]]:
    """Calls of everything public on a target with client "first", in an order that works."""
    first = target.clients()[0]
    place = first.leases[0].address
    assert isinstance(place, int)
    made: dict[str, Any] = {}

    def join() -> str:
        made["client"] = target.client("second", priority=1)
        return str(made["client"].name)

    def probe() -> str:
        made["lease"] = made["client"].probe("long_insn", lambda _: None)
        return str(made["lease"].state)

    def hold() -> int:
        with made["client"].hold(next(tid for tid in target.threads() if tid != target.pid)):
            return len(target.holds())

    def leave() -> tuple[str, ...]:
        made["lease"].release()
        made["client"].close()
        return tuple(client.name for client in target.clients())

    return {
        "pid": lambda: target.pid,
        "stops": lambda: target.stops >= 0,
        "popen": lambda: target.popen,
        "threads": lambda: len(target.threads()),
        "resume": target.resume,
        "join": join,
        "probe": probe,
        "hold": hold,
        "clients": lambda: tuple(client.name for client in target.clients()),
        "probepoints": lambda: len(target.probepoints()),
        "read": lambda: target.memory.read(place, 4).hex(),
        "leases": lambda: len(first.leases),
        "leave": leave,
    }


def expected(pid: int, *, after_leaving: tuple[str, ...]) -> dict[str, object]:
    """What the calls give, wherever they come from."""
    return {
        "pid": pid, "stops": True, "popen": None, "threads": 2, "resume": None, "join": "second", "probe": "ARMED",
        "hold": 1, "clients": ("first", "second"), "probepoints": 2, "read": "488d4701", "leases": 1,
        "leave": after_leaving,
    }  # fmt: skip


@pytest.mark.contract("call-2")
def test_every_call_works_from_another_thread(echo: Program) -> None:
    """Invariant: it makes no difference which thread of the embedding program calls; the detach too is anybody's."""
    told: dict[str, object] = {}
    target = ubpx.attach(echo.pid)
    lease = target.client("first").probe("answer", lambda _: None)

    def call_all() -> None:
        told.update({name: call() for name, call in every_call(target).items()})
        told["wait"] = target.wait(0)
        target.detach()

    worker = threading.Thread(target=call_all)
    worker.start()
    worker.join(30)
    assert told == {**expected(echo.pid, after_leaving=("first",)), "wait": None}
    assert lease.state is ubpx.LeaseState.RELEASED
    assert echo.answer(1) == 2


@pytest.mark.contract("call-3", "call-4", "call-5")
def test_every_call_works_from_a_handler(echo: Program) -> None:
    """Invariant: from a handler calls run at once, but leaving waits for the hit's end and wait is refused."""
    told: dict[str, object] = {}

    def call_all(hit: ubpx.Hit) -> None:
        told.update({name: call() for name, call in every_call(hit.lease.client.target).items()})
        with pytest.raises(ubpx.UsageError):
            hit.lease.client.target.wait(0)

    with ubpx.attach(echo.pid) as target:
        lease = target.client("first").probe("answer", call_all)
        assert echo.answer(1) == 2
        assert (lease.hits, lease.errors) == (1, 0)
        assert told == expected(echo.pid, after_leaving=("first", "second"))
        assert [client.name for client in target.clients()] == ["first"]
        assert len(target.probepoints()) == 1
