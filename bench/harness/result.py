"""One run's result: what is in the JSON file, which table, figure and README are made from."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.figures import Figure, missed
from harness.peers import PEERS
from harness.programs import ROOT
from harness.rounds import Row, Rows, ratio

FORMAT = 1
"""Changes with what the file means."""


def processor_name() -> str:
    """As the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def commit() -> str | None:
    """Of the sources, with a + where they were changed since; None outside a checkout."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(processors: frozenset[int]) -> dict[str, Any]:
    """What the figures were taken on, before anything was measured."""
    return {
        "processor": processor_name(),
        "processors": len(processors),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ubpx": version("ubpx"),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def row_as_json(row: Row) -> dict[str, Any]:
    """One peer's figures, or why there are none."""
    found = ratio(row, row.yardstick)
    last = row.runs[-1] if row.spans else None
    return {
        "name": row.peer.name,
        "title": row.peer.title,
        "tool": row.peer.script.parent == PEERS,
        "us": statistics.median(row.spans) if row.spans else None,
        "low_us": min(row.spans, default=None),
        "high_us": max(row.spans, default=None),
        "over_c_one_stop": None if found is None else found.value,
        "rounds": len(row.spans),
        "calls": sum(run.calls for run in row.runs) if last else None,
        "hits": sum(run.hits for run in row.runs) if last else None,
        "strategy": None if last is None else last.notes.get("strategy"),
        "counted_by": None if last is None else last.counted_by,
        "missing": row.missing or None,
        "invalid": row.invalid or None,
    }


def as_json(
    *,
    machine: Mapping[str, Any],
    began: dt.datetime,
    rounds: int,
    rows: Rows,
    figures: Sequence[Figure],
    failures: Sequence[str],
) -> dict[str, Any]:
    """All of it; the bare ratios stand at the top too, by name, for whoever compares runs."""
    return {
        "format": FORMAT,
        "date": began.date().isoformat(),
        "machine": dict(machine),
        "rounds": rounds,
        "valid": not failures,
        "failures": list(failures),
        "missed": [each.name for each in missed(figures)],
        "peers": [row_as_json(row) for row in rows.values()],
        "figures": [each.as_json() for each in figures],
        "values": {each.name: each.value for each in figures},
    }
