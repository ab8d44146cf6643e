"""What a tracer that is about to be killed does with ``kills.c``: some of everything that changes a program."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import attrs

from ubpx._errors import UbpxError
from ubpx.core.plugins import Plugins
from ubpx.core.ubp.plans import Strategy
from ubpx.target import Target, attach
from ubpx.testing import points

_PROBED: Final[Sequence[tuple[str, Strategy | None]]] = (
    ("probed_leaf", None), ("probed_pushing", None), ("probed_float", None), ("probed_call", None),
    ("probed_jumping", None), ("probed_jumping+0x3", None), ("probed_leaf", Strategy.BOOST),
    ("probed_float", Strategy.JUMP), ("probed_leaf", Strategy.JUMP),
    ("probed_pushing", Strategy.STEP), ("probed_pushing+0x9", None), ("probed_float", Strategy.INLINE),
    ("libc.so.6:pthread_create", None), ("libc.so.6:syscall", None), ("libc.so.6:clock_nanosleep", None),
)  # fmt: skip
_PAUSE_S: Final = 0.01


@attrs.frozen
class Plan:
    """When the tracer kills itself; with neither it is killed from outside, or not at all."""

    point: str | None = None
    passage: int = 1
    """At which passage of the point, from 1."""


def load_tracer() -> str:
    """Have the installed tracer's modules loaded; the name of their package. Raises NoTracer."""
    tracer = Plugins().ask("ubpx_open_tracer")
    return type(tracer).__module__.partition(".")[0]


def counted(pid: int, seed: int) -> Counter[str]:
    """How often each point is passed when nobody is killed."""
    passed: Counter[str] = Counter()
    points.watch(load_tracer(), lambda name: passed.update((name,)))
    play(pid, seed)
    return passed


def play_and_die(pid: int, seed: int, plan: Plan) -> None:
    """Do it again and again, until the plan's point, or for ever."""
    package = load_tracer()
    if plan.point is not None:
        points.watch(package, _executioner(plan))
    while True:
        play(pid, seed)


def _executioner(plan: Plan) -> Callable[[str], None]:
    left = plan.passage

    def passing(name: str) -> None:
        nonlocal left
        if name == plan.point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return passing


def play(pid: int, seed: int) -> None:
    """Once from attach to detach."""
    chance = random.Random(seed)  # noqa: S311 - to be the same again
    with attach(pid) as target:
        client, other = target.client("one"), target.client("two")
        for spec, strategy in chance.sample(_PROBED, k=8):
            _try(partial(client.probe, spec, _nothing, strategy=strategy))
        leases = [_try(partial(other.probe, spec, _nothing)) for spec, _ in _PROBED[:5]]
        time.sleep(_PAUSE_S)
        _step_and_watch(target, chance)
        for lease in leases:
            if lease is not None:
                lease.release()
        many = other.probe_many([spec for spec, _ in _PROBED[:4]], _nothing)
        time.sleep(_PAUSE_S)
        many.release()


def _step_and_watch(target: Target, chance: random.Random) -> None:
    """Hold a thread, step it, let it go; watch memory that nobody uses."""
    client = target.client("three")
    tid = target.threads()[1]  # it never blocks signals: there an access would undo the action for SIGTRAP
    hold = _try(lambda: client.hold(tid))
    if hold is not None:
        registers = _try(lambda: target.registers(tid)) or {"rsp": 0x1000, "rip": 0x1000}
        address = registers[chance.choice(("rsp", "rip"))] & ~7
        _try(lambda: client.step(tid))
        _try(lambda: client.watch(address, size=8, access="WRITE", handler=_nothing))
        hold.release()
    time.sleep(_PAUSE_S)
    client.close()


def _nothing(_hit: Any) -> None:
    return


def _try(action: Callable[[], Any]) -> Any:
    """What it gives; None where it is refused: another strategy has the place, or the thread is gone."""
    try:
        return action()
    except UbpxError:
        return None
