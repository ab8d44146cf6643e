"""Restartable sequences (rseq): they stay atomic, and no probe makes a program start one anew for ever."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram


def symbols_of(program: Path) -> dict[str, int]:
    """Where each symbol is, as nm says."""
    listed = subprocess.run(["nm", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    return {name: int(value, 16) for value, _, name in (line.split() for line in listed.splitlines())}


def numbers(program: Program) -> tuple[int, int]:
    """Where the first thread announces sequences, and the descriptor of ``linger``."""
    return program.number("announced"), program.number("descriptor")


def word(target: ubpx.Target, address: int, size: int = 8) -> int:
    return int.from_bytes(target.memory.read(address, size), "little")


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
        aborts = descriptor + symbols["aborts"] - symbols["linger_descriptor"]
        for count in range(1, 4):
            client.hold().release()
            assert eventually(lambda: word(target, aborts) >= count)  # noqa: B023  (called here alone)
            assert eventually(lambda: word(target, announced) == descriptor)
        target.memory.write(descriptor + symbols["go"] - symbols["linger_descriptor"], b"\1")
        assert program.number("aborts") >= 4
        assert target.wait(timeout=30) == 0
        assert beside.hits == 1
