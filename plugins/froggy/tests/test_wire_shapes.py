"""The shape of a message, which is looked at before it is parsed: how deep it is, and how many items it has."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.parsing import refusal
from ubpx_froggy import messages as m
from ubpx_froggy.wire import DEPTH, ITEMS, Parser, WireError, check_shape

encode: Final = msgspec.msgpack.encode
often: Final = settings(deadline=None)
seldom: Final = settings(deadline=None, max_examples=20)
"""For each of very many parameters."""


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
