"""Libraries that a real program loads and unloads while it is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import build
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.over_both


class ModuleKeeper:
    """Keeps what it is told of modules."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    @hookimpl
    def ubpx_module_loaded(self, path: str, base: int) -> None:
        self.told.append(("loaded", path, base))

    @hookimpl
    def ubpx_module_unloaded(self, path: str, base: int) -> None:
        self.told.append(("unloaded", path, base))


@pytest.fixture
def library() -> str:
    """A library with ``plugin_function``, which its constructor calls once."""
    return str(build("plugin", "-shared", "-fPIC"))


@pytest.fixture
def loader(target_program: StartProgram, library: str) -> Program:
    """A program that loads and unloads the library when told to."""
    return target_program("loader", library)


@pytest.mark.parametrize("slots", ["auto", "none"])
def test_a_lease_waits_for_dlopen(loader: Program, library: str, slots: ubpx.target.SlotPolicy) -> None:
    """Invariant: a pending lease is armed before the library's first instruction runs, and again after a reload."""
    loader.tell("oc").expect("opened")
    loader.expect("closed")
    maps = loader.maps()
    name = library.rpartition("/")[2]
    with ubpx.attach(loader.pid, slots=slots) as target:
        lease = target.client("one").probe(f"{name}:plugin_function", lambda _: None)
        assert lease.state == ubpx.LeaseState.PENDING
        assert target.probepoints() == ()
        loader.tell("o").expect("opened")
        assert (lease.state, lease.hits) == (ubpx.LeaseState.ARMED, 1)
        assert loader.tell("g").number("calls") == 10
        assert lease.hits == 11
        loader.tell("c").expect("closed")
        assert lease.state == ubpx.LeaseState.PENDING
        loader.tell("o").expect("opened")
        assert (lease.state, lease.hits) == (ubpx.LeaseState.ARMED, 12)
        loader.tell("c").expect("closed")
    loader.assert_untouched(maps)
    assert loader.tell("q").wait() == 0


def test_a_lease_waits_for_dlmopen(loader: Program, library: str) -> None:
    """Invariant: the same for a library in a namespace of its own; of two copies the one that is left is meant."""
    name = library.rpartition("/")[2]
    with ubpx.attach(loader.pid) as target:
        client = target.client("one")
        lease = client.probe(f"{name}:plugin_function", lambda _: None)
        loader.tell("O").expect("opened")
        assert lease.hits == 1
        first = lease.address
        assert loader.tell("G").number("calls") == 10
        loader.tell("o").expect("opened")
        assert loader.tell("g").number("calls") == 20
        assert (lease.address, lease.hits) == (first, 11)
        with pytest.raises(ubpx.AmbiguousSymbol):
            client.probe(f"{name}:plugin_function", lambda _: None)
        loader.tell("C").expect("closed")
        second = lease.address
        assert second != first
        assert loader.tell("g").number("calls") == 30
        assert (lease.address, lease.hits) == (second, 21)
        loader.tell("c").expect("closed")
        assert lease.state == ubpx.LeaseState.PENDING
        loader.tell("O").expect("opened")
        assert (lease.state, lease.hits) == (ubpx.LeaseState.ARMED, 22)
    assert loader.tell("G").number("calls") == 40
    assert loader.tell("q").wait() == 0


class LossKeeper:
    """Keeps what it is told of losses."""

    def __init__(self) -> None:
        self.told: list[int] = []

    @hookimpl
    def ubpx_probepoint_lost(self, address: int) -> None:
        self.told.append(address)


