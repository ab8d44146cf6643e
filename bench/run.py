"""ubpx and what one would use instead, side by side; and what is demanded of ubpx. `make bench` runs this.

Everything is measured in rounds, in turn, each with a program, and a tracer, of its own; the program takes the time
of its own loop, and the loop's time without a probe is taken off. Hits are compared with the program's calls: where
they differ there is no figure, and the exit status is 1. It is 0 where all that could be measured was valid, whatever
was missed; with --strict it is 1 if something that is demanded is missed. See docs/how-to/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from harness.figures import Figure
from harness.peers import Missing
from harness.picture import as_svg
from harness.programs import BUILD, ROOT, BenchError
from harness.result import as_json, machine
from harness.rounds import Rows, tell
from harness.settings import Settings
from harness.table import as_markdown, as_text, replaced
from measures import arming, elsewhere, hits, host, quiescing, threads

MEASURES: Final[dict[str, Callable[[Settings], list[Figure]]]] = {
    "threads": threads.measure,
    "elsewhere": elsewhere.measure,
    "arming": arming.measure,
    "quiescing": quiescing.measure,
    "host": host.measure,
}
PARTS: Final = ("hits", *MEASURES)
PICTURE: Final = "docs/images/benchmark.svg"
README: Final = ROOT / "README.md"


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="so many rounds of everything (7)")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as many calls in each round (1)")
    parser.add_argument(
        "--nice", type=int, default=0, metavar="N", help="run everything at this niceness: -15 where others compute too"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument(
        "--json", type=Path, default=BUILD / "result.json", metavar="FILE", help="write the result there"
    )
    parser.add_argument("--svg", type=Path, default=BUILD / "result.svg", metavar="FILE", help="write the figure there")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something demanded is missed")
    parser.add_argument("--publish", action="store_true", help="put table and figure into the README as well")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="measure nothing: show this result")
    options = parser.parse_args(words)
    if options.rounds < 1 or options.scale <= 0:
        parser.error("at least one round, and a scale above nought")
    if options.publish and options.only and "hits" not in options.only:
        parser.error("the README shows what hits cost: --publish goes with that part")
    return options


def measure(settings: Settings, parts: Sequence[str]) -> tuple[Rows, list[Figure], list[str]]:
    """Rows, figures, and what was not valid. A part that fails does not keep the others from being measured."""
    rows: Rows = {}
    figures: list[Figure] = []
    failures: list[str] = []
    for part in parts:
        began = time.monotonic()
        try:
            if part == "hits":
                rows, found = hits.measure(settings)
                failures += [row.invalid for row in rows.values() if row.invalid]
            else:
                found = MEASURES[part](settings)
            figures += found
        except (BenchError, Missing, OSError, ValueError, subprocess.SubprocessError) as error:
            failures.append(f"{part}: {error}")
            settings.telling(failures[-1])
        settings.telling(f"{part} took {time.monotonic() - began:.0f} s")
    return rows, figures, failures


def publish(result: dict[str, object]) -> None:
    """The README's table, and the figure beside it."""
    picture = ROOT / PICTURE
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(as_svg(result))
    README.write_text(replaced(README.read_text(), as_markdown(result, PICTURE)))


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parsed(words)
    if options.source:
        result = json.loads(options.source.read_text())
    else:
        began = dt.datetime.now(tz=dt.UTC)
        settings = Settings(options.rounds, options.scale, frozenset(os.sched_getaffinity(0)))
        here = {**machine(settings.processors), "nice": options.nice}
        if options.nice:
            os.setpriority(os.PRIO_PROCESS, 0, options.nice)
        os.sched_setaffinity(0, {settings.cpu})  # all that is started from here on inherits it
        rows, figures, failures = measure(
            settings, [part for part in PARTS if not options.only or part in options.only]
        )
        result = as_json(
            machine=here,
            began=began,
            rounds=options.rounds,
            rows=rows,
            figures=figures,
            failures=failures,
        )
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        tell(f"written: {options.json}")
    print(as_text(result))
    if any(peer["us"] for peer in result["peers"]):
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(as_svg(result))
        if options.publish and result["valid"]:
            publish(result)
        elif options.publish:
            tell("the run is not valid: the README stays as it is")
    return 1 if not result["valid"] or (options.strict and result["missed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
