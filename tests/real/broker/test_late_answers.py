"""Answers that come after the tracer has lost its patience mean what they would have meant at once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from ubpx.core.values import parse_maps
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

LATE_S: Final = 0.05
"""Far beyond the tracer's patience, and far within the deadline."""


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 1)


@pytest.fixture
def path(start_broker: Any, echo: Program) -> str:
    """The socket of a broker that traces it."""
    socket: str = start_broker("-p", str(echo.pid), "--deadline", "5").path
    return socket


def connect(path: str) -> Any:
    """A target of the broker's."""
    return ubpx.connect(path)


def test_a_hold_of_the_handlers_own_is_not_ended_by_its_late_answer(
    path: str, echo: Program, eventually: Callable[..., bool]
) -> None:
    """Invariant: what stood for the answer ends with it; what the client has taken itself stays its own."""
    taken: list[Any] = []
    with connect(path) as target:
        client = target.client("c")

        def handler(hit: Any) -> None:
            taken.append(client.hold(hit.tid))
            time.sleep(LATE_S)

        lease = client.probe("answer", handler)
        echo.tell("1\n")
        assert eventually(lambda: len(target.holds()) == 1 and lease.hits == 1 and taken)
        time.sleep(3 * LATE_S)
        (hold,) = taken
        assert not hold.released
        hold.release()
        assert echo.number("answer") == 2
        assert target.holds() == ()


def test_what_stands_for_a_late_answer_is_not_the_clients_to_release(
    path: str, echo: Program, eventually: Callable[..., bool]
) -> None:
    """Invariant: of its own, a client is shown the holds that its verdicts took, and of others everything."""
    late, answer = threading.Event(), threading.Event()

    def handler(_hit: Any) -> ubpx.Verdict:
        late.set()
        assert answer.wait(2)
        return ubpx.Verdict.HOLD

    with connect(path) as one, connect(path) as two:
        one.client("c").probe("answer", handler)
        echo.tell("1\n")
        assert late.wait(2)
        assert eventually(lambda: [each.owner for each in two.holds()] == ["c"]), "it is late by now"
        assert one.holds() == ()
        answer.set()
        assert eventually(one.holds)
        (hold,) = one.holds()
        hold.release()
        assert echo.number("answer") == 2
        assert (one.holds(), two.holds()) == ((), ())


def test_a_late_write_stands_beside_a_hold_of_the_process(
    path: str, echo: Program, eventually: Callable[..., bool]
) -> None:
    """Invariant: who is late is waited for, whatever another client's verdict is."""

    def write(hit: Any) -> None:
        time.sleep(LATE_S)
        hit.regs.rdi = 100

    with connect(path) as one, connect(path) as two:
        one.client("holds", priority=1).probe("answer", lambda _: ubpx.Verdict.HOLD_PROCESS)
        two.client("writes").probe("answer", write)
        echo.tell("1\n")
        assert eventually(lambda: [each.owner for each in one.holds()] == ["holds"]), one.holds()
        (hold,) = one.holds()
        hold.release()
        assert echo.number("answer") == 101


@pytest.mark.parametrize("first", ["early", "late"])
def test_the_earlier_handler_stands_also_when_it_is_late(path: str, echo: Program, first: str) -> None:
    """Invariant: handler order decides between two values, not who answers first."""

    def write(value: int, delay: float) -> Callable[[Any], None]:
        def handler(hit: Any) -> None:
            time.sleep(delay)
            hit.regs.rdi = value

        return handler

    with connect(path) as one, connect(path) as two:
        slow, quick = (LATE_S, 0.0) if first == "late" else (0.0, LATE_S)
        one.client("first", priority=1).probe("answer", write(10, slow))
        two.client("second").probe("answer", write(20, quick))
        assert [echo.answer(n) for n in range(3)] == [11, 11, 11]


@pytest.mark.parametrize("verdict", [None, *ubpx.Verdict])
def test_every_verdict_may_be_late(
    path: str, echo: Program, eventually: Callable[..., bool], verdict: ubpx.Verdict | None
) -> None:
    stepped: list[int] = []

    class Hooks:
        @hookimpl
        def ubpx_thread_stepped(self, address: int) -> None:
            stepped.append(address)

    def handler(hit: Any) -> ubpx.Verdict | None:
        time.sleep(LATE_S)
        hit.regs.rdi += 100
        return verdict

    with connect(path) as target:
        lease = target.client("c", hooks=Hooks()).probe("answer", handler)
        echo.tell("1\n")
        if verdict in {ubpx.Verdict.HOLD, ubpx.Verdict.HOLD_PROCESS}:
            thread = echo.pid if verdict is ubpx.Verdict.HOLD else None
            time.sleep(3 * LATE_S)
            assert eventually(lambda: [each.thread for each in target.holds()] == [thread])
            (hold,) = target.holds()
            hold.release()
        assert echo.number("answer") == 102
        assert verdict is not ubpx.Verdict.STEP or eventually(lambda: stepped == [lease.address + 4])
        assert target.holds() == ()


