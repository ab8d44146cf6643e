"""Followed children over a broker: their hits come to the leases of the target, in every mode and either form."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.broker.users import A, as_user, open_to_all
from tests.real.loops import out, run
from ubpx.hookspecs import hookimpl
from ubpx_froggy import aio
from ubpx_froggy import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.broker.conftest import Peers
    from tests.real.conftest import Program, StartProgram

PLACE = "probed_family"


def joined(broker: Any, program: Program, follow: Any) -> Any:
    """A target with the options of a broker's."""
    return ubpx.connect(broker.path, pid=program.pid, follow=follow)


def eventual_total(lease: Any, by_pid: Counter[int], eventually: Callable[..., bool]) -> int:
    """Hits in mode ``notify`` come after the program has gone on."""
    assert eventually(lambda: by_pid.total() == lease.family_hits)
    return by_pid.total()


@pytest.mark.contract("follow-15")
@pytest.mark.parametrize(("sort", "count"), [("tree", 2), ("threads", 4), ("spawn", 3), ("hop", 3)])
def test_every_mode_counts_the_family(
    target_program: StartProgram, start_broker: Any, eventually: Callable[..., bool], sort: str, count: int
) -> None:
    """Invariant: each hit of each member comes once, with its own pid; what only counts has them all."""
    sync, notify, many = Counter[int](), Counter[int](), Counter[int]()
    program = target_program("followed", sort, count, 5)
    broker = start_broker()
    with joined(broker, program, "all") as target:
        waits = target.client("waits").probe(PLACE, lambda hit: sync.update([hit.pid]), mode="sync")
        goes_on = target.client("goes on").probe(PLACE, lambda hit: notify.update([hit.pid]), mode="notify")
        counts = target.client("counts").probe(PLACE, None, mode="count")
        group = target.client("many").probe_many([PLACE], lambda hit: many.update([hit.pid]), mode="sync")
        calls, members = program.tell("g").number("calls", timeout=60), program.number("processes")
        assert sync.total() == waits.family_hits == counts.family_hits == calls
        assert len(sync) == members
        assert sync == many
        assert eventual_total(goes_on, notify, eventually) == calls
        assert notify == sync
        assert waits.hits == group.hits == sync[program.pid]
    assert program.tell("q").wait() == 0


