"""What is traced: address spaces, processes, threads. State only; the Coordinator owns all of it."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs

from ubpx._errors import UbpxError
from ubpx.core.dormant import DormantTraps
from ubpx.core.grounds import Changes, Grounds
from ubpx.core.hiding import HidingMemory, StandingTraps
from ubpx.core.ports import Guard, Memory, Site, TracedThread, Tracer
from ubpx.core.probepoints import Registry
from ubpx.core.proofs import Proofs
from ubpx.core.registers import RegisterLayout
from ubpx.core.slots import SlotTable
from ubpx.core.stepping import Debts, State
from ubpx.core.ubp.plans import Architecture, SlotCode, StepPlan, TrapPatch
from ubpx.core.values import AddressSpaceId, Follow, MappedRange, ProcessId, ThreadId, VirtAddr, Watched
from ubpx.core.watchpoints import NOTHING, WatchTable


class Sites(dict[int, Site]):
    """By the PC that a trap reports; that of a dormant trap is made when a thread first meets it."""

    def __init__(self, dormant: DormantTraps, trap_advance: int) -> None:
        super().__init__()
        self._dormant: Final = dormant
        self._trap_advance: Final = trap_advance

    def __missing__(self, pc: int) -> Site:
        site = self._dormant.meet(VirtAddr(pc - self._trap_advance))
        if site is None:
            raise KeyError(pc)
        return site


class AddressSpace:
    """One memory with its probepoints and slots. Shared by a process and its vfork children."""

    def __init__(
        self,
        identity: AddressSpaceId,
        pid: ProcessId,
        memory: Memory,
        architecture: Architecture,
        *,
        slots_allowed: bool,
    ) -> None:
        self.identity: Final = identity
        self.pid: Final = pid
        """The process that it was made for."""
        self.raw: Final = memory
        self.architecture: Final = architecture
        self.layout: Final = RegisterLayout(
            architecture.name,
            architecture.register_names,
            architecture.pc_name,
            word_size=architecture.word_size,
        )
        self.registry: Final = Registry()
        self.slots: Final = SlotTable(architecture.slot_reach, self._slot_is_vacated)
        self.slots_allowed: Final = slots_allowed
        self.patches: Final = StandingTraps()
        """Traps that stand now."""
        self.former: Final[dict[VirtAddr, TrapPatch]] = {}
        """Traps that stood once: a child forked meanwhile may still have them."""
        self.changes: Final = Changes()
        """What the program has done to its code."""
        self.grounds: Final = Grounds()
        """What was mapped where traps were armed."""
        self.dormant: Final = DormantTraps(architecture.trap_bytes)
        """Traps that stand and of which nothing else is made yet."""
        self.memory: Final = HidingMemory(memory, self.patches, self.dormant)
        self.sites: Final[dict[int, Site]] = Sites(self.dormant, architecture.trap_advance)
        """For the fast lane, by the PC that a trap reports."""
        self.silent_sites: Mapping[int, Site] = {}
        """The same for children that share the memory; set by whoever makes the space."""
        self.proofs: Final = Proofs()
        """Where instructions start in the functions that were probed last."""
        self.watches: Final = WatchTable()
        self.guard: Guard | None = None
        """What saves the program if we are killed."""
        self.unguarded: str | None = None
        """Why it can have none."""
        self.quiesced = False
        self.taking_turns = False
        """Threads step in place, one at a time; the others are stopped meanwhile."""
        self.waiting: Final[deque[Thread]] = deque()
        """Those that have asked for their turn."""
        self.turn: Thread | None = None
        """Whose it is."""
        self.vforked: Final[set[ProcessId]] = set()
        """Children that a thread waits for, and that therefore must run."""

    def _slot_is_vacated(self, code: SlotCode) -> None:
        """No jump leads there any more."""
        if code.entered is not None and self.sites.pop(code.entered, None) is not None and self.guard is not None:
            self.guard.forget([VirtAddr(code.entered - self.architecture.trap_advance)])


class StopKind(StrEnum):
    """What kind of stop a thread is in; tells whether a system call can be injected."""

    PLAIN = "PLAIN"
    EVENT = "EVENT"
    """At a clone, fork, exec or system-call event: must be settled first."""
    GROUP = "GROUP"
    """The program's own group-stop; only in this one may a thread listen."""


