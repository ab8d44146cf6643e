"""Several brokers on one machine: they know of each other, and one process never has two tracers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

UBPX: Final = str(Path(sys.executable).with_name("ubpx"))
PATIENCE_S: Final = 60.0


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 1)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The ``ubpx`` command, as a user runs it."""
    command = [UBPX, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def listed() -> list[dict[str, Any]]:
    """What ``ubpx list --json`` says of brokers."""
    done = run("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    brokers: list[dict[str, Any]] = json.loads(done.stdout)["brokers"]
    return sorted(brokers, key=lambda each: each["pid"])


def test_who_attaches_is_told_by_whom_it_is_traced_and_how_to_join(start_broker: Any, echo: Program) -> None:
    broker = start_broker("-p", str(echo.pid))
    with pytest.raises(ubpx.AlreadyTraced) as refusal:
        ubpx.attach(echo.pid)
    assert (refusal.value.pid, refusal.value.broker) == (echo.pid, broker.path)
    assert "--join" in str(refusal.value)
    done = run("trace", "-p", echo.pid, "-e", "answer")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ubpx: cannot attach to {echo.pid}: already traced by ")
    assert broker.path in line
    assert "--join" in line


def test_doctor_says_how_to_join(start_broker: Any, echo: Program) -> None:
    broker = start_broker("-p", str(echo.pid))
    done = run("doctor", "-p", echo.pid)
    assert done.returncode == 1
    (remedy,) = [line for line in done.stdout.splitlines() if "what to do" in line]
    assert f"join its broker ({broker.path}) with ubpx.connect({echo.pid})" in remedy


def test_join_joins(start_broker: Any, echo: Program) -> None:
    """Invariant: attach(join=True) gives the broker's target, and leaves it to the others."""
    broker = start_broker("-p", str(echo.pid))
    with ubpx.connect(broker.path) as first, ubpx.attach(echo.pid, join=True) as second:
        assert second.broker == broker.path  # type: ignore[attr-defined]
        a = first.client("a").probe("answer", lambda _: None)
        b = second.client("b").probe("answer", lambda _: None)
        assert a.probepoint is not None
        assert list(a.probepoint.clients) == ["a", "b"]
        assert echo.answer(1) == 2
        second.detach()
        assert list(a.probepoint.clients) == ["a"]
        assert echo.answer(2) == 3
        assert (a.hits, b.hits) == (2, 1)


def test_join_where_nobody_traces_attaches(echo: Program) -> None:
    with ubpx.attach(echo.pid, join=True) as target:
        assert type(target) is ubpx.Target


def test_a_tracer_that_is_no_broker_cannot_be_joined(echo: Program) -> None:
    with ubpx.attach(echo.pid), pytest.raises(ubpx.AlreadyTraced) as refusal:
        ubpx.attach(echo.pid, join=True)
    assert refusal.value.broker is None


def test_connect_by_pid_finds_the_broker(start_broker: Any, echo: Program, target_program: StartProgram) -> None:
    other = target_program("echo", 1)
    brokers = {program.pid: start_broker("-p", str(program.pid)) for program in (echo, other)}
    for program in (echo, other):
        with ubpx.connect(program.pid) as target:
            assert target.pid == program.pid
            assert target.broker == brokers[program.pid].path  # type: ignore[attr-defined]
            lease = target.client("c").probe("answer", lambda _: None)
            assert program.answer(5) == 6
            assert lease.hits == 1


def test_trace_joins_beside_another_client(start_broker: Any, echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: ubpx trace --join counts what the other client counts, and leaves it alone."""
    broker = start_broker("-p", str(echo.pid))
    with ubpx.connect(broker.path) as target:
        lease = target.client("steady").probe("answer", lambda _: None)
        command = [UBPX, "trace", "--join", "-p", str(echo.pid), "-e", "answer", "--count", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trace:
            try:
                assert eventually(lambda: len(target.clients()) == 2)
                assert eventually(lambda: len(target.probepoints()[0].clients) == 2)
                assert [echo.answer(n) for n in range(5)] == [1, 2, 3, 4, 5]
                trace.send_signal(signal.SIGINT)
                said, _ = trace.communicate(timeout=PATIENCE_S)
            finally:
                trace.kill()
        assert json.loads(said.splitlines()[-1]) == {"counts": {"answer": 5}}
        assert trace.returncode == 0
        assert [each.name for each in target.clients()] == ["steady"]
        assert echo.answer(9) == 10
        assert lease.hits == 6


def test_a_second_broker_is_refused_and_says_who_has_it(start_broker: Any, echo: Program) -> None:
    """Invariant: whichever way it is asked to attach; the process stays with the first."""
    first = start_broker("-p", str(echo.pid))
    second = start_broker("-p", str(echo.pid))
    assert second.greeting.startswith(f"ubpx: cannot attach to {echo.pid}: already traced by {first.pid} ")
    assert first.path in second.greeting
    assert second.popen.wait(PATIENCE_S) == 1
    third = start_broker()
    assert "no process yet" in third.greeting
    with pytest.raises(ubpx.AlreadyTraced) as refusal:
        ubpx.connect(third.path, pid=echo.pid)
    assert refusal.value.broker == first.path
    with ubpx.connect(first.path) as target:
        lease = target.client("c").probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert lease.hits == 1


def test_a_killed_broker_is_forgotten(start_broker: Any, echo: Program) -> None:
    """Invariant: what it left in the run directory disturbs nobody, and the next broker has its place."""
    first = start_broker("-p", str(echo.pid))
    os.kill(first.pid, signal.SIGKILL)
    first.popen.wait(PATIENCE_S)
    with pytest.raises(ubpx.NoBroker, match=f"ubpx serve -p {echo.pid}"):
        ubpx.connect(echo.pid)
    assert listed() == []
    second = start_broker("-p", str(echo.pid))
    with ubpx.connect(echo.pid) as target:
        assert target.broker == second.path  # type: ignore[attr-defined]
    assert [each["pid"] for each in listed()] == [second.pid]
    third = start_broker("--socket", first.path)  # the socket that it left too
    assert "serving" in third.greeting


def test_list_shows_who_holds_what(start_broker: Any, echo: Program, target_program: StartProgram) -> None:
    """Invariant: brokers, targets, clients, probepoints, leases and holds, for programs and for people."""
    other = target_program("echo", 1)
    brokers = [start_broker("-p", str(echo.pid)), start_broker("-p", str(other.pid))]
    with ubpx.connect(echo.pid) as target:
        counter, logger = target.client("counter"), target.client("logger")
        a = counter.probe("answer", lambda _: None)
        logger.probe(a.address or 0, lambda _: None)
        assert echo.answer(1) == 2
        with logger.hold(echo.pid):
            said = {each["pid"]: each for each in listed()}
            text = run("list").stdout
        assert said.keys() == {broker.pid for broker in brokers}
        (seen,) = said[brokers[0].pid]["targets"]
        assert (seen["pid"], "echo" in seen["command"]) == (echo.pid, True)
        clients = [(each["name"], each["state"], each["pid"], each["leases"]) for each in seen["clients"]]
        assert clients == [("counter", "LIVE", os.getpid(), 1), ("logger", "LIVE", os.getpid(), 1)]
        (place,) = seen["probepoints"]
        assert place["address"] == a.address
        assert [(each["client"], each["spec"], each["hits"]) for each in place["leases"]] == [
            ("counter", "answer", 1),
            ("logger", None, 1),
        ]
        assert seen["holds"] == [{"client": "logger", "thread": echo.pid}]
        (unused,) = said[brokers[1].pid]["targets"]
        assert (unused["clients"], unused["probepoints"], unused["holds"]) == ([], [], [])
        for word in ("counter", "logger", f"process {echo.pid}", f"thread {echo.pid}", brokers[1].path):
            assert word in text


def test_names_from_elsewhere_do_not_reach_the_terminal(start_broker: Any) -> None:
    """Invariant: what a program calls itself may hold escape sequences; what is printed does not."""
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "\x1b[2J\x1b]0;title\x07\nubpx: all is well"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            program.stdout.readline()
            start_broker("-p", str(program.pid))
            said = run("list").stdout
            assert "\\x1b[2J" in said
            assert not any(line.startswith("ubpx: all is well") for line in said.splitlines())
            assert all(each.isprintable() or each == "\n" for each in said)
        finally:
            program.kill()


def test_no_broker_at_all() -> None:
    with pytest.raises(ubpx.NoBroker, match="ubpx serve -p 1"):
        ubpx.connect(1)
    with pytest.raises(ubpx.NoBroker):
        ubpx.connect("/nonexistent/socket")


@pytest.mark.parametrize("kind", ["a file", "nobody listens", "too long", "a directory"])
def test_a_path_that_leads_to_no_broker(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "a file":
        path.write_text("x")
    elif kind == "nobody listens":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.fsencode(os.path.relpath(path)))
    elif kind == "a directory":
        path.mkdir()
    else:
        path = tmp_path / ("x" * 200)
    where = os.path.relpath(path) if kind == "nobody listens" else str(path)
    with pytest.raises((ubpx.NoBroker, ubpx.UsageError)) as refusal:
        ubpx.connect(where)
    assert where in str(refusal.value)
    assert "; " in str(refusal.value)


@pytest.mark.parametrize("says", [b"HTTP/1.1 200 OK\r\n\r\n", b"\xff" * 64, b""])
def test_something_else_listens_there(says: bytes) -> None:
    """Invariant: what answers nonsense, or hangs up, is no broker, and that is said."""
    path = f"/tmp/ubpx-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def answer() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(4096)
                connected.sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises((ubpx.NoBroker, ubpx.BrokerGone, ubpx.UbpxError)) as refusal:
                ubpx.connect(path)
            assert path in str(refusal.value) or "malformed" in str(refusal.value)
        finally:
            thread.join(PATIENCE_S)
            os.unlink(path)
