"""Errors on their way: each is sent as a message, and raised again as what it was."""

from __future__ import annotations

import inspect
from typing import Any, Final

import pytest

import ubpx
from tests.parsing import bodies
from ubpx.core.values import Insn, VirtAddr
from ubpx_froggy import messages as m
from ubpx_froggy.failures import as_error, as_failure
from ubpx_froggy.wire import Parser, WireError, pack

ANY_VALUE: Final[dict[str, Any]] = {
    "address": 0x1000, "pid": 5, "status": -9, "tid": 6, "tracer_pid": 7, "size": 8, "limit": 9, "found": b"\xcc",
    "candidates": ("a", "b"), "holders": ("a",), "nearest": ("a",), "known": ("rax",), "allowed": ("STEP",),
    "error": PermissionError(1, "no"), "insn": Insn(VirtAddr(0x1000), b"\x90", "nop"),
}  # fmt: skip
ERRORS: Final = [
    each for each in (getattr(ubpx, name) for name in ubpx.__all__) if isinstance(each, type)
    and issubclass(each, ubpx.UbpxError)
]  # fmt: skip


def an_error(kind: Any) -> ubpx.UbpxError:
    parameters = () if kind.__init__ is ubpx.UbpxError.__init__ else inspect.signature(kind).parameters
    error: ubpx.UbpxError = kind(**{each: ANY_VALUE.get(each, f"the {each}") for each in parameters})
    error.args = error.args or ("it was so, and so on",)
    return error


def travelled(error: BaseException) -> ubpx.UbpxError:
    """What the peer raises."""
    (body,) = bodies(pack(m.Failed(7, as_failure(error))))
    return as_error(Parser(m.FromBroker).parse(body).failure)


def comparable(error: BaseException) -> dict[str, object]:
    """Its data; OSErrors are the same if they say the same."""
    return {name: (type(each), each.args) if isinstance(each, OSError) else each for name, each in vars(error).items()}


def test_there_are_errors_to_send() -> None:
    assert len(ERRORS) > 30


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_raised_again_as_what_it_was(kind: type) -> None:
    """Invariant: class, text and data arrive, whether or not optional data is there."""
    sent = [an_error(kind)]
    if kind is ubpx.InsnRefused:
        sent.append(ubpx.InsnRefused(VirtAddr(1), None, "it cannot be read"))
    if kind is ubpx.TargetGone:
        sent.append(ubpx.TargetGone(5, None))
    for error in sent:
        got = travelled(error)
        assert type(got) is kind
        assert str(got) == str(error)
        assert got.args == (str(error),)
        assert comparable(got) == comparable(error)


def test_an_error_that_the_peer_may_not_know_arrives_as_its_nearest_ancestor() -> None:
    class Outlandish(ubpx.InsnRefused):
        """A plugin's own."""

    error = Outlandish(VirtAddr(5), None, "reason")
    error.why = "it is"  # type: ignore[attr-defined]
    got = travelled(error)
    assert type(got) is ubpx.InsnRefused
    assert (str(got), vars(got)) == (str(error), vars(error))


@pytest.mark.parametrize("error", [ValueError("silly"), KeyboardInterrupt(), OSError(5, "io")], ids=repr)
def test_an_error_of_nobodys_is_a_bug_of_ours(error: BaseException) -> None:
    got = travelled(error)
    assert type(got) is ubpx.InternalError
    assert f"unexpected {type(error).__name__} ({error})" in str(got)


@pytest.mark.parametrize("name", ["", "Nonsense", "attach", "Verdict", "Target", "__name__", "ValueError", "_errors"])
def test_a_name_that_is_no_errors_makes_a_plain_one(name: str) -> None:
    """Invariant: nothing is looked up, and nothing called, but classes of errors that are public."""
    got = as_error(m.Failure(name, "text", {"pid": 3}))
    assert type(got) is ubpx.UbpxError
    assert (str(got), vars(got)) == ("text", {"pid": 3})


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_hostile_data_sets_nothing(kind: type) -> None:
    """Invariant: nothing of Python's own, of the class's, or private can be set from afar; the rest arrives."""
    hostile = {
        name: value
        for value in (1, "x", None, [], ["a"], {"b": 1}, b"c")
        for name in (*dir(kind), "_x", "__x", "", "a b", "a.b", "1", "\uff3f\uff3fclass\uff3f\uff3f", "\0")
    }
    got = as_error(m.Failure(kind.__name__, "text", {**hostile, "remedy": "this"}))
    assert type(got) is kind
    assert vars(got) == {"remedy": "this"}
    assert (got.args, str(got)) == (("text",), "text")
    assert got.__class__ is kind
    assert (got.__cause__, got.__context__, got.__traceback__) == (None, None, None)


class Odd(ubpx.UbpxError):
    """It carries what a plugin may have put there."""

    def __init__(self, **data: object) -> None:
        super().__init__("odd")
        vars(self).update(data)


class Text(str):
    """Something that is nearly a text."""

    __slots__ = ()


class Number(int):
    """Something that is nearly a number."""


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Text("a"), "a"),
        ((Text("a"), Number(1)), ("a", 1)),
        (Number(5), 5),
        (True, True),
        (ubpx.Strategy.STEP, "STEP"),
        (ubpx.Verdict.HOLD, 2),
        (bytearray(b"x"), "left out"),
        (2**64 - 1, 2**64 - 1),
        (2**64, "left out"),
        (-(2**63) - 1, "left out"),
        ([2**64], "left out"),
        ({"a": 1}, "left out"),
        ([["a"]], "left out"),
        (object(), "left out"),
        ("/tmp/\udcff", r"/tmp/\udcff"),
        (["\ud800"], (r"\ud800",)),
        (OSError(2, "\udcff"), (FileNotFoundError, (2, r"\udcff"))),
        (OSError("no number"), (OSError, (0, "None"))),
    ],
    ids=lambda value: "an object" if type(value) is object else ascii(value)[:40],
)  # fmt: skip
def test_whatever_an_error_carries_it_can_travel(value: object, arrives: object) -> None:
    """Invariant: what MessagePack has no form for is left out or written in another, and the rest arrives."""
    name = "error" if isinstance(value, OSError) else "value"
    got = comparable(travelled(Odd(**{name: value, "other": 1, "_private": 2})))
    assert got.pop("other") == 1
    assert got == ({} if arrives == "left out" else {name: arrives})
    assert all(type(each) is type(arrives) for each in got.values())


def test_what_is_private_does_not_travel() -> None:
    assert as_failure(Odd(_secret="x", pid=1)) == m.Failure("UbpxError", "odd", {"pid": 1})


def test_a_text_that_is_no_utf_8_can_travel() -> None:
    error = ubpx.KernelThread(5, "name\udcff")
    assert str(travelled(error)) == str(error).replace("\udcff", r"\udcff") != str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [("insn", [1, b"\x90"]), ("insn", ["1", b"\x90", "nop"]), ("error", ["1", "no"]), ("error", [1, 2, 3])],
    ids=repr,
)
def test_data_that_is_not_what_its_name_says_stays_plain(name: str, value: list[Any]) -> None:
    got = as_error(m.Failure("InsnRefused", "text", {name: value}))
    assert vars(got) == {name: tuple(value)}


def test_a_wire_error_says_where_to_read_on() -> None:
    assert str(WireError("odd")) == "malformed message: odd; see docs/reference/protocol.md for the protocol"
    assert isinstance(WireError("odd"), ubpx.UbpxError)
