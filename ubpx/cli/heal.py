"""``ubpx heal``: takes out of a process what a killed tracer has left, and compares its code with its files."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from ubpx._errors import MemoryFault
from ubpx.core.spaces import Healed
from ubpx.core.values import MappedRange, parse_maps
from ubpx.target import Target, attach

_WINDOW: Final = 1 << 20


@attrs.frozen(kw_only=True)
class Report:
    """What was done, and what is so now."""

    pid: int
    healed: Healed | None
    """None: nothing had been left."""
    differing: Mapping[str, int]
    """Bytes of code that differ from their file, by its path."""


def heal_process(pid: int) -> Report:
    """Attach, which heals, and leave again. Raises what ``ubpx.attach`` raises."""
    with attach(pid) as target:
        return Report(pid=pid, healed=target.healed, differing=dict(_differing(target)))


def _differing(target: Target) -> Iterator[tuple[str, int]]:
    """Code may differ for reasons of the program's own too: text relocations, patches to itself."""
    for mapping in parse_maps(Path(f"/proc/{target.pid}/maps").read_text(errors="surrogateescape")):
        if mapping.executable and mapping.inode and mapping.path.startswith("/"):
            with contextlib.suppress(OSError, MemoryFault):  # replaced, or unmapped: nothing to compare with
                count = _differing_in(target, mapping)
                if count:
                    yield mapping.path, count


def _differing_in(target: Target, mapping: MappedRange) -> int:
    count = 0
    with open(mapping.path, "rb") as file:
        file.seek(mapping.offset)
        for at in range(mapping.start, mapping.end, _WINDOW):
            own = file.read(min(_WINDOW, mapping.end - at))
            count += _differences(target.memory.read(at, len(own)), own) if own else 0
    return count


def _differences(one: bytes, other: bytes) -> int:
    return 0 if one == other else sum(a != b for a, b in zip(one, other, strict=True))


def as_json_text(report: Report) -> str:
    """One JSON object."""
    healed = None if report.healed is None else attrs.asdict(report.healed)
    return json.dumps({"pid": report.pid, "healed": healed, "differing": dict(report.differing)})


def as_text(report: Report) -> str:
    """What was found, a line for each file that differs."""
    healed = report.healed
    if healed is None:
        lines = [f"process {report.pid}: nothing had been left there"]
    else:
        done = f"{healed.traps} traps taken out, {healed.areas} slot areas given back, {healed.threads} threads moved"
        lines = [f"process {report.pid} is healed: {done}"]
        if healed.overwritten:
            lines.append(f"  {healed.overwritten} places hold other code by now, which stays")
    lines += [f"  {count} bytes of code differ from {path}" for path, count in sorted(report.differing.items())]
    return "\n".join(lines)
