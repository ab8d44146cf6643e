"""The run directory when somebody has written nonsense there, when it cannot be written, and as others see it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import ubpx
from ubpx_froggy import directory
from ubpx_froggy.directory import (
    BrokerEntry,
    Entry,
    Identity,
    announce,
    brokers,
    find_broker,
    identity_of,
    open_directory,
    register,
    unregister,
    withdraw,
)

USER: Final = 54321
PATIENCE_S: Final = 30
SOCKET: Final = Path("/run/user/0/ubpx/1.sock")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our run directory, open; root's is another one, and not there yet."""
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(directory, "ROOT_DIRECTORY", tmp_path / "root")
    return open_directory(for_everybody=False)


def ourselves() -> Identity:
    found = identity_of(os.getpid())
    assert found is not None
    return found


def content(**changes: Any) -> dict[str, Any]:
    """What an entry's file holds if we are the process as well as its broker."""
    ours = ourselves()
    fields = {"pid": ours.pid, "start": ours.start, "broker_pid": ours.pid, "broker_start": ours.start}
    return {**fields, "socket": str(SOCKET), **changes}


def plant(place: Path, text: bytes | str) -> Path:
    """A file as somebody has written it."""
    path = place / "processes" / f"{os.getpid()}.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path


def in_folders(place: Path) -> list[str]:
    return sorted(path.name for folder in ("processes", "brokers") for path in (place / folder).iterdir())


HOSTILE: Final[dict[str, str | bytes]] = {
    "nothing": "",
    "no JSON": "\0\xff{",
    "half": '{"pid": 1',
    "no UTF-8": b'{"pid": 1, "socket": "\xff"}',
    "a list": "[]",
    "deep": "[" * 60000,
    "deep in a field that is not ours": '{"x":' + '{"x":' * 10000,
    "text for a number": json.dumps({"pid": "1", "start": 1, "broker_pid": 1, "broker_start": 1, "socket": "/s"}),
}
HOSTILE_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "another pid": {"pid": 1},
    "a negative pid": {"broker_pid": -1},
    "a huge pid": {"broker_pid": 1 << 70},
    "a huge start": {"start": 1 << 70},
    "a fraction": {"start": 1.5},
    "a relative socket": {"socket": "s"},
    "a socket with a NUL": {"socket": "/s\0"},
    "no socket": {"socket": None},
    "half a character": {"socket": "/\ud800"},
    "too much": {"more": "x" * (64 << 10)},
}


@pytest.mark.parametrize("kind", [*HOSTILE, *HOSTILE_FIELDS])
def test_what_is_no_entry_is_ignored(kind: str, place: Path) -> None:
    """Invariant: it is not found, not followed, and left there; whoever registers the process next replaces it."""
    text = HOSTILE[kind] if kind in HOSTILE else json.dumps(content(**HOSTILE_FIELDS[kind]))
    path = plant(place, text)
    assert find_broker(os.getpid()) is None
    assert path.exists()
    shutil.copy(path, place / "brokers")
    if kind not in {"a negative pid", "a huge pid"}:  # a broker's entry has no such field
        assert brokers() == []
    entry = register(place, os.getpid(), SOCKET)
    assert find_broker(os.getpid()) == entry


@pytest.mark.parametrize("path", ["its.sock", "", "/a\0b", "/\udcff", "/" + "a" * 5000])
def test_no_socket_is_registered_that_nobody_could_connect_to(path: str, place: Path) -> None:
    with pytest.raises(ubpx.UsageError, match="give an absolute path"):
        register(place, os.getpid(), path)
    with pytest.raises(ubpx.UsageError, match="give an absolute path"):
        announce(place, path)
    assert in_folders(place) == []


def test_an_entry_may_be_so_large_and_no_larger(place: Path) -> None:
    """Invariant: white space counts too, and no entry is cut off."""
    text = json.dumps(content())
    plant(place, text.ljust(64 << 10))
    assert find_broker(os.getpid()) is not None
    plant(place, text.ljust((64 << 10) + 1))
    assert find_broker(os.getpid()) is None


def test_a_field_more_is_no_fault(place: Path) -> None:
    """Invariant: a later version may add fields."""
    plant(place, json.dumps(content(since="0.2")))
    assert find_broker(os.getpid()) is not None


@pytest.mark.parametrize("make", ["symlink", "fifo", "directory", "writable by others", "another's"])
def test_what_is_no_file_of_ours_is_ignored(make: str, place: Path, tmp_path: Path) -> None:
    """Invariant: it is not even opened to be waited for."""
    path = plant(place, json.dumps(content()))
    assert find_broker(os.getpid()) is not None
    if make in {"symlink", "fifo", "directory"}:
        elsewhere = path.rename(tmp_path / "elsewhere")
        if make == "symlink":
            path.symlink_to(elsewhere)
        else:
            os.mkfifo(path) if make == "fifo" else path.mkdir()
    elif make == "writable by others":
        path.chmod(0o602)
    elif os.geteuid() == 0:
        os.chown(path, USER, USER)
    else:
        pytest.skip("only root may give a file to another user")
    assert find_broker(os.getpid()) is None
    assert os.path.lexists(path)
    if make != "directory":
        assert register(place, os.getpid(), SOCKET) == find_broker(os.getpid())


