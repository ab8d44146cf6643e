"""``ubpx doctor``: says what attaching would say, and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx_ptracepp.diagnosis import of_privilege, of_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import StartProgram

UBPX = str(Path(sys.executable).with_name("ubpx"))
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
PR_SET_DUMPABLE = 4
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root has privileges to drop, and other users' processes"
)


def doctor(pid: int, *, within: tuple[str, ...] = ()) -> tuple[int, list[dict[str, str]]]:
    """Exit status and findings; what is printed for people holds the same."""
    command = [*within, UBPX, "doctor", "-p", str(pid)]
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    as_text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert as_json.stderr == as_text.stderr == ""
    answer = json.loads(as_json.stdout)
    findings: list[dict[str, str]] = answer["findings"]
    assert answer["attachable"] is (as_json.returncode == as_text.returncode == 0)
    assert as_text.stdout.startswith("can attach to " if answer["attachable"] else "cannot attach to ")
    assert all(line.isprintable() for line in as_text.stdout.splitlines())
    return as_json.returncode, findings


def refusal(pid: int, *, within: tuple[str, ...] = ()) -> tuple[str, str]:
    """Cause and remedy of the one finding."""
    status, (finding,) = doctor(pid, within=within)
    assert (status, finding["severity"]) == (1, "REFUSAL")
    assert finding["remedy"]
    return finding["what"], finding["remedy"]


def test_a_free_process_can_be_attached_to(target_program: StartProgram) -> None:
    program = target_program("echo", 2)
    maps = program.maps()
    status, findings = doctor(program.pid)
    assert (status, [finding["severity"] for finding in findings]) == (0, ["FINE"])
    program.assert_untouched(maps)
    with ubpx.attach(program.pid) as target:
        assert target.threads()


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_a_process_under_gdb(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: the tracer is named by pid and command line, and keeps its process."""
    program = target_program("echo")
    command = ["gdb", "-nx", "-q", "-p", str(program.pid)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gdb:
        try:
            status = Path(f"/proc/{program.pid}/status")
            assert eventually(lambda: f"TracerPid:\t{gdb.pid}\n" in status.read_text())
            what, remedy = refusal(program.pid)
            assert what == f"cannot attach to {program.pid}: already traced by {gdb.pid} ({' '.join(command)})"
            assert remedy == "stop that tracer first"
            assert f"TracerPid:\t{gdb.pid}\n" in status.read_text()
        finally:
            gdb.communicate(b"detach\nquit\n", timeout=60)
    assert program.answer(1) == 2
    assert doctor(program.pid)[0] == 0


def test_a_process_that_ubpx_traces(target_program: StartProgram) -> None:
    """Invariant: our own session is a tracer like any other; the probes go on."""
    program = target_program("echo")
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("answer", lambda _: None)
        stops = target.stops
        assert f"already traced by {os.getpid()} (" in refusal(program.pid)[0]
        assert target.stops == stops, "it was disturbed"
        assert program.answer(1) == 2
        assert lease.hits == 1


def test_processes_that_nobody_could_trace(target_program: StartProgram) -> None:
    """Invariant: gone, a zombie, a thread, a kernel thread, an ancestor: each its own cause and remedy."""
    zombie = target_program("brief", 0, 7, ready=False)
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert "; ".join(refusal(zombie.pid)) == str(ubpx.TargetGone(zombie.pid, None))
    assert zombie.wait() == 7
    assert "; ".join(refusal(zombie.pid)) == str(ubpx.NoSuchProcess(zombie.pid))
    program = target_program("echo", 1)
    thread = max(int(entry.name) for entry in Path(f"/proc/{program.pid}/task").iterdir())
    assert refusal(thread) == (f"{thread} is a thread of process {program.pid}", "attach to that")
    assert refusal(os.getpid())[0].startswith(f"{os.getpid()} is an ancestor of this process")
    if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n":
        assert refusal(2) == ("2 (kthreadd) is a kernel thread", "give the pid of a user-space process")


def test_a_leader_that_has_exited_is_no_obstacle(eventually: Callable[..., bool]) -> None:
    """Invariant: a process lives as long as one of its threads does."""
    script = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    script += "ctypes.CDLL(None).syscall(60, 0)"
    with subprocess.Popen([sys.executable, "-c", script]) as program:
        try:
            assert eventually(lambda: "State:\tZ" in Path(f"/proc/{program.pid}/status").read_text())
            assert doctor(program.pid)[0] == 0
        finally:
            program.kill()


def start_as(**options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], **options)


