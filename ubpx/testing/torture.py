"""``python -m ubpx.testing.torture [OPTIONS] -- PROG ARGS``: all instructions are probed, and the program is the same.

The program runs twice: by itself, and with a probe on each instruction of its code and of its libraries. What it
writes and how it ends must be equal. Both runs have the same address layout (no randomisation), environment and input,
and a session of their own; what the program leaves behind is ended. If they differ, it runs by itself once more, to see
whether it differs anyway. A program that reads its own code finds the probes there, and cannot be equal.
Exit status: 0 equal, 1 not, 2 usage, 130 interrupted.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from ubpx._errors import UbpxError, UsageError
from ubpx.core.checks import check_duration
from ubpx.testing.plants import planted, plants_of
from ubpx.testing.twins import ProbedRun, Run, check_input, fixed_layout, run_plain, run_probed

_SHOWN: Final = 200
"""Bytes of output around a difference."""
_MOST_DIGITS: Final = 18
_INTERRUPTED: Final = 128 + signal.SIGINT


@attrs.frozen(kw_only=True)
class Verdict:
    """What the two runs say."""

    plain: Run
    probed: ProbedRun
    again: Run | None = None
    """By itself once more, if there were differences."""

    @property
    def differences(self) -> list[str]:
        """In words; none if the program could not tell that it was probed."""
        plain, probed = self.plain, self.probed
        found = [f"by itself: {plain.failure}"] if plain.failure else []
        found += [f"probed: {probed.failure}"] if probed.failure else []
        found += _differences(plain, probed, "probed")
        if self.differs_by_itself:
            found.append("the program differs by itself, so this says nothing of the probes; give it equal conditions")
        return found

    @property
    def differs_by_itself(self) -> bool:
        """Whether two runs without probes differ."""
        return self.again is not None and bool(_differences(self.plain, self.again, "again"))

    @property
    def problems(self) -> list[str]:
        """Of each run."""
        return [*(f"by itself: {each}" for each in self.plain.problems), *self.probed.problems]

    def report(self) -> Mapping[str, Any]:
        """As ``--json`` prints it."""
        probed, differences = self.probed, self.differences
        return {
            "instructions": probed.instructions,
            "probed": probed.probed,
            "refused": sum(probed.refused.values()),
            "hits": probed.hits,
            "equal": not differences,
            "status": probed.status,
            "differences": differences,
            "differs_by_itself": self.differs_by_itself,
            "reached": sum(probed.strategies.values()),
            "by_strategy": dict(probed.strategies),
            "refused_reasons": dict(probed.refused),
            "modules": list(probed.modules),
            "not_probed": dict(probed.not_probed),
            "undecoded_bytes": probed.undecoded,
            "problems": self.problems,
            "seconds": {name: round(value, 3) for name, value in probed.seconds.items()}
            | {"plain": round(self.plain.seconds["run"], 3)},
        }


def _differences(plain: Run, other: Run, how: str) -> list[str]:
    found = []
    if plain.status != other.status:
        found.append(f"status: {plain.status} by itself, {other.status} {how}")
    for name, one, two in (("stdout", plain.out, other.out), ("stderr", plain.err, other.err)):
        if one != two:
            at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
            part = slice(max(at - _SHOWN // 4, 0), at + _SHOWN)
            found.append(
                f"{name}: {len(one)} and {len(two)} bytes, from byte {at} on: "
                f"{one[part]!r} by itself, {two[part]!r} {how}"
            )
    return found


def torture(
    argv: Sequence[str],
    *,
    objects: str = "main",
    first_hits: int | None = 3,
    plant: str | None = None,
    stdin: str = os.devnull,
    timeout: float = 600.0,
) -> Verdict:
    """Run the program by itself, then probed; ``timeout`` in seconds bounds each run. Raises UbpxError.

    The process starts nothing else meanwhile: its new children are taken for the program's, and ended.
    """
    check_duration("timeout", timeout)
    check_input(stdin)
    with fixed_layout(), planted(plant, "torture"):
        plain = run_plain(argv, stdin=stdin, timeout=timeout)
        probed = run_probed(argv, objects=objects, first_hits=first_hits, stdin=stdin, timeout=timeout)
        verdict = Verdict(plain=plain, probed=probed)
        if verdict.differences and not plain.failure:
            verdict = attrs.evolve(verdict, again=run_plain(argv, stdin=stdin, timeout=timeout))
    return verdict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ubpx.testing.torture",
        description="Probe every instruction of a program; what it does must not change. One that reads its own code "
        "finds the probes there, and cannot be equal. What the program leaves running is ended.",
        epilog="example: python -m ubpx.testing.torture --objects all --json -- ls -l /",
    )
    parser.add_argument("--first-hits", type=_count, default=3, metavar="N",
                        help="a probe ends after so many hits; 0: never (default: 3)")  # fmt: skip
    parser.add_argument("--objects", choices=("main", "all"), default="main",
                        help="the main program alone, or its libraries and loader too (default: main)")  # fmt: skip
    parser.add_argument(
        "--stdin", default=os.devnull, metavar="FILE", help="what both runs read, a regular file (default: /dev/null)"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each run (default: 600)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    faults = ", ".join(plants_of("torture"))
    parser.add_argument("--plant", metavar="FAULT",
                        help=f"break ubpx on purpose, so that the runs should differ: {faults}")  # fmt: skip
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- PROG ARGS")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 on")
    return int(text)


def _print(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))  # noqa: T201 - a command's output
        return
    lines = [
        "{instructions} instructions: {probed} probed, {refused} refused; {reached} reached, {hits} hits".format(
            **report
        ),
        f"  status {report['status']}",
        *(f"  probed: {path}" for path in dict.fromkeys(report["modules"])),
        *(f"  refused {count}: {reason}" for reason, count in report["refused_reasons"].items()),
        *(f"  not probed: {path}: {reason}" for path, reason in report["not_probed"].items()),
        *(f"  problem: {problem}" for problem in report["problems"]),
        *(f"  DIFFERENT {difference}" for difference in report["differences"]),
        "equal" if report["equal"] else "NOT EQUAL",
    ]
    if report["not_probed"]:
        lines.append(f"{len(report['not_probed'])} files with code were not probed: this says nothing of them")
    print("\n".join(lines))  # noqa: T201 - a command's output


def _interrupt_once(*_: object) -> None:
    """What was started is ended undisturbed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    program = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not program:
        parser.error("name a program: -- PROG ARGS")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    try:
        verdict = torture(
            program,
            objects=options.objects,
            first_hits=options.first_hits or None,
            plant=options.plant,
            stdin=options.stdin,
            timeout=options.timeout,
        )
    except (UbpxError, OSError) as error:
        print(f"ubpx: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2 if isinstance(error, UsageError | OSError) else 1
    except KeyboardInterrupt:
        print("ubpx: interrupted; the program was ended", file=sys.stderr)  # noqa: T201 - a command's output
        return _INTERRUPTED
    report = verdict.report()
    _print(report, as_json=options.json)
    sys.stdout.flush()
    return 0 if report["equal"] else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a planted fault may have left the tracer thread busy for ever: nobody waits for it
