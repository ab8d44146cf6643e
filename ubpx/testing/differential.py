"""``python -m ubpx.testing.differential``: does an instruction do out of line what it does in place?

The processor of this machine is the oracle; for aarch64 and riscv64 unicorn is. Each instruction runs at
its own address first, then by every strategy that its analysis allows; all registers, flags, segment
bases, vector and x87 state, memory and the fault are compared. Ends with 1 if anything differs, 2 on a
wrong command line.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import attrs
import click

from ubpx._errors import UbpxError, UsageError
from ubpx.core.ubp import architecture
from ubpx.testing.emulated import PROCESSORS
from ubpx.testing.emulated import campaign as emulated
from ubpx.testing.emulated import plants as emulated_plants
from ubpx.testing.oracle.campaign import TRIES_PER_FORM, Campaign, Tally, length_by_decoder, watched
from ubpx.testing.oracle.cases import ANYWHERE, Aim, Case
from ubpx.testing.oracle.forms import Fields, Form, all_forms
from ubpx.testing.oracle.layout import LAYOUTS
from ubpx.testing.plants import PLANTS, Plant, planted, plants_of

_WORTH_ALL_FORMS: Final = 50_000
"""Fewer random cases than that do not pay for listing all forms first, which takes some seconds."""
_CASE: Final = re.compile("(?P<form>form-)?(?P<number>[0-9]{1,18})")

Known = Mapping[Form, Fields]


@attrs.frozen(kw_only=True)
class Order:
    """What is to be run."""

    arch: str
    count: int
    """Random cases that must be executed."""
    seed: int
    jobs: int
    known: Known | None
    """All forms, each of which is to run; None: only what is drawn."""
    aim: Aim = ANYWHERE
    """The opcodes to draw from."""
    every_form: bool = False
    """The same as ``known``, where unicorn is the oracle: it knows no lists, and tries what may be one."""


def run(order: Order) -> Tally:
    """All shares; each has a processor, and a CPU, of its own."""
    if order.jobs == 1:
        return _share(order, 0)
    context = multiprocessing.get_context("fork")  # so that nobody lists the forms again
    pipes, workers = [], []
    for number in range(order.jobs):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(order, number, sender), daemon=True)
        worker.start()
        sender.close()
        pipes.append(receiver)
        workers.append(worker)
    tally = Tally()
    for receiver, worker in zip(pipes, workers, strict=True):
        tally.add(receiver.recv())  # an EOFError if it failed; it has told why
        worker.join()
    return tally


def _work(order: Order, number: int, sender: Connection) -> None:
    """In a process of its own; program and tracer take turns, so one CPU is enough for both."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {available[number % len(available)]})
    sender.send(_share(order, number))
    sender.close()


def _share(order: Order, number: int) -> Tally:
    if order.arch in PROCESSORS:
        forms = enumerate(PROCESSORS[order.arch]().forms()) if order.every_form else ()
        return emulated.share(order.arch, order.seed, order.count, forms, number=number, jobs=order.jobs)
    campaign = Campaign(order.arch, order.seed, order.known, order.aim)
    with contextlib.closing(campaign), watched(campaign):
        if order.known is not None:
            campaign.each_form(itertools.islice(enumerate(order.known), number, None, order.jobs))
        campaign.random(len(range(number, order.count, order.jobs)), itertools.count(number, order.jobs))
    return campaign.tally


