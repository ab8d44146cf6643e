"""What callers pass, checked before anything is sent, in the words of ubpx's own checks (which are not for plugins).

What only the broker can know, such as which registers there are, it checks itself.
"""

import signal
import threading
from collections.abc import Iterable, Mapping
from typing import Final

from ubpx import NotExecutable, Strategy, UsageError
from ubpx.core.values import Follow, VirtAddr
from ubpx_froggy.messages import Registers
from ubpx_froggy.wire import ITEMS

MODES: Final = ("sync", "notify", "count")
"""How a lease's hits are dealt with."""

_LONGEST_S: Final = threading.TIMEOUT_MAX
_MOST_BYTES: Final = 2**30
_MOST_PLACES: Final = ITEMS - 64
"""The request that names them has some items of its own."""
_HIGHEST_PID: Final = 2**31 - 1
_HIGHEST_SIGNAL: Final = 64
_WORD_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


def is_int(value: object) -> bool:
    """Whether it is an integer that was meant as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether it is text that can be printed in one line."""
    return isinstance(value, str) and value.isprintable()


def is_word(value: object) -> bool:
    """Whether it is an unsigned 64-bit integer."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _WORD_MASK


def as_word(name: str, value: object) -> int:
    """What a register holds after ``value`` was written: its lowest 64 bits. Raises UsageError unless it is an int."""
    if not isinstance(value, int):
        raise UsageError(f"register {name} cannot be {value!r}; write an int")
    return value & _WORD_MASK


def check_pid(value: object) -> None:
    """Raises UsageError unless a process could have it."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _HIGHEST_PID:
        raise UsageError(f"{value!r} is no pid; give the number of a process, as ps -e lists them")


def check_follow(follow: object) -> None:
    """Raises UsageError unless it says whom a target's clients go along with."""
    if follow not in list(Follow):
        raise UsageError(f"follow={follow!r}; choose {', '.join(map(repr, map(str, Follow)))}")


def check_slots(slots: object) -> None:
    """Raises UsageError unless it is a policy for out-of-line slots."""
    if slots not in ("auto", "none"):
        raise UsageError(f"slots={slots!r}; choose 'auto' or 'none'")


def check_name(name: object) -> None:
    """Raises UsageError unless a client can be called so."""
    if not is_text(name) or not name:
        raise UsageError(f"{name!r} is no name; a client needs a name that others can be told")


def check_priority(priority: object) -> None:
    """Raises UsageError unless it can be compared with others' priorities."""
    if priority is not None and not is_int(priority):
        raise UsageError(f"priority={priority!r}; give an integer, a higher one runs earlier")


def check_order(priority: object) -> None:
    """Raises UsageError unless it can be a client's priority."""
    check_priority(priority)
    if not isinstance(priority, int):
        raise UsageError(f"priority={priority!r}; give an integer, a higher one runs earlier")


def check_seconds(name: str, value: object) -> None:
    """Raises UsageError unless it is a time to wait."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LONGEST_S:
        raise UsageError(f"{name}={value!r}; give seconds, from 0 to {_LONGEST_S:.0f}")


def check_flags(**flags: object) -> None:
    """Raises UsageError unless each is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name}={value!r}; give True or False")


def check_tid(tid: object) -> None:
    """Raises UsageError unless a thread could have it."""
    if not is_word(tid):
        raise UsageError(f"{tid!r} is no tid; give one of target.threads()")


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


def check_handler(handler: object, place: object, mode: object) -> None:
    """Raises UsageError unless the mode is one, and the handler is one for it."""
    if mode not in MODES:
        raise UsageError(f"mode={mode!r}; choose one of {', '.join(MODES)}")
    if mode == "count":
        if handler is not None:
            raise UsageError(
                f"nobody would call the handler of {place!r} with mode='count'; give None, or another mode"
            )
        return
    if not callable(handler):
        kind = type(handler).__name__
        raise UsageError(f"the handler of {place!r} is a {kind}; give a callable that takes a hit")


