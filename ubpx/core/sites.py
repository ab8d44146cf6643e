"""What happens at a trap, prebuilt for the fast lane (see ``ports.Site``)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from ubpx._errors import InternalError, MemoryFault, NotEmulated, UsageError
from ubpx.core.deadlines import HandlerOverran, Watchdog
from ubpx.core.events import Verdict
from ubpx.core.footing import Footing, footing
from ubpx.core.hits import Hit
from ubpx.core.ports import Site, TracedThread, Tracer
from ubpx.core.probepoints import Lease, Probepoint
from ubpx.core.registers import WordRegisters, put
from ubpx.core.spaces import AddressSpace
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import Emulator, Strategy
from ubpx.core.values import VirtAddr
from ubpx.core.watchpoints import NOTHING

Answer = tuple[Lease, Verdict | None, Mapping[str, int] | None]
"""What one handler said: its lease, what it returned, the registers that it wrote."""


class Reception(Protocol):
    """The coordinator, as sites need it."""

    tracer: Tracer
    serving: TracedThread | None
    """The thread whose handlers run now."""
    watchdog: Watchdog
    requests: int
    """So often a handler has asked for something that was done at once."""
    after_hit: list[Callable[[], None]]
    """What handlers asked for that takes effect after the hit."""

    def handler_failed(self, lease: Lease, error: BaseException, ran_s: float) -> None: ...
    def handler_succeeded(self, lease: Lease) -> None: ...
    def calm(self, lease: Lease, ran_s: float) -> None: ...
    def conclude(self, thread: TracedThread, site: Site, answers: list[Answer]) -> None: ...
    def entered(self, thread: TracedThread) -> None: ...
    def look_at_text(self, space: AddressSpace) -> None:
        """Have it found out what the program has changed of what is probed."""
        ...


def set_pc(tracer: Tracer, thread: TracedThread, space: AddressSpace, pc: VirtAddr) -> None:
    """Send the thread at a trap elsewhere; ``thread.words`` show it too."""
    thread.words[space.layout.pc] = pc
    store_moved(tracer, thread, space)


def store_moved(tracer: Tracer, thread: TracedThread, space: AddressSpace) -> None:
    """Write ``thread.words`` to a thread at a trap whose stop is not consumed yet: its guard is told that it was moved.

    Not where somebody watches for execution: a debug register would miss that instruction.
    """
    pc = thread.words[space.layout.pc]
    if space.guard is None or any(each is not None and each.address == pc for each in space.watches.watched):
        tracer.store(thread)
        return
    flag, bit = space.architecture.moved_flag
    place = space.layout.index[flag]
    before = thread.words[place]
    thread.words[place] = before | bit
    tracer.store(thread)
    thread.words[place] = before


def leave_slot(tracer: Tracer, thread: TracedThread, space: AddressSpace, slots_of: AddressSpace) -> None:
    """If the stopped thread stands in one of the slots of ``slots_of``, have it stand in the program's own code.

    ``thread.words`` are up to date. A forked child has its parent's PC, and none of its slots.
    """
    code = slots_of.slots.code_at(thread.words[space.layout.pc])
    if code is not None:
        registers = WordRegisters(thread.words, space.layout)
        put(thread.words, space.layout, space.architecture.leave_slot(code, registers).registers)
        tracer.store(thread)


def run_handlers(
    leases: tuple[Lease, ...], thread: TracedThread, space: AddressSpace, reception: Reception
) -> list[Answer] | None:
    """Each in turn; None if none of them wants anything."""
    answers: list[Answer] | None = None
    watchdog = reception.watchdog
    while leases:
        try:
            for lease in leases:
                hit = Hit()  # a constructor of its own would cost as much again as all of this
                hit._lease = lease
                hit._thread = thread
                hit._surroundings = space
                hit._writes = None
                watchdog.watched = hit
                try:
                    answer = lease.handler(hit)
                    watchdog.watched = None
                    if answer is not None:
                        answer = _checked(answer, space)
                except BaseException as error:  # noqa: BLE001 - a client's exception must not reach the others
                    ran_s = watchdog.ran_s(hit)
                    watchdog.watched = None
                    reception.handler_failed(lease, error, ran_s)
                else:
                    if lease.client.strikes:
                        reception.handler_succeeded(lease)
                    if answer is not None or hit._writes is not None:
                        answers = [] if answers is None else answers
                        answers.append((lease, answer, hit._writes))
                hit._thread = None
                if watchdog.alarmed:
                    reception.calm(lease, watchdog.ran_s(hit))
        except HandlerOverran as late:  # the alarm came between two lines of ours
            watchdog.watched = None
            ran_s = watchdog.ran_s(hit)
            reception.handler_failed(lease, late, ran_s)
            hit._thread = None
            reception.calm(lease, ran_s)
            leases = leases[leases.index(lease) + 1 :]
        else:
            break
    return answers


def _checked(answer: object, space: AddressSpace) -> Verdict:
    if not isinstance(answer, Verdict):
        raise UsageError(f"a handler returned {answer!r}; return None or a ubpx.Verdict")
    if answer is Verdict.STEP and not space.architecture.has_single_step:
        raise UsageError(f"{space.architecture.name} has no single step; return another verdict")
    return answer


class ProbeSite:
    """A probepoint's trap: runs the handlers of its leases, in order, each isolated.

    Owned by the address space's tables; ``leases`` is replaced whole when they change.
    """

    __slots__ = ("_address", "_emulates", "_emulator", "_heeds_steps", "_overwritten", "_own_trap_bit",
                 "_own_trap_place", "_pc", "_steps", "certain", "former", "landing", "landing_word", "leases", "onward",
                 "probepoint", "reception", "space", "turned_back", "unlanded", "wary", "watchful")  # fmt: skip
    in_slot = False

    def __init__(self, probepoint: Probepoint, space: AddressSpace, reception: Reception) -> None:
        self.probepoint: Final = probepoint
        self.space: Final = space
        self.reception: Final = reception
        self._address: Final = probepoint.address
        self._emulates = probepoint.strategy is Strategy.EMULATE
        self._heeds_steps = self._emulates or self.in_slot
        """A program that steps itself must see one step from the instruction to the next."""
        in_place = probepoint.strategy is Strategy.INLINE
        self.onward: VirtAddr | None = probepoint.address if in_place else probepoint.slot
        """Where a thread goes on as if the trap were not there, if that is one place for all."""
        self._emulator: Emulator | None = None
        if self._emulates:
            self.onward = probepoint.analysis.landing
        ground = space.grounds.of(probepoint.address)
        self.wary: Final = ground is not None and ground.rewritable
        """The program may change this code at any moment: each arrival looks whether the trap is ours."""
        self.turned_back: Final[set[int]] = set()
        """Threads that have met our trap at an instruction which is another by now: they go back to run that."""
        self.landing = None if self.wary or self._is_mistakable() else self.onward
        # Where an instruction begins the PC of a hit is also that of a thread on its way.
        insn = probepoint.analysis.insn
        self.certain = probepoint.patch.reported_pc not in (insn.address, insn.end)
        self.landing_word: Any = None
        self.watchful = 3
        self.leases: tuple[Lease, ...] = ()
        self.former: ProbeSite | None = None
        """The one whose place it took: a thread may have run into the trap before, whose handlers have not run yet."""
        self.unlanded: set[int] = set()
        """Threads whose instruction could not be emulated: they need the slot for this one hit."""
        self._overwritten: dict[int, tuple[VirtAddr, bytes]] = {}
        """By thread: what stood on its stack where its present arrival was emulated."""
        self._pc = space.layout.pc
        flag, self._own_trap_bit = space.architecture.own_trap_flag
        self._own_trap_place = space.layout.index[flag]
        self._steps = probepoint.strategy in (Strategy.STEP, Strategy.INLINE)

    def _is_mistakable(self) -> bool:
        """Whether the guard needs to be told, of a thread that is sent onward, that it was."""
        insn = self.probepoint.analysis.insn
        if self.space.guard is None or self.onward is None or self.onward in (self.probepoint.slot, insn.end):
            return False
        return self.space.architecture.mistakable(self.space.memory, self.onward)

    def lands(self, thread: TracedThread) -> bool:
        """Whether ``onward`` is as good as the instruction: not for a program that waits for a trap at its end."""
        waits_for_trap = self._emulates and thread.words[self._own_trap_place] & self._own_trap_bit
        return self.onward is not None and not waits_for_trap

    def make_safe(self, thread: TracedThread) -> bool:
        """Emulate now, on the registers at arrival; if that faults, stand before the trap again."""
        words, layout = thread.words, self.space.layout
        if self.wary:
            if not self._is_ours(thread):
                return False
            if thread.tid in self.turned_back:
                set_pc(self.reception.tracer, thread, self.space, self.probepoint.address)
                return True
        words[self._pc] = self.probepoint.address
        changes: Mapping[str, int] = {}
        if self.onward is not None:
            changes = {layout.pc_name: self.onward}
        else:
            try:
                changes = self.emulate(thread)
            except (MemoryFault, NotEmulated):
                self.unlanded.add(thread.tid)
        arrived = {name: words[layout.index[name]] for name in changes}
        put(words, layout, changes)
        store_moved(self.reception.tracer, thread, self.space)
        put(words, layout, arrived)
        return True

    def _is_ours(self, thread: TracedThread) -> bool:
        """Whether it was our trap; one whose instruction was changed is taken out, and the thread turned back."""
        space, insn, patch = self.space, self.probepoint.analysis.insn, self.probepoint.patch
        found = footing(space, self.probepoint)
        if found is Footing.AMENDED:
            space.changes.amended.add(insn.address)
            traps.remove(space.raw, patch)
            self.turned_back.add(thread.tid)
        elif found is Footing.REPLACED:
            try:
                return space.raw.read(insn.address, len(patch.trap)) != patch.trap  # else it may have been since then
            except MemoryFault:
                return True
        return True

    def emulate(self, thread: TracedThread) -> Mapping[str, int]:
        """Do what the instruction does to the program's stack; the registers that it changes.

        Raises MemoryFault, NotEmulated.
        """
        if self._emulator is None:  # made at the first arrival: most of a million sites never see one
            if not self._emulates:
                raise InternalError(f"{self.probepoint!r} is not emulated")
            self._emulator = self.space.architecture.emulator(self.probepoint.analysis)
        raw = self.space.raw
        self._overwritten.pop(thread.tid, None)
        registers = WordRegisters(thread.words, self.space.layout)
        if self.space.watches.watched == NOTHING:
            outcome = self._emulator(registers, raw)
        else:
            overseen = _Overseen(self.space)
            outcome = self._emulator(registers, overseen)
            for write in outcome.writes:
                overseen.check(write.address, len(write.data))
        for write in outcome.writes:
            former = raw.read(write.address, len(write.data))
            raw.write(write.address, write.data)
            self._overwritten[thread.tid] = (write.address, former)
        return outcome.registers

    def undo(self, thread: TracedThread) -> None:
        """Take back what ``emulate`` wrote at the thread's present arrival."""
        address, data = self._overwritten.pop(thread.tid, (VirtAddr(0), b""))
        if data:
            self.space.raw.write(address, data)

    def arrive(self, thread: TracedThread) -> bool:
        """Run the handlers."""
        if self.turned_back:
            self._turn_back()
            if thread.tid in self.turned_back:
                self.turned_back.discard(thread.tid)
                self.reception.conclude(thread, TombSite(self.probepoint.address, self.space, self.reception), [])
                return False
        words = thread.words
        words[self._pc] = self._address
        if self._heeds_steps and words[self._own_trap_place] & self._own_trap_bit:
            self.unlanded.add(thread.tid)
        return self._serve(thread, unlanded=bool(self.unlanded))

    @property
    def express(self) -> tuple[VirtAddr, Callable[[TracedThread], bool]] | None:
        """Without the looks that only a program that steps itself needs, or changes its code."""
        return None if self.wary else (self._address, self._serve)

    def _serve(self, thread: TracedThread, *, unlanded: bool = False) -> bool:
        """This is the hot path."""
        reception = self.reception
        requests, before = reception.requests, reception.serving  # a handler may have had the program served
        reception.serving = thread
        leases = self.leases
        for lease in leases:
            lease.hits += 1
        answers = run_handlers(leases, thread, self.space, reception)
        reception.serving = before
        asked = reception.requests != requests
        if answers is None and not (asked or thread.held or reception.after_hit or unlanded or self._steps):
            return True
        reception.conclude(thread, self, answers or [])
        return False

    def _turn_back(self) -> None:
        space, reception = self.space, self.reception
        reception.after_hit.append(lambda: reception.look_at_text(space))


