"""Values and stand-ins for the core's tests: no process, no tracer of the kernel's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import attrs
import pytest

from tests.unit.core.many_places import APART, INSN, PLACES, WIDE
from ubpx import hookspecs
from ubpx._errors import UnknownModule
from ubpx.core import groups
from ubpx.core.clients import Client
from ubpx.core.coordinator import Coordinator
from ubpx.core.desk import TargetDesk
from ubpx.core.holds import Hold
from ubpx.core.loop import TracerThread
from ubpx.core.plugins import NOTIFY_HOOKS, Plugins
from ubpx.core.ports import Refusal
from ubpx.core.probepoints import Lease, Probepoint
from ubpx.core.spaces import TracedProcess
from ubpx.core.ubp import architecture, traps
from ubpx.core.ubp.plans import InsnAnalysis, Strategy, TrapPatch
from ubpx.core.values import AddressSpaceId, Follow, Insn, Place, ProcessId, VirtAddr
from ubpx.testing import FakeMemory, FakeThread, FakeTracer

PLACE = 0x40_1000


@attrs.define
class Holder:
    """A client as far as leases need it; keeps what was given back to it."""

    name: str
    strikes: int = 0
    released: list[Lease] = attrs.field(factory=list)

    def release(self, lease: Lease) -> None:
        self.released.append(lease)

    def release_all(self, leases: Sequence[Lease]) -> None:
        self.released.extend(leases)


class Makers:
    """Makes leases and probepoints; each lease is younger than the one before."""

    def __init__(self) -> None:
        self._age = 0

    def lease(self, client: str = "a", *, priority: int = 0, exclusive: bool = False, spec: str | None = None) -> Lease:
        self._age += 1
        holder = Holder(client)
        return Lease(holder, lambda _: None, priority=priority, age=self._age, spec=spec, exclusive=exclusive)

    def probepoint(
        self,
        address: int = PLACE,
        *,
        trap: bytes = b"\xcc",
        strategy: Strategy = Strategy.BOOST,
        relied_on: range = range(0),
    ) -> Probepoint:
        insn = Insn(VirtAddr(address), b"\x90" * len(trap), "nop")
        patch = TrapPatch(address=insn.address, trap=trap, original=insn.raw, reported_pc=VirtAddr(address + len(trap)))
        analysis = InsnAnalysis(insn=insn, strategies=(strategy,))
        return Probepoint(AddressSpaceId(1), analysis, patch, strategy, why="a test", relied_on=relied_on)


@pytest.fixture
def make() -> Makers:
    """``make.lease(client, ...)`` and ``make.probepoint(address, ...)``."""
    return Makers()


@pytest.fixture
def holder() -> Callable[[str], Holder]:
    """Make a lease holder of that name."""
    return Holder


# The core over a scripted program -----------------------------------------------------------

TEXT, STACK, PID = 0x40_1000, 0x7FFE_0000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION, REP = (TEXT + 32 * i for i in range(8))
CODE = {
    LEA: "48 8d 47 01",  # lea 1(%rdi), %rax: BOOST or STEP
    PUSH: "55",  # push %rbp: EMULATE, BOOST or STEP; its reported PC proves nothing
    NOP: "90",  # EMULATE by landing
    LOAD: "48 8b 07",  # mov (%rdi), %rax: BOOST or STEP; may fault
    CALL: "64 65 ff 10",  # call *(%rax), by two segments: STEP alone
    LONG_NOP: "0f 1f 40 00",
    FUNCTION: "c3",
    REP: "f3 a4",  # rep movsb: one step runs one iteration
}


def program() -> FakeMemory:
    """As ``memory_of`` makes it, with CODE."""
    return memory_of({address: bytes.fromhex(code) for address, code in CODE.items()}, nop=b"\x90")


def memory_of(code: Mapping[int, bytes], nop: bytes) -> FakeMemory:
    """Text of one page with this code in it, nops between, and a stack of one page."""
    text = bytearray(nop * (0x1000 // len(nop)))
    for address, raw in code.items():
        text[address - TEXT : address - TEXT + len(raw)] = raw
    memory = FakeMemory()
    memory.map(TEXT, bytes(text), permissions="r-xp", path="/bin/program")
    memory.map(STACK, bytes(0x1000), permissions="rw-p", path="[stack]")
    return memory


class Recorder:
    """A client plugin that keeps every hook that it hears, without the process."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def named(self, hook: str) -> list[tuple[Any, ...]]:
        """What one hook said."""
        return [each[1:] for each in self.heard if each[0] == hook]


def _recording(hook: str) -> Callable[..., None]:
    names = list(inspect.signature(getattr(hookspecs.NotifyHooks, hook)).parameters)[2:]
    told = [name for name in names if name != "process"]
    scope: dict[str, Any] = {}
    # The plugin manager looks at an implementation's own argument names.
    exec(f"def {hook}(self, {', '.join(told)}): self.heard.append(({', '.join([repr(hook), *told])},))", scope)
    made: Callable[..., None] = hookspecs.hookimpl(scope[hook])
    return made


for _hook in NOTIFY_HOOKS:
    setattr(Recorder, _hook, _recording(_hook))


