"""The checks that ``check_tracer`` runs: each docstring is a rule that the core relies on."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ubpx._errors import MemoryFault, NoSuchProcess
from ubpx.core import events
from ubpx.core.ports import TracedThread
from ubpx.core.slots import choose_hole
from ubpx.core.ubp import architecture
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx.testing.scenario import ConformingProgram

PATIENCE_S: Final = 20.0
NO_PROCESS: Final = ProcessId(0x3FFF_FFF0)
"""Above every pid that Linux gives."""
AREA_SIZE: Final = 16 * PAGE_SIZE
E = TypeVar("E", bound=events.StopEvent)


def expect(found: object, wanted: object, what: str = "") -> None:
    """AssertionError unless they are equal (an assert statement would vanish under -O)."""
    if found != wanted:
        raise AssertionError(f"{what or 'a rule does not hold'}: found {found!r}, wanted {wanted!r}")


def require(fact: object, what: str = "") -> None:
    """AssertionError unless it is so."""
    if not fact:
        raise AssertionError(what or "a rule does not hold")


class Traced:
    """A program under its tracer, in the thread that opened it."""

    def __init__(self, program: ConformingProgram) -> None:
        self.program: Final = program
        self.tracer: Final = program.tracer
        (self.thread,) = self.tracer.seize(program.pid)
        self.memory: Final = self.tracer.memory(program.pid)
        described = architecture(self.tracer.architecture_of(program.pid))
        self.limit: Final = described.address_limit
        self.slot_reach: Final = described.slot_reach
        self.trap: Final = described.trap_bytes
        self.pc: Final = described.register_names.index(described.pc_name)
        self.names: Final = described.register_names

    def next(self, kind: type[E]) -> E:
        """The next event, which must be of this kind and come in time; doorbells left aside."""
        deadline = time.monotonic() + PATIENCE_S
        timer = threading.Timer(PATIENCE_S, self.tracer.ring)
        timer.start()
        try:
            while isinstance(event := self.tracer.wait(), events.Doorbell):
                require(time.monotonic() < deadline, f"no {kind.__name__} in {PATIENCE_S} s")
        finally:
            timer.cancel()
        if not isinstance(event, kind):
            raise AssertionError(f"{event} came, not {kind.__name__}")
        require(event.thread is self.thread, "one object for a thread's life")
        return event

    def stop(self) -> None:
        """Bring the running thread into a plain stop."""
        self.tracer.interrupt(self.thread)
        self.next(events.Interrupted)

    def await_doorbell(self) -> None:
        """Nothing else may come before it."""
        event = self.tracer.wait()
        require(isinstance(event, events.Doorbell), f"{event} came, not a Doorbell")

    def send_to(self, pc: VirtAddr) -> None:
        """The stopped thread goes on there."""
        require(self.tracer.fetch(self.thread))
        self.thread.words[self.pc] = pc
        self.tracer.store(self.thread)

    def set_trap(self) -> bytes:
        """A trap at the site; returns what stood there."""
        original = self.memory.read(self.program.site, len(self.trap))
        self.memory.patch(self.program.site, self.trap)
        return original


class StubSite:
    """A site that keeps what it is asked, in order, with the thread's stops at that time."""

    in_slot = False
    express = None

    def __init__(self, traced: Traced, answers: Sequence[bool], *, landing: VirtAddr | None, ours: bool = True) -> None:
        self.landing = landing
        self.landing_word: Any = None
        self.watchful = 3
        self.certain = landing is not None
        self.asked: list[tuple[str, int, int]] = []
        self._traced: Final = traced
        self._answers: Final = list(answers)
        self._ours: Final = ours

    def make_safe(self, thread: TracedThread) -> bool:
        """Stand behind the site, as if it had run; ``words`` are as before when it returns."""
        self._note("safe", thread)
        if self._ours:
            words = tuple(thread.words)
            thread.words[self._traced.pc] = self._traced.program.behind
            self._traced.tracer.store(thread)
            for position, word in enumerate(words):
                thread.words[position] = word
        return self._ours

    def arrive(self, thread: TracedThread) -> bool:
        """As the test said."""
        self._note("arrive", thread)
        return self._answers.pop(0)

    def _note(self, what: str, thread: TracedThread) -> None:
        self.asked.append((what, thread.stops, thread.words[self._traced.pc]))


def _memory(traced: Traced) -> None:
    """Reads are exact; writes hold to protections; patches do not; what is not mapped faults."""
    memory, program = traced.memory, traced.program
    before = memory.read(program.writable, 16)
    memory.write(program.writable, b"0123456789abcdef")
    expect(memory.read(VirtAddr(program.writable + 3), 4), b"3456")
    memory.patch(program.writable, before)
    text = memory.read(program.site, 8)
    _must_fault(lambda: memory.write(program.site, b"\x90"))
    expect(memory.read(program.site, 8), text)
    memory.patch(program.site, b"\x90")
    expect(memory.read(program.site, 8), b"\x90" + text[1:])
    memory.patch(program.site, text)
    for access in (
        lambda: memory.read(program.unmapped, 1),
        lambda: memory.write(program.unmapped, b"x"),
        lambda: memory.patch(program.unmapped, b"x"),
    ):
        _must_fault(access)


