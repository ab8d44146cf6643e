"""Holds: who keeps what stopped."""

import pytest

from ubpx.core.holds import NOTHING, Hold, HoldTable, Parting
from ubpx.core.values import ProcessId, ThreadId

PROCESS, OTHER = ProcessId(10), ProcessId(20)
FIRST, SECOND = ThreadId(10), ThreadId(11)


@pytest.fixture
def table() -> HoldTable:
    return HoldTable()


def taken(table: HoldTable, owner: str, process: ProcessId, thread: ThreadId | None) -> Hold:
    def release(hold: Hold, _: Parting) -> None:
        table.drop(hold)

    hold = Hold(owner, process, thread, release)
    table.take(hold)
    return hold


def test_held_is_what_anybody_holds(table: HoldTable) -> None:
    """Invariant: a thread runs when nobody holds it, neither alone nor with its process."""
    alone, whole = taken(table, "a", PROCESS, FIRST), taken(table, "b", PROCESS, None)
    assert table.holds(PROCESS, FIRST)
    assert table.holds(PROCESS, SECOND)
    assert not table.holds(OTHER, ThreadId(20))
    whole.release()
    assert table.holds(PROCESS, FIRST)
    assert not table.holds(PROCESS, SECOND)
    alone.release()
    assert not table.holds(PROCESS, FIRST)


def test_two_owners_of_one_thread_must_both_let_go(table: HoldTable) -> None:
    """Invariant: a hold is owned like a lease; another's release does not end it."""
    first, second = taken(table, "a", PROCESS, FIRST), taken(table, "b", PROCESS, FIRST)
    first.release()
    assert table.holds(PROCESS, FIRST)
    second.release()
    assert not table.holds(PROCESS, FIRST)


def test_dropping_twice_does_nothing(table: HoldTable) -> None:
    hold = taken(table, "a", PROCESS, None)
    assert table.drop(hold)
    assert not table.drop(hold)
    assert hold.released
    assert list(table) == []


def test_holds_are_found_by_owner_and_by_process(table: HoldTable) -> None:
    """Invariant: a client's death finds its holds in one process, and no other's."""
    mine, whole = taken(table, "a", PROCESS, FIRST), taken(table, "a", PROCESS, None)
    elsewhere, theirs = taken(table, "a", OTHER, None), taken(table, "b", PROCESS, SECOND)
    assert table.of("a", PROCESS) == (mine, whole)
    assert table.in_process(PROCESS) == (mine, whole, theirs)
    assert table.in_process(OTHER) == (elsewhere,)


def test_holds_of_a_thread_die_with_it(table: HoldTable) -> None:
    """Invariant: a hold of the whole process outlives any of its threads."""
    of_thread, whole = taken(table, "a", PROCESS, FIRST), taken(table, "b", PROCESS, None)
    table.forget_thread(FIRST)
    assert of_thread.released
    assert not whole.released
    assert list(table) == [whole]


def test_release_passes_what_it_gives_on_and_with_releases() -> None:
    said: list[Parting] = []
    with Hold("a", PROCESS, FIRST, lambda _, registers: said.append(registers)) as hold:
        hold.release({"rdi": 1}, signal=0)
    assert said == [Parting(registers={"rdi": 1}, signal=0), NOTHING]


def test_what_people_read(table: HoldTable) -> None:
    assert repr(taken(table, "a", PROCESS, FIRST)) == "<hold of thread 10 by 'a'>"
    whole = taken(table, "b", PROCESS, None)
    whole.release()
    assert repr(whole) == "<hold of process 10 by 'b', released>"
