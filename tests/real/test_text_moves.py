"""Code that the program unmaps, moves, drops, protects and writes over while it is probed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

ADD_ONE, PUSHER, VALUE = 0, 64, 128
"""Where mover.c has its functions: a lea, a push (one byte), a mov with an operand."""
TRAP = b"\xcc"


class LossKeeper:
    """Keeps what it is told of losses: address -> reason."""

    def __init__(self) -> None:
        self.told: dict[int, str] = {}

    @hookimpl
    def ubpx_probepoint_lost(self, address: int, reason: str) -> None:
        assert address not in self.told, "told twice"
        self.told[address] = reason


class Moving:
    """A mover whose three functions are probed; ``at`` is where its code is."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.at = 0
        self.losses = LossKeeper()
        self.leases: list[ubpx.Lease] = []
        self.target: ubpx.Target | None = None

    def tell(self, commands: str) -> None:
        """Have it do these, one after the other."""
        for command in commands:
            self.program.tell(command)
            if command in "afclm":
                self.at = self.program.number("at")
            else:
                self.program.expect("done")

    def call(self) -> tuple[int, int]:
        """Calls so far of each function, and traps of the program's own."""
        self.program.tell("g")
        return self.program.number("calls"), self.program.number("traps")

    def read(self, address: int, size: int = 1) -> bytes:
        """What the program's memory holds, traps included."""
        with Path(f"/proc/{self.program.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    @property
    def places(self) -> list[int]:
        return [self.at + offset for offset in (ADD_ONE, PUSHER, VALUE)]

    @property
    def states(self) -> set[str]:
        return {lease.state for lease in self.leases}

    @property
    def hits(self) -> list[int]:
        return [lease.hits for lease in self.leases]

    @contextlib.contextmanager
    def probed(self, strategy: ubpx.Strategy | None = None) -> Iterator[None]:
        """Attached, with probes on the three."""
        with ubpx.attach(self.program.pid) as self.target:
            client = self.target.client("one", hooks=self.losses)
            places = self.places
            self.leases = [
                client.probe(
                    place, lambda _: None, assume_boundary=True, strategy=strategy if place != places[1] else None
                )
                for place in places
            ]
            yield


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these tests need not wait a second each."""
    monkeypatch.setattr("ubpx.core.patrol.PERIOD_S", 0.02)


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noticed is noticed otherwise."""
    monkeypatch.setattr("ubpx.core.patrol.PERIOD_S", 1000.0)


@pytest.fixture
def moving(target_program: StartProgram, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Moving]:
    """A mover; afterwards nothing has gone wrong in a tracer thread."""
    yield Moving(target_program("mover", tmp_path / "code", tmp_path / "other"))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.contract("text-1", "text-2")
@pytest.mark.parametrize("kind", ["a", "Ff"])
def test_unmapped_code_is_lost(moving: Moving, eventually: Callable[..., bool], kind: str) -> None:
    """Invariant: what is unmapped is lost, with a notice, and nothing is written to what is mapped there next."""
    moving.tell(kind + "C")
    with moving.probed():
        assert moving.call() == (10, 0)
        places = moving.places
        moving.tell("u")
        assert eventually(lambda: len(moving.losses.told) == 3)
        assert moving.losses.told == dict.fromkeys(places, "the program unmapped it")
        assert moving.states == {"LOST"}
        assert moving.target is not None
        assert moving.target.probepoints() == ()
        assert moving.hits == [10, 10, 10]
    assert moving.program.tell("q").wait() == 0


@pytest.mark.contract("text-3")
@pytest.mark.parametrize("kind", ["a", "Ff"])
def test_what_is_mapped_instead_is_never_written(moving: Moving, kind: str, never_looks: None) -> None:
    """Invariant: where another file is mapped over the code its bytes stay, those too that look like our traps."""
    moving.tell(kind + "C")
    with moving.probed():
        assert moving.call() == (10, 0)
        moving.tell("c")
        moving.leases[0].release()
        assert moving.losses.told == {moving.places[0]: "the program wrote something else there"}
    assert moving.read(moving.at, 4096) == TRAP * 4096
    assert moving.hits == [10, 10, 10]
    assert moving.program.tell("q").wait() == 0


@pytest.mark.parametrize("kind", ["a", "Ff"])
@pytest.mark.parametrize("noticed", [False, True])
def test_moved_code_runs_without_our_traps(
    moving: Moving, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, kind: str, noticed: bool
) -> None:
    """Invariant: code that the program moves (mremap) takes our traps along; nobody dies of them there."""
    if not noticed:
        monkeypatch.setattr("ubpx.core.patrol.PERIOD_S", 1000.0)
    moving.tell(kind)
    with moving.probed():
        assert moving.call() == (10, 0)
        places = moving.places
        moving.tell("m")
        if noticed:
            assert eventually(lambda: len(moving.losses.told) == 3)
            assert TRAP not in [moving.read(place) for place in moving.places]
        assert moving.call() == (20, 0)
        assert moving.losses.told == dict.fromkeys(places, "the program unmapped it")
        assert TRAP not in [moving.read(place) for place in moving.places]
        assert moving.hits == [10, 10, 10]
    assert moving.call() == (30, 0)
    assert moving.program.tell("q").wait() == 0


@pytest.mark.parametrize("kind", ["a", "Ff"])
def test_moved_code_is_cleaned_at_the_detach(moving: Moving, kind: str, never_looks: None) -> None:
    """Invariant: a detach right after the move leaves no trap of ours at the new place."""
    moving.tell(kind)
    with moving.probed():
        moving.tell("m")
    assert moving.call() == (10, 0)
    assert moving.program.tell("q").wait() == 0


@pytest.mark.parametrize("kind", ["a", "Ff"])
def test_protections_change_nothing(moving: Moving, kind: str) -> None:
    """Invariant: a trap stays under every protection, and is taken out under every protection."""
    moving.tell(kind)
    with moving.probed():
        moving.tell("nx")
        assert moving.call() == (10, 0)
        moving.tell("wx")
        assert moving.call() == (20, 0)
        moving.tell("n")
        assert moving.target is not None
        late = moving.target.client("late")
        with pytest.raises(ubpx.NotExecutable):
            late.probe(moving.at + VALUE, lambda _: None, assume_boundary=True)
        moving.tell("x")
        extra = late.probe(moving.at + VALUE, lambda _: None, assume_boundary=True)
        assert moving.call() == (30, 0)
        assert (moving.hits, extra.hits) == ([30, 30, 30], 10)
        moving.tell("n")
    moving.tell("x")
    assert TRAP not in [moving.read(place) for place in moving.places]
    assert moving.call() == (40, 0)
    assert moving.losses.told == {}
    assert moving.program.tell("q").wait() == 0


def test_dropped_pages_are_lost(moving: Moving, eventually: Callable[..., bool]) -> None:
    """Invariant: MADV_DONTNEED takes our traps away; that is told, since arrivals are missed until it is noticed."""
    moving.tell("Ff")
    with moving.probed():
        assert moving.call() == (10, 0)
        moving.tell("d")
        assert eventually(lambda: len(moving.losses.told) == 3)
        assert set(moving.losses.told) == set(moving.places)
        assert moving.call() == (20, 0)
        assert moving.target is not None
        again = moving.target.client("two").probe(moving.at + ADD_ONE, lambda _: None, assume_boundary=True)
        assert moving.call() == (30, 0)
        assert (moving.hits, again.hits) == ([10, 10, 10], 10)
    assert moving.program.tell("q").wait() == 0


def test_who_probes_a_place_that_was_dropped_arms_it(moving: Moving, never_looks: None) -> None:
    """Invariant: a lease of what is probed already is a lease of something that stands."""
    moving.tell("Ff")
    with moving.probed():
        moving.tell("d")
        assert moving.target is not None
        again = moving.target.client("two").probe(moving.at + ADD_ONE, lambda _: None, assume_boundary=True)
        assert moving.states == {"LOST"}
        assert moving.call() == (10, 0)
        assert again.hits == 10
    assert moving.program.tell("q").wait() == 0


@pytest.mark.contract("text-3", "text-4")
@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.STEP, ubpx.Strategy.INLINE])
def test_code_that_is_written_over_is_lost(
    moving: Moving, eventually: Callable[..., bool], strategy: ubpx.Strategy | None
) -> None:
    """Invariant: new code with traps of its own in our traps' places runs as if nobody were there."""
    moving.tell("a")
    with moving.probed(strategy):
        assert moving.call() == (10, 0)
        moving.tell("o")
        new = moving.read(moving.at, 192)
        assert moving.call() == (20, 30)
        assert eventually(lambda: set(moving.losses.told) == set(moving.places))
        assert set(moving.losses.told.values()) == {"the program wrote or mapped something else there"}
        assert moving.call() == (30, 60)
        assert moving.hits[0] == moving.hits[2] == 10
    assert moving.read(moving.at, 192) == new
    assert moving.call() == (40, 90)
    assert moving.program.tell("q").wait() == 0


