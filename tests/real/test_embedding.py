"""The embedding program's own children keep their exit statuses."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

ENDS = [("q\n", 0), ("x 7\n", 7), (signal.SIGKILL, -9), (signal.SIGTERM, -15)]


def end(
    program_pid: int, popen: subprocess.Popen[bytes], how: str | signal.Signals, tell: Callable[[str], object]
) -> None:
    if isinstance(how, str):
        tell(how)
    else:
        assert popen.pid == program_pid
        popen.send_signal(how)


@pytest.mark.parametrize(("how", "status"), ENDS)
@pytest.mark.parametrize("probed", [True, False], ids=["probed", "attached"])
@pytest.mark.contract("life-7", "child-1")
def test_traced_child_reports_its_true_status(
    target_program: StartProgram, how: str | signal.Signals, status: int, *, probed: bool
) -> None:
    """Invariant: target.wait() and Popen.wait() both tell how a traced child of ours really ended."""
    program = target_program("echo", 3)
    assert program.popen is not None
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        lease = client.probe("busy", lambda _: None) if probed else None
        assert program.answer(1) == 2
        end(program.pid, program.popen, how, program.tell)
        assert target.wait(timeout=10) == status
        assert program.wait(10) == status
        assert target.wait(timeout=1) == status
        assert lease is None or lease.hits >= 0
    assert program.popen.returncode == status


@pytest.mark.parametrize(("how", "status"), ENDS)
@pytest.mark.contract("child-1")
def test_popen_may_wait_first(target_program: StartProgram, how: str | signal.Signals, status: int) -> None:
    """Invariant: it makes no difference to the truth who asks first, the parent or the tracer."""
    program = target_program("echo", 3)
    assert program.popen is not None
    with ubpx.attach(program.pid) as target:
        target.client("one").probe("busy", lambda _: None)
        end(program.pid, program.popen, how, program.tell)
        assert program.wait(10) == status
        assert target.wait(timeout=10) == status


@pytest.mark.parametrize(("how", "status"), ENDS)
@pytest.mark.contract("child-1")
def test_child_reports_its_true_status_after_detach(
    target_program: StartProgram, how: str | signal.Signals, status: int
) -> None:
    """Invariant: a child that was traced and let go ends like one that never was."""
    program = target_program("echo", 3)
    assert program.popen is not None
    with ubpx.attach(program.pid) as target:
        target.client("one").probe("busy", lambda _: None)
        assert program.answer(1) == 2
    assert program.popen.poll() is None
    end(program.pid, program.popen, how, program.tell)
    assert program.wait(10) == status


@pytest.mark.parametrize(("how", "status"), ENDS)
def test_child_that_ends_while_we_let_go(target_program: StartProgram, how: str | signal.Signals, status: int) -> None:
    """Invariant: a child that ends in the midst of a detach keeps its status, and the detach raises nothing."""
    chance = random.Random(status)
    for _ in range(25):
        program = target_program("echo", 3)
        assert program.popen is not None
        target = ubpx.attach(program.pid)
        target.client("one").probe("busy", lambda _: None)
        end(program.pid, program.popen, how, program.tell)
        time.sleep(chance.random() * 0.003)
        target.detach()
        assert program.wait(10) == status


def test_parent_may_ask_while_the_leader_hits(target_program: StartProgram) -> None:
    """Invariant: a parent that polls while its child's own main thread hits never takes a stop for an end."""
    program = target_program("echo")
    assert program.popen is not None
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("answer", lambda _: None)
        for n in range(300):
            program.tell(f"{n}\n")
            assert program.popen.poll() is None, "the tracer's stop was given to the parent"
            assert program.number("answer") == n + 1
        assert lease.hits == 300
        program.tell("x 7\n")
        assert program.wait(10) == 7
        assert target.wait(timeout=10) == 7


@pytest.mark.contract("child-1")
def test_untraced_children_keep_their_statuses(target_program: StartProgram) -> None:
    """Invariant: children that ubpx has nothing to do with are never reaped by it, while hits pour in or not."""
    program = target_program("hot_calls", "probed_lea", 2, 4_000)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        lease = client.probe("probed_lea", lambda _: None)
        program.tell("g")
        for turn in range(25):
            status = turn % 9
            beside = target_program("brief", 0, status, ready=False)
            killed = target_program("brief", 5_000_000, 0, ready=False)
            assert killed.popen is not None
            killed.popen.send_signal(signal.SIGKILL if turn % 2 else signal.SIGTERM)
            assert beside.wait() == status
            assert killed.wait() == (-9 if turn % 2 else -15)
            assert subprocess.run(["sh", "-c", f"exit {status}"], check=False).returncode == status
        assert program.number("calls") == lease.hits == 8_000
    assert program.tell("q").wait() == 0


@pytest.mark.contract("life-7")
def test_attached_process_that_is_no_child(target_program: StartProgram) -> None:
    """Invariant: of a process that is somebody else's child ubpx knows the true status too."""
    parent = target_program("grandchild", 7, ready=False)
    pid = parent.number("child")
    parent.expect("ready")
    with ubpx.attach(pid) as target:
        lease = target.client("one").probe("probed_grand", lambda _: None)
        parent.tell("g")
        assert target.wait(timeout=10) == 7
        assert lease.hits == 10
    assert parent.number("status") == 7
    assert parent.wait() == 0


