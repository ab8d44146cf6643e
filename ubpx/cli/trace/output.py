"""Where the text of a trace goes."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final, TextIO

from ubpx._errors import UbpxError

_MOST_KEPT: Final = 500
"""Pieces of text that wait to be written at once."""


class OutputFailed(UbpxError):
    """The output cannot be written; a reader that has gone is a BrokenPipeError instead."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"cannot write: {name} ({error.strerror}); make room, or choose another file with -o")
        self.name, self.error = name, error


class Output:
    """A stream that is written in few large pieces. Used by one thread."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name: Final = name
        self._stream: Final = stream
        self._kept: list[str] = []

    def write(self, text: str) -> None:
        """Take the text; it is out after ``flush`` at the latest."""
        self._kept.append(text)
        if len(self._kept) >= _MOST_KEPT:
            self.flush()

    def flush(self) -> None:
        """Hand over all that was written.

        Raises BrokenPipeError if nobody reads it any more, OutputFailed.
        """
        if not self._kept:
            return
        text = "".join(self._kept)
        self._kept.clear()
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self._abandon()
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputFailed(self._name, error) from error

    def _abandon(self) -> None:
        """What the stream still keeps must not fail again when it is closed."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def standard_output() -> Output:
    """Stdout."""
    return Output("standard output", sys.stdout)


def standard_error() -> Output:
    """Stderr."""
    return Output("standard error", sys.stderr)


@contextlib.contextmanager
def file_output(path: str) -> Iterator[Output]:
    """A new file, or an old one emptied. Raises OutputFailed."""
    try:
        stream = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed below
    except OSError as error:
        raise OutputFailed(path, error) from error
    with stream:
        yield Output(path, stream)
