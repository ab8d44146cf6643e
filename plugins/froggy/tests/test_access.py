"""Who may do what to which target: against processes with real credentials, and the kernel's own verdict on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from unittest.mock import Mock

import pytest

import ubpx
from ubpx_froggy.broker import access
from ubpx_froggy.broker.access import Peer, check_target

USER: Final = 54321
OTHER: Final = 54322
PATIENCE_S: Final = 30

# What a program of these tests begins with: it starts as root, and becomes another.
PREAMBLE: Final = """
import ctypes, os, sys, threading
from ubpx import UbpxError
from ubpx_froggy.broker import access
libc = ctypes.CDLL(None, use_errno=True)
def prctl(*arguments):
    assert libc.prctl(*arguments, *[0] * (5 - len(arguments))) == 0, os.strerror(ctypes.get_errno())
def set_capabilities(mask):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = (mask & 0xFFFFFFFF, mask >> 32)
    data = (ctypes.c_uint32 * 6)(*[word for word in words for _ in range(3)])
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
def become(uids, gids, capabilities=0, ambient=False):
    os.setgroups([])
    os.setresgid(*gids)
    prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setresuid(*uids)
    set_capabilities(capabilities)
    for number in range(41):
        if ambient and capabilities >> number & 1:
            prctl(47, 2, number)  # PR_CAP_AMBIENT_RAISE
    prctl(4, 1)  # PR_SET_DUMPABLE: a change of ids has taken it
"""
NET_RAW: Final = 1 << 13
SYS_PTRACE: Final = 1 << 19

TARGETS: Final = {
    "as the peer": "become([54321] * 3, [54321] * 3)",
    "real uid": "become([54322, 54321, 54321], [54321] * 3)",
    "effective uid": "become([54321, 54322, 54321], [54321] * 3)",
    "saved uid": "become([54321, 54321, 54322], [54321] * 3)",
    "real gid": "become([54321] * 3, [54322, 54321, 54321])",
    "effective gid": "become([54321] * 3, [54321, 54322, 54321])",
    "saved gid": "become([54321] * 3, [54321, 54321, 54322])",
    "another user": "become([54322] * 3, [54322] * 3)",
    "root": "pass",
    "capabilities": "become([54321] * 3, [54321] * 3, 1 << 13)",
    "not dumpable": "become([54321] * 3, [54321] * 3); prctl(4, 0)",
    "supplementary groups": "os.setgroups([54322]); os.setgroups = lambda _: None; become([54321] * 3, [54321] * 3)",
}
ALLOWED: Final = {"as the peer", "supplementary groups"}

Start = Callable[[str], "subprocess.Popen[str]"]


def peer(uid: int = USER, gid: int = USER) -> Peer:
    return Peer(uid=uid, gid=gid, pid=4711)


def run_python(code: str, *arguments: str) -> str:
    """What a program that begins with PREAMBLE prints."""
    outcome = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("starts processes of other users, which root alone may")


@pytest.fixture
def start(root: None) -> Iterator[Start]:
    """Starts a program that has made itself what the code says; all end with the test."""
    programs: list[subprocess.Popen[str]] = []

    def start_(code: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code + "\nprint('ready', flush=True)\nsys.stdin.read()"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        programs.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        return program

    yield start_
    for program in programs:
        program.kill()
        program.communicate(timeout=PATIENCE_S)


@pytest.fixture
def sleeper(root: None) -> Iterator[Callable[..., int]]:
    """Starts a command as USER, and gives its pid."""
    programs: list[subprocess.Popen[bytes]] = []

    def start_(*command: str, gid: int = USER) -> int:
        program = subprocess.Popen(command or ("sleep", "300"), user=USER, group=gid, extra_groups=[])
        programs.append(program)
        until = time.monotonic() + PATIENCE_S
        # We see its exec a moment before that is over, and it is dumpable; then it sleeps soon, or has ended.
        while Path(f"/proc/{program.pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"SZ":
            assert time.monotonic() < until
            time.sleep(0.001)
        return program.pid

    yield start_
    for program in programs:
        program.kill()
        program.communicate(timeout=PATIENCE_S)


@pytest.fixture
def yama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the check reads the scope; no such file yet, as without Yama."""
    monkeypatch.setattr(access, "_YAMA_SCOPE", tmp_path / "ptrace_scope")
    return tmp_path / "ptrace_scope"


