"""Bytes as framer and parser take them; for the tests of the wire layer."""

from __future__ import annotations

from typing import Any

import pytest

from ubpx_froggy.wire import REPLY_BYTES, Framer, Parser, WireError


def bodies(*pieces: bytes, limit: int = REPLY_BYTES) -> list[bytes]:
    framer = Framer(limit)
    found = [body for piece in pieces for body in framer.feed(piece)]
    assert not framer.is_inside
    return found


def refusal(types: Any, body: bytes) -> str:
    with pytest.raises(WireError) as caught:
        Parser(types).parse(body)
    return caught.value.reason
