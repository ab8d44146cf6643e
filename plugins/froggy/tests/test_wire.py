"""From bytes to messages and back, and errors on their way: for every message, every error, and any bytes at all.

One file for both, and longer than others for that: each error is sent as a message, and each message is tried.
"""

from __future__ import annotations

import inspect
import runpy
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ubpx
from ubpx.core.values import Insn, VirtAddr
from ubpx_froggy import messages as m
from ubpx_froggy.failures import as_error, as_failure
from ubpx_froggy.wire import DEPTH, HELLO_BYTES, ITEMS, REPLY_BYTES, Framer, Parser, WireError, check_shape, pack

FUZZ: Final[dict[str, Any]] = runpy.run_path(str(Path(__file__).with_name("fuzz_wire.py")))
SIDES: Final = {"peer": m.FromPeer, "peer on channel": m.FromPeerOnChannel, "broker": m.FromBroker,
                "broker on channel": m.FromBrokerOnChannel}  # fmt: skip
STRUCTS: Final = [each for each in vars(m).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)
                  and not each.__name__.startswith("_")]  # fmt: skip
CALLS: Final = m.Call.__args__
MESSAGES: Final = [each for each in STRUCTS if each.__struct_config__.tag is not None and each not in CALLS]
encode: Final = msgspec.msgpack.encode
seeds: Final = st.integers(0, 2**32)
often: Final = settings(deadline=None)
seldom: Final = settings(deadline=None, max_examples=20)
"""For each of very many parameters."""


def made(kind: Any, seed: int) -> Any:
    """A message or value of a type, from its annotations alone."""
    return FUZZ["Maker"](Random(seed)).message(kind)


def bodies(*pieces: bytes, limit: int = REPLY_BYTES) -> list[bytes]:
    framer = Framer(limit)
    found = [body for piece in pieces for body in framer.feed(piece)]
    assert not framer.is_inside
    return found


def framed(*contents: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in contents)


def refusal(types: Any, body: bytes) -> str:
    with pytest.raises(WireError) as caught:
        Parser(types).parse(body)
    return caught.value.reason


# Round trips ------------------------------------------------------------------------------------


def test_all_messages_are_tried() -> None:
    """Invariant: whatever is in the module is a message of some side, a call, or a value that some reply carries."""
    taken = {kind for side in SIDES.values() for kind in side.__args__}
    assert set(MESSAGES) == taken
    assert {each for each in STRUCTS if each.__struct_config__.tag is not None} == taken | set(CALLS)
    assert len(CALLS) == len({each.__struct_config__.tag for each in CALLS}) > 20


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@seldom
@given(seed=seeds)
def test_every_struct_survives_its_way(kind: type, seed: int) -> None:
    message = made(kind, seed)
    (body,) = bodies(pack(message))
    assert Parser(kind).parse(body) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@seldom
@given(seed=seeds)
def test_every_side_knows_its_messages_and_no_others(kind: type, seed: int) -> None:
    """Invariant: a message is taken on just those connections on which the protocol has it, and as what it is."""
    (body,) = bodies(pack(made(kind, seed)))
    for types in SIDES.values():
        if kind in types.__args__:
            assert type(Parser(types).parse(body)) is kind
        else:
            assert refusal(types, body).startswith("Invalid value ")


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
@seldom
@given(seed=seeds)
def test_every_call_survives_in_a_question(kind: type, seed: int) -> None:
    asked = m.Ask(seed, made(kind, seed))
    (body,) = bodies(pack(asked))
    assert Parser(m.FromPeer).parse(body) == Parser(m.FromPeerOnChannel).parse(body) == asked


@often
@given(seed=seeds)
def test_what_a_reply_carries_is_what_was_put_in(seed: int) -> None:
    info = made(m.GroupInfo, seed)
    (body,) = bodies(pack(m.Reply(1, m.as_raw(info))))
    assert msgspec.msgpack.decode(Parser(m.FromBroker).parse(body).value, type=m.GroupInfo) == info


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@seldom
@given(seed=seeds)
def test_a_newer_peer_may_say_more_and_an_older_one_less(kind: type, seed: int) -> None:
    """Invariant: items behind the known fields are ignored, and left-out fields at the end have their defaults."""
    message, fields = made(kind, seed), msgspec.structs.fields(kind)
    values = msgspec.msgpack.decode(encode(message))
    assert Parser(kind).parse(encode([*values, "new", 5])) == message
    optional = sum(not field.required for field in fields)
    tags = len(values) - len(fields)
    short = Parser(kind).parse(encode(values[: len(values) - optional]))
    assert encode(short) == encode(kind(*[getattr(message, each.name) for each in fields if each.required]))
    if len(fields) > optional:
        assert "of at least length" in refusal(kind, encode(values[: tags + len(fields) - optional - 1]))


