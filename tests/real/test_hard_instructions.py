"""Instructions that show a probe if anything does: the program looks for itself, and counts for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

WAITING = ("restart", "eintr", "ignored", "jumps")


@pytest.mark.parametrize(
    "what", ["syscall", "flags", "x87", "ss", "stepping", "repeat", "forks", "refused", "clones", "sigreturn", *WAITING]
)
def test_the_program_is_right_untraced(target_program: StartProgram, what: str) -> None:
    """Invariant: what it checks holds when nobody is there, so a failure is the tracer's."""
    program = target_program("hard", what, 5).tell("g")
    assert program.number("calls") == 5
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    ("what", "symbol", "strategy"),
    [
        ("syscall", "probed_syscall", "BOOST"),
        ("flags", "probed_popf", "EMULATE"),
        ("flags", "probed_popf", "STEP"),
        ("flags", "probed_popf", "INLINE"),
        ("flags", "probed_popf+1", "BOOST"),  # pushf
        ("flags", "probed_popf+1", "STEP"),
        ("x87", "probed_fld", "STEP"),
        ("x87", "probed_fld", "INLINE"),
        ("x87", "probed_fld+2", "BOOST"),  # fnstenv
        ("ss", "probed_ss", "BOOST"),
        ("ss", "probed_ss+2", "BOOST"),
        ("repeat", "probed_rep", "BOOST"),
        ("forks", "probed_syscall", "BOOST"),
        ("refused", "probed_syscall", "BOOST"),
        ("clones", "probed_syscall", "BOOST"),
        ("sigreturn", "probed_sigreturn", "BOOST"),
    ],
)
def test_the_program_sees_what_it_would_have_seen(
    target_program: StartProgram, what: str, symbol: str, strategy: str
) -> None:
    """Invariant: flags, rcx, r11, FIP, the frame of a signal: nothing shows the probe, and one arrival is one hit."""
    program = target_program("hard", what, 100)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(symbol, lambda _: None, strategy=strategy)
        calls = program.tell("g").number("calls")
        program.number("alarms")
        made = program.number("made")
        assert lease.hits == {"syscall": made, "forks": made, "refused": made, "clones": made, "flags": 8 * calls}.get(
            what, calls
        )
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(("what", "status"), [("exec", 0), ("exit", 17)])
def test_a_system_call_that_does_not_return_has_arrived(target_program: StartProgram, what: str, status: int) -> None:
    """Invariant: execve and exit_group by a probed instruction do what they do, and are hits."""
    program = target_program("hard", what, 1)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_syscall", lambda _: None)
        program.tell("g")
        assert target.wait(timeout=30) == status
        assert lease.hits == 1


@pytest.mark.parametrize("what", WAITING)
def test_a_system_call_that_begins_again_has_arrived_once(target_program: StartProgram, what: str) -> None:
    """Invariant: a restart is no new arrival, also if handlers call the same instruction; after EINTR a call is one."""
    program = target_program("hard", what, 40)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_syscall", lambda _: None)
        assert program.tell("g").number("calls", timeout=55) == 40
        program.number("alarms")
        assert lease.hits == program.number("made")
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    "places",
    [
        ("stepped_nop",), ("stepped_nop+1",), ("stepped_push",), ("stepped_pop",), ("stepped_call",),
        ("stepped_call+5",), ("stepped_last",), ("stepped_called",), ("stepped_syscall",), ("stepped_syscall+2",),
        ("stepped_rep",), ("stepped_ss",), ("stepped_ss+2",),
        ("stepped_nop", "stepped_nop+1", "stepped_push", "stepped_pop", "stepped_call", "stepped_fld", "stepped_last"),
    ],
    ids="+".join,
)  # fmt: skip
@pytest.mark.parametrize("strategy", [None, "STEP", "INLINE"])
def test_a_program_that_steps_itself_gets_each_trap(
    target_program: StartProgram, places: tuple[str, ...], strategy: str | None
) -> None:
    """Invariant: behind each instruction the program's own SIGTRAP comes, with the program's own address."""
    program = target_program("hard", "stepping", 20)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        forced = None if places in {("stepped_syscall",), ("stepped_ss",)} else strategy  # that can only be boosted
        leases = [client.probe(place, lambda _: None, strategy=forced) for place in places]
        program.tell("g").number("calls")
        assert [lease.hits for lease in leases] == [20] * len(places)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize(
    "place", ["stepped_nop", "stepped_push", "stepped_pop", "stepped_call", "stepped_ss", "stepped_ss+2"]
)
def test_a_step_asked_for_changes_nothing_of_that(target_program: StartProgram, place: str) -> None:
    """Invariant: Verdict.STEP where the program steps itself, or where no step can be: it sees its own traps alone."""
    program = target_program("hard", "stepping", 20)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(place, lambda _: ubpx.Verdict.STEP)
        program.tell("g").number("calls")
        assert lease.hits == 20
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("what", ["restart", "eintr", "refused"])
def test_a_step_asked_for_over_a_system_call_that_is_interrupted(target_program: StartProgram, what: str) -> None:
    """Invariant: a restart is no new arrival either, and SIGSYS names the program's address."""
    program = target_program("hard", what, 20)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_syscall", lambda _: ubpx.Verdict.STEP)
        assert program.tell("g").number("calls", timeout=55) == 20
        program.number("alarms")
        assert lease.hits == program.number("made")
    assert program.tell("q").wait() == 0


def test_popf_that_sets_the_trap_flag_traps_behind_the_next_instruction(target_program: StartProgram) -> None:
    """Invariant: a trap flag that the program sets strikes where the processor would have it strike."""
    for strategy in ("EMULATE", "STEP", "INLINE"):
        program = target_program("hard", "stepping", 20)
        with ubpx.attach(program.pid) as target:
            lease = target.client("one").probe("setting", lambda _: None, strategy=strategy)
            assert program.tell("g").number("calls") == lease.hits == 20
        assert program.tell("q").wait() == 0
