"""What commands print of plugins and hits."""

import json
from importlib.metadata import EntryPoint

from ubpx.cli.plugins import as_text, report
from ubpx.cli.trace.formats import JsonSink, TextSink
from ubpx.core.values import HitRecord, ProcessId, ThreadId, VirtAddr


def test_a_plugin_without_metadata() -> None:
    assert as_text([report(EntryPoint("bare", "collections:OrderedDict", "ubpx"))]) == (
        "bare (a distribution without metadata)\n  no hooks"
    )
    assert as_text([]) == "no plugin is installed"


RECORD = HitRecord(
    time=1_700_000_000.25,
    pid=ProcessId(7),
    tid=ThreadId(8),
    symbol="libc:\x1bwrite",
    address=VirtAddr(0x7F00),
    args=(1, 2**64 - 1, 0),
)


def test_the_text_of_a_hit() -> None:
    sink = TextSink()
    line = sink.hit(RECORD)
    assert line.endswith(".250000 7/8 libc:\\x1bwrite(0x1, 0xffffffffffffffff, 0x0) at 0x7f00\n")
    assert sink.begin() + sink.end() == ""
    assert sink.counts({"libc:read": 2, "libc:write": 1000}) == "1,000 libc:write\n    2 libc:read\n"
    assert sink.counts({}) == ""


def test_the_json_of_a_hit() -> None:
    """Invariant: one object in one line, with exactly these fields."""
    sink = JsonSink()
    line = sink.hit(RECORD)
    assert line.isascii()
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": 1_700_000_000.25,
        "pid": 7,
        "tid": 8,
        "symbol": "libc:\x1bwrite",
        "address": 0x7F00,
        "args": [1, 2**64 - 1, 0],
    }
    assert sink.begin() + sink.end() == ""
    assert json.loads(sink.counts({"libc:read": 2})) == {"counts": {"libc:read": 2}}