@attrs.define
class PostponedSignal:
    """A signal that was due at a stop which the thread was borrowed from; it comes again first when the thread runs."""

    number: int
    info: bytes
    sent: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the thread's own instruction raised it, and would again."""
        return int.from_bytes(self.info[8:12], "little", signed=True) > 0


@attrs.define
class HandlerFrame:
    """A signal's handler, and with which registers the thread comes back from it to a probed instruction."""

    site: Any
    """A ``sites.ReturningSite``."""
    relevant: tuple[int, ...]
    sp: int = 0
    """The stack pointer at the handler's first instruction."""


_DEBTS: Final = {
    (held, step, group): Debts(held=held, step=step, group_stopped=group)
    for held in (False, True)
    for step in (False, True)
    for group in (False, True)
}
"""Made once: a thousand threads are asked at each quiesce."""


class Thread:
    """One traced thread. ``state`` is moved by ``stepping.step`` alone."""

    __slots__ = (
        "arrival",
        "deferred",
        "dying",
        "frames",
        "group_stopped",
        "held",
        "mask",
        "origin",
        "pending",
        "plan",
        "port",
        "postponed",
        "process",
        "returning",
        "site",
        "state",
        "step_clients",
        "stepped_by",
        "stop",
        "vfork_child",
        "wanted",
        "watches",
        "written",
    )  # fmt: skip

    def __init__(self, port: TracedThread, process: "TracedProcess") -> None:
        self.port: Final = port
        self.process: Final = process
        self.state = State.RUNNING
        self.plan: StepPlan | None = None
        """A step over a copy that is not finished."""
        self.postponed: PostponedSignal | None = None
        self.returning: HandlerFrame | None = None
        """Whence the signal that is due takes it, and it comes back."""
        self.frames: Final[list[HandlerFrame]] = []
        """Of the handlers that run, outermost first, those that it comes back from to a probed instruction."""
        self.watches: tuple[Watched | None, ...] = NOTHING
        """What its debug registers watch."""
        self.dying = False
        """Found killed when it was to make a system call for us; its exit follows, unless an exec takes its tid."""
        self.held = False
        """Somebody keeps it stopped, or wants to."""
        self.pending = 0
        """The signal to deliver when it goes on."""
        self.deferred: list[tuple[int, bytes]] = []
        """Signals, with their siginfo, that wait for the step's end."""
        self.mask: int | None = None
        """The program's signal mask while ours is in force."""
        self.group_stopped = False
        self.wanted = 0
        """So often it is kept for a moment by ubpx itself."""
        self.stop = StopKind.PLAIN
        self.vfork_child: ProcessId | None = None
        self.step_clients: tuple[str, ...] = ()
        """Who asked for one instruction and is to be told."""
        self.stepped_by: str | None = None
        """The client whose own holds do not count until that instruction is done."""
        self.site: Site | None = None
        """Where it arrived last, while it is held there."""
        self.arrival: tuple[int, ...] | None = None
        """The registers at that arrival, until some were written to it afterwards."""
        self.origin: tuple[int, ...] | None = None
        """The registers at that arrival."""
        self.written: Sequence[tuple[str, Mapping[str, int]]] = ()
        """What clients wrote at that arrival, those too that held the thread first: name, and values by register."""

    @property
    def tid(self) -> ThreadId:
        """As the tracer numbers it."""
        return self.port.tid

    @property
    def pc(self) -> VirtAddr:
        """As ``port.words`` have it."""
        return VirtAddr(self.port.words[self.process.space.layout.pc])

    def tell_port(self) -> None:
        """Whether an arrival may end in going on at once: not if it is held, or comes instead of a step's end."""
        self.port.held = self.held or bool(self.step_clients) or self.state is State.STEPPING

    def leave_site(self) -> None:
        """It goes on from where it arrived."""
        self.site = self.arrival = self.origin = None
        self.written = ()

    @property
    def steps_as_it_is(self) -> bool:
        """It runs one instruction that may be anything, a system call that blocks too: only this step can wait."""
        return self.state is State.STEPPING and self.plan is None

    @property
    def debts(self) -> Debts:
        """What keeps it from going on."""
        step = self.plan is not None or bool(self.step_clients)
        return _DEBTS[self.held, step, self.group_stopped]

    def __repr__(self) -> str:
        return f"<thread {self.tid}, {self.state}>"


