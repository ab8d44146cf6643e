"""One schedule's world: the seeded kernel, the real coordinator and desk over it, and clients that do anything."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from ubpx._errors import InternalError, UbpxError, UnknownModule
from ubpx.core import events
from ubpx.core.clients import Client, ClientState
from ubpx.core.coordinator import Coordinator
from ubpx.core.desk import TargetDesk
from ubpx.core.events import Verdict
from ubpx.core.loop import TracerThread
from ubpx.core.ports import Refusal
from ubpx.core.spaces import TracedProcess
from ubpx.core.values import Place, ProcessId, ThreadId, VirtAddr
from ubpx.testing.simulation.choices import Pick, one_of
from ubpx.testing.simulation.faults import Interference
from ubpx.testing.simulation.ledger import Broken, Ledger, Share
from ubpx.testing.simulation.memory import SeededMemory
from ubpx.testing.simulation.program import BY_NAME, PLACES, begin, image
from ubpx.testing.simulation.seeded import SeededTracer

PID: Final = 100
_NAMES: Final = ("a", "b", "c", "d", "e", "f")
_STRATEGIES: Final = (None, None, None, None, None, "STEP", "INLINE", "BOOST")
_MOST_CLIENTS: Final = 3
_PLACE_NAMES: Final = {address: name for name, address in BY_NAME.items()}
T = TypeVar("T")


class Mishap(Exception):
    """A client's handler has failed."""


class SteppedLoop:
    """What a TracerThread is to a desk, without a thread: jobs run at once, and events when somebody asks for one."""

    is_current = True

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator: Final = coordinator

    def run(self, job: Callable[[], T]) -> T:
        """At once."""
        return job()


