"""The run directory, by which the brokers and clients of one machine find each other.

    DIRECTORY/lock                who writes or removes an entry holds it, by flock(2)
    DIRECTORY/processes/PID.json  which broker traces a process
    DIRECTORY/brokers/PID.json    where a broker listens

An entry is true while the processes that it names live; a pid alone does not name one, so it has the start time
beside it. A broker that was killed leaves its entries behind: they are stale, and the next who comes by heals them.
Nobody but the directory's owner writes there. What is found there is still read as something that anybody has
written: what is not as it should be is ignored.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, ClassVar, Final, Self, TypeVar

import attrs
import msgspec

from ubpx import AlreadyTraced, NoSuchProcess, UsageError

VARIABLE: Final = "UBPX_RUN_DIRECTORY"
"""The environment variable that names another run directory; an absolute path."""
ROOT_DIRECTORY: Final = Path("/run/ubpx")
ENTRY_BYTES: Final = 64 * 1024
"""An entry that is larger is ignored."""
PATIENCE_S: Final = 5.0
"""For how long ``register`` and the like wait while others write; each holds the lock for well under a millisecond."""

_ROOT: Final = 0
_LOCK: Final = "lock"
_NEW: Final = ".new"  # what is being written, by who holds the lock
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ELSEWHERE: Final = f"set {VARIABLE} to a path that only you can write"
_REMEDIES: Final = {
    errno.ENOSPC: "make room on its file system, or ",
    errno.EDQUOT: "make room on its file system, or ",
    errno.ENOTDIR: "remove it, if it is a file or a symbolic link, or ",
    errno.EROFS: "mount its file system for writing, or ",
    errno.ETIMEDOUT: "end or resume the broker that holds the lock there, or ",
}

_Pid = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_Ticks = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Socket = Annotated[str, msgspec.Meta(pattern=r"\A/[^\0]*\Z", max_length=4096)]
_Found = TypeVar("_Found", bound="BrokerEntry")


@attrs.frozen
class Identity:
    """One process, and never another that has got its pid later."""

    pid: int
    start: int
    """When it started, in clock ticks since the machine did."""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return identity_of(self.pid) == self


def identity_of(pid: int) -> Identity | None:
    """Who has this pid now; None if nobody has, or only one that has ended and is not yet waited for.

    Source: proc(5), /proc/PID/stat: fields 3 (state), 20 (num_threads: others may live on without the leader) and
    22 (starttime).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        state, threads, start = fields[0], int(fields[17]), int(fields[19])
    except (OSError, LookupError, ValueError):
        return None
    return None if state in {b"Z", b"X"} and threads <= 1 else Identity(pid, start)


class _BrokerRecord(msgspec.Struct, frozen=True):
    """What an entry's file holds, as JSON; a field more is ignored."""

    pid: _Pid
    start: _Ticks
    socket: _Socket


class _ProcessRecord(_BrokerRecord, frozen=True, kw_only=True):
    broker_pid: _Pid
    broker_start: _Ticks


@attrs.frozen(kw_only=True)
class BrokerEntry:
    """A broker."""

    directory: Path
    """The run directory that has the entry."""
    broker: Identity
    socket: Path
    """Where it listens; absolute."""

    FOLDER: ClassVar = "brokers"

    @classmethod
    def parsed(cls, directory: Path, text: bytes) -> Self:
        """The entry that a file holds; raises msgspec.MsgspecError."""
        record = msgspec.json.decode(text, type=_BrokerRecord)
        return cls(directory=directory, broker=Identity(record.pid, record.start), socket=Path(record.socket))

    @property
    def named(self) -> tuple[Identity, ...]:
        """The processes that it names; the first has the file's name."""
        return (self.broker,)

    @property
    def path(self) -> Path:
        """Its file."""
        return self.directory / self.FOLDER / f"{self.named[0].pid}.json"

    @property
    def is_alive(self) -> bool:
        """Whether all that it names are."""
        return all(each.is_alive for each in self.named)


@attrs.frozen(kw_only=True)
class Entry(BrokerEntry):
    """A broker, and a process that it traces."""

    process: Identity

    FOLDER: ClassVar = "processes"

    @classmethod
    def parsed(cls, directory: Path, text: bytes) -> Self:
        """As a broker's."""
        record = msgspec.json.decode(text, type=_ProcessRecord)
        broker, process = Identity(record.broker_pid, record.broker_start), Identity(record.pid, record.start)
        return cls(directory=directory, broker=broker, process=process, socket=Path(record.socket))

    @property
    def named(self) -> tuple[Identity, ...]:
        """The process, and the broker."""
        return self.process, self.broker


