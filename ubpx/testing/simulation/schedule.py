"""One schedule: from a seed to its end, or to what is wrong."""

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from ubpx.testing.simulation.choices import Pick, seeded
from ubpx.testing.simulation.program import PLACES
from ubpx.testing.simulation.world import World

_STEPS: Final = 12
_BUDGET: Final = 16


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one schedule."""

    seed: int
    failure: str = ""
    """What is wrong; empty: nothing."""
    hits: int = 0
    happenings: int = 0
    """What threads did, and what was decided otherwise."""
    story: Sequence[str] = ()
    """What was asked for and what happened, in order, if that is wanted."""


def run(seed: int, *, tell: bool = False) -> Outcome:
    """The schedule of one seed; the same each time."""
    pick = seeded(seed)
    world = World(
        pick,
        budget=2 + pick(_BUDGET),
        slots_allowed=pick(6) > 0,
        threads=1 + pick(3),
        failures=int(pick(3) == 0),
        places=_some_places(pick),
    )
    world.kernel.tracing = tell
    failure = ""
    try:
        _live(world, pick)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        failure = f"{type(error).__name__}: {error}"
    return Outcome(
        seed=seed,
        failure=failure,
        hits=sum(each.lease.hits for each in world.ledger.shares),
        happenings=world.kernel.happenings,
        story=[_line(entry) for entry in world.kernel.log],
    )


def _line(entry: tuple[object, ...]) -> str:
    action, tid, *details = entry
    shown = [hex(each) if isinstance(each, int) and each > 0xFFFF else str(each) for each in details]
    return f"{tid or 'clients'}: {action} {' '.join(shown)}".rstrip()


def _some_places(pick: Pick) -> Sequence[int]:
    """Few, so that everybody meets there."""
    first = pick(len(PLACES))
    return (*PLACES[first:], *PLACES[:first])[: 1 + pick(3)]


def _live(world: World, pick: Pick) -> None:
    actions: tuple[Callable[[], None], ...] = (
        *(world.pump,) * 6, world.probe, world.probe, world.release, world.hold, world.let_go, world.let_go, world.step,
        world.close, world.join, world.probe_many, world.expel, world.cont,
    )  # fmt: skip
    world.join()
    world.probe()
    for _ in range(2 + pick(_STEPS)):
        actions[pick(len(actions))]()
        world.ledger.check()
    if pick(2):
        world.settle()
    world.leave()
