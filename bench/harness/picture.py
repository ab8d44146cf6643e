"""The result as a picture: SVG, what one hit costs by tool, on a logarithmic scale.

Written by hand, for it is a few lines and circles. It has its own ground and two sets of colours, and follows the
reader's choice of light or dark, as far as whoever shows it lets it know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from harness.table import by_cost, number, where

WIDTH, LEFT, RIGHT = 880, 360, 70
TOP, ROW, BOTTOM = 64, 24, 46
STYLE = """
  .ground { fill: #ffffff } text { fill: #1f2328; font: 13px system-ui, sans-serif }
  .title { font-size: 16px; font-weight: 600 } .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #d1d9e0 } .range { stroke: #818b98; stroke-width: 2 } .stem { stroke: #d1d9e0 }
  .peer { fill: #59636e } .ours { fill: #0969da } text.ours { font-weight: 600; fill: #0969da }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } text { fill: #e6edf3 } .small { fill: #9198a1 }
    .grid, .stem { stroke: #3d444d } .range { stroke: #9198a1 } .peer { fill: #9198a1 }
    .ours, text.ours { fill: #4493f8 }
  }
"""


class Scale:
    """From microseconds to where they are: whole decades, so that each line is a power of ten."""

    def __init__(self, values: Sequence[float]) -> None:
        if not values or min(values) <= 0:
            raise ValueError("a logarithmic scale needs values above nought")
        self.first = math.floor(math.log10(min(values)))
        self.last = max(math.ceil(math.log10(max(values))), self.first + 1)

    def __call__(self, value: float) -> float:  # noqa: D102 - the class's docstring says it
        share = (math.log10(value) - self.first) / (self.last - self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    @property
    def decades(self) -> list[int]:
        """The powers of ten that have a line."""
        return list(range(self.first, self.last + 1))


def text(x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """One stroke."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def row(peer: Mapping[str, Any], y: float, scale: Scale) -> list[str]:
    """One tool: its name, a dot at the median, a bar from its lowest round to its highest."""
    ours = peer["name"].startswith("ubpx")
    kind = "ours" if ours else "peer"
    at = scale(peer["us"])
    return [
        text(LEFT - 12, y + 4, peer["title"], kind="ours" if ours else "", anchor="end"),
        line(LEFT, y, at, y, "stem"),
        line(scale(peer["low_us"]), y, scale(peer["high_us"]), y, "range"),
        f'<circle class="{kind}" cx="{at:.1f}" cy="{y:.1f}" r="5"/>',
        text(max(at, scale(peer["high_us"])) + 10, y + 4, number(peer["us"]), kind="ours" if ours else ""),
    ]


def shown(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tools that have a figure, by cost; ubpx's variants (more clients, a busy host, a broker) are no tools."""
    peers = [peer for peer in by_cost(result) if peer["tool"]]
    return [peer for peer in peers if peer["us"] is not None and peer["low_us"] > 0]


def as_svg(result: Mapping[str, Any]) -> str:
    """The picture. Raises ValueError where nothing has a figure."""
    peers = shown(result)
    scale = Scale([value for peer in peers for value in (peer["low_us"], peer["high_us"])])
    bottom = TOP + ROW * len(peers)
    height = bottom + BOTTOM
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        '<title id="title">What one hit costs, in microseconds, by tool</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
        text(16, 28, "What one hit costs: microseconds, logarithmic; less is better", kind="title"),
    ]
    for decade in scale.decades:
        at = scale(10.0**decade)
        parts += [line(at, TOP - 14, at, bottom, "grid"), text(at, bottom + 16, f"{10.0**decade:,g}", anchor="middle")]
    for index, peer in enumerate(peers):
        parts += row(peer, TOP + ROW * index, scale)
    parts += [text(16, height - 10, where(result), kind="small"), "</svg>"]
    return "\n".join(parts) + "\n"