def run_directory(uid: int | None = None) -> Path:
    """Where a user's brokers are; None: ours. It need not be there yet.

    $UBPX_RUN_DIRECTORY, or else for root /run/ubpx, for others $XDG_RUNTIME_DIR/ubpx. Where that variable names no
    directory of the user's (after ``su``: the basedir specification wants it to), /tmp/ubpx-UID.
    Raises UsageError if $UBPX_RUN_DIRECTORY is not absolute.
    """
    uid = os.geteuid() if uid is None else uid
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not Path(chosen).is_absolute():
            raise UsageError(f"{VARIABLE} is {chosen!r}, which is not absolute; set it to a path that begins with /")
        return Path(chosen)
    if uid == _ROOT:
        return ROOT_DIRECTORY
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    with suppress(OSError):
        if runtime.is_absolute() and runtime.stat().st_uid == uid:
            return runtime / "ubpx"
    return Path(f"/tmp/ubpx-{uid}")  # noqa: S108 - open_directory refuses what another may have put there


def open_directory(*, for_everybody: bool) -> Path:
    """Our run directory, made if it is not there: of mode 0700, or 0755 if everybody may look up our brokers.

    One that is there gets that mode too, but is not closed to others while a broker lives in it.
    Raises UsageError if it cannot be made, or is not ours alone to write: a symbolic link, no directory, another
    user's, or writable by group or others.
    """
    directory = run_directory()
    for folder in (directory, directory / Entry.FOLDER, directory / BrokerEntry.FOLDER):
        with _told(folder):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            with _opened(folder, owners={os.geteuid()}) as handle:
                if for_everybody or not _living(directory, BrokerEntry):
                    os.fchmod(handle, 0o755 if for_everybody else 0o700)
    return directory


def register(directory: Path, pid: int, socket_path: Path | str) -> Entry:
    """Tell everybody that may look there that this process traces process ``pid``, and listens at ``socket_path``.

    An entry of our own is replaced, and so is one that is stale. The entry is there whole, or not at all; it may be
    read by all whom the directory's mode lets in.
    Raises AlreadyTraced (by which broker) if another living broker has the process; NoSuchProcess; UsageError if it
    cannot be written, and why.
    """
    process = identity_of(pid)
    if process is None:
        raise NoSuchProcess(pid)
    entry = Entry(directory=directory, process=process, broker=_ourselves(), socket=Path(socket_path))
    with _told(entry.path), _writing(directory, Entry, PATIENCE_S) as folder:
        found = _load(folder, entry.path.name, directory, Entry)
        if found and found.broker != entry.broker and found.is_alive:
            raise AlreadyTraced(pid, found.broker.pid, _command(found.broker.pid), str(found.socket))
        _write(folder, entry.path.name, _text(entry))
    return entry


def unregister(entry: BrokerEntry) -> None:
    """Take back what ``register`` has given; another broker's entry stays, and so does a newer one of ours.

    Never raises: it is a part of letting the process go. What cannot be removed is stale once we have ended.
    """
    with suppress(OSError, UsageError):
        if entry.broker == _ourselves():
            with _writing(entry.directory, type(entry), PATIENCE_S) as folder:
                if _load(folder, entry.path.name, entry.directory, type(entry)) == entry:
                    os.unlink(entry.path.name, dir_fd=folder)


def announce(directory: Path, socket_path: Path | str) -> BrokerEntry:
    """Tell everybody that may look there that this process is a broker, and listens at ``socket_path``.

    Replaces what stood under our pid. Raises UsageError if it cannot be written, and why.
    """
    entry = BrokerEntry(directory=directory, broker=_ourselves(), socket=Path(socket_path))
    with _told(entry.path), _writing(directory, BrokerEntry, PATIENCE_S) as folder:
        _write(folder, entry.path.name, _text(entry))
    return entry


def withdraw(entry: BrokerEntry) -> None:
    """Take back what ``announce`` has given, as ``unregister`` does."""
    unregister(entry)


def find_broker(pid: int) -> Entry | None:
    """Which living broker traces the process, of ours and of root's; None if none does.

    What is not as ``register`` writes it is ignored, whoever wrote it; what is stale is removed if it is ours.
    Raises UsageError as ``run_directory`` does.
    """
    for directory in _directories():
        for entry in _living(directory, Entry, only=f"{pid}.json"):
            return entry
    return None


def brokers() -> list[BrokerEntry]:
    """The living brokers, ours and then root's, each by pid; as ``find_broker``."""
    return [entry for directory in _directories() for entry in _living(directory, BrokerEntry)]


def _directories() -> list[Path]:
    return list(dict.fromkeys((run_directory(), ROOT_DIRECTORY)))