def checked_strategy(strategy: object) -> str | None:
    """Raises UsageError unless it is one, or None."""
    if strategy is None:
        return None
    try:
        return Strategy(strategy)  # type: ignore[arg-type] # that is what is found out
    except ValueError:
        raise UsageError(f"{strategy!r} is no strategy; choose one of {', '.join(Strategy)}") from None


def checked_place(place: object) -> str | int:
    """Raises UsageError for what is no place, NotExecutable for a number that is no address."""
    if isinstance(place, bool) or not isinstance(place, str | int):
        raise UsageError(f"a place is a spec or an address, not {place!r}; see the section Specs of the reference")
    if isinstance(place, int) and not is_word(place):
        raise NotExecutable(VirtAddr(place), "nothing is mapped there", "look into /proc/PID/maps")
    return place


def checked_places(places: object) -> str | list[str | int]:
    """A glob, or a list of specs and addresses. Raises UsageError, NotExecutable."""
    if isinstance(places, str):
        return places
    if not isinstance(places, Iterable) or isinstance(places, bytes | bytearray):
        raise UsageError(f"{places!r} is no list of places; give specs and addresses in a list, or one glob as a str")
    found = [checked_place(place) for place in places]
    if not found:
        raise UsageError("no places to probe: the list is empty; give at least one spec or address")
    if len(found) > _MOST_PLACES:
        raise UsageError(f"{len(found)} places are too many for one request; give at most {_MOST_PLACES}, or a glob")
    return found


def check_watch(address: object, size: object, access: object) -> None:
    """Raises UsageError for what no debug register can watch, whatever the processor."""
    if not is_word(address):
        raise UsageError(f"{address!r} cannot be watched; give an address of the program's memory")
    if not isinstance(access, str):
        raise UsageError(f"{access!r} cannot be watched for; choose one of WRITE, READWRITE, EXECUTE")
    if not is_word(size):
        raise UsageError(f"{size!r} bytes cannot be watched; choose one of 1, 2, 4, 8")


def checked_parting(registers: object, signal_number: object) -> tuple[Registers | None, int | None]:
    """What goes along with the end of a hold: registers and a signal. Raises UsageError."""
    if registers is not None and not isinstance(registers, Mapping):
        raise UsageError(f"registers={registers!r}; give a mapping from names to ints")
    if signal_number is not None and not (isinstance(signal_number, int) and is_signal(signal_number)):
        raise UsageError(f"signal={signal_number!r}; give a signal's number, 0 for none, or leave it out")
    written = {name: as_word(name, value) for name, value in (registers or {}).items()}
    unknown = [name for name in written if not isinstance(name, str)]
    if unknown:
        raise UsageError(f"no register is named {unknown[0]!r}; give their names as text")
    return written or None, signal_number


def is_signal(number: object) -> bool:
    """Whether it is 0 or a signal's number."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _HIGHEST_SIGNAL


def checked_signals(wanted: object) -> list[int | str] | None:
    """The signals of a catch set; None for all. Raises UsageError."""
    for each in (found := _collection(wanted, "signals")) or ():
        if not is_int(each) or each not in signal.valid_signals() or each == signal.SIGKILL:
            raise UsageError(f"{each!r} is no signal that can be caught; give numbers, such as signal.SIGUSR1")
    return found


def checked_syscalls(wanted: object) -> list[int | str] | None:
    """The system calls of a catch set, as far as they can be checked here; None for all. Raises UsageError."""
    for each in (found := _collection(wanted, "syscalls")) or ():
        if not isinstance(each, str) and not is_word(each):
            raise UsageError(f"{each!r} is no system call; give numbers, or names such as 'openat'")
    return found


def _collection(wanted: object, what: str) -> list[int | str] | None:
    if wanted is None:
        return None
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise UsageError(f"{wanted!r} is no collection of {what}; give a list, or None for all")
    return list(wanted)