def test_other_names_are_ignored(place: Path) -> None:
    """Invariant: only PID.json is an entry: neither what is being written nor another spelling of the pid."""
    pid = os.getpid()
    for name in (".new", f"{pid}", f"0{pid}.json", f"{pid}.json~", "x.json", ".json"):
        (place / "brokers" / name).write_text(json.dumps(content()))
    assert brokers() == []
    entry = announce(place, SOCKET)
    assert brokers() == [entry]


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """The run directory, on a disk of its own of one page that is full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets us mount nothing: {mounted.stderr}")
    try:
        open_directory(for_everybody=False)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_told_and_nothing_is_left_of_the_attempt(disk: Path) -> None:
    """Invariant: what cannot be written is not there at all, not even half, and there is a way out."""
    (disk / "filler").write_bytes(b"x" * 4096)
    for write in (register_ourselves, announce_ourselves):
        with pytest.raises(ubpx.UsageError, match=r"No space left on device; make room on its file system, or set"):
            write(disk)
    assert in_folders(disk) == []
    (disk / "filler").unlink()
    assert register_ourselves(disk) == find_broker(os.getpid())


def test_an_entry_survives_that_its_successor_finds_the_disk_full(disk: Path) -> None:
    entry = register(disk, os.getpid(), "/old.sock")
    with pytest.raises(ubpx.UsageError, match="No space left"):
        register(disk, os.getpid(), "/new.sock")
    assert find_broker(os.getpid()) == entry
    assert in_folders(disk) == [entry.path.name]
    unregister(entry)
    assert in_folders(disk) == []


def test_a_disk_that_is_read_only_is_told(disk: Path) -> None:
    """Invariant: nothing is written; who takes back is not disturbed, and readers read on."""
    entry, broker = register_ourselves(disk), BrokerEntry(directory=disk, broker=ourselves(), socket=SOCKET)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for write in (register_ourselves, announce_ourselves):
        with pytest.raises(ubpx.UsageError, match="Read-only file system; mount its file system for writing, or set"):
            write(disk)
    unregister(entry)
    withdraw(broker)
    assert find_broker(os.getpid()) == entry


def register_ourselves(place: Path) -> Entry:
    return register(place, os.getpid(), SOCKET)


def announce_ourselves(place: Path) -> BrokerEntry:
    return announce(place, SOCKET)


@pytest.mark.parametrize("step", ["fdopen", "fchmod", "replace"])
def test_nothing_is_left_wherever_the_disk_gets_full(step: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **_: object) -> None:
        if step == "fdopen":
            os.close(arguments[0])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(ubpx.UsageError, match="make room"):
            register_ourselves(place)
    assert in_folders(place) == []
    assert register_ourselves(place) == find_broker(os.getpid())


def test_what_a_writer_left_who_was_killed_is_no_hindrance(place: Path) -> None:
    (place / "processes" / ".new").write_text("{")
    entry = register(place, os.getpid(), SOCKET)
    assert find_broker(os.getpid()) == entry
    assert in_folders(place) == [entry.path.name]


def test_writers_wait_for_each_other_and_not_for_ever(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a writer that stands still is told of after PATIENCE_S, and readers never wait for it."""
    entry = register(place, os.getpid(), SOCKET)
    with (place / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(directory, "PATIENCE_S", 0.05)
        with pytest.raises(ubpx.UsageError, match=r"locked for 0.05 s; end or resume the broker that holds the lock"):
            register(place, os.getpid(), "/new.sock")
        unregister(entry)
        assert find_broker(os.getpid()) == entry
        monkeypatch.setattr(directory, "PATIENCE_S", PATIENCE_S)
        stale = plant(place, json.dumps(content(start=1)))
        began = time.monotonic()
        assert find_broker(os.getpid()) is None
        assert time.monotonic() - began < PATIENCE_S / 2
        assert stale.exists()
        release = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        release.start()
        new = register(place, os.getpid(), "/new.sock")
        release.join()
    assert find_broker(os.getpid()) == new


def test_who_was_forked_while_we_wrote_locks_nobody_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: the copy of the lock's descriptor that a fork makes holds nothing once it is written."""
    write, copies, lock = directory._write, list[int](), os.path.realpath(place / "lock")

    def forked(*arguments: Any) -> None:
        monkeypatch.setattr(directory, "_write", write)
        numbers = map(int, os.listdir("/proc/self/fd"))
        [locked] = [each for each in numbers if os.path.realpath(f"/proc/self/fd/{each}") == lock]
        copies.append(os.dup(locked))
        write(*arguments)

    monkeypatch.setattr(directory, "_write", forked)
    monkeypatch.setattr(directory, "PATIENCE_S", 0.05)
    register_ourselves(place)
    try:
        register_ourselves(place)
    finally:
        os.close(copies[0])


def test_a_reader_never_sees_half(place: Path) -> None:
    """Invariant: while an entry is replaced again and again, each look finds one of those that were written."""
    sockets = [Path("/" + "a" * 3000), Path("/b")]
    register(place, os.getpid(), sockets[0])
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for each in sockets:
                register(place, os.getpid(), each)

    writer = threading.Thread(target=write)
    writer.start()
    found: list[Path | None] = []
    deadline = time.monotonic() + PATIENCE_S
    try:
        while (len(found) < 300 or len(set(found)) < 2) and time.monotonic() < deadline:
            entry = find_broker(os.getpid())
            found.append(entry.socket if entry else None)
    finally:
        ended.set()
        writer.join()
    assert set(found) == set(sockets)


def test_brokers_are_found_until_they_withdraw(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: our own directory's brokers come first, root's next, and none twice."""
    assert brokers() == []
    ours = announce(place, SOCKET)
    assert (ours.broker, ours.socket) == (ourselves(), SOCKET)
    assert brokers() == [ours]
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(directory.ROOT_DIRECTORY))
    roots = announce(open_directory(for_everybody=True), "/roots.sock")
    assert brokers() == [roots]
    monkeypatch.setenv("UBPX_RUN_DIRECTORY", str(place))
    assert brokers() == [ours, roots]
    of_root = register(roots.directory, os.getpid(), "/roots.sock")
    assert find_broker(os.getpid()) == of_root
    of_us = register(place, os.getpid(), SOCKET)
    assert find_broker(os.getpid()) == of_us
    withdraw(ours)
    assert brokers() == [roots]
    again = announce(roots.directory, "/roots.sock")
    withdraw(BrokerEntry(directory=roots.directory, broker=ourselves(), socket=SOCKET))  # not what stands there
    assert brokers() == [again]


def test_a_stale_broker_is_removed(place: Path) -> None:
    entry = announce(place, SOCKET)
    other = {"pid": os.getppid(), "start": ourselves().start + 1, "socket": "/s"}
    (place / "brokers" / f"{os.getppid()}.json").write_text(json.dumps(other))
    (place / "brokers" / f"{os.getppid()}.json").chmod(0o600)
    assert brokers() == [entry]
    assert in_folders(place) == [entry.path.name]


AS_USER: Final = """
import os, sys
from pathlib import Path
from ubpx_froggy import directory
directory.ROOT_DIRECTORY = Path(sys.argv[1])
os.environ["UBPX_RUN_DIRECTORY"] = sys.argv[2]
os.setgroups([])
os.setresgid(*[54321] * 3)
os.setresuid(*[54321] * 3)
found = directory.find_broker(int(sys.argv[3]))
print(found and found.socket, [str(each.socket) for each in directory.brokers()])
try:
    os.close(os.open(f"{sys.argv[1]}/lock", os.O_RDONLY))
    print("may hold the lock")
except PermissionError:
    print("may not hold the lock")
"""


def test_others_find_roots_broker_if_they_may_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: for an ordinary user root's entries are to be read, none to be removed, and no lock to be held."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")

    def look() -> list[str]:
        outcome = subprocess.run(
            [sys.executable, "-c", AS_USER, place, f"{top}/own", str(os.getpid())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        return [*outcome.stdout.splitlines(), outcome.stderr]

    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        monkeypatch.setenv("UBPX_RUN_DIRECTORY", f"{top}/root")
        place = open_directory(for_everybody=True)
        register(place, os.getpid(), "/roots.sock")
        entry = announce(place, "/roots.sock")
        assert look() == ["/roots.sock ['/roots.sock']", "may not hold the lock", ""]
        withdraw(entry)
        stale = plant(place, json.dumps(content(start=1)))
        stale.chmod(0o644)
        # Root has written that too, where the user may remove it.
        shutil.copytree(place, f"{top}/own", ignore=shutil.ignore_patterns("lock"))
        os.chown(f"{top}/own", USER, USER)
        os.chown(f"{top}/own/processes", USER, USER)
        assert look() == ["None []", "may not hold the lock", ""]
        assert stale.exists()
        assert Path(top, "own", "processes", stale.name).exists()
        register(place, os.getpid(), "/roots.sock")
        open_directory(for_everybody=False)
        assert look() == ["None []", "may not hold the lock", ""]
