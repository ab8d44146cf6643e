"""Restartable sequences (rseq): they stay atomic, and no probe makes a program start one anew for ever."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

THREADS, ROUNDS = 4, 400
FIXED = ("-no-pie",)


def symbols_of(program: Path) -> dict[str, int]:
    """Where each symbol is, as nm says."""
    listed = subprocess.run(["nm", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    return {name: int(value, 16) for value, _, name in (line.split() for line in listed.splitlines())}


def instructions(program: Path, first: str, last: str) -> list[int]:
    """Where the instructions from one symbol to another start, as objdump says."""
    symbols = symbols_of(program)
    bounds = [f"--start-address={symbols[first]:#x}", f"--stop-address={symbols[last]:#x}"]
    listed = subprocess.run(["objdump", "-dw", *bounds, program], check=True, capture_output=True, text=True).stdout
    return [int(found, 16) for found in re.findall(r"^ +([0-9a-f]+):\t", listed, re.MULTILINE)]


def numbers(program: Program) -> tuple[int, int]:
    """Where the first thread announces sequences, and the descriptor of ``linger``."""
    return program.number("announced"), program.number("descriptor")


def word(target: ubpx.Target, address: int, size: int = 8) -> int:
    return int.from_bytes(target.memory.read(address, size), "little")


@pytest.mark.contract("spec-10")
@pytest.mark.parametrize("flags", [(), FIXED, ("-static",)], ids=["PIE", "fixed", "static"])
def test_no_probe_stands_in_a_sequence_nor_at_its_announcement(
    target_program: StartProgram, flags: tuple[str, ...]
) -> None:
    """Invariant: from the announcement to the commit every probe is refused, whatever the client assumes."""
    program = target_program("restartable", "count", 1, 1, flags=flags)
    numbers(program)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        start = client.probe("add_here", lambda _: None).address
        assert start is not None
        file = target_program.build("restartable", *flags)
        inside, first = instructions(file, "add_here_start", "add_here_post"), symbols_of(file)["add_here"]
        assert len(inside) == 8
        for assume in (False, True):
            places: list[int | str] = [start + each - first for each in inside]
            for address in (*places, "add_here_start", "add_here_start+4"):
                with pytest.raises(ubpx.InsnRefused, match=r"restartable sequence \(rseq\).* start the sequence anew"):
                    client.probe(address, lambda _: None, assume_boundary=assume)
            with pytest.raises(ubpx.InsnRefused, match="must be announced"):
                client.probe("add_here_announce", lambda _: None, assume_boundary=assume)
        with pytest.raises(ubpx.InsnRefused):
            client.probe_many(["add_here_post", "add_here_start"], lambda _: None)
        group = client.probe_many(["add_here_post", "add_here_start"], lambda _: None, skip_refused=True)
        assert [type(each.error) for each in group.refused] == [ubpx.InsnRefused]
        program.tell("g")
        assert program.number("aborts") >= 0
    assert program.wait() == 0


@pytest.mark.parametrize("strip", [(), ("-s",)], ids=["with symbols", "stripped"])
def test_sums_stay_exact_while_probes_stand_around_sequences(
    target_program: StartProgram, strip: tuple[str, ...]
) -> None:
    """Invariant: the program's per-processor counters are exact, and each arrival before, behind and at the abort
    handler is counted; in a stripped program too, at the client's word."""
    symbols = symbols_of(target_program.build("restartable", *FIXED))
    places = {name: symbols[name] for name in ("add_here", "add_here_post", "add_here_abort")}
    program = target_program("restartable", "count", THREADS, ROUNDS, flags=(*FIXED, *strip))
    numbers(program)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        leases = {
            name: client.probe(address, lambda _: None, assume_boundary=bool(strip)) for name, address in places.items()
        }
        program.tell("g")
        aborts = program.number("aborts")  # the program has compared the sum
        assert target.wait(timeout=30) == 0
    assert leases["add_here_post"].hits == THREADS * ROUNDS
    assert leases["add_here_abort"].hits == aborts
    assert leases["add_here"].hits == THREADS * ROUNDS + aborts


def test_a_thread_borrowed_in_a_sequence_stays_registered(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: a thread that made a system call for us in the middle of a sequence is aborted there, not resumed."""
    program = target_program("restartable", "linger")
    announced, descriptor = numbers(program)
    symbols = symbols_of(target_program.build("restartable"))
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        assert eventually(lambda: word(target, announced) == descriptor)
        beside = client.probe("beside", lambda _: None, strategy="BOOST")  # the lingering thread maps its slot
        assert eventually(lambda: word(target, announced) == descriptor, timeout=3)
        aborted = client.probe("linger_abort", lambda _: None)
        for count in range(1, 4):
            client.hold().release()
            assert eventually(lambda: aborted.hits >= count)  # noqa: B023  (called here alone)
            assert eventually(lambda: word(target, announced) == descriptor)
        target.memory.write(descriptor + symbols["go"] - symbols["linger_descriptor"], b"\1")
        assert program.number("aborts") >= 4
        assert target.wait(timeout=30) == 0
        assert beside.hits == 1
