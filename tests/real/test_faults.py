"""Rows of docs/explanation/faults.md that no other file is about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.conftest import Program, build, changed_text
from ubpx.core.slots import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.real.conftest import StartProgram

UBPX = str(Path(sys.executable).with_name("ubpx"))
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop, and makes namespaces")


# Slots that a thread waits in ---------------------------------------------------------------


def waits_in_read(program: Program) -> bool:
    """Whether it stands in read(2) of its standard input."""
    return Path(f"/proc/{program.pid}/syscall").read_text().startswith("0 0x0 ")


@pytest.fixture
def blocked(target_program: StartProgram, eventually: Callable[..., bool]) -> Program:
    """It waits in a system call, at its own place."""
    program = target_program("blocked")
    assert eventually(lambda: waits_in_read(program))
    return program


def enter_slot(program: Program, lease: ubpx.Lease, eventually: Callable[..., bool]) -> None:
    """Have it arrive at the probed system call, and wait there: in the slot."""
    hits = lease.hits
    program.tell("a")
    assert program.number("read") == ord("a")
    assert eventually(lambda: lease.hits > hits and waits_in_read(program))


@pytest.mark.over_both
def test_a_thread_inside_a_slot_when_the_last_client_leaves(blocked: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: the slot stays until the thread is out of it; a detach takes it out, and its call waits on."""
    maps = blocked.maps()
    with ubpx.attach(blocked.pid) as target:
        client = target.client("last")
        lease = client.probe("probed_syscall", lambda _: None)
        enter_slot(blocked, lease, eventually)
        client.close()
        assert target.slots.retired == 1
        blocked.tell("b")
        assert blocked.number("read") == ord("b")
        assert eventually(lambda: waits_in_read(blocked))
        lease = target.client("another").probe("probed_syscall", lambda _: None)
        enter_slot(blocked, lease, eventually)
    assert eventually(lambda: waits_in_read(blocked))
    blocked.assert_untouched(maps)
    blocked.tell("c")
    assert blocked.number("read") == ord("c")
    assert blocked.tell("q").wait() == 0


