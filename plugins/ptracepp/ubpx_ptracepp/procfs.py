"""What /proc says about processes, and what it means for attaching."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ubpx import AlreadyTraced, KernelThread, NoSuchProcess, PermissionRefused, TargetGone, UsageError
from ubpx.core.values import MappedRange, ProcessId, VirtAddr, parse_maps
from ubpx_ptracepp.abi import ABIS, I386, X86_64, Abi

_PF_KTHREAD: Final = 0x0020_0000  # <linux/sched.h>
_ELF_MACHINES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_AT_ENTRY: Final = 9
_HIGHEST_TYPE: Final = 0xFFFF
"""Of an entry of the auxiliary vector, generously."""
CAP_SYS_PTRACE: Final = 19
NO_PTRACE: Final = 3
"""The value of kernel.yama.ptrace_scope that forbids it to all."""


_PARENT, _FLAGS, _PROCESSOR = 1, 6, 36
"""Positions of these fields in /proc/TID/stat behind the name."""


def status(tid: int) -> dict[str, str]:
    """The fields of /proc/TID/status; empty if it is gone."""
    try:
        text = Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def is_caught(tid: int, signal: int) -> bool:
    """Whether the process has a handler for the signal."""
    return bool(int(status(tid).get("SigCgt", "0"), 16) >> (signal - 1) & 1)


def processor(tid: int) -> int | None:
    """The one that the thread runs on, or has run on last (proc(5), stat); None if it is gone."""
    fields = _behind_name(tid).split()
    return int(fields[_PROCESSOR]) if fields else None


def _behind_name(tid: int) -> str:
    """The fields of /proc/TID/stat from the state on; empty if it is gone."""
    try:
        text = Path(f"/proc/{tid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(") ")[2]


def tids(pid: int) -> list[int]:
    """The threads of a process; empty if it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def has_exited(tid: int) -> bool:
    """Whether the thread is gone, or a zombie: a leader stays one until its other threads have gone."""
    return _behind_name(tid)[:1] in ("", "Z", "X")


def living_tid(pid: int) -> int:
    """A thread of the process that has not exited: a leader that has shows no memory, maps or program."""
    for tid in (pid, *tids(pid)):
        if not has_exited(tid):
            return tid
    return pid


def children(pid: int) -> list[int]:
    """The processes whose parent it is."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and _parent_in_stat(int(name)) == pid]


def _parent_in_stat(pid: int) -> int:
    """As ``parent``, from the file that is cheaper to read for many."""
    fields = _behind_name(pid).split()
    return int(fields[_PARENT]) if fields else 0


def parent(pid: int) -> int:
    """The parent's pid; 0 if the process is gone."""
    return int(status(pid).get("PPid", "0"))


def is_own_child(pid: int) -> bool:
    """Whether our own program is its parent."""
    return parent(pid) == os.getpid()