# Framing ----------------------------------------------------------------------------------------

STREAM: Final = [made(m.Hello, 1), made(m.Ask, 2), made(m.Hit, 3), made(m.Answer, 4)]


@pytest.mark.parametrize("limit", [max(len(pack(each)) - 4 for each in STREAM), REPLY_BYTES])
def test_messages_come_whole_wherever_the_stream_is_cut(limit: int) -> None:
    """Invariant: two pieces cut at any byte give the same bodies as the whole; so do single bytes."""
    stream = b"".join(map(pack, STREAM))
    whole = bodies(stream, limit=limit)
    assert whole == [encode(message) for message in STREAM]
    for cut in range(len(stream) + 1):
        assert bodies(stream[:cut], stream[cut:], limit=limit) == whole
    assert bodies(*(bytes([byte]) for byte in stream), limit=limit) == whole


@often
@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 300)))
def test_any_bodies_come_out_as_they_went_in(contents: list[bytes], cuts: list[int]) -> None:
    stream = framed(*contents)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert bodies(*(stream[begin:end] for begin, end in pairwise(places))) == contents


def test_what_is_not_taken_comes_with_the_next_feed() -> None:
    framer = Framer(10)
    framer.feed(framed(b"a", b"b"))
    assert framer.is_inside
    assert next(framer.feed(framed(b"c"))) == b"a"
    assert list(framer.feed(b"")) == [b"b", b"c"]
    assert [framer.is_inside, *framer.feed(b"\1\0"), framer.is_inside] == [False, True]


def test_a_length_over_the_limit_is_refused_before_what_it_announces() -> None:
    """Invariant: so many bytes are allowed and not one more, and nothing is waited or allocated for."""
    assert bodies(framed(b"x" * 10), limit=10) == [b"x" * 10]
    for size in (11, 1 << 31, (1 << 32) - 1):
        framer = Framer(10)
        fed = framer.feed(framed(b"good") + size.to_bytes(4, "little"))
        assert next(fed) == b"good"
        for again in (fed, framer.feed(b"more")):
            with pytest.raises(WireError, match=f"{size} bytes, where at most 10 are allowed"):
                next(again)


def test_the_limit_may_change_between_two_messages_of_one_feed() -> None:
    framer = Framer(HELLO_BYTES)
    fed = framer.feed(framed(b"hello", b"x" * (HELLO_BYTES + 1)))
    assert next(fed) == b"hello"
    framer.limit = HELLO_BYTES + 1
    assert len(next(fed)) == HELLO_BYTES + 1


# Shapes -----------------------------------------------------------------------------------------


def nested(levels: int, opening: bytes = b"\x91") -> bytes:
    return opening * levels + b"\xc0"


