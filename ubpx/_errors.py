"""The tree of errors. Each carries its data; its message says what, where, and what next."""

from collections.abc import Sequence

from ubpx.core.values import Insn, VirtAddr


class UbpxError(Exception):
    """Everything that ubpx raises on purpose is one of these."""


class UsageError(UbpxError):
    """The call cannot be right in this state; nothing was done."""


class StaleHit(UsageError):
    """A hit was used after its handler had returned."""

    def __init__(self) -> None:
        super().__init__("this hit is over: its handler has returned; keep hit.snapshot() instead")


class UnknownRegister(UsageError, AttributeError):
    """No register has this name. An AttributeError too, so that ``hasattr(hit.regs, name)`` answers."""

    def __init__(self, architecture: str, register: object, known: Sequence[str]) -> None:
        super().__init__(f"{architecture} has no register {register!r}; it has {', '.join(known)}")
        self.architecture, self.register, self.known = architecture, register, tuple(known)


class NoSuchProcess(UbpxError):
    """No process has this pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"no process has pid {pid}; list the running ones with ps -e")
        self.pid = pid


class KernelThread(UbpxError):
    """A thread of the kernel has no user space to probe."""

    def __init__(self, pid: int, name: str) -> None:
        super().__init__(f"{pid} ({name}) is a kernel thread; give the pid of a user-space process")
        self.pid, self.name = pid, name


class PermissionRefused(UbpxError):
    """The kernel does not let us trace this process."""

    def __init__(self, pid: int, cause: str, remedy: str) -> None:
        super().__init__(f"may not trace {pid}: {cause}; {remedy}")
        self.pid, self.cause, self.remedy = pid, cause, remedy


class AlreadyTraced(UbpxError):
    """Linux gives a process one tracer, and this one has it."""

    def __init__(self, pid: int, tracer_pid: int, tracer_command: str, broker: str | None) -> None:
        remedy = f"join its broker with --join ({broker})" if broker else "stop that tracer first"
        by = f"{tracer_pid} ({tracer_command})" if tracer_pid else tracer_command
        super().__init__(f"cannot attach to {pid}: already traced by {by}; {remedy}")
        self.pid, self.tracer_pid = pid, tracer_pid
        self.tracer_command, self.broker = tracer_command, broker


class TargetGone(UbpxError):
    """The process has ended."""

    def __init__(self, pid: int, status: int | None) -> None:
        if status is None:
            how = "has ended"
        elif status < 0:
            how = f"was killed by signal {-status}"
        else:
            how = f"exited with status {status}"
        super().__init__(f"process {pid} {how}; attach to one that runs")
        self.pid, self.status = pid, status


class SpecError(UbpxError):
    """A probe specification leads nowhere, or to more than one place."""


class UnknownSymbol(SpecError):
    """No symbol has this name in the module."""

    def __init__(self, spec: str, nearest: Sequence[str]) -> None:
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "its file has no symbol table with such names"
        super().__init__(f"no symbol for {spec!r}; {hint}")
        self.spec, self.nearest = spec, tuple(nearest)


class AmbiguousSymbol(SpecError):
    """The name has several addresses."""

    def __init__(self, spec: str, candidates: Sequence[str]) -> None:
        super().__init__(f"{spec!r} has several addresses: {', '.join(candidates)}; choose one of them")
        self.spec, self.candidates = spec, tuple(candidates)


class UnknownModule(SpecError):
    """No such file is mapped into the process."""

    def __init__(self, module: str, nearest: Sequence[str]) -> None:
        hint = f"mapped are {', '.join(nearest)}" if nearest else "nothing like it is mapped"
        super().__init__(f"module {module!r} is not mapped in the process; {hint}")
        self.module, self.nearest = module, tuple(nearest)


class UnreadableModule(SpecError):
    """A mapped file cannot be read, is not the one that was mapped, or is not a sound ELF file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read the symbols of {path!r}: {reason}; probe an address (0x...) instead")
        self.path, self.reason = path, reason


class UnboundIfunc(SpecError):
    """The function's implementation is chosen at run time, and nothing in the process has chosen yet."""

    def __init__(self, spec: str, candidates: Sequence[str]) -> None:
        if candidates:
            remedy = f"probe an implementation: {', '.join(candidates)}"
        else:
            remedy = "let the program call it once, or probe an address (0x...)"
        super().__init__(
            f"{spec!r} has several implementations (IFUNC), and the program has not bound it to one; {remedy}"
        )
        self.spec, self.candidates = spec, tuple(candidates)


class AddressRefused(UbpxError):
    """No probepoint can be at this address."""

    def __init__(self, address: VirtAddr, reason: str, remedy: str) -> None:
        super().__init__(f"cannot probe {address:#x}: {reason}; {remedy}")
        self.address, self.reason, self.remedy = address, reason, remedy


class NotExecutable(AddressRefused):
    """Nothing executable is mapped there."""


class NotAnInstruction(AddressRefused):
    """The address is not proved to be the first byte of an instruction."""


class InsnRefused(UbpxError):
    """This instruction cannot be probed."""

    def __init__(self, address: VirtAddr, insn: Insn | None, reason: str) -> None:
        what = f"'{insn}'" if insn else "what stands there"
        super().__init__(f"cannot probe {what} at {address:#x}: {reason}; probe the instruction before or after it")
        self.address, self.insn, self.reason = address, insn, reason


