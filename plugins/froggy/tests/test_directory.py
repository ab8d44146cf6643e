"""The run directory: who is found, what is refused, and what is ignored, with real processes and a real full disk."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import ubpx
from ubpx_froggy import directory
from ubpx_froggy.directory import (
    Identity,
    announce,
    brokers,
    find_broker,
    identity_of,
    open_directory,
    register,
    run_directory,
    unregister,
    withdraw,
)

USER: Final = 54321
PATIENCE_S: Final = 30
SOCKET: Final = Path("/run/user/0/ubpx/1.sock")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users or mounts, which root alone may")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our run directory, open; root's is another one, and not there yet."""
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(directory, "ROOT_DIRECTORY", tmp_path / "root")
    return open_directory(for_everybody=False)


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs; all end with the test."""
    programs: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        programs.append(
            subprocess.Popen(
                command or ("sleep", "300"),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return programs[-1]

    yield start
    for each in programs:
        each.kill()
        each.communicate(timeout=PATIENCE_S)


BROKER: Final = """
import sys
from pathlib import Path
import ubpx
from ubpx_froggy import directory
place, pid = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
try:
    directory.announce(place, "/its.sock")
    directory.register(place, pid, "/its.sock")
    print("registered", flush=True)
except ubpx.AlreadyTraced as refusal:
    print(refusal.tracer_pid, refusal.broker, flush=True)
sys.stdin.read()
"""

Program = Callable[..., "subprocess.Popen[str]"]


def another_broker(program: Program, place: Path, pid: int) -> subprocess.Popen[str]:
    """A broker that registers the process when it is told to go on."""
    broker = program(sys.executable, "-c", BROKER, str(place), str(pid), "\x1b[2J")
    assert broker.stdout is not None
    assert broker.stdout.readline() == "ready\n"
    return broker


def go_on(broker: subprocess.Popen[str]) -> str:
    """What became of its registration."""
    assert broker.stdin is not None
    assert broker.stdout is not None
    broker.stdin.write("\n")
    broker.stdin.flush()
    return broker.stdout.readline().strip()


def identity(pid: int) -> Identity:
    found = identity_of(pid)
    assert found is not None
    return found


def content(**changes: Any) -> dict[str, Any]:
    """What an entry's file holds if we are the process as well as its broker."""
    ours = identity(os.getpid())
    fields = {"pid": ours.pid, "start": ours.start, "broker_pid": ours.pid, "broker_start": ours.start}
    return {**fields, "socket": str(SOCKET), **changes}


def plant(place: Path, **changes: Any) -> Path:
    """An entry that somebody has written."""
    path = place / "processes" / f"{os.getpid()}.json"
    path.write_text(json.dumps(content(**changes)))
    path.chmod(0o600)
    return path


def in_folders(place: Path) -> list[str]:
    return sorted(path.name for folder in ("processes", "brokers") for path in (place / folder).iterdir())


def test_the_run_directory_is_roots_or_the_sessions_or_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UBPX_RUN_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_directory(0) == Path("/run/ubpx")
    assert run_directory() == (Path("/run/ubpx") if os.geteuid() == 0 else tmp_path / "ubpx")
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    owner = os.getuid() or USER
    if os.getuid() == 0:
        os.chown(tmp_path, USER, USER)
    assert run_directory(owner) == tmp_path / "ubpx"
    assert run_directory(owner + 1) == Path(f"/tmp/ubpx-{owner + 1}")  # after su: it is another's
    monkeypatch.chdir(tmp_path.parent)
    for none_of_ours in ("", tmp_path.name, str(tmp_path / "nowhere")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", none_of_ours)
        assert run_directory(USER) == Path("/tmp/ubpx-54321")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_directory() == Path("/tmp/ubpx-54321")


def test_a_run_directory_may_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(tmp_path))
    assert run_directory(0) == run_directory(USER) == tmp_path
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", "run")
    with pytest.raises(ubpx.UsageError, match="UBPX_RUN_DIRECTORY is 'run', which is not absolute"):
        run_directory()


