"""What /proc says about processes, and what it means for attaching."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ubpx import AlreadyTraced, KernelThread, NoSuchProcess, PermissionRefused, TargetGone, UsageError
from ubpx.core.values import MappedRange, ProcessId, VirtAddr, parse_maps

_PF_KTHREAD: Final = 0x0020_0000  # <linux/sched.h>
_ELF_MACHINES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_AT_ENTRY: Final = 9


def status(tid: int) -> dict[str, str]:
    """The fields of /proc/TID/status; empty if it is gone."""
    try:
        text = Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def tids(pid: int) -> list[int]:
    """The threads of a process; empty if it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def has_exited(tid: int) -> bool:
    """Whether the thread is gone, or a zombie: a leader stays one until its other threads have gone."""
    return status(tid).get("State", "X").startswith(("Z", "X"))


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
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


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


def entry_point(pid: int) -> VirtAddr:
    """Where the process's program starts, from its auxiliary vector; raises TargetGone."""
    try:
        vector = memoryview(Path(f"/proc/{living_tid(pid)}/auxv").read_bytes()).cast("Q")
    except OSError as error:
        raise TargetGone(pid, None) from error
    entries = dict(zip(vector[::2], vector[1::2], strict=True))
    return VirtAddr(entries.get(_AT_ENTRY, 0))


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
    kind = machine(pid)
    if kind not in ("x86_64", "unknown"):
        raise UsageError(f"process {pid} runs a program for {kind}; this version of ubpx-ptracepp traces x86_64 only")


def _tracer_pid(fields: Mapping[str, str]) -> int:
    """The process that traces; TracerPid is the one thread of it that does."""
    tid = int(fields.get("TracerPid", "0"))
    return int(status(tid).get("Tgid", str(tid))) if tid else 0


def _is_kernel_thread(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return bool(int(fields[6]) & _PF_KTHREAD)


def _ancestors() -> set[int]:
    found = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = parent(pid)
    return found


def explain_refusal(pid: int) -> PermissionRefused:
    """Why the kernel said EPERM to PTRACE_SEIZE, as far as can be told by reading."""
    fields = status(pid)
    scope = _yama_scope()
    owner = fields.get("Uid", "?").split()[0]
    if scope == 3:
        return PermissionRefused(pid, "kernel.yama.ptrace_scope is 3", "no process may be traced until a reboot")
    if owner != str(os.geteuid()):
        return PermissionRefused(pid, f"it belongs to user {owner}", "run ubpx as that user or as root")
    if scope in (1, 2):
        return PermissionRefused(
            pid, f"kernel.yama.ptrace_scope is {scope}", "run as root, or start the program with ubpx"
        )
    return PermissionRefused(pid, "the kernel's ptrace access check failed (set-uid, not dumpable)", "run ubpx as root")


def _yama_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
