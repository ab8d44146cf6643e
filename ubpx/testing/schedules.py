"""``python -m ubpx.testing.schedules``: does the core keep its promises, whatever comes next?

Each schedule is a small program with threads and children, and clients that probe, hold, step and leave, over a
kernel that decides by one integer what happens next and which request fails. After each step the invariants are looked
at. Ends with 1 if one did not hold, and says the seed that shows it again; 2 on a wrong command line.
"""

import contextlib
import gc
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
import click

from ubpx._errors import UsageError
from ubpx.testing.simulation.plants import PLANTS, planted
from ubpx.testing.simulation.remembering import remembering
from ubpx.testing.simulation.schedule import Outcome, run

_SHARE: Final = 500
"""So many schedules are run, or not, at once."""
_MOST_SAMPLES: Final = 5


@attrs.define
class Tally:
    """What came of many schedules. Owned by whoever runs them."""

    schedules: int = 0
    hits: int = 0
    happenings: int = 0
    failures: int = 0
    samples: list[Outcome] = attrs.field(factory=list)
    """The first that failed, by seed."""

    def add(self, other: "Tally") -> None:
        """Count another share."""
        self.schedules += other.schedules
        self.hits += other.hits
        self.happenings += other.happenings
        self.failures += other.failures
        self.samples = sorted([*self.samples, *other.samples], key=lambda each: each.seed)[:_MOST_SAMPLES]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Clients that raise are expected by the thousand: nobody reads of each."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run_share(seeds: range) -> Tally:
    """These schedules, one after the other."""
    tally = Tally()
    with quiet(), remembering():
        for seed in seeds:
            outcome = run(seed)
            tally.schedules += 1
            tally.hits += outcome.hits
            tally.happenings += outcome.happenings
            if outcome.failure:
                tally.failures += 1
                tally.samples.append(outcome)
    return tally


def run_all(seed: int, count: int, *, jobs: int = 1, stop_at_first: bool = False) -> Tally:
    """``count`` schedules from ``seed`` on; in several processes, which have inherited what is planted."""
    shares = [range(at, min(at + _SHARE, seed + count)) for at in range(seed, seed + count, _SHARE)]
    tally = Tally()
    gc.freeze()
    if jobs == 1 or len(shares) == 1:
        for share in shares:
            tally.add(run_share(share))
            if stop_at_first and tally.failures:
                break
        return tally
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for each in pool.imap_unordered(run_share, shares):
            tally.add(each)
            if stop_at_first and tally.failures:
                break
    return tally


def _summary(found: dict[str, Any]) -> str:
    counts = f"{found['happenings']} happenings, {found['hits']} hits, {found['failures']} failures"
    lines = [f"{found['schedules']} schedules from seed {found['seed']} on: {counts}"]
    for sample in found["samples"]:
        lines.append(f"  --seed {sample['seed']} --count 1: {sample['failure']}")
        lines += [f"      {line}" for line in sample["story"]]
    return "\n".join(lines)


@click.command(help=__doc__, epilog="Example: python -m ubpx.testing.schedules --count 100000 --jobs 2")
@click.option("--count", type=click.IntRange(min=1), default=10_000, show_default=True, help="schedules to run")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="of the first one")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="processes")
@click.option("--plant", metavar="FAULT", help=f"break the core on purpose; one of {', '.join(PLANTS)}")
@click.option("--all", "go_on", is_flag=True, help="go on after the first failure")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def main(*, count: int, seed: int, jobs: int, plant: str | None, go_on: bool, as_json: bool) -> None:
    """See the module."""
    started = time.monotonic()
    try:
        with planted(plant):
            tally = run_all(seed, count, jobs=jobs, stop_at_first=not go_on)
            if tally.failures and count == 1:
                with quiet():
                    tally.samples = [run(seed, tell=True)]
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    found = {
        "seed": seed,
        "schedules": tally.schedules,
        "happenings": tally.happenings,
        "hits": tally.hits,
        "failures": tally.failures,
        "samples": [attrs.asdict(each) for each in tally.samples],
        "seconds": round(time.monotonic() - started, 1),
    }
    click.echo(json.dumps(found) if as_json else _summary(found))
    sys.exit(1 if tally.failures else 0)


__all__: Sequence[str] = ["Tally", "main", "run_all", "run_share"]

if __name__ == "__main__":
    main()
