"""The target programs alone: what they check holds when nobody is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

PROBED = (
    "probed_push", "probed_nop", "probed_endbr", "probed_lea", "probed_rip", "probed_load", "probed_call",
    "probed_indirect", "probed_jcc", "probed_jmp", "probed_pushf", "probed_popf_itself", "probed_redzone",
)  # fmt: skip


@pytest.mark.parametrize("symbol", PROBED)
@pytest.mark.parametrize("flags", [(), ("-no-pie", "-fno-pie")], ids=["pie", "fixed"])
def test_probed_functions_are_right_untraced(target_program: StartProgram, symbol: str, flags: tuple[str, ...]) -> None:
    """Invariant: what hot_calls checks is true of the bare instruction, so a failure is the tracer's."""
    program = target_program("hot_calls", symbol, 4, 1000, flags=flags)
    assert program.tell("g").number("calls") == 4000
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    ("name", "args", "said", "status"),
    [
        ("children", (4, 3), ("children", "calls"), 0),
        ("signals", (4, 20000), ("signals", "timers", "calls"), 0),
        ("faults", ("load", 10), ("arrivals",), 0),
        ("faults", ("store", 10), ("arrivals",), 0),
        ("faults", ("divide", 10), ("arrivals",), 0),
        ("exits", (40,), ("calls",), 7),
        ("own_trap", (20,), ("traps", "calls"), 0),
        ("block_sigtrap", ("blocked", 2, 100), ("calls",), 0),
        ("block_sigtrap", ("ignored", 2, 100), ("calls",), 0),
        ("rep_movs", (300,), ("calls",), 0),
        ("guard_push", (11,), ("pushes",), 0),
    ],
)
def test_programs_are_right_untraced(
    target_program: StartProgram, name: str, args: tuple[object, ...], said: tuple[str, ...], status: int
) -> None:
    """Invariant: each program ends well and says its numbers when nobody traces it."""
    program = target_program(name, *args).tell("g")
    assert all(program.number(line) >= 0 for line in said)
    assert program.tell("q").wait() == status


def test_hundred_runs_untraced(target_program: StartProgram) -> None:
    """Invariant: none of the hundred threads sees an error when nobody traces it, and its text is its file's."""
    program = target_program("hundred")
    maps = program.maps()
    before = program.tell("p").number("progress")
    program.assert_untouched(maps)
    assert program.tell("p").number("progress") > before
    program.tell("q").expect("done")
    assert program.wait() == 0


@pytest.mark.parametrize("who", ["leader", "other"])
def test_exec_runs_untraced(target_program: StartProgram, who: str) -> None:
    """Invariant: the program that replaces itself counts the same in both lives."""
    program = target_program("self_exec", who, 30)
    assert program.tell("g").number("calls") == 30
    program.tell("g").expect("again")
    assert program.tell("g").number("calls") == 30
    assert program.tell("q").wait() == 5


def test_the_checks_notice_a_changed_byte(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: one byte of text that differs from its file is found, and found again to be right."""
    program = target_program("echo")
    call = Path(f"/proc/{program.pid}/syscall")
    assert eventually(lambda: call.read_text().startswith("0 0x0 "))  # it reads, and is not on its way there
    maps = program.maps()
    with Path(f"/proc/{program.pid}/mem").open("r+b", buffering=0) as memory:
        text = next(line for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines() if " r-xp " in line)
        address = int(text.partition("-")[0], 16) + 0x20
        memory.seek(address)
        (own,) = memory.read(1)
        for byte in (own ^ 1, own):
            memory.seek(address)
            memory.write(bytes([byte]))
            if byte == own:
                program.assert_untouched(maps)
            else:
                with pytest.raises(AssertionError):
                    program.assert_untouched(maps)


def test_the_checks_notice_a_stopped_thread(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: a stopped thread is found."""
    program = target_program("echo", 1)
    maps = program.maps()
    os.kill(program.pid, signal.SIGSTOP)

    def is_found() -> bool:
        try:
            program.assert_untouched(maps)
        except AssertionError:
            return True
        return False

    assert eventually(is_found)
    os.kill(program.pid, signal.SIGCONT)
    assert eventually(lambda: not is_found())
