"""The step machine: every pair, every rule, every combination of debts."""

import runpy
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ubpx._errors import InternalError
from ubpx.core.stepping import TRANSITIONS, Action, Debts, Input, State, proceed, step

ROOT = Path(__file__).parents[3]
EVERY_DEBT = [Debts(held=h, step=p, group_stopped=g) for h, p, g in product((False, True), repeat=3)]
ENDS = {Action.SEE_OFF: State.EXITING, Action.FORGET: State.GONE, Action.RENEW: State.RUNNING}


@pytest.mark.parametrize(("state", "event"), list(product(State, Input)))
def test_every_pair_is_a_transition_or_refused(state: State, event: Input) -> None:
    """Invariant (rules 1 and 2): a pair of the table gives its action, any other InternalError, whatever is owed."""
    for debts in EVERY_DEBT:
        if (state, event) in TRANSITIONS:
            after, action = step(state, event, debts)
            assert action is TRANSITIONS[state, event]
            assert after in State
        else:
            with pytest.raises(InternalError, match=f"{state} cannot have {event}"):
                step(state, event, debts)


@pytest.mark.parametrize("debts", EVERY_DEBT)
def test_a_hold_comes_first_then_a_group_stop_then_a_plan(debts: Debts) -> None:
    """Invariant (rule 3): held parks, else a group-stop listens, else a plan steps, else it runs."""
    wanted = State.RUNNING
    if debts.step:
        wanted = State.STEPPING
    if debts.group_stopped:
        wanted = State.LISTENING
    if debts.held:
        wanted = State.PARKED
    assert proceed(debts) is wanted


@pytest.mark.parametrize("debts", EVERY_DEBT)
@pytest.mark.parametrize("pair", TRANSITIONS)
def test_what_lets_a_thread_go_looks_at_what_it_owes(pair: tuple[State, Input], debts: Debts) -> None:
    """Invariant (rule 3): no action but DEFER and the ends leaves a thread elsewhere than proceed() says."""
    after, action = step(*pair, debts)
    if action in ENDS:
        assert after is ENDS[action]
    elif action is Action.DEFER:
        assert after is State.STEPPING
    elif action is Action.LISTEN:
        assert after is (State.PARKED if debts.held else State.LISTENING)
    else:
        assert after is proceed(debts)


@pytest.mark.parametrize("debts", EVERY_DEBT)
def test_a_signal_during_a_step_waits_unless_the_copy_raised_it(debts: Debts) -> None:
    """Invariant (rule 4): SIGNAL keeps the thread stepping, even a held one; FAULT cancels the step."""
    assert step(State.STEPPING, Input.SIGNAL, debts) == (State.STEPPING, Action.DEFER)
    assert step(State.STEPPING, Input.FAULT, debts)[1] is Action.CANCEL_AND_DELIVER


@pytest.mark.parametrize("state", [State.RUNNING, State.STEPPING, State.LISTENING, State.PARKED])
def test_a_thread_may_die_anywhere(state: State) -> None:
    """Invariant: SIGKILL comes whenever it likes, so every living state takes EXITING and GONE."""
    assert step(state, Input.EXITING, Debts(held=True)) == (State.EXITING, Action.SEE_OFF)
    assert step(state, Input.GONE, Debts(held=True)) == (State.GONE, Action.FORGET)


def test_nothing_outlives_exiting_but_gone() -> None:
    """Invariant (rule 5): EXITING takes GONE, and an exec that takes the tid over, told or not; GONE takes nothing."""
    after = {Input.GONE, Input.EXECED, Input.EXITING}
    assert {event for state, event in TRANSITIONS if state is State.EXITING} == after
    assert not [event for state, event in TRANSITIONS if state is State.GONE]


def test_the_diagram_in_the_design_is_that_of_the_table() -> None:
    """Invariant: docs/explanation/design.md shows what stepping.TRANSITIONS says (tools/state_diagram.py --write)."""
    tool: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "state_diagram.py"))
    document = tool["DOCUMENT"].read_text()
    assert tool["insert"](document) == document
    drawn = tool["diagram"]()
    assert all(state in drawn for state in State)
    assert all(event in drawn for _, event in TRANSITIONS)
