"""A remote client's seat in the broker, without a broker."""

from types import SimpleNamespace
from typing import Any

from ubpx_froggy.broker.seats import Seat
from ubpx_froggy.messages import Answer


def test_a_late_success_counts_before_the_thread_goes_on() -> None:
    """Invariant: the failure at its next arrival is the first in a row, however soon that comes."""
    seen: list[int] = []
    held: Any = SimpleNamespace(owner="c", thread=7)
    target: Any = SimpleNamespace(pid=1, family=(), holds=lambda: (held,))
    nobody: Any = None
    seat = Seat("c", 0, target, nobody, priority=0, hooks=())
    held.release = lambda _: seen.append(seat.strikes)
    seat.strikes = 2
    seat._standing.append(7)
    seat.settle(None, 7, Answer(1))
    assert (seen, seat.strikes) == ([0], 0)
