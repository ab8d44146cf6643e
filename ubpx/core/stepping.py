"""The life of one traced thread between its stops: one table and a pure ``step``.

Rule 1: a thread is in exactly one state; only ``step`` moves it.
Rule 2: a pair that is not in the table is a bug in the kernel's order or in ours: InternalError,
        and nothing happens.
Rule 3: an action that lets the thread go does so by ``PROCEED``, which looks at what it owes
        first: a hold parks it, an unfinished step is taken, a group-stop keeps it listening.
Rule 4: a signal that arrives while a copy is being stepped waits for the step's end, unless the
        copy itself raised it; then the step is cancelled and the program sees its own address.
Rule 5: nothing outlives EXITING but GONE, and an exec that takes the exiting leader's tid.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from ubpx._errors import InternalError


class State(StrEnum):
    """Where a traced thread is."""

    __hash__ = str.__hash__  # Enum's own is Python, and each move looks up three of these

    RUNNING = "RUNNING"
    """On its own, in the program's code or in a boosted slot."""
    STEPPING = "STEPPING"
    """Running one instruction for us, or waiting for its turn to do so in place."""
    LISTENING = "LISTENING"
    """In a group-stop of the program's own."""
    PARKED = "PARKED"
    """Stopped because somebody holds it, while the loop runs on."""
    EXITING = "EXITING"
    """On its way out."""
    GONE = "GONE"


LEAVING: Final = frozenset({State.EXITING, State.GONE})
"""It does nothing of the program's any more."""


class Input(StrEnum):
    """What can happen to it."""

    __hash__ = str.__hash__

    APPEARED = "APPEARED"
    ARRIVED = "ARRIVED"
    """At a probepoint; its handlers have run."""
    STEP_DONE = "STEP_DONE"
    SIGNAL = "SIGNAL"
    """Sent by somebody."""
    FAULT = "FAULT"
    """A signal that the thread's own instruction raised."""
    INTERRUPTED = "INTERRUPTED"
    GROUP_STOPPED = "GROUP_STOPPED"
    SYSCALL = "SYSCALL"
    """It enters or leaves a system call."""
    WATCHED = "WATCHED"
    """It did what a debug register watches; the handlers have run."""
    TASK_CREATED = "TASK_CREATED"
    EXECED = "EXECED"
    RELEASED = "RELEASED"
    """Nobody holds it any more."""
    EXITING = "EXITING"
    GONE = "GONE"


class Action(StrEnum):
    """What the coordinator does."""

    __hash__ = str.__hash__

    PROCEED = "PROCEED"
    DELIVER = "DELIVER"
    """Pass the signal on, moving the thread out of a slot first if it is in one."""
    DEFER = "DEFER"
    """Keep the signal until the step is done."""
    CANCEL_AND_DELIVER = "CANCEL_AND_DELIVER"
    """The copy faulted: back to the origin, then pass the signal on."""
    FINISH_STEP = "FINISH_STEP"
    """Put right what the step left, then proceed."""
    LISTEN = "LISTEN"
    RENEW = "RENEW"
    """A new program: drop what belonged to the old one."""
    SEE_OFF = "SEE_OFF"
    FORGET = "FORGET"


@attrs.frozen(kw_only=True)
class Debts:
    """What a thread owes when it may go on."""

    held: bool = False
    step: bool = False
    """An instruction, or its copy, is still to be stepped."""
    group_stopped: bool = False


def proceed(debts: Debts) -> State:
    """Where a thread goes that nothing else keeps (rule 3)."""
    if debts.held:
        return _PARKED
    if debts.group_stopped:
        return _LISTENING
    return _STEPPING if debts.step else _RUNNING


# A member costs 70 ns each time it is looked up by way of its class, and a thousand threads are moved at each quiesce.
_RUNNING, _STEPPING, _LISTENING, _PARKED = State.RUNNING, State.STEPPING, State.LISTENING, State.PARKED
_DEFER, _LISTEN = Action.DEFER, Action.LISTEN


_ANYWHERE: Final = {
    Input.EXITING: Action.SEE_OFF,
    Input.GONE: Action.FORGET,
}
_EVERY_STATE: Final = (State.RUNNING, State.STEPPING, State.LISTENING, State.PARKED)

TRANSITIONS: Final[Mapping[tuple[State, Input], Action]] = {
    (State.RUNNING, Input.APPEARED): Action.PROCEED,
    (State.RUNNING, Input.ARRIVED): Action.PROCEED,
    (State.RUNNING, Input.STEP_DONE): Action.DELIVER,  # the program single-steps itself
    (State.RUNNING, Input.SIGNAL): Action.DELIVER,
    (State.RUNNING, Input.FAULT): Action.CANCEL_AND_DELIVER,
    (State.RUNNING, Input.INTERRUPTED): Action.PROCEED,
    (State.RUNNING, Input.GROUP_STOPPED): Action.LISTEN,
    (State.RUNNING, Input.SYSCALL): Action.PROCEED,
    (State.RUNNING, Input.WATCHED): Action.PROCEED,
    (State.RUNNING, Input.TASK_CREATED): Action.PROCEED,
    (State.RUNNING, Input.EXECED): Action.RENEW,
    (State.STEPPING, Input.STEP_DONE): Action.FINISH_STEP,
    (State.STEPPING, Input.WATCHED): Action.PROCEED,
    (State.STEPPING, Input.ARRIVED): Action.PROCEED,  # at a trap that was set where it stood
    (State.STEPPING, Input.SIGNAL): Action.DEFER,
    (State.STEPPING, Input.FAULT): Action.CANCEL_AND_DELIVER,
    (State.STEPPING, Input.INTERRUPTED): Action.PROCEED,
    (State.STEPPING, Input.GROUP_STOPPED): Action.LISTEN,
    (State.STEPPING, Input.TASK_CREATED): Action.PROCEED,  # a client steps over a system call
    (State.STEPPING, Input.EXECED): Action.RENEW,
    (State.LISTENING, Input.SIGNAL): Action.DELIVER,  # SIGCONT
    (State.LISTENING, Input.INTERRUPTED): Action.PROCEED,
    (State.LISTENING, Input.GROUP_STOPPED): Action.LISTEN,
    (State.PARKED, Input.RELEASED): Action.PROCEED,
    (State.PARKED, Input.EXECED): Action.RENEW,  # another thread's exec took this one's tid
    (State.LISTENING, Input.EXECED): Action.RENEW,
    (State.EXITING, Input.EXECED): Action.RENEW,
    (State.EXITING, Input.EXITING): Action.SEE_OFF,  # a leader whose tid an exec took, killed before that was told
    (State.EXITING, Input.GONE): Action.FORGET,
    **{(state, event): action for state in _EVERY_STATE for event, action in _ANYWHERE.items()},
}

_ENDS: Final = {Action.SEE_OFF: State.EXITING, Action.FORGET: State.GONE, Action.RENEW: State.RUNNING}


def step(state: State, event: Input, debts: Debts) -> tuple[State, Action]:
    """The next state and what to do, for one event; ``debts`` as they are after the event.

    Raises InternalError for a pair that is not in the table (rule 2).
    """
    action = TRANSITIONS.get((state, event))
    if action is None:
        raise InternalError(f"a thread that is {state} cannot have {event}")
    if action in _ENDS:
        return _ENDS[action], action
    if action is _DEFER:
        return _STEPPING, action
    if action is _LISTEN:
        return proceed(attrs.evolve(debts, group_stopped=True)), action
    return proceed(debts), action
