"""What arming and disarming many functions costs, beside a pwrite of each trap's byte in C; and what it keeps."""

from __future__ import annotations

import json
import statistics
from typing import Any

from elftools.elf.elffile import ELFFile

from harness.figures import Demand, Figure
from harness.programs import BenchError, MeasuredProgram, build
from harness.settings import Settings, job, output

SITES = 10_000
GLOB = "work_*"
FLAGS = f"-DFUNCTIONS={SITES}"
MEMORY_ROUNDS = 3
KIND = {"memory": "in the tracer's process", "broker": "in a broker"}


def addresses(program: MeasuredProgram) -> list[int]:
    """Of the functions that the glob means, as they are mapped."""
    with build("many", FLAGS).open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        found = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    bias = program.functions["bench_lea"].address - found["bench_lea"]
    return [value + bias for name, value in found.items() if name.startswith("work_")]


def by_pwrite() -> tuple[float, float]:
    """Microseconds for each: traps written, and taken out."""
    with MeasuredProgram(build("many", FLAGS)) as program:
        given = "".join(f"{address:x}\n" for address in addresses(program))
        count, arm, disarm = map(int, output([build("pwrite"), program.pid], given=given).split())
        program.end()
    if count != SITES:
        raise BenchError(f"{count} of {SITES} functions were found")
    return arm / count / 1000, disarm / count / 1000


def by_ubpx(what: str) -> dict[str, float]:
    """What the job says, on a program of which nothing is known."""
    with MeasuredProgram(build("many", FLAGS)) as program, MeasuredProgram(build("target")) as warm:
        words = (warm.pid, program.pid) if what == "times" else (program.pid,)
        answer: dict[str, float] = json.loads(job("arming", what, *words, GLOB))
        program.end()
        warm.end()
    if answer["sites"] != SITES:
        raise BenchError(f"{answer['sites']} of {SITES} functions could be probed")
    return answer


def measure(settings: Settings) -> list[Figure]:
    """Times against the yardstick in each round; memory by itself, which hardly varies."""
    spans: dict[str, list[float]] = {name: [] for name in ("arm", "disarm", "arm_us", "release_us", "detach_us")}
    for number in range(settings.rounds):
        settings.telling(f"arming {SITES:,}: round {number + 1} of {settings.rounds}")
        for name, span in zip(("arm", "disarm"), by_pwrite(), strict=True):
            spans[name].append(span)
        ours = by_ubpx("times")
        for name in ("arm_us", "release_us", "detach_us"):
            spans[name].append(ours[name])
    figures = [
        against(spans, "arm", "arm_us", "arming", "arming one of 10,000 functions / pwrite of its byte"),
        against(spans, "disarm", "release_us", "disarming", "disarming one of them / pwrite of its byte"),
        Figure(
            name="detaching_us",
            title="detaching with 10,000 armed, for each",
            value=statistics.median(spans["detach_us"]),
            unit="us",
        ),
    ]
    for what, where in KIND.items():
        kilobytes = [by_ubpx(what)["kib_each"] * 1.024 for _ in range(min(settings.rounds, MEMORY_ROUNDS))]
        figures.append(
            Figure(
                name=f"kilobytes_each_{what}",
                title=f"memory for each armed probe {where}",
                value=statistics.median(kilobytes),
                unit="kB",
                demand=Demand(most=1.0),
            )
        )
    return figures


def against(spans: dict[str, list[float]], yardstick: str, ours: str, name: str, title: str) -> Figure:
    """One of the two, with both absolute times."""
    ratios = sorted(above / below for above, below in zip(spans[ours], spans[yardstick], strict=True))
    details = {f"{what}_us": statistics.median(spans[each]) for what, each in (("ubpx", ours), ("pwrite", yardstick))}
    return Figure(
        name=f"{name}_over_pwrite",
        title=title,
        value=statistics.median(ratios),
        low=ratios[0],
        high=ratios[-1],
        demand=Demand(most=10),
        details=details,
    )