KERNEL: Final = f"""
become([{USER}] * 3, [{USER}] * 3)
libc.ptrace.argtypes = [ctypes.c_long] * 4
seize, pid = 0x4206, int(sys.argv[1])
print("refused" if libc.ptrace(seize, pid, 0, 0) else "allowed")
"""  # what is seized is let go when its tracer ends


@pytest.mark.parametrize("kind", TARGETS)
def test_the_verdict_is_the_kernels(kind: str, start: Start) -> None:
    """Invariant: a broker of root refuses to a peer exactly what the kernel would."""
    target = start(TARGETS[kind])
    try:
        check_target(peer(), target.pid)
        verdict = "allowed"
    except ubpx.PermissionRefused:
        verdict = "refused"
    assert verdict == run_python(KERNEL, str(target.pid))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("saved uid", f"runs as real user {USER}, effective user {USER}, saved user {OTHER}, not {USER}"),
        ("another user", f"runs as user {OTHER}, not {USER}"),
        ("root", f"runs as user 0, not {USER}"),
        ("effective gid", f"with real group {USER}, effective group {OTHER}, saved group {USER}, not {USER}"),
        ("capabilities", rf"has capabilities \({NET_RAW:#x}\)"),
        ("not dumpable", "not dumpable"),
    ],
)
def test_a_refusal_names_its_cause(kind: str, cause: str, start: Start, yama: Path) -> None:
    target = start(TARGETS[kind])
    with pytest.raises(ubpx.PermissionRefused, match=cause) as refusal:
        check_target(peer(), target.pid)
    assert refusal.value.pid == target.pid
    assert refusal.value.remedy == "connect as root"


@pytest.mark.parametrize("kind", TARGETS)
def test_root_may_trace_all(kind: str, start: Start, yama: Path) -> None:
    yama.write_text("2\n")
    check_target(peer(0, 0), start(TARGETS[kind]).pid)


def test_the_peers_own_ids_decide(sleeper: Callable[..., int], yama: Path) -> None:
    """Invariant: neither the group nor the user alone is enough, and a pid never is."""
    pid = sleeper(gid=OTHER)
    check_target(peer(USER, OTHER), pid)
    for refused in (peer(USER, USER), peer(OTHER, OTHER), Peer(uid=OTHER, gid=OTHER, pid=pid)):
        with pytest.raises(ubpx.PermissionRefused):
            check_target(refused, pid)


def test_one_thread_with_other_credentials_is_enough(start: Start, yama: Path) -> None:
    """Invariant: a leader that has given up root's credentials does not speak for a thread that has not."""
    target = start(
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"assert libc.syscall(117, {USER}, {USER}, {USER}) == 0\n"  # setresuid, of this thread alone
        "prctl(4, 1)"
    )
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t" in Path(f"/proc/{target.pid}/status").read_text()
    with pytest.raises(ubpx.PermissionRefused, match="runs as user 0"):
        check_target(peer(USER, 0), target.pid)


def test_a_leader_that_has_exited_does_not_speak_for_the_others(start: Start, yama: Path) -> None:
    """Invariant: the files of an exited leader belong to root, and that makes no program non-dumpable."""
    target = start(
        f"become([{USER}] * 3, [{USER}] * 3)\n"
        "def live():\n"
        "    while '\\nState:\\tZ' not in open('/proc/self/status').read(): pass\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "threading.Thread(target=live).start()\n"
        "libc.syscall(60, 0)"  # exit, of this thread alone
    )
    assert os.stat(f"/proc/{target.pid}/maps").st_uid == 0
    check_target(peer(), target.pid)


