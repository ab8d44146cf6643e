"""Bad input: each its own error, nothing armed, nothing left stopped."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.conftest import Program, StartProgram

PF_KTHREAD = 0x0020_0000


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program with places that must be refused."""
    return target_program("echo", 2)


@contextlib.contextmanager
def nothing_happens(program: Program) -> Iterator[ubpx.Client]:
    """What is refused inside leaves nothing armed, nothing stopped, and the target usable."""
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("clumsy")
        yield client
        assert list(target.probepoints()) == []
        assert list(client.leases) == []
        assert program.answer(1) == 2
        lease = client.probe("answer", lambda _: None)
        assert program.answer(2) == 3
        assert lease.hits == 1
    program.assert_untouched(maps)


@pytest.mark.contract("error-3")
def test_pid_that_does_not_exist() -> None:
    """Invariant: a pid that nobody has is NoSuchProcess."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(ubpx.NoSuchProcess, match=str(ended.pid)) as refused:
        ubpx.attach(ended.pid)
    assert refused.value.pid == ended.pid


def test_zombie(target_program: StartProgram) -> None:
    """Invariant: a process that has ended but was not reaped is refused as gone, and keeps its status."""
    program = target_program("brief", 0, 7, ready=False)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises((ubpx.TargetGone, ubpx.NoSuchProcess), match=str(program.pid)):
        ubpx.attach(program.pid)
    assert program.wait() == 7


def kernel_thread() -> int | None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[6]) & PF_KTHREAD:
                return int(stat.parent.name)
    return None


@pytest.mark.contract("error-4")
def test_kernel_thread() -> None:
    """Invariant: a kernel thread is refused as such, by name."""
    pid = kernel_thread()
    if pid is None:
        pytest.skip("no kernel thread is visible in this PID namespace")
    with pytest.raises(ubpx.KernelThread, match="kernel thread") as refused:
        ubpx.attach(pid)
    assert refused.value.pid == pid
    assert refused.value.name == Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.contract("error-6")
def test_already_traced(target_program: StartProgram) -> None:
    """Invariant: of two tracers the second is told who the first is; the first one's process is left alone."""
    tracer = target_program("own_tracer", ready=False)
    child = tracer.number("child")
    tracer.expect("ready")
    with pytest.raises(ubpx.AlreadyTraced) as refused:
        ubpx.attach(child)
    assert (refused.value.pid, refused.value.tracer_pid) == (child, tracer.pid)
    assert "own_tracer" in refused.value.tracer_command
    assert str(tracer.pid) in str(refused.value)
    assert "own_tracer" in str(refused.value)
    assert tracer.tell("q").wait() == 0


def test_traced_by_another_session_of_ours(echo: Program) -> None:
    """Invariant: a process that ubpx traces already is refused to a second session, and the first goes on."""
    with ubpx.attach(echo.pid) as target:
        lease = target.client("first").probe("answer", lambda _: None)
        with pytest.raises(ubpx.AlreadyTraced, match=str(echo.pid)):
            ubpx.attach(echo.pid)
        assert echo.answer(1) == 2
        assert lease.hits == 1


def test_oneself() -> None:
    """Invariant: nobody can trace itself; the refusal says so instead of hanging."""
    with pytest.raises(ubpx.UbpxError):
        ubpx.attach(os.getpid())


@pytest.mark.parametrize("pid", [0, -1, 2**40])
def test_numbers_that_are_no_pid(pid: int) -> None:
    """Invariant: what can be no process is refused before anything is done."""
    with pytest.raises((ubpx.UsageError, ubpx.NoSuchProcess)):
        ubpx.attach(pid)


def test_exit_races_with_attach(target_program: StartProgram) -> None:
    """Invariant: a process that ends while we attach is attached or refused as gone, and keeps its status."""
    refused = 0
    chance = random.Random(2)
    for turn in range(200):
        program = target_program("brief", chance.randrange(0, 8000), turn % 100, ready=False)
        try:
            with ubpx.attach(program.pid) as target:
                assert target.wait(timeout=10) == turn % 100
        except (ubpx.NoSuchProcess, ubpx.TargetGone):
            refused += 1
        assert program.wait() == turn % 100
    assert 0 < refused < 200, "one side won every race: the lifetimes do not fit this machine"


