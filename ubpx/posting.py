"""How a session's tracer thread is asked to run: by an option, else by the environment, else so that hits are quick."""

import os
from enum import StrEnum
from typing import Final, TypeVar

from ubpx._errors import UsageError
from ubpx.core.values import Placement, Urgency

URGENCY_VARIABLE: Final = "UBPX_URGENCY"
PLACEMENT_VARIABLE: Final = "UBPX_PLACEMENT"
Choice = TypeVar("Choice", bound=StrEnum)


def chosen_urgency(option: str | None = None) -> Urgency:
    """Raises UsageError for what is none."""
    return _chosen(Urgency, "urgency", option, URGENCY_VARIABLE, Urgency.RAISED)


def chosen_placement(option: str | None = None) -> Placement:
    """Raises UsageError for what is none."""
    return _chosen(Placement, "placement", option, PLACEMENT_VARIABLE, Placement.FOLLOW)


def _chosen(kind: type[Choice], name: str, option: str | None, variable: str, default: Choice) -> Choice:
    said = name if option is not None else variable
    value = os.environ.get(variable, "") or default if option is None else option
    try:
        return kind(value)
    except ValueError:
        choices = " or ".join(repr(str(each)) for each in kind)
        raise UsageError(f"{said}={value!r}; choose {choices}") from None