class _Overseen:
    """A program's memory, for emulation while debug registers watch some of it: what they would notice is refused."""

    def __init__(self, space: AddressSpace) -> None:
        self._raw: Final = space.raw
        self._watched: Final = [each for each in space.watches.watched if each is not None]

    def read(self, address: int, size: int) -> bytes:
        """As the program's memory does; raises NotEmulated too."""
        self.check(address, size)
        return self._raw.read(address, size)

    def check(self, address: int, size: int) -> None:
        """Raises NotEmulated if somebody watches any of it: no debug register would notice what we do instead."""
        for each in self._watched:
            if each.address < address + size and address < each.address + each.size:
                raise NotEmulated(f"{each.address:#x} is watched")

    def write(self, address: int, data: bytes) -> None:
        """Never called: emulation returns what is to be written."""
        raise InternalError(f"emulation wrote {data!r} at {address:#x}")

    patch = write


class ReturningSite(ProbeSite):
    """The trap at an instruction that begins again by itself after a signal: then that is no new arrival."""

    __slots__ = ("_at_once", "_compared", "_expected")

    def __init__(self, probepoint: Probepoint, space: AddressSpace, reception: Reception) -> None:
        super().__init__(probepoint, space, reception)
        transient = space.architecture.transient_registers
        self._compared: Final = [place for name, place in space.layout.index.items() if name not in transient]
        self._expected: Final[dict[int, list[tuple[int, ...]]]] = {}
        """By thread: the registers with which it comes back from handlers that are over."""
        self._at_once: Final[dict[int, tuple[int, ...]]] = {}
        """By thread: the same if the signal that it has stopped for has no handler."""

    def relevant(self, words: Sequence[int]) -> tuple[int, ...]:
        """Of the registers those that are the same when it comes back."""
        return tuple(words[place] for place in self._compared)

    def expect_at_once(self, thread: TracedThread, relevant: tuple[int, ...]) -> None:
        """Unless a handler runs, the thread comes back with these, before it does anything else."""
        self._at_once[thread.tid] = relevant

    def dismiss(self, thread: TracedThread) -> None:
        """A handler runs."""
        self._at_once.pop(thread.tid, None)

    def expect(self, thread: TracedThread, relevant: tuple[int, ...]) -> None:
        """A handler is over, and the thread comes back with these."""
        expected = self._expected.setdefault(thread.tid, [])
        expected.append(relevant)
        del expected[:-_MOST_RETURNS]

    @property
    def express(self) -> None:
        """One that comes back is to be known."""
        return None

    def arrive(self, thread: TracedThread) -> bool:
        """One that comes back was here before, and goes on."""
        if self.turned_back or not (self._expected or self._at_once):
            return super().arrive(thread)
        thread.words[self._pc] = self.probepoint.address
        if not self._comes_back(thread):
            return super().arrive(thread)
        self.reception.conclude(thread, self, [])
        return False

    def _comes_back(self, thread: TracedThread) -> bool:
        found = self.relevant(thread.words)
        at_once = self._at_once.pop(thread.tid, None)
        expected = self._expected.get(thread.tid, [])
        if found in expected:
            del expected[expected.index(found) :]
            if not expected:
                del self._expected[thread.tid]
            return True
        return found == at_once


