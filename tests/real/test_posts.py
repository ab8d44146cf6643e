"""How the tracer thread runs: as asked for by option or environment, visible, and nobody else's affair."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import pytest

import ubpx
from ubpx.core.values import Placement, Urgency

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram


def tracer_tid() -> int:
    """By its name in /proc: the newest, if earlier ones have not gone yet."""
    return max(thread.native_id or 0 for thread in threading.enumerate() if thread.name == "ubpx-tracer")


@pytest.mark.parametrize("urgency", ["raised", "usual"])
def test_the_priority_is_the_tracer_threads_alone(urgency: Literal["raised", "usual"]) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ubpx.Session(urgency=urgency) as session:
        post = session.post
        assert os.getpriority(os.PRIO_PROCESS, tracer_tid()) == post.nice
        assert (post.nice < ours) == (post.urgency is Urgency.RAISED)
        if urgency == "usual" or os.geteuid() == 0:
            assert post.urgency == urgency
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


def test_the_environment_decides_where_no_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBPX_URGENCY", "usual")
    monkeypatch.setenv("UBPX_PLACEMENT", "free")
    with ubpx.Session() as session:
        assert (session.post.urgency, session.post.placement) == (Urgency.USUAL, Placement.FREE)
    with ubpx.Session(placement="follow") as session:
        assert session.post.placement is Placement.FOLLOW
    monkeypatch.setenv("UBPX_PLACEMENT", "everywhere")
    with pytest.raises(ubpx.UsageError, match="UBPX_PLACEMENT='everywhere'; choose 'follow' or 'free'"):
        ubpx.Session()


@pytest.mark.parametrize("options", [{"urgency": "high"}, {"placement": 1}, {"urgency": ["raised"]}])
def test_what_is_no_choice_is_refused(options: Any) -> None:
    with pytest.raises(ubpx.UsageError, match="choose '"):
        ubpx.Session(**options)


def test_what_a_handler_starts_has_the_usual_priority(target_program: StartProgram) -> None:
    """Invariant: a raised tracer thread does not raise the programs that handlers start."""
    program = target_program("hot_calls", "probed_lea", 1, 1)
    command = [sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"]
    found: list[int] = []
    with ubpx.attach(program.pid) as target:
        target.client("starter").probe(
            "probed_lea", lambda _: found.append(int(subprocess.run(command, check=True, capture_output=True).stdout))
        )
        program.tell("g").number("calls")
    assert found == [max(0, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))]


def test_a_tracer_that_keeps_to_a_processor_keeps_to_the_threads_own(target_program: StartProgram) -> None:
    """Invariant: while stops are many it runs where it may; what it says is what the kernel says."""
    program = target_program("hot_calls", "probed_lea", 1, 5_000)
    allowed = os.sched_getaffinity(0)
    seen: set[tuple[int | None, tuple[int, ...]]] = set()
    with ubpx.Session(placement="follow") as session:
        client = session.attach(program.pid).client("looker")

        def look(_: ubpx.Hit) -> None:
            seen.add((session.post.processor, tuple(sorted(os.sched_getaffinity(0)))))

        client.probe("probed_lea", look)
        program.tell("g").number("calls", timeout=50)
    for processor, runs_on in seen:
        assert runs_on == (tuple(sorted(allowed)) if processor is None else (processor,))
    assert os.sched_getaffinity(0) == allowed
    assert program.tell("q").wait() == 0
