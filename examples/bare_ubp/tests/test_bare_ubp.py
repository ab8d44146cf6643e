"""ubp alone counts exactly, and the program never knows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx
from ubpx.core.ubp import Strategy
from ubpx_bare_ubp import SERVED, BareUbp
from ubpx_bare_ubp.debuggee import Debuggee

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import Program

    Start = Callable[..., Program]

THREADS, CALLS = 4, 500
BY_BEST = {
    "probed_push": Strategy.EMULATE,
    "probed_nop": Strategy.EMULATE,
    "probed_endbr": Strategy.EMULATE,
    "probed_call": Strategy.EMULATE,
    "probed_jcc": Strategy.EMULATE,
    "probed_jmp": Strategy.EMULATE,
    "probed_lea": Strategy.BOOST,
    "probed_rip": Strategy.BOOST,
    "probed_load": Strategy.BOOST,
    "probed_pushf": Strategy.BOOST,
    "probed_redzone": Strategy.BOOST,
    "probed_indirect": Strategy.EMULATE,
}


def attached(program: Program) -> BareUbp:
    return BareUbp(Debuggee(program.pid))


@pytest.mark.parametrize(
    ("allowed", "used"),
    [
        (SERVED, BY_BEST),
        ([Strategy.BOOST], dict.fromkeys(["probed_push", "probed_jcc", "probed_rip", "probed_pushf"], Strategy.BOOST)),
        ([Strategy.STEP], dict.fromkeys(["probed_push", "probed_call", "probed_rip", "probed_pushf"], Strategy.STEP)),
    ],
    ids=["best", "BOOST", "STEP"],
)
def test_four_threads_are_counted_exactly(start: Start, allowed: Sequence[Strategy], used: dict[str, Strategy]) -> None:
    """Invariant: of 4 x 500 calls of each function without a lock every one is counted once, and changes nothing.

    Signals come meanwhile; none is lost, doubled or stripped of its value, and none shows a copy's address.
    """
    program = start("callers", THREADS, CALLS)
    maps, text = program.maps(), program.text()
    with attached(program) as counter:
        probes = {symbol: counter.probe(symbol, allowed) for symbol in used}
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("calls") == THREADS * CALLS
        assert {symbol: sorted(probe.hits.values()) for symbol, probe in probes.items()} == {
            symbol: [CALLS] * THREADS for symbol in probes
        }
    assert {symbol: probe.strategy for symbol, probe in probes.items()} == used
    assert (program.maps(), program.text()) == (maps, text)
    assert program.is_left_alone()
    assert program.ends_well()


@pytest.mark.parametrize("symbol", ["probed_lea", "probed_indirect", "probed_push"])
def test_threads_that_start_later_are_counted(start: Start, symbol: str) -> None:
    """Invariant: a thread created while probes are in place runs into them too."""
    program = start("hot_calls", symbol, 12, 200, "late")
    with attached(program) as counter:
        probe = counter.probe(symbol)
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("calls") == probe.hits.total() == 12 * 200
        assert len(probe.hits) == 12
    assert program.ends_well()


@pytest.mark.parametrize("symbol", ["probed_lea", "probed_indirect", "probed_push"])
def test_left_in_the_middle_the_program_goes_on(start: Start, symbol: str) -> None:
    """Invariant: detached while threads are in traps, copies and signal handlers, it ends with right results."""
    program = start("callers", THREADS, 0)
    text = program.text()
    program.tell()
    hits = 0
    for turn in range(1, 6):
        with attached(program) as counter:
            probe = counter.probe(symbol)
            counter.serve(lambda: probe.hits.total() >= 40 * turn)  # noqa: B023
        hits += probe.hits.total()
        assert program.text() == text
        assert program.is_left_alone()
    program.tell()
    assert program.expect("calls") > hits >= 600
    assert program.ends_well()


def test_probes_are_added_while_threads_run(start: Start) -> None:
    """Invariant: a probe put in later misses nothing from then on, and those that are there miss nothing meanwhile."""
    program = start("callers", THREADS, CALLS)
    with attached(program) as counter:
        first = counter.probe("probed_rip")
        program.tell()
        counter.serve(lambda: first.hits.total() >= 100)
        later = [counter.probe(symbol) for symbol in ("probed_jmp", "probed_load", "probed_indirect")]
        counter.serve(program.has_spoken)
        assert program.expect("calls") == first.hits.total() == THREADS * CALLS
        assert all(first.hits.total() - 100 - 3 * THREADS <= probe.hits.total() < THREADS * CALLS for probe in later)
    assert program.ends_well()


@pytest.mark.parametrize("allowed", [[Strategy.BOOST], [Strategy.STEP]], ids=["BOOST", "STEP"])
@pytest.mark.parametrize("sort", ["load", "store", "divide"])
def test_a_copy_faults_as_the_original_would(start: Start, sort: str, allowed: list[Strategy]) -> None:
    """Invariant: a fault is shown at the program's own address; run again, the instruction is hit again."""
    program = start("faults", sort, 50)
    with attached(program) as counter:
        probe = counter.probe(f"probed_fault_{sort}", allowed)
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("arrivals") == probe.hits.total() == 100
    assert program.ends_well()


