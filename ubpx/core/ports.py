"""What the core needs of the world, as Protocols; backends implement them.

One page, although a long one: it is nearly all signatures and docstrings, and whoever writes a backend or a resolver
reads it as a whole.
"""

from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from typing import Any, Final, NamedTuple, Protocol, overload

from ubpx._errors import UbpxError
from ubpx.core.values import (
    Disturbance,
    HitRecord,
    MappedRange,
    Place,
    Placement,
    ProcessId,
    ThreadId,
    TracerPost,
    Urgency,
    VirtAddr,
    Watched,
)


class Memory(Protocol):
    """One address space of a target."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises MemoryFault if any of them is not mapped.
        """
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write as the program itself could: page protections hold.

        Raises MemoryFault, and then wrote nothing the program could not have written itself.
        """
        ...

    def patch(self, address: int, data: bytes) -> None:
        """Write through page protections, for traps and slots (private copy of the page).

        Raises MemoryFault if the address is not mapped.
        """
        ...


class Refusal(NamedTuple):
    """A place that cannot be probed, by its name for people, and why."""

    name: str
    error: UbpxError


class FunctionPlaces(Sequence["Place | Refusal"]):
    """A resolver's answers to a glob, of which a Place is made when somebody asks for it: there may be a million.

    Each of ``starts`` is a function's own start, known as such: an instruction starts there, it is no data, and in no
    restartable sequence. ``others`` are the answers that take more to say. Immutable; usable from any thread.
    """

    def __init__(
        self, starts: Sequence[VirtAddr], describe: Callable[[VirtAddr], Place], others: "Sequence[Place | Refusal]"
    ) -> None:
        self.starts: Final = starts
        """Ascending, each once."""
        self.describe: Final = describe
        """The Place of one of them."""
        self.others: Final = others
        """Of other addresses: Places, and then Refusals."""

    @overload
    def __getitem__(self, index: int) -> "Place | Refusal": ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Place | Refusal]": ...
    def __getitem__(self, index: int | slice) -> "Place | Refusal | Sequence[Place | Refusal]":
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        known = len(self.starts)
        return self.describe(self.starts[at]) if at < known else self.others[at - known]

    def __len__(self) -> int:
        return len(self.starts) + len(self.others)


class ProcessView(Protocol):
    """A traced process, as hooks see it. Valid while its target is attached."""

    @property
    def pid(self) -> ProcessId:
        """The process's id."""
        ...

    @property
    def proc(self) -> str:
        """A directory of /proc that answers for the process, even when its leader has exited."""
        ...

    @property
    def memory(self) -> Memory:
        """The program's memory; reads never show a trap of ours."""
        ...

    def mappings(self) -> Sequence[MappedRange]:
        """What is mapped now, ascending, slot areas included."""
        ...


class ClientApi(Protocol):
    """A client, as hooks see it: the plugin's own share in one target."""

    @property
    def name(self) -> str:
        """Unique among the target's living clients."""
        ...

    @property
    def target(self) -> Any:
        """The live ``ubpx.Target``."""
        ...

    @property
    def leases(self) -> Sequence[Any]:
        """Its live leases, the oldest first."""
        ...

    def probe(self, place: str | int, handler: Callable[[Any], object], **options: Any) -> Any:
        """Lease a probepoint; see ``ubpx.Client.probe``."""
        ...

    def probe_many(self, places: Iterable[str | int] | str, handler: Callable[[Any], object], **options: Any) -> Any:
        """Lease many at once; see ``ubpx.Client.probe_many``."""
        ...

    def close(self) -> None:
        """Give everything back and leave."""
        ...


class Sink(Protocol):
    """One output format of ``ubpx trace``: makes text, writes nothing. One object for each trace.

    Each text ends its own lines. Names come from the program: what could control a terminal must be escaped.
    """

    def begin(self) -> str:
        """What precedes the first hit."""
        ...

    def hit(self, record: HitRecord) -> str:
        """One hit."""
        ...

    def counts(self, counts: Mapping[str, int]) -> str:
        """Hits by spec; with ``--count`` instead of the three others."""
        ...

    def end(self) -> str:
        """What follows the last hit."""
        ...