def test_a_name_like_a_line_of_the_status_changes_nothing(start: Start, yama: Path) -> None:
    target = start("become([0] * 3, [0] * 3); prctl(15, b'\\rUid:5 5 5 5')")
    assert b"Name:\t\rUid:5 5 5 5\n" in Path(f"/proc/{target.pid}/status").read_bytes()
    with pytest.raises(ubpx.PermissionRefused, match="runs as user 0"):
        check_target(peer(5, 0), target.pid)


def test_another_user_namespace_is_refused(sleeper: Callable[..., int], yama: Path) -> None:
    """Invariant: capabilities of another namespace are not weighed against the peer's; it is left alone."""
    pid = unshared(sleeper, "-U")
    with pytest.raises(ubpx.PermissionRefused, match="user namespace"):
        check_target(peer(), pid)


def unshared(sleeper: Callable[..., int], *options: str) -> int:
    """The pid of a program in a user namespace that USER has made."""
    pid = sleeper("unshare", *options, "sleep", "300")
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            pytest.skip("this machine lets ordinary users make no user namespaces")
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return pid


def test_no_process_has_the_pid() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(PATIENCE_S)
    for pid in (ended.pid, 0, -1, 1 << 40):
        with pytest.raises(ubpx.NoSuchProcess) as refusal:
            check_target(peer(), pid)
        assert refusal.value.pid == pid


def test_a_process_that_is_not_yet_waited_for_is_gone() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ubpx.NoSuchProcess):
            check_target(peer(), ended.pid)
    finally:
        ended.wait(PATIENCE_S)