def test_a_late_exception_counts_like_a_prompt_one(path: str, echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: a handler's, and a hook's; three in a row quarantine the client."""

    class Hooks:
        @hookimpl
        def ubpx_signal(self, signal: int) -> None:
            time.sleep(LATE_S)
            raise RuntimeError("no")

        @hookimpl
        def ubpx_client_joined(self, name: str) -> None:
            time.sleep(LATE_S)
            raise RuntimeError("no")

    def fail(_: Any) -> None:
        time.sleep(LATE_S)
        raise RuntimeError("no")

    with connect(path) as target, connect(path) as other:
        ill = target.client("ill")
        lease = ill.probe("answer", fail)
        for n in range(3):
            assert echo.answer(n) == n + 1
        assert eventually(lambda: lease.state == ubpx.LeaseState.QUARANTINED)
        assert (lease.errors, lease.hits) == (3, 3)
        assert "RuntimeError" in ill.reason
        hooked = target.client("hooked", hooks=Hooks())
        for name in ("a", "b", "c"):
            other.client(name)
        assert eventually(lambda: hooked.state == "QUARANTINED")
        assert echo.answer(5) == 6


@pytest.mark.parametrize("delay_s", [0.0, LATE_S])
def test_who_detaches_in_a_handler_has_its_last_word(path: str, echo: Program, delay_s: float) -> None:
    """Invariant: what a handler has answered is done before its client leaves, however late it was."""
    for turn in range(5):
        target = connect(path)

        def handler(hit: Any, target: Any = target) -> None:
            time.sleep(delay_s)
            target.detach()
            hit.regs.rdi += 100

        target.client("c").probe("answer", handler)
        assert echo.answer(turn) == turn + 101
        assert echo.answer(turn) == turn + 1
        target.detach()


def test_who_closes_after_a_handler_has_its_last_word(path: str, echo: Program) -> None:
    """Invariant: as above, for a client that another thread closes as soon as its handler has returned."""

    def handler(hit: Any) -> None:
        time.sleep(LATE_S)
        hit.regs.rdi += 100
        over.set()

    with connect(path) as target:
        for turn in range(10):
            over = threading.Event()
            client = target.client("c")
            client.probe("answer", handler)
            echo.tell(f"{turn}\n")
            assert over.wait(30)
            time.sleep(0.001)  # its answer is sent by now
            client.close()
            assert echo.number("answer") == turn + 101


def test_an_exec_ends_what_was_held_before_it(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: neither the hold of a late answer nor its registers reach the program that another thread exec's."""
    program = target_program("exec_while_held")
    broker = start_broker("-p", str(program.pid), "--deadline", "5")
    arrived = threading.Event()

    def handler(hit: Any) -> None:
        arrived.set()
        time.sleep(10 * LATE_S)
        hit.regs.rdi = 7

    with connect(broker.path) as target:
        target.client("c").probe("probed_leader", handler)
        program.tell("g")
        assert arrived.wait(30)
        program.tell("x")
        program.expect("again")
        time.sleep(15 * LATE_S)
        program.tell("q")
        assert program.wait() == 5


def test_one_lease_that_is_gone_does_not_keep_the_others(path: str, echo: Program) -> None:
    """Invariant: leases that are given back together are all given back, also if one of them was before."""
    with connect(path) as target:
        client = target.client("c")
        for _ in range(20):
            group = client.probe_many(["answer", "busy"], None, mode="count")
            threads = [threading.Thread(target=group[0].release), threading.Thread(target=group.release)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert target.probepoints() == ()
            assert [each.state for each in group] == ["RELEASED"] * 2


def test_who_dies_while_it_takes_a_hold_holds_nothing(
    path: str, echo: Program, eventually: Callable[..., bool]
) -> None:
    """Invariant: a sweep takes back also what is being granted meanwhile."""
    for turn in range(20):
        target = connect(path)
        client = target.client(f"p{turn}")
        client.probe("answer", None, mode="count", persistent=True)
        holder = threading.Thread(target=lambda client=client: _hold_quietly(client))
        holder.start()
        time.sleep(turn * 0.0002)
        target._link.break_off("the test pulls the plug")
        holder.join(30)
    with connect(path) as look:
        assert eventually(lambda: look.holds() == ()), look.holds()
        assert echo.answer(1) == 2


def _hold_quietly(client: Any) -> None:
    with contextlib.suppress(ubpx.UbpxError):
        client.hold()


def test_a_forked_copy_of_a_client_leaves_its_parents_connection_alone(path: str, echo: Program) -> None:
    with connect(path) as target, target.client("c").probe("answer", lambda _: None) as lease:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                lease.release()
                target.detach()
                target.threads()
            except ubpx.UsageError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert echo.answer(1) == 2
        assert (lease.hits, lease.state) == (1, "ARMED")


def test_what_comes_back_must_be_as_it_was(path: str, echo: Program) -> None:
    """Invariant: other options are refused, not ignored; a living client's second lease of a place is another."""
    with connect(path) as target:
        client = target.client("c", priority=3)
        first = client.probe("answer", None, mode="count", persistent=True)
        second = client.probe("answer", None, mode="count", persistent=True)
        assert first is not second
        second.release()
    with connect(path) as target:
        with pytest.raises(ubpx.UsageError, match="priority 0"):
            target.client("c")
        client = target.client("c", priority=3)
        with pytest.raises(ubpx.UsageError, match="exclusive True"):
            client.probe("answer", None, mode="count", persistent=True, exclusive=True)
        assert client.probe("answer", None, mode="count", persistent=True) is client.leases[0]
        assert echo.answer(1) == 2


def test_a_big_reply_is_waited_for_as_long_as_the_deadline(path: str, echo: Program) -> None:
    """Invariant: a handler may read much, while other threads of its process keep it from reading quickly."""
    read: list[int] = []
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(2000))

    def handler(hit: Any) -> None:
        read.append(len(hit.memory.read(library.start, 400_000)))

    with connect(path) as target:
        mappings = parse_maps(Path(f"/proc/{echo.pid}/maps").read_text())
        library = next(each for each in mappings if each.end - each.start >= 400_000 and "libc" in each.path)
        lease = target.client("c").probe("answer", handler)
        threads = [threading.Thread(target=compute) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(5):
                assert echo.answer(n) == n + 1
        finally:
            over.set()
            for thread in threads:
                thread.join(30)
        assert read == [400_000] * 5
        assert (lease.hits, lease.state) == (5, "ARMED")