def test_freed_code_stays_as_it_was_filled(moving: Moving, never_looks: None) -> None:
    """Invariant: a program that fills freed code with int3 finds all of it so, also where our traps were."""
    moving.tell("a")
    with moving.probed():
        moving.tell("k")
        moving.leases[0].release()
    filled = moving.read(moving.at, 4096)
    assert filled[ADD_ONE] == filled[VALUE] == 0xCC
    assert moving.program.tell("q").wait() == 0


@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.STEP, ubpx.Strategy.INLINE])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_changed_operand_counts(
    moving: Moving,
    eventually: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    strategy: ubpx.Strategy | None,
    noticed: bool,
) -> None:
    """Invariant: nobody runs a copy of an instruction that the program has changed behind our trap; it is lost."""
    if not noticed:
        monkeypatch.setattr("ubpx.core.patrol.PERIOD_S", 1000.0)
    moving.tell("a")
    with moving.probed(strategy):
        assert moving.call() == (10, 0)
        moving.tell("i")
        if noticed:
            assert eventually(lambda: len(moving.losses.told) == 1)
        assert moving.call() == (20, 0)
        assert moving.losses.told == {moving.at + VALUE: "the program changed the instruction behind our trap"}
        assert moving.hits == [20, 20, 10]
    assert moving.call() == (30, 0)
    assert moving.program.tell("q").wait() == 0