@pytest.mark.contract("error-7")
def test_probe_races_with_exit(target_program: StartProgram) -> None:
    """Invariant: a probe in a process that ends meanwhile is armed or refused as TargetGone, never anything else."""
    chance = random.Random(3)
    for turn in range(60):
        program = target_program("echo", 2)
        with ubpx.attach(program.pid) as target:
            client = target.client("late")
            program.tell(f"x {turn}\n")
            time.sleep(chance.random() * 0.002)
            with contextlib.suppress(ubpx.TargetGone):
                client.probe("answer", lambda _: None)
            assert target.wait(timeout=10) == turn
            with pytest.raises(ubpx.TargetGone):
                client.probe("busy", lambda _: None)
        assert program.wait() == turn


@pytest.mark.contract("error-8")
def test_unknown_symbol_names_the_three_nearest(echo: Program) -> None:
    """Invariant: a misspelt symbol is refused with the three names nearest to it."""
    with nothing_happens(echo) as client:
        with pytest.raises(ubpx.UnknownSymbol) as refused:
            client.probe("anwser", lambda _: None)
        assert len(refused.value.nearest) == 3
        assert "answer" in refused.value.nearest
        assert "answer" in str(refused.value)
        with pytest.raises(ubpx.UnknownSymbol) as refused:
            client.probe("libc.so.6:mallocc", lambda _: None)
        assert "malloc" in refused.value.nearest


@pytest.mark.contract("error-10", "life-18")
def test_unknown_module(echo: Program) -> None:
    """Invariant: a module that is not mapped is refused if it may not be waited for."""
    with nothing_happens(echo) as client, pytest.raises(ubpx.UnknownModule, match=r"libnone\.so"):
        client.probe("libnone.so:write", lambda _: None, defer=False)


@pytest.mark.contract("error-9", "spec-7")
def test_ambiguous_symbol(target_program: StartProgram) -> None:
    """Invariant: a name with two addresses is refused, and both are listed."""
    program = target_program("twins")
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        with pytest.raises(ubpx.AmbiguousSymbol) as refused:
            target.client("one").probe("twin", lambda _: None)
        assert len(refused.value.candidates) == 2
        assert list(target.probepoints()) == []
    program.assert_untouched(maps)
    program.tell("g").expect("sum")
    assert program.wait() == 0


@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.STEP])
@pytest.mark.contract("error-11")
def test_address_that_is_no_code(echo: Program, strategy: ubpx.Strategy | None) -> None:
    """Invariant: data, stack, heap and unmapped addresses are refused as not executable."""
    spaces = {
        line.split()[-1]: int(line.split("-")[0], 16)
        for line in Path(f"/proc/{echo.pid}/maps").read_text().splitlines()
    }
    with nothing_happens(echo) as client:
        for address in (spaces["[stack]"], spaces["[heap]"], 0x10, 2**47 - 4096, 2**63):
            with pytest.raises(ubpx.NotExecutable) as refused:
                client.probe(address, lambda _: None, strategy=strategy, assume_boundary=True)
            assert refused.value.address == address
        with pytest.raises((ubpx.NotExecutable, ubpx.UnknownSymbol)):
            client.probe("some_data", lambda _: None)


@pytest.mark.parametrize("offset", [1, 2, 3, 9])
@pytest.mark.contract("error-12", "spec-8")
def test_address_inside_an_instruction(echo: Program, offset: int) -> None:
    """Invariant: an address that is not an instruction's start is refused, as number and as spec."""
    with nothing_happens(echo) as client:
        with client.probe("long_insn", lambda _: None) as lease:
            start = lease.address
        assert start is not None
        with pytest.raises(ubpx.NotAnInstruction):
            client.probe(start + offset, lambda _: None)
        with pytest.raises(ubpx.NotAnInstruction):
            client.probe(f"long_insn+{offset}", lambda _: None)


def test_address_inside_an_instruction_beside_a_trap(echo: Program) -> None:
    """Invariant: a trap of ours on the instruction does not hide that the address is inside it."""
    with ubpx.attach(echo.pid) as target, target.client("one") as client:
        lease = client.probe("long_insn", lambda _: None)
        assert lease.address is not None
        with pytest.raises(ubpx.NotAnInstruction):
            client.probe(lease.address + 1, lambda _: None)
        assert len(target.probepoints()) == 1


