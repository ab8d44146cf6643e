"""What the demo prints."""

import json

from rich import box
from rich.console import Console
from rich.table import Table

from ubpx.cli.demo.run import CLIENTS, PLACE, THREADS, DemoResult
from ubpx.cli.text import printable


def as_json_text(result: DemoResult) -> str:
    """One JSON object."""
    return json.dumps(
        {
            "calls": result.calls,
            "clients": [{"name": each.name, "hits": each.hits} for each in result.clients],
            "missed": result.missed,
            "holders": list(result.sharing.holders),
            "exit": result.exit_status,
            "ok": result.ok,
        }
    )


def print_report(result: DemoResult, console: Console | None = None) -> None:
    """A table, and what happened to the probepoint and to the program."""
    console = console or Console(highlight=False)
    console.print(
        f"process {result.pid}: {THREADS} threads call {PLACE}, probed by {len(CLIENTS)} clients at once",
        soft_wrap=True,
    )
    console.print(counts(result))
    for label, text in facts(result):
        console.print(f"{label:<11} {printable(text)}", markup=False, soft_wrap=True)


def counts(result: DemoResult) -> Table:
    """What each client counted, beside what the program counted itself."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("client")
    for heading in ("hits", "calls", "missed"):
        table.add_column(heading, justify="right")
    for each in result.clients:
        table.add_row(printable(each.name), f"{each.hits:,}", f"{result.calls:,}", f"{abs(result.calls - each.hits):,}")
    return table


def facts(result: DemoResult) -> list[tuple[str, str]]:
    """Label and text of each line below the table."""
    sharing = result.sharing
    slot = f"one slot at {sharing.slot:#x}" if sharing.slot else "no slot: ubpx does what the instruction does"
    unharmed = "as if nobody had been there" if result.exit_status == 0 else "it was harmed"
    return [
        ("probepoint", f"{PLACE} at {sharing.address:#x}: one trap, strategy {sharing.strategy}, {slot}"),
        ("handlers", f"{', then '.join(sharing.clients)}"),
        ("holders", " -> ".join(map(str, sharing.holders)) + ", as the clients left one by one"),
        ("bystanders", f"{result.rounds:,} rounds of its other threads meanwhile: they ran on"),
        ("program", f"exit status {result.exit_status}, {unharmed}"),
        ("verdict", "ok" if result.ok else "NOT ok"),
    ]