def maps(pid: int) -> Sequence[MappedRange]:
    """What is mapped; empty if the process is gone."""
    try:
        return parse_maps(Path(f"/proc/{living_tid(pid)}/maps").read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return ()


def command(pid: int) -> str:
    """The command line, for people."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    line = " ".join(word.decode(errors="replace") for word in words if word)
    return line or status(pid).get("Name", "unknown")


def entry_point(pid: int, abi: Abi) -> VirtAddr:
    """Where the process's program starts, from its auxiliary vector; raises TargetGone."""
    words = memoryview(_auxiliary_vector(pid)).cast(abi.auxiliary)
    return VirtAddr(dict(zip(words[::2], words[1::2], strict=False)).get(_AT_ENTRY, 0))


def _auxiliary_vector(pid: int) -> bytes:
    try:
        return Path(f"/proc/{living_tid(pid)}/auxv").read_bytes()
    except OSError as error:
        raise TargetGone(pid, None) from error


def abi(pid: int) -> Abi:
    """Of the program that the process runs; raises UsageError if such programs cannot be traced, TargetGone."""
    kind = machine(pid)
    if kind == "unknown":  # the program may not be read, by whoever may trace it
        kind = _machine_by_vector(pid)
    found = ABIS.get(kind)
    if found is None:
        raise UsageError(
            f"process {pid} runs a program for {kind}; this version of ubpx-ptracepp traces {' and '.join(ABIS)} only"
        )
    return found


def _machine_by_vector(pid: int) -> str:
    """What the kernel has made the auxiliary vector for: types of entries are small numbers in words of either size.

    32-bit entries, read as 64-bit words, have their values in the upper halves of what should be types.
    """
    types = memoryview(_auxiliary_vector(pid)).cast(X86_64.auxiliary)[::2]
    return X86_64.name if all(each <= _HIGHEST_TYPE for each in types) else I386.name


def machine(pid: int) -> str:
    """The architecture of the program that the process runs."""
    try:
        with open(f"/proc/{living_tid(pid)}/exe", "rb") as program:
            header = program.read(20)
    except OSError:
        return "unknown"
    number = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF":
        return "unknown"
    is_64_bit = header[4] == 2
    return _ELF_MACHINES.get(number, f"ELF machine {number}") + ("" if is_64_bit or number != 62 else " (x32)")


def check_attachable(pid: ProcessId) -> None:
    """Refuse, with its reason, what cannot be traced; only reads.

    Raises NoSuchProcess, KernelThread, TargetGone, AlreadyTraced, UsageError.
    """
    alone = len(tids(pid)) <= 1  # read first: an exec of another thread's ends that state of a leader
    fields = status(pid)
    if pid <= 0 or not fields:
        raise NoSuchProcess(pid)
    if fields.get("Tgid") != str(pid):
        raise UsageError(f"{pid} is a thread of process {fields.get('Tgid')}; attach to that")
    if _is_kernel_thread(pid):
        raise KernelThread(pid, fields.get("Name", "unknown"))
    if pid == os.getpid() or pid in _ancestors():
        raise UsageError(f"{pid} is {'this process itself' if pid == os.getpid() else 'an ancestor of this process'}; "
                         "stopping it would stop its tracer; trace it from elsewhere")  # fmt: skip
    tracer = _tracer_pid(fields)
    if tracer:
        raise AlreadyTraced(pid, tracer, command(tracer), None)
    if fields.get("State", "").startswith(("Z", "X")) and alone:
        raise TargetGone(pid, None)
    if machine(pid) != "unknown":
        abi(pid)


def _tracer_pid(fields: Mapping[str, str]) -> int:
    """The process that traces; TracerPid is the one thread of it that does."""
    tid = int(fields.get("TracerPid", "0"))
    return int(status(tid).get("Tgid", str(tid))) if tid else 0


def _is_kernel_thread(pid: int) -> bool:
    fields = _behind_name(pid).split()
    return bool(fields) and bool(int(fields[_FLAGS]) & _PF_KTHREAD)


def _ancestors() -> set[int]:
    found = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = parent(pid)
    return found


def explain_refusal(pid: int) -> PermissionRefused:
    """Why the kernel does not let us trace the process, as far as can be told by reading."""
    scope = yama_scope()
    if scope == NO_PTRACE:
        return PermissionRefused(pid, "kernel.yama.ptrace_scope is 3", "no process may be traced until a reboot")
    cause, way = _cause(pid, scope)
    remedy = _remedy(status(os.getpid()))
    return PermissionRefused(pid, cause, f"{way}, or {remedy}" if way else remedy)


def _cause(pid: int, scope: int) -> tuple[str, str]:
    """In the kernel's order of asking: what it objects to, and a way round that needs no privilege, or ""."""
    fields = status(pid)
    uids, gids = fields.get("Uid", "?").split()[:3], fields.get("Gid", "?").split()[:3]
    if set(uids) != {str(os.getuid())}:
        whose = f"user {uids[0]}" if len(set(uids)) == 1 else f"user {uids[0]} and has set its user id (set-uid)"
        return f"it belongs to {whose}", "run ubpx as that user"
    if set(gids) != {str(os.getgid())}:
        return f"it runs with group {gids[0]}", "run ubpx with that group"
    if _capabilities(fields) & ~_capabilities(status(os.getpid())):
        return "it has capabilities that ubpx has not", ""
    if not _is_dumpable(pid, uids[1]):
        return "it is not dumpable (PR_SET_DUMPABLE, or its program may not be read)", ""
    if scope:
        return f"kernel.yama.ptrace_scope is {scope}", "start the program with ubpx"
    return "a security module or another user namespace forbids it", ""


def _remedy(ours: Mapping[str, str]) -> str:
    if os.geteuid() == 0 and not has_capability(ours, CAP_SYS_PTRACE):
        return "give ubpx the capability CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)"
    return "run ubpx as root"


def _capabilities(fields: Mapping[str, str]) -> int:
    """The permitted ones, as the kernel's bit mask."""
    return int(fields.get("CapPrm", "0"), 16)


def has_capability(fields: Mapping[str, str], number: int) -> bool:
    """Whether a capability, by its number in <linux/capability.h>, is effective."""
    return bool(int(fields.get("CapEff", "0"), 16) >> number & 1)


def _is_dumpable(pid: int, effective_uid: str) -> bool:
    """The files of a process that is not belong to root (proc(5))."""
    try:
        return str(os.stat(f"/proc/{pid}/maps").st_uid) == effective_uid
    except OSError:
        return True


def yama_scope() -> int:
    """kernel.yama.ptrace_scope; 0 where there is no Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
