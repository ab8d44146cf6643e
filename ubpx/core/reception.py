"""What happens at a hit around its handlers: failures, verdicts, register writes, the way past the trap."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ubpx._errors import MemoryFault, NotEmulated, SlotsExhausted
from ubpx.core.arming import Armory
from ubpx.core.deadlines import Watchdog
from ubpx.core.events import Verdict
from ubpx.core.herald import Wanted
from ubpx.core.keeper import Keeper, Move
from ubpx.core.ports import Site, TracedThread, Tracer
from ubpx.core.probepoints import Lease
from ubpx.core.registers import WordRegisters, put
from ubpx.core.sites import Answer, ProbeSite, run_handlers
from ubpx.core.spaces import AddressSpace, StopKind, Thread, Tracees
from ubpx.core.stepping import LEAVING, Input
from ubpx.core.steps import Steps
from ubpx.core.ubp import traps
from ubpx.core.ubp.plans import InsnAnalysis, Strategy
from ubpx.core.values import PAGE_SIZE, ProcessId, VirtAddr
from ubpx.core.verdicts import merge_verdicts, merge_writes

Entered = Callable[[TracedThread], None]
"""A thread stands at its new program's entry point."""


class HitReception:
    """Serves arrivals for the sites (see ``sites.Reception``). Owned by the Coordinator."""

    def __init__(
        self, keeper: Keeper, steps: Steps, *, tracer: Tracer, tracees: Tracees, move: Move, entered: Entered
    ) -> None:
        self.tracer = tracer
        self.serving: TracedThread | None = None
        self.requests = 0
        self.watchdog = Watchdog()
        self.after_hit: list[Callable[[], None]] = []
        self.armory: Final = Armory(self, keeper.map_area, keeper.protect)
        self.entered: Final = entered
        self._tracees: Final = tracees
        self._keeper: Final = keeper
        self._steps: Final = steps
        self._move: Final = move
        keeper.serving = lambda: self.serving
        keeper.write_registers = self.write_registers

    def handler_failed(self, lease: Lease, error: BaseException, ran_s: float) -> None:
        """A handler raised: its client alone pays."""
        lease.errors += 1
        for pid in self._pids_of(lease):
            self._tracees.listeners[pid].handler_failed(lease, error, ran_s)

    def handler_succeeded(self, lease: Lease) -> None:
        """A handler returned, after exceptions before."""
        lease.client.strikes = 0

    def calm(self, lease: Lease, ran_s: float) -> None:
        """A handler overran, and has returned; one that was blocked in C is quarantined at once."""
        if self.watchdog.calm():
            for pid in self._pids_of(lease):
                self._tracees.listeners[pid].handler_blocked(lease, ran_s)

    def look_at_text(self, space: AddressSpace, *, serve: bool = True) -> None:
        """Have it found out what the program has changed of what is probed; ``serve``: the program may be served."""
        for process in self._tracees.sharing(space):
            if not process.silent and process.pid in self._tracees.listeners:
                self._tracees.listeners[process.pid].look_at_text(process, serve=serve)

    def trap_has_moved(self, thread: Thread) -> bool:
        """Whether the trap that the thread ran into is ours, in code that the program has moved.

        Then it is out, and the thread stands before the instruction.
        """
        space = thread.process.space
        if not self.tracer.fetch(thread.port):
            return False
        at = VirtAddr(thread.port.words[space.layout.pc] - space.architecture.trap_advance)
        if at not in space.changes.moved:
            if any((each ^ at) % PAGE_SIZE == 0 for each in space.patches):  # code moves by whole pages
                self.look_at_text(space, serve=False)
            if at not in space.changes.moved:
                return False
        try:
            if traps.stands(space.raw, at, space.architecture.trap_forms):
                return False
        except MemoryFault:
            return False
        thread.port.words[space.layout.pc] = at
        self.tracer.store(thread.port)
        return True

    def _pids_of(self, lease: Lease) -> Iterator[ProcessId]:
        for pid, process in self._tracees.processes.items():
            space = process.space
            here = lease.probepoint is not None and lease.probepoint.space == space.identity
            if not process.silent and (here or lease in space.watches.leases()):
                yield pid

    def note_request(self) -> None:
        """Something is asked for in the tracer thread, by a handler say, and done at once: it may change anything."""
        self.requests += 1

    def conclude(self, port: TracedThread, site: Site, answers: list[Answer]) -> None:
        """After all handlers: verdicts, register writes, the step, and what was put off."""
        thread = self._tracees.threads[port.tid]
        before, self._tracees.current = self._tracees.current, thread
        thread.stop = StopKind.PLAIN
        try:
            if isinstance(site, ProbeSite):
                self._settle_hit(thread, site, answers)
            self._do_what_waited()
            if thread.state not in LEAVING:  # killed meanwhile
                self._move(thread, Input.ARRIVED)
        finally:
            self._tracees.current = before

    def _do_what_waited(self) -> None:
        """What handlers asked for that takes effect after the hit."""
        deferred, self.after_hit = self.after_hit, []
        for action in deferred:
            action()

    def _settle_hit(self, thread: Thread, site: ProbeSite, answers: list[Answer]) -> None:
        thread.site, thread.arrival, thread.plan = site, tuple(thread.port.words), None
        thread.returning = None
        thread.origin = thread.arrival
        thread.written = [(lease.client.name, writes) for lease, _, writes in answers if writes]
        registers = self._merge(thread, site.probepoint.address, answers)
        self.obey(thread, [(lease.client.name, answer) for lease, answer, _ in answers if answer is not None])
        if registers or site.in_slot or thread.tid in site.unlanded:
            self._land(thread, site, registers)
        self._plan_step(thread, site, registers)

    def _merge(self, thread: Thread, address: VirtAddr, answers: list[Answer]) -> Mapping[str, int]:
        """The registers to write; clients that disagree are told."""
        merged = merge_writes([(lease.client.name, writes) for lease, _, writes in answers if writes])
        for collision in merged.collisions:
            self._tracees.listeners[thread.process.pid].collided(address, collision)
        return merged.registers

    def watch_hit(self, thread: Thread, registers: Sequence[int]) -> None:
        """Run the handlers of the watchpoints that were hit, and settle what they want."""
        space, port = thread.process.space, thread.port
        points = space.watches.hit(registers)
        if thread.process.silent or not points or not self.tracer.fetch(port):
            return
        before, self.serving = self.serving, port
        leases = tuple(lease for point in points for lease in point.leases)
        for lease in leases:
            lease.hits += 1
        answers = run_handlers(leases, port, space, self) or []
        self.serving = before
        merged = self._merge(thread, points[0].address, answers)
        self.obey(thread, [(lease.client.name, answer) for lease, answer, _ in answers if answer is not None])
        if merged:
            self.write_registers(thread, "", merged)
        self._do_what_waited()

    def obey(self, thread: Thread, wanted: Wanted) -> None:
        """Note who steps and who holds; the least permissive verdict wins."""
        verdict = merge_verdicts(answer for _, answer in wanted)
        if verdict is Verdict.STEP:
            self._keeper.protect(thread.process.space)
            thread.step_clients += tuple(name for name, answer in wanted if answer is Verdict.STEP)
            self._keeper.refresh(thread)
        for name, answer in wanted:
            if answer >= Verdict.HOLD:  # each who wants one has a hold of its own, and the thread waits for all of them
                whole = answer is Verdict.HOLD_PROCESS
                if thread.stepped_by == name:  # it wants the thread as it stands now; its step is over
                    thread.stepped_by = None
                thread.step_clients = tuple(client for client in thread.step_clients if client != name)
                self._keeper.take_hold(name, thread.process, None if whole else thread.tid)

    def write_registers(self, thread: Thread, owner: str, registers: Mapping[str, int]) -> None:
        """Write to a stopped thread that is let go; at an arrival it passes the trap with the new values.

        There they are merged with what the other clients wrote, as if ``owner``'s handler had written them at once.
        """
        if isinstance(thread.site, ProbeSite) and thread.origin is not None:
            site, thread.plan = thread.site, None
            thread.arrival = thread.origin
            merged = self._merge_late(thread, site, owner, registers)
            self._land(thread, site, merged)
            self._plan_step(thread, site, merged)
            thread.arrival = None
        elif self.tracer.fetch(thread.port):
            layout = thread.process.space.layout
            if layout.pc_name in registers:  # else a system call that it is stopped in would begin again right before
                put(thread.port.words, layout, thread.process.space.architecture.outside_call)
            put(thread.port.words, layout, registers)
            self.tracer.store(thread.port)

    def _merge_late(
        self, thread: Thread, site: ProbeSite, owner: str, registers: Mapping[str, int]
    ) -> Mapping[str, int]:
        """All that clients wrote at the arrival, in handler order; who is overruled now is told, and by whom."""
        order = {name: rank for rank, name in reversed(tuple(enumerate(site.probepoint.clients)))}
        own = {name: value for client, values in thread.written if client == owner for name, value in values.items()}
        others = [(client, values) for client, values in thread.written if client != owner]
        written = [*others, (owner, {**own, **registers})]
        thread.written = sorted(written, key=lambda each: order.get(each[0], len(order)))
        merged = merge_writes(thread.written)
        for collision in merged.collisions:
            if owner in (collision.winner, collision.loser) and collision.register in registers:
                self._tracees.listeners[thread.process.pid].collided(site.probepoint.address, collision)
        return merged.registers

    def _land(self, thread: Thread, site: ProbeSite, changes: Mapping[str, int]) -> None:
        """Send the thread past the trap again, from its registers at arrival with ``changes``."""
        space, words = thread.process.space, thread.port.words
        if thread.arrival is not None:
            for position, word in enumerate(thread.arrival):
                words[position] = word
        put(words, space.layout, changes)
        site.undo(thread.port)
        site.unlanded.discard(thread.tid)
        if space.layout.pc_name not in changes:
            self._pass_trap(thread, site)
        self.tracer.store(thread.port)

    def _pass_trap(self, thread: Thread, site: ProbeSite) -> None:
        space, words = thread.process.space, thread.port.words
        if site.onward is not None and site.lands(thread.port):
            words[space.layout.pc] = site.onward
            return
        try:
            put(words, space.layout, site.emulate(thread.port))
        except (MemoryFault, NotEmulated):
            self._run_itself(thread, site)

    def _run_itself(self, thread: Thread, site: ProbeSite) -> None:
        """The program must see a fault or trap of its own: the instruction itself runs, in a slot or else in place."""
        space, analysis = thread.process.space, site.probepoint.analysis
        landing, boosted = site.probepoint.address, Strategy.BOOST in analysis.strategies
        if space.slots_allowed and (boosted or Strategy.STEP in analysis.strategies):
            with contextlib.suppress(SlotsExhausted):
                code = self.armory.occupy_slot(space, analysis, thread.process.pid)
                space.slots.retire(code)
                landing = code.slot
        thread.port.words[space.layout.pc] = landing
        if landing == site.probepoint.address or thread.step_clients or not boosted:
            self._plan(thread, analysis, landing)

    def _plan_step(self, thread: Thread, site: ProbeSite, changes: Mapping[str, int]) -> None:
        """Have it stepped past the trap where that is how it goes; ``words`` are those that it goes with."""
        probepoint = site.probepoint
        in_place = probepoint.strategy is Strategy.INLINE
        if thread.process.space.layout.pc_name in changes:
            return  # a step that somebody asked for is one at the new place
        if thread.plan is not None:
            return  # it runs itself this time, and how is planned already
        if (
            probepoint.strategy in (Strategy.BOOST, Strategy.JUMP)
            and Strategy.STEP not in probepoint.analysis.strategies
        ):
            return  # a step that somebody asked for runs the copy as it is
        slot = probepoint.slot if site.onward == probepoint.slot else None
        if not (slot or in_place):
            if thread.step_clients:
                self.tracer.fetch(thread.port)
                self._steps.stepped(thread)  # emulation has done the instruction
        elif in_place or probepoint.strategy is Strategy.STEP or thread.step_clients:
            self._plan(thread, probepoint.analysis, slot or probepoint.address)

    def _plan(self, thread: Thread, analysis: InsnAnalysis, slot: VirtAddr) -> None:
        space = thread.process.space
        registers = WordRegisters(thread.port.words, space.layout)
        thread.plan = space.architecture.before_step(analysis, slot, registers)