@pytest.mark.contract("error-13")
@pytest.mark.parametrize("symbol", ["refused_int3", "refused_hlt"])
def test_refused_instruction(echo: Program, symbol: str) -> None:
    """Invariant: an instruction that cannot be probed is refused with a reason, and left as it is."""
    with nothing_happens(echo) as client, pytest.raises((ubpx.InsnRefused, ubpx.ForeignTrap)) as refused:
        client.probe(symbol, lambda _: None)
    assert isinstance(refused.value, ubpx.InsnRefused | ubpx.ForeignTrap)
    assert f"{refused.value.address:#x}" in str(refused.value)


@pytest.mark.parametrize(
    ("symbol", "strategy"),
    [
        ("probed_lea", ubpx.Strategy.EMULATE),
        ("probed_push", ubpx.Strategy.JUMP),
        ("probed_indirect", ubpx.Strategy.BOOST),
        ("probed_popf_itself", ubpx.Strategy.BOOST),
    ],
)
@pytest.mark.contract("error-14", "lease-6")
def test_strategy_that_does_not_fit(target_program: StartProgram, symbol: str, strategy: ubpx.Strategy) -> None:
    """Invariant: a forced strategy that cannot be used is refused by name, with those that could be."""
    program = target_program("hot_calls", symbol, 1, 10)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        with pytest.raises(ubpx.StrategyRefused) as refused:
            client.probe(symbol, lambda _: None, strategy=strategy)
        assert (refused.value.strategy, strategy in refused.value.allowed) == (strategy, False)
        assert refused.value.allowed
        assert list(target.probepoints()) == []
        shared = client.probe(symbol, lambda _: None)
        with pytest.raises(ubpx.StrategyRefused):
            client.probe(symbol, lambda _: None, strategy=strategy)
        assert shared.state == ubpx.LeaseState.ARMED
    program.assert_untouched(maps)


def test_words_that_are_no_strategy(echo: Program) -> None:
    """Invariant: a strategy that does not exist is a UsageError."""
    with nothing_happens(echo) as client, pytest.raises(ubpx.UsageError):
        client.probe("answer", lambda _: None, strategy="FASTEST")


@pytest.mark.parametrize("spec", ["", ":", "libc.so.6:", ":answer:", "answer+", "answer+zz", "0xzz"])
def test_malformed_spec(echo: Program, spec: str) -> None:
    """Invariant: what is no specification is refused as one, and never guessed at."""
    with nothing_happens(echo) as client, pytest.raises((ubpx.UsageError, ubpx.UnknownSymbol, ubpx.UnknownModule)):
        client.probe(spec, lambda _: None, defer=False)


def test_handler_that_cannot_be_called(echo: Program) -> None:
    """Invariant: a handler that is no function is refused before anything is armed."""
    with nothing_happens(echo) as client, pytest.raises(ubpx.UsageError):
        client.probe("answer", 42)  # type: ignore[arg-type]


@pytest.mark.parametrize("argv", [["/does/not/exist"], ["/etc/passwd"], []])
def test_program_that_cannot_be_started(argv: list[str]) -> None:
    """Invariant: a program that cannot be started is an error that says so, and no process is left."""
    with pytest.raises((ubpx.UbpxError, OSError)):
        ubpx.spawn(argv)


@pytest.mark.contract("error-16")
def test_foreign_trap(target_program: StartProgram) -> None:
    """Invariant: a trap that somebody else wrote is never adopted."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        with client.probe("long_insn", lambda _: None) as lease:
            address = lease.address
        assert address is not None
        with Path(f"/proc/{program.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(b"\xcc")
            with pytest.raises(ubpx.ForeignTrap) as refused:
                client.probe("long_insn", lambda _: None)
            assert (refused.value.address, refused.value.found) == (address, b"\xcc")
            assert target.memory.read(address, 1) == b"\xcc"
            memory.seek(address)
            memory.write(b"\x48")
        assert client.probe("long_insn", lambda _: None).state == ubpx.LeaseState.ARMED
