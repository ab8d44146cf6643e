"""The interpreter's switch interval while probes are armed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from ubpx.core.responsiveness import SWITCH_INTERVAL_S, Responsiveness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.core.conftest import World

PID, LEA = 100, 0x40_1000


@pytest.fixture(autouse=True)
def interval() -> Iterator[float]:
    """The host's own interval, which must be back after each test."""
    host = 0.002
    before = sys.getswitchinterval()
    sys.setswitchinterval(host)
    yield host
    after = sys.getswitchinterval()
    sys.setswitchinterval(before)
    assert after == pytest.approx(host)


def test_the_interval_is_short_while_a_probe_is_armed(world: World, interval: float) -> None:
    """Invariant: the first armed probe lowers it, the last release puts the host's own back."""
    client = world.attach().client("a")
    assert sys.getswitchinterval() == pytest.approx(interval)
    first, second = client.probe(LEA, lambda _: None), client.probe(LEA, lambda _: None)
    world.fake.idle()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    first.release()
    world.fake.idle()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    second.release()
    world.fake.idle()
    assert sys.getswitchinterval() == pytest.approx(interval)


def test_a_detach_puts_it_back(world: World, interval: float) -> None:
    """Invariant: no session leaves the host's interpreter changed."""
    world.attach().client("a").probe(LEA, lambda _: None)
    world.detach()
    world.fake.idle()
    assert sys.getswitchinterval() == pytest.approx(interval)


def test_several_sessions_agree_on_the_shortest(interval: float) -> None:
    """Invariant: the interval is the shortest wanted, and the host's again when nobody wants one."""
    one, other, longer = Responsiveness(100e-6), Responsiveness(50e-6), Responsiveness(1.0)
    one.want(wanted=True)
    other.want(wanted=True)
    assert sys.getswitchinterval() == pytest.approx(50e-6)
    other.want(wanted=False)
    other.want(wanted=False)
    assert sys.getswitchinterval() == pytest.approx(100e-6)
    one.want(wanted=False)
    longer.want(wanted=True)
    assert sys.getswitchinterval() == pytest.approx(interval), "it is never made longer"
    longer.want(wanted=False)


def test_it_can_be_left_alone(interval: float) -> None:
    """Invariant: None changes nothing."""
    Responsiveness(None).want(wanted=True)
    assert sys.getswitchinterval() == pytest.approx(interval)