@pytest.mark.parametrize(
    "opening", [b"\x91", b"\x81\xc0", b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xde\0\1\xc0"], ids=bytes.hex
)
def test_a_message_nests_so_deep_and_no_deeper(opening: bytes) -> None:
    check_shape(nested(DEPTH, opening))
    with pytest.raises(WireError, match=f"nested deeper than {DEPTH}"):
        check_shape(nested(DEPTH + 1, opening))


def test_depth_is_of_what_is_open_and_not_of_what_was() -> None:
    """Invariant: a container that is over does not count, be it the last of another or not."""
    check_shape(b"\x93" + nested(DEPTH - 1) * 3)
    check_shape(b"\x91" * (DEPTH - 1) + b"\x92\x90\x80")
    with pytest.raises(WireError, match="nested deeper"):
        check_shape(b"\x93" + nested(DEPTH - 1) * 2 + nested(DEPTH))


@pytest.mark.parametrize(("opening", "width", "unit"), [(b"\xdd", 4, 1), (b"\xdf", 4, 2)], ids=["array", "map"])
def test_a_message_has_so_many_items_and_no_more(opening: bytes, width: int, unit: int) -> None:
    """Invariant: the container itself counts too, and a map's keys."""
    count = ITEMS // unit - 1
    fits = opening + count.to_bytes(width, "big") + b"\xc0" * (count * unit)
    check_shape(fits)
    with pytest.raises(WireError, match=f"more than {ITEMS} items"):
        check_shape(opening + (count + 1).to_bytes(width, "big") + b"\xc0" * ((count + 1) * unit))
    with pytest.raises(WireError, match="cut short"):
        check_shape(fits[:-1])


def test_a_parser_looks_at_the_shape_first() -> None:
    """Invariant: no message is parsed that is too deep or has too many items, whatever its fields would allow."""
    raw = Parser(m.FromBroker)
    assert raw.parse(encode(["reply", 1, msgspec.Raw(nested(DEPTH - 1))])).value == msgspec.Raw(nested(DEPTH - 1))
    assert "nested deeper" in refusal(m.FromBroker, encode(["reply", 1, msgspec.Raw(nested(DEPTH))]))
    assert raw.parse(encode(["reply", 1, [0] * (ITEMS - 5)])).id == 1
    assert "more than" in refusal(m.FromBroker, encode(["reply", 1, [0] * ITEMS]))


class Value:
    """One MessagePack value that begins with a given byte, made at random: with how deep it is and how many items."""

    def __init__(self, data: st.DataObject, first: int, room: int = 3) -> None:
        self._data = data
        self._room = room
        self.depth, self.items = 0, 1
        self.encoded = bytes([first])
        if first < 0x80 or first >= 0xE0 or first in {0xC0, 0xC2, 0xC3}:
            return
        if first < 0x90:
            self._contain(first & 0xF, 2)
        elif first < 0xA0:
            self._contain(first & 0xF, 1)
        elif first < 0xC0:
            self.encoded += self._text(first & 0x1F)
        elif first in FIXED:
            self._fixed(first)
        else:
            self._sized(first)

    def _fixed(self, first: int) -> None:
        size = FIXED[first]
        if first >= 0xD4:
            self.encoded += EXTENSION
            size -= 1
        self.encoded += self._data.draw(st.binary(min_size=size, max_size=size))

    def _sized(self, first: int) -> None:
        width, unit = SIZED[first]
        size = self._data.draw(st.integers(0, 40 if unit == 0 else 3))
        self.encoded += size.to_bytes(width, "big")
        if unit:
            self._contain(size, unit)
        elif first >= 0xD9:
            self.encoded += self._text(size)
        else:
            self.encoded += (EXTENSION if first >= 0xC7 else b"") + bytes(size)

    def _text(self, size: int) -> bytes:
        return self._data.draw(st.binary(min_size=size, max_size=size)).translate(ASCII)

    def _contain(self, count: int, unit: int) -> None:
        """Keys are distinct numbers, for a decoder wants keys that can be compared."""
        for number in range(count):
            if unit == 2:
                self.encoded += b"\xcc" + bytes([number])
                self.items += 1
            first = self._data.draw(st.sampled_from(FIRST_BYTES if self._room else SCALARS))
            inner = Value(self._data, first, self._room - 1)
            self.encoded += inner.encoded
            self.items += inner.items
            self.depth = max(self.depth, inner.depth)
        if count:
            self.depth += 1


ASCII: Final = bytes(each & 0x7F for each in range(256))
EXTENSION: Final = b"\x05"
"""An application's; the predefined one has rules of its own."""
FIRST_BYTES: Final = [each for each in range(256) if each != 0xC1]
SCALARS: Final = [each for each in FIRST_BYTES if not 0x80 <= each < 0xA0 and not 0xDC <= each < 0xE0]
FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
                0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
SIZED: Final = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 0), 0xC8: (2, 0), 0xC9: (4, 0), 0xD9: (1, 0),
                0xDA: (2, 0), 0xDB: (4, 0), 0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # fmt: skip
"""The size's bytes, and how many values each unit of it is; 0: it is bytes."""


@pytest.mark.parametrize("first", FIRST_BYTES, ids=hex)
@seldom
@given(data=st.data())
def test_the_shape_of_any_sound_value_is_what_a_decoder_finds(first: int, data: st.DataObject) -> None:
    """Invariant: check_shape takes what msgspec takes, at just its depth and items; neither takes it cut or long."""
    value = Value(data, first)
    msgspec.msgpack.decode(value.encoded)
    check_shape(value.encoded, depth=value.depth, items=value.items)
    if value.depth:
        with pytest.raises(WireError, match="nested deeper"):
            check_shape(value.encoded, depth=value.depth - 1)
    with pytest.raises(WireError, match="more than"):
        check_shape(value.encoded, items=value.items - 1)
    cut = data.draw(st.integers(0, len(value.encoded) - 1))
    for broken, reason in ((value.encoded[:cut], "cut short"), (value.encoded + b"\0", "behind its end")):
        with pytest.raises(WireError, match=reason):
            check_shape(broken)
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode(broken)