@pytest.mark.parametrize("symbol", ["probed_guard_push", "probed_guard_call"])
def test_an_emulated_push_faults_as_the_original_would(start: Start, symbol: str) -> None:
    """Invariant: emulation writes nothing that the program could not have written."""
    program = start("guard_push", 60)
    with attached(program) as counter:
        probe = counter.probe(symbol)
        assert probe.strategy is Strategy.EMULATE
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("pushes") == probe.hits.total() == 60
    assert program.ends_well()


@pytest.mark.parametrize("allowed", [[Strategy.BOOST], [Strategy.STEP]], ids=["BOOST", "STEP"])
@pytest.mark.parametrize("symbol", ["probed_rep_movs", "probed_rep_stos"])
def test_a_repeated_instruction_is_one_hit(start: Start, symbol: str, allowed: list[Strategy]) -> None:
    """Invariant: however often it repeats itself, one arrival is one hit."""
    program = start("rep_movs", 20)
    with attached(program) as counter:
        probe = counter.probe(symbol, allowed)
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("calls") == probe.hits.total() == 20
    assert program.ends_well()


def test_traps_of_the_program_itself_reach_it(start: Start) -> None:
    """Invariant: its own int3, raise(SIGTRAP) and trap flag are the program's."""
    program = start("own_trap", 50)
    with attached(program) as counter:
        probe = counter.probe("probed_beside")
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("traps") == 6 * 50
        assert program.expect("calls") == probe.hits.total()
    assert program.ends_well()


@pytest.mark.parametrize("who", ["leader", "other"])
def test_after_an_exec_the_program_is_let_go(start: Start, who: str) -> None:
    """Invariant: another program in the same process has nothing of ours in it."""
    program = start("self_exec", who, 100)
    with attached(program) as counter:
        probe = counter.probe("probed_twice")
        program.tell()
        counter.serve(program.has_spoken)
        assert program.expect("calls") == probe.hits.total() == 100
        program.tell()
        counter.serve(lambda: False)
        with pytest.raises(ubpx.TargetGone):
            counter.probe("probed_twice")
    program.expect("again")
    assert program.is_left_alone()
    program.tell()
    assert program.expect("calls") == 100
    program.tell()
    assert program.popen.wait(20) == 5


def test_a_killed_program_hangs_nobody(start: Start) -> None:
    """Invariant: serving ends with the program, however it ends."""
    program = start("callers", THREADS, 0)
    with attached(program) as counter:
        probe = counter.probe("probed_lea")
        program.tell()
        counter.serve(lambda: probe.hits.total() >= 50)
        os.kill(program.pid, signal.SIGKILL)
        counter.serve(lambda: False)
        assert counter.debuggee.status == -signal.SIGKILL


