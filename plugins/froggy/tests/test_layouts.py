"""What the words of a hit mean is told by how many there are: a target may exec a program of another architecture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import ubpx
from ubpx.core.ubp import ARCHITECTURES
from ubpx_froggy import messages as m
from ubpx_froggy.aio.hits import AsyncHit, AsyncSurroundings
from ubpx_froggy.broker.layouts import layouts, layouts_from
from ubpx_froggy.client.hits import Arrival, RemoteHit, Surroundings
from ubpx_froggy.wire import WireError

NARROW = m.LayoutInfo("i386", ["eax", "esp", "eip"], "eip")


def info(*others: m.LayoutInfo) -> m.TargetInfo:
    names = ["rax", "rdi", "rsp", "rip"]
    return m.TargetInfo(b"t" * 16, 4711, "x86_64", names, "rip", 1.0, spawned=False, others=list(others))


def words(*values: int) -> bytes:
    return b"".join(each.to_bytes(8, "little") for each in values)


def test_the_broker_tells_of_all_architectures_and_no_two_are_alike() -> None:
    """Invariant: every word that is told of is a register, and the number of them tells the architecture."""
    assert {each.architecture for each in layouts()} == set(ARCHITECTURES)
    assert len({len(each.registers) for each in layouts()}) == len(layouts())
    for each in layouts():
        its, others = layouts_from(each.architecture)
        assert its is each
        assert len(others) == len(layouts()) - 1
        assert its.pc in its.registers
        assert "" not in its.registers
    assert layouts_from("i386")[0].registers[:3] == ["ebp", "ebx", "eax"]


def test_a_hit_has_the_registers_of_the_program_that_it_comes_from() -> None:
    """Invariant: names, pc and arguments change with an exec, whatever was announced first."""
    stack: Any = SimpleNamespace(read=lambda address, size: address.to_bytes(size, "little"))
    around = Surroundings(info(NARROW), stack)
    wide = RemoteHit(Arrival("lease", 1, words(1, 2, 3, 4), 0.0, around.of(words(1, 2, 3, 4))))
    narrow = RemoteHit(Arrival("lease", 1, words(5, 0x1000, 7), 0.0, around.of(words(5, 0x1000, 7))))
    assert (wide.address, list(wide.regs), wide.args[0]) == (4, ["rax", "rdi", "rsp", "rip"], 2)
    assert (narrow.address, list(narrow.regs), narrow.args[1]) == (7, ["eax", "esp", "eip"], 0x1008)
    assert narrow.snapshot().args == tuple(range(0x1004, 0x101C, 4))
    with pytest.raises(ubpx.UnknownRegister, match="i386 has no register 'rax'; it has eax, esp, eip"):
        _ = narrow.regs.rax


def test_arguments_that_must_be_awaited_are_left_out_of_a_copy() -> None:
    """Invariant: in an event loop a snapshot has the arguments that are in registers; i386 has none there."""
    reader: Any = object()
    around = AsyncSurroundings(info(NARROW), reader)
    hit = AsyncHit(Arrival("lease", 1, words(5, 6, 7), 0.0, around.of(words(5, 6, 7))))
    assert hit.snapshot().args == ()
    assert hit.memory is reader
    with pytest.raises(ubpx.UsageError, match=r"await hit\.argument\(n\)"):
        _ = hit.args[0]


def test_what_was_not_announced_is_an_error_of_the_broker() -> None:
    with pytest.raises(WireError, match="a hit with 8 bytes of registers, where 32 or 24 were announced"):
        Surroundings(info(NARROW), None).of(words(1))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="two architectures have 4 registers"):
        Surroundings(info(m.LayoutInfo("vax", ["r0", "r1", "sp", "pc"], "pc")), None)  # type: ignore[arg-type]
    with pytest.raises(WireError, match="no register 'pc' among those that were announced"):
        Surroundings(info(m.LayoutInfo("vax", ["r0"], "pc")), None)  # type: ignore[arg-type]