def test_a_library_that_was_there_before_is_lost_when_it_is_unloaded(loader: Program, library: str) -> None:
    """Invariant: what was probed at once is lost at the unloading, and armed again before the next constructor."""
    name = library.rpartition("/")[2]
    losses = LossKeeper()
    loader.tell("o").expect("opened")
    with ubpx.attach(loader.pid) as target:
        client = target.client("one", hooks=losses)
        by_spec = client.probe(f"{name}:plugin_function", lambda _: None)
        assert by_spec.address is not None
        by_address = client.probe(by_spec.address, lambda _: None)
        group = client.probe_many([f"{name}:plugin_function"], lambda _: None)
        assert loader.tell("g").number("calls") == 10
        loader.tell("c").expect("closed")
        assert [lease.state for lease in (by_spec, by_address, *group)] == ["PENDING", "LOST", "PENDING"]
        assert losses.told == [by_spec.address]
        loader.tell("o").expect("opened")
        assert [lease.state for lease in (by_spec, by_address, *group)] == ["ARMED", "LOST", "ARMED"]
        assert loader.tell("g").number("calls") == 20
        assert [lease.hits for lease in (by_spec, by_address, *group)] == [21, 10, 21]
    assert loader.tell("q").wait() == 0


def test_a_sequence_of_a_library_is_known_before_the_library_is_relocated(loader: Program, library: str) -> None:
    """Invariant: a lease that waits for a place in a restartable sequence is refused when the library comes."""
    name = library.rpartition("/")[2]
    with ubpx.attach(loader.pid) as target:
        client = target.client("one")
        inside = client.probe(f"{name}:plugin_sequence_start", lambda _: None)
        behind = client.probe(f"{name}:plugin_sequence_post", lambda _: None)
        loader.tell("o").expect("opened")
        assert (inside.state, behind.state) == (ubpx.LeaseState.PENDING, ubpx.LeaseState.ARMED)
        assert isinstance(inside.obstacle, ubpx.InsnRefused)
        assert "restartable sequence" in str(inside.obstacle)
    assert loader.tell("q").wait() == 0


def test_modules_are_told_by_path_and_base(
    loader: Program, library: str, way: str, eventually: Callable[..., bool]
) -> None:
    """Invariant: each load and unload is told once, here before the call that made it returns, elsewhere soon."""
    keeper = ModuleKeeper()
    with ubpx.attach(loader.pid) as target:
        target.client("modules", hooks=keeper)
        for turn in range(3):
            loader.tell("o").expect("opened")
            assert way == "attach" or eventually(lambda told=2 * turn: len(keeper.told) > told)
            event, path, base = keeper.told[2 * turn]
            assert (event, path) == ("loaded", library)
            assert f"{base:x}-" in "".join(line for line in loader.maps() if library in line)
            loader.tell("c").expect("closed")
            assert way == "attach" or eventually(lambda told=2 * turn + 1: len(keeper.told) > told)
            assert keeper.told[2 * turn + 1] == ("unloaded", path, base)
        assert len(keeper.told) == 6
    assert loader.tell("q").wait() == 0


def test_a_library_is_left_with_its_own_bytes(loader: Program, library: str) -> None:
    """Invariant: a detach while the library is loaded leaves it as its file; hits stay readable."""
    name = library.rpartition("/")[2]
    with ubpx.attach(loader.pid) as target:
        lease = target.client("one").probe(f"{name}:plugin_function", lambda _: None)
        loader.tell("o").expect("opened")
        maps = {line for line in loader.maps() if "/" in line}
    assert lease.hits == 1
    assert maps <= loader.maps()
    loader.assert_untouched(loader.maps())
    assert loader.tell("g").number("calls") == 10
    assert loader.tell("q").wait() == 0


def test_modules_of_a_new_program_are_told(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: after an exec every file with code of the new program is told at its entry point."""
    program = target_program("self_exec", "leader", 5)
    keeper = ModuleKeeper()
    with ubpx.attach(program.pid) as target:
        target.client("modules", hooks=keeper)
        assert program.tell("g").number("calls") == 5
        program.tell("g").expect("again")
        assert eventually(lambda: len(keeper.told) >= 2)
        names = {path.rpartition("/")[2] for event, path, _ in keeper.told if event == "loaded"}
        assert "libc.so.6" in names
        assert any(name.startswith("ld-") for name in names)
        assert any("self_exec" in name for name in names)
        assert program.tell("g").number("calls") == 5
    assert program.tell("q").wait() == 5
