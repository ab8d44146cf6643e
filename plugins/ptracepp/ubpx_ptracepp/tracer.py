"""The tracer: which threads there are, what is asked of them, and what they stopped for.

Everything but ``ring`` runs in the session's tracer thread, which owns all ptrace requests: any
other thread's would fail with ESRCH, and that thread's end is the tracer's death.

Longer than our files are: it is one Protocol over one table of threads, and most methods are one request.
"""

import contextlib
import ctypes
import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any, Final, cast

from ubpx import PtraceFailed, SlotsExhausted, TargetGone, UsageError
from ubpx.core import events
from ubpx.core.ports import Site
from ubpx.core.values import MappedRange, ProcessId, ThreadId, VirtAddr
from ubpx_ptracepp import parenthood, procfs
from ubpx_ptracepp.doorbell import Doorbell
from ubpx_ptracepp.injection import (
    ORIG_RAX,
    RAX,
    RIP,
    Injector,
    Interloper,
    RegisterBuffer,
    find_syscall_insn,
    set_signal_mask,
    signal_mask,
    wait_for,
)
from ubpx_ptracepp.launch import Launch
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.parenthood import waitpid
from ubpx_ptracepp.requests import (
    OPTIONS,
    PEEK,
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_EXIT,
    PTRACE_EVENT_STOP,
    PTRACE_EVENT_VFORK,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_INTERRUPT,
    PTRACE_LISTEN,
    PTRACE_POKEUSER,
    PTRACE_SEIZE,
    PTRACE_SETREGS,
    PTRACE_SETSIGINFO,
    PTRACE_SINGLESTEP,
    SYSCALLS,
    TASK_EVENTS,
    WAIT_THREAD,
    event_message,
    quick,
    request,
    shares_memory,
    swift,
    tgkill,
)

