"""Address spaces as clients see them: no trap of ours is ever shown, or overwritten."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ubpx._errors import MemoryFault, UsageError
from ubpx.core.dormant import DormantTraps
from ubpx.core.hiding import HidingMemory, StandingTraps
from ubpx.core.spaces import Thread, TracedProcess
from ubpx.core.ubp.plans import TrapPatch
from ubpx.core.values import ProcessId, VirtAddr
from ubpx.testing import FakeMemory

START = 0x40_1000
ORIGINAL = bytes(range(64))


def trap_at(memory: FakeMemory, address: int, trap: bytes = b"\xcc") -> TrapPatch:
    here = VirtAddr(address)
    original = memory.read(here, len(trap))
    memory.patch(here, trap)
    return TrapPatch(address=here, trap=trap, original=original, reported_pc=VirtAddr(address + len(trap)))


@pytest.fixture
def raw() -> FakeMemory:
    return FakeMemory({START: ORIGINAL})


@pytest.fixture
def hiding(raw: FakeMemory) -> HidingMemory:
    """With a trap of one byte at 8 and one of four bytes at 20."""
    patches = [trap_at(raw, START + 8), trap_at(raw, START + 20, b"\xaa\xbb\xcc\xdd")]
    return HidingMemory(raw, StandingTraps(patches), DormantTraps(b"\xcc"))


@pytest.mark.parametrize("size", range(1, 65))
def test_reads_never_show_a_trap(hiding: HidingMemory, raw: FakeMemory, size: int) -> None:
    """Invariant: whatever part of a trap a read overlaps, it shows the program's own bytes."""
    assert raw.read(VirtAddr(START), 64) != ORIGINAL
    for offset in range(65 - size):
        assert hiding.read(VirtAddr(START + offset), size) == ORIGINAL[offset : offset + size]


def test_faults_pass(hiding: HidingMemory) -> None:
    with pytest.raises(MemoryFault):
        hiding.read(VirtAddr(START + 60), 8)
    with pytest.raises(MemoryFault):
        hiding.write(VirtAddr(START + 62), b"1234")


@pytest.mark.parametrize("way", ["write", "patch"])
@pytest.mark.parametrize(("offset", "size"), [(8, 1), (5, 4), (20, 1), (23, 8), (0, 64)])
def test_a_write_over_a_trap_is_refused_whole(
    hiding: HidingMemory, raw: FakeMemory, way: str, offset: int, size: int
) -> None:
    """Invariant: nobody writes over a standing trap by accident; nothing is written then."""
    before = raw.read(VirtAddr(START), 64)
    with pytest.raises(UsageError, match="a probe stands at 0x4010"):
        getattr(hiding, way)(VirtAddr(START + offset), b"x" * size)
    assert raw.read(VirtAddr(START), 64) == before


@pytest.mark.parametrize("way", ["write", "patch"])
def test_a_write_beside_traps_passes(hiding: HidingMemory, raw: FakeMemory, way: str) -> None:
    getattr(hiding, way)(VirtAddr(START + 9), b"y" * 11)
    assert raw.read(VirtAddr(START + 9), 11) == b"y" * 11


def test_stops_are_counted_while_threads_go() -> None:
    """Invariant: whoever reads the count meanwhile, from any thread, finds each thread in it once."""
    tracer: Any = SimpleNamespace(is_own_child=lambda _pid: False)
    process = TracedProcess(ProcessId(1), cast("Any", None), tracer)
    threads = [Thread(cast("Any", SimpleNamespace(tid=tid, pid=1, stops=1)), process) for tid in range(1, 3001)]
    process.threads.update((each.tid, each) for each in threads)

    def lose_all() -> None:
        for each in threads:
            process.lose(each)

    going = threading.Thread(target=lose_all)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        going.start()
        found = set()
        while going.is_alive():
            found.add(process.stops)
    finally:
        sys.setswitchinterval(interval)
        going.join()
    assert found <= {len(threads)}
    assert process.stops == len(threads)