def _living(directory: Path, kind: type[_Found], only: str | None = None) -> list[_Found]:
    """The entries there that are alive, by pid; the stale ones are removed where they are ours."""
    found: list[_Found] = []
    stale: list[_Found] = []
    with suppress(OSError, UsageError), _trusted(directory, kind.FOLDER) as folder:
        for name in os.listdir(folder) if only is None else [only]:
            entry = _load(folder, name, directory, kind)
            if entry:
                (found if entry.is_alive else stale).append(entry)
    for entry in stale:
        with suppress(OSError, UsageError), _writing(directory, kind, patience_s=0) as folder:
            again = _load(folder, entry.path.name, directory, kind)
            if again == entry and os.stat(entry.path.name, dir_fd=folder, follow_symlinks=False).st_uid == os.geteuid():
                os.unlink(entry.path.name, dir_fd=folder)
    return sorted(found, key=lambda entry: entry.broker.pid)


def _load(folder: int, name: str, directory: Path, kind: type[_Found]) -> _Found | None:
    """The entry of a file in the folder; None if it is not as we write them."""
    try:
        handle = os.open(name, os.O_RDONLY | _FILE, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or _distrust(status, {os.geteuid(), _ROOT}):
            return None
        text = os.read(handle, ENTRY_BYTES + 1)
        entry = kind.parsed(directory, text) if len(text) <= ENTRY_BYTES else None
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return None
    finally:
        os.close(handle)
    return entry if entry and entry.path.name == name else None


def _write(folder: int, name: str, text: bytes) -> None:
    """Put a file in place, under the lock; raises OSError, and the file that was there is then still there."""
    mode = 0o644 if os.fstat(folder).st_mode & stat.S_IROTH else 0o600
    with suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=folder)  # of one who was killed while writing
    try:
        with os.fdopen(os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=folder), "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(_NEW, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(_NEW, dir_fd=folder)
        raise


@contextmanager
def _writing(directory: Path, kind: type[BrokerEntry], patience_s: float) -> Iterator[int]:
    """A folder's descriptor, while nobody else writes in the directory; raises OSError, and UsageError."""
    with _trusted(directory, kind.FOLDER) as folder:
        # Of mode 0600: who could open it could hold the lock for ever.
        lock = os.open(f"../{_LOCK}", os.O_RDWR | os.O_CREAT | _FILE, 0o600, dir_fd=folder)
        try:
            deadline = time.monotonic() + patience_s
            while not _is_locked(lock):
                if time.monotonic() >= deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"locked for {patience_s:g} s")
                time.sleep(0.005)
            yield folder
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # not by the close alone: another thread may be between fork and exec
            os.close(lock)


def _is_locked(lock: int) -> bool:
    """Whether it is ours now."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def _trusted(directory: Path, name: str) -> Iterator[int]:
    """The descriptor of a folder that only we and root can write, in such a directory; raises OSError, UsageError."""
    owners = {os.geteuid(), _ROOT}
    with _opened(directory, owners), _opened(directory / name, owners) as folder:
        yield folder


@contextmanager
def _opened(path: Path, owners: set[int]) -> Iterator[int]:
    handle = os.open(path, _DIRECTORY)
    try:
        reason = _distrust(os.fstat(handle), owners)
        if reason:
            raise UsageError(f"will not use {path}: {reason}; {_ELSEWHERE}")
        yield handle
    finally:
        os.close(handle)


def _distrust(status: os.stat_result, owners: set[int]) -> str:
    """Why others may have written it; empty if they cannot."""
    if status.st_uid not in owners:
        return f"it belongs to user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"others may write there (mode {mode:04o})" if mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses becomes a UsageError that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise UsageError(f"cannot write {path}: {error.strerror}; {remedy}{_ELSEWHERE}") from error


def _text(entry: BrokerEntry) -> bytes:
    """What its file holds; raises UsageError."""
    try:
        numbers = [number for each in entry.named for number in attrs.astuple(each)]
        fields = zip(("pid", "start", "broker_pid", "broker_start"), numbers, strict=False)
        text = msgspec.json.encode({**dict(fields), "socket": str(entry.socket)})
        entry.parsed(entry.directory, text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"no socket can be found by {str(entry.socket)!r}; give an absolute path in UTF-8") from error
    return text


def _ourselves() -> Identity:
    if (ours := identity_of(os.getpid())) is None:
        raise UsageError("/proc does not show this process; mount it: mount -t proc proc /proc")
    return ours


def _command(pid: int) -> str:
    """The command line, for people: on one line, and without what a terminal obeys."""
    with suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        return "".join(each if each.isprintable() else "?" for each in line)
    return "unknown"
