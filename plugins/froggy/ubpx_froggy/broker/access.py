"""Who may do what to which target.

A broker of root may trace everything, so it asks for each target what the kernel would have asked of the peer
itself: ``__ptrace_may_access`` with PTRACE_MODE_ATTACH_REALCREDS (kernel/ptrace.c), ``cap_ptrace_access_check``
(security/commoncap.c) and ``yama_ptrace_access_check`` (security/yama/yama_lsm.c), from what /proc shows. What
cannot be read or proved is refused. What /proc does not show is not repeated: rules of other security modules, and
a peer that has confined itself (a user namespace of its own, Landlock, seccomp) while it can reach the socket.
"""

import os
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

import attrs

from ubpx import NoSuchProcess, PermissionRefused

ROOT: Final = 0
NOBODY_KNOWN: Final = 0xFFFF_FFFF
"""The uid and gid that SO_PEERCRED gives for a socket without a peer: (uid_t) -1."""

_UCRED: Final = struct.Struct("iII")  # struct ucred, unix(7): pid_t, uid_t, gid_t
_CAP_SYS_PTRACE: Final = 1 << 19
_EVERY_NUMBER: Final = [b"0", b"0", b"4294967295"]
"""What /proc/self/uid_map says where all users have their own numbers: outside of any user namespace."""
_EXITED: Final = (b"Z", b"X")
_GONE: Final = (FileNotFoundError, ProcessLookupError)
_YAMA_RELATIONAL: Final = 1
_YAMA_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_AS_ROOT: Final = "connect as root"
_OWN_BROKER: Final = "start a broker of your own with ubpx serve"


class Right(IntEnum):
    """What an operation needs; who has one has those below it."""

    LOOK = 1
    """Names and counts: which targets, clients and probepoints there are."""
    READ = 2
    """What is in the program: memory, original bytes, registers, hits."""
    CHANGE = 3
    """Everything else: a probe is a write, and so is a hold."""


@attrs.frozen(kw_only=True)
class Peer:
    """Who is at the other end of a socket, in numbers of the broker's own namespaces.

    Supplementary groups are left out: the kernel's check does not ask for them.
    """

    uid: int
    gid: int
    pid: int
    """For people alone: it may be another process by now, and is 0 where it is in a pid namespace out of our sight."""


@attrs.frozen(kw_only=True)
class _Credentials:
    """Of one thread."""

    tid: int
    state: bytes
    uids: tuple[int, int, int]
    """Real, effective, saved."""
    gids: tuple[int, int, int]
    permitted: int
    """Capabilities, as the kernel's bit mask."""
    ambient: int


def peer_of(sock: socket.socket) -> Peer:
    """Who had connected the Unix socket, by SO_PEERCRED (unix(7)).

    These are the effective ids at the time of ``connect`` (of ``listen`` for the other end). A socket without a peer
    has ids of ``NOBODY_KNOWN``, which every check refuses.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid=uid, gid=gid, pid=pid)


def check_peer(peer: Peer) -> None:
    """Refuse a peer that may not talk to this broker at all.

    A broker of an ordinary user talks with that user and with root; one of root with everybody, because it
    asks for each target (``check_target``).
    Raises PermissionRefused, with the peer's pid.
    """
    _check_known(peer, peer.pid)
    ours = os.geteuid()
    if ours != ROOT and peer.uid not in {ROOT, ours}:
        cause = f"this broker belongs to user {ours} and serves that user and root alone, not user {peer.uid}"
        raise PermissionRefused(peer.pid, cause, _OWN_BROKER)


def check_target(peer: Peer, pid: int) -> None:
    """Refuse a process that the peer could not trace by itself; reads /proc, and changes nothing.

    The answer is of this moment: ask before the attach, so that nobody's program is stopped in vain; after it, when
    the pid can no longer become another process's; and at each exec, which may have gained credentials. The
    credentials of every thread count, because they share the memory. Root may, whatever it is. For the user of a
    broker without privileges the kernel decides at the broker's own attach; refused is what has gained credentials
    since.
    Raises NoSuchProcess, also of one that has ended and is not yet waited for; and PermissionRefused with the first
    cause in the kernel's order of asking.
    """
    _check_known(peer, pid)
    if peer.uid == ROOT:
        return
    threads = _credentials(pid)
    if _is_as_broker(peer):
        _check_ids(pid, threads, os.getuid(), os.getgid())
        _check_gained(pid, threads)
        return
    _check_ids(pid, threads, peer.uid, peer.gid)
    _check_dumpable(pid, threads, peer.uid)
    _check_capabilities(pid, threads, 0)
    if _user_namespace(pid) != _user_namespace(os.getpid()):
        raise PermissionRefused(pid, "it is not known to live in the user namespace of this broker", _AS_ROOT)
    _check_yama(pid)


def _check_known(peer: Peer, pid: int) -> None:
    """Refuse ids that may be anybody's."""
    for kind, number in (("uid", peer.uid), ("gid", peer.gid)):
        if number == NOBODY_KNOWN or _is_anybody(kind, number):
            raise PermissionRefused(pid, f"the peer's {kind} {number} does not say who it is", _OWN_BROKER)