@needs_root
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"user": 65534}, "it belongs to user 65534"),
        ({"group": 65534, "extra_groups": []}, "it runs with group 65534"),
        ({}, "it has capabilities that ubpx has not"),
    ],
)
def test_what_the_kernel_forbids(options: dict[str, Any], cause: str) -> None:
    """Invariant: doctor says no where attaching would, with the same cause; root without its privileges is told so."""
    with start_as(**options) as program:
        try:
            assert doctor(program.pid)[0] == 0, "privileged, we may"
            what, remedy = refusal(program.pid, within=UNPRIVILEGED)
            assert what == f"may not trace {program.pid}: {cause}"
            assert "CAP_SYS_PTRACE" in remedy
            attach = f"import ubpx\ntry: ubpx.attach({program.pid})\nexcept ubpx.PermissionRefused as no: print(no)"
            command = [*UNPRIVILEGED, sys.executable, "-c", attach]
            said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            assert said == f"{what}; {remedy}\n"
        finally:
            program.kill()


@needs_root
def test_a_process_that_is_not_dumpable() -> None:
    """Invariant: what can be found out by opening alone is found out; here nothing else shows it."""
    reading, ready = os.pipe()
    command = [*UNPRIVILEGED, sys.executable, "-c", "import os, ctypes, signal\n"]
    command[-1] += f"ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, 0)\nos.write({ready}, b'r')\nsignal.pause()"
    with subprocess.Popen(command, pass_fds=[ready]) as program:
        try:
            assert os.read(reading, 1) == b"r"
            assert doctor(program.pid)[0] == 0
            assert refusal(program.pid, within=UNPRIVILEGED)[0].startswith(f"may not trace {program.pid}: ")
        finally:
            program.kill()
            os.close(reading)
            os.close(ready)


NOTHING_BUT_READING = """
import sys
from importlib import import_module

touched = []
quiet = ("os.kill", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen", "signal.pthread_kill", "ctypes.dlsym")

def watch(event, arguments):
    if event in quiet or (event == "open" and "/proc/" in str(arguments[0]) and arguments[2] & 3):
        touched.append((event, arguments))

main = import_module("ubpx.cli").main
sys.argv[1:] = ["doctor", "-p", sys.argv[1]]
sys.addaudithook(watch)
try:
    main()
finally:
    assert not touched, touched
"""


def test_doctor_only_reads(target_program: StartProgram) -> None:
    """Invariant: no signal, no ptrace, no process of ours, and nothing below /proc is opened for writing."""
    program = target_program("echo", 1)
    command = [sys.executable, "-c", NOTHING_BUT_READING, str(program.pid)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_of_the_machine() -> None:
    """Invariant: without -p it tells of Python, decoder, kernel and privileges, in text and in JSON."""
    outcome = subprocess.run([UBPX, "doctor"], capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    for part in (
        "can attach to processes of this machine",
        "Python",
        "decoded by",
        os.uname().release,
        "ubpx-ptracepp",
    ):
        assert part in outcome.stdout
    outcome = subprocess.run([UBPX, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(outcome.stdout)["subject"] == "processes of this machine"


def test_what_may_go_wrong_later() -> None:
    """Invariant: a seccomp filter that we cannot suspend, and a shadow stack, are warnings; else nothing is said."""
    root, user = {"CapEff": "000001ffffffffff"}, {"CapEff": "0000000000000000"}
    filtered, shadowed = {"Seccomp": "2"}, {"x86_Thread_features": "shstk"}
    assert of_status({"Seccomp": "0", "x86_Thread_features": ""}, user) == ()
    assert of_status(filtered, root) == ()
    (warning,) = of_status(filtered, user)
    assert (warning.severity, "seccomp" in warning.what) == ("WARNING", True)
    (warning,) = of_status(shadowed, root)
    assert (warning.severity, "shadow stack" in warning.what) == ("WARNING", True)
    assert all(finding.remedy for finding in of_status({**filtered, **shadowed}, user))


def test_what_the_machine_permits() -> None:
    """Invariant: ptrace_scope 3 stops root too; 1 and 2 stop others alone."""
    root, user = {"CapEff": f"{1 << 19:016x}"}, {"CapEff": "0000000000000000"}
    assert [of_privilege(root, scope).severity for scope in range(4)] == ["FINE", "FINE", "FINE", "REFUSAL"]
    assert [of_privilege(user, scope).severity for scope in range(4)] == ["FINE", "WARNING", "WARNING", "REFUSAL"]
    assert "its own descendants" in of_privilege(user, 1).what
