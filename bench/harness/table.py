"""The result as text: on a terminal, and in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""Between these lines of the README the table stands."""


def by_cost(result: Result) -> list[Mapping[str, Any]]:
    """The peers, the cheapest first; those without a figure at the end."""
    return sorted(result["peers"], key=lambda peer: (peer["us"] is None, peer["us"] or 0))


def number(value: float) -> str:
    """Three digits that say something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{number(value)} x"


def measured(figure: Mapping[str, Any]) -> str:
    """A figure's value with its unit."""
    return "-" if figure["value"] is None else f"{number(figure['value'])} {figure['unit']}"


def demanded(figure: Mapping[str, Any]) -> str:
    """What it must be."""
    demand = figure["demand"]
    if not demand:
        return ""
    limit = f"at most {demand['most']:g}" if "most" in demand else f"at least {demand['least']:g}"
    return f"{limit} (aim {demand['aim']:g})" if "aim" in demand else limit


def where(result: Result) -> str:
    """Date and machine."""
    machine = result["machine"]
    return (
        f"{result['date']}, {machine['processor']}, {machine['processors']} processors, Linux {machine['kernel']}, "
        f"Python {machine['python']}, ubpx {machine['ubpx']}"
        + (f" ({machine['commit']})" if machine["commit"] else "")
        + f", load {machine['load']:.1f} before"
    )


def columns(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """Rows as lines; ``alignment`` has < or > for each column."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(alignment))]
    pieces = [
        [f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True)] for row in rows
    ]
    return ["  ".join(row).rstrip() for row in pieces]


def as_text(result: Result) -> str:
    """Both tables, for people."""
    peers = [("one hit", "us", "lowest", "highest", "/ C one stop", "hits / calls")]
    notes = []
    for peer in by_cost(result):
        if peer["us"] is None:
            kind = "missing" if peer["missing"] else "not valid"
            notes.append(f"{peer['title']}: {kind}: {peer['missing'] or peer['invalid']}")
            peers.append((peer["title"], kind, "", "", "", ""))
            continue
        counts = f"{peer['hits']:,} / {peer['calls']:,}" + (" by the kernel" if peer["counted_by"] == "kernel" else "")
        spans = (number(peer[each]) for each in ("us", "low_us", "high_us"))
        counts += f" {peer['strategy']}" if peer.get("strategy") else ""
        peers.append((peer["title"], *spans, times(peer["over_c_one_stop"]), counts))
    figures = [("figure", "", "demanded", "")]
    for figure in result["figures"]:
        figures.append((figure["title"], measured(figure), demanded(figure), figure["verdict"]))
        if figure["value"] is None:
            notes.append(f"{figure['title']}: not measured: {figure['missing']}")
    lines = [where(result), f"medians of {result['rounds']} rounds, of more where that is quick", ""]
    lines += [*columns(peers, "<>>>><"), "", *columns(figures, "<><<"), ""]
    lines += notes
    lines += [f"NOT VALID: {failure}" for failure in result["failures"]]
    lines.append(f"missed: {', '.join(result['missed']) or 'nothing'}")
    return "\n".join(lines)


def as_markdown(result: Result, picture: str) -> str:
    """What the README shows: the figure, the peers' table, and what is demanded."""
    peers = [peer for peer in by_cost(result) if peer["tool"]]
    absent = [f"{peer['title']} ({peer['missing'] or peer['invalid']})" for peer in peers if peer["us"] is None]
    lines = [
        f"![What one hit costs, by tool, on a logarithmic scale]({picture})",
        "",
        "| one hit | us | / C, one stop |",
        "|---|--:|--:|",
        *(peer_line(peer) for peer in peers if peer["us"] is not None),
        "",
        f"Measured on {where(result)}; medians of at least {result['rounds']} rounds, all processes on one processor.",
    ]
    if absent:
        lines.append(f"Not measured: {'; '.join(absent)}.")
    limits = [figure for figure in result["figures"] if figure["demand"]]
    if limits:
        lines += ["", "<details><summary>At scale, and what is demanded of each figure</summary>", ""]
        lines += ["| figure | measured | demanded | |", "|---|--:|---|---|", *map(figure_line, limits)]
        lines += ["", "</details>"]
    return "\n".join(lines)


def peer_line(peer: Mapping[str, Any]) -> str:
    """One row of the README's first table; ours stand out."""
    title = f"**{peer['title']}**" if peer["name"].startswith("ubpx") else peer["title"]
    return f"| {title} | {number(peer['us'])} | {times(peer['over_c_one_stop'])} |"


def figure_line(figure: Mapping[str, Any]) -> str:
    """One row of the second."""
    return f"| {figure['title']} | {measured(figure)} | {demanded(figure)} | {figure['verdict']} |"


def replaced(page: str, text: str) -> str:
    """The page with the text between its two marks. Raises ValueError if it has not both, once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise ValueError(f"the page must have {BEGIN} and, below, {END}, each once")
    return f"{page.partition(BEGIN)[0]}{BEGIN}\n{text}\n{page[page.index(END) :]}"