@often
@given(st.binary(max_size=60))
@example(b"\xc1")
@example(b"\x92\xc1\0")
def test_what_has_no_shape_is_no_value(body: bytes) -> None:
    """Invariant: what check_shape refuses, caps aside, msgspec refuses too: no sound message is lost by it."""
    try:
        check_shape(body, depth=10**6, items=10**6)
    except WireError:
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.msgpack.decode(body)


@pytest.mark.parametrize("body", [b"\xc1", b"\x92\xc0\xc1", b"\x81\xc1\xc0"], ids=bytes.hex)
def test_the_one_byte_that_begins_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="no MessagePack value begins with 0xc1"):
        check_shape(body)


# What is no message -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@often
@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(side: str, body: bytes) -> None:
    """Invariant: nothing else is ever raised."""
    for content in (body, b"\x93\xa3ask" + body, b"\x94\xa4hook\1\xc4\0" + body, b"\x93\xa6failed\1" + body):
        try:
            message = Parser(SIDES[side]).parse(content)
        except WireError:
            continue
        assert isinstance(message, SIDES[side])


@pytest.mark.parametrize("side", SIDES)
@often
@given(seed=seeds, data=st.data())
def test_a_message_that_is_cut_or_has_something_behind_it_is_none(side: str, seed: int, data: st.DataObject) -> None:
    body = encode(made(SIDES[side], seed))
    cut = data.draw(st.integers(0, len(body) - 1))
    assert "cut short" in refusal(SIDES[side], body[:cut]) or cut <= DEPTH
    assert "bytes behind its end" in refusal(SIDES[side], body + b"\xc0") or len(body) < DEPTH


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"\x91" * DEPTH, "Expected `str`, got `array`"),
        (b"\xdd\xff\xff\xff\xff", "truncated"),
        (b"\xc1", "malformed"),
        (encode({"hello": 1}), "Expected `array`, got `object`"),
        (encode("hello"), "Expected `array`, got `str`"),
        (encode([]), "Expected `array` of at least length 1"),
        (encode([1, [1], "x"]), "Expected `str`, got `int`"),
        (encode(["nonsense", [1], "x"]), "Invalid value 'nonsense'"),
        (encode(["reply", 1, 2]), "Invalid value 'reply'"),
        (encode(["hello", [1]]), "Expected `array` of at least length 3, got 2"),
        (encode(["hello", 1, "x"]), "Expected `array`, got `int`"),
        (encode(["hello", ["1"], "x"]), "Expected `int`, got `str`"),
        (encode(["hello", [1.0], "x"]), "Expected `int`, got `float`"),
        (encode(["hello", [1], b"x"]), "Expected `str`, got `bytes`"),
        (encode(["hello", [1], "x", "token"]), "Expected `bytes | null`, got `str`"),
        (encode(["hello", [True], "x"]), "Expected `int`, got `bool`"),
        (encode(["ask", 1, ["nonsense"]]), "Invalid value 'nonsense'"),
        (encode(["ask", 1, ["hello", [1], "x"]]), "Invalid value 'hello'"),
        (encode(["ask", 1, "threads"]), "Expected `array`, got `str`"),
        (encode(["ask", None, ["overview"]]), "Expected `int`, got `None`"),
        (encode(["ask", 1, ["wait", b"", "soon"]]), "Expected `float | null`, got `str`"),
        (encode(["ask", 1, ["read_memory", b"", 0, msgspec.msgpack.Ext(5, b"8")]]), "Expected `int`, got `ext`"),
        (b"\x93\xa5hello\x91\x01\xa1\xff", "'utf-8' codec can't decode"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_wrong_with_a_message_is_said(body: bytes, reason: str) -> None:
    assert reason in refusal(m.FromPeer, body)


def test_numbers_have_64_bits() -> None:
    for number in (-(2**63), 2**64 - 1):
        assert Parser(m.FromPeer).parse(encode(["ask", number, ["overview"]])).id == number
    with pytest.raises(OverflowError):
        pack(m.Ask(2**64, m.Overview()))


def test_a_reason_is_short_and_fit_for_a_terminal() -> None:
    """Invariant: whatever a peer sends, the text that comes of it is one printable line of at most 300 characters."""
    for tag in ("x\x1b[2J\n" * 100_000, "\u2028é" * 9):
        reason = refusal(m.FromPeer, encode([tag, 1]))
        assert reason.startswith("Invalid value '")
        assert reason.isascii()
        assert reason.isprintable()
        assert len(str(WireError(reason))) < 300


# Errors on their way ----------------------------------------------------------------------------

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
    ids=lambda value: ascii(value)[:40],
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