@pytest.mark.parametrize("for_everybody", [False, True])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_are_as_promised_whatever_the_umask(
    for_everybody: bool, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, file = (0o755, 0o644) if for_everybody else (0o700, 0o600)
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(tmp_path / "run"))
    before = os.umask(umask)
    try:
        place = open_directory(for_everybody=for_everybody)
        paths = [register(place, os.getpid(), SOCKET).path, announce(place, SOCKET).path]
    finally:
        os.umask(before)
    assert place == tmp_path / "run"
    for folder in (place, place / "processes", place / "brokers"):
        assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [file, file]
    assert stat.S_IMODE((place / "lock").stat().st_mode) == 0o600  # who may open it may hold it


def test_a_directory_is_not_closed_to_others_while_a_broker_lives_in_it(place: Path) -> None:
    open_directory(for_everybody=True)
    entry = announce(place, SOCKET)
    open_directory(for_everybody=False)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    withdraw(entry)
    open_directory(for_everybody=False)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("which", ["", "processes", "brokers"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symbolic link", "Not a directory; remove it, if it is a file or a symbolic link, or set"),
        ("file", "Not a directory; remove it, if it is a file or a symbolic link, or set"),
        (0o770, "others may write there"),
        (0o1707, "others may write there"),
        pytest.param("another's", "belongs to user 54321", marks=needs_root),
    ],
)
@pytest.mark.parametrize("for_everybody", [False, True])
def test_what_another_may_have_made_is_refused(
    which: str, kind: str | int, reason: str, for_everybody: bool, place: Path
) -> None:
    """Invariant: it is left as it is, and nothing in it is read or written."""
    path = place / which
    if kind in {"symbolic link", "file"}:
        shutil.rmtree(path)
        path.symlink_to(path.parent) if kind == "symbolic link" else path.touch()
    elif kind == "another's":
        os.chown(path, USER, USER)
    else:
        path.chmod(int(kind))
    before = path.lstat().st_mode
    with pytest.raises(ubpx.UsageError, match=reason) as refusal:
        open_directory(for_everybody=for_everybody)
    assert str(path) in str(refusal.value)
    assert "set UBPX_RUN_DIRECTORY to" in str(refusal.value)
    assert path.lstat().st_mode == before
    if which != "brokers":
        with pytest.raises(ubpx.UsageError):
            register(place, os.getpid(), SOCKET)
        assert find_broker(os.getpid()) is None
    if which != "processes":
        with pytest.raises(ubpx.UsageError):
            announce(place, SOCKET)
        assert brokers() == []


def test_a_directory_without_a_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(tmp_path / "no" / "such"))
    with pytest.raises(ubpx.UsageError, match="no/such: No such file or directory"):
        open_directory(for_everybody=False)
    assert find_broker(os.getpid()) is None
    assert brokers() == []


def test_an_identity_is_the_kernels(program: Program) -> None:
    """Invariant: a start time is field 22, also of a program with a parenthesis in its name, and no other pid's."""
    sleeper = program(
        sys.executable, "-c", "import time; open('/proc/self/comm', 'w').write('a) Z 1'); time.sleep(300)"
    )
    while Path(f"/proc/{sleeper.pid}/comm").read_text() != "a) Z 1\n":
        time.sleep(0.005)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    found = identity(sleeper.pid)
    assert found.pid == sleeper.pid
    assert uptime - 30 < found.start / os.sysconf("SC_CLK_TCK") <= uptime + 1
    assert found.is_alive
    assert not attrs.evolve(found, start=found.start - 1).is_alive


def test_who_has_ended_is_not_alive(program: Program) -> None:
    """Invariant: waited for or not."""
    sleeper = program()
    found = identity(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not found.is_alive
    assert identity_of(sleeper.pid) is None
    sleeper.wait()
    assert not found.is_alive
    for nobody in (sleeper.pid, 0, -1, 1 << 40):
        assert identity_of(nobody) is None


def test_a_process_lives_on_without_its_leader(program: Program) -> None:
    process = program(
        sys.executable, "-c",
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(300,)).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)",
    )  # fmt: skip
    while "\nState:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.005)
    assert identity(process.pid).is_alive