class TracedThread(Protocol):
    """A tracer's record of one thread; made by the tracer, one object for the thread's life."""

    @property
    def tid(self) -> ThreadId:
        """As the tracer numbers it."""
        ...

    @property
    def pid(self) -> ProcessId:
        """Its process."""
        ...

    words: MutableSequence[int]
    """The registers as last fetched, in the order of ``Architecture.register_names``.

    At an arrival the PC reads as the probed address.
    """
    sites: Mapping[int, "Site"]
    """By the PC that a thread shows after a trap: the fast lane's only look-up.

    Only by ``sites[pc]``, KeyError meaning that there is none: a site may be made when it is first looked up.
    """
    held: bool
    """Somebody holds the thread: an arrival must not end in going on at once."""
    stops: int
    """Stops of this thread that the tracer has consumed."""
    reports_syscalls: bool
    """Whether its system calls are events, from the next time on that it is let run."""


class Site(Protocol):
    """One trap as the fast lane sees it, prebuilt when it was armed.

    At a stop for whose PC ``thread.sites`` has one the tracer makes the thread safe (``landing``,
    else ``make_safe``), then consumes the stop, then calls ``arrive``.
    """

    landing: VirtAddr | None
    """Where a thread can go on as if the trap were not there; None: ask ``make_safe``."""
    certain: bool
    """False: the PC alone proves nothing, si_code must say that it was a breakpoint."""
    landing_word: Any
    """For the tracer alone: ``landing`` in the form that its requests take, once the site needs no closer look."""
    watchful: int
    """For the tracer alone: at so many more arrivals it looks whether the thread had blocked traps; begins as 3."""

    @property
    def in_slot(self) -> bool:
        """The trap lies in a slot, where a jump from the program leads: a thread goes on from there as it is.

        Before it does it may stop there once more, for something else.
        """
        ...

    def make_safe(self, thread: TracedThread) -> bool:
        """Set the thread's registers so that it can go on; False: this trap is not ours.

        ``thread.words`` are those at the stop, and are restored before this returns.
        """
        ...

    def arrive(self, thread: TracedThread) -> bool:
        """Run the handlers. True: continue the thread at once, and all is as before: what ``sites`` has, which threads
        there are. False: the core has it.
        """
        ...

    @property
    def express(self) -> tuple[VirtAddr, Callable[[TracedThread], bool]] | None:
        """What may take the place of ``arrive`` for a thread that does not step itself, once ``words`` say that it is
        at this address, as the program is to see it. None: nothing.
        """
        ...


class Launched(Protocol):
    """A program about to start: forked, not yet exec'd."""

    @property
    def pid(self) -> ProcessId | None:
        """None: not even forked."""
        ...

    def go(self) -> None:
        """Let it exec."""
        ...

    def finish(self) -> Any:
        """The ``subprocess.Popen`` of the started program; raises UsageError if it could not be started."""
        ...


class Guard(Protocol):
    """What a program needs to know of us to go on unharmed when its tracer is killed; it lies in its own memory."""

    @property
    def code(self) -> range:
        """Where threads are that put something right themselves."""
        ...

    @property
    def room(self) -> int:
        """How many more traps it can know."""
        ...

    def stand(self, traps: Sequence[tuple[VirtAddr, bytes]], *, for_good: bool = False) -> None:
        """These traps are about to be written, each over these bytes. There is room for them.

        ``for_good``: they are known until all of the guard is given back, and told of once.
        """
        ...

    def fall(self, traps: Sequence[tuple[VirtAddr, bytes]]) -> None:
        """They were taken out; a thread that has run into one may still come."""
        ...

    def forget(self, addresses: Sequence[VirtAddr]) -> None:
        """The program has put something else there: a trap, if it is one, is its own."""
        ...


