"""What the demo does, and what it finds; printing is elsewhere."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import attrs

from ubpx._errors import PluginFailed
from ubpx.cli.dialogue import Dialogue
from ubpx.core.probepoints import Lease, Probepoint
from ubpx.core.values import VirtAddr
from ubpx.target import Target, attach

PLACE: Final = "libc:labs"
"""Its first instruction needs a slot where libc is built without indirect-branch tracking, as Debian's is."""
CLIENTS: Final = ("hitcount", "argwatch")
PROGRAM: Final = Path(__file__).with_name("program.py")
THREADS: Final = 4
CALLS: Final = 2_500
"""By each thread."""
PATIENCE_S: Final = 120.0


@attrs.frozen
class ClientHits:
    """What one client counted."""

    name: str
    hits: int


@attrs.frozen(kw_only=True)
class Sharing:
    """How the clients shared the place, as seen while they did."""

    address: VirtAddr
    strategy: str
    slot: VirtAddr | None
    """Where the out-of-line copy is; None if the strategy needs none."""
    clients: tuple[str, ...]
    """In the order of their handlers."""
    holders: tuple[int, ...]
    """How many clients held the probepoint: with all of them, then after each that left."""


@attrs.frozen(kw_only=True)
class DemoResult:
    """What the program, the clients and ubpx each say about one run."""

    pid: int
    calls: int
    """Counted by the program itself."""
    rounds: int
    """What its other threads did between the gates."""
    clients: tuple[ClientHits, ...]
    sharing: Sharing
    exit_status: int

    @property
    def missed(self) -> int:
        """By how much the clients' counts differ from the program's, all together."""
        return sum(abs(self.calls - each.hits) for each in self.clients)

    @property
    def ok(self) -> bool:
        """Whether nothing was missed, everything given back, and the program unharmed."""
        return (
            self.missed == 0
            and self.sharing.holders == tuple(range(len(self.clients), -1, -1))
            and self.exit_status == 0
        )


class DemoProgram(Dialogue):
    """The running program. Owned by ``run_demo``."""

    def __init__(self, *, threads: int, calls: int) -> None:
        super().__init__([sys.executable, "-I", str(PROGRAM), str(threads), str(calls)], PATIENCE_S)

    def run_between_gates(self) -> tuple[int, int]:
        """Open the gates; its own count of calls, and the rounds of its other threads meanwhile."""
        self.open_gate()
        return self.await_gate()

    def open_gate(self) -> None:
        """Let its threads call."""
        self.say("go")

    def await_gate(self) -> tuple[int, int]:
        """Until they have: its own count of calls, and the rounds of its other threads meanwhile."""
        answer = json.loads(self.listen())
        return answer["calls"], answer["rounds"]


def run_demo(*, threads: int = THREADS, calls: int = CALLS) -> DemoResult:
    """Start the program, share a probepoint of it, compare the counts.

    Raises an UbpxError if a plugin is not installed or cannot probe, or the program cannot be traced.
    """
    program = DemoProgram(threads=threads, calls=calls)
    try:
        program.listen()
        settings = {f"UBPX_{name.upper()}_SPEC": PLACE for name in CLIENTS}
        with environment(settings), attach(program.pid, plugins=CLIENTS) as target:
            leases = client_leases(target)
            probepoint = shared_probepoint(leases)
            made, rounds = program.run_between_gates()
            sharing = give_back(target, probepoint, leases)
        return DemoResult(
            pid=program.pid,
            calls=made,
            rounds=rounds,
            clients=tuple(ClientHits(name, lease.hits) for name, lease in zip(CLIENTS, leases, strict=True)),
            sharing=sharing,
            exit_status=program.finish(),
        )
    finally:
        program.end()


def client_leases(target: Target) -> Sequence[Lease]:
    """The one lease of each client plugin, in the order of CLIENTS."""
    held = {client.name: client.leases for client in target.clients()}
    for name in CLIENTS:
        if len(held.get(name, ())) != 1:
            raise PluginFailed(name, f"it has {len(held.get(name, ()))} leases at {PLACE} instead of one")
    return [held[name][0] for name in CLIENTS]


def give_back(target: Target, probepoint: Probepoint, leases: Sequence[Lease]) -> Sharing:
    """Release one lease after the other; what was seen before and on the way."""
    clients = probepoint.clients
    holders = [count_holders(target, probepoint.address)]
    for lease in leases:
        lease.release()
        holders.append(count_holders(target, probepoint.address))
    return Sharing(
        address=probepoint.address,
        strategy=probepoint.strategy,
        slot=probepoint.slot,
        clients=clients,
        holders=tuple(holders),
    )


def shared_probepoint(leases: Sequence[Lease]) -> Probepoint:
    """The probepoint of all the leases; raises PluginFailed if one is elsewhere."""
    for name, lease in zip(CLIENTS, leases, strict=True):
        if lease.probepoint is None or lease.probepoint is not leases[0].probepoint:
            raise PluginFailed(name, f"its lease is {lease.state} and not shared with {CLIENTS[0]}")
    return cast("Probepoint", leases[0].probepoint)


def count_holders(target: Target, address: int) -> int:
    """How many clients share the probepoint at ``address`` now; none if there is no probepoint."""
    return next((len(each.clients) for each in target.probepoints() if each.address == address), 0)


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables of our own process: this is where the two plugins look for their place."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