@pytest.mark.contract("follow-15")
def test_memory_registers_and_holds_are_the_childs(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: at a child's hit a remote handler reads and holds the child, and gives it other registers."""
    seen: list[tuple[int, int, int]] = []
    program = target_program("followed", "daemon", 1, 3)

    def handler(hit: Any) -> Any:
        word = int.from_bytes(hit.memory.read(hit.regs["rsp"], 8), "little")
        seen.append((hit.pid, hit.args[0], word))
        if hit.pid != program.pid:
            assert target.registers(hit.tid)["rip"] == hit.address
        return None

    with joined(start_broker(), program, "fork") as target:
        target.client("one").probe(PLACE, handler, mode="sync")
        assert program.tell("g").number("calls") == len(seen) == 9
        program.number("processes")
    assert {argument for _, argument, _ in seen} == {0, 1, 2}
    assert len({pid for pid, _, _ in seen}) == 3
    assert len({word for _, _, word in seen}) == 1
    assert program.tell("q").wait() == 0


def test_a_hold_of_a_childs_thread_is_released_where_it_is(
    target_program: StartProgram, start_broker: Any, eventually: Callable[..., bool]
) -> None:
    """Invariant: HOLD keeps the child's thread; the hold is listed, released, ends with its client."""
    held: list[tuple[int, int]] = []
    program = target_program("followed", "daemon", 1, 1)

    def handler(hit: Any) -> ubpx.Verdict | None:
        if hit.pid == program.pid:
            return None
        held.append((hit.pid, hit.tid))
        return ubpx.Verdict.HOLD

    with joined(start_broker(), program, "fork") as target:
        client: Any = target.client("one")
        lease = client.probe(PLACE, handler, mode="sync")
        program.tell("g")
        for number in (1, 2):
            assert eventually(lambda number=number: len(held) == number)
            pid, tid = held[-1]
            assert eventually(lambda tid=tid: is_stopped_at(target, tid, lease.address))
            assert [(hold.process, hold.thread, hold.owner) for hold in target.holds()] == [(pid, tid, "one")]
            with client.hold(tid) as hold:
                assert (hold.process, hold.thread) == (pid, tid)
            if number == 1:
                (verdicts,) = target.holds()
                verdicts.release()
            else:
                client.close()  # as its end would
        assert program.number("calls") == 3
        program.number("processes")
    assert program.tell("q").wait() == 0


def is_stopped_at(target: Any, tid: int, address: int) -> bool:
    try:
        return bool(target.registers(tid)["rip"] == address)
    except ubpx.UsageError:
        return False


def test_the_asyncio_form(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: as the blocking form: hits of children in both modes, and their memory is awaited."""
    program = target_program("followed", "daemon", 2, 4)
    broker = start_broker()
    sync, notify, words = Counter[int](), Counter[int](), set[bytes]()

    async def handler(hit: Any) -> None:
        sync.update([hit.pid])
        words.add(await hit.memory.read(hit.regs["rsp"], 8))

    async def scenario() -> None:
        async with await aio.connect(broker.path, pid=program.pid, follow="all") as target:
            lease = await (await target.client("a")).probe(PLACE, handler, mode="sync")
            beside = await target.client("b")
            await beside.probe(PLACE, lambda hit: notify.update([hit.pid]), mode="notify")
            calls = await out(program.tell("g").number, "calls")
            assert await out(program.number, "processes") == len(sync)
            assert sync.total() == calls
            await lease.refresh()
            assert lease.family_hits == calls
            await beside.close()
        assert notify == sync
        assert len(words) == 1

    run(scenario)
    assert program.tell("q").wait() == 0


def test_the_end_of_a_connection_leaves_the_family_clean(
    target_program: StartProgram, start_broker: Any, eventually: Callable[..., bool]
) -> None:
    """Invariant: when nobody uses the target any more, it and its children are left, amid their forks."""
    program = target_program("followed", "threads", 4, 40)
    broker = start_broker()
    with joined(broker, program, "all") as target:
        target.client("one").probe(PLACE, lambda _: None, mode="sync")
        program.tell("g")
    assert program.number("calls", timeout=60) == 40 * (1 + 4 * 10 * 2)
    program.number("processes")
    assert program.tell("q").wait() == 0


@pytest.mark.contract("follow-15")
def test_hooks_are_the_targets_own(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: a remote client's hooks hear of the target, and of children that they are there; nothing of these."""
    program = target_program("followed", "tree", 1, 2)
    told: list[tuple[str, int]] = []

    class Hooks:
        @hookimpl
        def ubpx_process_attached(self, process: Any) -> None:
            told.append(("attached", process.pid))

        @hookimpl
        def ubpx_process_forked(self, child: int) -> None:
            told.append(("forked", child))

        @hookimpl
        def ubpx_process_exited(self, status: int) -> None:
            told.append(("exited", status))

    with joined(start_broker(), program, "all") as target:
        client: Any = target.client("one", hooks=Hooks())
        lease = client.probe(PLACE, None, mode="count")
        assert program.tell("g").number("calls") == lease.family_hits
        program.number("processes")
        assert [kind for kind, _ in told] == ["attached", "forked"]
    assert program.tell("q").wait() == 0


def test_a_broker_follows_what_it_was_given(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: ``ubpx serve --follow`` is for its own targets; who joins has no say in it."""
    program = target_program("followed", "threads", 2, 3)
    broker = start_broker("-p", str(program.pid), "--follow", "fork")
    with joined(broker, program, "none") as target:
        lease = target.client("one").probe(PLACE, None, mode="count")
        assert program.tell("g").number("calls") == lease.family_hits > lease.hits
        program.number("processes")
    assert program.tell("q").wait() == 0


def test_what_is_no_policy_is_refused(target_program: StartProgram, start_broker: Any, peers: Peers) -> None:
    """Invariant: by the client, and by the broker."""
    program = target_program("echo", 1)
    broker = start_broker()
    with pytest.raises(ubpx.UsageError, match="'none', 'fork', 'exec', 'all'"):
        ubpx.connect(broker.path, pid=program.pid, follow="some")  # type: ignore[arg-type]
    with pytest.raises(ubpx.UsageError, match="'none', 'fork', 'exec', 'all'"):
        peers(broker).ask(m.Attach(program.pid, follow="some"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which root alone may")
def test_memory_of_a_stranger_is_refused(target_program: StartProgram, start_broker: Any, peers: Peers) -> None:
    """Invariant: who asks for a child's memory must mean a followed child of a target of its own."""
    program, other = (as_user(target_program, A, "echo", 1) for _ in range(2))
    broker = open_to_all(start_broker("--all-users"))
    peer = peers.elsewhere(A).peer(broker.path)
    target = peer.ask(m.Attach(program.pid, follow="all")).target
    peer.ask(m.Attach(other.pid))
    with pytest.raises(ubpx.UsageError, match="no followed child"):
        peer.ask(m.ReadMemory(target, 0x400000, 8, other.pid))
    with pytest.raises(ubpx.UsageError, match="no followed child"):
        peer.ask(m.WriteMemory(target, 0x400000, b"x", process=other.pid))
