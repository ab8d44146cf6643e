"""The program that embeds ubpx does other things too: starts children, forks, closes sessions, reads memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that answers what it is asked."""
    return target_program("echo")


def test_child_started_in_a_handler_keeps_its_status(echo: Program) -> None:
    """Invariant: the tracer thread never takes the exit status of a child that a handler has started."""
    children: list[subprocess.Popen[bytes]] = []
    with ubpx.attach(echo.pid) as target:
        client = target.client("starts")
        client.probe("answer", lambda _: children.append(subprocess.Popen([sys.executable, "-c", "exit(7)"])))
        assert [echo.answer(n) for n in range(3)] == [1, 2, 3]
        assert [child.wait(20) for child in children] == [7, 7, 7]


def test_attach_to_a_child_that_is_waited_for_already(target_program: StartProgram) -> None:
    """Invariant: a wait that is blocked at the attach is never given a stop for an end: the attach is refused."""
    program = target_program("echo", 2)
    assert program.popen is not None
    statuses: list[int] = []
    waiter = threading.Thread(target=lambda: statuses.append(os.waitpid(program.pid, 0)[1]))
    waiter.start()
    while not any(
        line.startswith(f"61 0x{program.pid:x} ")
        for task in os.listdir("/proc/self/task")
        for line in [Path(f"/proc/self/task/{task}/syscall").read_text()]
    ):
        pass
    with pytest.raises(ubpx.UsageError, match="waiting for its child"):
        ubpx.attach(program.pid)
    assert program.answer(1) == 2
    program.tell("x 7\n")
    waiter.join(20)
    assert statuses == [7 << 8]


def test_forked_copy_of_the_host_ends(echo: Program) -> None:
    """Invariant: a fork of the embedding program exits by itself, and leaves the session to its maker."""
    script = (
        "import os, sys, ubpx\n"
        f"target = ubpx.attach({echo.pid})\n"
        "target.client('one').probe('answer', lambda hit: None)\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    host = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert host.stdout == "5\n"
    assert echo.answer(1) == 2


def test_session_closed_in_a_handler(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: Session.close in a handler takes effect after the hit, and leaves the program unharmed."""
    program = target_program("hundred")
    maps = program.maps()
    session = ubpx.Session()
    session.attach(program.pid).client("closes").probe("hot", lambda _: session.close())
    assert eventually(lambda: not session.targets)
    program.assert_untouched(maps)
    program.tell("q").expect("done")
    assert program.wait() == 0


def test_memory_is_read_from_any_thread_while_hits_are_emulated(target_program: StartProgram) -> None:
    """Invariant: eight bytes read in one thread are never those that the tracer thread transfers meanwhile."""
    program = target_program("hundred")
    wrong = 0
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("warm", lambda _: None, strategy="EMULATE")
        place = target.client("two").probe("hot", lambda _: None).address
        assert place is not None
        truth = target.memory.read(place, 16)[:8]

        def read() -> None:
            nonlocal wrong
            for _ in range(30_000):
                wrong += target.memory.read(place, 8) != truth

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert lease.probepoint is not None
        assert (lease.probepoint.strategy, wrong) == (ubpx.Strategy.EMULATE, 0)
    program.tell("q").expect("done")


def test_no_handler_runs_for_a_lease_that_was_released(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: threads that have arrived together with the last hit of a lease find it released."""
    program = target_program("hundred")
    late = 0

    def once(hit: ubpx.Hit) -> None:
        nonlocal late
        late += hit.lease.state != ubpx.LeaseState.ARMED
        hit.lease.release()

    with ubpx.attach(program.pid) as target, target.client("once") as client:
        for _ in range(100):
            lease = client.probe("hot", once)
            assert eventually(lambda lease=lease: lease.state == ubpx.LeaseState.RELEASED)
    assert late == 0
    program.tell("q").expect("done")


@pytest.mark.parametrize("priority", ["high", 1.5, b""])
def test_priority_that_cannot_be_compared_is_refused(echo: Program, priority: object) -> None:
    """Invariant: one client's bad priority never breaks another's probe."""
    with ubpx.attach(echo.pid) as target:
        with pytest.raises(ubpx.UsageError, match="priority"):
            target.client("odd", priority=priority)  # type: ignore[arg-type]
        with pytest.raises(ubpx.UsageError, match="priority"):
            target.client("even").probe("answer", lambda _: None, priority=priority)  # type: ignore[arg-type]
        assert os.path.exists(f"/proc/{echo.pid}")


@pytest.mark.parametrize("argv", ["ls", b"ls", [], ["sleep", 5], [None], 5])
def test_argv_that_is_no_list_of_strings(argv: object) -> None:
    """Invariant: what cannot be started is refused before anything is opened."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ubpx.UsageError, match="argv"):
        ubpx.spawn(argv)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
