"""Many places of a remote client at once: each is a lease like any other, though little is made of it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from tests.real.conftest import changed_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.broker.conftest import StartBroker
    from tests.real.conftest import Program, StartProgram

FUNCTIONS = 300
ROUNDS = 3


@pytest.fixture
def crowd(target_program: StartProgram) -> Program:
    """A program of so many functions."""
    return target_program("crowd", flags=(f"-DFUNCTIONS={FUNCTIONS}",))


def call_all(crowd: Program, times: int = ROUNDS) -> None:
    crowd.tell(f"all {times}\n").number("ns", timeout=55)


@pytest.mark.parametrize("mode", ["sync", "notify", "count"])
def test_each_of_a_group_counts_and_ends_by_itself(
    crowd: Program, start_broker: StartBroker, eventually: Callable[..., bool], mode: str
) -> None:
    """Invariant: hits and states of each are exact, whether it was looked at before it was hit or after."""
    seen = Counter[int]()
    broker = start_broker("-p", str(crowd.pid))
    with ubpx.connect(broker.path) as target:
        handler = None if mode == "count" else lambda hit: seen.update([hit.address])
        client: Any = target.client("many")
        group = client.probe_many("work_*", handler, mode=mode)
        addresses = [lease.address for lease in group]
        assert (len(set(addresses)), group.hits) == (FUNCTIONS, 0)
        call_all(crowd)
        assert group.hits == ROUNDS * FUNCTIONS
        assert {lease.hits for lease in group} == {ROUNDS}
        first, others = group[0], group[1:]
        first.release()
        call_all(crowd)
        assert (first.state, first.hits) == (ubpx.LeaseState.RELEASED, ROUNDS)
        assert {lease.hits for lease in others} == {2 * ROUNDS}
        if mode != "count":
            assert eventually(lambda: seen.total() == group.hits)
            assert seen[first.address] == ROUNDS
        group.release()
        call_all(crowd)
        assert {lease.hits for lease in others} == {2 * ROUNDS}
        assert {lease.state for lease in group} == {ubpx.LeaseState.RELEASED}
        assert target.probepoints() == ()
    assert changed_text(crowd.pid) == []
    assert crowd.tell("q\n").wait() == 0


def test_a_group_that_is_hit_while_it_is_granted(crowd: Program, start_broker: StartBroker) -> None:
    """Invariant: no hit that comes before the client knows its group is told of under another lease, or lost."""
    seen = Counter[str]()
    broker = start_broker("-p", str(crowd.pid))
    with ubpx.connect(broker.path) as target:
        client: Any = target.client("many")
        granted = threading.Event()

        def call_until_granted() -> None:
            while not granted.is_set():
                call_all(crowd, 1)

        calling = threading.Thread(target=call_until_granted)
        calling.start()
        groups = [client.probe_many("work_*", lambda hit: seen.update([hit.lease.spec]), mode="sync") for _ in range(3)]
        granted.set()
        calling.join(60)
        hits = Counter[str]()
        for group in groups:
            hits.update({lease.spec: lease.hits for lease in group})
            assert {lease.errors for lease in group} == {0}
        assert seen == +hits
        assert seen.total() > 0
    assert changed_text(crowd.pid) == []
    assert crowd.tell("q\n").wait() == 0


def test_leases_that_are_not_made_count_as_leases(crowd: Program, start_broker: StartBroker) -> None:
    """Invariant: the quota is of leases, whatever the broker keeps of them; a refused group leaves nothing armed."""
    broker = start_broker("-p", str(crowd.pid), "--max-probes", str(FUNCTIONS + 10))
    with ubpx.connect(broker.path) as target:
        client: Any = target.client("many")
        first = client.probe_many("work_*", None, mode="count")
        with pytest.raises(ubpx.QuotaExceeded):
            client.probe_many("work_1*", None, mode="count")
        call_all(crowd)
        assert first.hits == ROUNDS * FUNCTIONS
        first.release()
        assert len(client.probe_many("work_*", None, mode="count")) == FUNCTIONS
    assert changed_text(crowd.pid) == []
    assert crowd.tell("q\n").wait() == 0
