"""The asyncio form of a connection to a real broker: what handlers in an event loop see and do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.loops import PATIENCE_S, out, run, soon, using
from ubpx.hookspecs import hookimpl
from ubpx_froggy import aio

if TYPE_CHECKING:
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

    Serve = Callable[..., BrokerProcess]

THREADS: Final = 4
CALLS: Final = 500
MADE: Final = THREADS * CALLS


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """Answers lines, and calls busy() all the time."""
    return target_program("echo", 1)


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