def run_one(order: Order, name: str) -> Tally:
    """The one case of that name; raises UsageError if there is none."""
    named = _CASE.fullmatch(name)
    if named is None:
        raise _no_case(name)
    number, form = int(named["number"]), None
    if order.arch in PROCESSORS:
        return _run_emulated(order, name, number, is_form=bool(named["form"]))
    if named["form"]:
        forms = order.known or _forms(order.arch)
        form = next(itertools.islice(forms, number // TRIES_PER_FORM, None), None)
    campaign = Campaign(order.arch, order.seed, order.known, order.aim)
    with contextlib.closing(campaign), watched(campaign):
        if not named["form"]:
            case: Case | None = campaign.cases.draw(number)
        else:
            case = None if form is None else campaign.cases.of_form(number, form)
        if case is None:
            raise _no_case(name)
        campaign.check(case)
    return campaign.tally


def _run_emulated(order: Order, name: str, number: int, *, is_form: bool) -> Tally:
    campaign = emulated.Campaign(order.arch, order.seed)
    if not is_form:
        campaign.check(campaign.draw(number))
        return campaign.tally
    form = next(itertools.islice(campaign.processor.forms(), number // TRIES_PER_FORM, None), None)
    if form is None:
        raise _no_case(name)
    campaign.check(campaign.of_form(number, form))
    return campaign.tally


def _no_case(name: str) -> UsageError:
    return UsageError(f"no case {name!r}; take the name that a sample gives")


def _forms(arch: str) -> Known:
    bits = 8 * architecture(arch).word_size
    return all_forms(length_by_decoder(bits), wide=bits == 64)


def _aim(opcodes: Sequence[str]) -> Aim:
    """Raises UsageError for what is no opcode."""
    try:
        pairs = [opcode.split(":") for opcode in opcodes]
        return frozenset((int(number), int(opcode, 16)) for number, opcode in pairs)
    except ValueError:
        raise UsageError(f"no opcodes: {', '.join(opcodes)}; write the map, a colon, and the opcode in hex") from None


def _aim_at(plant: str | None, arch: str) -> Aim:
    """What shows the fault, which there is; raises UsageError if it is none on ``arch``."""
    if plant is None:
        return ANYWHERE
    chosen = _plants(arch)[plant]
    if chosen.only not in {None, arch}:
        raise UsageError(f"fault {plant} is one of {chosen.only} alone; ask for that with --arch")
    return chosen.opcodes


def _plants(arch: str) -> Mapping[str, Plant]:
    return emulated_plants.PLANTS if arch in PROCESSORS else PLANTS


def report(arch: str, seed: int, tally: Tally, seconds: float) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "arch": arch,
        "seed": seed,
        "cases": tally.cases,
        "forms": len(tally.forms),
        "executed": tally.executed,
        "undefined_here": tally.undefined_here,
        "differences": tally.differences,
        "kinds": dict(tally.kinds),
        "by_strategy": dict(tally.by_strategy),
        "refused": dict(tally.refused),
        "varying": dict(tally.varying),
        "varying_samples": tally.varying_samples,
        "left_to_another_strategy": tally.left_to_another,
        "did_not_end_in_place": tally.unsettled,
        "decoders_disagree_on_length": tally.length_disagreements,
        "unicorn": {
            "asked": tally.opinions,
            "disagreements": dict(tally.disagreements),
            "samples": tally.opinion_samples,
        },
        "samples": tally.samples,
        "seconds": round(seconds, 1),
    }


def _summary(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['arch']}: {found['executed']} of {found['cases']} cases executed, {found['forms']} forms",
        f"refused: {sum(found['refused'].values())}; undefined on this processor: {found['undefined_here']}",
        "compared: " + ", ".join(f"{name} {count}" for name, count in found["by_strategy"].items()),
        f"differences: {found['differences']}",
    ]
    for sample in found["samples"]:
        lines.append(f"  {sample['strategy']} {sample['bytes']} ({sample['text']}), case {sample['case']}:")
        lines += [
            f"    {name}: {pair['expected']} expected, {pair['found']} found"
            for name, pair in sample["differences"].items()
        ]  # fmt: skip
    return "\n".join(lines)


@click.command(help=__doc__, epilog="Example: python -m ubpx.testing.differential --arch i386 --count 5000 --seed 1")
@click.option("--arch", type=click.Choice([*LAYOUTS, *PROCESSORS]), default="x86_64", show_default=True)
@click.option("--count", type=click.IntRange(min=0), default=10_000, show_default=True, help="random cases to execute")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="processes")
@click.option(
    "--forms", type=click.Choice(["auto", "all", "drawn"]), default="auto", show_default=True,
    help=f"run each form of instruction once before; auto: from {_WORTH_ALL_FORMS} random cases on",
)  # fmt: skip
@click.option(
    "--opcode", multiple=True, metavar="MAP:HEX", help="draw from this opcode alone; 0:9d is popf, 1:05 syscall"
)
@click.option("--only", metavar="CASE", help="run one case again, by the name that a sample gives")
@click.option(
    "--plant", metavar="FAULT",
    help="break the architecture layer on purpose, and draw from the opcodes that show it, unless --opcode says which;"
    f" one of {', '.join(plants_of('differential'))}; on {' and '.join(PROCESSORS)} one of"
    f" {', '.join(emulated_plants.PLANTS)}",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def main(
    *,
    arch: str,
    count: int,
    seed: int,
    jobs: int,
    forms: str,
    opcode: tuple[str, ...],
    only: str | None,
    plant: str | None,
    as_json: bool,
) -> None:
    """See the module."""
    started = time.monotonic()
    try:
        if opcode and arch in PROCESSORS:
            raise UsageError(f"--opcode chooses opcodes of x86; {arch} has none such")
        with planted(plant, "differential", _plants(arch)):
            aim = _aim(opcode) or _aim_at(plant, arch)
            every_form = forms == "all" or (forms == "auto" and count >= _WORTH_ALL_FORMS)
            known = _forms(arch) if every_form and arch not in PROCESSORS else None
            order = Order(arch=arch, count=count, seed=seed, jobs=jobs, known=known, aim=aim, every_form=every_form)
            tally = run(order) if only is None else run_one(order, only)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except UbpxError as error:
        raise click.ClickException(str(error)) from error
    found = report(arch, seed, tally, time.monotonic() - started)
    click.echo(json.dumps(found) if as_json else _summary(found))
    sys.exit(1 if tally.differences else 0)


__all__: Sequence[str] = ["Order", "main", "report", "run", "run_one"]

if __name__ == "__main__":
    main()
