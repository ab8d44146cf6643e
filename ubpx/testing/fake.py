"""A Tracer without processes: what the core asks of it is checked as the kernel would, and logged."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs

from ubpx._errors import NoSuchProcess, SlotsExhausted, UsageError
from ubpx.core import events
from ubpx.core.ports import Launched
from ubpx.core.values import (
    Disturbance,
    MappedRange,
    Placement,
    ProcessId,
    TracerPost,
    Urgency,
    VirtAddr,
    Watched,
)
from ubpx.testing.life import Life
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import Condition, FakeThread, Happening, Stop

_SIGSTOP: Final = 19
_STOP_SIGNALS: Final = frozenset({19, 20, 21, 22})
_TRAPS_AND_FAULTS: Final = frozenset({4, 5, 7, 8, 11})
_ALL_BUT_TRAPS: Final = 0xFFFF_FFFF_FFFF_FFFF & ~sum(1 << (each - 1) for each in (*_TRAPS_AND_FAULTS, 9, _SIGSTOP))
_SYSCALLS: Final = {
    "x86_64": {"read": 0, "write": 1, "getpid": 39},
    "i386": {"read": 3, "write": 4, "getpid": 20},
}


class FakeTracer(Life):
    """Implements ``ubpx.core.ports.Tracer`` over scripted processes, of x86_64 unless the test says another.

    A test adds processes (``process``), gives the tracer to a Coordinator, tells threads what to do
    (``arrive``, ``signal``, ``fork``, ...), waits until all of it has come about (``idle``), and
    looks at memory, registers and ``log``. What the kernel would refuse, or silently get wrong, is an
    AssertionError at the place and again at ``idle``: a request about a thread that is not
    stopped, from another thread than the one that called ``open``, a signal where none can be delivered.
    A ``thread`` is always one of ours (FakeThread): the core hands back what it was given.
    """

    def __init__(self, *, patience: float = 10.0) -> None:
        super().__init__(patience=patience)
        self._owner: threading.Thread | None = None
        self._post = TracerPost(urgency=Urgency.USUAL, nice=0, placement=Placement.FREE, processor=None)

    def architecture_of(self, pid: ProcessId) -> str:
        """As the test said."""
        return self._processes[pid].architecture

    def syscall_numbers(self, architecture: str) -> Mapping[str, int]:
        """A few."""
        return _SYSCALLS.get(architecture, {})

    def open(self) -> None:
        """From now on the calling thread alone may make requests."""
        self._owner = threading.current_thread()

    def close(self) -> None:
        """AssertionError if something is traced still."""
        self._check_owner("close")
        left = [thread for thread in self._threads.values() if thread.traced]
        if left:
            self._refuse(f"the tracer is closed while it traces {left}")

    def take_post(self, urgency: Urgency, placement: Placement) -> None:
        """As asked; nobody raises what is not there."""
        self._check_owner("take_post")
        self._post = TracerPost(urgency=urgency, nice=0, placement=placement, processor=None)

    @property
    def post(self) -> TracerPost:
        """As it was taken."""
        return self._post

    def ring(self) -> None:
        """Wake ``wait``; from any thread."""
        with self._changed:
            self._rung = True
            self._changed.notify_all()

    def launch(self, argv: Sequence[str], options: Mapping[str, Any]) -> Launched:  # noqa: ARG002 - the port's
        """Raises UsageError: there is no program to start."""
        raise UsageError(f"a FakeTracer cannot start {argv!r}; add a process with fake.process()")

    def seize(self, pid: ProcessId) -> Sequence[FakeThread]:
        """Trace the process's threads, which run on."""
        self._check_owner("seize")
        process = self._processes.get(pid)
        if process is None:
            raise NoSuchProcess(pid)
        for thread in process.threads.values():
            thread.traced = True
            self._note("seize", thread)
        return tuple(process.threads.values())

    def wait(self) -> Any:
        """The next event; arrivals are served meanwhile, after all that can stop has stopped."""
        self._check_owner("wait")
        while True:
            while self._batch:
                thread, site = self._batch.popleft()
                goes_on = site.arrive(thread)
                self._note("arrived", thread, goes_on)
                if not goes_on:
                    return events.Doorbell()
                if thread.condition is not Condition.GONE:
                    self._run(thread)
            with self._changed:
                if self._queue:
                    return self._queue.popleft()
            self._gather()

    # Requests -------------------------------------------------------------------------------

    def _check_owner(self, request: str) -> None:
        if threading.current_thread() is not self._owner:
            self._refuse(f"{request} was asked for by {threading.current_thread().name}, not by the tracer thread")

    def _check_stopped(self, request: str, thread: FakeThread) -> bool:
        """Whether the thread is there to be asked; a running one is a misuse."""
        self._check_owner(request)
        if thread.condition is Condition.GONE:
            return False
        if thread.condition is not Condition.STOPPED or not thread.traced:
            self._refuse(f"{request} of thread {thread.tid}, which is {thread.condition}")
        return True

    def _run(self, thread: FakeThread) -> None:
        with self._changed:
            thread.condition, thread.ready_since = Condition.RUNNING, next(self._moments)
            thread.must_trap = thread.interrupt_since is not None
            if thread.waits_for is not None:
                thread.condition = Condition.BLOCKED
            if thread.exit_status is not None:
                self._exited(thread)

    def resume(self, thread: Any, signal: int = 0) -> None:
        """Let it run; a stop signal stops all threads of its process."""
        if not self._check_stopped("resume", thread):
            return
        self._check_delivery(thread, signal)
        self._note("resume", thread, signal)
        self._run(thread)
        if signal in _STOP_SIGNALS:
            self._stop_group(thread, signal)

    def _check_delivery(self, thread: FakeThread, signal: int) -> None:
        if signal and thread.stop is not Stop.SIGNAL:
            self._refuse(f"signal {signal} would be lost: thread {thread.tid} is in a stop of kind {thread.stop}")

    def _stop_group(self, thread: FakeThread, signal: int) -> None:
        with self._changed:
            for each in self._processes[thread.pid].threads.values():
                each.group_signal = signal
                each.script.appendleft(self._by_itself("group-stop", partial(self._group_stop, each, signal)))

    def _by_itself(self, what: str, act: Any, **options: Any) -> Happening:
        return Happening(what=what, act=act, since=next(self._moments), scripted=False, **options)

    def step(self, thread: Any, signal: int = 0) -> None:
        """One instruction, or what the test said comes instead; signals sent to it come before that."""
        if not self._check_stopped("step", thread):
            return
        self._check_delivery(thread, signal)
        self._note("step", thread, thread.at, *([signal] if signal else []))
        with self._changed:
            self._run(thread)
            end = self._by_itself("step", partial(self._end_step, thread, {}), stepping=True)
            while thread.steps and thread.blocks(thread.steps[0].signal):
                thread.script.append(attrs.evolve(thread.steps.popleft(), stepping=False))
            sent = sum(1 for each in thread.script if each.what == "sent" and not thread.blocks(each.signal))
            thread.script.insert(sent, thread.steps.popleft() if thread.steps else end)

    def listen(self, thread: Any) -> None:
        """Only from a group-stop or an interrupt's stop, as in Linux."""
        if not self._check_stopped("listen", thread):
            return
        if thread.stop is not Stop.PLAIN:
            self._refuse(f"listen of thread {thread.tid}, which is in a stop of kind {thread.stop}")
        self._note("listen", thread)
        with self._changed:
            thread.condition = Condition.LISTENING
            if thread.interrupt_since is not None or not thread.group_signal:
                self._interrupt(thread)

    def interrupt_all(self, threads: Sequence[Any]) -> None:
        """One after the other."""
        for thread in threads:
            self.interrupt(thread)

    def interrupt(self, thread: Any) -> None:
        """Interrupted follows; of a stopped thread, once it goes on."""
        self._check_owner("interrupt")
        if thread.condition is Condition.GONE:
            return
        self._note("interrupt", thread)
        with self._changed:
            self._interrupt(thread)

    def cannot_run(self, thread: Any) -> bool:
        """A thread whose vfork child has not gone yet."""
        return thread.waits_for is not None

    def disturbance(self, thread: Any) -> Disturbance:
        """As the test said."""
        found: Disturbance = thread.disturbance
        return found

    def settle(self, thread: Any) -> bool:
        """The event's stop becomes a plain one."""
        if not self._check_stopped("settle", thread):
            return False
        self._note("settle", thread)
        thread.stop, thread.interrupt_since = Stop.PLAIN, None
        thread.stops += 1
        return True

    def detach(self, thread: Any, signal: int = 0) -> None:
        """It runs on alone."""
        if not self._check_stopped("detach", thread):
            return
        self._check_delivery(thread, signal)
        if thread.overtaken in thread.script:
            self._refuse(f"thread {thread.tid} is left with a trap that nobody will answer for: it will die of it")
        self._note("detach", thread, signal)
        thread.traced, thread.sites = False, {}
        self._run(thread)

    def forget(self, thread: Any) -> None:
        """Drop the record."""
        self._check_owner("forget")
        if thread.traced and thread.condition is not Condition.GONE:
            self._note("forget", thread)
            thread.traced = False

    def fetch(self, thread: Any) -> bool:
        """Registers into ``words``; False: it is gone."""
        if not self._check_stopped("fetch", thread):
            return False
        thread.words[:] = thread.registers
        return True

    def store(self, thread: Any) -> None:
        """Registers from ``words``."""
        if self._check_stopped("store", thread):
            thread.registers[:] = thread.words

    # Signals --------------------------------------------------------------------------------

    def signal_info(self, thread: Any) -> bytes:
        """The siginfo of its stop; empty if it is gone."""
        return thread.siginfo if self._check_stopped("signal_info", thread) else b""

    def watch(self, thread: Any, watched: Sequence[Watched | None]) -> None:
        """Kept by the thread."""
        if self._check_stopped("watch", thread):
            self._note("watch", thread, tuple(watched))
            thread.watched = tuple(watched)

    def replace_signal(self, thread: Any, info: bytes) -> None:
        """What the next ``resume(signal=...)`` delivers."""
        if self._check_stopped("replace_signal", thread):
            if thread.stop is not Stop.SIGNAL:
                self._refuse(f"thread {thread.tid} has no signal to replace in a stop of kind {thread.stop}")
            thread.siginfo = info

    def correct_fault_address(self, thread: Any, address: VirtAddr) -> None:
        """Set si_addr."""
        info = self.signal_info(thread)
        self.replace_signal(thread, info[:16] + address.to_bytes(8, "little") + info[24:])

    def correct_x87_pointer(self, thread: Any, wrong: VirtAddr, right: VirtAddr) -> None:
        """Kept by the thread."""
        if self._check_stopped("correct_x87_pointer", thread) and thread.x87_pointer == wrong:
            thread.x87_pointer = right

    def block_signals(self, thread: Any) -> int:
        """All but traps, faults, SIGKILL and SIGSTOP."""
        if not self._check_stopped("block_signals", thread):
            return 0
        mask: int = thread.mask
        thread.mask |= _ALL_BUT_TRAPS
        self._note("block_signals", thread)
        return mask

    def restore_signals(self, thread: Any, mask: int) -> None:
        """Give the mask back."""
        if self._check_stopped("restore_signals", thread):
            self._note("restore_signals", thread)
            thread.mask = mask

    def pending_fault(self, thread: Any) -> bool:
        """Whether something ``late`` is still to be reported."""
        return self._check_stopped("pending_fault", thread) and thread.overtaken in thread.script

    def send_signal(self, thread: Any, signal: int) -> None:
        """It comes before all else that the thread will do."""
        self._check_owner("send_signal")
        self._note("send_signal", thread, signal)
        with self._changed:
            act = partial(self._signal_stop, thread, signal, -6, 0)
            thread.script.appendleft(self._by_itself("sent", act, signal=signal))

    # Processes ------------------------------------------------------------------------------

    def memory(self, pid: ProcessId) -> FakeMemory:
        """The memory of now."""
        return self._processes[pid].memory

    def mappings(self, pid: ProcessId) -> Sequence[MappedRange]:
        """What is mapped now."""
        return self._processes[pid].memory.mappings()

    def entry_point(self, pid: ProcessId) -> VirtAddr:
        """As the test said."""
        return self._processes[pid].entry

    def is_own_child(self, pid: ProcessId) -> bool:
        """As the test said."""
        return self._processes[pid].own_child

    def map_area(self, thread: Any, address: VirtAddr, size: int) -> bool:
        """Map it, unless the place is taken."""
        self._check_injection("map_area", thread)
        process = self._processes[thread.pid]
        if not process.can_map:
            raise SlotsExhausted(thread.pid, address, "the program's mmap failed: as the test said")
        if not process.memory.is_free(address, size):
            return False
        self._note("map_area", thread, address, size)
        process.memory.map(address, bytes(size), permissions="r-xp")
        process.areas[address] = size
        return True

    def unmap_area(self, thread: Any, address: VirtAddr, size: int) -> None:
        """Unmap what ``map_area`` mapped; anything else is a misuse."""
        self._check_injection("unmap_area", thread)
        process = self._processes[thread.pid]
        if process.areas.pop(int(address), None) != size:
            self._refuse(f"unmap_area of {size} bytes at {address:#x}, which map_area did not map")
        self._note("unmap_area", thread, address, size)
        process.memory.unmap(address, size)

    @property
    def can_jump(self) -> bool:
        """Its threads go where the script says."""
        return False

    @property
    def can_guard(self) -> bool:
        """Nobody kills it."""
        return False

    def guard(self, thread: Any, traps: int, find_place: Any) -> Any:  # noqa: ARG002 - the port's
        """A misuse."""
        self._refuse(f"guard of thread {thread.tid}, and there are none")

    def remains(self, pid: ProcessId) -> None:  # noqa: ARG002 - the port's
        """Nobody was killed."""
        return

    def clear_remains(self, thread: Any, remains: Any) -> None:  # noqa: ARG002 - the port's
        """A misuse."""
        self._refuse(f"clear_remains of thread {thread.tid}, and there are none")

    def give_back(self, thread: Any, guard: Any, areas: Any) -> None:  # noqa: ARG002 - the port's
        """There is none to be given back."""
        self._refuse(f"give_back of {guard!r} by thread {thread.tid}")

    def _check_injection(self, request: str, thread: FakeThread) -> None:
        if not self._check_stopped(request, thread):
            self._refuse(f"{request} by thread {thread.tid}, which is gone")
        if thread.stop is Stop.EVENT:
            self._refuse(f"{request} by thread {thread.tid}, which stands at an event; settle it first")
        thread.stop = Stop.PLAIN
