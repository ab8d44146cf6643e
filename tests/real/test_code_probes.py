"""Real code that is probed as a whole, while it runs: by the hundred thousand, and gone without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx
from tests.real.conftest import build
from ubpx.core.desk import probe_code
from ubpx.core.values import parse_maps
from ubpx.symbols.code import function_ranges
from ubpx.symbols.elf import ImageReader, read_headers
from ubpx.symbols.modules import load_biases, modules_of

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram


def code_of(pid: int, *names: str) -> list[range]:
    """The functions of the mapped files whose names begin so."""
    found = []
    for module in modules_of(parse_maps(Path(f"/proc/{pid}/maps").read_text())):
        if module.name.startswith(names):
            with Path(module.path).open("rb") as stream:
                (bias,) = load_biases(module, read_headers(ImageReader(stream, module.path)))
            found += [range(each.start + bias, each.end + bias) for each in function_ranges(module.path)]
    return found


@pytest.mark.parametrize("first_hits", [1, None])
def test_a_running_program_is_probed_and_left_as_it_was(target_program: StartProgram, first_hits: int | None) -> None:
    """Invariant: threads count all their calls while traps come and go on all that they run; nothing stays."""
    program = target_program("caller", 4)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        client = target.client("code")
        code = code_of(program.pid, "caller", "libc.so")
        for turn in range(3):
            probe = probe_code(client, code, first_hits=first_hits)
            assert probe.probed > 300_000
            assert program.tell("g").number("calls") == 400
            assert program.tell("u").number("signals") == turn + 1
            assert probe.hits > 20
            if first_hits:
                assert probe.hits == probe.reached
            else:
                assert probe.hits >= 400
            target._desk.release_code(probe)
            assert program.tell("g").number("calls") == 400
        probe_code(client, code, first_hits=first_hits)
        assert program.tell("g").number("calls") == 400
    assert program.tell("g").number("calls") == 400
    program.assert_untouched(maps)
    program.tell("q")
    assert program.wait() == 0


def test_a_thread_without_slots_ready_still_counts_each_arrival(
    target_program: StartProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: threads that meet more traps at once than there are slots are sent back, and none is lost."""
    monkeypatch.setattr("ubpx.core.sleepers._RESERVE_SIZE", 4096)
    monkeypatch.setattr("ubpx.core.sleepers._FEW", 0)
    program = target_program("caller", 8)
    with ubpx.attach(program.pid) as target:
        counted = target.client("count").probe("libc:getppid", lambda _: None)
        probe = probe_code(target.client("code"), code_of(program.pid, "caller", "libc.so"))
        assert program.tell("g").number("calls") == 800
        assert counted.hits == 800
        assert probe.hits > 800
    program.tell("q")
    assert program.wait() == 0


def test_a_library_that_is_unloaded_takes_its_probes_along(target_program: StartProgram) -> None:
    """Invariant: a library that is loaded anew, at the same place perhaps, has no probe, and may be probed again."""
    library = build("plugin", "-shared", "-fPIC")
    program = target_program("loader", library)
    with ubpx.attach(program.pid) as target:
        client = target.client("code")
        client.probe("nosuch.so:function", lambda _: None)  # now the program's loader is watched
        for _ in range(3):
            program.tell("o").expect("opened")
            probe = probe_code(client, code_of(program.pid, library.name), first_hits=2)
            program.tell("g").expect("calls")
            assert probe.hits >= 2
            program.tell("c").expect("closed")
            before = probe.hits
            program.tell("o").expect("opened")
            program.tell("g").expect("calls")
            program.tell("c").expect("closed")
            assert probe.hits == before
    program.tell("q")
    assert program.wait() == 0


def test_children_have_no_traps(target_program: StartProgram) -> None:
    """Invariant: forked, vforked and exec'ed children end as they should, while all that they share is probed."""
    program = target_program("children", 2, 3)
    with ubpx.attach(program.pid) as target:
        probe = probe_code(target.client("code"), code_of(program.pid, "children", "libc.so"), first_hits=3)
        program.tell("g").number("children")
        program.expect("calls")
        assert probe.hits > 100
    program.tell("q")
    assert program.wait() == 0
