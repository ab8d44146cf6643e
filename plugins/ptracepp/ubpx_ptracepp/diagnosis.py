"""Whether a process can be attached to, found out by reading /proc alone: no ptrace, no signal."""

import errno
import os
import platform
import resource
from collections.abc import Collection, Mapping
from typing import Final

from ubpx import NoSuchProcess, UbpxError
from ubpx.core.values import Diagnosis, Finding, ProcessId, Severity
from ubpx_ptracepp import procfs
from ubpx_ptracepp.placement import NICE_STEP

_CAP_SYS_ADMIN: Final = 21
_CAP_SYS_NICE: Final = 23
_NONE: Final = "0"


def diagnose(pid: ProcessId | None) -> Diagnosis:
    """What attaching to the process would say; without a pid, what this machine says of attaching at all."""
    if pid is None:
        return Diagnosis(subject="processes of this machine", findings=of_machine())
    subject = f"{pid} ({procfs.command(pid)})" if procfs.status(pid) else str(pid)
    return Diagnosis(subject=subject, findings=of_process(pid))


def of_process(pid: ProcessId) -> tuple[Finding, ...]:
    """The one reason against it; or that there is none, and what else may go wrong."""
    try:
        procfs.check_attachable(pid)
        _check_permitted(pid)
    except UbpxError as error:
        what, _, remedy = str(error).rpartition("; ")
        return (Finding(severity=Severity.REFUSAL, what=what, remedy=remedy),)
    found = Finding(severity=Severity.FINE, what="nobody traces it, and the kernel permits it", remedy="")
    return found, *of_status(procfs.status(procfs.living_tid(pid)), procfs.status(os.getpid()))


def _check_permitted(pid: ProcessId) -> None:
    """Raises PermissionRefused, NoSuchProcess.

    The kernel asks the same for opening /proc/PID/mem as for PTRACE_SEIZE: PTRACE_MODE_ATTACH, security
    modules included (proc(5), ptrace(2)). Opening it does nothing to the process.
    """
    try:
        os.close(os.open(f"/proc/{procfs.living_tid(pid)}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise procfs.explain_refusal(pid) from error
        raise NoSuchProcess(pid) from error


def of_status(target: Mapping[str, str], ours: Mapping[str, str]) -> tuple[Finding, ...]:
    """What may go wrong later, by the fields of both /proc/PID/status."""
    found = []
    if target.get("Seccomp", _NONE) != _NONE and not procfs.has_capability(ours, _CAP_SYS_ADMIN):
        found.append(
            Finding(
                severity=Severity.WARNING,
                what="its seccomp filter may forbid the system call that maps slots, and only root can suspend that",
                remedy='run ubpx as root, or attach with slots="none"',
            )
        )
    if "shstk" in target.get("x86_Thread_features", "").split():
        found.append(
            Finding(
                severity=Severity.WARNING,
                what="it has a user shadow stack, which calls and returns that ubpx does for it do not change",
                remedy="start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off, or leave calls and returns alone",
            )
        )
    return tuple(found)


def of_machine() -> tuple[Finding, ...]:
    """The kernel, what it lets us trace, and whether we trace its programs."""
    ours = procfs.status(os.getpid())
    return _kernel(), of_privilege(ours, procfs.yama_scope()), of_post(ours, os.sched_getaffinity(0))


def of_post(ours: Mapping[str, str], processors: Collection[int]) -> Finding:
    """Whether a tracer thread may be raised, and has a choice of processors."""
    lowest = 20 - resource.getrlimit(resource.RLIMIT_NICE)[0]  # see getrlimit(2)
    raised = os.getpriority(os.PRIO_PROCESS, 0) - NICE_STEP
    may = procfs.has_capability(ours, _CAP_SYS_NICE) or raised >= lowest
    where = f"any of {len(processors)} processors" if len(processors) > 1 else "one processor alone"
    what = f"the tracer thread {'may' if may else 'may not'} have a raised priority, and runs on {where}"
    remedy = "" if may else f"run ubpx with CAP_SYS_NICE, or have the limit of nice at {raised} or lower (ulimit -e)"
    return Finding(severity=Severity.FINE if may else Severity.WARNING, what=what, remedy=remedy)


def _kernel() -> Finding:
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.machine() == "x86_64":
        return Finding(severity=Severity.FINE, what=f"{system}, traced by ubpx-ptracepp", remedy="")
    return Finding(
        severity=Severity.REFUSAL,
        what=f"{system}: this version of ubpx-ptracepp traces programs of x86_64 machines only",
        remedy="use it on such a machine",
    )


def of_privilege(ours: Mapping[str, str], scope: int) -> Finding:
    """Whom we may trace, by our own /proc/PID/status and kernel.yama.ptrace_scope."""
    if scope == procfs.NO_PTRACE:
        remedy = "set another value at boot; it cannot be changed before"
        return Finding(severity=Severity.REFUSAL, what="kernel.yama.ptrace_scope is 3: nobody traces", remedy=remedy)
    if procfs.has_capability(ours, procfs.CAP_SYS_PTRACE):
        what = "ubpx has CAP_SYS_PTRACE: it may trace the processes of every user"
        return Finding(severity=Severity.FINE, what=what, remedy="")
    if scope == 0:
        what = "kernel.yama.ptrace_scope is 0: ubpx may trace the processes of its user"
        return Finding(severity=Severity.FINE, what=what, remedy="")
    whom = "its own descendants alone" if scope == 1 else "nothing"
    return Finding(
        severity=Severity.WARNING,
        what=f"kernel.yama.ptrace_scope is {scope}: ubpx may trace {whom}",
        remedy="start programs by ubpx, run it as root, or set kernel.yama.ptrace_scope=0",
    )
