"""The asyncio form of a connection to a real broker: what handlers in an event loop see and do, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from ubpx.hookspecs import hookimpl
from ubpx_froggy import aio

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

    Serve = Callable[..., BrokerProcess]

PATIENCE_S: Final = 30.0
THREADS: Final = 4
CALLS: Final = 500
MADE: Final = THREADS * CALLS

out: Final = asyncio.to_thread
"""What the program says must not keep the loop waiting."""


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In a loop of its own, in bounded time; no task is left then, and no complaint of the loop's."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE_S):
            await scenario()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert complaints == []


async def soon(done: Callable[[], object]) -> None:
    """Until it is so; the loop's time is bounded."""
    while not done():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def using(broker: BrokerProcess, name: str = "a", **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A target, and a client of it."""
    async with await aio.connect(broker.path) as target, await target.client(name, **options) as client:
        yield target, client


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """Answers lines, and calls busy() all the time."""
    return target_program("echo", 1)


@pytest.fixture
def serve(start_broker: Callable[..., BrokerProcess]) -> Serve:
    """Starts a broker that traces a program."""

    def serve(program: Program, *arguments: str) -> BrokerProcess:
        broker = start_broker("-p", str(program.pid), *arguments)
        assert broker.greeting.startswith("ubpx: serving"), broker.greeting + "\n" + broker.end()
        return broker

    return serve


@pytest.fixture
def broker(serve: Serve, echo: Program) -> BrokerProcess:
    """Traces it."""
    return serve(echo)


# Counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "form"),
    [("sync", "plain"), ("sync", "coroutine"), ("notify", "plain"), ("notify", "coroutine"), ("count", None)],
)
def test_counts_are_exact(target_program: StartProgram, serve: Serve, mode: str, form: str | None) -> None:
    """Invariant: hits are the program's own count; all are handled in mode sync, or dropped and counted in notify."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    maps = program.maps()
    broker = serve(program)
    handled = 0

    def plain(_: Any) -> None:
        nonlocal handled
        handled += 1

    async def coroutine(_: Any) -> None:
        nonlocal handled
        await asyncio.sleep(0)
        handled += 1

    async def scenario() -> None:
        async with using(broker) as (_, client):
            handlers = {None: None, "plain": plain, "coroutine": coroutine}
            async with await client.probe("probed_lea", handlers[form], mode=mode) as lease:
                made = await out(program.tell("g").number, "calls")
            assert (made, lease.hits, lease.errors, lease.state) == (MADE, MADE, 0, "RELEASED")
            if mode == "sync":
                assert (handled, lease.dropped) == (MADE, 0)
            elif mode == "notify":
                assert handled + lease.dropped == MADE

    run(scenario)
    broker.end()
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


def test_two_asyncio_clients_and_a_blocking_one_share_a_place(target_program: StartProgram, serve: Serve) -> None:
    """Invariant: each sees every hit, whatever form its handler has."""
    program = target_program("hot_calls", "probed_lea", THREADS, CALLS)
    broker = serve(program)
    handled = {"plain": 0, "coroutine": 0, "blocking": 0}

    def plain(_: Any) -> None:
        handled["plain"] += 1

    async def coroutine(hit: Any) -> None:
        await hit.memory.read(hit.regs.rsp, 8)
        handled["coroutine"] += 1

    def blocking(hit: Any) -> None:
        hit.memory.read(hit.regs.rsp, 8)
        handled["blocking"] += 1

    async def scenario() -> None:
        async with using(broker, "plain") as (_, a), using(broker, "coroutine") as (target, b):
            neighbour = await out(ubpx.connect, broker.path)
            try:
                c = await out(neighbour.client, "blocking")
                await out(c.probe, "probed_lea", blocking)
                leases = [await a.probe("probed_lea", plain), await b.probe("probed_lea", coroutine)]
                names = [each.name for each in await target.clients()]
                assert names == ["plain", "coroutine", "blocking"]
                probepoint = await leases[0].probepoint()
                assert probepoint.clients == ("blocking", "plain", "coroutine")
                assert await out(program.tell("g").number, "calls") == MADE
                assert [(await lease.refresh()).hits for lease in leases] == [MADE, MADE]
                assert handled == dict.fromkeys(handled, MADE)
            finally:
                await out(neighbour.detach)

    run(scenario)
    assert program.tell("q").wait() == 0


# What handlers do -----------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [None, 0.0, 0.02])
def test_a_register_write_reaches_the_program(echo: Program, broker: BrokerProcess, late_s: float | None) -> None:
    """Invariant: at once, or when the answer comes late: the thread waits for it."""

    def plain(hit: Any) -> None:
        hit.regs.rdi += 100

    async def coroutine(hit: Any) -> None:
        await asyncio.sleep(late_s or 0)
        hit.regs.rdi += 100

    async def scenario() -> None:
        async with using(broker) as (_, client):
            lease = await client.probe("answer", plain if late_s is None else coroutine)
            assert [await out(echo.answer, value) for value in (1, 2)] == [102, 103]
            assert (await lease.refresh()).hits == 2
        assert await out(echo.answer, 1) == 2

    run(scenario)


@pytest.mark.parametrize("late_s", [None, 0.02])
def test_a_thread_that_a_handler_holds_goes_on_when_it_is_released(
    echo: Program, broker: BrokerProcess, late_s: float | None
) -> None:
    """Invariant: the verdict HOLD keeps it stopped, also from a late answer, and the release may write registers."""

    def plain(_: Any) -> ubpx.Verdict:
        return ubpx.Verdict.HOLD

    async def coroutine(_: Any) -> ubpx.Verdict:
        await asyncio.sleep(late_s or 0)
        return ubpx.Verdict.HOLD

    async def scenario() -> None:
        async with using(broker) as (target, client):
            lease = await client.probe("answer", plain if late_s is None else coroutine)
            answer = asyncio.create_task(out(echo.answer, 1))
            await asyncio.sleep(0.1)
            (hold,) = [each for each in await target.holds() if each.thread == echo.pid]
            assert (hold.owner, hold.thread, hold.released, answer.done()) == ("a", echo.pid, False, False)
            registers = await target.registers(echo.pid)
            assert (registers["rdi"], registers["rip"]) == (1, lease.address)
            await hold.release({"rdi": 41})
            assert await answer == 42
            assert (await hold.refresh()).released

    run(scenario)


def test_a_coroutine_handler_reads_memory_and_probes_while_its_thread_waits(
    echo: Program, broker: BrokerProcess
) -> None:
    """Invariant: what it asks is done at once, as for a handler in the broker's own process."""
    busy = 0
    seen: list[Any] = []

    def count(_: Any) -> None:
        nonlocal busy
        busy += 1

    async def handler(hit: Any) -> None:
        code = await hit.memory.read(hit.address, 5)
        stack = await hit.memory.read(hit.regs.rsp, 8 * 4)
        seventh = await hit.argument(6)
        seen.append((code, int.from_bytes(stack[8:16], "little") == seventh))
        lease = await hit.lease.client.probe("busy", count)
        seen.append(lease)

    async def scenario() -> None:
        async with using(broker) as (_, client):
            await client.probe("answer", handler)
            assert await out(echo.answer, 1) == 2
            await soon(lambda: busy >= 3)
            (code, same), lease = seen
            assert (code, same) == (bytes.fromhex("488d4701c3"), True)
            assert (await lease.refresh()).hits >= 3

    run(scenario)


def test_a_handler_that_keeps_its_thread_waiting_keeps_no_other(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: while a coroutine handler waits, other clients are served, and the rest of the loop goes on."""
    busy = 0

    def count(_: Any) -> None:
        nonlocal busy
        busy += 1

    async def scenario() -> None:
        async with using(broker) as (_, client), using(broker, "b") as (_, other):
            await other.probe("busy", count)
            free = asyncio.Event()

            async def handler(_: Any) -> None:
                await asyncio.wait_for(free.wait(), 0.6)

            await client.probe("answer", handler)
            answer = asyncio.create_task(out(echo.answer, 1))
            await asyncio.sleep(0.05)
            before = busy
            await soon(lambda: busy > before + 10)
            assert not answer.done()
            free.set()
            assert await answer == 2

    run(scenario)


def test_a_handler_that_sleeps_too_long_is_interrupted_and_nobody_evicted(echo: Program, serve: Serve) -> None:
    """Invariant: its thread goes on before the broker loses its patience; three such in a row quarantine a client."""
    broker = serve(echo, "--deadline", "0.4")

    async def handler(_: Any) -> None:
        await asyncio.sleep(PATIENCE_S)

    async def scenario() -> None:
        async with using(broker) as (target, client):
            lease = await client.probe("answer", handler)
            assert await out(echo.answer, 1) == 2
            assert (await client.refresh()).state == "LIVE"
            await lease.refresh()
            assert (lease.hits, lease.errors) == (1, 1)
            assert [await out(echo.answer, value) for value in (2, 3, 4)] == [3, 4, 5]
            assert (await client.refresh()).state == "QUARANTINED"
            with pytest.raises(ubpx.ClientQuarantined):
                await client.probe("answer", handler)
            assert await target.threads()

    run(scenario)


class Hooks:
    """Asks the broker from its hooks, and answers for system calls."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @hookimpl
    async def ubpx_process_attached(self, client: Any, process: Any) -> None:
        await client.catch_syscalls(["write"])
        self.told.append(any(each.executable for each in await process.mappings()))

    @hookimpl
    async def ubpx_syscall_entered(self, tid: int, name: str) -> None:
        await asyncio.sleep(0.005)
        self.told.append((tid, name))

    @hookimpl
    def ubpx_syscall_exited(self, tid: int, name: str, result: int) -> None:
        self.told.append((tid, name, result))

    @hookimpl
    async def ubpx_process_detached(self, process: Any) -> None:
        await asyncio.sleep(0)
        self.told.append(process.pid)


def test_hooks_run_in_the_loop(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: plain ones and coroutines, in order; a thread waits for a stop hook of either kind."""
    hooks = Hooks()

    async def scenario() -> None:
        async with await aio.connect(broker.path) as target:
            await target.client("a", hooks=hooks)
            assert hooks.told == [True]
            assert await out(echo.answer, 1) == 2
            await soon(lambda: len(hooks.told) == 3)
        written = len("answer=2\n")
        assert hooks.told == [True, (echo.pid, "write"), (echo.pid, "write", written), echo.pid]

    run(scenario)


# How it ends ----------------------------------------------------------------------------------


def test_detaching_leaves_the_broker_to_others(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: what one connection had is given back, and the others miss nothing."""
    left, stays = [], []

    async def scenario() -> None:
        async with using(broker, "stays") as (target, client):
            lease = await client.probe("answer", lambda hit: stays.append(hit.regs.rdi))
            async with using(broker, "goes") as (_, other):
                ending = await other.probe("answer", lambda hit: left.append(hit.regs.rdi))
                await other.hold(echo.pid)
                answer = asyncio.create_task(out(echo.answer, 1))
            assert await answer == 2, "its hold was given back too"
            assert await out(echo.answer, 2) == 3
            assert ending.state == "RELEASED"
            assert [each.name for each in await target.clients()] == ["stays"]
            assert (await lease.refresh()).hits == 2
            assert await target.holds() == ()
        assert stays == [1, 2]
        assert left in ([1], [])

    run(scenario)
    assert broker.popen.poll() is None


def test_detaching_in_a_handler_takes_effect_after_the_hit(echo: Program, broker: BrokerProcess) -> None:
    async def scenario() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")

        async def handler(hit: Any) -> None:
            await target.detach()
            hit.regs.rdi += 100

        await client.probe("answer", handler)
        assert await out(echo.answer, 1) == 102
        assert await out(echo.answer, 1) == 2
        await target.detach()
        with pytest.raises(ubpx.UsageError, match="is detached"):
            await target.threads()

    run(scenario)


def test_a_broker_that_is_killed_is_gone_for_everybody(target_program: StartProgram, serve: Serve) -> None:
    """Invariant: whoever awaits a reply, inside a handler or outside, hears of it, and nothing is left pending."""
    program = target_program("echo", 0)
    broker = serve(program)
    heard: list[Any] = []

    async def scenario() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")
        begun = asyncio.Event()

        async def handler(_: Any) -> None:
            begun.set()
            try:
                while True:
                    await target.threads()
            except ubpx.BrokerGone as gone:
                heard.append(gone)

        await client.probe("answer", handler)
        program.tell("1\n")
        waiting = [asyncio.create_task(target.wait()) for _ in range(3)]
        await begun.wait()
        os.kill(broker.pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [ubpx.BrokerGone] * 3
        await soon(lambda: heard)
        with pytest.raises(ubpx.BrokerGone):
            await target.threads()
        assert client.state == "CLOSED"
        await target.detach()

    run(scenario)


def test_an_evicted_connection_says_why(echo: Program, serve: Serve) -> None:
    """Invariant: who blocks the loop in C cannot be interrupted, and is evicted; the program and the others go on."""
    broker = serve(echo, "--deadline", "0.2")

    async def scenario() -> None:
        async with using(broker, "neighbour") as (_, neighbour), using(broker) as (target, client):
            kept = await neighbour.probe("answer", None, mode="count")

            async def handler(_: Any) -> None:
                signal.sigtimedwait([], 1.0)

            await client.probe("answer", handler)
            assert await out(echo.answer, 1) == 2
            await soon(lambda: client.state == "QUARANTINED")
            with pytest.raises(ubpx.ClientQuarantined, match=r"has not answered a hit for 0\.2 s"):
                await client.hold(echo.pid)
            with pytest.raises(ubpx.BrokerGone, match="has not answered"):
                await target.threads()
            assert await out(echo.answer, 2) == 3
            assert (await kept.refresh()).hits == 2

    run(scenario)


def test_the_end_of_the_program_is_told(echo: Program, broker: BrokerProcess) -> None:
    async def scenario() -> None:
        async with await aio.connect(broker.path) as target:
            assert await target.wait(timeout=0.01) is None
            for _ in range(100):  # more than a broker lets wait at once
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(target.wait(), 0.0001)
            waiting = [asyncio.create_task(target.wait()) for _ in range(2)]
            echo.tell("x 7\n")
            assert await asyncio.gather(*waiting) == [7, 7]
            assert await target.wait() == 7
            assert await target.threads() == ()

    run(scenario)


# Cancellation ---------------------------------------------------------------------------------


def test_cancelled_requests_leave_nothing_and_harm_nobody(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: holds and leases that nobody waited for are given back; the connection goes on."""

    async def scenario() -> None:
        async with using(broker) as (target, client):
            cancelled = 0
            for turn in range(60):
                calls = [client.hold(echo.pid), client.probe("answer", lambda _: None), target.memory.read(0, 1)]
                tasks = [asyncio.create_task(call) for call in calls]
                for _ in range(turn % 7):
                    await asyncio.sleep(0)
                await asyncio.sleep(turn % 5 * 0.0003)
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                cancelled += sum(isinstance(each, asyncio.CancelledError) for each in outcomes)
                for granted in outcomes[:2]:
                    if not isinstance(granted, BaseException):
                        await granted.release()
            assert cancelled
            while await target.holds():  # what was asked for last may have been granted after this was asked
                await asyncio.sleep(0.005)
            assert await client.leases() == ()
            assert await target.probepoints() == ()
            assert await out(echo.answer, 1) == 2

    run(scenario)


def test_a_handler_that_is_cancelled_raises(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: its thread goes on, the lease counts an error, and the next hit is served."""
    tasks: list[Any] = []

    async def handler(hit: Any) -> None:
        tasks.append(asyncio.current_task())
        if hit.regs.rdi == 1:
            while True:
                await hit.memory.read(hit.address, 1)

    async def scenario() -> None:
        async with using(broker) as (_, client):
            lease = await client.probe("answer", handler)
            answer = asyncio.create_task(out(echo.answer, 1))
            await soon(lambda: tasks)
            tasks[0].cancel()
            assert await answer == 2
            assert await out(echo.answer, 5) == 6
            await lease.refresh()
            assert (lease.hits, lease.errors) == (2, 1)

    run(scenario)


def test_a_loop_that_ends_without_a_detach_gives_everything_back(echo: Program, broker: BrokerProcess) -> None:
    """Invariant: as for a process that is killed; and there is no warning."""

    async def careless() -> None:
        target = await aio.connect(broker.path)
        client = await target.client("a")
        await client.probe("answer", lambda _: ubpx.Verdict.HOLD)
        await client.hold()

    asyncio.run(careless())
    gc.collect()
    assert echo.answer(1) == 2
