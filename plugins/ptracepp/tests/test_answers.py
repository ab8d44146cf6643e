"""What the kernel answers to one tracer thread is not another's."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from ubpx_ptracepp.requests import PTRACE_DETACH, PTRACE_INTERRUPT, PTRACE_SEIZE, Answers, peek, reap, request

LOOKS: Final = 5_000
STOPPED: Final = 128 << 8 | signal.SIGTRAP


@pytest.fixture
def eager() -> Iterator[None]:
    """The interpreter switches as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager")
def test_threads_that_look_at_the_same_time_see_their_own() -> None:
    """Invariant: whatever the interpreter does between a call and the reading of its answer."""
    wrong: list[object] = []
    done: list[int] = []
    begin = threading.Barrier(3)

    def look() -> None:
        answers = Answers()
        with subprocess.Popen(["sleep", "60"]) as child:
            tid = child.pid
            request(PTRACE_SEIZE, tid)
            request(PTRACE_INTERRUPT, tid)
            while peek(answers, tid) is None:
                pass
            begin.wait(20)
            for _ in range(LOOKS):
                found = peek(answers)
                if found is None or found[:2] != (tid, STOPPED):
                    wrong.append((tid, found))
            status = reap(tid, answers)
            if status is None or status >> 8 != STOPPED or peek(answers) is not None:
                wrong.append((tid, status))
            request(PTRACE_DETACH, tid)
            child.kill()
        done.append(tid)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert (wrong[:3], len(done)) == ([], 3)