_MOST_RETURNS: Final = 16
"""Handlers that are over, of which a thread's are remembered at one place until it comes back."""


def probe_site(probepoint: Probepoint, space: AddressSpace, reception: Reception) -> ProbeSite:
    """The site for what is probed there."""
    kind = ReturningSite if probepoint.analysis.restarts else ProbeSite
    return kind(probepoint, space, reception)


class JumpSite(ProbeSite):
    """The trap in a probepoint's slot, where its jump leads. Behind it the thread runs on to the copy as it is."""

    __slots__ = ()
    in_slot = True

    def __init__(self, probepoint: Probepoint, space: AddressSpace, reception: Reception) -> None:
        super().__init__(probepoint, space, reception)
        self.landing = None
        self.certain = False

    def make_safe(self, thread: TracedThread) -> bool:  # noqa: ARG002 - as any site's
        """It is."""
        return True


class TombSite:
    """Where a trap was taken out: a thread that had run into it before is sent back to try again."""

    __slots__ = ("_space", "address", "certain", "landing", "landing_word", "reception", "watchful")
    in_slot = False
    express = None

    def __init__(self, address: VirtAddr, space: AddressSpace, reception: Reception) -> None:
        self.address: Final = address
        self.landing: VirtAddr | None = None
        self.landing_word: Any = None
        self.watchful = 3
        self.certain = False
        self.reception: Final = reception
        self._space: Final = space

    def make_safe(self, thread: TracedThread) -> bool:
        """Not ours, if a trap stands there that we did not write."""
        try:
            if traps.stands(self._space.raw, self.address, self._space.architecture.trap_forms):
                return False
        except MemoryFault:
            pass  # the program has unmapped it, and faults there by itself
        set_pc(self.reception.tracer, thread, self._space, self.address)
        return True

    def arrive(self, thread: TracedThread) -> bool:
        """Nobody waits for it."""
        if thread.held:
            self.reception.conclude(thread, self, [])
            return False
        return True