@attrs.frozen(kw_only=True)
class Healed:
    """What a tracer that was killed had left in a program, and is there no more."""

    traps: int
    """That stood still."""
    overwritten: int
    """Places of traps where something else stands by now, which stays."""
    areas: int
    """Of slots, that were unmapped."""
    threads: int
    """That were in a slot, or would have come back to one."""


class TracedProcess:
    """One traced process."""

    def __init__(
        self,
        pid: ProcessId,
        space: AddressSpace,
        tracer: Tracer,
        *,
        silent: bool = False,
        follow: Follow = Follow.EXEC,
    ) -> None:
        self.pid: Final = pid
        self.space = space
        self.silent: Final = silent
        """A child that shares its parent's memory: no handler runs for it."""
        self.follow = follow
        self.heir: Any = None
        """For a silent one: who is told of it once it execs (a ``listener.Listener``), if it is followed then."""
        self.threads: Final[dict[ThreadId, Thread]] = {}
        self.announced: Final[set[ThreadId]] = set()
        """Threads and children that it has made and that have not appeared yet."""
        self.reports_syscalls = False
        """Whether somebody wants to be asked about its system calls."""
        self._stops_of_gone = 0
        self._counting: Final = threading.Lock()
        """A thread is counted by itself, or among those that are gone; never both, nor neither."""
        self.ended: Final = threading.Event()
        """Set when it has exited or been detached."""
        self.status: int | None = None
        """How it exited; None while it lives, and after a detach."""
        self.last_status = 0
        """What the last thread to exit said."""
        self.failure: UbpxError | None = None
        """Why it had to be left, if that was not asked for."""
        self.healed: Healed | None = None
        """What another tracer, that was killed, had left; None: nothing."""
        self.own_child: Final = tracer.is_own_child(pid)
        self._tracer: Final = tracer

    @property
    def proc(self) -> str:
        """A directory of /proc that answers for the process: the leader's, or a living thread's."""
        leader = self.threads.get(ThreadId(self.pid))
        if leader is None or leader.state is State.EXITING:
            living = next((each.tid for each in self.living() if each.state is not State.EXITING), self.pid)
            return f"/proc/{living}"
        return f"/proc/{self.pid}"

    @property
    def memory(self) -> Memory:
        """The program's memory, without traps of ours."""
        return self.space.memory

    def mappings(self) -> Sequence[MappedRange]:
        """What is mapped now."""
        return self._tracer.mappings(self.pid)

    @property
    def stops(self) -> int:
        """Stops of its threads that were consumed so far."""
        with self._counting:
            return self._stops_of_gone + sum(thread.port.stops for thread in self.living())

    def lose(self, thread: Thread) -> None:
        """The thread is gone; its stops count on."""
        with self._counting:
            self.threads.pop(thread.tid, None)
            self._stops_of_gone += thread.port.stops

    def living(self) -> Iterator[Thread]:
        """Its threads, as a copy that may be iterated while they come and go."""
        return iter(tuple(self.threads.values()))

    def __repr__(self) -> str:
        return f"<process {self.pid}, {len(self.threads)} threads>"


class Tracees:
    """All that is traced in one session. Owned by the Coordinator."""

    def __init__(self) -> None:
        self.processes: Final[dict[ProcessId, TracedProcess]] = {}
        self.threads: Final[dict[ThreadId, Thread]] = {}
        self.listeners: Final[dict[ProcessId, Any]] = {}
        """Who is told of a process (a ``coordinator.Listener``); none for a silent one."""
        self.current: Thread | None = None
        """The thread whose event is being handled: it is stopped."""

    def sharing(self, space: AddressSpace) -> tuple[TracedProcess, ...]:
        """The processes that live in one memory."""
        return tuple(process for process in self.processes.values() if process.space is space)

    def threads_in(self, space: AddressSpace) -> tuple[Thread, ...]:
        """All threads that run in one memory."""
        return tuple(thread for process in self.sharing(space) for thread in process.living())
