"""From bytes to messages and back: for every message, and any bytes at all."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parsing import bodies, refusal
from ubpx_froggy import messages as m
from ubpx_froggy.wire import DEPTH, HELLO_BYTES, REPLY_BYTES, Framer, Parser, WireError, pack

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


def framed(*contents: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in contents)


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