class NotEmulated(UbpxError):
    """This time the instruction itself must run; who emulates takes the slot for this one hit."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the instruction cannot be emulated this time: {reason}; run it itself, in a slot or in place"
        )
        self.reason = reason


class StrategyRefused(UbpxError):
    """The strategy asked for does not fit the instruction or the target."""

    def __init__(self, address: VirtAddr, strategy: str, allowed: Sequence[str], reason: str) -> None:
        choice = f"use {' or '.join(allowed)}, or leave strategy= out" if allowed else "probe another address"
        super().__init__(f"{strategy} is not possible at {address:#x}: {reason}; {choice}")
        self.address, self.strategy, self.allowed, self.reason = address, strategy, tuple(allowed), reason


class ProbepointBusy(UbpxError):
    """Somebody holds this address exclusively, or its bytes."""

    def __init__(self, address: VirtAddr, holder: str) -> None:
        super().__init__(
            f"{address:#x} is held by client {holder!r}; wait for it to leave, or probe without exclusive=True"
        )
        self.address, self.holder = address, holder


class DebugRegistersBusy(ProbepointBusy):
    """All hardware debug registers of the process are taken."""

    def __init__(self, address: VirtAddr, holders: Sequence[str]) -> None:
        UbpxError.__init__(
            self,
            f"no debug register is left to watch {address:#x}: they are held by {', '.join(map(repr, holders))}; "
            "wait for one of them to leave",
        )
        self.address, self.holder, self.holders = address, holders[0], tuple(holders)


class ForeignTrap(UbpxError):
    """A trap that is not ours stands there already."""

    def __init__(self, address: VirtAddr, found: bytes) -> None:
        super().__init__(
            f"a trap that ubpx did not write stands at {address:#x} ({found.hex(' ')}); "
            "remove it with the tool that set it"
        )
        self.address, self.found = address, found


class SlotsExhausted(UbpxError):
    """No out-of-line slot can be had within reach."""

    def __init__(self, pid: int, address: VirtAddr, reason: str) -> None:
        super().__init__(f"no slot for {address:#x} in process {pid}: {reason}; release other probes and try again")
        self.pid, self.address, self.reason = pid, address, reason


class MemoryFault(UbpxError):
    """The target's memory cannot be reached there."""

    def __init__(self, address: int, size: int, operation: str) -> None:
        super().__init__(
            f"cannot {operation} {size} bytes at {address:#x}: not mapped, or protected; look into /proc/PID/maps"
        )
        self.address, self.size, self.operation = address, size, operation


class PtraceFailed(UbpxError):
    """The kernel refused a ptrace request that should have worked."""

    def __init__(self, request: str, tid: int, error: OSError) -> None:
        super().__init__(f"{request} of thread {tid} failed: {error.strerror}; please report this with ubpx --debug")
        self.request, self.tid, self.error = request, tid, error


class PluginFailed(UbpxError):
    """A plugin could not be loaded, or one of its hooks raised."""

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(f"plugin {plugin!r} failed: {reason}; mend or uninstall it")
        self.plugin, self.reason = plugin, reason


class NoTracer(UbpxError):
    """No installed plugin can trace."""

    def __init__(self) -> None:
        super().__init__("no tracer is installed; install one with: pip install ubpx-ptracepp")


class NoBroker(UbpxError):
    """There is no broker to connect to."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"no broker: {what}; {remedy}")
        self.what, self.remedy = what, remedy


class BrokerGone(UbpxError):
    """The connection to the broker has ended; it has swept what we had there."""

    def __init__(self, broker: str, reason: str) -> None:
        super().__init__(f"the broker at {broker} is gone: {reason}; connect again")
        self.broker, self.reason = broker, reason


class QuotaExceeded(UbpxError):
    """A client in another process may not have more of this."""

    def __init__(self, resource: str, limit: int) -> None:
        super().__init__(
            f"the broker gives one connection no more than {limit} {resource}; give some back, or have it started "
            f"with a higher limit (ubpx serve --help)"
        )
        self.resource, self.limit = resource, limit


class LeftAtExec(UsageError):
    """The process runs another program, and was left there as it was asked for."""

    def __init__(self, pid: int, follow: str) -> None:
        super().__init__(
            f"process {pid} runs another program and was left there (follow={follow!r}); attach again, or follow "
            "its execs: follow='exec' or 'all'"
        )
        self.pid, self.follow = pid, follow


class ClientQuarantined(UbpxError):
    """This client's handlers failed too often; it may not probe again."""

    def __init__(self, client: str, reason: str) -> None:
        super().__init__(f"client {client!r} is quarantined: {reason}; mend its handlers and join under a new client")
        self.client, self.reason = client, reason


class InternalError(UbpxError):
    """ubpx itself is wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; this is a bug in ubpx, please report it with ubpx --debug")
        self.what = what


__all__ = [
    "AddressRefused", "AlreadyTraced", "AmbiguousSymbol", "BrokerGone", "ClientQuarantined", "DebugRegistersBusy",
    "ForeignTrap", "InsnRefused", "InternalError", "KernelThread", "LeftAtExec", "MemoryFault", "NoBroker",
    "NoSuchProcess",
    "NoTracer", "NotAnInstruction", "NotExecutable", "PermissionRefused", "PluginFailed", "ProbepointBusy",
    "PtraceFailed", "QuotaExceeded", "SlotsExhausted", "SpecError", "StaleHit", "StrategyRefused", "TargetGone",
    "UbpxError", "UnboundIfunc", "UnknownModule", "UnknownRegister", "UnknownSymbol", "UnreadableModule",
    "UsageError",
]  # fmt: skip
