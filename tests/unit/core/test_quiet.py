"""Which threads still run."""

from types import SimpleNamespace
from typing import Any

import pytest

from ubpx.core.quiet import StillRunning


def running(count: int) -> list[Any]:
    return [SimpleNamespace(stands=False) for _ in range(count)]


def stands(thread: Any) -> bool:
    return bool(thread.stands)


def test_it_is_none_once_all_stand_and_not_before() -> None:
    threads = running(3)
    left = StillRunning(lambda: threads, stands)
    for each in threads:
        assert not left.none
        each.stands = True
    assert left.none


def test_one_that_comes_late_or_runs_again_counts() -> None:
    threads = running(2)
    left = StillRunning(lambda: threads, stands)
    for each in threads:
        each.stands = True
    late = running(1)
    threads += late
    assert not left.none
    threads[0].stands, late[0].stands = False, True
    assert not left.none
    threads[0].stands = True
    assert left.none


@pytest.mark.parametrize("order", [1, -1])
def test_a_thousand_threads_are_not_looked_at_after_each_stop(order: int) -> None:
    """Invariant: however they stop, all questions together look at each a few times."""
    threads, looks = running(1000), 0

    def look(thread: Any) -> bool:
        nonlocal looks
        looks += 1
        return stands(thread)

    left = StillRunning(lambda: threads, look)
    for each in threads[::order]:
        assert not left.none
        each.stands = True
    assert left.none
    assert looks <= 4 * len(threads)
