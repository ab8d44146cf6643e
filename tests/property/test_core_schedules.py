"""Clients, leases, holds, slots, threads and deaths, in any order; what breaks is shown at its shortest."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ubpx.testing.schedules import quiet
from ubpx.testing.simulation.plants import planted
from ubpx.testing.simulation.program import PLACES
from ubpx.testing.simulation.world import World

decisions = st.data()


def tamest(n: int) -> int:
    return 0


class Schedule(RuleBasedStateMachine):
    """One world; each rule is something that a client does, or the tracer's loop once.

    What threads do, and what fails, is drawn as it is needed: by 0 where there is nothing to draw from any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pick = tamest
        self.world = World(self.pick, budget=0)

    def pick(self, n: int) -> int:
        return self._pick(n)

    def _decide_by(self, data: st.DataObject) -> None:
        self._pick = lambda n: data.draw(st.integers(0, n - 1)) if n > 1 else 0

    @initialize(
        threads=st.integers(1, 3),
        slots=st.booleans(),
        places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True),
        failures=st.integers(0, 1),
        budget=st.integers(1, 20),
    )
    def begin(self, threads: int, slots: bool, places: list[int], failures: int, budget: int) -> None:
        self.world = World(
            self.pick, budget=budget, slots_allowed=slots, threads=threads, failures=failures, places=places
        )
        self.world.join()

    @rule(data=decisions, times=st.integers(1, 4))
    def serve(self, data: st.DataObject, times: int) -> None:
        self._decide_by(data)
        for _ in range(times):
            self.world.pump()

    @rule(data=decisions)
    def probe(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.probe()

    @rule(data=decisions)
    def probe_many(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.probe_many()

    @rule(data=decisions)
    def release(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.release()

    @rule(data=decisions)
    def hold(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.hold()

    @rule(data=decisions)
    def let_go(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.let_go()

    @rule(data=decisions)
    def step(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.step()

    @rule(data=decisions, quarantined=st.booleans())
    def leave(self, data: st.DataObject, quarantined: bool) -> None:
        self._decide_by(data)
        (self.world.expel if quarantined else self.world.close)()

    @rule(data=decisions)
    def join(self, data: st.DataObject) -> None:
        self._decide_by(data)
        self.world.join()

    @rule()
    def go_on_after_a_group_stop(self) -> None:
        self._pick = tamest
        self.world.cont()

    @invariant()
    def nothing_is_broken(self) -> None:
        self._pick = tamest
        self.world.ledger.check()

    def teardown(self) -> None:
        self._pick = tamest
        self.world.settle()
        self.world.leave()


def search(examples: int, *, steps: int = 20, shortens: bool = True) -> None:
    """Raises what breaks, at its shortest."""
    modest = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink) if shortens else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    with quiet():
        run_state_machine_as_test(Schedule, settings=modest)


def test_whatever_clients_and_threads_do_in_whatever_order() -> None:
    """Invariant: trap present <=> leases > 0; no occupied slot freed; counts end at zero; nothing is left stopped."""
    search(40)


@pytest.mark.torture
def test_whatever_they_do_at_length() -> None:
    """Invariant: the same, more often and for longer."""
    search(1000, steps=40)


@pytest.mark.parametrize("name", ["trap-left", "hold-forgotten"])
def test_what_is_planted_is_found(name: str) -> None:
    """Invariant: the machine sees what breaks (and need not shorten it here, which takes a minute)."""
    with planted(name), pytest.raises(AssertionError):
        search(300, shortens=False)