class Nursery:
    """Kin for the desks of a World: makes those of followed children, and keeps them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.desks: list[TargetDesk] = []
        """All that were made."""
        self.alive = 0
        self.closed = False

    def bear(self) -> TargetDesk | None:
        if self.closed:
            return None
        self.desks.append(self._world.new_desk())
        return self.desks[-1]

    def born(self) -> None:
        self.alive += 1

    def gone(self) -> None:
        self.alive -= 1


class World:
    """A coordinator, its thread and one target's desk, over a FakeTracer. Closed by its fixture."""

    def __init__(self, name: str = "x86_64", memory: FakeMemory | None = None) -> None:
        self.fake = FakeTracer(patience=5)
        self.coordinator = Coordinator(self.fake)
        self.architecture = architecture(name)
        self.memory = program() if memory is None else memory
        self.fake.process(PID, self.memory, entry=FUNCTION, architecture=name)
        self.symbols: dict[str, int] = {}
        """Where specs lead; others name a module that is not mapped."""
        self.loop = TracerThread(self.fake, self.coordinator)
        self.nursery = Nursery(self)
        self.desk = self.new_desk()
        self.recorder = Recorder()

    def new_desk(self) -> TargetDesk:
        return TargetDesk(self.loop, self._resolve, self._resolve_many, self, kin=self.nursery)

    def _resolve(self, spec: str | int, process: TracedProcess) -> Place:
        address = spec if isinstance(spec, int) else self.symbols.get(spec)
        if address is None:
            raise UnknownModule(str(spec), ())
        start = VirtAddr(address & ~0x1F)
        return Place(address=VirtAddr(address), name=str(spec), symbol_start=start, symbol_end=VirtAddr(start + 32))

    def _resolve_many(self, specs: str | Sequence[str | int], process: TracedProcess) -> Sequence[Place | Refusal]:
        if isinstance(specs, str):
            specs = [name for name in sorted(self.symbols, key=self.symbols.__getitem__) if fnmatchcase(name, specs)]
        answers: list[Place | Refusal] = []
        for spec in specs:
            try:
                answers.append(self._resolve(spec, process))
            except UnknownModule as error:
                answers.append(Refusal(str(spec), error))
        return answers

    def attach(
        self, *tids: int, slots_allowed: bool = True, own_child: bool = False, follow: Follow = Follow.EXEC
    ) -> World:
        """Attach to the process, with these threads beside its leader; the recorder is active."""
        self.fake._processes[ProcessId(PID)].own_child = own_child
        for tid in (PID, *tids):
            thread = self.fake.thread(tid, None if tid == PID else PID)
            thread.at, thread[self.architecture.sp_name] = TEXT + 0x800, STACK + 0x800
            if self.architecture.name == "x86_64":
                thread["rbp"] = tid
        plugins = Plugins([])
        plugins.register(self.recorder, "recorder")

        def job() -> None:
            attached = self.coordinator.attach(ProcessId(PID), self.desk, slots_allowed=slots_allowed, follow=follow)
            self.desk.process = attached
            self.desk.activate(plugins.activate("recorder"))

        self.loop.run(job)
        return self

    @property
    def process(self) -> TracedProcess:
        assert self.desk.process is not None
        return self.desk.process

    def client(self, name: str, priority: int = 0, hooks: object = None) -> Client:
        return self.desk.join(name, priority, hooks)

    def holds(self) -> list[Hold]:
        return list(self.coordinator.keeper.holds)

    def slot_of(self, lease: Lease) -> int:
        assert lease.probepoint is not None
        assert lease.probepoint.slot is not None
        return lease.probepoint.slot

    def trap_stands(self, address: int) -> bool:
        return traps.stands(self.memory, VirtAddr(address), self.architecture.trap_forms)

    def arrive(self, tid: int, address: int, **registers: int) -> FakeThread:
        """Let a thread run into a trap, and wait until all has been done about it."""
        thread = self.fake.thread(tid)
        for name, value in registers.items():
            thread[name] = value
        self.fake.arrive(tid, address)
        self.fake.idle()
        return thread

    def detach(self) -> None:
        self.loop.run(lambda: self.coordinator.detach(self.process))

    def close(self) -> None:
        if self.desk.process is not None:
            self.detach()
        self.loop.close()
        if self.fake.failure is not None:
            raise self.fake.failure


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """Made, not yet attached; nothing may go wrong in the tracer thread, and the program is left as it was."""
    made = World()
    before = made.memory.image()
    yield made
    made.close()
    records = [*caplog.get_records("setup"), *caplog.get_records("call"), *caplog.records]
    assert [record.getMessage() for record in records if record.name == "ubpx.loop"] == []
    if made.fake._processes[ProcessId(PID)].threads:
        after = made.fake._processes[ProcessId(PID)].memory.image()
        assert after.keys() == before.keys(), "slot areas are unmapped"
        assert after[TEXT] == before[TEXT]


@pytest.fixture(params=["awake", "asleep"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Places of a ``probe_many`` that may sleep all do so, or none does."""
    monkeypatch.setattr(groups, "WORTH", 1 if request.param == "asleep" else 1 << 60)
    way: str = request.param
    return way


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    """For tests that need many of them; each must be closed."""
    return World


def attached(make_world: type[World], name: str, memory: FakeMemory) -> Iterator[World]:
    """A program of another architecture with two threads; left as it was."""
    before = memory.image()
    world = make_world(name, memory)
    yield world.attach(101)
    world.close()
    assert memory.image() == before


def strategy_of(lease: Lease) -> Strategy:
    """Of its probepoint, which it has."""
    assert lease.probepoint is not None
    return lease.probepoint.strategy


@pytest.fixture
def wide(make_world: type[World]) -> Iterator[World]:
    """Attached, with three pages of places that need slots; left as it was."""
    world = make_world()
    world.memory.map(WIDE, INSN.ljust(APART, b"\x90") * len(PLACES), permissions="r-xp", path="/lib/wide")
    before = world.memory.image()
    world.attach(101, 102)
    yield world
    world.close()
    assert world.memory.image() == before
