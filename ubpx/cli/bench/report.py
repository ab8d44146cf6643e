"""What ``ubpx bench`` prints."""

import json

import attrs

from ubpx.cli.bench.run import PLACE, BenchResult


def as_json_text(result: BenchResult) -> str:
    """One JSON object: the result's fields, and the ratio that is made of two of them."""
    return json.dumps({**attrs.asdict(result), "hit_in_echoes": result.hit_in_echoes})


def as_text(result: BenchResult) -> str:
    """A line for each figure."""
    lines = [
        ("one hit, one Python handler", f"{result.hit_us:.1f} us"),
        ("  / a line to another process and back", f"{result.hit_in_echoes:.2f} x"),
        ("  / a Python call of the handler", f"{result.hit_us * 1000 / result.call_ns:,.0f} x"),
        ("handler that reads two registers / that counts", f"{result.registers:.2f} x"),
        ("two clients at one place / one", f"{result.two_clients:.2f} x"),
        ("one more client adds", f"{result.client_in_calls:.1f} Python calls"),
        ("with a busy Python thread in the host / idle", f"{result.busy_host:.2f} x"),
        (f"with {result.elsewhere:,} probes armed elsewhere / none", f"{result.armed_elsewhere:.2f} x"),
        (f"arming one of {result.elsewhere:,}, all included", f"{result.arm_us:.1f} us"),
        ("releasing one of them", f"{result.release_us:.1f} us"),
    ]
    width = max(len(what) for what, _ in lines)
    where = "one processor" if result.pinned else "any processor"
    head = f"{PLACE} ({result.strategy}), {where}; medians of {result.rounds} rounds of {result.calls:,} hits"
    return "\n".join((head, *(f"  {what:{width}}  {value:>16}" for what, value in lines)))
