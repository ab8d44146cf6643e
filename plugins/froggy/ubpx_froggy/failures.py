"""Errors of ubpx's tree on their way through a connection: raised again as what they were."""

from typing import Any, Final

import ubpx
from ubpx import InternalError, UbpxError
from ubpx.core.values import Insn, VirtAddr
from ubpx_froggy.messages import Failure

_PLAIN: Final = (float, str, bytes, type(None))


def as_failure(error: BaseException) -> Failure:
    """What tells a peer of an error; one that is not of ubpx's tree is a bug of ours."""
    if not isinstance(error, UbpxError):
        error = InternalError(f"unexpected {type(error).__name__} ({error})")
    data = {name: _plain(value) for name, value in vars(error).items() if name[0] != "_" and _is_plain(value)}
    return Failure(name=_public_name(type(error)), message=_text(str(error)), data=data)


def as_error(failure: Failure) -> UbpxError:
    """The error again; a class that is not known here becomes an UbpxError with the same message."""
    known: Any = getattr(ubpx, failure.name, UbpxError) if failure.name in ubpx.__all__ else UbpxError
    if not (isinstance(known, type) and issubclass(known, UbpxError)):
        known = UbpxError
    error: UbpxError = known.__new__(known, failure.message)
    error.args = (failure.message,)
    for name, value in failure.data.items():
        if not name.isidentifier() or name.startswith("_") or hasattr(known, name):
            continue  # what is no data, or would stand before what the class itself has: ``args``, a method
        setattr(error, name, _from_plain(name, value))
    return error


def _public_name(kind: type) -> str:
    return next(base.__name__ for base in kind.__mro__ if base.__name__ in ubpx.__all__)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_scalar, value))
    return _is_scalar(value) or isinstance(value, (Insn, OSError))


def _is_scalar(value: object) -> bool:
    """Whether MessagePack has it: integers have 64 bits there."""
    return -(2**63) <= value < 2**64 if isinstance(value, int) else isinstance(value, _PLAIN)


def _plain(value: Any) -> Any:
    if isinstance(value, Insn):
        value = (value.address, value.raw, value.text)
    elif isinstance(value, OSError):
        value = (value.errno or 0, str(value.strerror))
    return list(map(_scalar, value)) if isinstance(value, tuple | list) else _scalar(value)


def _scalar(value: Any) -> Any:
    """As it travels: of the built-in type itself, for a subclass is not packed."""
    if isinstance(value, str):
        return _text(value)
    built_in = next((kind for kind in (bool, int, float, bytes) if isinstance(value, kind)), None)
    return value if built_in is None else built_in(value)


def _text(text: str) -> str:
    """What can be packed: a file's or program's name may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _from_plain(name: str, value: Any) -> Any:
    match name, value:
        case "insn", [int(address), bytes(raw), str(text)]:
            return Insn(VirtAddr(address), raw, text)
        case "error", [int(number), str(text)]:
            return OSError(number, text)
        case _, list():
            return tuple(value)
    return value
