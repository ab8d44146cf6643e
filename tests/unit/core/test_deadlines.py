"""For how long a handler has run, as the watchdog knows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from ubpx.core import deadlines
from ubpx.core.deadlines import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 20.0


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    """One that looks often; nothing is raised."""
    monkeypatch.setattr(deadlines, "_raise_in", lambda *_: None)
    made = Watchdog()
    made.deadline_s = 0.04
    made.start()
    yield made
    made.stop()


def until_alarmed(watchdog: Watchdog) -> None:
    until = time.monotonic() + PATIENCE_S
    while not watchdog.alarmed:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_what_overran_is_known_to_have_after_later_looks(watchdog: Watchdog) -> None:
    """Invariant: what was alarmed ran for at least its deadline, though it is watched no more when that is asked."""
    began, handler = time.monotonic(), object()
    watchdog.watched = handler
    until_alarmed(watchdog)
    watchdog.watched = None
    time.sleep(3 * watchdog.deadline_s)
    least = watchdog.deadline_s
    assert least <= watchdog.ran_s(handler) <= time.monotonic() - began + watchdog.deadline_s
    watchdog.calm()
    assert watchdog.ran_s(handler) == 0.0


def test_what_was_over_before_anybody_looked_has_no_time(watchdog: Watchdog) -> None:
    watchdog.watched = object()
    watchdog.watched = None
    assert watchdog.ran_s(object()) == 0.0
