"""What commands tell of log records, and to whom."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from ubpx.cli.logs import OneLineHandler


@contextmanager
def piped() -> Iterator[int]:
    """The end to read from of the pipe that is stderr meanwhile."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w", buffering=1) as stderr, redirect_stderr(stderr):
        yield reading
        read_all(reading)  # so that closing the other end need not wait
    os.close(reading)


def read_all(descriptor: int) -> str:
    """What is there."""
    parts = []
    while True:
        try:
            parts.append(os.read(descriptor, 65536))
        except BlockingIOError:
            return b"".join(parts).decode()


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("ubpx.test", logging.WARNING, __file__, 1, text, (), None)


def test_who_does_not_read_stderr_keeps_nobody_waiting() -> None:
    """Invariant: messages beyond what a pipe holds are left out, whole, and counted as soon as somebody reads."""
    handler = OneLineHandler(with_tracebacks=False)
    with piped() as reader:
        for number in range(1_000):
            handler.emit(record(f"{number:03} {'x' * 500}"))
        lines = read_all(reader).splitlines()
        assert 10 < len(lines) < 500
        assert [line.split()[1] for line in lines] == [f"{number:03}" for number in range(len(lines))]
        assert {len(line) for line in lines} == {len("ubpx: 000 ") + 500}
        handler.emit(record("again"))
        handler.emit(record("and again"))
        assert read_all(reader).splitlines() == [
            f"ubpx: {1_000 - len(lines)} messages were left out, because nobody read them",
            "ubpx: again",
            "ubpx: and again",
        ]
