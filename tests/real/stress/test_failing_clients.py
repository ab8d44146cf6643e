"""Clients that fail in their handlers, one after another by the hundred; the others miss nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

import ubpx
from tests.real.families import ClientProcesses

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

PLACE: Final = "probed_lea"
THREADS: Final = 2
DEADLINE_S: Final = 0.2
REMOTE_DEADLINE_S: Final = 1.0
IN_A_ROW: Final = 3
"""So many failures end a client."""

Eventually = Callable[..., bool]


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """What the clients raise is logged, each time."""
    log = logging.getLogger("ubpx.clients")
    before = log.disabled
    log.disabled = True
    yield
    log.disabled = before


def raises(_: ubpx.Hit) -> NoReturn:
    raise RuntimeError("this client is ill")


def exits(_: ubpx.Hit) -> NoReturn:
    sys.exit(7)


def overruns(_: ubpx.Hit) -> None:
    while True:
        pass


def begin(program: Program, clients: dict[str, ubpx.Lease]) -> None:
    """Let the program call, and see that all of these hear of it."""
    program.tell("g")
    until = time.monotonic() + 20
    while not all(lease.hits for lease in clients.values()):
        assert time.monotonic() < until
        time.sleep(0.001)


def fail_in_process(target_program: StartProgram, eventually: Eventually, times: int) -> None:
    """So many clients of each sort fail between two that do not; each until it is quarantined."""
    program = target_program("endless", PLACE, THREADS, 1_100)
    seen = {"before": 0, "after": 0}

    def count(name: str) -> Callable[[ubpx.Hit], None]:
        def handler(_: ubpx.Hit) -> None:
            seen[name] += 1

        return handler

    with ubpx.attach(program.pid, deadline=DEADLINE_S) as target:
        steady = {
            "before": target.client("before", priority=1).probe(PLACE, count("before")),
            "after": target.client("after", priority=-1).probe(PLACE, count("after")),
        }
        begin(program, steady)
        for turn in range(times):
            for handler in (raises, exits, overruns):
                client = target.client(f"{handler.__name__} {turn}")
                lease = client.probe(PLACE, handler)
                assert eventually(lambda lease=lease: lease.state is ubpx.LeaseState.QUARANTINED)
                assert (lease.hits, lease.errors) == (IN_A_ROW, IN_A_ROW)
                client.close()
        assert {lease.state for lease in steady.values()} == {ubpx.LeaseState.ARMED}
        made = program.tell("s").number("calls")
        assert {name: lease.hits for name, lease in steady.items()} == seen == dict.fromkeys(steady, made)
    sys.stdout.write(f"{times} clients of each of 3 sorts failed; the others and the program counted {made} calls\n")
    assert program.tell("q").wait() == 0


def test_clients_that_fail_in_our_own_process(target_program: StartProgram, eventually: Eventually) -> None:
    """Invariant: whoever raises, exits or never returns is quarantined, and costs the others no hit."""
    fail_in_process(target_program, eventually, 2)


@pytest.mark.torture
def test_two_hundred_clients_fail_in_our_own_process(target_program: StartProgram, eventually: Eventually) -> None:
    """Invariant: as above."""
    fail_in_process(target_program, eventually, 200)


def fail_elsewhere(target_program: StartProgram, start_broker: Any, eventually: Eventually, times: int) -> None:
    """The same in processes of their own, which may also end in the midst of a hit."""
    program = target_program("endless", PLACE, THREADS, 1_100)
    broker = start_broker("-p", str(program.pid), "--deadline", str(REMOTE_DEADLINE_S))
    clients = ClientProcesses(broker.path, PLACE)
    with contextlib.ExitStack() as ending:
        ending.callback(clients.end)
        steady = {"sync": "sync", "listener": "notify", "counter": "count"}
        for name, kind in steady.items():
            clients.start(name, kind)
        program.tell("g")
        watcher = ending.enter_context(ubpx.connect(broker.path))
        for turn in range(times):
            for kind in ("raise", "overrun", "exit", "die"):
                name = f"{kind}{turn}"
                clients.begin(name, kind)
                clients.hear(name, "busy")  # it may not live to say that it is ready
                assert eventually(lambda name=name: has_left(watcher, name)), watcher.clients()
                if kind in {"raise", "overrun"}:
                    clients.kill(name)
                else:
                    clients.pids.pop(name)
        made = program.tell("s").number("calls", timeout=60)
        for name, kind in steady.items():
            handled, hits, dropped, _ = clients.count(name)
            assert (hits, handled + dropped) == (made, made), name
            assert kind == "notify" or dropped == 0, name
    sys.stdout.write(f"{times} client processes of each of 4 sorts failed; the others counted {made} calls\n")
    assert program.tell("q").wait() == 0


def has_left(watcher: Any, name: str) -> bool:
    """Whether a client leases nothing any more."""
    return all(name not in probepoint.clients for probepoint in watcher.probepoints())


def test_clients_that_fail_in_their_own_processes(
    target_program: StartProgram, start_broker: Any, eventually: Eventually
) -> None:
    """Invariant: an exception, an overrun, an exit and SIGKILL in a handler cost the other processes no hit."""
    fail_elsewhere(target_program, start_broker, eventually, 1)


@pytest.mark.torture
def test_two_hundred_client_processes_fail(
    target_program: StartProgram, start_broker: Any, eventually: Eventually
) -> None:
    """Invariant: as above."""
    fail_elsewhere(target_program, start_broker, eventually, 200)
