"""What the demo with a broker prints."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ubpx.cli.demo.broker import BrokerDemoResult, holders
from ubpx.cli.demo.run import PLACE, THREADS
from ubpx.cli.text import printable


def as_json_text(result: BrokerDemoResult) -> str:
    """One JSON object."""
    clients: list[dict[str, Any]] = [
        {"name": each.name, "hits": each.hits, "dropped": each.dropped, "killed": each.killed}
        for each in result.clients
    ]
    return json.dumps(
        {
            "calls": result.calls,
            "clients": clients,
            "missed": result.missed,
            "before": result.before,
            "after": result.after,
            "exit": result.exit_status,
            "ok": result.ok,
        }
    )


def print_report(result: BrokerDemoResult, console: Console | None = None) -> None:
    """A table, and who shared the probepoint before and after."""
    console = console or Console(highlight=False)
    console.print(
        f"process {result.pid}: {THREADS} threads call {PLACE}, probed by {len(result.clients)} processes at once",
        soft_wrap=True,
    )
    console.print(counts(result))
    for label, text in facts(result):
        console.print(f"{label:<10} {printable(text)}", markup=False, soft_wrap=True)


def counts(result: BrokerDemoResult) -> Table:
    """What each client counted, beside what the program counted itself."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("client")
    for heading in ("process", "hits", "calls", "missed"):
        table.add_column(heading, justify="right")
    for each in result.clients:
        missed = "killed" if each.killed else f"{abs(result.calls - each.hits - each.dropped):,}"
        table.add_row(printable(each.name), str(each.pid), f"{each.hits:,}", f"{result.calls:,}", missed)
    return table


def facts(result: BrokerDemoResult) -> list[tuple[str, str]]:
    """Label and text of each line below the table."""
    unharmed = "as if nobody had been there" if result.exit_status == 0 else "it was harmed"
    return [
        ("before", f"{', '.join(holders(result.before, result.pid))} share one probepoint (ubpx list)"),
        ("after", f"{', '.join(holders(result.after, result.pid))}: the one that was killed has been swept"),
        ("program", f"exit status {result.exit_status}, {unharmed}"),
        ("verdict", "ok" if result.ok else "NOT ok"),
    ]