class World:
    """Made, then told what to do step by step; nothing happens otherwise. Owned by its schedule."""

    def __init__(
        self,
        pick: Pick,
        *,
        budget: int,
        slots_allowed: bool = True,
        threads: int = 1,
        failures: int = 0,
        places: Sequence[int] = PLACES,
    ) -> None:
        self.pick: Final = pick
        self.ledger: Final = Ledger(PID)
        self.kernel: Final = SeededTracer(pick, budget=budget, watcher=self.ledger, alone=True, memory=self._memory)
        self._asks_since = -1
        """How often the core had waited when a client asked for something that it does now."""
        self.gentle = False
        """From now on handlers do nothing."""
        kernel = self.kernel
        kernel.places = places
        self.fake = kernel.process(PID, image(self._memory))
        for number in range(threads):
            begin(kernel.thread(PID + number, None if number == 0 else PID))
        self.coordinator: Final = Coordinator(kernel)
        loop = cast("TracerThread", SteppedLoop(self.coordinator))
        self.desk: Final = TargetDesk(loop, self._resolve, self._resolve_many, self)
        self.ledger.kernel, self.ledger.coordinator = kernel, self.coordinator
        kernel.open()
        self.process: Final[TracedProcess] = self.coordinator.attach(
            ProcessId(PID), self.desk, slots_allowed=slots_allowed
        )
        self.desk.process = self.ledger.process = self.process
        self.interference: Final = Interference(kernel, self.ledger, pick, PID, failures=failures)
        self.interference.told, self.interference.may_refuse = self.tell, self._only_asks

    def _memory(self) -> SeededMemory:
        memory = SeededMemory()
        memory.touched = self._touched
        return memory

    def _touched(self, operation: str) -> None:
        self.kernel.tick(operation)

    def _resolve(self, spec: str | int, _process: TracedProcess) -> Place:
        address = spec if isinstance(spec, int) else BY_NAME.get(spec)
        if address is None:
            raise UnknownModule(str(spec), ())
        start = VirtAddr(address & ~0x1F)
        return Place(address=VirtAddr(address), name=str(spec), symbol_start=start, symbol_end=VirtAddr(start + 32))

    def _resolve_many(self, specs: str | Sequence[str | int], process: TracedProcess) -> Sequence[Place | Refusal]:
        return [self._resolve(spec, process) for spec in ([specs] if isinstance(specs, str) else specs)]

    def tell(self, what: str) -> None:
        """For the story of a schedule that is looked at."""
        if self.kernel.tracing:
            self.kernel.log.append((what, 0))

    # The tracer's loop ----------------------------------------------------------------------

    def pump(self) -> None:
        """As the tracer thread does once: wait, and handle what came."""
        if not self.kernel.can_report:
            return
        self.kernel.ring()
        event = self.kernel.wait()
        if not isinstance(event, events.Doorbell):
            self.coordinator.handle(event)

    def attempt(self, job: Callable[[], T]) -> T | None:
        """What a client asks for; None if it is refused, which changes nothing."""
        before, self._asks_since = self._asks_since, self.kernel.waits
        try:
            return job()
        except UbpxError as error:
            self.tell(f"refused: {error}")
            if isinstance(error, InternalError):
                raise
            return None
        finally:
            self._asks_since = before

    def _only_asks(self) -> bool:
        """Whether a client's request is carried out, and nothing has been served since it came."""
        taking_turns = self.process.space.taking_turns
        return self._asks_since == self.kernel.waits and self.coordinator.tracees.current is None and not taking_turns

    # What clients do ------------------------------------------------------------------------

    def live(self) -> list[Client]:
        """Clients that may act."""
        return [each for each in self.ledger.clients if each.state is ClientState.LIVE]

    def join(self) -> None:
        """Another client, unless there are enough."""
        taken = {client.name for client in self.desk.roster.living()}
        if len(taken) < _MOST_CLIENTS:
            name = next(each for each in _NAMES if each not in taken)
            client = self.attempt(lambda: self.desk.join(name, self.pick(3)))
            self.tell(f"join {name}")
            if client is not None:
                self.ledger.clients.append(client)

    def probe(self) -> None:
        """A client wants a place, in one of many ways."""
        client = one_of(self.pick, self.live()) if self.live() else None
        if client is not None:
            self.probe_for(client, one_of(self.pick, self.kernel.places))

    def probe_for(self, client: Client, place: int) -> None:
        """By address or by name, with a strategy or without."""
        by_name = self.pick(4) == 3
        spec: str | int = _PLACE_NAMES[VirtAddr(place)] if by_name else place
        strategy = _STRATEGIES[self.pick(len(_STRATEGIES))]
        exclusive = self.pick(16) == 15
        cell: list[Share] = []
        self.tell(f"{client.name} probes {spec}, strategy={strategy}, exclusive={exclusive}")
        lease = self.attempt(
            lambda: client.probe(
                spec,
                lambda hit: self.handle(cell[0], hit),
                strategy=strategy,
                exclusive=exclusive,
                assume_boundary=True,
            )
        )
        if lease is not None:
            share = Share(lease, place, by_name, survived_exec=self.is_replaced)
            cell.append(share)
            self.ledger.shares.append(share)

    def probe_many(self) -> None:
        """A client wants several at once."""
        if not self.live():
            return
        client = one_of(self.pick, self.live())
        wanted = [place for place in self.kernel.places if self.pick(2)] or [self.kernel.places[0]]
        by_lease: dict[Any, Share] = {}
        self.tell(f"{client.name} probes many: {wanted}")
        made = self.attempt(
            lambda: client.probe_many(wanted, lambda hit: self.handle(by_lease[hit.lease], hit), assume_boundary=True)
        )
        for lease in made or ():
            at = int(lease.address or 0)
            share = by_lease[lease] = Share(lease, at, by_name=False, survived_exec=self.is_replaced)
            self.ledger.shares.append(share)

    @property
    def is_replaced(self) -> bool:
        """Whether the program has been replaced, and the core has not heard of it."""
        return self.process.space.raw is not self.fake.memory

    def release(self) -> None:
        """Somebody gives a lease back."""
        mine = [share for share in self.ledger.shares if not share.given_back]
        if mine:
            self.release_share(one_of(self.pick, mine))

    def release_share(self, share: Share) -> None:
        """Now, or after the hit."""
        self.tell(f"release {share.lease}")
        share.given_back = True
        share.lease.release()

    def close(self) -> None:
        """A client leaves."""
        if self.live():
            self.close_client(one_of(self.pick, self.live()))

    def close_client(self, client: Client) -> None:
        """Now, or after the hit."""
        self.tell(f"close {client.name}")
        for share in self.ledger.shares:
            share.given_back = share.given_back or share.lease.client is client
        client.close()

    def expel(self) -> None:
        """A client is quarantined."""
        if self.live():
            client = one_of(self.pick, self.live())
            self.tell(f"expel {client.name}")
            client.expel("because")

    def hold(self) -> None:
        """A client holds a thread, or all of them."""
        if self.live() and not self.process.ended.is_set():
            self.hold_for(one_of(self.pick, self.live()))

    def hold_for(self, client: Client) -> None:
        """Until it is stopped; from a handler, soon."""
        tids: list[int | None] = [*self.process.threads, None]
        tid = one_of(self.pick, tids)
        self.tell(f"{client.name} holds {tid}")
        self.attempt(lambda: client.hold(tid))

    def let_go(self) -> None:
        """A client ends one of its holds, or what its verdict was."""
        held = list(self.coordinator.keeper.holds)
        if held:
            hold = one_of(self.pick, held)
            self.tell(f"release {hold}")
            self.attempt(hold.release)

    def step(self) -> None:
        """A client has a thread step that it holds."""
        held = [each for each in self.coordinator.keeper.holds if each.thread is not None]
        if held:
            hold = one_of(self.pick, held)
            client = next(each for each in self.ledger.clients if each.name == hold.owner and each in self.live())
            self.tell(f"{client.name} steps {hold.thread}")
            self.attempt(lambda: client.step(ThreadId(hold.thread or 0)))

    def cont(self) -> None:
        """SIGCONT from outside."""
        if self.kernel.lives(PID):
            self.kernel.continue_process(PID)

    # What handlers do -----------------------------------------------------------------------

    def handle(self, share: Share, _hit: Any) -> Verdict | None:
        """The handler of one lease."""
        if self.gentle or self.pick(3):
            return None
        client: Any = share.lease.client
        self.tell(f"{client.name} is hit at {share.place:#x}")
        match self.pick(10):
            case 0:
                raise Mishap
            case 1:
                return Verdict.STEP
            case 2:
                return Verdict.HOLD
            case 3:
                return Verdict.HOLD_PROCESS
            case 4:
                self.release_share(share)
            case 5:
                self.release()
            case 6:
                self.close_client(client)
            case 7 if client.state is ClientState.LIVE:
                self.probe_for(client, one_of(self.pick, self.kernel.places))
            case 8 if client.state is ClientState.LIVE:
                self.hold_for(client)
        return None

    # The end --------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everybody lets go, until nothing is left to do; raises Broken if that does not come."""
        self.gentle = True
        self.interference.stop()
        self.kernel.budget = 0
        for _ in range(400):
            for hold in self.coordinator.keeper.holds:
                self.attempt(hold.release)
            if self.kernel.lives(PID):
                self.kernel.continue_process(PID)
            if not self.kernel.can_report:
                self.ledger.check()
                self.ledger.check_rest()
                return
            self.pump()
            self.ledger.check()
        raise Broken(f"it does not come to rest: {self.kernel.traced()}")

    def leave(self) -> None:
        """Detach, and see that nothing is left."""
        self.tell("detach")
        if not self.process.ended.is_set():
            self.coordinator.detach(self.process)
        self.kernel.budget = 0
        for _ in range(400):
            if not self.kernel.can_report:
                break
            self.pump()
        self.ledger.check_end()
        self.kernel.close()


__all__ = ["PID", "Mishap", "World"]