def _must_fault(access: Callable[[], object]) -> None:
    try:
        access()
    except MemoryFault:
        return
    raise AssertionError("no MemoryFault")


def _interrupt_and_registers(traced: Traced) -> None:
    """Interrupted follows an interrupt; what is stored is what is fetched; the thread does not notice."""
    tracer, thread = traced.tracer, traced.thread
    before = thread.stops
    tracer.interrupt_all([thread])
    traced.next(events.Interrupted)
    expect(thread.stops, before + 1)
    require(tracer.fetch(thread))
    kept = tuple(thread.words)
    register = traced.names.index(next(name for name in ("r15", "edi", "x28", "s11") if name in traced.names))
    thread.words[register] ^= 0x5A5A
    tracer.store(thread)
    thread.words[register] = 0
    require(tracer.fetch(thread))
    expect(thread.words[register], kept[register] ^ 0x5A5A)
    thread.words[register] = kept[register]
    tracer.store(thread)
    tracer.resume(thread)
    traced.program.call()
    require(traced.program.called())


def _signals(traced: Traced) -> None:
    """A signal stops its thread before it is delivered; it is delivered by resume, or not at all."""
    tracer, thread, program = traced.tracer, traced.thread, traced.program
    program.signal(signal.SIGUSR1)
    arrived = traced.next(events.SignalArrived)
    expect((arrived.signal, arrived.code <= 0), (signal.SIGUSR1, True))
    expect(int.from_bytes(tracer.signal_info(thread)[:4], "little"), signal.SIGUSR1)
    tracer.resume(thread)
    program.signal(signal.SIGUSR2)
    expect(traced.next(events.SignalArrived).signal, signal.SIGUSR2)
    tracer.resume(thread, signal.SIGUSR2)
    require(program.received(signal.SIGUSR2), "and SIGUSR1, which was not delivered, did not come before")


def _blocked_signals(traced: Traced) -> None:
    """While ours is in force no signal stops the thread; given back, those that wait come."""
    tracer, thread, program = traced.tracer, traced.thread, traced.program
    traced.stop()
    mask = tracer.block_signals(thread)
    program.signal(signal.SIGUSR1)
    tracer.resume(thread)
    traced.stop()
    tracer.restore_signals(thread, mask)
    tracer.resume(thread)
    expect(traced.next(events.SignalArrived).signal, signal.SIGUSR1)
    tracer.resume(thread, signal.SIGUSR1)
    require(program.received(signal.SIGUSR1))


def _areas(traced: Traced) -> None:
    """The program maps and unmaps executable memory exactly where it is told, unless the place is taken."""
    tracer, thread = traced.tracer, traced.thread
    pid = traced.program.pid
    before = [(each.start, each.end) for each in tracer.mappings(pid)]
    place = choose_hole(
        tracer.mappings(pid), [traced.program.site], AREA_SIZE, limit=traced.limit, slot_reach=traced.slot_reach
    )
    if place is None:
        raise AssertionError("the program has no room near its site")
    traced.stop()
    require(tracer.map_area(thread, place, AREA_SIZE))
    found = [each for each in tracer.mappings(pid) if place in each]
    expect([(each.start, each.end, each.executable) for each in found], [(place, place + AREA_SIZE, True)])
    traced.memory.patch(place, traced.trap)
    expect(traced.memory.read(place, len(traced.trap)), traced.trap)
    require(not tracer.map_area(thread, VirtAddr(place + PAGE_SIZE), PAGE_SIZE), "the place is taken")
    tracer.unmap_area(thread, place, AREA_SIZE)
    expect([(each.start, each.end) for each in tracer.mappings(pid)], before)
    tracer.resume(thread)
    traced.program.call()
    require(traced.program.called())


class MadeWhenMet(dict[int, StubSite]):
    """One site, which is not there before it is looked up."""

    def __init__(self, pc: int, site: StubSite) -> None:
        super().__init__()
        self._pc: Final = pc
        self._site: Final = site

    def __missing__(self, pc: int) -> StubSite:
        if pc != self._pc:
            raise KeyError(pc)
        return self.setdefault(pc, self._site)


