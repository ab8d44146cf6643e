"""What ``ubpx list`` shows: who holds what."""

from pathlib import Path

from ubpx import Probepoint, Target
from ubpx_froggy.broker.hosted import BROKER, Hosted
from ubpx_froggy.messages import (
    ClientOverview,
    HoldOverview,
    LeaseOverview,
    ProbepointOverview,
    SlotUseInfo,
    TargetOverview,
)


def overview_of(hosted: Hosted) -> TargetOverview:
    """Of one target."""
    target = hosted.target
    running = hosted.status is None
    return TargetOverview(
        pid=hosted.pid,
        command=command_of(hosted.pid),
        clients=_clients(hosted),
        probepoints=[_probepoint(each) for each in target.probepoints()] if running else [],
        holds=[HoldOverview(hold.owner, hold.thread) for hold in target.holds()] if running else [],
        slots=slot_use_of(target),
    )


def slot_use_of(target: Target) -> SlotUseInfo:
    """As it travels."""
    use = target.slots
    return SlotUseInfo(use.leased, use.retired, use.free, use.jump_pages)


def _clients(hosted: Hosted) -> list[ClientOverview]:
    found = []
    for client in hosted.target.clients():
        if client.name == BROKER:
            continue
        seat = hosted.seats.get(client.name)
        peer = seat.guest.peer if seat is not None and seat.guest is not None else None
        absent = seat is not None and peer is None
        found.append(
            ClientOverview(
                name=client.name,
                state="ABSENT" if absent else client.state,
                pid=peer.pid if peer is not None else 0,
                uid=seat.uid if seat is not None else 0,
                leases=len(client.leases),
            )
        )
    return found


def _probepoint(probepoint: Probepoint) -> ProbepointOverview:
    return ProbepointOverview(
        address=probepoint.address,
        strategy=probepoint.strategy,
        leases=[LeaseOverview(lease.client.name, lease.spec, lease.hits) for lease in probepoint.leases],
    )


def command_of(pid: int) -> str:
    """Its command line, as the process shows it; its name where it shows none, "" where it has ended."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if not line:
            return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
    return line[:4096].rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
