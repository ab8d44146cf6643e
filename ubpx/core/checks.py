"""What callers pass, checked before anything is done: each refusal is a UsageError that says what to give instead.

Annotations are for type checkers; who has none must not be answered with a TypeError from our depths.
"""

import threading
from collections.abc import Iterable

from ubpx._errors import UsageError

_LONGEST_S = threading.TIMEOUT_MAX
_HIGHEST_PID = 2**31 - 1
_MOST_BYTES = 2**30


def is_int(value: object) -> bool:
    """Whether it is an integer that was meant as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether it is text that can be printed in one line."""
    return isinstance(value, str) and value.isprintable()


def check_seconds(name: str, value: object) -> None:
    """Raises UsageError unless it is a time to wait."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LONGEST_S:
        raise UsageError(f"{name}={value!r}; give seconds, from 0 to {_LONGEST_S:.0f}")


def check_duration(name: str, value: object) -> None:
    """Raises UsageError unless it is a time that something may take."""
    check_seconds(name, value)
    if not value:
        raise UsageError(f"{name}={value!r} leaves no time at all; give seconds, more than 0")


def check_flags(**flags: object) -> None:
    """Raises UsageError unless each is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name}={value!r}; give True or False")


def check_names(name: str, value: object) -> None:
    """Raises UsageError unless it is a collection of names."""
    if isinstance(value, str):
        raise UsageError(f"{name}={value!r}; give a list of names: {name}=[{value!r}]")
    if not isinstance(value, Iterable) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"{name}={value!r}; give a list of names, or leave it out")


def check_pid(value: object) -> None:
    """Raises UsageError unless a process could have it."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _HIGHEST_PID:
        raise UsageError(f"{value!r} is no pid; give the number of a process, as ps -e lists them")


def check_span(address: object, size: object) -> None:
    """Raises UsageError unless so many bytes can be asked for at once, there or anywhere."""
    if not is_int(address):
        raise UsageError(f"{address!r} is no address; give an int")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MOST_BYTES:
        raise UsageError(f"{size!r} is no size; give 0 to {_MOST_BYTES} bytes at once")


def check_bytes(data: object) -> None:
    """Raises UsageError unless it can be written to memory."""
    if not isinstance(data, bytes):
        raise UsageError(f"{type(data).__name__} cannot be written to memory; give bytes")