def test_a_program_that_reads_its_code_sees_our_trap(moving: Moving) -> None:
    """Documented: the program itself reads the trap; clients read what it would read without us."""
    moving.tell("a")
    with moving.probed():
        assert moving.program.tell("r").number("first") == 0xCC
        assert moving.target is not None
        assert moving.target.memory.read(moving.at, 4) == bytes.fromhex("488d4701")
    assert moving.program.tell("r").number("first") == 0x48
    assert moving.program.tell("q").wait() == 0


def test_code_written_back_by_the_program_is_lost(moving: Moving, eventually: Callable[..., bool]) -> None:
    """Invariant: a program that writes its code again, the same, has taken our traps out; that is told."""
    moving.tell("a")
    with moving.probed():
        moving.tell("b")
        assert eventually(lambda: set(moving.losses.told) == set(moving.places))
        assert moving.call() == (10, 0)
        assert moving.hits == [0, 0, 0]
    assert moving.program.tell("q").wait() == 0


def test_file_that_is_replaced_or_cut_off(moving: Moving, tmp_path: Path, eventually: Callable[..., bool]) -> None:
    """Invariant: a file that another replaces leaves its code probed; one that is cut off takes it away: it is lost."""
    moving.tell("Ff")
    other = tmp_path / "newer"
    other.write_bytes(TRAP * 4096)
    os.replace(other, tmp_path / "code")
    with moving.probed():
        assert moving.call() == (10, 0)
        assert moving.hits == [10, 10, 10]
    assert moving.call() == (20, 0)
    (tmp_path / "code").unlink()
    moving.tell("Ff")
    with moving.probed():
        assert moving.call() == (30, 0)
        moving.tell("t")
        assert eventually(lambda: len(moving.losses.told) == 3)
        moving.tell("F")
        assert moving.call() == (40, 0)
        assert moving.hits == [10, 10, 10]
    assert moving.program.tell("q").wait() == 0


def test_code_in_a_huge_page(moving: Moving) -> None:
    """Invariant: code in one 2 MB page is probed and left like any other."""
    moving.tell("l")
    smaps = Path(f"/proc/{moving.program.pid}/smaps").read_text().splitlines()
    huge = sum(int(line.split()[1]) for line in smaps if line.startswith("AnonHugePages:"))
    if huge < 2048:
        pytest.skip("this kernel gave the program no huge page")
    with moving.probed():
        assert moving.call() == (10, 0)
        assert moving.hits == [10, 10, 10]
    assert TRAP not in [moving.read(place) for place in moving.places]
    assert moving.call() == (20, 0)
    assert moving.program.tell("q").wait() == 0