def test_a_slot_that_holds_a_blocked_system_call_is_not_freed(
    blocked: Program, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: when retired slots are freed for others, that one is not, however often that happens."""
    freed: list[int] = []
    free_retired = SlotTable.free_retired

    def noting(table: SlotTable, occupied: Iterable[int]) -> int:
        freed.append(free_retired(table, occupied))
        return freed[-1]

    monkeypatch.setattr("ubpx.core.keeper._WORTH_QUIESCING", 1)
    monkeypatch.setattr(SlotTable, "free_retired", noting)
    with ubpx.attach(blocked.pid) as target:
        client = target.client("many")
        lease = client.probe("probed_syscall", lambda _: None)
        enter_slot(blocked, lease, eventually)
        lease.release()
        assert target.slots.retired == 1
        leased = target.slots.leased  # perhaps one where the loader is watched, from the first spec of a module on
        with client.probe_many("libc:*", lambda _: None, strategy="BOOST", skip_refused=True) as group:
            starts = [each.address for each in group if each.address is not None]
        for behind in (4, 0, 4):  # endbr64 is so long
            places = [start + behind for start in starts]
            with client.probe_many(places, lambda _: None, strategy="BOOST", skip_refused=True) as group:
                assert len(group) > 500
        assert sum(freed) > 500, freed
        assert target.slots.leased <= leased + 1
        assert eventually(lambda: waits_in_read(blocked))
        blocked.tell("b")
        assert blocked.number("read") == ord("b")
    assert blocked.tell("q").wait() == 0


def test_doctor_and_list_show_slots_that_nobody_leases(
    blocked: Program, eventually: Callable[..., bool], serve: Any
) -> None:
    """Invariant: of a process that a broker traces they count what is leased, retired and free."""
    broker = serve(blocked)
    with ubpx.connect(broker.path) as target:
        lease = target.client("one").probe("probed_syscall", lambda _: None)
        enter_slot(blocked, lease, eventually)
        assert (target.slots.leased, target.slots.retired) == (1, 0)
        assert ", 0 retired, " in slots_by_doctor(blocked.pid)
        lease.release()
        assert (target.slots.leased, target.slots.retired) == (0, 1)
        told = slots_by_doctor(blocked.pid)
        assert told.startswith("slots: 0 leased, 1 retired (nobody leases them, and a thread may still be in one), ")
        assert told.endswith(f" {target.slots.free} free, 0 of 256 pages for jumps")
        listed = subprocess.run(
            [UBPX, "list", "--socket", broker.path], capture_output=True, text=True, timeout=50, check=False
        )
        assert told in listed.stdout, listed
    blocked.tell("b")
    assert blocked.number("read") == ord("b")


def slots_by_doctor(pid: int) -> str:
    """The finding about slots."""
    command = [UBPX, "doctor", "-p", str(pid), "--json"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    [what] = [each["what"] for each in json.loads(outcome.stdout)["findings"] if each["what"].startswith("slots: ")]
    return str(what)


# Confined programs --------------------------------------------------------------------------


@needs_root
def test_a_seccomp_filter_that_kills_injected_calls(target_program: StartProgram) -> None:
    """Invariant: a program that must not map memory lives; where its filter can be suspended it has slots."""
    program = target_program("confined")
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("answer", lambda _: None, strategy="BOOST")
        assert program.tell("g").number("answer") == 2
        assert lease.hits == 1
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


TRACES = """\
import sys, ubpx
with ubpx.attach(int(sys.argv[1])) as target:
    client = target.client("one")
    try:
        client.probe("answer", lambda _: None, strategy="BOOST")
    except ubpx.SlotsExhausted as refusal:
        print(refusal.reason, flush=True)
    lease = client.probe("answer", lambda _: None)
    print(lease.probepoint.strategy, flush=True)
    sys.stdin.readline()
    print(lease.hits, flush=True)
"""


@needs_root
def test_a_seccomp_filter_that_cannot_be_suspended(target_program: StartProgram) -> None:
    """Invariant: slots are refused then, for that reason, and the instruction is stepped in place; it lives."""
    argv = [*UNPRIVILEGED, str(build("confined"))]
    popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    program = adopted(popen, popen.pid)
    try:
        program.expect("ready")
        maps = program.maps()
        command = [*UNPRIVILEGED, sys.executable, "-c", TRACES, str(program.pid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdin is not None
            assert "seccomp filter" in tracer.stdout.readline()
            assert tracer.stdout.readline() == "INLINE\n"
            assert program.tell("gg").number("answer") == program.number("answer") == 2
            assert tracer.communicate("\n", timeout=50)[0] == "2\n"
        program.assert_untouched(maps)
        assert program.tell("q").wait() == 0
    finally:
        program.end()


def adopted(popen: subprocess.Popen[bytes], pid: int) -> Program:
    """What a Popen has started, itself or by others, as a Program."""
    assert popen.stdin is not None
    assert popen.stdout is not None
    program = Program(pid, os.dup(popen.stdin.fileno()), os.dup(popen.stdout.fileno()), popen)
    popen.stdin.close()
    popen.stdout.close()
    return program


# Other places -------------------------------------------------------------------------------


ELSEWHERE = 'mount -t tmpfs none /mnt && cp "$0" /mnt/elsewhere && exec /mnt/elsewhere 1'


@pytest.fixture
def elsewhere() -> Iterator[Program]:
    """A program in namespaces of its own, at a path that is there alone; pid 1, as it sees itself."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ELSEWHERE, str(build("echo"))]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert popen.stdout is not None
    said = popen.stdout.readline()
    if said != b"ready\n":
        popen.kill()
        popen.communicate()
        pytest.skip("this machine makes no mount and pid namespaces")
    [pid] = map(int, Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text().split())
    program = adopted(popen, pid)
    yield program
    program.end()


@needs_root
def test_another_mount_and_pid_namespace(elsewhere: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: names are found in the program's own file, threads have our numbers, and its text is its own again."""
    assert Path(f"/proc/{elsewhere.pid}/exe").readlink() == Path("/mnt/elsewhere")
    assert not Path("/mnt/elsewhere").exists()
    status = Path(f"/proc/{elsewhere.pid}/status").read_text()
    assert f"NSpid:\t{elsewhere.pid}\t1\n" in status
    maps = elsewhere.maps()
    before = text_of(elsewhere)
    with ubpx.attach(elsewhere.pid) as target:
        seen: list[int] = []
        lease = target.client("one").probe("answer", lambda hit: seen.append(hit.tid))
        in_libc = target.client("two").probe("libc:read", lambda _: None)
        busy = target.client("three").probe("busy", lambda _: None)
        assert [elsewhere.answer(number) for number in range(3)] == [1, 2, 3]
        assert (lease.hits, seen) == (3, [elsewhere.pid] * 3)
        assert eventually(lambda: busy.hits > 3)
        assert in_libc.hits > 0
        assert text_of(elsewhere) != before
    assert text_of(elsewhere) == before
    assert elsewhere.maps() == maps
    assert elsewhere.answer(5) == 6


def text_of(program: Program) -> bytes:
    """Everything executable that a program has mapped from files."""
    found = b""
    with Path(f"/proc/{program.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines():
            span, permissions, _, _, inode, *_ = line.split(maxsplit=5)
            if "x" in permissions and inode != "0":
                start, end = (int(bound, 16) for bound in span.split("-"))
                memory.seek(start)
                found += memory.read(end - start)
    return found


def test_text_in_a_huge_page(target_program: StartProgram) -> None:
    """Invariant: a trap is written, and taken out, there as anywhere; whether the page is huge the kernel decides."""
    program = target_program("huge")
    address = program.number("function")
    maps = program.maps()
    with Path(f"/proc/{program.pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address & -4096)
        before = memory.read(4096)
        with ubpx.attach(program.pid) as target:
            lease = target.client("one").probe(address, lambda _: None, assume_boundary=True)
            for _ in range(20):
                assert program.tell("g").number("answer") == 2
            assert lease.hits == 20
            memory.seek(address)
            assert memory.read(1) == b"\xcc"
        memory.seek(address & -4096)
        assert memory.read(4096) == before
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


# Limits -------------------------------------------------------------------------------------


FEW_DESCRIPTORS = """\
import os, resource, sys, ubpx
with ubpx.attach(int(sys.argv[2])): pass  # everything is loaded by now
taken = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (taken + int(sys.argv[3]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    with ubpx.attach(int(sys.argv[1])) as target:
        target.client("one").probe("answer", lambda _: None)
        sys.stdin.readline()
        print("traced", flush=True)
except (ubpx.UbpxError, OSError) as error:
    print(f"refused: {error}", flush=True)
"""


def test_a_limit_is_met_before_the_first_write(target_program: StartProgram) -> None:
    """Invariant: a tracer without descriptors left attaches or is refused as a whole; the program is as before."""
    program, other = target_program("echo", 2), target_program("echo")
    maps = program.maps()
    said = []
    for left in range(8):
        command = [sys.executable, "-c", FEW_DESCRIPTORS, str(program.pid), str(other.pid), str(left)]
        outcome = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=50, check=False)
        assert outcome.returncode == 0, outcome.stderr
        said.append(outcome.stdout.partition(":")[0].strip())
        program.assert_untouched(maps)
        assert program.answer(left) == left + 1
    assert set(said) == {"traced", "refused"}
    assert said[0] == "refused"
    assert changed_text(other.pid) == []