class Remains(Protocol):
    """What a killed tracer has left in a program, as the program's memory tells it: nothing of it is certain."""

    @property
    def traps(self) -> Sequence[tuple[VirtAddr, bytes]]:
        """Where one may stand, and over which bytes."""
        ...

    @property
    def areas(self) -> Sequence[tuple[VirtAddr, int]]:
        """Of slots: start and size."""
        ...

    @property
    def guard_code(self) -> range:
        """Where a thread may be that puts something right itself; empty where there is none."""
        ...

    @property
    def masks(self) -> Sequence[tuple[ThreadId, int]]:
        """Threads whose signals were blocked, and what they had blocked themselves."""
        ...


class Tracer(Protocol):
    """What stops and starts threads. All methods but ``ring`` belong to the session's tracer thread."""

    @property
    def can_jump(self) -> bool:
        """Whether threads that jump to a trap in a slot arrive at it: programs run for real."""
        ...

    @property
    def can_guard(self) -> bool:
        """Whether programs can have guards."""
        ...

    def architecture_of(self, pid: ProcessId) -> str:
        """The name of what the traced process's present program is made for; an exec may change it.

        Raises UsageError if such programs cannot be traced.
        """
        ...

    def syscall_numbers(self, architecture: str) -> Mapping[str, int]:
        """The system calls of one architecture's programs, by name."""
        ...

    def open(self) -> None:
        """Called once, in the tracer thread, before anything else."""
        ...

    def close(self) -> None:
        """Called once, in the tracer thread, when nothing is traced any more."""
        ...

    def take_post(self, urgency: Urgency, placement: Placement) -> None:
        """Have this thread run so from now on, as far as that is permitted; ``close`` ends it."""
        ...

    @property
    def post(self) -> TracerPost:
        """How the tracer thread runs now. From any thread."""
        ...

    def ring(self) -> None:
        """Make ``wait`` return a Doorbell soon. From any thread; rings may fall into one."""
        ...

    def launch(self, argv: Sequence[str], options: Mapping[str, Any]) -> Launched:
        """Prepare to start a program; ``options`` are Popen's. From any thread. Raises UsageError."""
        ...

    def seize(self, pid: ProcessId) -> Sequence[TracedThread]:
        """Trace all threads of a running process, without stopping them; and of children that share its memory.

        Raises NoSuchProcess, KernelThread, AlreadyTraced, PermissionRefused, TargetGone,
        and then traces none of them.
        """
        ...

    def wait(self) -> Any:
        """The next StopEvent, Interruptions, or a Doorbell; meanwhile arrivals at sites are served (see Site).

        After an arrival that the core took charge of it returns a Doorbell, so that nobody waits in vain.
        """
        ...

    def resume(self, thread: TracedThread, signal: int = 0) -> None:
        """Let the thread run, delivering ``signal`` if it stopped for one."""
        ...

    def step(self, thread: TracedThread, signal: int = 0) -> None:
        """Let the thread run one instruction, or into the handler of ``signal``; StepDone follows."""
        ...

    def listen(self, thread: TracedThread) -> None:
        """Leave the thread in its group-stop, and hear when that ends."""
        ...

    def interrupt(self, thread: TracedThread) -> None:
        """Ask a running thread to stop: Interrupted follows, unless something else comes first."""
        ...

    def interrupt_all(self, threads: Sequence[TracedThread]) -> None:
        """As ``interrupt`` for each, in one go."""
        ...

    def cannot_run(self, thread: TracedThread) -> bool:
        """Whether a thread that was asked to stop waits in the kernel where it cannot, as for a vfork child.

        It runs nothing of the program's before it has stopped.
        """
        ...

    def disturbance(self, thread: TracedThread) -> Disturbance:
        """What a running thread would notice of being stopped; from a stopped one, nothing."""
        ...

    def settle(self, thread: TracedThread) -> bool:
        """Turn an event's stop into a plain one without an instruction run; False: it is gone."""
        ...

    def detach(self, thread: TracedThread, signal: int = 0) -> None:
        """Trace the stopped thread no more."""
        ...

    def forget(self, thread: TracedThread) -> None:
        """The thread is gone or left; drop the record. With a process's last its parent may wait for it again."""
        ...

    def fetch(self, thread: TracedThread) -> bool:
        """Fill ``thread.words`` from a stopped thread; False: it is gone."""
        ...

    def store(self, thread: TracedThread) -> None:
        """Write ``thread.words`` to the stopped thread."""
        ...

    def watch(self, thread: TracedThread, watched: Sequence[Watched | None]) -> None:
        """Have the stopped thread's debug registers watch these, in their order; None: nothing."""
        ...

    def replace_signal(self, thread: TracedThread, info: bytes) -> None:
        """Make ``info`` (a siginfo) what the next ``resume(signal=...)`` delivers."""
        ...

    def signal_info(self, thread: TracedThread) -> bytes:
        """The siginfo of the signal that the thread stopped for."""
        ...

    def correct_fault_address(self, thread: TracedThread, address: VirtAddr) -> None:
        """Set si_addr of the signal that the thread stopped for."""
        ...

    def correct_x87_pointer(self, thread: TracedThread, wrong: VirtAddr, right: VirtAddr) -> None:
        """If the last floating-point instruction (FIP) is said to be at ``wrong``, have it be at ``right``."""
        ...

    def block_signals(self, thread: TracedThread) -> int:
        """Block what can be blocked, except traps; returns the mask to give back."""
        ...

    def restore_signals(self, thread: TracedThread, mask: int) -> None:
        """Give the mask back."""
        ...

    def pending_fault(self, thread: TracedThread) -> bool:
        """Whether a trap or fault of the stopped thread is still to be reported."""
        ...

    def send_signal(self, thread: TracedThread, signal: int) -> None:
        """Send a signal to the one thread."""
        ...

    def memory(self, pid: ProcessId) -> Memory:
        """The process's memory of now; an exec needs a new one."""
        ...

    def mappings(self, pid: ProcessId) -> Sequence[MappedRange]:
        """What the process has mapped now."""
        ...

    def entry_point(self, pid: ProcessId) -> VirtAddr:
        """Of the program that the process runs."""
        ...

    def is_own_child(self, pid: ProcessId) -> bool:
        """Whether the embedding program is the process's parent, and wants its exit status."""
        ...

    def map_area(self, thread: TracedThread, address: VirtAddr, size: int) -> bool:
        """Let the stopped thread map private executable memory exactly there; False: the place is taken.

        Raises SlotsExhausted if the program cannot map memory.
        """
        ...

    def unmap_area(self, thread: TracedThread, address: VirtAddr, size: int) -> None:
        """Let the stopped thread unmap it."""
        ...

    def guard(self, thread: TracedThread, traps: int, find_place: Callable[[int], VirtAddr | None]) -> Guard:
        """Have the stopped thread's memory survive our death, so many more traps included; the guard that it has then.

        Only if ``can_guard``. ``find_place`` says where so many bytes can be mapped. Raises SlotsExhausted if the
        program cannot have one, TargetGone.
        """
        ...

    def give_back(self, thread: TracedThread, guard: Guard, areas: Sequence[tuple[VirtAddr, int]]) -> None:
        """Let the stopped thread undo the guard and unmap the areas; in a forked child's copy of the memory too.

        No trap stands there any more. Raises SlotsExhausted, TargetGone.
        """
        ...

    def remains(self, pid: ProcessId) -> Remains | None:
        """What another tracer has left in the memory of a process that we trace; only reads. None: nothing."""
        ...

    def clear_remains(self, thread: TracedThread, remains: Remains) -> None:
        """Let the stopped thread unmap all of it and take its SIGTRAP action back; no trap stands any more.

        Raises SlotsExhausted, TargetGone.
        """
        ...
