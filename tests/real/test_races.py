"""What races with an attach or with the mapping of a slot area: threads that are born, programs that are killed."""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram


def test_attach_to_a_program_that_makes_threads_all_the_time(target_program: StartProgram) -> None:
    """Invariant: a thread that the kernel attached by itself meanwhile is ours, not another tracer's."""
    program = target_program("breeder")
    for _ in range(100):
        with ubpx.attach(program.pid) as target:
            assert len(target.threads()) >= 1
    assert program.tell("q").number("made") > 0
    assert program.wait() == 0


def test_target_killed_while_it_maps_or_unmaps_slots(target_program: StartProgram) -> None:
    """Invariant: SIGKILL of several threads in the midst of an injected call hangs neither tracer nor client."""
    chance = random.Random(7)
    for _ in range(60):
        program = target_program("hot_calls", "probed_lea", 3, 50_000_000)
        program.tell("g")

        def visit(pid: int = program.pid) -> None:
            try:
                with ubpx.attach(pid) as target:
                    target.client("c").probe("probed_lea", lambda _: None)
            except (ubpx.TargetGone, ubpx.NoSuchProcess):
                pass

        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        time.sleep(chance.random() * 0.015)
        os.kill(program.pid, signal.SIGKILL)
        visitor.join(20)
        assert not visitor.is_alive(), "the visit hangs"
        assert program.wait() == -signal.SIGKILL


@pytest.mark.contract("life-20")
def test_vfork_in_flight_at_the_attach(target_program: StartProgram) -> None:
    """Invariant: a child that shares the memory since before the attach is stepped over, and not counted."""
    program = target_program("vfork_in_flight")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_late", lambda _: None, strategy=ubpx.Strategy.EMULATE)
        assert program.number("child") == 3
        assert target.threads() == (program.pid,)
        program.tell("q")
        assert target.wait(timeout=10) == 0
        assert lease.hits == 1


def test_detach_while_a_child_that_shares_the_memory_is_on_its_way_to_exec() -> None:
    """Invariant: whichever thread unmaps the slots, the child's or the parent's, the program lives on unharmed."""
    for _ in range(5):
        target = ubpx.spawn(["sh", "-c", "echo 1; sleep 0.05; echo 2; sleep 0.05; exit 4"], stdout=subprocess.DEVNULL)
        hits = queue.SimpleQueue[object]()
        target.client("one").probe("libc:write", hits.put)
        target.resume()
        hits.get(timeout=30)
        hits.get(timeout=30)  # what follows next is a vfork
        target.detach()
        assert target.popen is not None
        assert target.popen.wait(30) == 4