def test_a_registered_process_is_found_until_it_is_unregistered(place: Path, program: Program) -> None:
    pid = program().pid
    assert find_broker(pid) is None
    entry = register(place, pid, str(SOCKET))
    assert find_broker(pid) == entry
    assert (entry.process, entry.broker) == (identity(pid), identity(os.getpid()))
    assert (entry.socket, entry.directory) == (SOCKET, place)
    assert find_broker(os.getpid()) is None
    ours = identity(os.getpid())
    assert json.loads((place / "processes" / f"{pid}.json").read_text()) == {
        "pid": pid, "start": identity(pid).start, "broker_pid": ours.pid, "broker_start": ours.start,
        "socket": str(SOCKET),
    }  # fmt: skip
    unregister(entry)
    assert find_broker(pid) is None
    assert in_folders(place) == []
    unregister(entry)


def test_no_process_is_registered_that_is_not_there(place: Path, program: Program) -> None:
    ended = program("true")
    ended.wait()
    with pytest.raises(ubpx.NoSuchProcess):
        register(place, ended.pid, SOCKET)
    assert in_folders(place) == []


def test_one_broker_is_told_of_the_other(place: Path, program: Program) -> None:
    """Invariant: a living broker's entry stays, and who comes next is told whom to join."""
    target = program()
    broker = another_broker(program, place, target.pid)
    assert go_on(broker) == "registered"
    before = find_broker(target.pid)
    with pytest.raises(ubpx.AlreadyTraced) as refusal:
        register(place, target.pid, SOCKET)
    assert (refusal.value.pid, refusal.value.tracer_pid) == (target.pid, broker.pid)
    assert refusal.value.broker == "/its.sock"
    assert sys.executable in refusal.value.tracer_command
    assert "\x1b" not in refusal.value.tracer_command
    assert refusal.value.tracer_command.endswith("?[2J")
    assert find_broker(target.pid) == before
    assert before is not None
    unregister(before)  # it is not ours to take back
    assert find_broker(target.pid) == before
    broker.kill()
    broker.wait()
    ours = register(place, target.pid, SOCKET)
    unregister(before)
    assert find_broker(target.pid) == ours


def test_our_own_entry_is_replaced_and_an_old_one_of_ours_takes_nothing_back(place: Path) -> None:
    old = register(place, os.getpid(), "/old.sock")
    new = register(place, os.getpid(), "/new.sock")
    unregister(old)
    assert find_broker(os.getpid()) == new
    unregister(new)
    assert find_broker(os.getpid()) is None


@pytest.mark.parametrize("changes", [{"start": 1}, {"broker_start": 1}, {"broker_pid": (1 << 31) - 1}])
def test_a_stale_entry_is_healed(changes: dict[str, int], place: Path) -> None:
    """Invariant: a pid that another process has now names nobody, and neither does one that none has."""
    path = plant(place)
    assert find_broker(os.getpid()) is not None
    plant(place, **changes)
    assert find_broker(os.getpid()) is None
    assert not path.exists()
    plant(place, **changes)
    assert register(place, os.getpid(), SOCKET) == find_broker(os.getpid())


def test_an_entry_of_a_process_that_has_ended_is_removed(place: Path, program: Program) -> None:
    target = program()
    entry = register(place, target.pid, SOCKET)
    target.kill()
    target.wait()
    assert find_broker(target.pid) is None
    assert not entry.path.exists()


def test_a_new_entry_is_not_removed_for_a_stale_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: who removes a stale entry looks again, when nobody else can write."""
    plant(place, start=1)
    writing, new = directory._writing, []

    def overtaken(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(directory, "_writing", writing)
        new.append(register(place, os.getpid(), SOCKET))
        return writing(*arguments, **more)

    monkeypatch.setattr(directory, "_writing", overtaken)
    find_broker(os.getpid())
    assert new == [find_broker(os.getpid())]


def test_one_of_many_wins_a_race(place: Path, program: Program) -> None:
    """Invariant: of brokers that register a process at the same time exactly one has it, and the others know whom."""
    for _ in range(5):
        target = program()
        rivals = [another_broker(program, place, target.pid) for _ in range(4)]
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.write("\n")
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.flush()
        answers = []
        for rival in rivals:
            assert rival.stdout is not None
            answers.append(rival.stdout.readline().strip())
        [winner] = [rival for rival, answer in zip(rivals, answers, strict=True) if answer == "registered"]
        assert sorted(answers) == sorted(["registered", *[f"{winner.pid} /its.sock"] * 3])
        found = find_broker(target.pid)
        assert found is not None
        assert found.broker == identity(winner.pid)