def test_a_process_that_has_given_its_memory_back_is_gone(
    sleeper: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a process on its way out, whose files belong to root by then, is not said to be non-dumpable."""
    pid = sleeper()
    owner_of_all = os.stat("/proc/1")
    monkeypatch.setattr(os, "stat", lambda path: owner_of_all)
    with pytest.raises(ubpx.PermissionRefused, match="not dumpable"):
        check_target(peer(), pid)
    read = Path.read_bytes

    def without_memory(path: Path) -> bytes:
        return b"".join(line for line in read(path).splitlines(keepends=True) if not line.startswith(b"Vm"))

    monkeypatch.setattr(Path, "read_bytes", without_memory)
    with pytest.raises(ubpx.NoSuchProcess):
        check_target(peer(), pid)


def test_what_cannot_be_read_is_refused(
    sleeper: Callable[..., int], yama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: an error that does not mean "gone", and a text that is no status, refuse."""
    pid, parse = sleeper(), access._credentials_in
    check_target(peer(), pid)
    with monkeypatch.context() as patch:
        patch.setattr(access, "_credentials_in", lambda tid, _: parse(tid, b"Name:\tsleep\nState:\tS\nUid:\t1\n"))
        with pytest.raises(ubpx.PermissionRefused, match="cannot be read"):
            check_target(peer(), pid)
    refuse = Mock(side_effect=PermissionError(13, "Permission denied"))
    for name in ("listdir", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(ubpx.PermissionRefused, match="cannot be read"):
                check_target(peer(), pid)


YAMA: Final = {
    "1\n": "is 1, and a socket does not prove that its peer is an ancestor",
    "2\n": "ptrace_scope is 2",
    "3\n": "ptrace_scope is 3",
    "-1\n": "ptrace_scope is -1",
    "x\n": "cannot be read",
    "": "cannot be read",
}


def test_yama(sleeper: Callable[..., int], yama: Path) -> None:
    """Invariant: scope 0 and no Yama allow; every other scope refuses, and so does what is not understood."""
    pid = sleeper()
    assert not yama.exists()
    check_target(peer(), pid)
    for scope, cause in YAMA.items():
        yama.write_text(scope)
        with pytest.raises(ubpx.PermissionRefused, match=cause):
            check_target(peer(), pid)
        check_target(peer(0, 0), pid)
    yama.write_text("0\n")
    check_target(peer(), pid)
    yama.unlink()
    yama.mkdir()
    with pytest.raises(ubpx.PermissionRefused, match="cannot be read"):
        check_target(peer(), pid)


ASKED: Final = """
from pathlib import Path
access._YAMA_SCOPE = Path("/dev/null")  # says nothing: who is asked for it is refused
try:
    access.check_target(access.Peer(uid=int(sys.argv[1]), gid=int(sys.argv[2]), pid=1), int(sys.argv[3]))
    print("allowed")
except UbpxError as error:
    print(error)
"""


def answer(asked: Peer, pid: int, *, broker: str = TARGETS["as the peer"]) -> str:
    """What a broker says that has made itself what the code says."""
    return run_python(broker + ASKED, str(asked.uid), str(asked.gid), str(pid))


@pytest.mark.parametrize("kind", ["as the peer", "not dumpable", "supplementary groups"])
def test_the_brokers_own_user_may_trace_what_the_kernel_lets_it(kind: str, start: Start) -> None:
    """Invariant: dumpable, Yama and the group of the peer are the kernel's business, at the broker's own attach."""
    target = start(TARGETS[kind])
    assert answer(peer(USER, OTHER), target.pid) == "allowed"


@pytest.mark.parametrize("kind", sorted(set(TARGETS) - ALLOWED - {"not dumpable"}))
def test_the_brokers_own_user_may_not_trace_what_has_gained(kind: str, start: Start) -> None:
    """Invariant: other ids or capabilities, as after the exec of a set-uid program, are refused."""
    target = start(TARGETS[kind])
    assert answer(peer(), target.pid).startswith(f"may not trace {target.pid}: it ")


def test_what_has_ended_is_gone_for_the_brokers_own_user_too(sleeper: Callable[..., int]) -> None:
    """Invariant: what has no thread is not allowed for want of a thread to object to."""
    pid = sleeper("true")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert answer(peer(), pid).startswith("no process has pid")


def test_others_gain_nothing_by_a_users_broker(sleeper: Callable[..., int]) -> None:
    pid = sleeper()
    assert "not 54322" in answer(peer(OTHER, OTHER), pid)
    assert answer(peer(0, 0), pid) == "allowed"


def test_capabilities_of_the_session_are_no_gain(start: Start) -> None:
    """Invariant: what the broker was given with its session its user's programs may have; what it got else, not."""
    session = f"become([{USER}] * 3, [{USER}] * 3, {NET_RAW}, ambient=True)\n"
    file = f"become([{USER}] * 3, [{USER}] * 3, {NET_RAW})\n"
    target = start(session)
    assert answer(peer(), target.pid, broker=session) == "allowed"
    for broker in (file, TARGETS["as the peer"]):
        assert "it has capabilities" in answer(peer(), target.pid, broker=broker)


def test_a_broker_with_the_capability_to_trace_all_asks_as_roots_does(start: Start) -> None:
    """Invariant: where the kernel lets the broker do more than the peer, its attach proves nothing."""
    privileged = f"become([{USER}] * 3, [{USER}] * 3, {SYS_PTRACE}, ambient=True)\n"
    target = start(TARGETS["not dumpable"])
    assert "not dumpable" in answer(peer(), target.pid, broker=privileged)
    assert answer(peer(), target.pid) == "allowed"


def test_a_namespace_of_the_users_own_is_no_gain(sleeper: Callable[..., int]) -> None:
    """Invariant: capabilities in a namespace that the program has made are nothing to its user."""
    pid = unshared(sleeper, "-U", "--map-root-user")
    permitted = Path(f"/proc/{pid}/status").read_text().partition("CapPrm:")[2].split()[0]
    assert int(permitted, 16) != 0
    assert answer(peer(), pid) == "allowed"
