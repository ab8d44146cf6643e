"""Random scripts: whatever happens in whatever order, the program never notices."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubpx.core.events import Verdict

if TYPE_CHECKING:
    from tests.unit.core.conftest import World

TEXT, PID = 0x40_1000, 100
LEA, PUSH, NOP = TEXT, TEXT + 32, TEXT + 64
TIDS = [PID, 101, 102]
SIGNALS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]

tids, places = st.sampled_from(TIDS), st.sampled_from([LEA, PUSH, NOP])
actions = st.one_of(
    st.tuples(st.just("arrive"), tids, places, st.sampled_from([{}, {"overtakes": True}, {"late": True}])),
    st.tuples(st.just("signal"), tids, st.sampled_from(SIGNALS), st.sampled_from([{}, {"overtakes": True}])),
    st.tuples(st.just("stop"), tids),
    st.tuples(st.just("continue")),
    st.tuples(st.just("clone"), tids),
    st.tuples(st.just("fork"), tids, st.booleans()),
    st.tuples(st.just("hold"), tids),
    st.tuples(st.just("let_go")),
    st.tuples(st.just("share"), places),
    st.tuples(st.just("unshare")),
    st.tuples(st.just("idle")),
)
answers = st.sampled_from([None, None, None, Verdict.STEP, Verdict.HOLD, Verdict.HOLD_PROCESS])


class Story:
    """Carries out a script, and counts what must come of it."""

    def __init__(self, world: World, answer: list[Verdict | None], strategy: str | None) -> None:
        self.world = world.attach(*TIDS[1:])
        self.arrivals: Counter[int] = Counter()
        self.signals: Counter[int] = Counter()
        self.children = 1000
        self._answers = iter(answer)
        keeper = world.client("keeper")
        handler = lambda _: next(self._answers, None)  # noqa: E731
        self.leases = {
            place: keeper.probe(place, handler, strategy=strategy if place == LEA else None)
            for place in (LEA, PUSH, NOP)
        }
        self.guest = world.client("guest")
        self.guests: list[Any] = []
        self.jobs: list[Any] = []
        self.stopped = False

    def act(self, what: str, *details: Any) -> None:
        getattr(self, what)(*details)

    def arrive(self, tid: int, place: int, how: dict[str, bool]) -> None:
        self.arrivals[place] += 1
        self.world.fake.arrive(tid, place, **how)

    def signal(self, tid: int, number: int, how: dict[str, bool]) -> None:
        self.signals[number] += 1
        self.world.fake.signal(tid, number, **how)

    def stop(self, tid: int) -> None:
        if not self.stopped:
            self.stopped = True
            self.signals[signal.SIGSTOP] += 1
            self.world.fake.signal(tid, signal.SIGSTOP)

    def clone(self, tid: int) -> None:
        self.children += 1
        self.world.fake.clone(tid, self.children, child_first=bool(self.children % 2))

    def fork(self, tid: int, first: bool) -> None:
        self.children += 1
        self.world.fake.fork(tid, self.children, child_first=first)

    def hold(self, tid: int) -> None:
        self.jobs.append(self.world.loop.post(lambda: self.world.desk._hold(self.guest, tid)))  # type: ignore[arg-type]

    def let_go(self) -> None:
        for hold in self.world.holds():
            hold.release()

    def share(self, place: int) -> None:
        self.guests.append(self.guest.probe(place, lambda _: None))

    def unshare(self) -> None:
        for lease in self.guests:
            lease.release()
        self.guests.clear()

    def idle(self) -> None:
        if not self.jobs:
            self.world.fake.idle()

    def settle(self) -> None:
        """Until nothing is held, and nothing is left to do."""
        for _ in range(100):
            self.world.fake.continue_process(PID)
            for job in self.jobs:
                job.result(10)
            self.jobs.clear()
            self.world.fake.idle()
            self.let_go()
            self.world.fake.idle()
            self.world.loop.run(lambda: self.world.desk._hold(self.guest, None))  # what is late waits for a stop
            self.let_go()
            self.world.fake.idle()
            threads = [self.world.fake.thread(thread.tid) for thread in self.world.process.living()]
            if not self.world.holds() and all(each.condition == "RUNNING" and not each.script for each in threads):
                return
        pytest.fail(f"it does not come to rest: {threads}")

    def continue_(self) -> None:
        self.stopped = False
        self.world.fake.continue_process(PID)


setattr(Story, "continue", Story.continue_)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(actions, min_size=1, max_size=25),
    st.lists(answers, max_size=10),
    st.sampled_from([None, "STEP"]),
    st.booleans(),
)
def test_any_story_ends_well(
    make_world: type[World],
    script: list[tuple[Any, ...]],
    answer: list[Verdict | None],
    strategy: str | None,
    settles: bool,
) -> None:
    """Invariant: hits = arrivals; each signal is delivered once; detach leaves every byte and thread as it was."""
    world = make_world()
    before = world.memory.image()
    story = Story(world, answer, strategy)
    for action in script:
        story.act(*action)
    if settles:
        story.settle()
        assert {place: lease.hits for place, lease in story.leases.items() if lease.hits} == dict(story.arrivals)
        delivered = Counter(entry[2] for entry in world.fake.actions(None, "resume", "detach") if entry[2])
        assert delivered == story.signals
    for job in story.jobs:
        job.result(10)
    world.close()
    after = world.memory.image()
    assert after[TEXT] == before[TEXT]
    assert after.keys() == before.keys()
    left = [thread for thread in world.fake._threads.values() if thread.traced or thread.condition == "STOPPED"]
    assert left == []