_TRAP_STATUS: Final = signal.SIGTRAP << 8 | 0x7F
_RIP_OFFSET: Final = ctypes.c_long(RIP * 8)
_SIGINFO_SIZE: Final = 128
_SI_CODE, _SI_ADDR = 8, 16
_SI_CODE_WORD: Final = _SI_CODE // 4
_SI_KERNEL: Final = 0x80
_TRAP_TRACE: Final = 2
_EINTR: Final = 0xFFFF_FFFF_FFFF_FFFF & -errno.EINTR
_ERESTARTNOHAND: Final = 0xFFFF_FFFF_FFFF_FFFF & -514
_PROT_READ_EXEC: Final = 5
_MAP_FLAGS: Final = 0x100022  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_MADV_DONTFORK: Final = 10
_FAULTS_PENDING: Final = sum(
    1 << (each - 1) for each in (signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
)
_ALL_BUT_TRAPS: Final = 0xFFFF_FFFF_FFFF_FFFF & ~_FAULTS_PENDING


class PtraceThread:
    """One traced thread (a ``ports.TracedThread``). Owned by the tracer."""

    __slots__ = ("buffer", "held", "interrupted", "pid", "sites", "stops", "tid", "words")

    def __init__(self, tid: ThreadId, pid: ProcessId) -> None:
        self.tid: Final = tid
        self.pid: Final = pid
        self.buffer = RegisterBuffer()
        self.words = cast(MutableSequence[int], memoryview(self.buffer).cast("B").cast("Q"))
        self.sites: Mapping[int, Site] = {}
        self.held = False
        self.stops = 0
        self.interrupted = False
        """We asked it to stop, and have not seen it do so."""


class PtraceTracer:
    """Implements ``ubpx.core.ports.Tracer`` for x86_64."""

    architecture_name: Final = "x86_64"

    def __init__(self) -> None:
        self._threads: Final[dict[int, PtraceThread]] = {}
        self._doorbell: Doorbell | None = None
        self._queue: Final[deque[Any]] = deque()
        self._batch: Final[deque[tuple[PtraceThread, Site]]] = deque()
        self._parents: Final[dict[int, ProcessId]] = {}
        """Who made a task that has not appeared yet."""
        self._unannounced: Final[set[int]] = set()
        """Tasks that have appeared, and whose maker has not said so yet."""
        self._orphans: Final[dict[int, ProcessId]] = {}
        """Tasks that appeared before whoever made them said so."""
        self._kept: Final[set[int]] = set()
        """Children of our own program whose leader we trace."""
        self._memories: Final[dict[ProcessId, ProcessMemory]] = {}
        self._syscall_insns: Final[dict[ProcessId, VirtAddr]] = {}
        self._injector: Final = Injector()
        self._trap_info_buffer: Final = (ctypes.c_int32 * (_SIGINFO_SIZE // 4))()
        self._trap_info: Final = memoryview(self._trap_info_buffer).cast("B").cast("i")

    def open(self) -> None:
        """Called in the tracer thread."""
        self._doorbell = Doorbell()
        parenthood.open_session()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 5)

    def close(self) -> None:
        """Called in the tracer thread, when nothing is traced any more."""
        if self._doorbell is not None:
            self._doorbell.close()
        for memory in self._memories.values():
            memory.close()
        for pid in tuple(self._kept):
            self._let_go(pid)
        parenthood.close_session()

    def ring(self) -> None:
        """Wake ``wait``; from any thread."""
        if self._doorbell is not None:
            self._doorbell.ring()

    def launch(self, argv: Sequence[str], options: Mapping[str, Any]) -> Launch:
        """Prepare to start a program; from any thread."""
        return Launch(argv, options)

    # Attaching ------------------------------------------------------------------------------

    def seize(self, pid: ProcessId) -> Sequence[PtraceThread]:
        """Trace all threads of a running process, without stopping them."""
        procfs.check_attachable(pid)
        if self.is_own_child(pid) and parenthood.is_waited_for(pid):
            raise UsageError(
                f"a thread of this program is waiting for its child {pid} already, and the kernel would give it "
                "the tracer's stops; attach before waiting, or wait with a timeout (Popen.wait(timeout=...))"
            )
        self._keep(pid)
        seized: dict[int, PtraceThread] = {}
        try:
            self._seize_all(pid, seized)
            if seized:
                self.memory(pid)
                for child in procfs.children(pid):  # a vfork in flight: it would run into traps that nobody serves
                    if shares_memory(child, next(iter(seized))):
                        self._seize_all(ProcessId(child), seized)
        except BaseException:
            self._abandon(seized)
            self._close_memory(pid)
            self._let_go(pid)
            raise
        if pid not in seized:
            self._let_go(pid)  # the leader has exited, and is nobody's to stop
        if not seized:
            procfs.check_attachable(pid)
            raise TargetGone(pid, None)
        self._threads.update(seized)
        return tuple(seized.values())

    def _seize_all(self, pid: ProcessId, seized: dict[int, PtraceThread]) -> None:
        """Seize the threads of one process, those too that are made meanwhile."""
        seen: set[int] = set()
        while new := [tid for tid in procfs.tids(pid) if tid not in seen]:
            for tid in new:
                seen.add(tid)
                if self._seize_one(pid, tid):
                    seized[tid] = PtraceThread(ThreadId(tid), pid)

    def _keep(self, pid: ProcessId) -> None:
        """While we trace its leader, a child of our own program is not for its parent to wait for."""
        if self.is_own_child(pid):
            parenthood.keep(pid)
            self._kept.add(pid)

    def _let_go(self, pid: int, status: int | None = None) -> None:
        if pid in self._kept:
            self._kept.discard(pid)
            parenthood.let_go(pid, status)

    def _seize_one(self, pid: ProcessId, tid: int) -> bool:
        try:
            return request(PTRACE_SEIZE, tid, 0, OPTIONS)
        except PtraceFailed as error:
            fields = procfs.status(tid)
            if error.error.errno != errno.EPERM:
                raise
            if procfs.has_exited(tid):
                return False  # exited, a leader perhaps whose threads live on
            tracer = int(fields.get("TracerPid", "0"))
            if tracer == threading.get_native_id():
                return False  # the thread that made it was traced already; it will appear
            if tracer:
                procfs.check_attachable(pid)
            raise procfs.explain_refusal(pid) from error

    def _abandon(self, seized: Mapping[int, PtraceThread]) -> None:
        for tid in seized:
            with contextlib.suppress(ChildProcessError):
                request(PTRACE_INTERRUPT, tid)
                status = wait_for(tid)
                if status is None:
                    continue
                if os.WIFSTOPPED(status):
                    plain = status >> 16
                    request(PTRACE_DETACH, tid, 0, 0 if plain else os.WSTOPSIG(status))
                else:
                    self._let_go(tid, status)

    # Waiting --------------------------------------------------------------------------------

    def wait(self) -> Any:
        """The next event; arrivals at sites are served meanwhile."""
        while True:
            while self._batch:
                thread, site = self._batch.popleft()
                if not site.arrive(thread):
                    return events.Doorbell()
                quick(PTRACE_CONT, thread.tid, 0, 0)
            if self._queue:
                return self._queue.popleft()
            self._gather()

    def _gather(self) -> None:
        """Consume every stop there is before any thread goes on: so none starves."""
        peeked = os.waitid(os.P_ALL, 0, PEEK)
        while peeked is not None:
            tid = peeked.si_pid
            thread = self._threads.get(tid)
            if thread is None or peeked.si_status != signal.SIGTRAP or peeked.si_code != os.CLD_TRAPPED:
                self._consume(tid, thread)
            else:
                self._take_trap(tid, thread)
            peeked = os.waitid(os.P_ALL, 0, PEEK | os.WNOHANG)

    def _take_trap(self, tid: int, thread: PtraceThread) -> None:
        """Make the thread safe before its stop is consumed: from then on our death does no harm."""
        words = thread.words
        words[RIP] = 0
        quick(PTRACE_GETREGS, tid, 0, thread.buffer)
        site = thread.sites.get(words[RIP])
        if site is None or not (site.certain or self._is_breakpoint(tid)):
            self._consume(tid, thread)
            return
        landing = site.landing_word
        if landing is not None:
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, landing)
        elif site.landing is not None:
            site.landing_word = ctypes.c_ulong(site.landing)
            quick(PTRACE_POKEUSER, tid, _RIP_OFFSET, site.landing_word)
        elif not site.make_safe(thread):
            self._consume(tid, thread)
            return
        status = _reap(tid)
        if status == _TRAP_STATUS:
            thread.stops += 1
            self._batch.append((thread, site))
        elif status is not None:  # killed meanwhile
            self._classify(tid, thread, status)

    def _is_breakpoint(self, tid: int) -> bool:
        info = self._trap_info
        info[_SI_CODE_WORD] = 0
        quick(PTRACE_GETSIGINFO, tid, 0, self._trap_info_buffer)
        return info[_SI_CODE_WORD] == _SI_KERNEL

    def _consume(self, tid: int, thread: PtraceThread | None) -> None:
        somebodys = thread is None and self._is_untraced_child(tid)
        status = _reap(tid)
        if status is None:
            return
        if somebodys and not os.WIFSTOPPED(status):
            parenthood.hand_over(tid, status)
        else:
            self._classify(tid, thread, status)

    def _is_untraced_child(self, tid: int) -> bool:
        """A handler has started it, so that it is a child of this very thread."""
        fields = procfs.status(tid)
        ours = fields.get("PPid") == str(os.getpid()) and fields.get("Tgid") == str(tid)
        return ours and tid not in self._kept and (self._doorbell is None or tid != self._doorbell.pid)

    def _classify(self, tid: int, thread: PtraceThread | None, status: int) -> None:
        """Turn a wait status into an event; none is dropped."""
        if self._doorbell is not None and tid == self._doorbell.pid:
            self._doorbell.rearm()
            self._queue.append(events.Doorbell())
            return
        if thread is None:
            self._classify_unknown(tid, status)
            return
        if not os.WIFSTOPPED(status):
            self._let_go(tid, status)
            self._queue.append(events.ThreadGone(thread, os.waitstatus_to_exitcode(status)))
            return
        thread.stops += 1
        event = self._event_of(thread, status >> 16, os.WSTOPSIG(status))
        if event is not None:
            self._queue.append(event)

    def _event_of(self, thread: PtraceThread, event: int, number: int) -> Any:  # noqa: PLR0911 - one per kind of stop
        tid = thread.tid
        if event == 0:
            return self._signal_event(thread, number)
        if event == PTRACE_EVENT_STOP:
            if number != signal.SIGTRAP:
                return events.GroupStopped(thread, number)
            self._restart_interrupted(thread)
            return events.Interrupted(thread)
        message = event_message(tid)
        if message is None:
            return None  # killed meanwhile: its exit follows
        if event in TASK_EVENTS:
            if message in self._unannounced:
                self._unannounced.discard(message)
            else:
                self._parents[message] = thread.pid
            orphan = self._orphans.pop(message, None)
            if orphan is not None:
                self._appear(message, orphan, thread.pid)
            return events.TaskCreated(thread, ThreadId(message), event == PTRACE_EVENT_VFORK)
        if event == PTRACE_EVENT_EXEC:
            return self._exec_event(thread, message)
        if event == PTRACE_EVENT_EXIT:
            return events.ThreadExiting(thread, os.waitstatus_to_exitcode(message & 0xFFFF))
        return events.Interrupted(thread)

    def _signal_event(self, thread: PtraceThread, number: int) -> Any:
        info = _siginfo(thread.tid)
        if info is None:
            return None
        code = _code(info)
        if number == signal.SIGTRAP and code == _TRAP_TRACE:
            return events.StepDone(thread)
        address = int.from_bytes(info[_SI_ADDR : _SI_ADDR + 8], "little")
        return events.SignalArrived(thread, number, code, VirtAddr(address))

    def _exec_event(self, thread: PtraceThread, former: int) -> events.Execed:
        if former != thread.tid:
            self._threads.pop(former, None)
        self._syscall_insns.pop(thread.pid, None)
        self._keep(thread.pid)  # again, if its former leader had exited
        self._close_memory(thread.pid)  # a descriptor would stay on the old memory
        return events.Execed(thread, ThreadId(former))

    def _restart_interrupted(self, thread: PtraceThread) -> None:
        """Our interrupt must not show as EINTR in calls that the kernel does not restart itself."""
        if not thread.interrupted:
            return
        thread.interrupted = False
        if not self.fetch(thread):
            return
        words = thread.words
        call = words[ORIG_RAX]
        if words[RAX] == _EINTR and call < 1 << 63 and call != SYSCALLS["close"]:
            words[RAX] = _ERESTARTNOHAND
            self.store(thread)

    # Tasks that appear ----------------------------------------------------------------------

    def _classify_unknown(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._let_go(tid, status)
            self._parents.pop(tid, None)
            self._orphans.pop(tid, None)
            gone = PtraceThread(ThreadId(tid), ProcessId(tid))
            self._queue.append(events.ThreadGone(gone, os.waitstatus_to_exitcode(status)))
            return
        pid = ProcessId(int(procfs.status(tid).get("Tgid", "0")))
        known = self._known_pids()
        if status >> 16 == PTRACE_EVENT_EXEC and pid in known:
            thread = self._threads[tid] = PtraceThread(ThreadId(tid), pid)
            self._queue.append(self._exec_event(thread, event_message(tid) or tid))
            return
        if pid in known:
            self._appear(tid, pid, pid)
            return
        parent = self._parents.get(tid) or ProcessId(procfs.parent(pid))
        if parent in known:
            self._appear(tid, pid, parent)
        elif pid:
            self._orphans[tid] = pid

    def _known_pids(self) -> set[ProcessId]:
        """Processes with a thread that is traced, or that has announced one."""
        return {thread.pid for thread in self._threads.values()} | set(self._parents.values())

    def _appear(self, tid: int, pid: ProcessId, parent: ProcessId) -> None:
        if self._parents.pop(tid, None) is None:
            self._unannounced.add(tid)
        shares = pid == parent or any(
            shares_memory(tid, thread.tid) for thread in self._threads.values() if thread.pid == parent
        )
        thread = self._threads[tid] = PtraceThread(ThreadId(tid), pid)
        thread.stops += 1
        self._queue.append(events.ThreadAppeared(thread, pid, parent, shares))

    # Requests -------------------------------------------------------------------------------

    def resume(self, thread: PtraceThread, signal: int = 0) -> None:
        """Let it run."""
        if swift(PTRACE_CONT, thread.tid, 0, signal) == -1:
            request(PTRACE_CONT, thread.tid, 0, signal)

    def step(self, thread: PtraceThread) -> None:
        """One instruction."""
        if swift(PTRACE_SINGLESTEP, thread.tid, 0, 0) == -1:
            request(PTRACE_SINGLESTEP, thread.tid)

    def listen(self, thread: PtraceThread) -> None:
        """Stay in the group-stop."""
        request(PTRACE_LISTEN, thread.tid)

    def interrupt(self, thread: PtraceThread) -> None:
        """Ask it to stop."""
        thread.interrupted = request(PTRACE_INTERRUPT, thread.tid)

    def cannot_run(self, thread: PtraceThread) -> bool:
        """In an uninterruptible wait, state D of proc(5)."""
        return procfs.status(thread.tid).get("State", "").startswith("D")

    def settle(self, thread: PtraceThread) -> bool:
        """From an event's stop to a plain one."""
        request(PTRACE_INTERRUPT, thread.tid)
        request(PTRACE_CONT, thread.tid)
        status = wait_for(thread.tid)
        if status is not None and status >> 16 == PTRACE_EVENT_STOP:
            thread.stops += 1
            return True
        if status is not None:
            self._classify(thread.tid, thread, status)
        return False

    def detach(self, thread: PtraceThread, signal: int = 0) -> None:
        """Trace it no more."""
        if request(PTRACE_DETACH, thread.tid, 0, signal) and int(thread.tid) == thread.pid:
            self._let_go(thread.pid)  # one that was killed meanwhile stays ours until we have its status

    def forget(self, thread: PtraceThread) -> None:
        """Drop the record, and with the last of a process its memory."""
        if self._threads.get(thread.tid) is thread:
            del self._threads[thread.tid]
        if thread.pid not in self._known_pids():
            self._syscall_insns.pop(thread.pid, None)
            self._close_memory(thread.pid)

    def fetch(self, thread: PtraceThread) -> bool:
        """Registers into ``words``."""
        return swift(PTRACE_GETREGS, thread.tid, 0, thread.buffer) != -1 or request(
            PTRACE_GETREGS, thread.tid, 0, ctypes.addressof(thread.buffer)
        )

    def store(self, thread: PtraceThread) -> None:
        """Registers from ``words``."""
        if swift(PTRACE_SETREGS, thread.tid, 0, thread.buffer) == -1:
            request(PTRACE_SETREGS, thread.tid, 0, ctypes.addressof(thread.buffer))

    # Signals --------------------------------------------------------------------------------

    def signal_info(self, thread: PtraceThread) -> bytes:
        """The siginfo that it stopped for; empty if it is gone."""
        return _siginfo(thread.tid) or b""

    def replace_signal(self, thread: PtraceThread, info: bytes) -> None:
        """What the next ``resume(signal=...)`` delivers."""
        if info:
            buffer = ctypes.create_string_buffer(info, _SIGINFO_SIZE)
            request(PTRACE_SETSIGINFO, thread.tid, 0, ctypes.addressof(buffer))

    def correct_fault_address(self, thread: PtraceThread, address: VirtAddr) -> None:
        """Set si_addr."""
        info = self.signal_info(thread)
        self.replace_signal(thread, info[:_SI_ADDR] + address.to_bytes(8, "little") + info[_SI_ADDR + 8 :])

    def block_signals(self, thread: PtraceThread) -> int:
        """Block all but traps and faults; returns the former mask."""
        mask = signal_mask(thread.tid)
        if mask is None:
            return 0
        set_signal_mask(thread.tid, mask | _ALL_BUT_TRAPS)
        return mask

    def restore_signals(self, thread: PtraceThread, mask: int) -> None:
        """Give the mask back."""
        set_signal_mask(thread.tid, mask)

    def pending_fault(self, thread: PtraceThread) -> bool:
        """Whether a trap or fault is queued for the stopped thread."""
        return bool(int(procfs.status(thread.tid).get("SigPnd", "0"), 16) & _FAULTS_PENDING)

    def send_signal(self, thread: PtraceThread, signal: int) -> None:
        """To the one thread."""
        tgkill(thread.pid, thread.tid, signal)

    # Processes ------------------------------------------------------------------------------

    def memory(self, pid: ProcessId) -> ProcessMemory:
        """The memory of now."""
        memory = self._memories.get(pid)
        if memory is None:
            memory = self._memories[pid] = ProcessMemory(pid)
        return memory

    def _close_memory(self, pid: ProcessId) -> None:
        memory = self._memories.pop(pid, None)
        if memory is not None:
            memory.close()

    def mappings(self, pid: ProcessId) -> Sequence[MappedRange]:
        """What is mapped now."""
        return procfs.maps(pid)

    def entry_point(self, pid: ProcessId) -> VirtAddr:
        """Of the program that it runs; raises UsageError for one that is not x86_64."""
        kind = procfs.machine(pid)
        if kind != "x86_64":
            raise UsageError(f"process {pid} now runs a program for {kind}; only x86_64 can be traced")
        return procfs.entry_point(pid)

    def is_own_child(self, pid: ProcessId) -> bool:
        """Whether the embedding program waits for it."""
        return procfs.parent(pid) == os.getpid()

    def map_area(self, thread: PtraceThread, address: VirtAddr, size: int) -> bool:
        """Private executable memory exactly there; False: the place is taken."""
        arguments = (address, size, _PROT_READ_EXEC, _MAP_FLAGS, -1, 0)
        result = self._call(thread, "mmap", arguments)
        if result == -errno.EEXIST:
            return False
        if result < 0:
            reason = f"the program's mmap failed: {os.strerror(-result)}"
            raise SlotsExhausted(thread.pid, address, reason)
        if result != address:  # a kernel without MAP_FIXED_NOREPLACE took the address as a hint
            self._call(thread, "munmap", (result, size))
            return False
        self._call(thread, "madvise", (address, size, _MADV_DONTFORK))
        return True

    def unmap_area(self, thread: PtraceThread, address: VirtAddr, size: int) -> None:
        """Give it back."""
        self._call(thread, "munmap", (address, size))

    def _call(self, thread: PtraceThread, name: str, arguments: Sequence[int]) -> int:
        pid = thread.pid
        insn = self._syscall_insns.get(pid)
        if insn is None:
            insn = self._syscall_insns[pid] = find_syscall_insn(pid, self._memories[pid])
        try:
            return self._injector.call(pid, thread.tid, insn, name, arguments)
        except Interloper as other:
            if other.wait_status is not None:
                self._classify(thread.tid, thread, other.wait_status)
            raise TargetGone(pid, None) from other


def _reap(tid: int) -> int | None:
    """The wait status that was peeked at; None if it is there no more."""
    try:
        found, status = waitpid(tid, WAIT_THREAD | os.WNOHANG)
    except ChildProcessError:
        return None
    return status if found else None


def _siginfo(tid: int) -> bytes | None:
    info = ctypes.create_string_buffer(_SIGINFO_SIZE)
    return info.raw if request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info)) else None


def _code(info: bytes) -> int:
    return int.from_bytes(info[_SI_CODE : _SI_CODE + 4], "little", signed=True)
