"""What clients have asked for and what the kernel knows, side by side: how each should be, and what is wrong if not."""

from collections.abc import Iterator
from typing import Any, Final

import attrs

from ubpx.core.clients import Client, ClientState
from ubpx.core.coordinator import Coordinator
from ubpx.core.probepoints import Lease, LeaseState
from ubpx.core.spaces import TracedProcess
from ubpx.testing.script import PC, Condition, FakeProcess, FakeThread
from ubpx.testing.simulation.kernel import Watcher
from ubpx.testing.simulation.program import ENTRY, PLACES, TEXT, is_sound
from ubpx.testing.simulation.seeded import SeededTracer

_TRAP: Final = b"\xcc"


class Broken(AssertionError):
    """An invariant does not hold."""


@attrs.define(eq=False)
class Share:
    """One lease, by the client's account. Owned by the ledger."""

    lease: Lease
    place: int
    by_name: bool
    expected: int = 0
    """Arrivals while it was armed, by the kernel's account."""
    given_back: bool = False
    """Its client has released it, or is gone."""
    survived_exec: bool = False
    """The program has been replaced since: whether it is armed depends on more than its client."""


class Ledger(Watcher):
    """Compares. Owned by one schedule's world, which tells it what clients do."""

    def __init__(self, pid: int) -> None:
        self._pid: Final = pid
        self.kernel: SeededTracer
        self.coordinator: Coordinator
        self.process: TracedProcess
        self.shares: Final[list[Share]] = []
        self.clients: Final[list[Client]] = []
        self._met: Final[dict[int, tuple[int, Any]]] = {}

    # What the kernel tells ------------------------------------------------------------------

    def met(self, thread: FakeThread, address: int) -> None:
        """By whom it will be counted: those who have a lease now, of the same probepoint."""
        found = next((each.lease.probepoint for each in self.armed_at(address)), None)
        self._met[thread.tid] = (address, found)

    def arriving(self, thread: FakeThread) -> None:
        """Counted by each who shares the probepoint now."""
        address, probepoint = self._met.pop(thread.tid, (0, None))
        if thread.pid == self._pid and probepoint is not None:
            for share in self.armed_at(address):
                if share.lease.probepoint is probepoint:
                    share.expected += 1

    def replaced(self, process: FakeProcess) -> None:
        """An exec: what was given by address is lost, the rest may come again."""
        if process.pid == self._pid:
            for share in self.shares:
                share.survived_exec = True

    def left(self, thread: FakeThread) -> None:
        """Nobody may be left where it would not live on."""
        process = self.kernel.process_of(thread)
        if self.kernel.in_area(thread):
            raise Broken(f"thread {thread.tid} is left in a slot, at {thread.registers[PC]:#x}")
        if not self.kernel.is_traced(process.memory) and not is_sound(process.memory):
            raise Broken(f"process {process.pid} is left with traps in its memory")

    # Between two steps ----------------------------------------------------------------------

    def armed_at(self, address: int) -> Iterator[Share]:
        """The leases that are armed there, by their own account."""
        return (each for each in self.shares if each.place == address and each.lease.state is LeaseState.ARMED)

    def check(self) -> None:
        """Nothing that must always hold is broken; raises Broken."""
        if self.kernel.failure is not None:
            raise self.kernel.failure
        self._check_leases()
        if not self.process.ended.is_set():
            self._check_traps()
            if self.process.space.slots.areas:
                self._check_slots()
        self._check_holds()

    def _check_leases(self) -> None:
        ended = self.process.ended.is_set()
        for share in self.shares:
            armed = share.lease.state is LeaseState.ARMED
            gone = share.given_back or ended or share.lease.client.state is not ClientState.LIVE  # type: ignore[attr-defined]
            if armed and gone:
                raise Broken(f"{share.lease} is armed though it was given back")
            if not armed and not gone and not share.survived_exec:
                raise Broken(f"{share.lease} is not armed though nobody gave it back")
            if share.lease.hits != share.expected:
                raise Broken(f"{share.lease} has {share.lease.hits} hits of {share.expected}")

    def _check_traps(self) -> None:
        """A trap stands exactly where somebody has a lease."""
        space = self.process.space
        memory: Any = space.raw
        if memory.is_gone:
            return
        text = memory.read(TEXT, ENTRY + 1 - TEXT)
        leased = {share.place for share in self.shares if share.lease.state is LeaseState.ARMED}
        for place in PLACES:
            stands = text[place - TEXT] == 0xCC
            if stands != (place in leased):
                what = "a trap stands at" if stands else "no trap stands at"
                raise Broken(f"{what} {place:#x}, where {'nobody' if stands else 'somebody'} has a lease")
        for probepoint in space.registry:
            if not probepoint.leases:
                raise Broken(f"{probepoint!r} is kept though nobody leases it")

    def _check_slots(self) -> None:
        """Whoever is in a slot finds it as it was."""
        space = self.process.space
        for thread in self.kernel.threads_in(space.raw):
            if self.kernel.in_area(thread) and space.slots.code_at(thread.registers[PC]) is None:
                raise Broken(f"thread {thread.tid} is in a slot that was freed, at {thread.registers[PC]:#x}")

    def _check_holds(self) -> None:
        live = {client.name for client in self.clients if client.state is ClientState.LIVE}
        for hold in self.coordinator.keeper.holds:
            if hold.owner not in live:
                raise Broken(f"{hold!r} outlives its owner")
        if self.kernel.has_news:
            return
        for thread in self.kernel.stopped():
            if not self._is_held(thread):
                raise Broken(f"thread {thread.tid} is left stopped, and nobody holds it")
        for hold in self.coordinator.keeper.holds:
            for thread in self.kernel.running(hold.process):
                if hold.thread in (None, thread.tid) and not self._steps_for(thread, hold.owner):
                    raise Broken(f"thread {thread.tid} runs on though {hold.owner!r} holds it")

    def _steps_for(self, thread: FakeThread, owner: str) -> bool:
        known = self.coordinator.tracees.threads.get(thread.tid)
        return known is None or known.stepped_by == owner

    def _is_held(self, thread: FakeThread) -> bool:
        return any(True for _ in self.coordinator.keeper.holds.on(thread.pid, thread.tid))

    # At the end -----------------------------------------------------------------------------

    def check_end(self) -> None:
        """Nothing of ours is left anywhere; raises Broken."""
        self.check()
        tracees, kernel = self.coordinator.tracees, self.kernel
        for what, left in (
            ("processes", tracees.processes),
            ("threads", tracees.threads),
            ("listeners", tracees.listeners),
            ("holds", list(self.coordinator.keeper.holds)),
            ("traced threads", kernel.traced()),
            ("probepoints", list(self.process.space.registry) if kernel.lives(self._pid) else ()),
            ("slot areas", self.process.space.slots.areas if kernel.lives(self._pid) else ()),
        ):
            if left:
                raise Broken(f"at the end {what} are left: {left!r}")
        for process in kernel.living():
            if process.areas and process.pid == self._pid:
                raise Broken(f"process {process.pid} keeps slot areas: {process.areas}")
            if not is_sound(process.memory):
                raise Broken(f"process {process.pid} is left with a text that is not its own")
        for thread in kernel.untraced():
            if thread.condition is Condition.STOPPED:
                raise Broken(f"thread {thread.tid} is left stopped")
            self._check_work(thread)

    def _check_work(self, thread: FakeThread) -> None:
        """The thread runs on to open code, and has done everything exactly once."""
        self.kernel.run_alone(thread)
        complaint = self.kernel.bodies[thread.tid].complaint(thread)
        if complaint:
            raise Broken(complaint)

    def check_rest(self) -> None:
        """Everything has come to rest, nobody holds anything: no signal is on its way still."""
        for thread in self.kernel.traced():
            owed = self.kernel.bodies[thread.tid].owed
            if owed and thread.waits_for is None and thread.exit_status is None:
                raise Broken(f"signals {owed} to thread {thread.tid} have been lost")


__all__ = ["Broken", "Ledger", "Share"]
