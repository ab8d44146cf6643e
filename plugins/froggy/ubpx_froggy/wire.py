"""The wire layer: from bytes to messages and back. Sans-IO: it reads no socket, and keeps no more than one message.

A message is its length (4 bytes, little-endian), then so many bytes of MessagePack. Whoever speaks may be
anybody's enemy: length, depth and the number of items are capped before a byte is parsed.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ubpx import UbpxError

PROTOCOL: Final = 1
"""The version that this module speaks."""
HELLO_BYTES: Final = 4096
"""The longest message from whoever has not yet said what it speaks."""
REQUEST_BYTES: Final = 1 << 20
"""The longest message to a broker."""
REPLY_BYTES: Final = 1 << 26
"""The longest message from a broker."""
DEPTH: Final = 8
"""Containers within containers, the outermost one included."""
ITEMS: Final = 1 << 17
"""Values in one message, containers and map keys included."""

_PREFIX: Final = 4
_REASON: Final = 200
"""Characters of a reason that may quote the message."""

_encoder: Final = msgspec.msgpack.Encoder()


class WireError(UbpxError):
    """What came over a connection is no message of the protocol; the connection ends."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"malformed message: {reason}; see docs/reference/protocol.md for the protocol")
        self.reason = reason


def pack(message: msgspec.Struct) -> bytes:
    """A message as it travels, its length in front."""
    buffer = bytearray(_PREFIX)
    _encoder.encode_into(message, buffer, _PREFIX)
    buffer[:_PREFIX] = (len(buffer) - _PREFIX).to_bytes(_PREFIX, "little")
    return bytes(buffer)


class Framer:
    """Cuts a stream of bytes into the bodies of messages. Owned by one connection.

    ``limit`` is the longest body that is taken, in bytes; it may be changed between two messages.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what has arrived; the bodies that are complete now. Raises WireError at a length over the limit.

        What the caller does not take of this iterator comes with the next ``feed``.
        """
        self._unread += data
        return self._bodies()

    def _bodies(self) -> Iterator[bytes]:
        unread = self._unread
        while len(unread) >= _PREFIX:
            size = int.from_bytes(unread[:_PREFIX], "little")
            if size > self.limit:
                raise WireError(f"{size} bytes, where at most {self.limit} are allowed")
            end = _PREFIX + size
            if len(unread) < end:
                return
            body = bytes(unread[_PREFIX:end])
            del unread[:end]
            yield body

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._unread)


class Parser:
    """Makes messages of one of some types from bodies; checks before it parses."""

    def __init__(self, types: Any) -> None:
        self._decoder: Final = msgspec.msgpack.Decoder(types)

    def parse(self, body: bytes) -> Any:
        """The message. Raises WireError for what is none, and for one that nests too deep or has too many items."""
        if len(body) > DEPTH:  # else it cannot nest deeper, for each level takes a byte
            check_shape(body)
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, OverflowError) as error:
            raise WireError(_printable(error)) from None


def _printable(error: Exception) -> str:
    """What is wrong, in a short line: it may quote the message, and that is no text for a log or a terminal."""
    text = str(error)[:_REASON]
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text)


def check_shape(body: bytes, *, depth: int = DEPTH, items: int = ITEMS) -> None:
    """Raises WireError if a MessagePack value nests deeper, has more items, or is cut short. Parses no value.

    Format: github.com/msgpack/msgpack/blob/master/spec.md
    """
    open_counts: list[int] = []
    position, end, seen = 0, len(body), 0
    expected = 1
    while expected:
        if position >= end:
            raise WireError("it is cut short")
        seen += 1
        if seen > items:
            raise WireError(f"more than {items} items")
        position, children = _skip(body, position)
        expected -= 1
        if children:
            open_counts.append(expected)
            if len(open_counts) > depth:
                raise WireError(f"nested deeper than {depth}")
            expected = children
        while not expected and open_counts:
            expected = open_counts.pop()
    if position != end:
        raise WireError("bytes behind its end" if position < end else "it is cut short")


def _skip(body: bytes, position: int) -> tuple[int, int]:
    """Where the value's own bytes end, and how many values it contains (a map's entry is two)."""
    first = body[position]
    position += 1
    if first <= 0x7F or first >= 0xE0 or first in _SINGLE:
        return position, 0
    if first <= 0x8F:
        return position, (first & 0x0F) * 2
    if first <= 0x9F:
        return position, first & 0x0F
    if first <= 0xBF:
        return position + (first & 0x1F), 0
    fixed = _FIXED.get(first)
    if fixed is not None:
        return position + fixed, 0
    width, unit, contains = _SIZED.get(first, (0, 0, 0))
    if not width:
        raise WireError(f"no MessagePack value begins with {first:#04x}")
    size = int.from_bytes(body[position : position + width], "big")
    return position + width + size * unit + _EXTRA.get(first, 0), size * contains


_SINGLE: Final = frozenset({0xC0, 0xC2, 0xC3})
"""nil, false, true."""
_FIXED: Final = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Numbers, and extensions of a fixed size: bytes that follow the first."""
_SIZED: Final = {
    0xC4: (1, 1, 0), 0xC5: (2, 1, 0), 0xC6: (4, 1, 0), 0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
    0xD9: (1, 1, 0), 0xDA: (2, 1, 0), 0xDB: (4, 1, 0),
    0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2),
}  # fmt: skip
"""What tells its size: the size's bytes, bytes for each unit of it, values for each unit of it."""
_EXTRA: Final = {0xC7: 1, 0xC8: 1, 0xC9: 1}
"""An extension's type stands before its bytes."""
