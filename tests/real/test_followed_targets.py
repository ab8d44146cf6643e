"""Followed children as targets: their clients and leases, hooks, programs of every day, and ``ubpx trace``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.conftest import changed_text
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.real.conftest import Program, StartProgram

PLACE = "probed_family"
UBPX = str(Path(sys.executable).with_name("ubpx"))


def caught_child(target: ubpx.Target, program: Program, eventually: Callable[..., bool]) -> ubpx.Target:
    """The target of the child that ``grandchild`` makes, which waits for a byte."""
    assert eventually(lambda: target.children)
    return target.children[0]


@pytest.mark.contract("follow-6", "follow-10")
def test_a_followed_child_is_a_target_of_the_session(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: it has clients and leases of its own, its own memory, threads and end; the parent has not."""
    target, program = target_program.spawned(ubpx.spawn, "grandchild", 6, follow="fork")
    with target:
        client = target.client("one", priority=7)
        lease = client.probe("probed_grand", lambda _: None)
        target.resume()
        pid = program.number("child")
        child = caught_child(target, program, eventually)
        assert (child.pid, child.children, target.family) == (pid, (), (child,))
        (own,) = child.clients()
        assert (own.name, own.priority, own.target) == ("one", 7, child)
        (inherited,) = own.leases
        assert (inherited.spec, inherited.state, inherited.address) == (lease.spec, "ARMED", lease.address)
        assert inherited.probepoint is not lease.probepoint
        more = child.client("two").probe("probed_grand", lambda _: None)
        program.expect("ready")
        program.tell("g")
        assert child.wait(timeout=20) == 6
        assert (lease.hits, inherited.hits, more.hits, lease.family_hits) == (0, 10, 10, 10)
        assert target.family == ()
        assert program.number("status") == 6
        assert target.wait(timeout=20) == 0


