"""The output formats that ubpx brings itself, offered as any plugin would offer its own."""

import json
import time
from collections.abc import Callable, Mapping

from ubpx.cli.text import printable
from ubpx.core.ports import Sink
from ubpx.core.values import HitRecord
from ubpx.hookspecs import hookimpl


class TextSink:
    """For people: a line for each hit."""

    def begin(self) -> str:
        """No heading: lines of several traces may be put together."""
        return ""

    def hit(self, record: HitRecord) -> str:
        """When, process/thread, where, and the arguments as at a function's entry."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.time)) + f"{record.time % 1:.6f}"[1:]
        arguments = ", ".join(f"{each:#x}" for each in record.args)
        return f"{clock} {record.pid}/{record.tid} {printable(record.symbol)}({arguments}) at {record.address:#x}\n"

    def counts(self, counts: Mapping[str, int]) -> str:
        """Hits and spec, the most frequent first."""
        ranked = sorted(counts.items(), key=lambda each: -each[1])
        width = len(f"{max(counts.values(), default=0):,}")
        return "".join(f"{hits:>{width},} {printable(spec)}\n" for spec, hits in ranked)

    def end(self) -> str:
        """Nothing."""
        return ""


class JsonSink:
    """For programs: a JSON object in each line."""

    def begin(self) -> str:
        """Nothing."""
        return ""

    def hit(self, record: HitRecord) -> str:
        """The record's own fields; addresses and arguments are numbers."""
        fields = {
            "time": record.time,
            "pid": record.pid,
            "tid": record.tid,
            "symbol": record.symbol,
            "address": record.address,
            "args": record.args,
        }
        return f"{json.dumps(fields)}\n"

    def counts(self, counts: Mapping[str, int]) -> str:
        """One object."""
        return f"{json.dumps({'counts': dict(counts)})}\n"

    def end(self) -> str:
        """Nothing."""
        return ""


class OwnFormats:
    """The plugin that brings them."""

    @hookimpl
    def ubpx_sinks(self) -> Mapping[str, Callable[[], Sink]]:
        """``text`` and ``json``."""
        return {"text": TextSink, "json": JsonSink}