def _is_anybody(kind: str, number: int) -> bool:
    """Whether it is the number that a user namespace shows for all that it has none for; True where it is not told."""
    try:
        if number != int(Path(f"/proc/sys/kernel/overflow{kind}").read_bytes()):
            return False
        return Path(f"/proc/self/{kind}_map").read_bytes().split() != _EVERY_NUMBER
    except (OSError, ValueError):
        return True


def _is_as_broker(peer: Peer) -> bool:
    """Whether the kernel lets this broker trace nothing that it would not let the peer trace."""
    return peer.uid == os.getuid() == os.geteuid() and not _own_credentials().permitted & _CAP_SYS_PTRACE


def _check_ids(pid: int, threads: Sequence[_Credentials], uid: int, gid: int) -> None:
    """Refuse where a real, effective or saved id is another."""
    for thread in threads:
        if set(thread.uids) != {uid}:
            raise PermissionRefused(pid, f"it runs as {_named('user', thread.uids)}, not {uid}", _AS_ROOT)
        if set(thread.gids) != {gid}:
            raise PermissionRefused(pid, f"it runs with {_named('group', thread.gids)}, not {gid}", _AS_ROOT)


def _named(kind: str, ids: Sequence[int]) -> str:
    if len(set(ids)) == 1:
        return f"{kind} {ids[0]}"
    return "real {0} {1}, effective {0} {2}, saved {0} {3}".format(kind, *ids)


def _check_capabilities(pid: int, threads: Sequence[_Credentials], allowed: int) -> None:
    for thread in threads:
        if thread.permitted & ~allowed:
            raise PermissionRefused(pid, f"it has capabilities ({thread.permitted & ~allowed:#x})", _AS_ROOT)


def _check_gained(pid: int, threads: Sequence[_Credentials]) -> None:
    """Refuse capabilities that a program has gained since the kernel let us attach to it.

    No gain are the ambient ones that a login session gives to all its programs, and those in a user namespace that
    the program has made itself: the kernel lets only those see its number that may look into the program.
    """
    namespace = _user_namespace(pid)
    if namespace is None or namespace == _user_namespace(os.getpid()):
        _check_capabilities(pid, threads, _own_credentials().ambient)


def _check_dumpable(pid: int, threads: Sequence[_Credentials], uid: int) -> None:
    """Refuse a program that is not: its files belong to root (proc(5)).

    Those of a thread that exits just now do in any case; the others share the memory, and one speaks for all.
    """
    owners = set()
    for thread in threads:
        try:
            owners.add(os.stat(f"/proc/{pid}/task/{thread.tid}/maps").st_uid)
        except _GONE:
            continue
        except OSError as error:
            raise _unreadable(pid, error) from error
    if uid in owners:
        return
    if not owners or not _has_memory(pid):  # on its way out a process gives its memory back before it is seen to exit
        raise NoSuchProcess(pid)
    raise PermissionRefused(pid, "it is not dumpable (PR_SET_DUMPABLE, or its program may not be read)", _AS_ROOT)


