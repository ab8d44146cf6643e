"""What an enemy may send, at random: the fuzzer for some seconds, and that it finds what it is for."""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from ubpx_froggy import wire

FUZZ: Final[dict[str, Any]] = runpy.run_path(str(Path(__file__).with_name("fuzz_wire.py")))
SECONDS: Final = float(os.environ.get("UBPX_FUZZ_SECONDS", "6"))


def test_nothing_but_a_wire_error_comes_of_any_stream() -> None:
    """Invariant: no stream makes framer or parser raise anything else, or keep memory; sound ones come as they went."""
    seed = time.time_ns() & 0xFFFF_FFFF
    print(f"fuzz_wire.py --seconds {SECONDS} --seed {seed}")  # noqa: T201 - pytest shows it if this fails
    assert FUZZ["main"](SECONDS, seed) == 0


def test_one_seed_makes_the_same_streams_each_time() -> None:
    def streams(seed: int) -> list[bytes]:
        random = FUZZ["Random"](seed)
        pool, side = FUZZ["Pool"](random), FUZZ["SIDES"][0]
        return [FUZZ["hostile_stream"](random, list(map(wire.pack, pool.some(side)))) for _ in range(50)]

    assert streams(1) == streams(1) != streams(2)


FEED: Final = wire.Framer.feed
PARSE: Final = wire.Parser.parse
KEPT: Final[list[bytes]] = []


def raises_another_error(parser: wire.Parser, body: bytes) -> Any:
    try:
        return PARSE(parser, body)
    except wire.WireError as error:
        raise KeyError(body) from error


def keeps_memory(framer: wire.Framer, data: bytes) -> Iterator[bytes]:
    """A megabyte, that nobody touches, of every 20th piece."""
    KEPT.append(bytes(1 << 20 if len(KEPT) % 20 == 0 else 0))
    return FEED(framer, data)


def takes_what_is_none(_: wire.Parser, body: bytes) -> Any:
    return body


class Fault(NamedTuple):
    """Something that the fuzzer must find."""

    owner: type
    method: str
    does: object
    told: str


@pytest.mark.parametrize(
    "fault",
    [
        Fault(wire.Parser, "parse", raises_another_error, "Found: KeyError"),
        Fault(wire.Parser, "parse", takes_what_is_none, " came as "),
        Fault(wire.Framer, "feed", keeps_memory, "Found: memory has grown by "),
    ],
    ids=lambda fault: fault.does.__name__,
)
def test_the_fuzzer_finds_faults_and_says_by_which_seed(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fault.owner, fault.method, fault.does)
    try:
        assert FUZZ["main"](1, 77) == 1
    finally:
        KEPT.clear()
    said = capsys.readouterr().err
    assert fault.told in said
    assert said.endswith("fuzz_wire: failed with --seed 77\n")