def _sites(traced: Traced, landing: VirtAddr | None) -> None:
    tracer, thread, program = traced.tracer, traced.thread, traced.program
    site = StubSite(traced, [True, False], landing=landing)
    reported = program.site + len(traced.trap)
    original = traced.set_trap()
    thread.sites = MadeWhenMet(reported, site)
    before = thread.stops
    program.call()
    program.call()
    traced.await_doorbell()  # the first went on by itself; the core has the second
    arrivals = [stops for what, stops, _ in site.asked if what == "arrive"]
    expect(arrivals, [before + 1, before + 2], f"each arrives exactly once, consumed: {site.asked}")
    safes = [(stops, pc) for what, stops, pc in site.asked if what == "safe"]
    expect(safes, [] if landing else [(before, reported), (before + 1, reported)], "safe before consumed")
    require(tracer.fetch(thread), "it is stopped")
    expect(thread.words[traced.pc], program.behind)
    tracer.resume(thread)
    require(program.called())
    require(program.called())
    traced.stop()
    thread.sites = {}
    traced.memory.patch(program.site, original)
    tracer.resume(thread)


def _sites_by_make_safe(traced: Traced) -> None:
    """At a trap: make_safe, then consumed, then arrive once; True goes on, False gives a Doorbell."""
    _sites(traced, None)


def _sites_by_landing(traced: Traced) -> None:
    """At a trap with a landing the thread goes on there, and make_safe is not asked."""
    _sites(traced, traced.program.behind)


def _step_and_foreign_trap(traced: Traced) -> None:
    """A trap that no site answers for is a SIGTRAP of the program's; a step ends behind one instruction."""
    tracer, thread, program = traced.tracer, traced.thread, traced.program
    site = StubSite(traced, [], landing=None, ours=False)
    original = traced.set_trap()
    thread.sites = {program.site + len(traced.trap): site}
    program.call()
    arrived = traced.next(events.SignalArrived)
    expect((arrived.signal, arrived.code > 0), (signal.SIGTRAP, True))
    expect([what for what, _, _ in site.asked], ["safe"], "not ours: nobody arrives")
    thread.sites = {}
    traced.memory.patch(program.site, original)
    traced.send_to(program.site)
    tracer.step(thread)
    traced.next(events.StepDone)
    require(tracer.fetch(thread))
    expect(thread.words[traced.pc], program.behind)
    tracer.resume(thread)
    require(program.called())


def _ring(traced: Traced) -> None:
    """A ring from another thread wakes wait, before it or during it."""
    traced.tracer.ring()
    traced.await_doorbell()
    timer = threading.Timer(0.05, traced.tracer.ring)
    timer.start()
    traced.await_doorbell()
    timer.join()


def _exit_status(traced: Traced) -> None:
    """The exit is announced with the status, while memory is there; then the thread is gone, or its parent is told."""
    tracer, program = traced.tracer, traced.program
    program.exit(7)
    expect(traced.next(events.ThreadExiting).status, 7)
    traced.memory.read(program.writable, 16)
    if tracer.is_own_child(program.pid):
        tracer.detach(traced.thread)
        tracer.forget(traced.thread)
        expect(program.exit_status(), 7)
    else:
        tracer.resume(traced.thread)
        expect(traced.next(events.ThreadGone).status, 7)
        tracer.forget(traced.thread)


def _killed(traced: Traced) -> None:
    """A thread may be killed between any two requests: none raises, and its end is reported."""
    tracer, thread = traced.tracer, traced.thread
    traced.stop()
    traced.program.kill()
    tracer.fetch(thread)
    tracer.store(thread)
    tracer.interrupt(thread)
    tracer.listen(thread)
    while isinstance(event := tracer.wait(), events.Doorbell | events.Interrupted):
        continue
    if isinstance(event, events.ThreadExiting):
        expect(event.status, -signal.SIGKILL)
        if tracer.is_own_child(traced.program.pid):
            tracer.detach(thread)
            tracer.forget(thread)
            return
        tracer.resume(thread)
        event = traced.next(events.ThreadGone)
    expect(event, events.ThreadGone(thread, -signal.SIGKILL))
    require(not tracer.fetch(thread), "it is gone")
    tracer.forget(thread)


def _no_such_process(traced: Traced) -> None:
    """What is not there cannot be seized."""
    try:
        traced.tracer.seize(NO_PROCESS)
    except NoSuchProcess:
        return
    raise AssertionError("no NoSuchProcess")


def _detach(traced: Traced) -> None:
    """After a detach nothing of us is left: no tracer, no stop, no byte; a signal kept is delivered with it."""
    tracer, thread, program = traced.tracer, traced.thread, traced.program
    program.signal(signal.SIGUSR1)
    traced.next(events.SignalArrived)
    tracer.detach(thread, signal.SIGUSR1)
    tracer.forget(thread)
    require(program.received(signal.SIGUSR1))
    require(program.is_untouched())
    program.call()
    require(program.called())


Check = Callable[[Traced], None]
ENDING: Final[Sequence[Check]] = (_exit_status, _killed, _detach)
CHECKS: Final[Mapping[str, Check]] = {
    check.__name__.strip("_"): check
    for check in (
        _memory, _interrupt_and_registers, _signals, _blocked_signals, _areas, _sites_by_make_safe,
        _sites_by_landing, _step_and_foreign_trap, _ring, _exit_status, _killed, _no_such_process, _detach,
    )
}  # fmt: skip
"""By name; each with its invariant in its docstring."""