@pytest.mark.parametrize(
    ("symbol", "error", "message"),
    [
        ("no_such_function", ubpx.UnknownSymbol, "no_such_function"),
        ("refused_hlt", ubpx.InsnRefused, "only the kernel"),
    ],
)
def test_a_refused_probe_leaves_nothing(start: Start, symbol: str, error: type[ubpx.UbpxError], message: str) -> None:
    """Invariant: what cannot be probed is refused with the reason, and nothing was written."""
    program = start("callers", 1, 1)
    maps, text = program.maps(), program.text()
    with attached(program) as counter, pytest.raises(error, match=message):
        counter.probe(symbol)
    assert (program.maps(), program.text()) == (maps, text)
    program.tell()
    assert program.expect("calls") == 1
    assert program.ends_well()


@pytest.mark.parametrize(("strategy", "reason"), [(Strategy.INLINE, "does not serve"), (Strategy.EMULATE, "emulate")])
def test_a_strategy_that_does_not_serve_is_refused(start: Start, strategy: Strategy, reason: str) -> None:
    """Invariant: the refusal names what would do, and why the strategy does not, whichever layer says so."""
    program = start("callers", 1, 1)
    with attached(program) as counter, pytest.raises(ubpx.StrategyRefused, match=reason) as refusal:
        counter.probe("probed_lea", [strategy])
    assert refusal.value.allowed == (Strategy.BOOST, Strategy.STEP)


def test_one_address_is_probed_once(start: Start) -> None:
    """Invariant: a trap that stands is nobody's to overwrite, our own neither (S9)."""
    program = start("callers", 1, 1)
    with attached(program) as counter:
        counter.probe("probed_lea")
        with pytest.raises(ubpx.InsnRefused, match="breakpoint already"):
            counter.probe("probed_lea")


COMMAND = str(Path(sys.executable).with_name("bare-ubp"))


def test_command_starts_a_program(start: Start) -> None:
    """Invariant: a program that is started is counted from its first instruction to its end."""
    running = start("callers", 1, 1)
    program = os.readlink(f"/proc/{running.pid}/exe")
    command = [COMMAND, "-e", "main", "-e", "probed_lea", "--", program, "3", "40"]
    outcome = subprocess.run(command, input="gg", capture_output=True, text=True, timeout=50, check=True)
    assert outcome.stdout.splitlines() == [
        "ready",
        "calls=120",
        "main: 1 calls in 1 threads, by EMULATE",
        "probed_lea: 120 calls in 3 threads, by BOOST",
    ]


def test_command_counts_in_a_running_program_until_interrupted(start: Start) -> None:
    """Invariant: Ctrl-C ends the counting, not the program."""
    program = start("callers", 2, 100)
    text = program.text()
    with subprocess.Popen(
        [COMMAND, "-p", str(program.pid), "-e", "probed_rip"], stdout=subprocess.PIPE, text=True
    ) as command:
        while program.text() == text:
            assert command.poll() is None
        program.tell()
        assert program.expect("calls") == 200
        command.send_signal(signal.SIGINT)
        assert command.stdout is not None
        found = re.fullmatch(r"probed_rip: (\d+) calls in 2 threads, by BOOST\n", command.stdout.read())
    assert found is not None
    assert command.returncode == 0
    assert program.is_left_alone()
    assert program.ends_well()


def test_command_says_what_is_wrong() -> None:
    """Invariant: an error is one line, without a traceback."""
    outcome = subprocess.run(
        [COMMAND, "-p", str(os.getpid()), "-e", "no_such_function"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert outcome.returncode == 1
    assert re.fullmatch(r"bare-ubp: no symbol for 'no_such_function'[^\n]*\n", outcome.stderr)
