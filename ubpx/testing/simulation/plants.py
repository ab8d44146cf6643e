"""Faults planted in the core on purpose: the schedules must find each of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs

from ubpx._errors import UsageError
from ubpx.core.arming import Armory
from ubpx.core.holds import HoldTable
from ubpx.core.leasing import Leasing
from ubpx.core.slots import SlotTable
from ubpx.core.steps import Steps
from ubpx.core.ubp import traps

Method = Callable[..., Any]


@attrs.frozen(kw_only=True)
class CorePlant:
    """One fault: a method of the core, and what takes its place."""

    what: str
    owner: Any
    name: str
    make: Callable[[Method], Method]
    """From the sound method to the broken one."""


def _nothing(_sound: Method) -> Method:
    return lambda *_args, **_how: None


def _freed_early(_sound: Method) -> Method:
    return lambda table, code: table.vacate(code)


def _trap_gone_early(sound: Method) -> Method:
    def withdraw(leasing: Any, leases: Any, state: Any, process: Any) -> None:
        shared = [lease.probepoint for lease in leases if lease.probepoint is not None]
        sound(leasing, leases, state, process)
        if process is not None and not process.ended.is_set():
            here = [each for each in shared if process.space.registry.at(each.address) is each]
            traps.remove_all(process.space.raw, [[each.patch] for each in here])

    return withdraw


def _trap_left(_sound: Method) -> Method:
    return lambda _memory, _groups: []


def _nobodys(_sound: Method) -> Method:
    return lambda *_args: ()


def _newcomers_forgotten(sound: Method) -> Method:
    def refresh(armory: Any, space: Any, probepoint: Any) -> None:
        if len(probepoint.leases) != 2:
            sound(armory, space, probepoint)

    return refresh


def _signal_dropped(sound: Method) -> Method:
    def give_back(steps: Any, thread: Any) -> None:
        thread.deferred = []
        sound(steps, thread)

    return give_back


PLANTS: Final[Mapping[str, CorePlant]] = {
    "slot-freed": CorePlant(
        what="A slot is free as soon as nobody leases it, whoever is in it.",
        owner=SlotTable, name="retire", make=_freed_early,
    ),
    "trap-gone": CorePlant(
        what="The first of several leases that is given back takes the trap with it.",
        owner=Leasing, name="withdraw", make=_trap_gone_early,
    ),
    "trap-left": CorePlant(
        what="The last lease leaves its trap behind.",
        owner=traps, name="remove_all", make=_trap_left,
    ),
    "hold-forgotten": CorePlant(
        what="What a client held stays held when it leaves.",
        owner=HoldTable, name="of", make=_nobodys,
    ),
    "hit-missed": CorePlant(
        what="The second client of a probepoint is never told of a hit.",
        owner=Armory, name="refresh", make=_newcomers_forgotten,
    ),
    "signal-dropped": CorePlant(
        what="A signal that waited for the end of a step is never delivered.",
        owner=Steps, name="_give_back_signals", make=_signal_dropped,
    ),
    "child-uncleaned": CorePlant(
        what="A forked child keeps its parent's traps.",
        owner=Armory, name="clean", make=_nothing,
    ),
    "left-in-slot": CorePlant(
        what="A thread may be left in the middle of a slot.",
        owner=Steps, name="leave_slot", make=_nothing,
    ),
}  # fmt: skip


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """While it lasts, the core has the fault; None: no fault. Raises UsageError for a name that none has."""
    if name is None:
        yield
        return
    plant = PLANTS.get(name)
    if plant is None:
        raise UsageError(f"there is no fault {name!r} to plant; there is {', '.join(PLANTS)}")
    sound = getattr(plant.owner, plant.name)
    setattr(plant.owner, plant.name, plant.make(sound))
    try:
        yield
    finally:
        setattr(plant.owner, plant.name, sound)
