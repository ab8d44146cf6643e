"""Kills tracers at any moment, and looks whether the programs that they traced live on unharmed.

    python -m ubpx.testing.kills --kills 200 --threads 4

Half of the tracers are killed at random times, half at a named point: before one of the ptrace requests, waits
and accesses to memory that a tracer makes. After each kill every thread of the program must get on, and no
result of its functions be wrong; then the next tracer heals it by attaching, and nothing may be left: its code is its
files', its SIGTRAP action its own, its mappings are as before.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from ubpx._errors import UbpxError, UsageError
from ubpx.target import attach
from ubpx.testing.kill_plants import PLANTS
from ubpx.testing.kill_program import KillProgram, compile_program
from ubpx.testing.kill_scenario import Plan, counted, load_tracer, play_and_die

AT_ANY_TIME: Final = "at any time"
_LONGEST_S: Final = 0.4
_PATIENCE_S: Final = 60.0
_SHOWN: Final = 20


@attrs.define
class PointTally:
    """What became of the kills at one point."""

    kills: int = 0
    survived: int = 0
    healed: int = 0


@attrs.define
class Outcome:
    """Of all kills."""

    threads: int
    by_point: dict[str, PointTally] = attrs.field(factory=dict)
    complaints: list[str] = attrs.field(factory=list)

    def total(self, what: str) -> int:
        """The sum over all points of ``kills``, ``survived`` or ``healed``."""
        return sum(getattr(tally, what) for tally in self.by_point.values())

    @property
    def ok(self) -> bool:
        """Every program survived every kill, and was healed."""
        return self.total("kills") == self.total("survived") == self.total("healed")


def kill_tracers(
    kills: int,
    threads: int,
    *,
    seed: int = 0,
    at: str | None = None,
    plant: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Kill so many tracers of a program with so many threads; ``at`` is part of the names of all points to do it at.

    Raises UsageError, NoTracer.
    """
    chance = random.Random(seed)  # noqa: S311 - to be the same again
    outcome = Outcome(threads)
    package = load_tracer()
    if plant is not None:
        PLANTS[plant](package)
    with tempfile.TemporaryDirectory() as directory:
        path = compile_program(Path(directory))
        with KillProgram(path, threads) as program:
            points = _in_child(lambda: counted(program.pid, seed)) or {}
        if at is not None:
            points = {name: count for name, count in points.items() if at in name}
            if not points:
                raise UsageError(f"no point is named like {at!r}; --json lists those at which tracers were killed")
        plans = _plans(kills, points, chance, at_any_time=at is None)
        while outcome.total("kills") < kills:
            with KillProgram(path, threads) as program:
                for plan in plans:
                    if not _kill_once(program, plan, chance, outcome, tell):
                        break  # the program is dead, or has our scars: the next kill needs a new one
    return outcome


def _plans(kills: int, points: Mapping[str, int], chance: random.Random, *, at_any_time: bool) -> Iterator[Plan]:
    """Half at random times, if that is wanted; the others go round all points, each at a random passage."""
    names: list[str] = []
    for number in range(kills):
        if at_any_time and number % 2 == 0:
            yield Plan()
            continue
        if not names:
            names = chance.sample(sorted(points), k=len(points))
        name = names.pop()
        yield Plan(point=name, passage=chance.randint(1, points[name]))


def _kill_once(
    program: KillProgram, plan: Plan, chance: random.Random, outcome: Outcome, tell: Callable[[str], object]
) -> bool:
    """Whether all went well."""
    tally = outcome.by_point.setdefault(plan.point or AT_ANY_TIME, PointTally())
    tally.kills += 1
    _trace_until_killed(program.pid, plan, chance)
    complaint = program.complaint()
    if complaint is None:
        tally.survived += 1
        _in_child(lambda: _heal(program.pid))
        complaint = program.complaint() or program.scar()
        if complaint is None:
            tally.healed += 1
            return True
    outcome.complaints.append(f"{plan.point or AT_ANY_TIME} (passage {plan.passage}): {complaint}")
    tell(outcome.complaints[-1])
    return False


def _trace_until_killed(pid: int, plan: Plan, chance: random.Random) -> None:
    seed = chance.randrange(2**32)
    worker = os.fork()
    if worker == 0:
        _be_worker(lambda: play_and_die(pid, seed, plan))
    if plan.point is None:
        time.sleep(chance.uniform(0, _LONGEST_S))
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE_S
    while os.waitpid(worker, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:  # a point that is not passed this time
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.001)


def _be_worker(work: Callable[[], object]) -> None:
    """In a forked child: do it, and end without running anything of the parent's."""
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001 - the child must not come back into the tool
        sys.stderr.write(f"kills: a tracer failed: {error!r}\n")
    finally:
        os._exit(status)


def _heal(pid: int) -> None:
    with attach(pid):
        pass


def _in_child(work: Callable[[], Any]) -> Any:
    """What it gives, in a process of its own: a tracer's threads must not be where the next child is forked."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_worker(lambda: os.write(writing, json.dumps(work()).encode()))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data) if data else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ubpx.testing.kills", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=_positive, default=100, metavar="N", help="how many tracers are killed")
    parser.add_argument("--threads", type=_positive, default=4, metavar="T", help="how many threads are probed, to 63")
    parser.add_argument("--at", metavar="TEXT", help="kill only at points that are named so, in part")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which points, and when")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    faults = ", ".join(sorted(PLANTS))
    parser.add_argument("--plant", choices=sorted(PLANTS), metavar="FAULT",
                        help=f"break ubpx on purpose, so that kills should do harm: {faults}")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def as_json(outcome: Outcome) -> str:
    """One object."""
    by_point = {name: attrs.asdict(tally) for name, tally in sorted(outcome.by_point.items())}
    totals = {what: outcome.total(what) for what in ("kills", "survived", "healed")}
    return json.dumps({**totals, "threads": outcome.threads, "by_point": by_point, "complaints": outcome.complaints})


def as_text(outcome: Outcome) -> str:
    """The totals, and what went wrong."""
    kills, survived, healed = (outcome.total(what) for what in ("kills", "survived", "healed"))
    lines = [f"{kills} tracers killed at {len(outcome.by_point)} points: {survived} programs survived, {healed} healed"]
    lines += [f"  {each}" for each in outcome.complaints[:_SHOWN]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    try:
        outcome = kill_tracers(
            options.kills, options.threads, seed=options.seed, at=options.at, plant=options.plant,
            tell=lambda what: sys.stderr.write(f"kills: {what}\n"),
        )  # fmt: skip
    except UbpxError as error:
        sys.stderr.write(f"kills: {error}\n")
        return 2
    sys.stdout.write((as_json(outcome) if options.json else as_text(outcome)) + "\n")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
