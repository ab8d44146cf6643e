"""What it costs to probe all functions of a glob; prints a JSON object.

``arming.py times WARM_PID PID GLOB``: microseconds for each. WARM_PID runs a small program, on which everything is done
once, so that what Python loads at first use is loaded; of PID, the program of many functions, nothing is known before.

``arming.py memory PID GLOB``: how much more of its own memory this process has with all of them armed than with one.
``arming.py broker PID GLOB``: the same, of a broker, by way of which they are armed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ubpx
from remote import broker

A_FEW = "bench_*"
"""Functions that each measured program has."""


def handler(_: ubpx.Hit) -> None:
    """Nobody comes."""


def own_kib(pid: int) -> int:
    """The process's resident memory, in KiB, without what it shares with others."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def times(warm_pid: str, pid: str, glob: str) -> Mapping[str, float]:
    """Arm all, release them; arm them again, and detach."""
    with ubpx.attach(int(warm_pid)) as warm:
        warm.client("bench").probe_many(A_FEW, handler).release()
    with ubpx.attach(int(pid)) as target:
        client = target.client("bench")
        began = time.perf_counter()
        group = client.probe_many(glob, handler)
        armed = time.perf_counter()
        group.release()
        released = time.perf_counter()
        sites = len(client.probe_many(glob, handler))
        again = time.perf_counter()
    spans = {"arm_us": armed - began, "release_us": released - armed, "detach_us": time.perf_counter() - again}
    return {"sites": sites, **{name: span / sites * 1e6 for name, span in spans.items()}}


def memory(target: Any, glob: str, pid: int) -> Mapping[str, float]:
    """With one function of the module armed its symbols are known already."""
    client = target.client("bench")
    client.probe_many(A_FEW, handler)
    gc.collect()
    before = own_kib(pid)
    sites = len(client.probe_many(glob, handler))
    gc.collect()
    return {"sites": sites, "kib_each": (own_kib(pid) - before) / sites}


def main(what: str, *words: str) -> Mapping[str, float]:
    """One of the three."""
    if what == "times":
        return times(*words)
    pid, glob = words
    if what == "memory":
        with ubpx.attach(int(pid)) as target:
            return memory(target, glob, os.getpid())
    with broker(int(pid)) as (path, broker_pid), ubpx.connect(path) as remote:
        return memory(remote, glob, broker_pid)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
