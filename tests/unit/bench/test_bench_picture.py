"""The figure that the README shows."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from harness.picture import LEFT, RIGHT, WIDTH, Scale, as_svg

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "processor": "A & B <C>",
    "processors": 2,
    "kernel": "6",
    "python": "3.11",
    "ubpx": "0.1.0",
    "commit": None,
    "load": 0.5,
}


def peer(name: str, us: float | None, *, tool: bool = True) -> dict[str, Any]:
    low, high = (None, None) if us is None else (us / 2, us * 2)
    return {"name": name, "title": f"<{name}> & co", "us": us, "low_us": low, "high_us": high, "tool": tool}


def result(*peers: dict[str, Any]) -> dict[str, Any]:
    return {"date": "2026-11-26", "machine": MACHINE, "peers": list(peers)}


RESULT = result(peer("slow", 2000.0), peer("ubpx_counts", 15.0), peer("gone", None), peer("variant", 1.0, tool=False))


def test_it_shows_the_tools_that_have_a_figure() -> None:
    """Invariant: well-formed whatever names hold; a dot for each tool, by cost, and none for what is missing."""
    drawn = ET.fromstring(as_svg(RESULT))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    shown = [text for text in texts if text and text.startswith("<")]
    assert shown == ["<ubpx_counts> & co", "<slow> & co"]
    assert {"15.0", "2,000"} <= set(texts)
    dots = list(drawn.iter(f"{SVG}circle"))
    assert [dot.get("class") for dot in dots] == ["ours", "peer"]
    assert any(text and "2026-11-26, A & B <C>, 2 processors" in text for text in texts)


def test_the_scale_is_logarithmic() -> None:
    """Invariant: each decade is as wide as the others, and dots and bars stand where their values are."""
    scale = Scale([7.5, 4000.0])
    assert scale.decades == [0, 1, 2, 3, 4]
    places = [scale(10.0**decade) for decade in scale.decades]
    assert (places[0], places[-1]) == (LEFT, WIDTH - RIGHT)
    widths = {round(after - before, 6) for before, after in itertools.pairwise(places)}
    assert len(widths) == 1
    drawn = ET.fromstring(as_svg(RESULT))
    first, second = (float(dot.get("cx", "nan")) for dot in drawn.iter(f"{SVG}circle"))
    decade = scale(10.0) - scale(1.0)
    assert math.isclose(second - first, decade * math.log10(2000 / 15), abs_tol=0.2)
    bars = [line for line in drawn.iter(f"{SVG}line") if line.get("class") == "range"]
    widths = {round(float(bar.get("x2", "nan")) - float(bar.get("x1", "nan")), 0) for bar in bars}
    assert widths == {round(decade * math.log10(4), 0)}


@pytest.mark.parametrize("only", [10.0, 0.01, 1.0])
def test_one_value_has_a_scale_too(only: float) -> None:
    scale = Scale([only])
    assert LEFT <= scale(only) <= WIDTH - RIGHT


@pytest.mark.parametrize("peers", [[], [peer("gone", None)]])
def test_nothing_has_no_picture(peers: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="logarithmic"):
        as_svg(result(*peers))


def contrast(one: str, other: str) -> float:
    """By WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_in_light_and_in_dark(dark: bool) -> None:
    """Invariant: text and dots stand out from the ground, in both sets of colours."""
    style = as_svg(RESULT).partition("<style>")[2].partition("</style>")[0]
    light, _, other = style.partition("@media (prefers-color-scheme: dark)")
    part = other if dark else light
    (ground,) = re.findall(r"\.ground { fill: (#\w+)", part)
    inks = dict(re.findall(r"(text|\.small|\.peer|\.ours)[^{}]*{[^}]*fill: (#\w+)", part))
    assert inks.keys() == {"text", ".small", ".peer", ".ours"}
    assert {name: round(contrast(ink, ground), 1) for name, ink in inks.items() if contrast(ink, ground) < 4.5} == {}