@pytest.mark.contract("follow-12")
def test_the_end_of_a_client_is_its_end_in_the_children(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: closing, and quarantine, of the parent's client sweep the child's; another's leases stay."""
    target, program = target_program.spawned(ubpx.spawn, "grandchild", 6, follow="fork")
    with target:
        closed, expelled, stays = (target.client(name) for name in ("closed", "expelled", "stays"))
        for client in (closed, expelled, stays):
            client.probe("probed_grand", lambda _: None)
        target.resume()
        program.number("child")
        program.expect("ready")
        child = caught_child(target, program, eventually)
        leases = {client.name: client.leases[0] for client in child.clients()}
        closed.close()
        expelled.expel("a test")
        states = {name: str(lease.state) for name, lease in leases.items()}
        assert states == {"closed": "RELEASED", "expelled": "QUARANTINED", "stays": "ARMED"}
        assert leases["stays"].probepoint is not None
        assert leases["stays"].probepoint.clients == ("stays",)
        program.tell("g")
        assert child.wait(timeout=20) == 6
        assert {name: lease.hits for name, lease in leases.items()} == {"closed": 0, "expelled": 0, "stays": 10}


@pytest.mark.contract("follow-10")
def test_a_child_stays_when_its_parent_is_left_and_goes_with_the_session(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: leaving the parent leaves a followed child traced; leaving the session leaves it as it was."""
    with ubpx.Session() as session:
        target, program = target_program.spawned(session.spawn, "grandchild", 6, follow="fork")
        target.client("one").probe("probed_grand", lambda _: None)
        target.resume()
        program.number("child")
        program.expect("ready")
        child = caught_child(target, program, eventually)
        inherited = child.clients()[0].leases[0]
        target.detach()
        assert session.targets == (child,)
        assert inherited.state == "ARMED"
        child.client("two").probe("probed_grand", lambda _: None)
    assert inherited.state == "RELEASED"
    program.tell("g")
    assert program.number("status") == 6


@pytest.mark.contract("follow-7")
def test_handlers_see_the_childs_own_memory_and_may_hold_it(
    target_program: StartProgram, eventually: Callable[..., bool]
) -> None:
    """Invariant: ``hit.memory``, registers and holds at a child's hit are the child's."""
    seen: list[tuple[int, int]] = []

    def handler(hit: ubpx.Hit) -> ubpx.Verdict | None:
        seen.append((hit.pid, int.from_bytes(hit.memory.read(hit.regs.rsp, 8), "little")))
        return ubpx.Verdict.HOLD if len(seen) == 3 else None

    target, program = target_program.spawned(ubpx.spawn, "grandchild", 6, follow="all")
    with target:
        target.client("one").probe("probed_grand", handler)
        target.resume()
        pid = program.number("child")
        program.expect("ready")
        child = caught_child(target, program, eventually)
        program.tell("g")
        assert eventually(child.holds)
        (hold,) = child.holds()
        assert (hold.owner, hold.process, target.holds()) == ("one", pid, ())
        assert child.registers(pid)["rip"] == child.clients()[0].leases[0].address
        hold.release()
        assert child.wait(timeout=20) == 6
    assert {each for each, _ in seen} == {pid}
    assert len({word for _, word in seen}) == 1  # the one place that calls it
    assert len(seen) == 10


# Hooks ---------------------------------------------------------------------------------------


class Listening:
    """A client's hooks that probe whatever they hear of."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.hits: Counter[int] = Counter()

    @hookimpl
    def ubpx_process_attached(self, client: Any, process: Any) -> None:
        self.told.append(("attached", process.pid, len(client.leases)))
        client.probe(PLACE, lambda hit: self.hits.update([hit.pid]))

    @hookimpl
    def ubpx_process_forked(self, client: Any, process: Any, child: int) -> None:
        children = {each.pid for each in client.target.children}
        self.told.append(("forked", process.pid, child))
        assert child in children

    @hookimpl
    def ubpx_process_exited(self, process: Any, status: int) -> None:
        self.told.append(("exited", process.pid, status))


@pytest.mark.contract("follow-13")
def test_hooks_hear_of_followed_children_and_probe_them_once(target_program: StartProgram) -> None:
    """Invariant: a hook that probes each process it hears of has one lease in each, and misses no call of any."""
    program = target_program("followed", "tree", 2, 3)
    hooks = Listening()
    with ubpx.attach(program.pid, follow="fork") as target:
        client = target.client("one", hooks=hooks)
        by_hand = client.probe(PLACE, lambda _: None)
        calls, members = program.tell("g").number("calls"), program.number("processes")
    assert program.tell("q").wait() == 0
    assert (hooks.hits.total(), len(hooks.hits)) == (calls, members)
    assert by_hand.family_hits == calls
    attached = [pid for kind, pid, _ in hooks.told if kind == "attached"]
    forked = [child for kind, _, child in hooks.told if kind == "forked"]
    assert attached[0] == program.pid
    assert sorted(attached[1:]) == sorted(forked)
    assert [status for kind, _, status in hooks.told if kind == "exited"].count(1) == 8  # the youngest generation


def test_hooks_of_spawned_children_hear_at_the_entry_point(target_program: StartProgram) -> None:
    """Invariant: a child that comes by an exec is told of when its libraries are mapped, as a started program is."""
    mapped: list[bool] = []

    class Hooks:
        @hookimpl
        def ubpx_process_attached(self, client: Any, process: Any) -> None:
            mapped.append(any("libc.so" in each.path for each in process.mappings()))
            client.probe("libc:getpid", lambda _: None, defer=False)

    program = target_program("followed", "spawn", 3, 2)
    with ubpx.attach(program.pid, follow="all") as target:
        target.client("one", hooks=Hooks())
        program.tell("g").number("calls")
        program.number("processes")
    assert mapped == [True] * 4
    assert program.tell("q").wait() == 0


# Programs of every day ------------------------------------------------------------------------


def traced_calls(command: list[str], spec: str, whom: Any = "all", **options: Any) -> tuple[Counter[int], int]:
    """The hits of a spec by pid in what a command makes of itself, and its exit status."""
    by_pid: Counter[int] = Counter()
    target = ubpx.spawn(command, follow=whom, **options)
    with target:
        target.client("one").probe(spec, lambda hit: by_pid.update([hit.pid]))
        status = target.wait(timeout=60)
        while target.family:
            time.sleep(0.01)
    assert status is not None
    return by_pid, status


def test_a_shells_pipeline(tmp_path: Path) -> None:
    """Invariant: in a pipeline of bash each program's execs are followed, and its output is what it is without."""
    bash = shutil.which("bash")
    assert bash is not None
    script = "for i in 1 2 3; do echo $i; done | sort -r | { cat; /bin/echo last; } | /usr/bin/env cat"
    out = tmp_path / "out"
    with out.open("wb") as stream:
        entries, status = traced_calls([bash, "-c", script], "libc:__libc_start_main", stdout=stream)
    assert status == 0
    assert out.read_text() == "3\n2\n1\nlast\n"
    assert sorted(entries.values()) == [1, 1, 1, 1, 2]  # bash, sort, cat, echo; env and then cat


@pytest.mark.parametrize("closing", [True, False])
def test_pythons_subprocess(closing: bool) -> None:
    """Invariant: children of ``subprocess``, by vfork or by fork, are followed and their statuses are told."""
    code = (
        "import subprocess, sys\n"
        f"runs = [subprocess.run(['/bin/sh', '-c', f'exit {{n}}'], close_fds={closing}).returncode for n in range(5)]\n"
        "sys.exit(0 if runs == [0, 1, 2, 3, 4] else 1)\n"
    )
    starts, status = traced_calls([sys.executable, "-c", code], "libc:__libc_start_main")
    assert status == 0
    assert sorted(starts.values()) == [1] * 6


# The command ----------------------------------------------------------------------------------


def run_trace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [UBPX, "trace", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def counts(words: Iterable[str]) -> str:
    """The last line that ``--count --json`` prints."""
    return list(words)[-1]


@pytest.mark.contract("follow-14")
def test_trace_follows(target_program: StartProgram, tmp_path: Path) -> None:
    """Invariant: ``ubpx trace --follow all`` counts the family, to the end of its last member."""
    marker = tmp_path / "done"
    late = f"(sleep 0.3; /bin/true; : > {marker}) & exec /bin/true"
    start = "libc:__libc_start_main"
    done = run_trace("-e", start, "--count", "--json", "--follow", "all", "--", "/bin/sh", "-c", late)
    assert (done.returncode, done.stderr) == (0, "")
    assert counts(done.stdout.splitlines()) == f'{{"counts": {{"{start}": 4}}}}'
    assert marker.exists()


@pytest.mark.contract("follow-14")
def test_trace_leaves_at_exec(tmp_path: Path) -> None:
    """Invariant: with ``--follow none`` the trace ends with CMD though it was left at its exec."""
    marker = tmp_path / "done"
    script = f"exec /bin/sh -c 'sleep 0.3; : > {marker}'"
    done = run_trace("-e", "libc:execve", "--count", "--json", "--follow", "none", "--", "/bin/sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert counts(done.stdout.splitlines()) == '{"counts": {"libc:execve": 1}}'
    assert marker.exists()


def test_ctrl_c_leaves_the_whole_family(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: with ``-p`` an interrupt amid forks leaves parent and children running on as before."""
    program = target_program("followed", "threads", 8, 40)
    command = [UBPX, "trace", "-e", PLACE, "--count", "--follow", "all", "-p", str(program.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trace:
        assert eventually(lambda: changed_text(program.pid))
        program.tell("g")
        time.sleep(0.1)
        trace.send_signal(signal.SIGINT)
        assert trace.communicate(timeout=20)[1] == ""
    assert trace.returncode == 0
    assert program.number("calls", timeout=60) == 40 * (1 + 8 * 10 * 2)
    program.number("processes")
    assert program.tell("q").wait() == 0
