"""Globs over the strings of a symbol table find what they find over names as text."""

from __future__ import annotations

import pytest

from ubpx.symbols import globs

NAMES = ["memcpy", "memcpy@GLIBC_2.14", "memmove@@GLIBC_2.2.5", "mem", "", "emem", "x_mem_y", "mem.cold", "mem*", "écu"]
STRINGS = b"\0" + b"\0".join(name.encode() for name in NAMES)


def offsets() -> dict[int, str]:
    """Where each name starts, and what it is without its version."""
    found, at = {}, 1
    for name in NAMES:
        found[at] = name.partition("@")[0]
        at += len(name.encode()) + 1
    return found


@pytest.mark.parametrize(
    "pattern", ["*", "**", "mem*", "*mem", "*mem*", "m*m*e", "mem", "*.cold", "mem.*", "e*", "*y", "*cpy", "x*m*_*y"]
)
def test_bytes_and_text_agree(pattern: str) -> None:
    """Invariant: versions are no part of a name, names do not run into the next, and the last needs no end."""
    found = globs.in_strings(pattern)
    assert found is not None
    (matches,) = found
    accepted = globs.accepts(pattern)
    for at, name in offsets().items():
        assert (matches is None or bool(matches(STRINGS, at))) == bool(accepted(name)), name


@pytest.mark.parametrize("pattern", ["mem?", "[mn]em*", "é*", "mem@*"])
def test_what_means_letters_is_left_to_text(pattern: str) -> None:
    """Invariant: what means letters of several bytes, or asks for versions, is no matter of bytes."""
    assert globs.in_strings(pattern) is None


def test_a_hostile_pattern_takes_no_time() -> None:
    """Invariant: many stars over a long name that nearly fits end at once."""
    found = globs.in_strings("a*" * 40 + "b")
    assert found is not None
    (matches,) = found
    assert matches is not None
    assert not matches(b"a" * 4000 + b"\0", 0)