def _has_memory(pid: int) -> bool:
    """Whether any thread of the process has its memory still; dumpable or not, its size is shown to everybody."""
    found = False
    with suppress(*_GONE):
        for name in os.listdir(f"/proc/{pid}/task"):
            found = found or b"\nVmSize:" in Path(f"/proc/{pid}/task/{name}/status").read_bytes()
    return found


def _check_yama(pid: int) -> None:
    """Refuse by kernel.yama.ptrace_scope; a kernel without Yama has no such file."""
    try:
        scope = int(_YAMA_SCOPE.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise PermissionRefused(pid, f"{_YAMA_SCOPE} cannot be read ({error})", _AS_ROOT) from error
    if scope == _YAMA_RELATIONAL:
        # Nor does /proc show whom the program has allowed by PR_SET_PTRACER.
        cause = "kernel.yama.ptrace_scope is 1, and a socket does not prove that its peer is an ancestor"
        raise PermissionRefused(pid, cause, f"let a broker of your own start the program, or {_AS_ROOT}")
    if scope != 0:
        raise PermissionRefused(pid, f"kernel.yama.ptrace_scope is {scope}", _AS_ROOT)


def _credentials(pid: int) -> Sequence[_Credentials]:
    """Those of each thread that has not exited; raises NoSuchProcess if all have.

    Raises PermissionRefused where they cannot be read.
    """
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/task"):
            with suppress(*_GONE):
                thread = _credentials_in(int(name), Path(f"/proc/{pid}/task/{name}/status").read_bytes())
                if thread.state not in _EXITED:
                    found.append(thread)
    except _GONE as error:
        raise NoSuchProcess(pid) from error
    except (OSError, LookupError, ValueError) as error:
        raise _unreadable(pid, error) from error
    if not found:
        raise NoSuchProcess(pid)
    return found


def _own_credentials() -> _Credentials:
    """This thread's; all of a broker's are alike."""
    tid = threading.get_native_id()
    try:
        return _credentials_in(tid, Path("/proc/thread-self/status").read_bytes())
    except (OSError, LookupError, ValueError) as error:
        raise _unreadable(os.getpid(), error) from error


def _credentials_in(tid: int, status: bytes) -> _Credentials:
    """Raises LookupError or ValueError where it is none of a /proc/TID/status (proc(5)).

    Bytes, because a program may have a carriage return in its name, and a text would break the line there.
    """
    fields = {name: value.split() for name, _, value in (line.partition(b":") for line in status.split(b"\n"))}
    return _Credentials(
        tid=tid,
        state=fields[b"State"][0],
        uids=_real_effective_saved(fields[b"Uid"]),
        gids=_real_effective_saved(fields[b"Gid"]),
        permitted=int(fields[b"CapPrm"][0], 16),
        ambient=int(fields[b"CapAmb"][0], 16),
    )


def _real_effective_saved(numbers: Sequence[bytes]) -> tuple[int, int, int]:
    real, effective, saved, _ = map(int, numbers)  # the last is for files, and the check does not ask for it
    return real, effective, saved


def _user_namespace(pid: int) -> int | None:
    """Its number; None where the kernel does not let us see it, and 0 for all where it knows no such namespaces."""
    if not os.path.lexists("/proc/self/ns/user"):
        return 0
    try:
        return os.stat(f"/proc/{pid}/ns/user").st_ino
    except OSError:
        return None


def _unreadable(pid: int, error: Exception) -> PermissionRefused:
    return PermissionRefused(pid, f"its credentials cannot be read ({error})", _AS_ROOT)