def test_hot_child_is_killed_many_times(target_program: StartProgram) -> None:
    """Invariant: SIGKILL in the midst of hits, of several threads, is an ordinary end, and shows as one."""
    for turn in range(40):
        program = target_program("hot_calls", ("probed_lea", "probed_indirect")[turn % 2], 4, 1_000_000)
        assert program.popen is not None
        with ubpx.attach(program.pid) as target:
            lease = target.client("one").probe(("probed_lea", "probed_indirect")[turn % 2], lambda _: None)
            program.tell("g")
            while lease.hits < 20 * (turn % 7):
                pass
            program.popen.kill()
            assert program.wait(10) == -9
            assert target.wait(timeout=10) == -9


WAITS: dict[str, Callable[[int, int], object]] = {
    "wait4": lambda pid, options: os.wait4(pid, options)[:2],
    "waitid": lambda pid, options: os.waitid(os.P_PID, pid, options | os.WEXITED),
}


@pytest.mark.parametrize("how", WAITS)
def test_other_waits_for_a_traced_child(target_program: StartProgram, how: str) -> None:
    """Invariant: os.wait4 and os.waitid by pid never show a stop of the tracer's, and tell the true end once."""
    program = target_program("echo", 3)
    ends: list[object] = []
    with ubpx.attach(program.pid) as target:
        target.client("one").probe("busy", lambda _: None)
        for _ in range(300):
            assert WAITS[how](program.pid, os.WNOHANG) in (None, (0, 0))
        waiter = threading.Thread(target=lambda: ends.append(WAITS[how](program.pid, 0)))
        waiter.start()
        assert program.answer(1) == 2
        program.tell("x 7\n")
        waiter.join(20)
        (end,) = ends
        if isinstance(end, os.waitid_result):
            end = (end.si_pid, end.si_status << 8)
        assert end == (program.pid, 7 << 8)
        assert target.wait(timeout=10) == 7
    with pytest.raises(ChildProcessError):
        WAITS[how](program.pid, os.WNOHANG)


def test_waits_are_the_systems_own_again(target_program: StartProgram) -> None:
    """Invariant: when nothing is traced any more, what was replaced is back."""
    originals = (os.waitpid, os.wait4, os.waitid)
    program = target_program("echo")
    with ubpx.attach(program.pid):
        assert (os.waitpid, os.wait4, os.waitid) != originals
    assert (os.waitpid, os.wait4, os.waitid) == originals


def test_doorbell_ends_with_its_program(eventually: Callable[..., bool]) -> None:
    """Invariant: a program that is killed before it traces its doorbell leaves no process behind."""
    script = (
        "import os, signal, ubpx_ptracepp.doorbell as d\n"
        "def request(number, pid, *_): os.write(1, b'%d' % pid); os.kill(os.getpid(), signal.SIGKILL)\n"
        "d.request = request\n"
        "d.Doorbell()\n"
    )
    host = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=30, check=False)
    assert host.returncode == -signal.SIGKILL
    doorbell = Path(f"/proc/{int(host.stdout)}/cmdline")
    assert eventually(lambda: not doorbell.exists() or b"ubpx-doorbell" not in doorbell.read_bytes())


def test_doorbell_maps_no_file() -> None:
    """Invariant: no lock of a library's mappings, which other processes may hold, keeps a ring from being heard."""
    script = (
        "import time, ubpx_ptracepp.doorbell as d\n"
        "from pathlib import Path\n"
        "doorbell = d.Doorbell()\n"
        "proc = Path(f'/proc/{doorbell.pid}')\n"
        "until = time.monotonic() + 20\n"
        "while not (proc / 'cmdline').read_bytes() and time.monotonic() < until:\n"
        "    pass\n"  # the parent of a spawned program goes on before the exec is over
        "assert '.so' not in (proc / 'maps').read_text(), (proc / 'maps').read_text()\n"
        "assert (proc / 'cmdline').read_bytes() == b'ubpx-doorbell\\0'\n"
        "doorbell.close()\n"
        "assert not proc.exists()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


def test_doorbell_where_no_program_runs_without_a_file() -> None:
    """Invariant: a system that refuses to run an anonymous file has a doorbell all the same."""
    script = (
        "import os, signal, ubpx_ptracepp.doorbell as d\n"
        "spawn = os.posix_spawn\n"
        "def refuse(path, *args, **options):\n"
        "    if path.startswith('/proc/'): raise PermissionError(13, 'refused')\n"
        "    return spawn(path, *args, **options)\n"
        "os.posix_spawn = refuse\n"
        "doorbell = d.Doorbell()\n"
        "assert os.readlink(f'/proc/{doorbell.pid}/exe').startswith('/')\n"
        "doorbell.ring()\n"
        "assert os.waitid(os.P_ALL, 0, d.WAIT_THREAD | os.WSTOPPED | os.WEXITED).si_pid == doorbell.pid\n"
        "doorbell.rearm()\n"
        "doorbell.close()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0
